//! `attune-reward`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use attune_reward::{Args, RewardConfig};
use attune_service::{config, service};
use clap::Parser as _;

fn main() -> ExitCode {
    let args = Args::parse();
    let config = config::environment().and_then(|env| RewardConfig::load(&args, env));
    service::run("attune-reward", config, RewardConfig::telemetry, attune_reward::run)
}
