//! The demo world: everyday questions, answers with exactly judged traits, and preferences in words.
//!
//! Ten domains give 240 topics; a question asks how, why, which of two, or for a story. An answer is
//! an optional opener, one to four sentences of substance in a fixed sequence, at most one joke and
//! one warning, and an optional closer. Eight traits on five independent axes show in it, each by
//! local choices of words: which beginning, which remark, one more sentence or not. A topic's facts
//! come from its domain, so that an answer can be checked for being on topic as well as for grammar.
//!
//! Held out of all training text: one topic in six (its verb and object occur with others), some
//! wordings of each preference (their words occur), and four combinations of preferences.

pub mod answer;
pub mod dice;
pub mod grammar;
pub mod judge;
pub mod lexicon;
pub mod pairs;
pub mod phrases;
pub mod preference;
pub mod prompt;
pub mod traits;

pub use grammar::{Fault, Form};
pub use judge::{Judgement, judge};
pub use pairs::{Pair, Sample};
pub use prompt::{Intent, Prompt, Topic};
pub use traits::{Axis, Trait, Traits};

#[cfg(test)]
mod tests;
