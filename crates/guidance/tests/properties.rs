//! What the maths promises, on random rows.
use attune_guidance::{
    Candidates, RowError, Sampling, Term, against_generator, against_model, choose, fuse, log_softmax,
};
use proptest::prelude::*;

fn candidates() -> impl Strategy<Value = Candidates> {
    (1usize..=64).prop_flat_map(|k| {
        (prop::collection::vec(-20f32..20.0, k), prop::collection::hash_set(0u32..5000, k), 0f32..5.0)
            .prop_map(|(mut logits, ids, rest)| {
                logits.sort_by(|a, b| b.total_cmp(a));
                let log_sum_exp = logits[0] + rest + 4.2;
                Candidates {
                    ids: ids.into_iter().collect(),
                    raw_logits: logits.clone(),
                    logits,
                    log_sum_exp,
                    raw_log_sum_exp: log_sum_exp,
                }
            })
    })
}

fn rewards(k: usize) -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(-8f32..8.0, k)
}

fn with_rewards() -> impl Strategy<Value = (Candidates, Vec<f32>, Vec<f32>)> {
    candidates().prop_flat_map(|c| {
        let k = c.len();
        (Just(c), rewards(k), rewards(k))
    })
}

fn sampling() -> impl Strategy<Value = Sampling> {
    (prop_oneof![Just(0f32), 0.1f32..3.0], 0.05f32..=1.0, any::<u64>(), 0u32..1000)
        .prop_map(|(temperature, top_p, seed, index)| Sampling { temperature, top_p, seed, index })
}

fn term(strength: f32, rewards: &[f32]) -> Term<'_> {
    Term { strength, clip: None, rewards }
}

proptest! {
    #[test]
    fn a_constant_of_the_step_changes_no_choice(
        (c, r, _) in with_rewards(), s in sampling(), strength in -10f32..10.0, constant in -4f32..4.0,
    ) {
        // Exact numbers, so that the constant is added without rounding.
        let r: Vec<f32> = r.iter().map(|x| (x * 16.0).round() / 16.0).collect();
        let constant = constant.round();
        let shifted: Vec<f32> = r.iter().map(|x| x + constant).collect();
        let a = fuse(&c, &[term(strength, &r)], 0.0).unwrap();
        let b = fuse(&c, &[term(strength, &shifted)], 0.0).unwrap();
        for i in 0..c.len() {
            prop_assert!((a.log_prob(i) - b.log_prob(i)).abs() < 1e-4);
        }
        // Where rounding cannot turn two scores round, the choice is the same.
        let mut sorted = a.scores.clone();
        sorted.sort_by(f64::total_cmp);
        if s.top_p == 1.0 && sorted.windows(2).all(|w| w[1] - w[0] > 1e-3) {
            prop_assert_eq!(choose(&c, &a, s), choose(&c, &b, s));
        }
    }

    #[test]
    fn normalisers_cancel_for_every_reference((c, policy, reference) in with_rewards(), strength in -10f32..10.0) {
        let candidates: Vec<f32> = log_softmax(&policy).iter().map(|&v| v as f32).collect();
        let vocabulary: Vec<f32> = policy.iter().map(|v| v - 13.5).collect();
        let pairs = [
            (candidates.clone(), vocabulary.clone()),
            (against_generator(&candidates, &c, false).unwrap(), against_generator(&vocabulary, &c, true).unwrap()),
            (
                against_model(&policy, &reference).iter().map(|&v| v as f32).collect(),
                policy.iter().zip(&reference).map(|(p, r)| p - r + 2.0).collect(),
            ),
        ];
        for (one, other) in pairs {
            let a = fuse(&c, &[term(strength, &one)], 0.0).unwrap();
            let b = fuse(&c, &[term(strength, &other)], 0.0).unwrap();
            for i in 0..c.len() {
                prop_assert!((a.log_prob(i) - b.log_prob(i)).abs() < 2e-3);
            }
        }
    }

    #[test]
    fn strength_zero_is_plain_decoding((c, r, _) in with_rewards(), s in sampling(), clip in prop::option::of(0.1f32..3.0)) {
        let plain = fuse(&c, &[], 0.0).unwrap();
        let guided = fuse(&c, &[Term { strength: 0.0, clip, rewards: &r }], 0.0).unwrap();
        prop_assert_eq!(choose(&c, &plain, s), choose(&c, &guided, s));
    }

    #[test]
    fn the_choice_does_not_depend_on_the_order_of_candidates((c, r, _) in with_rewards(), s in sampling()) {
        let fused = fuse(&c, &[term(1.5, &r)], 0.0).unwrap();
        let chosen = c.ids[choose(&c, &fused, s)];
        let rev = |v: &[f32]| v.iter().rev().copied().collect::<Vec<f32>>();
        let reversed = Candidates {
            ids: c.ids.iter().rev().copied().collect(),
            logits: rev(&c.logits),
            raw_logits: rev(&c.raw_logits),
            ..c.clone()
        };
        let scores = attune_guidance::Fused { scores: fused.scores.iter().rev().copied().collect() };
        prop_assert_eq!(reversed.ids[choose(&reversed, &scores, s)], chosen);
    }

    #[test]
    fn top_p_keeps_the_token_that_crosses((c, r, _) in with_rewards(), mut s in sampling(), top_p in 0.01f32..1.0) {
        s.temperature = 1.0;
        s.top_p = top_p;
        let fused = fuse(&c, &[term(1.0, &r)], 0.0).unwrap();
        let chosen = choose(&c, &fused, s);
        // The probability strictly better than the chosen one had not reached top_p yet.
        let better: f64 = (0..c.len())
            .filter(|&i| fused.scores[i] > fused.scores[chosen])
            .map(|i| fused.log_prob(i).exp())
            .sum();
        prop_assert!(better < f64::from(top_p) + 1e-6);
    }

    #[test]
    fn min_p_takes_out_exactly_the_unlikely((c, r, _) in with_rewards(), min_p in 0.001f32..1.0, s in sampling()) {
        let fused = fuse(&c, &[term(3.0, &r)], min_p).unwrap();
        for i in 0..c.len() {
            let share = (c.log_prob(i) - c.log_prob(0)).exp();
            if (share - f64::from(min_p)).abs() > 1e-6 {
                prop_assert_eq!(fused.scores[i].is_finite(), share > f64::from(min_p));
            }
        }
        prop_assert!(fused.scores[choose(&c, &fused, s)].is_finite());
    }

    #[test]
    fn clip_bounds_what_a_guidance_can_do((c, r, _) in with_rewards(), clip in 0.01f32..3.0, strength in -10f32..10.0) {
        let plain = fuse(&c, &[], 0.0).unwrap();
        let guided = fuse(&c, &[Term { strength, clip: Some(clip), rewards: &r }], 0.0).unwrap();
        let bound = f64::from(clip) * f64::from(strength.abs()) + 1e-9;
        for (p, g) in plain.scores.iter().zip(&guided.scores) {
            prop_assert!((p - g).abs() <= bound);
        }
    }

    #[test]
    fn a_reward_that_is_not_finite_fails_the_row((c, mut r, _) in with_rewards(), at in any::<prop::sample::Index>(), bad in 0usize..3) {
        let at = at.index(r.len());
        r[at] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][bad];
        prop_assert_eq!(fuse(&c, &[term(1.0, &r)], 0.0), Err(RowError::Reward));
        prop_assert_eq!(fuse(&c, &[term(0.0, &r)], 0.0), Err(RowError::Reward));
    }
}

