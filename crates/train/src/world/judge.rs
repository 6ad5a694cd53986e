//! The judge: which traits an answer has, exactly, and how well formed it is.

use super::grammar::{self, Form, Kind};
use super::phrases::{Register, Wording};
use super::prompt::Prompt;
use super::traits::{Trait, Traits};

/// What the judge found.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// Traits that the answer has. Only sentences that the grammar knows count.
    pub traits: Traits,
    /// How well formed the answer is.
    pub form: Form,
}

/// Judges `answer` as an answer to `prompt` (see [`Prompt::parse`] for a question given as text).
pub fn judge(prompt: &Prompt, answer: &str) -> Judgement {
    let (form, sentences) = grammar::check(prompt, answer);
    let count = |test: &dyn Fn(Kind) -> bool| sentences.iter().filter(|sentence| test(sentence.kind)).count();
    let register = |wanted| sentences.iter().any(|sentence| sentence.register == wanted);
    let wording = |wanted| sentences.iter().any(|sentence| sentence.wording == wanted);
    let substance = count(&|kind| matches!(kind, Kind::Core { .. }));
    let holds = |one: Trait| match one {
        Trait::Brief => substance == 1,
        Trait::Detailed => substance >= 3,
        Trait::Formal => register(Register::Formal) && !register(Register::Casual),
        Trait::Casual => register(Register::Casual) && !register(Register::Formal),
        Trait::Plain => wording(Wording::Plain) && !wording(Wording::Expert),
        Trait::Expert => wording(Wording::Expert) && !wording(Wording::Plain),
        Trait::Humour => count(&|kind| kind == Kind::Joke) > 0,
        Trait::Caution => count(&|kind| kind == Kind::Caution) > 0,
    };
    Judgement { traits: Trait::ALL.into_iter().filter(|one| holds(*one)).collect(), form }
}
