//! The bench of alignment methods: held-out questions and preferences, every method over its strengths,
//! through the services as they ship, judged by the demo world's own judge.
//!
//! [`asks`] draws what is asked, [`method`] says how each method asks for it, [`run`] starts the services
//! and gathers the answers, [`score`] judges them, [`table`] and [`plot`] show what came out.
#![forbid(unsafe_code)]

pub mod answers;
pub mod asks;
pub mod bases;
pub mod method;
pub mod models;
pub mod people;
pub mod plot;
pub mod run;
pub mod score;
pub mod table;
pub mod told;
