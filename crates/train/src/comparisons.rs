//! People's comparisons of answers, read once by a frozen model: what is trained on top sees rows of numbers.

use anyhow::Result;
use candle_core::{Device, Tensor};
use tokenizers::Tokenizer;

use crate::batch::{Batch, Encoded};
use crate::model::Llama;
use crate::ops;
use crate::tokenizer::{END, encode, encode_prompt};
use crate::world::Pair;

/// Answers of one forward pass of the frozen backbone.
const READ: usize = 32;

/// Rows of one side of a step: hidden states, tokens, and whose each row is.
pub(crate) struct Rows {
    /// `[n, d]`.
    pub(crate) hidden: Tensor,
    /// `[n]`.
    pub(crate) tokens: Tensor,
    /// By row: the person, `[n]`.
    pub(crate) people: Tensor,
    /// By row: 1 of a chosen answer, -1 of a rejected one, `[n, 1]`.
    pub(crate) signs: Tensor,
    /// By row: the answer, the chosen ones first, `[n]`.
    pub(crate) answers: Tensor,
}

/// An answer that the backbone has read.
pub(crate) struct Read {
    /// Row-major, `[tokens, d]`.
    pub(crate) hidden: Vec<f32>,
    pub(crate) tokens: Vec<u32>,
    /// Log-probability without a latent, in nats.
    pub(crate) log_prob: f64,
}

/// A person's comparisons: the chosen and the rejected answer of each.
pub(crate) type Person = Vec<(Read, Read)>;

/// The rows of comparisons, each with the place of its person.
pub(crate) fn rows(pairs: &[(usize, &(Read, Read))]) -> candle_core::Result<Rows> {
    let (mut hidden, mut tokens, mut people) = (Vec::new(), Vec::new(), Vec::new());
    let (mut signs, mut answers) = (Vec::new(), Vec::new());
    for (side, sign) in [(0, 1.0f32), (1, -1.0)] {
        for (index, (person, pair)) in pairs.iter().enumerate() {
            let read = if side == 0 { &pair.0 } else { &pair.1 };
            let n = read.tokens.len();
            hidden.extend_from_slice(&read.hidden);
            tokens.extend_from_slice(&read.tokens);
            people.extend(std::iter::repeat_n(*person as u32, n));
            signs.extend(std::iter::repeat_n(sign, n));
            answers.extend(std::iter::repeat_n((side * pairs.len() + index) as u32, n));
        }
    }
    let n = tokens.len();
    let d = hidden.len() / n.max(1);
    let cpu = &Device::Cpu;
    Ok(Rows {
        hidden: Tensor::from_vec(hidden, (n, d), cpu)?,
        tokens: Tensor::from_vec(tokens, n, cpu)?,
        people: Tensor::from_vec(people, n, cpu)?,
        signs: Tensor::from_vec(signs, (n, 1), cpu)?,
        answers: Tensor::from_vec(answers, n, cpu)?,
    })
}

/// Reads a person's comparisons with the frozen backbone, without a preference in the prompt.
pub(crate) fn read(persrm: &Llama, tokenizer: &Tokenizer, said: &[Pair]) -> Result<Person> {
    let mut texts = Vec::with_capacity(2 * said.len());
    for pair in said {
        let prompt = encode_prompt(tokenizer, &pair.prompt, None)?;
        for answer in [&pair.chosen, &pair.rejected] {
            texts.push(Encoded::new(&prompt, &encode(tokenizer, answer)?, END));
        }
    }
    let embedding = persrm.output(true)?;
    let mut reads = Vec::with_capacity(texts.len());
    for chunk in texts.chunks(READ) {
        let batch = Batch::new(&chunk.iter().collect::<Vec<_>>())?;
        let hidden = persrm.hidden(&batch.tokens, true)?.index_select(&batch.at, 0)?;
        let log_probs =
            ops::token_log_probs(&hidden.matmul(&embedding.t()?)?, &batch.targets)?.to_vec1::<f32>()?;
        let hidden = hidden.to_vec2::<f32>()?;
        let mut of_chunk: Vec<Read> = chunk
            .iter()
            .map(|text| Read { hidden: Vec::new(), tokens: text.ids[text.answer..].to_vec(), log_prob: 0.0 })
            .collect();
        for ((owner, row), log_prob) in batch.owners.to_vec1::<u32>()?.into_iter().zip(hidden).zip(log_probs)
        {
            let read = &mut of_chunk[owner as usize];
            read.hidden.extend(row);
            read.log_prob += f64::from(log_prob);
        }
        reads.extend(of_chunk);
    }
    let mut reads = reads.into_iter();
    Ok(std::iter::from_fn(|| Some((reads.next()?, reads.next()?))).collect())
}
