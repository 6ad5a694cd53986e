//! Answers: which traits an answer has by nature, and the text that has them.

use super::dice::Dice;
use super::phrases::{self, Beginning, CLOSERS, OPENERS, PICKS, Place, Register, VERDICTS, Wording};
use super::prompt::{Intent, Prompt};
use super::traits::{Axis, Trait, Traits};

/// What the world would say unasked. Each domain and intent leans to one side of every axis (60 % there),
/// so that even greedy decoding shows each trait in some places; over all questions each trait
/// appears in about a third of the answers.
pub fn natural_traits(prompt: &Prompt, dice: &mut Dice) -> Traits {
    let (d, i) = (prompt.topic.domain_index(), prompt.intent as usize);
    let mut traits = Traits::NONE;
    let lean = [
        (Trait::Brief, Trait::Detailed, d + i),
        (Trait::Formal, Trait::Casual, d + 2 * i),
        (Trait::Plain, Trait::Expert, d / 3 + i),
    ];
    for (low, high, favourite) in lean {
        let mut weights = [0.2; 3];
        weights[favourite % 3] = 0.6;
        match dice.weighted(&weights) {
            0 => traits = traits.with(low),
            1 => traits = traits.with(high),
            _ => {}
        }
    }
    for (one, favourite) in [(Trait::Humour, 2 * d + i), (Trait::Caution, d + 3 * i)] {
        if dice.chance(if favourite % 5 < 2 { 0.65 } else { 0.2 }) {
            traits = traits.with(one);
        }
    }
    traits
}

/// An answer to `prompt` with exactly `traits`.
///
/// Every choice is drawn from its own stream of `seed`: two answers of one seed differ only where
/// their traits make them differ, which is what a pair of preferences should teach.
pub fn write(prompt: &Prompt, traits: Traits, seed: u64) -> String {
    let domain = prompt.topic.domain();
    let register = [(Trait::Formal, Register::Formal), (Trait::Casual, Register::Casual)]
        .into_iter()
        .find(|(one, _)| traits.has(*one))
        .map_or(Register::Neutral, |(_, register)| register);
    let mut sentences = Vec::new();

    let mut tone = Dice::new(seed, 1);
    let opened = tone.chance(0.5) && register != Register::Neutral;
    let closed = tone.chance(0.35) && register != Register::Neutral;
    let pole = usize::from(register == Register::Casual) * 2;
    if opened {
        sentences.push(OPENERS[pole + tone.below(2)].0.to_owned());
    }
    let closer = CLOSERS[pole + tone.below(2)].0;

    let count = Dice::new(seed, 2).below(2);
    let count = if traits.has(Trait::Brief) {
        1
    } else if traits.has(Trait::Detailed) {
        3 + count
    } else {
        2
    };
    sentences.extend(core(prompt, traits, register, count, opened || closed, seed));

    let mut extras = Vec::new();
    let mut chance = Dice::new(seed, 3);
    let (jokes, cautions) = (phrases::jokes(prompt), phrases::cautions(domain));
    let (joke, caution) = (chance.below(jokes.len()), chance.below(cautions.len()));
    extras.extend(jokes.into_iter().nth(joke).filter(|_| traits.has(Trait::Humour)));
    extras.extend(cautions.into_iter().nth(caution).filter(|_| traits.has(Trait::Caution)));
    if chance.chance(0.5) {
        extras.reverse();
    }
    sentences.extend(extras);
    if closed {
        sentences.push(closer.to_owned());
    }
    sentences.join(" ")
}

