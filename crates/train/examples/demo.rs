//! Makes the embedded pair: `cargo run -p attune-train --example demo -- --seed 1 --out models/demo`.

use attune_train::demo::{DemoOptions, make};

fn main() -> anyhow::Result<()> {
    let mut options = DemoOptions::new("models/demo", 1);
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let Some(value) = arguments.next() else { anyhow::bail!("{flag} needs a value") };
        match flag.as_str() {
            "--seed" => options.seed = value.parse()?,
            "--out" => options.out = value.into(),
            "--base" => options.base = Some(value.into()),
            "--prompts" => options.prompts = value.parse()?,
            "--beta" => options.dpo.beta = value.parse()?,
            "--texts" => options.lm.texts = value.parse()?,
            "--rate" => options.lm.rate = value.parse()?,
            "--pairs" => options.dpo.pairs = value.parse()?,
            "--dpo-rate" => options.dpo.rate = value.parse()?,
            "--anchor" => options.dpo.anchor = value.parse()?,
            _ => anyhow::bail!("unknown flag {flag}"),
        }
    }
    let report = make(&options)?;
    print!("{}", attune_train::card::render(&report));
    Ok(())
}
