//! `attune-reward`.

use std::process::ExitCode;

use attune_reward::{Args, RewardConfig};
use clap::Parser as _;

/// A configuration that cannot be used (`EX_USAGE`).
const EXIT_USAGE: u8 = 64;

fn main() -> ExitCode {
    let args = Args::parse();
    let config = match RewardConfig::load(&args, std::env::vars()) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("attune-reward: {error}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match serve(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("attune-reward: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn serve(config: RewardConfig) -> anyhow::Result<()> {
    let _telemetry = attune_service::telemetry::init(&config.log)?;
    let shutdown = attune_service::shutdown::on_signals()?;
    attune_reward::run(config, shutdown).await?;
    Ok(())
}
