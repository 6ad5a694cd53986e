//! Writes a seeded random checkpoint: `make_checkpoint OUT SHAPE SEED KIND`.
//!
//! SHAPE is `small`, `medium`, or a shape as JSON (the fields of `random_checkpoint::Shape`); KIND
//! is `base`, `rm` (a PersRM) or `rm-value-head`. The Python peers call it, so that both sides
//! read the same folders.

use std::error::Error;
use std::path::Path;

use attune_engine::random_checkpoint::{Kind, Shape, write};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [out, shape, seed, kind] = arguments.as_slice() else {
        return Err("usage: make_checkpoint OUT SHAPE SEED KIND".into());
    };
    let shape = match shape.as_str() {
        "small" => Shape::small(),
        "medium" => Shape::medium(),
        json => serde_json::from_str(json)?,
    };
    let kind = match kind.as_str() {
        "base" => Kind::Base,
        "rm" => Kind::PersRm { value_head: false },
        "rm-value-head" => Kind::PersRm { value_head: true },
        other => return Err(format!("KIND {other}: use base, rm or rm-value-head").into()),
    };
    write(Path::new(out), &shape, seed.parse()?, kind)?;
    Ok(())
}
