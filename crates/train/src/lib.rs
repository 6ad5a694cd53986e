//! The trainers and the demo world they are shown on.

pub mod world;
