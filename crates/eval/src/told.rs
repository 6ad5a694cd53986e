//! Every answer with what the judge found, for people who want to read what a row of the table is made of.

use attune_train::world::Trait;
use serde::Serialize;

use crate::{answers::Answer, asks::Ask, method::Method, score::Judged};

/// One answer of one method.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Told {
    /// The method's name.
    pub method: &'static str,
    /// How strongly it acted.
    pub strength: f32,
    /// What was asked.
    pub question: String,
    /// The preference, in words.
    pub preference: String,
    /// The traits that it asks for.
    pub asked: Vec<Trait>,
    /// Whether training never asked for it so.
    pub unseen: bool,
    /// The answer.
    pub answer: String,
    /// The traits that the judge found in it.
    pub has: Vec<Trait>,
    /// Whether it has all that was asked for.
    pub satisfied: bool,
    /// Whether it is well formed.
    pub well_formed: bool,
}

impl Told {
    /// The record of an answer.
    pub fn new((method, strength): (Method, f32), ask: &Ask, answer: &Answer, judged: &Judged) -> Self {
        Self {
            method: method.name(),
            strength,
            question: ask.question.clone(),
            preference: ask.preference.clone(),
            asked: ask.traits.clone(),
            unseen: ask.unseen,
            answer: answer.text.trim().to_owned(),
            has: judged.traits.iter().collect(),
            satisfied: judged.satisfies(ask),
            well_formed: judged.well_formed,
        }
    }
}
