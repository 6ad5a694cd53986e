//! Rows as the kernels read them: flat arrays, indices in place of references.

use attune_guidance::{Candidates, MAX_CANDIDATES, RowError};

use super::Element;
use crate::select::{Edit, by_id};
use crate::{AttentionRow, AttentionShape, Chosen, FuseRow, SelectRow};

/// The status that a kernel gives a row.
fn outcome(status: u32) -> Result<(), RowError> {
    match status {
        0 => Ok(()),
        1 => Err(RowError::Logits),
        _ => Err(RowError::Reward),
    }
}

/// What `select` reads beside the logits, for `B` rows.
#[derive(Debug, Default)]
pub struct SelectInput {
    /// `k`, `[B]`.
    pub ks: Vec<u32>,
    /// Where each row's edits begin and the last one's end, `[B + 1]`; empty where no row has any.
    pub edit_start: Vec<u32>,
    /// The ids that edits change, ascending within a row.
    pub edit_ids: Vec<u32>,
    /// 0: penalty, 1: bias, 2: ban.
    pub edit_kinds: Vec<u32>,
    /// The penalty or the bias.
    pub edit_values: Vec<f32>,
}

impl SelectInput {
    /// Lays the rows out.
    pub fn new(rows: &[SelectRow<'_>]) -> Self {
        let mut input = Self::default();
        input.edit_start.push(0);
        for row in rows {
            input.ks.push(row.k.clamp(1, MAX_CANDIDATES) as u32);
            for (id, edit) in by_id(&row.edits) {
                let (kind, value) = match edit {
                    Edit::Penalty => (0, row.edits.penalty),
                    Edit::Bias(bias) => (1, bias),
                    Edit::Ban => (2, 0.0),
                };
                input.edit_ids.push(id);
                input.edit_kinds.push(kind);
                input.edit_values.push(value);
            }
            input.edit_start.push(input.edit_ids.len() as u32);
        }
        if input.edit_ids.is_empty() {
            input.edit_start.clear();
        }
        input
    }
}

/// How `select` cuts rows of `vocab` logits, so that `rows` of them keep `blocks` blocks busy: the
/// logits of a chunk, and the chunks of a row.
pub fn chunks(vocab: usize, rows: usize, blocks: usize) -> (usize, usize) {
    // As in `select.cu`.
    const TILE: usize = 4096;
    let tiles = vocab.div_ceil(TILE).max(1);
    let wanted = (blocks / rows.max(1)).clamp(1, tiles);
    let chunk = tiles.div_ceil(wanted) * TILE;
    (chunk, vocab.div_ceil(chunk).max(1))
}

/// What `select` writes for `B` rows; columns of 64.
#[derive(Debug, Default)]
pub struct SelectOutput {
    /// Ids, `[B, 64]`.
    pub ids: Vec<u32>,
    /// Edited logits, `[B, 64]`.
    pub logits: Vec<f32>,
    /// The model's logits, `[B, 64]`.
    pub raw_logits: Vec<f32>,
    /// Log-sum-exp of the edited and of the model's logits, `[B, 2]`.
    pub sums: Vec<f32>,
    /// Candidates of each row, `[B]`.
    pub counts: Vec<u32>,
    /// What became of each row, `[B]`.
    pub status: Vec<u32>,
}

impl SelectOutput {
    /// The rows' candidates, as the CPU form gives them.
    pub fn rows(&self) -> Vec<Result<Candidates, RowError>> {
        let row = |(i, &status): (usize, &u32)| {
            outcome(status)?;
            let columns = i * MAX_CANDIDATES..i * MAX_CANDIDATES + self.counts[i] as usize;
            Ok(Candidates {
                ids: self.ids[columns.clone()].to_vec(),
                logits: self.logits[columns.clone()].to_vec(),
                raw_logits: self.raw_logits[columns].to_vec(),
                log_sum_exp: self.sums[2 * i],
                raw_log_sum_exp: self.sums[2 * i + 1],
            })
        };
        self.status.iter().enumerate().map(row).collect()
    }
}

/// Lists of up to 64 ids in columns of 64, and their lengths.
pub fn id_columns<'a>(lists: impl IntoIterator<Item = &'a [u32]>) -> (Vec<u32>, Vec<u32>) {
    let (mut ids, mut counts) = (Vec::new(), Vec::new());
    for list in lists {
        push_columns(&mut ids, list, u32::MAX);
        counts.push(list.len().min(MAX_CANDIDATES) as u32);
    }
    (ids, counts)
}