#[test]
fn ties_go_to_the_lower_id() {
    let c = Candidates {
        ids: vec![9, 4, 7],
        logits: vec![1.0; 3],
        raw_logits: vec![1.0; 3],
        log_sum_exp: 3.0,
        raw_log_sum_exp: 3.0,
    };
    let greedy = Sampling { temperature: 0.0, top_p: 1.0, seed: 0, index: 0 };
    let fused = fuse(&c, &[], 0.0).unwrap();
    assert_eq!(choose(&c, &fused, greedy), 1);
    // A top-p that one of three equal candidates crosses keeps the lowest id alone.
    let narrow = Sampling { temperature: 1.0, top_p: 0.2, ..greedy };
    for seed in 0..50 {
        assert_eq!(choose(&c, &fused, Sampling { seed, ..narrow }), 1);
    }
}

#[test]
fn a_wrong_number_of_rewards_is_named() {
    let c = Candidates {
        ids: vec![1, 2],
        logits: vec![2.0, 1.0],
        raw_logits: vec![2.0, 1.0],
        log_sum_exp: 3.0,
        raw_log_sum_exp: 3.0,
    };
    assert_eq!(fuse(&c, &[term(1.0, &[0.5])], 0.0), Err(RowError::Length { want: 2, got: 1 }));
}

#[test]
fn sampling_follows_the_softmax() {
    let c = Candidates {
        ids: vec![10, 20, 30],
        logits: vec![2.0, 1.0, 0.0],
        raw_logits: vec![2.0, 1.0, 0.0],
        log_sum_exp: 2.5,
        raw_log_sum_exp: 2.5,
    };
    let rewards = [0.0, 1.5, -0.5];
    let fused = fuse(&c, &[term(2.0, &rewards)], 0.0).unwrap();
    let n = 60_000;
    let mut counts = [0u32; 3];
    for index in 0..n {
        let s = Sampling { temperature: 1.7, top_p: 1.0, seed: 11, index };
        counts[choose(&c, &fused, s)] += 1;
    }
    let weights: Vec<f64> = fused.scores.iter().map(|s| (s / f64::from(1.7f32)).exp()).collect();
    let total: f64 = weights.iter().sum();
    for (count, weight) in counts.iter().zip(&weights) {
        let (got, want) = (f64::from(*count) / f64::from(n), weight / total);
        assert!((got - want).abs() < 0.01, "{got} against {want}");
    }
}
