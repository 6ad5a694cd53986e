//! The generator: decodes every token with the base model.
//!
//! A request passes these stations, one file each: `api` (decode the message, take a permit),
//! `validate` (every default resolved), `decoding` (every decision) with `scheduler` (who runs, with
//! which blocks), `engine` (the thread and the forward pass), `guides` and `pool` (the sessions on the
//! reward workers), `sequence` (rewards fused, token chosen), `output` (text, stop strings, the client's
//! stream). `trail` is what is recorded of each request on its way. `roster` finds the workers by `discovery`, and `worker` keeps the connection to one.
#![forbid(unsafe_code)]

mod answers;
mod api;
mod backoff;
mod breaker;
mod budget;
mod choice;
mod config;
mod counters;
mod decoding;
mod discovery;
mod engine;
mod fit;
mod fuse;
mod generator;
mod guides;
mod metrics;
mod output;
mod pool;
mod profiles;
mod roster;
mod scheduler;
mod sequence;
#[doc(hidden)]
pub mod simulation;
mod trail;
mod validate;
mod worker;

pub use config::{Args, GeneratorConfig};
pub use fuse::FuseOn;
pub use generator::Generator;

use attune_service::{metrics::Metrics, server::Drain, service::until_shutdown};
use tokio_util::sync::CancellationToken;

/// Loads the model, serves until `shutdown`, and drains. What it measures of itself goes into `metrics`.
///
/// # Errors
/// What the model, the address or a setting has wrong, before the port opens; later, that the engine
/// or the transport failed.
pub async fn run(
    config: GeneratorConfig,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> anyhow::Result<Drain> {
    match until_shutdown(&shutdown, Generator::start_with(config, metrics)).await? {
        Some(started) => started.serve(shutdown).await,
        None => Ok(Drain::Complete),
    }
}
