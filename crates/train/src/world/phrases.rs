//! The turns of phrase that sentences are made of, with what each of them says about register and wording.
//!
//! Writer ([`super::answer`]) and checker ([`super::grammar`]) read the same tables, so that whatever
//! is written parses, and nothing else does.

use super::lexicon::{DOMAINS, Domain, NAMES};
use super::prompt::{Intent, Prompt};

/// The manner of a phrase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Register {
    /// "One should ..."
    Formal,
    /// "Just ..."
    Casual,
    /// Neither.
    Neutral,
}

/// The vocabulary of a remark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wording {
    /// ", nice and easy"
    Plain,
    /// " given the thermal mass"
    Expert,
    /// No remark.
    Neutral,
}

/// Where among the sentences of substance a beginning may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Anywhere.
    Any,
    /// The first one only.
    First,
    /// Any but the first.
    Later,
}

/// How a sentence of substance begins.
#[derive(Debug, Clone, Copy)]
pub struct Beginning {
    /// The words, with the space that follows.
    pub text: &'static str,
    /// Its manner.
    pub register: Register,
    /// Where it may stand.
    pub place: Place,
}

const fn begin(text: &'static str, register: Register, place: Place) -> Beginning {
    Beginning { text, register, place }
}

const HOW: [Beginning; 7] = [
    begin("One should ", Register::Formal, Place::Any),
    begin("Kindly ", Register::Formal, Place::Any),
    begin("Just ", Register::Casual, Place::Any),
    begin("Go ahead and ", Register::Casual, Place::Any),
    begin("You can ", Register::Neutral, Place::Any),
    begin("First, ", Register::Neutral, Place::First),
    begin("Then ", Register::Neutral, Place::Later),
];

const REASON: [Beginning; 7] = [
    begin("Indeed, ", Register::Formal, Place::Any),
    begin("One finds that ", Register::Formal, Place::Any),
    begin("Honestly, ", Register::Casual, Place::Any),
    begin("Well, ", Register::Casual, Place::Any),
    begin("Mostly, ", Register::Neutral, Place::Any),
    begin("For one thing, ", Register::Neutral, Place::First),
    begin("Also, ", Register::Neutral, Place::Later),
];

const STORY: [Beginning; 8] = [
    begin("It is said that ", Register::Formal, Place::Any),
    begin("One learns that ", Register::Formal, Place::Any),
    begin("So ", Register::Casual, Place::Any),
    begin("Get this: ", Register::Casual, Place::Any),
    begin("Once ", Register::Neutral, Place::First),
    begin("Long ago ", Register::Neutral, Place::First),
    begin("Later ", Register::Neutral, Place::Later),
    begin("Then ", Register::Neutral, Place::Later),
];

/// Verdicts on the two tools: what stands before [`PICKS`] and after it. The verdict points at the question's
/// first or second tool instead of naming it: naming takes copying over a distance, which models as small as the
/// demo's learn late.
pub const VERDICTS: [(&str, &str, Register); 6] = [
    ("One should choose the ", " one", Register::Formal),
    ("I would recommend the ", " one", Register::Formal),
    ("Just grab the ", " one", Register::Casual),
    ("I'd go for the ", " one", Register::Casual),
    ("The ", " one is the better pick", Register::Neutral),
    ("You can take the ", " one", Register::Neutral),
];

/// The two tools of a choice.
pub const PICKS: [&str; 2] = ["first", "second"];

/// First sentences that only set the tone.
pub const OPENERS: [(&str, Register); 4] = [
    ("Certainly.", Register::Formal),
    ("With pleasure.", Register::Formal),
    ("Sure thing!", Register::Casual),
    ("Hey there!", Register::Casual),
];

/// Last sentences that only set the tone.
pub const CLOSERS: [(&str, Register); 4] = [
    ("I remain at your service.", Register::Formal),
    ("Kind regards.", Register::Formal),
    ("Have fun!", Register::Casual),
    ("Cheers!", Register::Casual),
];

/// Remarks in everyday words.
pub const PLAIN_REMARKS: [&str; 4] =
    [", nice and easy", ", bit by bit", ", just like at home", ", no fuss at all"];

/// What introduces an expert's term.
pub const EXPERT_REMARKS: [&str; 2] = [" given the ", " considering the "];

