//! End-to-end tests over real processes and real sockets: what they share.
#![forbid(unsafe_code)]

mod client;
mod pair;
mod process;

pub use client::{Generated, by_ids, greedy, guided, say};
pub use pair::Pair;
pub use process::{Process, binary, workspace_root};
