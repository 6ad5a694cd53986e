//! Stage two of the PersRM: with the backbone frozen, the head that reads `w_p` off the preference's text.
//!
//! `w_p = W h + b`, with `h` the final hidden state at the last token of the text by itself, as the engine
//! computes it when it serves. The loss is stage one's, with `w_p` on the features of both models (PAD,
//! section 3.3): the log-softmax over the vocabulary of `E (w_p * h)`.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::Result;
use candle_core::{DType, Device, Tensor, Var};

use crate::batch::Encoded;
use crate::dpo::{PairBatch, margins_loss, told};
use crate::export::write_vars;
use crate::model::Llama;
use crate::tokenizer::PAD;
use crate::trainer::{Loss, Task};

/// The head: one linear layer.
#[derive(Debug, Clone)]
pub struct WeightHead {
    /// `weight` `[d, d]` and `bias` `[d]`.
    vars: BTreeMap<String, Var>,
}

impl WeightHead {
    /// A head that reads ones off every text.
    ///
    /// # Errors
    /// Only if memory cannot be had.
    pub fn fresh(d: usize) -> candle_core::Result<Self> {
        let weight = Var::zeros((d, d), DType::F32, &Device::Cpu)?;
        let bias = Var::ones(d, DType::F32, &Device::Cpu)?;
        Ok(Self { vars: BTreeMap::from([("weight".to_owned(), weight), ("bias".to_owned(), bias)]) })
    }

    /// What is trained, by name.
    pub fn vars(&self) -> &BTreeMap<String, Var> {
        &self.vars
    }

    /// `w_p` of texts with these hidden states, `[n, d]` to `[n, d]`.
    ///
    /// # Errors
    /// States of another width.
    pub fn weights(&self, hidden: &Tensor) -> candle_core::Result<Tensor> {
        hidden.matmul(&self.vars["weight"].t()?)?.broadcast_add(&self.vars["bias"])
    }

    /// Writes `weight_head.safetensors` (bf16) into a PersRM's folder.
    ///
    /// # Errors
    /// A file that cannot be written, named.
    pub fn write(&self, folder: &Path) -> Result<()> {
        write_vars(&folder.join("weight_head.safetensors"), &self.vars)
    }
}

/// A preference and the pair that shows it.
#[derive(Debug, Clone)]
pub struct Shown {
    /// The preference's text by itself, as ids; at least one.
    pub text: Vec<u32>,
    /// The better answer and the worse one, each after its prompt.
    pub pair: (Encoded, Encoded),
}

/// What `w_p` weighs on the side that is subtracted.
#[derive(Debug, Clone, Copy)]
pub enum Against<'a> {
    /// The features of the PersRM's own reference, as the policy's: reference MODEL.
    Weighted(&'a Llama),
    /// Nothing: the base model's log-probabilities as they are, reference GENERATOR.
    Plain(&'a Llama),
    /// There is none, reference NONE.
    Nothing,
}

impl Against<'_> {
    /// Its name, as the reference's on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Weighted(_) => "model",
            Self::Plain(_) => "generator",
            Self::Nothing => "none",
        }
    }
}

/// Pairs from which the head learns.
#[derive(Debug)]
pub struct HeadTask<'a> {
    head: &'a WeightHead,
    policy: &'a Llama,
    against: Against<'a>,
    data: Vec<(usize, (Encoded, Encoded))>,
    /// Hidden states of the texts, each once, `[texts, d]`.
    texts: Tensor,
    beta: f64,
}

impl<'a> HeadTask<'a> {
    /// Reads the texts with the frozen policy.
    ///
    /// # Errors
    /// Ids outside the vocabulary, or no data.
    pub fn new(
        head: &'a WeightHead,
        policy: &'a Llama,
        against: Against<'a>,
        shown: Vec<Shown>,
        beta: f64,
    ) -> Result<Self> {
        anyhow::ensure!(!shown.is_empty(), "no pair has a preference for the head to read");
        let mut numbers: HashMap<Vec<u32>, usize> = HashMap::new();
        let mut texts: Vec<Vec<u32>> = Vec::new();
        let mut data = Vec::with_capacity(shown.len());
        for Shown { text, pair } in shown {
            let number = *numbers.entry(text).or_insert_with_key(|text| {
                texts.push(text.clone());
                texts.len() - 1
            });
            data.push((number, pair));
        }
        Ok(Self { head, policy, against, data, texts: read(policy, &texts)?, beta })
    }

    /// Log-probability of each answer under a model whose features are weighted, `[2 * pairs]`.
    fn answers(
        &self,
        model: &Llama,
        pairs: &PairBatch,
        weights: Option<&Tensor>,
    ) -> candle_core::Result<Tensor> {
        let batch = pairs.batch();
        let mut features = model.hidden(&batch.tokens, true)?.index_select(&batch.at, 0)?;
        if let Some(weights) = weights {
            features = (features * weights.index_select(&batch.owners, 0)?)?;
        }
        pairs.by_answer(&model.next_log_probs(&features, &batch.targets, true)?)
    }
}

