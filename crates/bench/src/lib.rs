//! What measures Attune: load on a running pair, the pieces of one step, the table of figures to reach,
//! a reward worker whose forward pass is a timed wait, which stands for one on another machine, and the sizes
//! that follow from the floor without measuring.
//!
//! Nothing of it is part of a service.
#![forbid(unsafe_code)]

pub mod bare;
pub mod collector;
pub mod floor;
pub mod gpu;
pub mod load;
pub mod pieces;
pub mod plan;
pub mod plot;
pub mod prompts;
pub mod report;
pub mod service;
pub mod solo;
pub mod table;
pub mod timed;
pub mod wire;
