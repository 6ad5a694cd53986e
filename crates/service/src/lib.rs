//! What both services share: configuration, telemetry, health, shutdown.
//!
//! A service's `main` is the same few lines everywhere: parse [`args::ServiceArgs`], [`config::load`],
//! [`telemetry::init`], [`shutdown::on_signals`], then [`server::Server`] with its services, and
//! [`admin::Admin`] beside it where an admin address is configured.

pub mod admin;
pub mod args;
pub mod config;
mod keys;
pub mod listener;
pub mod profiles;
pub mod sections;
pub mod server;
pub mod shutdown;
pub mod status;
pub mod telemetry;
