//! What the trainers read: question-and-answer texts for the base, pairs of answers for the PersRM.

use serde::{Deserialize, Serialize};

use super::answer;
use super::dice::Dice;
use super::judge::judge;
use super::preference::{self, Split};
use super::prompt::{Intent, Prompt, Topic};
use super::traits::Traits;

/// A question, perhaps with a preference, and its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// The question.
    pub prompt: String,
    /// What the asker prefers; absent in most.
    pub preference: Option<String>,
    /// The answer.
    pub answer: String,
}

/// Two answers to one question of which the asker prefers the first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// The question.
    pub prompt: String,
    /// What the asker prefers; absent in a tenth of the pairs, whose worse answer is ill-formed.
    pub preference: Option<String>,
    /// The better answer.
    pub chosen: String,
    /// The worse answer.
    pub rejected: String,
}

/// Share of the base's training texts that carry a preference.
const ASKED: f64 = 0.5;
/// How often such a text heeds each asked trait (beyond the times it happens to have it anyway):
/// the base learns to follow preferences in part.
const HEEDED: f64 = 0.5;

/// `count` texts for the base model, about training topics only.
pub fn samples(count: usize, seed: u64) -> impl Iterator<Item = Sample> {
    let topics = training_topics();
    let mut dice = Dice::new(seed, 10);
    (0..count).map(move |_| {
        let prompt = draw_prompt(&topics, &mut dice);
        let mut traits = answer::natural_traits(&prompt, &mut dice);
        let preference = dice.chance(ASKED).then(|| {
            let asked = preference::draw_traits(&mut dice);
            for one in asked.iter() {
                if dice.chance(HEEDED) {
                    traits = traits.with(one);
                }
            }
            preference::phrase(asked, Split::Train, &mut dice)
        });
        let seed = dice.below(usize::MAX) as u64;
        Sample { prompt: prompt.text(), preference, answer: answer::write(&prompt, traits, seed) }
    })
}

/// `count` pairs for the PersRM, about training topics only.
///
/// The two answers of a pair come from one seed and differ in the asked traits alone; in some pairs,
/// and in all without a preference, the worse one is ill-formed instead.
pub fn pairs(count: usize, seed: u64) -> impl Iterator<Item = Pair> {
    let topics = training_topics();
    let mut dice = Dice::new(seed, 11);
    (0..count).map(move |_| {
        let prompt = draw_prompt(&topics, &mut dice);
        let natural = answer::natural_traits(&prompt, &mut dice);
        let seed = dice.below(usize::MAX) as u64;
        if dice.chance(0.1) {
            let chosen = answer::write(&prompt, natural, seed);
            let rejected = damaged(&prompt, &chosen, &mut dice);
            return Pair { prompt: prompt.text(), preference: None, chosen, rejected };
        }
        let asked = preference::draw_traits(&mut dice);
        let good = answer::apply(natural, asked);
        let chosen = answer::write(&prompt, good, seed);
        let rejected = if dice.chance(0.1) {
            damaged(&prompt, &chosen, &mut dice)
        } else {
            // At least one asked trait is missed; which one surely, is drawn.
            let sure = dice.below(asked.len());
            let mut bad = good;
            for (index, one) in asked.iter().enumerate() {
                if index == sure || dice.chance(0.6) {
                    bad = answer::miss(bad, one, dice.chance(0.6));
                }
            }
            answer::write(&prompt, bad, seed)
        };
        let preference = Some(preference::phrase(asked, Split::Train, &mut dice));
        Pair { prompt: prompt.text(), preference, chosen, rejected }
    })
}

/// `count` pairs of which the better answer has all of `asked` and the worse has not, without a word of it: for
/// an expert that always answers so. In a tenth the worse one is ill-formed instead.
pub fn pairs_for(asked: Traits, count: usize, seed: u64) -> impl Iterator<Item = Pair> {
    let topics = training_topics();
    let mut dice = Dice::new(seed, 13);
    (0..count).map(move |_| {
        let prompt = draw_prompt(&topics, &mut dice);
        let natural = answer::natural_traits(&prompt, &mut dice);
        let seed = dice.below(usize::MAX) as u64;
        let good = answer::apply(natural, asked);
        let chosen = answer::write(&prompt, good, seed);
        let rejected = if dice.chance(0.1) {
            damaged(&prompt, &chosen, &mut dice)
        } else {
            answer::write(&prompt, missed(good, asked, &mut dice), seed)
        };
        Pair { prompt: prompt.text(), preference: None, chosen, rejected }
    })
}

