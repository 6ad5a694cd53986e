use super::*;

const D: usize = 5;
const VOCAB: usize = 9;

fn numbers(dice: &mut Dice, n: usize) -> Vec<f32> {
    (0..n).map(|_| dice.normal() as f32).collect()
}

fn answer(dice: &mut Dice) -> Read {
    let tokens: Vec<u32> = (0..3 + dice.below(3)).map(|_| dice.below(VOCAB) as u32).collect();
    Read { hidden: numbers(dice, tokens.len() * D), tokens, log_prob: 0.0 }
}

fn person(dice: &mut Dice, pairs: usize, embedding: &Tensor) -> Vec<Compared> {
    let said = (0..pairs).map(|_| (answer(dice), answer(dice))).collect();
    compared(said, std::iter::repeat(0.5), embedding).unwrap()
}

/// What a step asks of the directions, with the inner problem's width held at what it is for `held`.
fn asked(
    prior: &WeightPrior,
    held: &WeightPrior,
    people: &[(Vec<&Compared>, Vec<&Compared>)],
    embedding: &Tensor,
    options: &PriorOptions,
) -> f64 {
    let queries: usize = people.iter().map(|(_, tried)| tried.len()).sum();
    let tokens: usize = people.iter().flat_map(|p| &p.1).map(|query| query.read.0.tokens.len()).sum();
    let mut total = 0.0;
    for (support, tried) in people {
        let along = |prior: &WeightPrior| -> Vec<Observation> {
            let of = |one: &&Compared| Observation {
                gradient: prior.along(&one.at_ones.gradient),
                ..one.at_ones.clone()
            };
            support.iter().map(of).collect()
        };
        let (at_held, observations) = (along(held), along(prior));
        let variance = Problem::new(&at_held, options.beta, WEIGHTS_SPREAD).feature_variance();
        let n = observations.len() as f64;
        let squares: f64 = observations.iter().map(|o| dot(&o.gradient, &o.gradient)).sum::<f64>() / n;
        let problem = Problem::new(&observations, options.beta, options.beta * (variance * squares).sqrt());
        let all: Vec<usize> = (0..observations.len()).collect();
        let y = problem.step(&problem.minimise(&all));
        let weights: Vec<f32> = prior.step(&y).iter().map(|step| (1.0 + step) as f32).collect();
        let weights = Tensor::from_vec(weights, (1, D), &Device::Cpu).unwrap();
        let read: Vec<_> = tried.iter().map(|query| (0, &query.read)).collect();
        let exact = Exact::of(&rows(&read).unwrap(), &weights, embedding, tried.len()).unwrap();
        for (index, query) in tried.iter().enumerate() {
            let margin = exact.margin(index).0 - query.base;
            total += (1.0 + (-options.beta * margin).exp()).ln() / queries as f64;
            total -= options.anchor * f64::from(exact.log_probs[index]) / tokens as f64;
        }
    }
    total
}

#[test]
fn the_gradient_is_the_finite_difference_through_the_fit() {
    let mut dice = Dice::new(5, 0);
    let embedding = Tensor::from_vec(numbers(&mut dice, VOCAB * D), (VOCAB, D), &Device::Cpu).unwrap();
    let said: Vec<Vec<Compared>> = (0..2).map(|_| person(&mut dice, 7, &embedding)).collect();
    let people: Vec<_> =
        said.iter().map(|p| (p[..4].iter().collect::<Vec<_>>(), p[4..].iter().collect::<Vec<_>>())).collect();
    let options = PriorOptions { rank: 2, ..PriorOptions::tiny() };
    let start: Vec<f64> = (0..2 * D).map(|_| 0.2 * dice.normal()).collect();
    let held = WeightPrior::new(start.clone(), D);
    let (got, right) = gradient(&held, &people, &embedding, &options).unwrap();
    assert!(right <= 6);
    for (i, got) in got.iter().enumerate() {
        let at = |step: f64| {
            let mut moved = start.clone();
            moved[i] += step;
            asked(&WeightPrior::new(moved, D), &held, &people, &embedding, &options)
        };
        let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
        assert!((slope - f64::from(*got)).abs() < 0.02 * slope.abs() + 2e-3, "{i}: {slope} {got}");
    }
}

#[test]
fn the_margins_at_ones_are_the_models() {
    let mut dice = Dice::new(6, 0);
    let embedding = Tensor::from_vec(numbers(&mut dice, VOCAB * D), (VOCAB, D), &Device::Cpu).unwrap();
    let table = embedding.to_vec2::<f32>().unwrap();
    let log_prob = |read: &Read, w: &[f64]| -> f64 {
        let logit = |h: &[f32], a: usize| -> f64 {
            (0..D).map(|i| f64::from(table[a][i]) * w[i] * f64::from(h[i])).sum()
        };
        let of_token = |(h, &a): (&[f32], &u32)| {
            logit(h, a as usize) - (0..VOCAB).map(|b| logit(h, b).exp()).sum::<f64>().ln()
        };
        read.hidden.chunks(D).zip(&read.tokens).map(of_token).sum()
    };
    for one in person(&mut dice, 3, &embedding) {
        let margin = |w: &[f64]| log_prob(&one.read.0, w) - log_prob(&one.read.1, w) - one.base;
        assert!((margin(&[1.0; D]) - one.at_ones.margin).abs() < 1e-4);
        for (i, got) in one.at_ones.gradient.iter().enumerate() {
            let at = |step: f64| {
                let mut w = [1.0; D];
                w[i] += step;
                margin(&w)
            };
            let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((slope - got).abs() < 1e-3 * (1.0 + slope.abs()), "{slope} {got}");
        }
    }
}
