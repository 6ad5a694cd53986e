//! Properties that writer, grammar and judge have together.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::dice::Dice;
use super::grammar::Fault;
use super::prompt::{Intent, Prompt, Topic};
use super::traits::{Trait, Traits};
use super::{answer, judge, pairs};

fn any_prompt() -> impl Strategy<Value = Prompt> {
    (0..240usize, 0..4usize, any::<u64>()).prop_map(|(topic, intent, seed)| {
        let topic = Topic::all().nth(topic).unwrap();
        Prompt::draw(topic, Intent::ALL[intent], &mut Dice::new(seed, 0))
    })
}

fn any_traits() -> impl Strategy<Value = Traits> {
    (0..3usize, 0..3usize, 0..3usize, any::<bool>(), any::<bool>()).prop_map(
        |(length, register, wording, joke, warning)| {
            let pole = |low, high, which| [Some(low), Some(high), None][which];
            [
                pole(Trait::Brief, Trait::Detailed, length),
                pole(Trait::Formal, Trait::Casual, register),
                pole(Trait::Plain, Trait::Expert, wording),
                joke.then_some(Trait::Humour),
                warning.then_some(Trait::Caution),
            ]
            .into_iter()
            .flatten()
            .collect()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn what_is_written_is_well_formed_and_has_just_its_traits(prompt in any_prompt(), traits in any_traits(), seed: u64) {
        let text = answer::write(&prompt, traits, seed);
        let judgement = judge(&prompt, &text);
        prop_assert!(judgement.form.is_well_formed(), "{text}: {:?}", judgement.form);
        prop_assert_eq!(judgement.form.score, 1.0);
        prop_assert_eq!(judgement.traits, traits, "{}", text);
    }

    #[test]
    fn damage_is_found_and_graded(prompt in any_prompt(), traits in any_traits(), seed: u64, place: prop::sample::Index) {
        let text = answer::write(&prompt, traits, seed);
        let mut words: Vec<&str> = text.split(' ').collect();
        let at = place.index(words.len());
        words[at] = "zebra";
        let broken = words.join(" ");
        let form = judge(&prompt, &broken).form;
        prop_assert!(!form.is_well_formed() && form.score < 1.0 && form.score > 0.0);
        let cut = text.trim_end_matches(['.', '!']);
        let form = judge(&prompt, cut).form;
        prop_assert!(form.faults.iter().any(|fault| matches!(fault, Fault::Unfinished(_))));
    }

    #[test]
    fn another_topics_answer_is_off_topic(seed: u64, prompt in any_prompt(), other in any_prompt()) {
        prop_assume!(prompt.topic.domain_index() != other.topic.domain_index());
        let text = answer::write(&other, Traits::NONE, seed);
        prop_assert!(!judge(&prompt, &text).form.is_well_formed());
    }

    #[test]
    fn the_judge_survives_any_text(prompt in any_prompt(), text: String) {
        let form = judge(&prompt, &text).form;
        prop_assert!((0.0..=1.0).contains(&form.score));
    }
}

#[test]
fn pairs_differ_as_asked_and_a_tenth_carries_no_preference() {
    let pairs: Vec<_> = pairs::pairs(2000, 4).collect();
    let without = pairs.iter().filter(|pair| pair.preference.is_none()).count();
    assert!((140..260).contains(&without), "{without}");
    let mut same_length = 0;
    for pair in &pairs {
        let prompt = Prompt::parse(&pair.prompt).unwrap();
        assert!(!prompt.topic.held_out());
        let (good, bad) = (judge(&prompt, &pair.chosen), judge(&prompt, &pair.rejected));
        assert!(good.form.is_well_formed());
        assert_ne!(pair.chosen, pair.rejected);
        if pair.preference.is_none() {
            assert!(!bad.form.is_well_formed());
        }
        same_length += usize::from(good.traits.len() == bad.traits.len());
    }
    assert!(same_length > 200);
}

#[test]
fn samples_are_seeded_well_formed_and_lean_towards_preferences() {
    let texts: Vec<_> = pairs::samples(3000, 8).collect();
    assert_eq!(texts[..50], pairs::samples(50, 8).collect::<Vec<_>>()[..]);
    let mut funny: BTreeMap<bool, (usize, usize)> = BTreeMap::new();
    for sample in &texts {
        let prompt = Prompt::parse(&sample.prompt).unwrap();
        assert!(!prompt.topic.held_out());
        let judgement = judge(&prompt, &sample.answer);
        assert!(judgement.form.is_well_formed());
        let asked =
            sample.preference.as_ref().is_some_and(|text| text.contains("joke") || text.contains("funny"));
        let entry = funny.entry(asked).or_default();
        entry.0 += usize::from(judgement.traits.has(Trait::Humour));
        entry.1 += 1;
    }
    let share = |asked| funny[&asked].0 as f64 / funny[&asked].1 as f64;
    assert!(share(true) > share(false) + 0.1, "{funny:?}");
    assert!((0.2..0.6).contains(&share(false)));
}

#[test]
fn held_out_prompts_are_of_held_out_topics() {
    let prompts = pairs::held_out_prompts(100, 1);
    assert!(prompts.iter().all(|prompt| prompt.topic.held_out()));
    assert_eq!(prompts.iter().filter(|prompt| prompt.intent == Intent::Story).count(), 25);
}