fn push_columns<T: Copy>(columns: &mut Vec<T>, list: &[T], fill: T) {
    let list = &list[..list.len().min(MAX_CANDIDATES)];
    columns.extend_from_slice(list);
    columns.resize(columns.len() + MAX_CANDIDATES - list.len(), fill);
}

/// The values of `score`, `[B, 64]`, as the CPU form gives them.
pub fn score_rows(values: &[f32], counts: &[u32], status: &[u32]) -> Vec<Result<Vec<f32>, RowError>> {
    let row = |((values, &count), &status): ((&[f32], &u32), &u32)| {
        outcome(status).map(|()| values[..count as usize].to_vec())
    };
    values.chunks_exact(MAX_CANDIDATES).zip(counts).zip(status).map(row).collect()
}

/// What `fuse_sample` reads, for `B` rows and their `T` terms.
#[derive(Debug, Default)]
pub struct FuseInput {
    /// Ids, `[B, 64]`.
    pub ids: Vec<u32>,
    /// Edited logits, `[B, 64]`.
    pub logits: Vec<f32>,
    /// Candidates of each row, `[B]`.
    pub counts: Vec<u32>,
    /// Log-sum-exp of the edited and of the model's logits, `[B, 2]`.
    pub sums: Vec<f32>,
    /// Where each row's terms begin and the last one's end, `[B + 1]`.
    pub term_start: Vec<u32>,
    /// `[T]`.
    pub strengths: Vec<f32>,
    /// `[T]`; 0: none.
    pub clips: Vec<f32>,
    /// `[T, 64]`.
    pub rewards: Vec<f32>,
    /// `[B]`.
    pub min_ps: Vec<f32>,
    /// `[B]`.
    pub temperatures: Vec<f32>,
    /// `[B]`.
    pub top_ps: Vec<f32>,
    /// `[B]`.
    pub seeds: Vec<u64>,
    /// `[B]`.
    pub indices: Vec<u32>,
    /// Rows whose terms do not fit their candidates: the kernel runs them as rows without terms.
    refused: Vec<Option<RowError>>,
}