/// `good` with at least one of `asked` missed; which one surely, is drawn.
fn missed(good: Traits, asked: Traits, dice: &mut Dice) -> Traits {
    let sure = if asked.len() > 1 { dice.below(asked.len()) } else { 0 };
    let mut bad = good;
    for (index, one) in asked.iter().enumerate() {
        if index == sure || dice.chance(0.6) {
            bad = answer::miss(bad, one, dice.chance(0.6));
        }
    }
    bad
}

/// `count` pairs of one person who asks for `asked` without a word of it, about these topics: the better answer
/// has all of it, and the worse misses at least one; in a tenth the worse one is ill-formed instead.
pub fn pairs_of(asked: Traits, topics: Vec<Topic>, count: usize, seed: u64) -> impl Iterator<Item = Pair> {
    let mut dice = Dice::new(seed, 14);
    (0..count).map(move |_| {
        let prompt = draw_prompt(&topics, &mut dice);
        let natural = answer::natural_traits(&prompt, &mut dice);
        let seed = dice.below(usize::MAX) as u64;
        let good = answer::apply(natural, asked);
        let chosen = answer::write(&prompt, good, seed);
        let rejected = if dice.chance(0.1) {
            damaged(&prompt, &chosen, &mut dice)
        } else {
            // Drawn as `missed` does, with one draw more for a single trait.
            let sure = dice.below(asked.len());
            let mut bad = good;
            for (index, one) in asked.iter().enumerate() {
                if index == sure || dice.chance(0.6) {
                    bad = answer::miss(bad, one, dice.chance(0.6));
                }
            }
            answer::write(&prompt, bad, seed)
        };
        Pair { prompt: prompt.text(), preference: None, chosen, rejected }
    })
}

/// Topics that training texts are about.
pub fn training_topics() -> Vec<Topic> {
    Topic::all().filter(|topic| !topic.held_out()).collect()
}

/// Held-out topics in two halves, each with topics of every domain: for what a person says, and for what is
/// then asked.
pub fn held_out_halves() -> (Vec<Topic>, Vec<Topic>) {
    let all: Vec<Topic> = Topic::all().filter(|topic| topic.held_out()).collect();
    let half = |odd: usize| all.iter().skip(odd).step_by(2).copied().collect();
    (half(0), half(1))
}

/// `count` questions about these topics, all intents in turn.
pub fn prompts_about(topics: &[Topic], count: usize, seed: u64) -> Vec<Prompt> {
    let mut dice = Dice::new(seed, 15);
    (0..count)
        .map(|index| {
            let topic = topics[dice.below(topics.len())];
            Prompt::draw(topic, Intent::ALL[index % 4], &mut dice)
        })
        .collect()
}

/// Questions about held-out topics, all intents in turn.
pub fn held_out_prompts(count: usize, seed: u64) -> Vec<Prompt> {
    let mut topics: Vec<_> = Topic::all().filter(|topic| topic.held_out()).collect();
    let mut dice = Dice::new(seed, 12);
    dice.shuffle(&mut topics);
    (0..count)
        .map(|index| Prompt::draw(topics[(index / 4) % topics.len()], Intent::ALL[index % 4], &mut dice))
        .collect()
}

fn draw_prompt(topics: &[Topic], dice: &mut Dice) -> Prompt {
    let topic = topics[dice.below(topics.len())];
    let intent = dice.pick(&Intent::ALL);
    Prompt::draw(topic, intent, dice)
}

/// `answer` made ill-formed in one place.
fn damaged(prompt: &Prompt, answer: &str, dice: &mut Dice) -> String {
    loop {
        let mut words: Vec<&str> = answer.split(' ').collect();
        let place = dice.below(words.len());
        let repeated;
        match dice.below(4) {
            0 => drop(words.remove(place)),
            1 => words.insert(place, words[place]),
            2 => {
                let other = dice.below(words.len());
                words.swap(place, other);
            }
            _ => {
                let sentences = super::grammar::split_sentences(answer);
                repeated = sentences[dice.below(sentences.len())];
                words.push(repeated);
            }
        }
        let text = words.join(" ");
        if !judge(prompt, &text).form.is_well_formed() {
            return text;
        }
    }
}
