//! Batched decoding for the measurements of the embedded pair: plain or guided, with a cache a row. It knows
//! the pair's own form alone, a Llama with tied embeddings; the services do not use it.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::model::{Llama, Variant};
use crate::ops::{dot, exp, rotate};
use crate::tokenizer::END;
use crate::world::dice::Dice;

/// A model that decodes many rows, each at its own position.
struct Decoder<'a> {
    model: &'a Llama,
    /// By layer, by row: keys and values so far, one position after another.
    cache: Vec<Vec<(Vec<f32>, Vec<f32>)>>,
}

impl<'a> Decoder<'a> {
    fn new(model: &'a Llama, rows: usize) -> Self {
        let cache = vec![vec![(Vec::new(), Vec::new()); rows]; model.config().num_hidden_layers];
        Self { model, cache }
    }

    fn weight(&self, part: &str) -> Result<Tensor> {
        match self.model.vars().get(&format!("{part}.weight")) {
            Some(var) => Ok(var.as_detached_tensor()),
            None => candle_core::bail!("the weights lack {part}"),
        }
    }

    /// Feeds one token to each of `rows`; logits `[rows, vocabulary]` of what comes next.
    fn feed(&mut self, rows: &[usize], tokens: &[u32]) -> Result<Vec<Vec<f32>>> {
        let config = self.model.config().clone();
        let (n, d, head) = (rows.len(), config.hidden_size, config.head());
        let (kv, frequencies) = (config.num_key_value_heads * head, config.frequencies());
        let norm = |x: &Tensor, weight: &Tensor| crate::ops::rms_norm(x, weight, config.rms_norm_eps);
        let embedding = self.weight("model.embed_tokens")?;
        let ids = Tensor::new(tokens, embedding.device())?;
        let mut x = embedding.index_select(&ids, 0)?;
        for layer in 0..config.num_hidden_layers {
            let weight = |part: &str| self.weight(&format!("model.layers.{layer}.{part}"));
            let linear = |x: &Tensor, part: &str| x.matmul(&weight(part)?.t()?);
            let normed = norm(&x, &weight("input_layernorm")?)?;
            let values = |part: &str| linear(&normed, part)?.flatten_all()?.to_vec1::<f32>();
            let (mut q, mut k, v) =
                (values("self_attn.q_proj")?, values("self_attn.k_proj")?, values("self_attn.v_proj")?);
            let mut mixed = vec![0f32; q.len()];
            // Each row's cache is taken out and put back, so that rows can go side by side.
            let mut taken: Vec<_> =
                rows.iter().map(|row| std::mem::take(&mut self.cache[layer][*row])).collect();
            let heads = q.par_chunks_mut(d).zip(k.par_chunks_mut(kv)).zip(v.par_chunks(kv));
            heads.zip(mixed.par_chunks_mut(d)).zip(taken.par_iter_mut()).for_each(
                |((((q, k), v), mixed), (keys, values))| {
                    let position = keys.len() / kv;
                    rotate(q, head, &frequencies, position, 1.0);
                    rotate(k, head, &frequencies, position, 1.0);
                    keys.extend_from_slice(k);
                    values.extend_from_slice(v);
                    attend(q, keys, values, head, kv, mixed);
                },
            );
            for (row, cache) in rows.iter().zip(taken) {
                self.cache[layer][*row] = cache;
            }
            let weight = |part: &str| self.weight(&format!("model.layers.{layer}.{part}"));
            let linear = |x: &Tensor, part: &str| x.matmul(&weight(part)?.t()?);
            x = (x + linear(&Tensor::from_vec(mixed, (n, d), ids.device())?, "self_attn.o_proj")?)?;
            let normed = norm(&x, &weight("post_attention_layernorm")?)?;
            let gated =
                crate::ops::swiglu(&linear(&normed, "mlp.gate_proj")?, &linear(&normed, "mlp.up_proj")?)?;
            x = (x + linear(&gated, "mlp.down_proj")?)?;
        }
        norm(&x, &self.weight("model.norm")?)?.matmul(&embedding.t()?)?.to_vec2::<f32>()
    }