/// The sentences of substance. `toned` says that opener or closer already show the register.
fn core(
    prompt: &Prompt,
    traits: Traits,
    register: Register,
    count: usize,
    toned: bool,
    seed: u64,
) -> Vec<String> {
    let mut people = Dice::new(seed, 4);
    let name = phrases::names()[people.below(phrases::names().len())];
    let forced_tone = if toned { usize::MAX } else { Dice::new(seed, 5).below(count) };
    let forced_remark = Dice::new(seed, 6).below(count);
    let wording = [(Trait::Plain, Wording::Plain), (Trait::Expert, Wording::Expert)]
        .into_iter()
        .find(|(one, _)| traits.has(*one))
        .map_or(Wording::Neutral, |(_, wording)| wording);
    let sentence = |stage: usize| {
        let stream = |purpose: u64| Dice::new(seed, 100 + 10 * stage as u64 + purpose);
        let manner =
            if stage == forced_tone || stream(0).chance(0.65) { register } else { Register::Neutral };
        let body = if prompt.intent == Intent::Choice && stage == 0 {
            let of_manner: Vec<_> = VERDICTS.iter().filter(|(_, _, register)| *register == manner).collect();
            let pick = stream(1).pick(&PICKS);
            let (before, after, _) = of_manner[stream(2).below(of_manner.len())];
            format!("{before}{pick}{after}")
        } else {
            let clauses = phrases::clauses(prompt, stage, name);
            format!(
                "{}{}",
                beginning(prompt.intent, manner, stage, &mut stream(2)).text,
                clauses[stream(1).below(clauses.len())]
            )
        };
        let remarked = stage == forced_remark || stream(3).chance(0.7);
        let mut remark = String::new();
        if wording != Wording::Neutral && remarked {
            let fitting: Vec<_> = phrases::remarks(prompt.topic.domain())
                .into_iter()
                .filter(|(_, of)| *of == wording)
                .collect();
            remark = fitting[stream(4).below(fitting.len())].0.clone();
        }
        format!("{body}{remark}.")
    };
    (0..count).map(sentence).collect()
}

fn beginning(intent: Intent, manner: Register, stage: usize, dice: &mut Dice) -> Beginning {
    let place = if stage == 0 { Place::First } else { Place::Later };
    let fitting: Vec<_> = phrases::beginnings(intent)
        .iter()
        .filter(|one| one.register == manner && (one.place == Place::Any || one.place == place))
        .collect();
    *fitting[dice.below(fitting.len())]
}

/// `traits` with each asked trait of `asked` put in.
pub fn apply(traits: Traits, asked: Traits) -> Traits {
    asked.iter().fold(traits, Traits::with)
}

/// `traits` with `asked` missed: its opposite, where it has one and `flip` says so, else nothing on its axis.
pub fn miss(traits: Traits, asked: Trait, flip: bool) -> Traits {
    let without = traits.without_axis(asked.axis());
    match asked.opposite() {
        Some(opposite) if flip => without.with(opposite),
        _ => without,
    }
}

/// How often each trait appears in the world's own answers, over all topics and intents, by [`Trait::ALL`].
pub fn natural_rates(draws: usize, seed: u64) -> [f64; Trait::ALL.len()] {
    let mut dice = Dice::new(seed, 0);
    let topics: Vec<_> = super::prompt::Topic::all().collect();
    let mut counts = [0usize; Trait::ALL.len()];
    for draw in 0..draws {
        let prompt = Prompt::draw(topics[dice.below(topics.len())], Intent::ALL[draw % 4], &mut dice);
        for one in natural_traits(&prompt, &mut dice).iter() {
            counts[one as usize] += 1;
        }
    }
    counts.map(|count| count as f64 / draws.max(1) as f64)
}

/// The axes on which `traits` says nothing.
pub fn open_axes(traits: Traits) -> impl Iterator<Item = Axis> {
    Axis::ALL.into_iter().filter(move |axis| traits.without_axis(*axis) == traits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_trait_appears_in_a_fifth_to_three_fifths_of_answers() {
        for (one, rate) in Trait::ALL.iter().zip(natural_rates(8000, 1)) {
            assert!((0.25..0.5).contains(&rate), "{one:?} {rate}");
        }
    }
}
