//! Preferences as people write them: one to three traits in many wordings.

use super::dice::Dice;
use super::traits::{Trait, Traits};

/// Which preferences to draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Combinations and phrasings of the training data.
    Train,
    /// Phrasings that no training text has, made of words that training texts have.
    HeldOut,
}

/// How a trait is asked for: adjectives, and phrases that stand after them. The last of `after` is held out.
struct Asks {
    adjectives: [&'static str; 4],
    after: [&'static str; 3],
}

fn asks(one: Trait) -> Asks {
    let (adjectives, after) = match one {
        Trait::Brief => (
            ["brief", "short", "concise", "quick"],
            ["in one sentence", "without many words", "in one short sentence"],
        ),
        Trait::Detailed => (
            ["detailed", "long", "thorough", "complete"],
            ["in many words", "with all the steps", "with many steps"],
        ),
        Trait::Formal => (
            ["formal", "polite", "courteous", "official"],
            ["in a formal tone", "with good manners", "in a polite tone"],
        ),
        Trait::Casual => (
            ["casual", "relaxed", "friendly", "informal"],
            ["in a casual tone", "like a friend", "in a friendly tone"],
        ),
        Trait::Plain => (
            ["plain", "simple", "easy", "clear"],
            ["in everyday words", "without expert terms", "in simple words"],
        ),
        Trait::Expert => (
            ["expert", "technical", "scientific", "precise"],
            ["with expert terms", "in technical words", "with scientific terms"],
        ),
        Trait::Humour => (
            ["funny", "humorous", "witty", "amusing"],
            ["with a joke", "with some humour", "with a funny joke"],
        ),
        Trait::Caution => (
            ["careful", "cautious", "wary", "safe"],
            ["with a warning", "with the risks named", "with all the risks named"],
        ),
    };
    Asks { adjectives, after }
}

const DEGREES: [&str; 4] = ["a little ", "very ", "rather ", "quite "];

/// What stands around the asked things; the last two are held out.
const FRAMES: [(&str, &str); 9] = [
    ("", ""),
    ("", ", please"),
    ("be ", ""),
    ("keep it ", ""),
    ("I like it ", ""),
    ("please make it ", ""),
    ("I want an answer that is ", ""),
    ("please keep it ", ""),
    ("I like an answer that is ", ""),
];

/// Pairs of traits that are never asked for together in training.
pub const UNSEEN_PAIRS: [[Trait; 2]; 4] = [
    [Trait::Formal, Trait::Humour],
    [Trait::Casual, Trait::Caution],
    [Trait::Plain, Trait::Detailed],
    [Trait::Brief, Trait::Expert],
];

/// Whether training never asks for this combination.
pub fn is_unseen(traits: Traits) -> bool {
    UNSEEN_PAIRS.iter().any(|pair| pair.iter().all(|one| traits.has(*one)))
}

/// Random traits to ask for: one (60 %), two or three; never an unseen combination.
pub fn draw_traits(dice: &mut Dice) -> Traits {
    let wanted = 1 + dice.weighted(&[0.6, 0.3, 0.1]);
    loop {
        let mut traits = Traits::NONE;
        while traits.len() < wanted {
            traits = traits.with(dice.pick(&Trait::ALL));
        }
        if !is_unseen(traits) {
            return traits;
        }
    }
}

/// Asks for `traits` in words.
pub fn phrase(traits: Traits, split: Split, dice: &mut Dice) -> String {
    let mut wanted: Vec<Trait> = traits.iter().collect();
    dice.shuffle(&mut wanted);
    let mut adjectives = Vec::new();
    let mut after = Vec::new();
    let held_out = split == Split::HeldOut;
    for one in wanted {
        let ways = asks(one);
        if held_out && after.is_empty() {
            after.push(ways.after[2]);
        } else if dice.chance(0.65) {
            let degree = if dice.chance(0.25) { dice.pick(&DEGREES) } else { "" };
            adjectives.push(format!("{degree}{}", dice.pick(&ways.adjectives)));
        } else {
            after.push(ways.after[dice.below(2)]);
        }
    }
    let mut text = list(&adjectives, dice);
    if !after.is_empty() {
        let joint = if text.is_empty() { "" } else { dice.pick(&[" ", " and ", ", "]) };
        text = format!("{text}{joint}{}", after.join(" and "));
    }
    let frame = if held_out && dice.chance(0.5) { 7 + dice.below(2) } else { dice.below(7) };
    let (front, back) = FRAMES[frame];
    let mut text = format!("{front}{text}{back}");
    if dice.chance(0.3) {
        text = capitalised(&text);
    }
    if dice.chance(0.2) {
        text.push('.');
    }
    text
}

fn list(items: &[String], dice: &mut Dice) -> String {
    match items {
        [] => String::new(),
        [one] => one.clone(),
        [one, two] => format!("{one}{}{two}", dice.pick(&[" and ", ", ", " but "])),
        [start @ .., last] => format!("{} and {last}", start.join(", ")),
    }
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn held_out_phrasings_are_new_but_their_words_are_not() {
        let mut dice = Dice::new(9, 0);
        let mut trained = HashSet::new();
        for _ in 0..20_000 {
            let traits = draw_traits(&mut dice);
            assert!(!is_unseen(traits) && !traits.is_empty());
            trained.insert(phrase(traits, Split::Train, &mut dice));
        }
        let words: HashSet<String> = trained
            .iter()
            .flat_map(|text| text.split_whitespace())
            .map(|word| word.trim_matches([',', '.']).to_lowercase())
            .collect();
        for one in Trait::ALL {
            for _ in 0..50 {
                let text = phrase([one].into_iter().collect(), Split::HeldOut, &mut dice);
                assert!(!trained.contains(&text), "{text}");
                for word in text.split_whitespace() {
                    let word = word.trim_matches([',', '.']).to_lowercase();
                    assert!(words.contains(&word), "{word}");
                }
            }
        }
    }
}