    /// Feeds whole prompts; logits after each one's last token.
    fn prefill(&mut self, prompts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>> {
        let mut last = vec![Vec::new(); prompts.len()];
        for position in 0..prompts.iter().map(Vec::len).max().unwrap_or(0) {
            let rows: Vec<usize> = (0..prompts.len()).filter(|row| prompts[*row].len() > position).collect();
            let tokens: Vec<u32> = rows.iter().map(|row| prompts[*row][position]).collect();
            let logits = self.feed(&rows, &tokens)?;
            for (row, logits) in rows.into_iter().zip(logits) {
                if position + 1 == prompts[row].len() {
                    last[row] = logits;
                }
            }
        }
        Ok(last)
    }
}

/// One query row over one sequence's cache.
fn attend(q: &[f32], keys: &[f32], values: &[f32], head: usize, kv: usize, out: &mut [f32]) {
    let group = q.len() / kv;
    let scale = 1.0 / (head as f32).sqrt();
    for (h, (query, out)) in q.chunks_exact(head).zip(out.chunks_exact_mut(head)).enumerate() {
        let at = h / group * head;
        let scores: Vec<f32> =
            keys.chunks_exact(kv).map(|key| dot(query, &key[at..at + head]) * scale).collect();
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f32> = scores.iter().map(|score| exp(score - max)).collect();
        let sum: f32 = weights.iter().sum();
        for (weight, value) in weights.iter().zip(values.chunks_exact(kv)) {
            for (out, value) in out.iter_mut().zip(&value[at..at + head]) {
                *out += weight / sum * value;
            }
        }
    }
}

/// The PersRM that guides, and what it reads.
#[derive(Debug)]
pub struct Guide<'a> {
    /// The personalised reward model.
    pub persrm: &'a Llama,
    /// Its weights before training.
    pub reference: &'a Llama,
    /// Its prompts, with the preference in them, one a row.
    pub prompts: &'a [Vec<u32>],
    /// Multiplies the reward.
    pub strength: f64,
}

/// How to decode.
#[derive(Debug, Clone, Copy)]
pub struct DecodeOptions {
    /// 0 is greedy.
    pub temperature: f64,
    /// Candidates a step: the highest base logits.
    pub candidates: usize,
    /// Longest answer.
    pub max_tokens: usize,
    /// Chance.
    pub seed: u64,
}

/// Answers to `prompts`, without their end tokens. Guided by the rule of the design: base log-probability plus
/// strength times (log-softmax over the candidates of the PersRM less that of its reference).
///
/// # Errors
/// Ids outside the vocabulary.
pub fn generate(
    base: &Llama,
    prompts: &[Vec<u32>],
    guide: Option<&Guide<'_>>,
    options: DecodeOptions,
) -> Result<Vec<Vec<u32>>> {
    if base.config().variant != Variant::default() {
        candle_core::bail!("only a Llama with tied embeddings is decoded here");
    }
    let mut decoder = Decoder::new(base, prompts.len());
    let mut logits = decoder.prefill(prompts)?;
    let mut guides = match guide {
        None => None,
        Some(guide) => {
            let (mut own, mut reference) =
                (Decoder::new(guide.persrm, prompts.len()), Decoder::new(guide.reference, prompts.len()));
            let rows = (own.prefill(guide.prompts)?, reference.prefill(guide.prompts)?);
            Some((own, reference, rows, guide.strength))
        }
    };
    let mut dice: Vec<Dice> =
        (0..prompts.len()).map(|row| Dice::new(options.seed, 1000 + row as u64)).collect();
    let mut answers = vec![Vec::new(); prompts.len()];
    let mut running: Vec<usize> = (0..prompts.len()).collect();
    for _ in 0..options.max_tokens {
        let mut tokens = Vec::with_capacity(running.len());
        for row in &running {
            let candidates = top(&logits[*row], options.candidates);
            let mut scores = log_softmax(&candidates, &logits[*row]);
            if let Some((_, _, (own, reference), strength)) = &guides {
                let (own, reference) =
                    (log_softmax(&candidates, &own[*row]), log_softmax(&candidates, &reference[*row]));
                for (score, (own, reference)) in scores.iter_mut().zip(own.iter().zip(reference)) {
                    *score += strength * (own - reference);
                }
            }
            tokens.push(candidates[choose(&candidates, &scores, options.temperature, &mut dice[*row])]);
        }
        let kept: Vec<(usize, u32)> =
            running.iter().copied().zip(tokens).filter(|(_, token)| *token != END).collect();
        for (row, token) in &kept {
            answers[*row].push(*token);
        }
        let tokens: Vec<u32> = kept.iter().map(|(_, token)| *token).collect();
        running = kept.into_iter().map(|(row, _)| row).collect();
        if running.is_empty() {
            break;
        }
        scatter(&mut logits, &running, decoder.feed(&running, &tokens)?);
        if let Some((own, reference, rows, _)) = &mut guides {
            scatter(&mut rows.0, &running, own.feed(&running, &tokens)?);
            scatter(&mut rows.1, &running, reference.feed(&running, &tokens)?);
        }
    }
    Ok(answers)
}

