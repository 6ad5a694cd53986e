//! Encoded texts and the right-padded batches they are trained in.

use candle_core::{Device, Result, Tensor};

use crate::tokenizer::PAD;

/// A prompt and its answer as ids; the answer's are the ones to predict.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// All ids, the answer's end token last.
    pub ids: Vec<u32>,
    /// Where the answer begins; at least 1.
    pub answer: usize,
}

impl Encoded {
    /// Joins a prompt's ids and an answer's (without its end token).
    pub fn new(prompt: &[u32], answer: &[u32], end: u32) -> Self {
        let mut ids = prompt.to_vec();
        ids.extend_from_slice(answer);
        ids.push(end);
        Self { ids, answer: prompt.len() }
    }
}

/// Texts of one forward pass: every answer token is a target.
#[derive(Debug)]
pub struct Batch {
    /// `[batch, time]`.
    pub tokens: Tensor,
    /// Positions in the flattened tokens whose next token is to be predicted, `[n]`.
    pub at: Tensor,
    /// Those next tokens, `[n]`.
    pub targets: Tensor,
    /// Which text each target belongs to, `[n]`.
    pub owners: Tensor,
    /// How many targets, `n`.
    pub count: usize,
}

impl Batch {
    /// Pads `texts` to the longest.
    ///
    /// # Errors
    /// Only if memory cannot be had.
    pub fn new(texts: &[&Encoded]) -> Result<Self> {
        // The last id is a target only, never an input.
        let time = texts.iter().map(|text| text.ids.len() - 1).max().unwrap_or(0);
        let mut tokens = vec![PAD; texts.len() * time];
        let (mut at, mut targets, mut owners) = (Vec::new(), Vec::new(), Vec::new());
        for (row, text) in texts.iter().enumerate() {
            let inputs = &text.ids[..text.ids.len() - 1];
            tokens[row * time..row * time + inputs.len()].copy_from_slice(inputs);
            for position in text.answer..text.ids.len() {
                at.push((row * time + position - 1) as u32);
                targets.push(text.ids[position]);
                owners.push(row as u32);
            }
        }
        let count = targets.len();
        let vector = |values: Vec<u32>| Tensor::from_vec(values, count, &Device::Cpu);
        Ok(Self {
            tokens: Tensor::from_vec(tokens, (texts.len(), time), &Device::Cpu)?,
            at: vector(at)?,
            targets: vector(targets)?,
            owners: vector(owners)?,
            count,
        })
    }
}

/// Indices of `lengths` in batches of `size`, texts of like length together, so that little is padding.
/// Lengths are sorted within windows of many batches only, and the batches of a window come in random order.
pub fn bucketed(lengths: &[usize], size: usize, dice: &mut crate::world::dice::Dice) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    dice.shuffle(&mut order);
    let mut batches = Vec::new();
    for window in order.chunks_mut(size * 24) {
        window.sort_by_key(|index| lengths[*index]);
        let mut of_window: Vec<Vec<usize>> = window.chunks(size).map(<[usize]>::to_vec).collect();
        dice.shuffle(&mut of_window);
        batches.extend(of_window);
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::dice::Dice;

    #[test]
    fn targets_are_the_answers_tokens() {
        let texts = [Encoded::new(&[1, 3, 9, 2, 4], &[7, 8], 2), Encoded::new(&[1, 4], &[5], 2)];
        let batch = Batch::new(&[&texts[0], &texts[1]]).unwrap();
        assert_eq!(batch.tokens.to_vec2::<u32>().unwrap(), [[1, 3, 9, 2, 4, 7, 8], [1, 4, 5, 0, 0, 0, 0]]);
        assert_eq!(batch.targets.to_vec1::<u32>().unwrap(), [7, 8, 2, 5, 2]);
        assert_eq!(batch.at.to_vec1::<u32>().unwrap(), [4, 5, 6, 8, 9]);
        assert_eq!(batch.owners.to_vec1::<u32>().unwrap(), [0, 0, 0, 1, 1]);
    }

    #[test]
    fn every_text_is_in_one_batch() {
        let lengths: Vec<usize> = (0..1000).map(|index| index * 37 % 101).collect();
        let batches = bucketed(&lengths, 16, &mut Dice::new(1, 1));
        let mut seen: Vec<usize> = batches.concat();
        seen.sort_unstable();
        assert_eq!(seen, (0..1000).collect::<Vec<_>>());
    }
}
