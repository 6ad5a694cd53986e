//! What both services share: configuration, telemetry, health, shutdown.
//!
//! A service reads its settings with [`config::Merged`] (its engine's are [`engine::EngineConfig`]), its
//! `main` is [`service::run`], and what it has loaded it hands to a [`service::Service`], which serves,
//! drains and ends.

pub mod admin;
pub mod args;
pub mod clocks;
pub mod config;
pub mod engine;
mod imminent;
mod keys;
mod layers;
pub mod limits;
pub mod listener;
pub mod metrics;
pub mod profiles;
pub mod sections;
pub mod server;
pub mod service;
pub mod shutdown;
pub mod status;
pub mod telemetry;

pub use imminent::imminent;
