//! The latent form of a person, trained once for a frozen PersRM (CLaP, arXiv 2412.20834).
//!
//! Many synthetic people each compare answers. A few comparisons of one person give a latent, by the encoder:
//! the sum of what the chosen answers speak for, less the rejected ones', at a fixed length. With that latent
//! the adapter must make the person's *other* comparisons come out right, in DPO's form against the PersRM as
//! it is. So encoder and adapter agree on what a latent means, and it carries over from texts to texts. The
//! paper trains both by rebuilding each answer from its own latent, with a contrast to other answers; here the
//! contrast is the person's own comparison, which is what the latent is for.
//!
//! The backbone is frozen, so its hidden states are computed once.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use attune_engine::{LatentShape, PersRmSettings};
use candle_core::{DType, Device, Tensor, Var};
use tokenizers::Tokenizer;

use crate::comparisons::{Person, Read, Rows, read, rows};
use crate::export::{write_json, write_vars};
use crate::model::Llama;
use crate::ops;
use crate::optimizer::{AdamW, Schedule};
use crate::progress::Progress;
use crate::world::dice::Dice;
use crate::world::preference;
use crate::world::{Pair, pairs};

/// The file beside a PersRM's weights.
pub const FILE: &str = "latent_adapter.safetensors";

/// How to train encoder and adapter.
#[derive(Debug, Clone)]
pub struct LatentOptions {
    /// The width of a latent.
    pub size: usize,
    /// The adapter's rank.
    pub rank: usize,
    /// The encoder's inner width.
    pub inner: usize,
    /// Synthetic people.
    pub people: usize,
    /// Comparisons of each.
    pub pairs: usize,
    /// Steps.
    pub steps: usize,
    /// People a step.
    pub batch: usize,
    /// The most comparisons that a latent is made of; each step draws a number from 1.
    pub support: usize,
    /// Comparisons of the same person that the latent is tried on.
    pub queries: usize,
    /// Highest learning rate.
    pub rate: f64,
    /// As of [`crate::dpo::DpoOptions`].
    pub beta: f64,
    /// As of [`crate::dpo::DpoOptions`].
    pub anchor: f64,
}

impl Default for LatentOptions {
    fn default() -> Self {
        Self {
            size: 16,
            rank: 64,
            inner: 128,
            people: 160,
            pairs: 24,
            steps: 300,
            batch: 8,
            support: 10,
            queries: 2,
            rate: 4e-3,
            beta: 0.3,
            anchor: 1.0,
        }
    }
}

impl LatentOptions {
    /// Made in seconds, having learned nothing, for tests.
    pub fn tiny() -> Self {
        Self { people: 3, pairs: 4, steps: 2, batch: 2, support: 2, ..Self::default() }
    }
}

/// What training ended with, over the last tenth of the steps.
#[derive(Debug, Clone, Copy)]
pub struct LatentOutcome {
    /// Mean loss, without the anchor.
    pub loss: f64,
    /// Share of the tried comparisons that come out right.
    pub accuracy: f64,
}

/// Encoder and adapter, by the names of their file.
#[derive(Debug, Clone)]
pub struct Latents {
    vars: BTreeMap<String, Var>,
    size: usize,
}

impl Latents {
    /// Fresh: the adapter changes nothing yet.
    ///
    /// # Errors
    /// Only if memory cannot be had.
    pub fn fresh(d: usize, options: &LatentOptions, seed: u64) -> candle_core::Result<Self> {
        let mut dice = Dice::new(seed, 70);
        let mut vars = BTreeMap::new();
        let LatentOptions { size, rank, inner, .. } = *options;
        let shapes: [(&str, &[usize], f64); 8] = [
            ("adapter.gate", &[rank, size], 1.0),
            ("adapter.down", &[rank, d], 1.0),
            ("adapter.bias", &[rank], 0.0),
            ("adapter.up", &[d, rank], 0.0),
            ("encoder.hidden", &[inner, d], 1.0),
            ("encoder.token", &[inner, d], 1.0),
            ("encoder.bias", &[inner], 0.0),
            ("encoder.out", &[size, inner], 1.0),
        ];
        for (name, shape, scale) in shapes {
            let columns = *shape.last().unwrap_or(&1) as f64;
            let count = shape.iter().product();
            let values: Vec<f32> =
                (0..count).map(|_| (dice.normal() * scale / columns.sqrt()) as f32).collect();
            vars.insert(name.to_owned(), Var::from_vec(values, shape, &Device::Cpu)?);
        }
        Ok(Self { vars, size })
    }

