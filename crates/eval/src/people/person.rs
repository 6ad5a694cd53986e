//! A simulated person: what they like, what they say of answers, and what they ask.

use attune_train::{
    measure::SEEN_PAIRS,
    world::{Pair, Prompt, Trait, Traits, pairs, preference::UNSEEN_PAIRS},
};

/// Somebody who likes answers with these traits, and never says so.
#[derive(Debug, Clone, PartialEq)]
pub struct SimulatedPerson {
    /// What they like, all of it.
    pub traits: Vec<Trait>,
    /// Where their chance comes from, beside the run's seed.
    stream: u64,
}

impl SimulatedPerson {
    /// Sixteen people: one for each trait, and one for each pair of traits of the bench; half of the pairs are
    /// of those that no training ever asked for together.
    pub fn all() -> Vec<Self> {
        let singles = Trait::ALL.into_iter().map(|one| vec![one]);
        let pairs = SEEN_PAIRS.into_iter().chain(UNSEEN_PAIRS).map(|pair| pair.to_vec());
        (0u64..).zip(singles.chain(pairs)).map(|(stream, traits)| Self { traits, stream }).collect()
    }

    /// The traits as a set.
    pub fn wanted(&self) -> Traits {
        self.traits.iter().copied().collect()
    }

    /// Their name in reports.
    pub fn name(&self) -> String {
        self.traits.iter().map(|one| one.name()).collect::<Vec<_>>().join(" + ")
    }

    /// What they say of `count` pairs of answers, about held-out topics; more begins with the same.
    pub fn feedback(&self, count: usize, seed: u64) -> Vec<Pair> {
        let (said, _) = pairs::held_out_halves();
        pairs::pairs_of(self.wanted(), said, count, seed.wrapping_mul(1009).wrapping_add(self.stream))
            .collect()
    }

    /// Further pairs about the topics that are asked about, which no fit sees.
    pub fn held_out(&self, count: usize, seed: u64) -> Vec<Pair> {
        let (_, asked) = pairs::held_out_halves();
        let seed = seed.wrapping_mul(1013).wrapping_add(1 << 32).wrapping_add(self.stream);
        pairs::pairs_of(self.wanted(), asked, count, seed).collect()
    }

    /// What they ask: about topics that neither training nor their feedback has.
    pub fn questions(&self, count: usize, seed: u64) -> Vec<Prompt> {
        let (_, asked) = pairs::held_out_halves();
        pairs::prompts_about(&asked, count, seed.wrapping_mul(1019).wrapping_add(self.stream))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use attune_train::world::judge;

    use super::*;

    #[test]
    fn the_judge_is_of_the_persons_opinion() {
        for person in SimulatedPerson::all() {
            let wanted = person.wanted();
            for pair in person.feedback(40, 3) {
                let prompt = Prompt::parse(&pair.prompt).unwrap();
                let (chosen, rejected) = (judge(&prompt, &pair.chosen), judge(&prompt, &pair.rejected));
                assert!(chosen.traits.has_all(wanted) && chosen.form.is_well_formed());
                assert!(!rejected.traits.has_all(wanted) || !rejected.form.is_well_formed(), "{pair:?}");
                assert_eq!(pair.preference, None);
            }
        }
    }

    #[test]
    fn nobody_is_asked_about_what_they_spoke_of() {
        let person = &SimulatedPerson::all()[9];
        let topic = |text: &str| Prompt::parse(text).unwrap().topic;
        let said: HashSet<_> = person.feedback(100, 1).iter().map(|p| topic(&p.prompt)).collect();
        assert!(said.iter().all(|topic| topic.held_out()));
        assert!(person.questions(64, 1).iter().all(|q| q.topic.held_out() && !said.contains(&q.topic)));
        assert!(person.held_out(64, 1).iter().all(|p| !said.contains(&topic(&p.prompt))));
        assert_eq!(person.feedback(5, 1), person.feedback(20, 1)[..5]);
    }
}