impl Task for HeadTask<'_> {
    fn lengths(&self) -> Vec<usize> {
        self.data.iter().map(|(_, (chosen, rejected))| chosen.ids.len().max(rejected.ids.len())).collect()
    }

    fn weight(&self, examples: &[usize]) -> usize {
        examples.len()
    }

    fn vars(&self) -> &BTreeMap<String, Var> {
        self.head.vars()
    }

    fn loss(&self, examples: &[usize]) -> candle_core::Result<Loss> {
        let pairs = PairBatch::new(&examples.iter().map(|&i| &self.data[i].1).collect::<Vec<_>>())?;
        let texts: Vec<u32> = examples.iter().map(|&i| self.data[i].0 as u32).collect();
        let texts = self.texts.index_select(&Tensor::new(texts, &Device::Cpu)?, 0)?;
        let weights = self.head.weights(&texts)?;
        // The chosen answers come first, the rejected ones after them in the same order.
        let weights = Tensor::cat(&[&weights, &weights], 0)?;
        let own = self.answers(self.policy, &pairs, Some(&weights))?;
        let reference = match self.against {
            Against::Weighted(reference) => Some(self.answers(reference, &pairs, Some(&weights))?),
            Against::Plain(reference) => Some(self.answers(reference, &pairs, None)?),
            Against::Nothing => None,
        };
        let (loss, margins, _) = margins_loss(&own, reference.as_ref(), &pairs, self.beta)?;
        told(&loss, &margins, loss.clone())
    }
}

/// The hidden state at the last token of each text, `[texts, d]`.
fn read(model: &Llama, texts: &[Vec<u32>]) -> candle_core::Result<Tensor> {
    const TOGETHER: usize = 64;
    let mut states = Vec::new();
    for texts in texts.chunks(TOGETHER) {
        let time = texts.iter().map(Vec::len).max().unwrap_or(0);
        let mut tokens = vec![PAD; texts.len() * time];
        let mut last = Vec::with_capacity(texts.len());
        for (row, text) in texts.iter().enumerate() {
            tokens[row * time..row * time + text.len()].copy_from_slice(text);
            last.push((row * time + text.len().max(1) - 1) as u32);
        }
        let tokens = Tensor::from_vec(tokens, (texts.len(), time), &Device::Cpu)?;
        states.push(model.hidden(&tokens, true)?.index_select(&Tensor::new(last, &Device::Cpu)?, 0)?);
    }
    Tensor::cat(&states, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dpo::tests::{slopes_are_finite_differences, tiny};

    fn shown() -> Vec<Shown> {
        let pair = |prompt: &[u32], chosen: &[u32], rejected: &[u32]| {
            (Encoded::new(prompt, chosen, 2), Encoded::new(prompt, rejected, 2))
        };
        vec![
            Shown { text: vec![5, 6, 7], pair: pair(&[1, 3, 9, 4], &[7, 8, 11], &[7, 12]) },
            Shown { text: vec![8], pair: pair(&[1, 5, 4], &[13], &[14, 15, 16, 17]) },
            Shown { text: vec![5, 6, 7], pair: pair(&[1, 5, 4], &[3, 3], &[9]) },
        ]
    }

    #[test]
    fn the_gradient_is_the_finite_difference_for_every_reference() {
        let (policy, reference) = (tiny(1), tiny(2));
        for against in [Against::Weighted(&reference), Against::Plain(&reference), Against::Nothing] {
            let head = WeightHead::fresh(16).unwrap();
            let task = HeadTask::new(&head, &policy, against, shown(), 0.5).unwrap();
            assert_eq!(task.texts.dims(), [2, 16], "a text that comes twice is read once");
            slopes_are_finite_differences(head.vars(), &|| task.loss(&[0, 1, 2]).unwrap().total);
        }
    }

    #[test]
    fn a_fresh_head_is_stage_one() {
        let (policy, reference) = (tiny(1), tiny(2));
        let head = WeightHead::fresh(16).unwrap();
        let task = HeadTask::new(&head, &policy, Against::Weighted(&reference), shown(), 0.5).unwrap();
        let pairs = shown();
        let batch = PairBatch::new(&pairs.iter().map(|one| &one.pair).collect::<Vec<_>>()).unwrap();
        let (want, ..) = crate::dpo::dpo_loss(&policy, &reference, &batch, 0.5).unwrap();
        let got = task.loss(&[0, 1, 2]).unwrap().shown;
        assert!((got - f64::from(want.to_scalar::<f32>().unwrap())).abs() < 1e-5);
    }

    #[test]
    fn a_text_is_read_alone_whatever_is_beside_it() {
        let model = tiny(3);
        let texts = [vec![4, 5, 6, 7], vec![9], vec![3, 2]];
        let together = read(&model, &texts).unwrap().to_vec2::<f32>().unwrap();
        for (text, got) in texts.iter().zip(together) {
            let alone = read(&model, std::slice::from_ref(text)).unwrap().to_vec2::<f32>().unwrap();
            assert!(got.iter().zip(&alone[0]).all(|(a, b)| (a - b).abs() < 1e-5));
        }
        assert!(
            HeadTask::new(&WeightHead::fresh(16).unwrap(), &model, Against::Nothing, vec![], 0.1).is_err()
        );
    }
}
