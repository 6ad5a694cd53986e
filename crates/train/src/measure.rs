//! How well guidance works: the judge over held-out prompts and held-out wordings of each preference.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tokenizers::Tokenizer;

use crate::decode::{DecodeOptions, Guide, generate};
use crate::model::Llama;
use crate::progress::Progress;
use crate::tokenizer::{decode, encode_prompt};
use crate::world::dice::Dice;
use crate::world::preference::{self, Split, UNSEEN_PAIRS};
use crate::world::{Intent, Prompt, Trait, Traits, judge, pairs};

/// A held-out question, as `prompts.json` lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldOutPrompt {
    /// The question; [`Prompt::parse`] reads it back.
    pub prompt: String,
    /// What it is about, such as `bake the bread`.
    pub topic: String,
    /// What is wanted.
    pub intent: Intent,
}

/// A held-out wording of one preference, as `prompts.json` lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldOutPreference {
    /// The trait that it asks for.
    pub dimension: Trait,
    /// Its words.
    pub preference: String,
}

/// The contents of `prompts.json`: what the measurement uses. Question `i` goes with wording `i`, modulo
/// the number of wordings of its dimension.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldOut {
    /// Questions about held-out topics.
    pub prompts: Vec<HeldOutPrompt>,
    /// Wordings that no training text has.
    pub preferences: Vec<HeldOutPreference>,
}

impl HeldOut {
    /// `prompts` questions and `wordings` wordings of each preference.
    pub fn draw(prompts: usize, wordings: usize, seed: u64) -> Self {
        let prompts = pairs::held_out_prompts(prompts, seed)
            .into_iter()
            .map(|prompt| HeldOutPrompt {
                prompt: prompt.text(),
                topic: prompt.topic.name(),
                intent: prompt.intent,
            })
            .collect();
        let mut dice = Dice::new(seed, 40);
        let mut preferences: Vec<HeldOutPreference> = Vec::new();
        for dimension in Trait::ALL {
            let mut words: Vec<String> = Vec::new();
            while words.len() < wordings {
                let text = preference::phrase([dimension].into_iter().collect(), Split::HeldOut, &mut dice);
                if !words.contains(&text) {
                    words.push(text);
                }
            }
            preferences
                .extend(words.into_iter().map(|preference| HeldOutPreference { dimension, preference }));
        }
        Self { prompts, preferences }
    }

    /// The wording of `dimension` that goes with question `index`.
    pub fn preference(&self, dimension: Trait, index: usize) -> Option<&str> {
        let mut of_it = self.preferences.iter().filter(|one| one.dimension == dimension);
        let count = of_it.clone().count().max(1);
        of_it.nth(index % count).map(|one| one.preference.as_str())
    }
}

/// Where the preference goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Nowhere: the base alone.
    Unguided,
    /// Into the base's own prompt.
    Prompted,
    /// Into the PersRM's prompt: PAD.
    Guided,
}

/// One cell of the measurement, over all questions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Traits asked for (one, or a combination).
    pub asked: Vec<Trait>,
    /// How.
    pub method: Method,
    /// Strength of the guidance; 0 for the other methods.
    pub strength: f64,
    /// Sampling temperature; 0 is greedy.
    pub temperature: f64,
    /// Share of answers that have all that is asked.
    pub satisfied: f64,
    /// Share of answers that are well formed.
    pub well_formed: f64,
}

/// All cells.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// One row a cell.
    pub rows: Vec<Row>,
    /// Questions a cell.
    pub prompts: usize,
}

impl Measurement {
    /// The row of a cell.
    pub fn find(&self, asked: &[Trait], method: Method, strength: f64, temperature: f64) -> Option<&Row> {
        self.rows.iter().find(|row| {
            row.asked == asked
                && row.method == method
                && row.strength == strength
                && row.temperature == temperature
        })
    }
}

/// The trained models as they will be stored.
#[derive(Debug)]
pub struct Models<'a> {
    /// The base.
    pub base: &'a Llama,
    /// The PersRM.
    pub persrm: &'a Llama,
    /// Its reference.
    pub reference: &'a Llama,
    /// Their tokenizer.
    pub tokenizer: &'a Tokenizer,
}

/// Combinations that training did ask for, set against [`UNSEEN_PAIRS`].
pub const SEEN_PAIRS: [[Trait; 2]; 4] = [
    [Trait::Brief, Trait::Humour],
    [Trait::Formal, Trait::Caution],
    [Trait::Detailed, Trait::Expert],
    [Trait::Casual, Trait::Plain],
];

