//! The grammar check: which sentences an answer is made of, and what is wrong with it.

use super::phrases::{self, CLOSERS, OPENERS, PICKS, Place, Register, STAGES, VERDICTS, Wording};
use super::prompt::{Intent, Prompt};

/// What a sentence is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Sets the tone, at the front.
    Opener,
    /// A sentence of substance, by its number.
    Core {
        /// 0 to 3.
        stage: usize,
        /// Where its beginning may stand.
        place: Place,
    },
    /// A warning.
    Caution,
    /// A joke.
    Joke,
    /// Sets the tone, at the end.
    Closer,
}

/// A sentence that the grammar knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sentence {
    /// What it is for.
    pub kind: Kind,
    /// Its manner.
    pub register: Register,
    /// The vocabulary of its remark.
    pub wording: Wording,
}

/// Something wrong with an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// A sentence that is none of the grammar's for this question: bad words, or off topic.
    Unknown(String),
    /// The text ends in mid-sentence.
    Unfinished(String),
    /// No sentence of substance.
    Empty,
    /// Sentences of substance out of order, repeated, or with a beginning that fits another place.
    Sequence,
    /// Opener not first, closer not last, joke or warning before the substance or given twice.
    Order,
    /// Formal and casual turns in one answer.
    MixedRegister,
    /// Everyday remarks and expert terms in one answer.
    MixedWording,
}

/// How well formed an answer is.
#[derive(Debug, Clone, PartialEq)]
pub struct Form {
    /// Share of the checks that passed, in `[0, 1]`; 1 exactly when there is no fault. Each sentence is
    /// one check, and five more are about the answer as a whole.
    pub score: f64,
    /// All that is wrong.
    pub faults: Vec<Fault>,
}

impl Form {
    /// Whether nothing is wrong.
    pub fn is_well_formed(&self) -> bool {
        self.faults.is_empty()
    }
}

/// Splits text after `.` and `!`. The last piece may be unfinished.
pub fn split_sentences(text: &str) -> Vec<&str> {
    text.split_inclusive(['.', '!']).map(str::trim).filter(|piece| !piece.is_empty()).collect()
}

/// What `sentence` (with its final mark) is in an answer to `prompt`.
pub fn parse_sentence(prompt: &Prompt, sentence: &str) -> Option<Sentence> {
    let tone = |kind, register| Sentence { kind, register, wording: Wording::Neutral };
    if let Some((_, register)) = OPENERS.iter().find(|(text, _)| *text == sentence) {
        return Some(tone(Kind::Opener, *register));
    }
    if let Some((_, register)) = CLOSERS.iter().find(|(text, _)| *text == sentence) {
        return Some(tone(Kind::Closer, *register));
    }
    if phrases::cautions(prompt.topic.domain()).iter().any(|text| text == sentence) {
        return Some(tone(Kind::Caution, Register::Neutral));
    }
    if phrases::jokes(prompt).iter().any(|text| text == sentence) {
        return Some(tone(Kind::Joke, Register::Neutral));
    }
    let body = sentence.strip_suffix('.')?;
    let remark = |rest: &str| {
        phrases::remarks(prompt.topic.domain())
            .into_iter()
            .find(|(text, _)| text == rest)
            .map(|(_, wording)| wording)
    };
    if prompt.intent == Intent::Choice {
        for (before, after, register) in VERDICTS {
            for pick in PICKS {
                let rest = body
                    .strip_prefix(before)
                    .and_then(|rest| rest.strip_prefix(pick))
                    .and_then(|rest| rest.strip_prefix(after));
                if let Some(wording) = rest.and_then(&remark) {
                    return Some(Sentence {
                        kind: Kind::Core { stage: 0, place: Place::Any },
                        register,
                        wording,
                    });
                }
            }
        }
    }
    for beginning in phrases::beginnings(prompt.intent) {
        let Some(rest) = body.strip_prefix(beginning.text) else { continue };
        // Only the first sentence of a story has the name of its person.
        let name = phrases::names().iter().find(|name| rest.starts_with(**name)).copied().unwrap_or("\0");
        for stage in 0..STAGES {
            for clause in phrases::clauses(prompt, stage, name) {
                if let Some(wording) = rest.strip_prefix(clause.as_str()).and_then(&remark) {
                    let kind = Kind::Core { stage, place: beginning.place };
                    return Some(Sentence { kind, register: beginning.register, wording });
                }
            }
        }
    }
    None
}

/// Checks `answer` against the grammar: each sentence, and the whole.
pub fn check(prompt: &Prompt, answer: &str) -> (Form, Vec<Sentence>) {
    let pieces = split_sentences(answer);
    let mut faults = Vec::new();
    let mut sentences = Vec::new();
    for piece in &pieces {
        match parse_sentence(prompt, piece) {
            Some(sentence) => sentences.push(sentence),
            None if piece.ends_with(['.', '!']) => faults.push(Fault::Unknown((*piece).to_owned())),
            None => faults.push(Fault::Unfinished((*piece).to_owned())),
        }
    }
    faults.extend(whole(&sentences));
    let checks = pieces.len() + 5;
    let score = checks.saturating_sub(faults.len()) as f64 / checks as f64;
    (Form { score, faults }, sentences)
}

/// Faults of the answer as a whole.
fn whole(sentences: &[Sentence]) -> Vec<Fault> {
    let mut faults = Vec::new();
    let core: Vec<_> = sentences
        .iter()
        .filter_map(|sentence| match sentence.kind {
            Kind::Core { stage, place } => Some((stage, place)),
            _ => None,
        })
        .collect();
    if core.is_empty() {
        faults.push(Fault::Empty);
    }
    let placed = |index: usize, place: Place| match place {
        Place::Any => true,
        Place::First => index == 0,
        Place::Later => index > 0,
    };
    if core.iter().enumerate().any(|(index, (stage, place))| *stage != index || !placed(index, *place)) {
        faults.push(Fault::Sequence);
    }
    // Opener, substance, extras, closer: the ranks may never fall, and only the substance and the two
    // extras share a rank.
    let rank = |kind: Kind| match kind {
        Kind::Opener => 0,
        Kind::Core { .. } => 1,
        Kind::Caution | Kind::Joke => 2,
        Kind::Closer => 3,
    };
    let in_order = sentences.windows(2).all(|pair| match (pair[0].kind, pair[1].kind) {
        (Kind::Core { .. }, Kind::Core { .. })
        | (Kind::Caution, Kind::Joke)
        | (Kind::Joke, Kind::Caution) => true,
        (left, right) => rank(left) < rank(right),
    });
    let extras = sentences.iter().filter(|sentence| rank(sentence.kind) == 2).count();
    if !in_order || extras > 2 {
        faults.push(Fault::Order);
    }
    let any = |test: &dyn Fn(&Sentence) -> bool| sentences.iter().any(test);
    if any(&|one| one.register == Register::Formal) && any(&|one| one.register == Register::Casual) {
        faults.push(Fault::MixedRegister);
    }
    if any(&|one| one.wording == Wording::Plain) && any(&|one| one.wording == Wording::Expert) {
        faults.push(Fault::MixedWording);
    }
    faults
}