impl FuseInput {
    /// Lays the rows out.
    pub fn new(rows: &[FuseRow<'_>]) -> Self {
        let mut input = Self::default();
        input.term_start.push(0);
        for row in rows {
            let candidates = row.candidates;
            push_columns(&mut input.ids, &candidates.ids, u32::MAX);
            push_columns(&mut input.logits, &candidates.logits, f32::NEG_INFINITY);
            input.counts.push(candidates.len().min(MAX_CANDIDATES) as u32);
            input.sums.extend([candidates.log_sum_exp, candidates.raw_log_sum_exp]);
            let want = candidates.len();
            let wrong = row.terms.iter().map(|term| term.rewards.len()).find(|&got| got != want);
            input.refused.push(wrong.map(|got| RowError::Length { want, got }));
            for term in row.terms.iter().filter(|_| wrong.is_none()) {
                input.strengths.push(term.strength);
                input.clips.push(term.clip.unwrap_or(0.0));
                push_columns(&mut input.rewards, term.rewards, 0.0);
            }
            input.term_start.push(input.strengths.len() as u32);
            input.min_ps.push(row.min_p);
            input.temperatures.push(row.sampling.temperature);
            input.top_ps.push(row.sampling.top_p);
            input.seeds.push(row.sampling.seed);
            input.indices.push(row.sampling.index);
        }
        input
    }

    /// The choices, as the CPU form gives them, of what the kernel wrote: `chosen [B, 3]` index, id,
    /// unguided id; `log_probs [B, 2]` base and fused.
    pub fn rows(&self, chosen: &[u32], log_probs: &[f32], status: &[u32]) -> Vec<Result<Chosen, RowError>> {
        let row = |(i, &status): (usize, &u32)| {
            outcome(status)?;
            self.refused[i].map_or(Ok(()), Err)?;
            Ok(Chosen {
                index: chosen[3 * i] as usize,
                id: chosen[3 * i + 1],
                unguided_id: chosen[3 * i + 2],
                base_log_prob: log_probs[2 * i],
                fused_log_prob: log_probs[2 * i + 1],
            })
        };
        status.iter().enumerate().map(row).collect()
    }
}

/// What the attention kernels read beside the tensors, for `R` rows.
#[derive(Debug, Default)]
pub struct AttentionInput {
    /// `[R]`.
    pub positions: Vec<u32>,
    /// Where each row's block table begins in `tables`, `[R]`.
    pub table_start: Vec<u32>,
    /// The block tables of all sequences.
    pub tables: Vec<u32>,
    /// The rows that `paged_attention` computes.
    pub singles: Vec<u32>,
    /// Spans of the one of them with the most.
    pub spans: u32,
    /// What `chunk_attention` computes: the first row and the tokens of every tile.
    pub tiles: Vec<[u32; 2]>,
}

/// Positions that one block of `paged_attention` reads, as the source has it. Fixed, so that a row's bits do
/// not depend on the rows beside it.
const SPAN: usize = 256;

/// Query heads times tokens of a tile, as `chunk_attention.cu` has it.
const TILE_ROWS: usize = 64;

/// Fewer tokens of one sequence are not worth a tile.
const LEAST_CHUNK: usize = 8;

impl AttentionInput {
    /// Lays the rows out; neighbours of one sequence share their table, and are a chunk where there are tensor
    /// cores for `element`.
    pub fn new(rows: &[AttentionRow<'_>], shape: &AttentionShape, element: Element) -> Self {
        let mut input = Self { spans: 1, ..Self::default() };
        let mut rest = rows;
        while let Some(first) = rest.first() {
            let same = |row: &&AttentionRow<'_>| std::ptr::eq(row.blocks, first.blocks);
            let (own, others) = rest.split_at(rest.iter().take_while(same).count());
            rest = others;
            let start = input.tables.len() as u32;
            input.tables.extend_from_slice(first.blocks);
            input.table_start.extend(own.iter().map(|_| start));
            let row = input.positions.len();
            input.positions.extend(own.iter().map(|row| row.position as u32));
            let neighbours = own.windows(2).all(|pair| pair[1].position == pair[0].position + 1);
            let tokens = TILE_ROWS / (shape.heads / shape.kv_heads);
            if element.has_tensor_cores() && neighbours && own.len() >= LEAST_CHUNK && tokens > 0 {
                let tiles = (0..own.len()).step_by(tokens);
                let tile = |at: usize| [(row + at) as u32, tokens.min(own.len() - at) as u32];
                input.tiles.extend(tiles.map(tile));
            } else {
                input.singles.extend((row..row + own.len()).map(|row| row as u32));
                let spans = own.iter().map(|row| {
                    let seen = row.position + 1;
                    let first = shape.window.map_or(0, |window| seen.saturating_sub(window));
                    (row.position / SPAN - first / SPAN + 1) as u32
                });
                input.spans = spans.fold(input.spans, u32::max);
            }
        }
        // Those that read the most begin first.
        input.tiles.sort_by_key(|&[row, _]| std::cmp::Reverse(input.positions[row as usize]));
        input
    }
}
