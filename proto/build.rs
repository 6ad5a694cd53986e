//! Compiles the protos in pure Rust, so that nobody has to install protoc.
use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const PROTOS: [&str; 3] = [
    "attune/reward/v1/reward.proto",
    "attune/generator/v1/generator.proto",
    "attune/profile/v1/profile.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=attune");
    let descriptors = protox::compile(PROTOS, ["."])?;
    // Reflection serves the same descriptors, comments included.
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    // A term that says nothing takes two bytes on the wire: it must not take two hundred once it is decoded.
    let boxed = ".attune.generator.v1.GuidanceTerm.guidance";
    tonic_prost_build::configure().bytes(".").boxed(boxed).compile_fds(descriptors)?;
    Ok(())
}
