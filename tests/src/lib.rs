//! End-to-end tests over real processes and real sockets: what they share.
#![forbid(unsafe_code)]

mod certificates;
mod client;
mod load;
mod micro;
mod pair;
mod postgres;
mod process;
mod proxy;

pub use certificates::{Authority, Identity, tls};
pub use client::{Generated, by_ids, greedy, guided, say};
pub use load::{PATIENCE, generator_load, wait_for_load, wait_for_sessions, worker_load};
pub use micro::micro_models;
pub use pair::Pair;
pub use postgres::Postgres;
pub use process::{Process, Signal, binary, left_out, workspace_root};
pub use proxy::Proxy;