/// Beginnings of the sentences of substance (for a choice: of those after the verdict).
pub fn beginnings(intent: Intent) -> &'static [Beginning] {
    match intent {
        Intent::How => &HOW,
        Intent::Why | Intent::Choice => &REASON,
        Intent::Story => &STORY,
    }
}

/// Most sentences of substance that an answer may have.
pub const STAGES: usize = 4;

/// What the sentence of substance number `stage` may say, after its beginning and before its remark.
/// `name` is the person of a story; later sentences say "they". Empty for the verdict of a choice, which has [`VERDICTS`].
pub fn clauses(prompt: &Prompt, stage: usize, name: &str) -> Vec<String> {
    let domain = prompt.topic.domain();
    let (verb, o) = (prompt.topic.verb(), prompt.topic.object());
    let each = |items: &[&str], form: &dyn Fn(&str) -> String| {
        items.iter().map(|item| form(item)).collect::<Vec<_>>()
    };
    let both = |mut left: Vec<String>, right: Vec<String>| {
        left.extend(right);
        left
    };
    let care = |past: bool| {
        domain.care.iter().map(|(now, then)| if past { *then } else { *now }).collect::<Vec<_>>()
    };
    match (prompt.intent, stage) {
        (Intent::How, 0) => {
            both(vec![format!("look over the {o}")], each(&domain.places, &|p| format!("clear the {p}")))
        }
        (Intent::How, 1) => each(&care(false), &|c| format!("{c} the {o}")),
        (Intent::How, 2) => each(&domain.tools, &|t| format!("{verb} the {o} with the {t}")),
        (Intent::How, 3) => both(
            vec![format!("leave the {o} alone for a while"), format!("look at the {o} again")],
            each(&domain.places, &|p| format!("tidy the {p}")),
        ),
        (Intent::Why, 0) | (Intent::Choice, 2) => each(&domain.benefits, &|b| format!("it {b}")),
        (Intent::Why, 1) => vec![format!("it helps the {o}"), format!("it keeps the {o} in good shape")],
        (Intent::Why, 2) => each(&domain.tools, &|t| format!("it only takes the {t}")),
        (Intent::Why, 3) => each(&domain.places, &|p| format!("it makes the {p} feel calm")),
        (Intent::Choice, 1) => vec![format!("it suits the {o}"), format!("it is gentle on the {o}")],
        (Intent::Choice, 3) => each(&domain.places, &|p| format!("it never gets lost in the {p}")),
        (Intent::Story, 0) => {
            vec![format!("{name} wanted to {verb} the {o}"), format!("{name} hoped to {verb} the {o}")]
        }
        (Intent::Story, 1) => each(&domain.tools, &|t| format!("they borrowed the {t}")),
        (Intent::Story, 2) => each(&care(true), &|c| format!("they {c} the {o}")),
        (Intent::Story, 3) => both(
            vec![format!("they showed the {o} to a friend")],
            each(&domain.places, &|p| format!("they took a rest near the {p}")),
        ),
        _ => Vec::new(),
    }
}

/// Warnings of a domain.
pub fn cautions(domain: &Domain) -> Vec<String> {
    let about = |h: &&str| [format!("Be careful with the {h}."), format!("Watch out for the {h}.")];
    domain.hazards.iter().flat_map(about).collect()
}

/// Jokes about a topic.
pub fn jokes(prompt: &Prompt) -> Vec<String> {
    let (verb, o) = (prompt.topic.verb(), prompt.topic.object());
    let mut jokes = vec![
        format!("Even my cat could {verb} the {o}."),
        format!("My uncle dreams of the {o}."),
        format!("My mirror laughs at the {o}."),
    ];
    jokes.extend(prompt.topic.domain().tools.iter().map(|t| format!("Even the {t} giggles.")));
    jokes
}

/// Remarks that may end a sentence of substance, with their wording; the empty one first.
pub fn remarks(domain: &Domain) -> Vec<(String, Wording)> {
    let mut remarks = vec![(String::new(), Wording::Neutral)];
    remarks.extend(PLAIN_REMARKS.iter().map(|text| ((*text).to_owned(), Wording::Plain)));
    for intro in EXPERT_REMARKS {
        remarks.extend(domain.terms.iter().map(|term| (format!("{intro}{term}"), Wording::Expert)));
    }
    remarks
}

/// All domains' number, for tables by domain.
pub const DOMAIN_COUNT: usize = DOMAINS.len();

/// The people of the stories.
pub fn names() -> &'static [&'static str] {
    &NAMES
}