    /// What is trained, by name.
    pub fn vars(&self) -> &BTreeMap<String, Var> {
        &self.vars
    }

    fn var(&self, name: &str) -> &Tensor {
        // The names are those of `fresh`.
        self.vars[name].as_tensor()
    }

    /// The latents of `people` people, `[people, size]`, each `sqrt(size)` long.
    fn encode(&self, rows: &Rows, embedding: &Tensor, people: usize) -> candle_core::Result<Tensor> {
        let tokens = embedding.index_select(&rows.tokens, 0)?;
        let inner = (rows.hidden.matmul(&self.var("encoder.hidden").t()?)?
            + tokens.matmul(&self.var("encoder.token").t()?)?)?
        .broadcast_add(self.var("encoder.bias"))?
        .silu()?
        .broadcast_mul(&rows.signs)?;
        let sums = Tensor::zeros((people, inner.dim(1)?), DType::F32, &Device::Cpu)?.index_add(
            &rows.people,
            &inner,
            0,
        )?;
        let raw = sums.matmul(&self.var("encoder.out").t()?)?;
        let length = (raw.sqr()?.sum_keepdim(1)? + 1e-12)?.sqrt()?;
        raw.broadcast_div(&length)? * (self.size as f64).sqrt()
    }

    /// The adapted hidden states, `[n, d]`, each for its person's latent.
    fn adapt(&self, rows: &Rows, latents: &Tensor) -> candle_core::Result<Tensor> {
        let gates = latents.matmul(&self.var("adapter.gate").t()?)?.tanh()?.index_select(&rows.people, 0)?;
        let inner = rows
            .hidden
            .matmul(&self.var("adapter.down").t()?)?
            .broadcast_add(self.var("adapter.bias"))?
            .silu()?
            .mul(&gates)?;
        &rows.hidden + inner.matmul(&self.var("adapter.up").t()?)?
    }

    /// The margins of comparisons for a latent, in nats: the chosen answer's log-probability less the rejected
    /// one's.
    ///
    /// # Errors
    /// What the libraries report.
    pub fn margins(
        &self,
        persrm: &Llama,
        words: &Tokenizer,
        said: &[Pair],
        latent: &[f32],
    ) -> Result<Vec<f64>> {
        let person = read(persrm, words, said)?;
        let embedding = persrm.output(true)?;
        let z = Tensor::new(latent, &Device::Cpu)?.unsqueeze(0)?;
        let queries: Vec<_> = person.iter().map(|pair| (0, pair)).collect();
        let rows = rows(&queries)?;
        let own = answers(self, &rows, &z, &embedding, queries.len())?.to_vec1::<f32>()?;
        let (chosen, rejected) = own.split_at(queries.len());
        Ok(chosen.iter().zip(rejected).map(|(c, r)| f64::from(c - r)).collect())
    }

    /// Writes the file, and its sizes into `attune.json`.
    ///
    /// # Errors
    /// A file that cannot be written or read, named.
    pub fn write(&self, folder: &Path) -> Result<()> {
        write_vars(&folder.join(FILE), &self.vars)?;
        let mut settings = PersRmSettings::load(folder)?;
        let (rank, inner) = (self.var("adapter.down").dim(0)?, self.var("encoder.hidden").dim(0)?);
        settings.latent = Some(LatentShape { size: self.size, rank, inner });
        write_json(&folder.join(PersRmSettings::FILE), &serde_json::to_value(settings)?)
    }
}

