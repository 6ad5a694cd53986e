//! What is asked: held-out questions, each with a preference in words.

use attune_train::{
    measure::SEEN_PAIRS,
    world::{
        Prompt, Trait, Traits,
        dice::Dice,
        pairs,
        preference::{self, Split, UNSEEN_PAIRS},
    },
};

/// One question and what its person wants.
#[derive(Debug, Clone)]
pub struct Ask {
    /// The question, about a topic that no training text has.
    pub prompt: Prompt,
    /// Its text.
    pub question: String,
    /// What is wanted: one trait, or two.
    pub traits: Vec<Trait>,
    /// The same in words.
    pub preference: String,
    /// Whether training never asked for it so: a combination that was left out of it, or words that were.
    pub unseen: bool,
}

/// One thing to ask for: the traits, the words' split, and whether that is unseen.
type Kind = (Vec<Trait>, Split, bool);

/// Seen and unseen match: eight single traits and four pairs each.
fn kinds() -> Vec<Kind> {
    let singles = |split, unseen| Trait::ALL.into_iter().map(move |one| (vec![one], split, unseen));
    let pairs =
        |all: [[Trait; 2]; 4], unseen| all.into_iter().map(move |pair| (pair.to_vec(), Split::Train, unseen));
    singles(Split::Train, false)
        .chain(pairs(SEEN_PAIRS, false))
        .chain(singles(Split::HeldOut, true))
        .chain(pairs(UNSEEN_PAIRS, true))
        .collect()
}

/// The things that are asked for in turn.
pub fn kinds_count() -> usize {
    kinds().len()
}

/// `count` questions, all kinds of preferences in turn. One seed draws the same.
pub fn draw(count: usize, seed: u64) -> Vec<Ask> {
    let mut prompts = pairs::held_out_prompts(count, seed);
    let mut dice = Dice::new(seed, 50);
    // They come with their intents in turn, as the kinds do: neither shall know the other.
    dice.shuffle(&mut prompts);
    let kinds = kinds();
    prompts
        .into_iter()
        .enumerate()
        .map(|(i, prompt)| {
            let (traits, split, unseen) = kinds[i % kinds.len()].clone();
            let wanted: Traits = traits.iter().copied().collect();
            let preference = preference::phrase(wanted, split, &mut dice);
            Ask { question: prompt.text(), prompt, traits, preference, unseen }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seen_and_unseen_are_asked_alike_and_of_held_out_topics() {
        let asks = draw(10 * kinds_count(), 3);
        assert!(asks.iter().all(|ask| ask.prompt.topic.held_out()));
        for pairs in [false, true] {
            let count =
                |unseen| asks.iter().filter(|a| a.unseen == unseen && (a.traits.len() == 2) == pairs).count();
            assert_eq!(count(false), count(true));
        }
        let intents = |one: Trait| {
            let of_it = asks.iter().filter(|a| a.traits == [one]).map(|a| a.prompt.intent);
            of_it.collect::<std::collections::BTreeSet<_>>().len()
        };
        assert!(Trait::ALL.into_iter().all(|one| intents(one) > 1), "no trait has one intent alone");
    }
}
