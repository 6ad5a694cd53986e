//! The reward worker: scores candidate tokens with a personalised reward model.
//!
//! A message passes `api` (the wire), `engine` (the thread that owns the model), `session` (what a
//! session's step allows), `scheduler` (who computes next) and `attune_service::batching` (when), and comes
//! back by `streams`.
#![forbid(unsafe_code)]

mod api;
mod config;
mod desk;
mod engine;
mod failure;
mod method;
mod metrics;
mod model;
mod person;
mod profiles;
mod prompts;
mod resolve;
mod scheduler;
mod session;
#[doc(hidden)]
pub mod simulation;
mod slots;
mod streams;
mod trail;
mod worker;

pub use config::{Args, RewardConfig};
pub use profiles::ProfilesConfig;
pub use worker::Worker;

use attune_service::{metrics::Metrics, server::Drain, service::until_shutdown};
use tokio_util::sync::CancellationToken;

/// Loads the model, serves until `shutdown`, and drains. What it measures of itself goes into `metrics`.
///
/// # Errors
/// What the model, the address or a setting has wrong, before the port opens; later, that the engine
/// or the transport failed.
pub async fn run(
    config: RewardConfig,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> anyhow::Result<Drain> {
    match until_shutdown(&shutdown, Worker::start_with(config, metrics)).await? {
        Some(started) => started.serve(shutdown).await,
        None => Ok(Drain::Complete),
    }
}
