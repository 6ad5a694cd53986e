use proptest::prelude::*;

use super::*;

fn pair(margin: f64, gradient: &[f64]) -> Observation {
    Observation { margin, gradient: gradient.to_vec(), verdict: Verdict::Chosen }
}

/// The loss in its primal form, written down once more.
fn primal(observations: &[Observation], beta: f64, spread: f64, x: &[f64], b: f64) -> f64 {
    let n = observations.len() as f64;
    let squares = observations.iter().map(|o| dot(&o.gradient, &o.gradient)).sum::<f64>() / n;
    let variance = (spread / beta).powi(2) / squares;
    let thumbs: Vec<f64> = observations.iter().filter(|o| o.verdict.is_thumb()).map(|o| o.margin).collect();
    let count = thumbs.len().max(1) as f64;
    let centre = thumbs.iter().sum::<f64>() / count;
    let held = thumbs.iter().map(|m| (m - centre).powi(2)).sum::<f64>() / count + (spread / beta).powi(2);
    let likelihood: f64 = observations
        .iter()
        .map(|o| {
            let margin = o.margin + dot(x, &o.gradient) - if o.verdict.is_thumb() { b } else { 0.0 };
            let y = if o.verdict == Verdict::Down { -1.0 } else { 1.0 };
            (1.0 + (-beta * y * margin).exp()).ln()
        })
        .sum();
    likelihood + dot(x, x) / (2.0 * variance) + (b - centre).powi(2) / (2.0 * held)
}

fn observation() -> impl Strategy<Value = Observation> {
    let verdict = prop_oneof![Just(Verdict::Chosen), Just(Verdict::Up), Just(Verdict::Down)];
    (-6.0f64..6.0, prop::collection::vec(-2.0f64..2.0, 5), verdict)
        .prop_map(|(margin, gradient, verdict)| Observation { margin, gradient, verdict })
}

fn solve(observations: &[Observation], beta: f64, spread: f64) -> (Vec<f64>, f64) {
    let problem = Problem::new(observations, beta, spread);
    let solution = problem.minimise(&(0..observations.len()).collect::<Vec<_>>());
    (problem.step(&solution), problem.threshold(&solution))
}

proptest! {
    #[test]
    fn the_minimum_has_no_slope_and_nothing_near_it_is_lower(
        observations in prop::collection::vec(observation(), 1..20),
        beta in 0.05f64..1.0,
        spread in 0.5f64..8.0,
        direction in prop::collection::vec(-1.0f64..1.0, 6),
    ) {
        prop_assume!(observations.iter().any(|o| dot(&o.gradient, &o.gradient) > 0.1));
        let (x, b) = solve(&observations, beta, spread);
        let at = |step: f64| {
            let moved: Vec<f64> = x.iter().zip(&direction).map(|(x, d)| x + step * d).collect();
            primal(&observations, beta, spread, &moved, b + step * direction[5])
        };
        let slope = (at(1e-4) - at(-1e-4)) / 2e-4;
        prop_assert!(slope.abs() < 1e-4, "slope {slope}");
        // Convex: the minimum is the only one.
        for step in [-1.0, -0.1, 0.1, 1.0] {
            prop_assert!(at(step) >= at(0.0) - 1e-9);
        }
    }

    #[test]
    fn what_was_fitted_tells_how_sure_it_is(observations in prop::collection::vec(observation(), 2..12)) {
        prop_assume!(observations.iter().any(|o| dot(&o.gradient, &o.gradient) > 0.1));
        let problem = Problem::new(&observations, 0.3, 3.0);
        // Fitted to all but the last one.
        let solution = problem.minimise(&(0..observations.len() - 1).collect::<Vec<_>>());
        let (x, b) = (problem.step(&solution), problem.threshold(&solution));
        for (row, o) in observations.iter().enumerate() {
            let y = if o.verdict == Verdict::Down { -1.0 } else { 1.0 };
            let want = y * (o.margin + dot(&x, &o.gradient) - if o.verdict.is_thumb() { b } else { 0.0 });
            prop_assert!((problem.certainty(&solution, row) - want).abs() < 1e-6);
        }
    }
}

#[test]
fn one_pair_pulls_along_its_own_gradient() {
    let (x, _) = solve(&[pair(0.0, &[3.0, 0.0, -4.0])], 0.5, 2.0);
    assert!(x[0] > 0.0 && x[1] == 0.0 && (x[2] / x[0] + 4.0 / 3.0).abs() < 1e-9, "{x:?}");
    // Twice the features are half the weights: what counts is the margin.
    let (half, _) = solve(&[pair(0.0, &[6.0, 0.0, -8.0])], 0.5, 2.0);
    assert!((half[0] * 2.0 - x[0]).abs() < 1e-9);
}

#[test]
fn the_threshold_parts_thumbs_that_no_feature_can_part() {
    let thumb = |margin, verdict| Observation { margin, gradient: vec![0.0, 1e-9], verdict };
    let all = [thumb(-50.0, Verdict::Down), thumb(-40.0, Verdict::Up), thumb(-52.0, Verdict::Down)];
    let (_, threshold) = solve(&all, 1.0, 1.0);
    assert!((-50.0..-40.0).contains(&threshold), "{threshold}");
}

#[test]
fn margins_of_any_size_stay_finite() {
    let all = [pair(1e6, &[1e5, -1e5]), pair(-1e6, &[1e5, 2e5]), pair(0.0, &[0.0, 0.0])];
    let (x, _) = solve(&all, 10.0, 3.0);
    assert!(x.iter().all(|x| x.is_finite()));
    assert!((softplus(800.0) - 800.0).abs() < 1e-9 && softplus(-800.0) == 0.0);
    assert!(sigmoid(-800.0) >= 0.0 && (sigmoid(800.0) - 1.0).abs() < 1e-12);
}
