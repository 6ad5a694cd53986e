//! `attune-generator`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use attune_generator::{Args, GeneratorConfig};
use attune_service::{config, service};
use clap::Parser as _;

fn main() -> ExitCode {
    let args = Args::parse();
    let config = config::environment().and_then(|env| GeneratorConfig::load(&args, env));
    service::run("attune-generator", config, GeneratorConfig::telemetry, attune_generator::run)
}
