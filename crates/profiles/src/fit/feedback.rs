//! Feedback as token ids, and what can be said of it before any model has read it.

use std::collections::HashSet;

use super::refusal::{LEAST, MOST, Refusal};

/// An answer that was judged.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Its ids, the end of text included; at least one.
    pub ids: Vec<u32>,
    /// Its log-probability under the base model behind the same prompt, in nats: for reference GENERATOR.
    pub base_log_prob: Option<f64>,
}

/// What was said of an answer, or of two.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// One was preferred to the other.
    Pair {
        /// The preferred one.
        chosen: Answer,
        /// The other one.
        rejected: Answer,
    },
    /// It was liked or not.
    Thumb {
        /// The answer.
        answer: Answer,
        /// Whether it was liked.
        up: bool,
    },
}

/// One piece of feedback.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// The prompt as the reward model reads it; at least one id.
    pub prompt: Vec<u32>,
    /// What was said of its answers.
    pub said: Said,
}

impl Item {
    /// Its answers, the preferred one first.
    pub fn answers(&self) -> impl Iterator<Item = &Answer> {
        let (first, second) = match &self.said {
            Said::Pair { chosen, rejected } => (chosen, Some(rejected)),
            Said::Thumb { answer, .. } => (answer, None),
        };
        std::iter::once(first).chain(second)
    }
}

/// Refuses so little or so much feedback that there is no need to read it.
///
/// # Errors
/// Too little, or too much.
pub fn check_count(got: usize) -> Result<(), Refusal> {
    match got {
        0..LEAST => Err(Refusal::TooFew { got }),
        LEAST..=MOST => Ok(()),
        _ => Err(Refusal::TooMany { got }),
    }
}

/// Refuses feedback that no fit can learn from.
///
/// # Errors
/// Too little, too much, all thumbs the same, or more than a quarter of it contradicted.
pub fn check(items: &[Item]) -> Result<(), Refusal> {
    let got = items.len();
    check_count(got)?;
    let ups = items.iter().filter(|i| matches!(i.said, Said::Thumb { up: true, .. })).count();
    let downs = items.iter().filter(|i| matches!(i.said, Said::Thumb { up: false, .. })).count();
    if ups + downs == got && (ups == 0 || downs == 0) {
        return Err(Refusal::OneSided { thumbs: got });
    }
    let contradicting = contradicting(items);
    if 4 * contradicting > got {
        return Err(Refusal::Contradictory { contradicting, all: got });
    }
    Ok(())
}

/// Pieces of feedback whose very opposite stands among the others: a pair the other way round, or the other
/// thumb for the same answer. Two answers that are the same contradict themselves.
fn contradicting(items: &[Item]) -> usize {
    /// The prompt, the answer, the other answer of a pair, and whether a thumb points up.
    type Key<'a> = (&'a [u32], &'a [u32], Option<&'a [u32]>, bool);
    fn key(item: &Item, opposite: bool) -> Key<'_> {
        match &item.said {
            Said::Pair { chosen, rejected } => {
                let (a, b) = if opposite { (rejected, chosen) } else { (chosen, rejected) };
                (&item.prompt, &a.ids, Some(&b.ids), false)
            }
            Said::Thumb { answer, up } => (&item.prompt, &answer.ids, None, *up != opposite),
        }
    }
    let said: HashSet<Key<'_>> = items.iter().map(|item| key(item, false)).collect();
    items.iter().filter(|item| said.contains(&key(item, true))).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(id: u32) -> Answer {
        Answer { ids: vec![id, 2], base_log_prob: None }
    }

    fn pair(prompt: u32, chosen: u32, rejected: u32) -> Item {
        let said = Said::Pair { chosen: answer(chosen), rejected: answer(rejected) };
        Item { prompt: vec![prompt], said }
    }

    fn thumb(prompt: u32, id: u32, up: bool) -> Item {
        Item { prompt: vec![prompt], said: Said::Thumb { answer: answer(id), up } }
    }

    #[test]
    fn too_little_and_too_much_are_told_with_the_number() {
        let pairs: Vec<Item> = (0..4).map(|i| pair(i, 5, 6)).collect();
        let refused = check(&pairs).unwrap_err();
        assert_eq!(refused, Refusal::TooFew { got: 4 });
        assert!(refused.to_string().contains("4 pieces") && refused.to_string().contains("5 or more"));
        let many: Vec<Item> = (0..=MOST as u32).map(|i| pair(i, 5, 6)).collect();
        assert_eq!(check(&many), Err(Refusal::TooMany { got: MOST + 1 }));
        assert_eq!(check(&many[..MOST]), Ok(()));
    }

    #[test]
    fn thumbs_must_point_both_ways_unless_there_are_pairs() {
        let mut all: Vec<Item> = (0..6).map(|i| thumb(i, 9, true)).collect();
        assert_eq!(check(&all), Err(Refusal::OneSided { thumbs: 6 }));
        all.push(pair(1, 5, 6));
        assert_eq!(check(&all), Ok(()));
        let both: Vec<Item> = (0..6).map(|i| thumb(i, 9, i > 0)).collect();
        assert_eq!(check(&both), Ok(()));
    }

    #[test]
    fn what_contradicts_itself_is_counted() {
        let mut all: Vec<Item> = (0..6).map(|i| pair(i, 5, 6)).collect();
        all.extend([pair(0, 6, 5), thumb(7, 9, true)]);
        assert_eq!((contradicting(&all), check(&all)), (2, Ok(())));
        all.push(thumb(7, 9, false));
        assert_eq!(check(&all), Err(Refusal::Contradictory { contradicting: 4, all: 9 }));
        assert_eq!(contradicting(&[pair(1, 5, 5)]), 1);
        assert_eq!(contradicting(&[pair(1, 5, 6), pair(2, 6, 5)]), 0, "another prompt is another matter");
    }
}
