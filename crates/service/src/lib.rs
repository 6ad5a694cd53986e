//! What both services share: configuration, telemetry, health, TLS, callers, shutdown.
//!
//! A service reads its settings with [`config::Merged`] (its engine's are [`engine::EngineConfig`]), its
//! `main` is [`service::run`], and what it has loaded it hands to a [`service::Service`], which serves,
//! drains and ends.
#![forbid(unsafe_code)]

pub mod admin;
pub mod args;
pub mod auth;
pub mod batching;
pub mod caller;
pub mod clocks;
pub mod config;
mod device;
pub mod engine;
mod imminent;
mod keys;
mod layers;
pub mod limits;
pub mod listener;
pub mod metrics;
pub mod progress;
mod reload;
pub mod secret;
pub mod sections;
pub mod server;
pub mod service;
pub mod shutdown;
pub mod status;
pub mod telemetry;
pub mod tls;
mod watched;

pub use imminent::imminent;
pub use reload::FileError;

/// The time that decisions are made by: tokio's, so that a simulation can pass its own.
pub fn now() -> std::time::Instant {
    tokio::time::Instant::now().into_std()
}
