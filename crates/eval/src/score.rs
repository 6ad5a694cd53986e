//! From answers to figures: the judge, shares with their intervals, and the perplexity under the base.

use anyhow::Result;
use attune_train::{
    batch::{Batch, Encoded},
    model::Llama,
    world::{Trait, Traits, judge},
};
use serde::{Deserialize, Serialize};

use crate::{answers::Answer, asks::Ask};

/// The quantile of a normal distribution that leaves 2.5 % on either side.
const Z: f64 = 1.959_963_984_540_054;
/// Texts of one forward pass.
const BATCH: usize = 16;

/// A figure with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The estimate.
    pub value: f64,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

impl Figure {
    /// The share of `hits` in `all`, with Wilson's interval.
    pub fn share(hits: usize, all: usize) -> Self {
        if all == 0 {
            return Self { value: 0.0, low: 0.0, high: 1.0 };
        }
        let n = all as f64;
        let p = hits as f64 / n;
        let centre = p + Z * Z / (2.0 * n);
        let half = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
        let scale = 1.0 + Z * Z / n;
        Self { value: p, low: (centre - half) / scale, high: (centre + half) / scale }
    }

    /// The exponential of the mean loss a token, over texts of `(loss, tokens)`; the texts are the sample.
    pub fn perplexity(texts: &[(f64, usize)]) -> Self {
        let tokens: f64 = texts.iter().map(|t| t.1 as f64).sum();
        let mean = texts.iter().map(|t| t.0).sum::<f64>() / tokens.max(1.0);
        let n = texts.len() as f64;
        let squares: f64 = texts.iter().map(|t| (t.0 - mean * t.1 as f64).powi(2)).sum();
        let error = (squares * n / (n - 1.0).max(1.0)).sqrt() / tokens.max(1.0);
        Self { value: mean.exp(), low: (mean - Z * error).exp(), high: (mean + Z * error).exp() }
    }
}

/// What the judge found in one answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judged {
    /// Traits that it has.
    pub traits: Traits,
    /// Whether it is well formed.
    pub well_formed: bool,
    /// Its loss under the unguided base, in nats, and its tokens.
    pub loss: (f64, usize),
}

impl Judged {
    /// Whether the answer has all that was asked for.
    pub fn satisfies(&self, ask: &Ask) -> bool {
        self.traits.has_all(ask.traits.iter().copied().collect())
    }
}

/// Judges an answer whose log-probabilities are the base's.
pub fn judged(ask: &Ask, answer: &Answer, log_prob: f64) -> Judged {
    let judgement = judge(&ask.prompt, answer.text.trim());
    Judged {
        traits: judgement.traits,
        well_formed: judgement.form.is_well_formed(),
        loss: (-log_prob, answer.ids.len()),
    }
}

/// The log-probabilities of whole answers under a model that reads these prompts before them.
///
/// # Errors
/// Ids outside the vocabulary.
pub fn log_probs(model: &Llama, texts: &[(Vec<u32>, Vec<u32>)]) -> Result<Vec<f64>> {
    let mut sums = Vec::with_capacity(texts.len());
    for chunk in texts.chunks(BATCH) {
        let encoded: Vec<Encoded> = chunk
            .iter()
            .map(|(prompt, answer)| Encoded { ids: [&prompt[..], answer].concat(), answer: prompt.len() })
            .collect();
        let batch = Batch::new(&encoded.iter().collect::<Vec<_>>())?;
        let values = model.log_probs(&batch.tokens, &batch.at, &batch.targets, true)?.to_vec1::<f32>()?;
        let mut of_chunk = vec![0.0; chunk.len()];
        for (owner, value) in batch.owners.to_vec1::<u32>()?.into_iter().zip(values) {
            of_chunk[owner as usize] += f64::from(value);
        }
        sums.extend(of_chunk);
    }
    Ok(sums)
}

/// The figures of one method at one strength.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Answers that have all that was asked for.
    pub satisfaction: Figure,
    /// Of these, those whose combination and words training had.
    pub seen: Figure,
    /// Those whose combination or words it had not.
    pub unseen: Figure,
    /// Where one trait was asked for.
    pub single: Figure,
    /// Where two were.
    pub pairs: Figure,
    /// Whether two were asked for at all.
    pub pairs_asked: bool,
    /// Of each trait: answers that have it, where it was asked for, alone or with another.
    pub dimensions: Vec<(Trait, Figure)>,
    /// Of each trait: answers that have it, whatever was asked for.
    pub present: Vec<(Trait, f64)>,
    /// Answers that are well formed.
    pub well_formed: Figure,
    /// Under the unguided base.
    pub perplexity: Figure,
    /// How many answers.
    pub answers: usize,
}

impl Scores {
    /// Sums up.
    pub fn of(asks: &[&Ask], judged: &[Judged]) -> Self {
        let share = |among: &dyn Fn(&Ask) -> bool, hit: &dyn Fn(&Ask, &Judged) -> bool| {
            let rows = asks.iter().zip(judged).filter(|(ask, _)| among(ask));
            let (mut hits, mut all) = (0, 0);
            for (ask, judged) in rows {
                all += 1;
                hits += usize::from(hit(ask, judged));
            }
            Figure::share(hits, all)
        };
        let has_all = |ask: &Ask, judged: &Judged| judged.satisfies(ask);
        Self {
            satisfaction: share(&|_| true, &has_all),
            seen: share(&|ask| !ask.unseen, &has_all),
            unseen: share(&|ask| ask.unseen, &has_all),
            single: share(&|ask| ask.traits.len() == 1, &has_all),
            pairs: share(&|ask| ask.traits.len() == 2, &has_all),
            pairs_asked: asks.iter().any(|ask| ask.traits.len() == 2),
            dimensions: Trait::ALL
                .into_iter()
                .map(|one| (one, share(&|ask| ask.traits.contains(&one), &|_, j| j.traits.has(one))))
                .collect(),
            present: Trait::ALL
                .into_iter()
                .map(|one| (one, share(&|_| true, &|_, judged| judged.traits.has(one)).value))
                .collect(),
            well_formed: share(&|_| true, &|_, judged| judged.well_formed),
            perplexity: Figure::perplexity(&judged.iter().map(|j| j.loss).collect::<Vec<_>>()),
            answers: judged.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilsons_interval_is_the_published_one() {
        // Newcombe, 'Two-sided confidence intervals for the single proportion', 1998: 81 of 263.
        let figure = Figure::share(81, 263);
        assert!((figure.low - 0.2553).abs() < 1e-4 && (figure.high - 0.3662).abs() < 1e-4, "{figure:?}");
        assert!(Figure::share(0, 20).low.abs() < 1e-12);
        assert!(Figure::share(20, 20).high <= 1.0 + 1e-12);
    }

    #[test]
    fn perplexity_weighs_by_tokens() {
        let figure = Figure::perplexity(&[(2.0, 1), (1.0, 9), (3.0, 2)]);
        assert!((figure.value - (6.0f64 / 12.0).exp()).abs() < 1e-12);
        assert!(figure.low < figure.value && figure.value < figure.high);
        let same = Figure::perplexity(&[(1.0, 2), (2.0, 4)]);
        assert!((same.high - same.low).abs() < 1e-12, "texts that agree leave no doubt");
    }
}