/// Measures every trait at every strength, greedy and at temperature 1, and combinations at temperature 1.
///
/// # Errors
/// What the libraries report.
pub fn measure(
    models: &Models<'_>,
    held_out: &HeldOut,
    strengths: &[f64],
    max_tokens: usize,
    seed: u64,
    quiet: bool,
) -> Result<Measurement> {
    let questions: Vec<(Prompt, &str)> = held_out
        .prompts
        .iter()
        .filter_map(|one| Prompt::parse(&one.prompt).map(|prompt| (prompt, one.prompt.as_str())))
        .collect();
    let mut result = Measurement { rows: Vec::new(), prompts: questions.len() };
    let progress = Progress::new("measure", 4 * (2 + strengths.len()), quiet);
    let mut done = 0;
    let mut dice = Dice::new(seed, 41);
    // One (asked, preference's words a question) for each thing to ask.
    let mut asks: Vec<(Vec<Trait>, Vec<String>)> = Trait::ALL
        .into_iter()
        .map(|one| {
            let words = (0..questions.len())
                .filter_map(|index| held_out.preference(one, index).map(str::to_owned))
                .collect();
            (vec![one], words)
        })
        .collect();
    for pair in SEEN_PAIRS.into_iter().chain(UNSEEN_PAIRS) {
        let traits: Traits = pair.into_iter().collect();
        let words =
            (0..questions.len()).map(|_| preference::phrase(traits, Split::Train, &mut dice)).collect();
        asks.push((pair.to_vec(), words));
    }
    let plain: Vec<Vec<u32>> = questions
        .iter()
        .map(|(_, text)| encode_prompt(models.tokenizer, text, None))
        .collect::<Result<_>>()?;
    // A batch is many things to ask at once: all the questions for each of them.
    for asks in asks.chunks(Trait::ALL.len()) {
        let mut with = Vec::new();
        for (_, words) in asks {
            for ((_, text), words) in questions.iter().zip(words) {
                with.push(encode_prompt(models.tokenizer, text, Some(words))?);
            }
        }
        let without: Vec<Vec<u32>> = asks.iter().flat_map(|_| plain.iter().cloned()).collect();
        for temperature in [0.0, 1.0] {
            let options = DecodeOptions { temperature, candidates: 10, max_tokens, seed };
            let mut cells = vec![(Method::Unguided, 0.0), (Method::Prompted, 0.0)];
            cells.extend(strengths.iter().map(|strength| (Method::Guided, *strength)));
            for (method, strength) in cells {
                let guide =
                    Guide { persrm: models.persrm, reference: models.reference, prompts: &with, strength };
                let answers = match method {
                    Method::Unguided => generate(models.base, &without, None, options)?,
                    Method::Prompted => generate(models.base, &with, None, options)?,
                    Method::Guided => generate(models.base, &without, Some(&guide), options)?,
                };
                for ((asked, _), answers) in asks.iter().zip(answers.chunks(questions.len().max(1))) {
                    let cell = (method, strength, temperature);
                    result.rows.push(row(models.tokenizer, &questions, answers, asked, cell)?);
                }
                done += 1;
                progress.step(done - 1, "");
            }
        }
    }
    Ok(result)
}

fn row(
    tokenizer: &Tokenizer,
    questions: &[(Prompt, &str)],
    answers: &[Vec<u32>],
    asked: &[Trait],
    (method, strength, temperature): (Method, f64, f64),
) -> Result<Row> {
    let traits: Traits = asked.iter().copied().collect();
    let (mut satisfied, mut well_formed) = (0usize, 0usize);
    for ((prompt, _), ids) in questions.iter().zip(answers) {
        let judgement = judge(prompt, &decode(tokenizer, ids)?);
        satisfied += usize::from(judgement.traits.has_all(traits));
        well_formed += usize::from(judgement.form.is_well_formed());
    }
    let share = |count: usize| count as f64 / questions.len().max(1) as f64;
    Ok(Row {
        asked: asked.to_vec(),
        method,
        strength,
        temperature,
        satisfied: share(satisfied),
        well_formed: share(well_formed),
    })
}

/// A question and its answers, for people to read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shown {
    /// The question.
    pub question: String,
    /// `(preference, answer)`; without a preference, the unguided answer.
    pub answers: Vec<(Option<String>, String)>,
}

/// Preferences to show: each trait in plain words, and one combination.
const SHOWN: [&str; 9] = [
    "brief, please",
    "detailed, please",
    "formal, please",
    "casual, please",
    "in everyday words",
    "with expert terms",
    "with a joke",
    "with a warning",
    "brief and a little funny, please",
];

/// Answers the first question greedily, unguided and guided at strength 2.
///
/// # Errors
/// What the libraries report.
pub fn show(models: &Models<'_>, held_out: &HeldOut, max_tokens: usize) -> Result<Shown> {
    let Some(question) = held_out.prompts.first().map(|one| one.prompt.clone()) else {
        return Ok(Shown::default());
    };
    let options = DecodeOptions { temperature: 0.0, candidates: 10, max_tokens, seed: 0 };
    let plain = encode_prompt(models.tokenizer, &question, None)?;
    let mut answers = Vec::new();
    for ids in generate(models.base, std::slice::from_ref(&plain), None, options)? {
        answers.push((None, decode(models.tokenizer, &ids)?));
    }
    let with: Vec<Vec<u32>> = SHOWN
        .iter()
        .map(|words| encode_prompt(models.tokenizer, &question, Some(words)))
        .collect::<Result<_>>()?;
    let guide = Guide { persrm: models.persrm, reference: models.reference, prompts: &with, strength: 2.0 };
    let guided = generate(models.base, &vec![plain; SHOWN.len()], Some(&guide), options)?;
    for (words, ids) in SHOWN.iter().zip(guided) {
        answers.push((Some((*words).to_owned()), decode(models.tokenizer, &ids)?));
    }
    Ok(Shown { question, answers })
}