fn scatter(all: &mut [Vec<f32>], rows: &[usize], new: Vec<Vec<f32>>) {
    for (row, logits) in rows.iter().zip(new) {
        all[*row] = logits;
    }
}

/// Ids of the `count` highest logits; of equal ones the lower id.
fn top(logits: &[f32], count: usize) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let order = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let count = count.min(ids.len());
    if count < ids.len() {
        ids.select_nth_unstable_by(count, order);
        ids.truncate(count);
    }
    ids.sort_unstable_by(order);
    ids
}

/// Log-softmax of `logits` over `candidates`.
fn log_softmax(candidates: &[u32], logits: &[f32]) -> Vec<f64> {
    let values: Vec<f64> = candidates.iter().map(|id| f64::from(logits[*id as usize])).collect();
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum = values.iter().map(|value| (value - max).exp()).sum::<f64>().ln() + max;
    values.into_iter().map(|value| value - sum).collect()
}

/// Index of the chosen candidate.
fn choose(candidates: &[u32], scores: &[f64], temperature: f64, dice: &mut Dice) -> usize {
    let best = (0..scores.len()).reduce(|a, b| {
        match scores[b].total_cmp(&scores[a]).then(candidates[a].cmp(&candidates[b])) {
            std::cmp::Ordering::Greater => b,
            _ => a,
        }
    });
    let best = best.unwrap_or(0);
    if temperature == 0.0 {
        return best;
    }
    let weights: Vec<f64> = scores.iter().map(|score| ((score - scores[best]) / temperature).exp()).collect();
    dice.weighted(&weights)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::model::ModelConfig;

    fn model(seed: u64) -> Llama {
        let config = ModelConfig {
            vocab_size: 31,
            hidden_size: 16,
            intermediate_size: 24,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            max_position_embeddings: 64,
            rms_norm_eps: 1e-5,
            rope_theta: 100.0,
            variant: Variant::default(),
        };
        Llama::fresh(config, seed).unwrap()
    }

    #[test]
    fn the_cached_forward_is_the_training_forward() {
        let model = model(1);
        let prompts = [vec![1u32, 9, 8, 7, 6], vec![1, 5, 30]];
        let logits = Decoder::new(&model, 2).prefill(&prompts).unwrap();
        for (prompt, got) in prompts.iter().zip(logits) {
            let tokens = Tensor::new(prompt.as_slice(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
            let at = Tensor::new(&[prompt.len() as u32 - 1], &Device::Cpu).unwrap();
            let hidden = model.hidden(&tokens, true).unwrap().index_select(&at, 0).unwrap();
            let embedding = model.vars()["model.embed_tokens.weight"].as_detached_tensor();
            let want = hidden.matmul(&embedding.t().unwrap()).unwrap().to_vec2::<f32>().unwrap();
            for (got, want) in got.iter().zip(&want[0]) {
                assert!((got - want).abs() < 1e-4, "{got} {want}");
            }
        }
    }

    #[test]
    fn a_guide_that_is_its_reference_changes_nothing() {
        let (base, other) = (model(1), model(2));
        let prompts = vec![vec![1u32, 9, 8], vec![1, 4]];
        for temperature in [0.0, 1.0] {
            let options = DecodeOptions { temperature, candidates: 10, max_tokens: 12, seed: 5 };
            let guide = Guide { persrm: &other, reference: &other, prompts: &prompts, strength: 3.0 };
            let plain = generate(&base, &prompts, None, options).unwrap();
            assert_eq!(plain, generate(&base, &prompts, Some(&guide), options).unwrap());
        }
    }
}