/// Trains encoder and adapter for a frozen PersRM.
///
/// # Errors
/// A loss or gradient that is not finite; what the libraries report.
pub fn train(
    persrm: &Llama,
    tokenizer: &Tokenizer,
    options: &LatentOptions,
    seed: u64,
    quiet: bool,
) -> Result<(Latents, LatentOutcome)> {
    let mut dice = Dice::new(seed, 71);
    let reading = Progress::new("people", options.people, quiet);
    let mut people: Vec<Person> = Vec::with_capacity(options.people);
    for person in 0..options.people {
        let asked = preference::draw_traits(&mut dice);
        let stream = seed.wrapping_add(1_000 + person as u64);
        let said = pairs::pairs_of(asked, pairs::training_topics(), options.pairs, stream);
        people.push(read(persrm, tokenizer, &said.collect::<Vec<_>>())?);
        reading.step(person, "");
    }
    drop(reading);
    let latents = Latents::fresh(persrm.config().hidden_size, options, seed)?;
    let embedding = persrm.output(true)?;
    let schedule =
        Schedule { peak: options.rate, warm_up: (options.steps / 20).max(1), steps: options.steps };
    let mut optimizer = AdamW::new(0.01, 1.0);
    let progress = Progress::new("latents", options.steps, quiet);
    let (mut shown_loss, mut shown_accuracy) = (std::f64::consts::LN_2, 0.5);
    let (mut loss_sum, mut accuracy_sum, mut counted) = (0f64, 0f64, 0usize);
    for step in 0..options.steps {
        let support_size = 1 + dice.below(options.support);
        let (mut support, mut queries) = (Vec::new(), Vec::new());
        for row in 0..options.batch {
            let person = &people[dice.below(people.len())];
            let mut order: Vec<usize> = (0..person.len()).collect();
            dice.shuffle(&mut order);
            let mut order = order.into_iter().map(|i| (row, &person[i]));
            queries.extend(order.by_ref().take(options.queries));
            support.extend(order.take(support_size));
        }
        let z = latents.encode(&rows(&support)?, &embedding, options.batch)?;
        let (loss, margins, anchor) = loss(&latents, &queries, &z, &embedding, options.beta)?;
        let total = (&loss - (anchor * options.anchor)?)?;
        optimizer.update(&latents.vars, &total.backward()?, schedule.rate(step))?;
        let loss = f64::from(loss.to_scalar::<f32>()?);
        let margins = margins.to_vec1::<f32>()?;
        let accuracy = margins.iter().filter(|margin| **margin > 0.0).count() as f64 / margins.len() as f64;
        shown_loss = 0.97 * shown_loss + 0.03 * loss;
        shown_accuracy = 0.97 * shown_accuracy + 0.03 * accuracy;
        if step * 10 >= options.steps * 9 {
            (loss_sum, accuracy_sum, counted) = (loss_sum + loss, accuracy_sum + accuracy, counted + 1);
        }
        progress.step(step, &format!("loss {shown_loss:.3} accuracy {shown_accuracy:.3}"));
    }
    let counted = counted.max(1) as f64;
    Ok((latents, LatentOutcome { loss: loss_sum / counted, accuracy: accuracy_sum / counted }))
}

/// DPO's loss of the tried comparisons with their people's latents, against the model without one; the margins;
/// and the mean log-probability a token of the chosen answers.
fn loss(
    latents: &Latents,
    queries: &[(usize, &(Read, Read))],
    z: &Tensor,
    embedding: &Tensor,
    beta: f64,
) -> candle_core::Result<(Tensor, Tensor, Tensor)> {
    let n = queries.len();
    let own = answers(latents, &rows(queries)?, z, embedding, n)?;
    let before =
        |of: fn(&(Read, Read)) -> &Read| queries.iter().map(move |(_, pair)| of(pair).log_prob as f32);
    let frozen: Vec<f32> = before(|pair| &pair.0).chain(before(|pair| &pair.1)).collect();
    let ratios = (&own - Tensor::from_vec(frozen, 2 * n, &Device::Cpu)?)?;
    let margins = ((ratios.narrow(0, 0, n)? - ratios.narrow(0, n, n)?)? * beta)?;
    // -log sigmoid(m) = -m/2 + log(2 cosh(m/2)).
    let half = (&margins * 0.5)?;
    let loss = ((half.exp()? + half.neg()?.exp()?)?.log()? - &half)?.mean_all()?;
    let chosen: usize = queries.iter().map(|(_, pair)| pair.0.tokens.len()).sum();
    let anchor = (own.narrow(0, 0, n)?.sum_all()? / chosen.max(1) as f64)?;
    Ok((loss, margins, anchor))
}

/// The log-probabilities of `pairs` chosen answers and then of as many rejected ones, with their people's latents.
fn answers(
    latents: &Latents,
    rows: &Rows,
    z: &Tensor,
    embedding: &Tensor,
    pairs: usize,
) -> candle_core::Result<Tensor> {
    let logits = latents.adapt(rows, z)?.matmul(&embedding.t()?)?;
    let of_tokens = ops::token_log_probs(&logits, &rows.tokens)?;
    Tensor::zeros(2 * pairs, DType::F32, &Device::Cpu)?.index_add(&rows.answers, &of_tokens, 0)
}
