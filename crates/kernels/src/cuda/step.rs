//! Launches of what a decoding step needs beside the model: `select`, `score`, `fuse_sample`.
//!
//! Each is laid out once (its arrays are on the card), may be launched any number of times, and is read:
//! the one moment when the host waits.

use std::sync::Arc;

use attune_guidance::{Candidates, MAX_CANDIDATES, RowError};

use super::{
    Array, CudaError, Element, Gpu, Matrix, Program,
    matrix::{At, Results, Stored, Words, address, floats},
    pack::{FuseInput, SelectInput, SelectOutput, chunks, id_columns, score_rows},
};
use crate::{Chosen, FuseRow, SelectRow};

/// Blocks that keep a multiprocessor busy.
const BLOCKS_EACH: usize = 4;

/// The selection of candidates from a matrix of logits, laid out.
pub struct Select<'a> {
    gpu: &'a Gpu,
    logits: &'a Matrix,
    chunk: usize,
    parts: usize,
    input: Stored,
    ks: At,
    /// Beginnings, ids, kinds and values of edits, where there are any.
    edits: Option<[At; 4]>,
    part_keys: Array<u64>,
    part_sums: Array<f32>,
    done: Array<u32>,
    output: Results,
}

impl Gpu {
    /// Top-k and log-sum-exps of every row of `logits`, `[B, V]`, as [`crate::select`] gives them.
    ///
    /// # Errors
    /// The card failed, or its memory is full. What is wrong with a row stands in that row.
    pub fn select(
        &self,
        logits: &Matrix,
        rows: &[SelectRow<'_>],
    ) -> Result<Vec<Result<Candidates, RowError>>, CudaError> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let select = self.lay_out_select(logits, rows)?;
        select.launch()?;
        select.read()
    }

    /// Lays a selection out: a row for each of `logits`.
    ///
    /// # Errors
    /// As [`Gpu::select`].
    pub fn lay_out_select<'a>(
        &'a self,
        logits: &'a Matrix,
        rows: &[SelectRow<'_>],
    ) -> Result<Select<'a>, CudaError> {
        if rows.len() != logits.rows() {
            let problem = format!("{} rows of logits for {} selections", logits.rows(), rows.len());
            return Err(CudaError::Unsupported(problem));
        }
        let pack = SelectInput::new(rows);
        let mut words = Words::default();
        let ks = words.add(pack.ks.iter().copied());
        let edits = (!pack.edit_start.is_empty()).then(|| {
            [
                words.add(pack.edit_start.iter().copied()),
                words.add(pack.edit_ids.iter().copied()),
                words.add(pack.edit_kinds.iter().copied()),
                words.add_floats(&pack.edit_values),
            ]
        });
        let (chunk, parts) = chunks(logits.width(), rows.len(), BLOCKS_EACH * self.processors());
        let columns = rows.len() * MAX_CANDIDATES;
        Ok(Select {
            gpu: self,
            logits,
            chunk,
            parts,
            input: words.store(self)?,
            ks,
            edits,
            part_keys: self.room(columns * parts)?,
            part_sums: self.room(4 * rows.len() * parts)?,
            done: self.zeros(rows.len())?,
            output: Results::new(self, [columns, columns, columns, 2 * rows.len(), rows.len(), rows.len()])?,
        })
    }
}

impl Select<'_> {
    /// Hands the kernel over.
    ///
    /// # Errors
    /// As [`Gpu::select`].
    pub fn launch(&self) -> Result<(), CudaError> {
        let (gpu, stream) = (self.gpu, self.gpu.stream());
        let out = |i| self.output.at(i, gpu);
        let edit = |i: usize| self.edits.map_or(0, |edits| self.input.at(edits[i], gpu));
        gpu.launch(
            Program::Select(self.logits.element()),
            [self.parts, self.logits.rows(), 1],
            &[
                self.logits.at(stream),
                self.logits.width() as u64,
                self.logits.width() as u64,
                self.chunk as u64,
                self.input.at(self.ks, gpu),
                edit(0),
                edit(1),
                edit(2),
                edit(3),
                address(&self.part_keys, stream),
                address(&self.part_sums, stream),
                address(&self.done, stream),
                out(0),
                out(1),
                out(2),
                out(3),
                out(4),
                out(5),
            ],
        )
    }

    /// What the last launch found.
    ///
    /// # Errors
    /// As [`Gpu::select`].
    pub fn read(&self) -> Result<Vec<Result<Candidates, RowError>>, CudaError> {
        let [ids, logits, raw_logits, sums, counts, status] = self.output.read(self.gpu)?;
        let (logits, raw_logits, sums) = (floats(&logits), floats(&raw_logits), floats(&sums));
        Ok(SelectOutput { ids, logits, raw_logits, sums, counts, status }.rows())
    }
}

/// One row of a matrix on a card, such as a hidden state; it keeps the matrix.
#[derive(Clone)]
pub struct CardRow {
    matrix: Arc<Matrix>,
    row: usize,
}

impl CardRow {
    /// Every row of a matrix.
    pub fn all(matrix: Matrix) -> Vec<Self> {
        let matrix = Arc::new(matrix);
        (0..matrix.rows()).map(|row| Self { matrix: Arc::clone(&matrix), row }).collect()
    }

    /// The first row of a matrix.
    pub fn of(matrix: Matrix) -> Self {
        Self { matrix: Arc::new(matrix), row: 0 }
    }

    /// How its numbers are stored.
    pub fn element(&self) -> Element {
        self.matrix.element()
    }

    /// Its numbers.
    pub fn width(&self) -> usize {
        self.matrix.width()
    }

    fn at(&self, gpu: &Gpu) -> u64 {
        self.matrix.row_at(self.row, gpu.stream())
    }
}

/// One row of `score`.
#[derive(Clone, Copy)]
pub struct CardScore<'a> {
    /// `phi(h_theta)`, `[d]`.
    pub hidden: &'a CardRow,
    /// `phi(h_ref)`, `[d]`, for reference MODEL.
    pub reference: Option<&'a CardRow>,
    /// `w_p`, `[d]`; `None`: ones.
    pub weights: Option<&'a Array<f32>>,
    /// The candidates' ids.
    pub ids: &'a [u32],
    /// Log-sum-exp of policy and reference over the vocabulary; `None`: over the candidates.
    pub normalisers: Option<[f32; 2]>,
}

/// The values of candidates, laid out.
pub struct Score<'a> {
    gpu: &'a Gpu,
    heads: (&'a Matrix, &'a Matrix),
    rows: usize,
    counts: Vec<u32>,
    input: Stored,
    /// Hidden states, reference's hidden states, weights, normalisers, ids, counts.
    places: [At; 6],
    output: Results,
}

impl Gpu {
    /// The candidates' values under a reward model with these output embeddings, `[V, d]` each, as
    /// [`crate::score`] gives them; `heads.1` is the reference's, or the model's own where there is none.
    ///
    /// # Errors
    /// The card failed, or its memory is full. What is wrong with a row stands in that row.
    pub fn score(
        &self,
        heads: (&Matrix, &Matrix),
        rows: &[CardScore<'_>],
    ) -> Result<Vec<Result<Vec<f32>, RowError>>, CudaError> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let score = self.lay_out_score(heads, rows)?;
        score.launch()?;
        score.read()
    }

    /// Lays the rows out.
    ///
    /// # Errors
    /// As [`Gpu::score`].
    pub fn lay_out_score<'a>(
        &'a self,
        heads: (&'a Matrix, &'a Matrix),
        rows: &[CardScore<'_>],
    ) -> Result<Score<'a>, CudaError> {
        let (d, element) = (heads.0.width(), heads.0.element());
        let fits = |m: &Matrix| m.width() == d && m.element() == element;
        let hidden = rows.iter().flat_map(|r| [Some(r.hidden), r.reference]).flatten();
        if !fits(heads.1) || !hidden.into_iter().all(|h| fits(&h.matrix)) {
            let problem = "hidden states and output embeddings differ in width or number format";
            return Err(CudaError::Unsupported(problem.into()));
        }
        let (ids, counts) = id_columns(rows.iter().map(|row| row.ids));
        let mut words = Words::default();
        let normalisers = rows.iter().flat_map(|r| r.normalisers.unwrap_or([f32::NAN; 2]));
        let places = [
            words.add_longs(rows.iter().map(|r| r.hidden.at(self))),
            words.add_longs(rows.iter().map(|r| r.reference.map_or(0, |h| h.at(self)))),
            words.add_longs(rows.iter().map(|r| r.weights.map_or(0, |w| address(w, self.stream())))),
            words.add_floats(&normalisers.collect::<Vec<f32>>()),
            words.add(ids),
            words.add(counts.iter().copied()),
        ];
        let output = Results::new(self, [rows.len() * MAX_CANDIDATES, rows.len()])?;
        Ok(Score { gpu: self, heads, rows: rows.len(), counts, input: words.store(self)?, places, output })
    }

    /// The rows, each multiplied by its weights, as one matrix.
    ///
    /// # Errors
    /// As [`Gpu::score`].
    pub fn gather(
        &self,
        element: Element,
        width: usize,
        rows: &[(&CardRow, Option<&Array<f32>>)],
    ) -> Result<Matrix, CudaError> {
        let mut words = Words::default();
        let from = words.add_longs(rows.iter().map(|(row, _)| row.at(self)));
        let weights = rows.iter().map(|(_, w)| w.map_or(0, |w| address(w, self.stream())));
        let weights = words.add_longs(weights);
        let input = words.store(self)?;
        let out = self.matrix(element, rows.len(), width)?;
        self.launch(
            Program::CopyRows(element),
            [rows.len(), 1, 1],
            &[input.at(from, self), input.at(weights, self), width as u64, out.at(self.stream())],
        )?;
        Ok(out)
    }
}

impl Score<'_> {
    /// Hands the kernel over.
    ///
    /// # Errors
    /// As [`Gpu::score`].
    pub fn launch(&self) -> Result<(), CudaError> {
        let (gpu, stream) = (self.gpu, self.gpu.stream());
        let (head, reference) = self.heads;
        let [hidden, ref_hidden, weights, normalisers, ids, counts] =
            self.places.map(|at| self.input.at(at, gpu));
        gpu.launch(
            Program::Score(head.element()),
            [self.rows, 1, 1],
            &[
                head.at(stream),
                head.width() as u64,
                head.rows() as u64,
                head.width() as u64,
                reference.at(stream),
                reference.width() as u64,
                hidden,
                ref_hidden,
                weights,
                normalisers,
                ids,
                counts,
                self.output.at(0, gpu),
                self.output.at(1, gpu),
            ],
        )
    }

    /// The values that the last launch made.
    ///
    /// # Errors
    /// As [`Gpu::score`].
    pub fn read(&self) -> Result<Vec<Result<Vec<f32>, RowError>>, CudaError> {
        let [values, status] = self.output.read(self.gpu)?;
        Ok(score_rows(&floats(&values), &self.counts, &status))
    }
}

/// Fusions and choices, laid out.
pub struct FuseSample<'a> {
    gpu: &'a Gpu,
    pack: FuseInput,
    input: Stored,
    places: [At; 13],
    output: Results,
}

impl Gpu {
    /// Fuses and chooses, as [`crate::fuse_sample`] does; the same seeds draw the same tokens.
    ///
    /// # Errors
    /// The card failed, or its memory is full. What is wrong with a row stands in that row.
    pub fn fuse_sample(&self, rows: &[FuseRow<'_>]) -> Result<Vec<Result<Chosen, RowError>>, CudaError> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let fuse = self.lay_out_fuse_sample(rows)?;
        fuse.launch()?;
        fuse.read()
    }

    /// Lays the rows out.
    ///
    /// # Errors
    /// As [`Gpu::fuse_sample`].
    pub fn lay_out_fuse_sample(&self, rows: &[FuseRow<'_>]) -> Result<FuseSample<'_>, CudaError> {
        let pack = FuseInput::new(rows);
        let mut words = Words::default();
        let places = [
            words.add(pack.ids.iter().copied()),
            words.add_floats(&pack.logits),
            words.add(pack.counts.iter().copied()),
            words.add_floats(&pack.sums),
            words.add(pack.term_start.iter().copied()),
            words.add_floats(&pack.strengths),
            words.add_floats(&pack.clips),
            words.add_floats(&pack.rewards),
            words.add_floats(&pack.min_ps),
            words.add_floats(&pack.temperatures),
            words.add_floats(&pack.top_ps),
            words.add_longs(pack.seeds.iter().copied()),
            words.add(pack.indices.iter().copied()),
        ];
        let output = Results::new(self, [3 * rows.len(), 2 * rows.len(), rows.len()])?;
        Ok(FuseSample { gpu: self, pack, input: words.store(self)?, places, output })
    }
}

impl FuseSample<'_> {
    /// Hands the kernel over.
    ///
    /// # Errors
    /// As [`Gpu::fuse_sample`].
    pub fn launch(&self) -> Result<(), CudaError> {
        let gpu = self.gpu;
        let input = self.places.map(|at| self.input.at(at, gpu));
        let output = [0, 1, 2].map(|i| self.output.at(i, gpu));
        gpu.launch(Program::FuseSample, [self.pack.counts.len(), 1, 1], &[&input[..], &output].concat())
    }

    /// What the last launch chose.
    ///
    /// # Errors
    /// As [`Gpu::fuse_sample`].
    pub fn read(&self) -> Result<Vec<Result<Chosen, RowError>>, CudaError> {
        let [chosen, log_probs, status] = self.output.read(self.gpu)?;
        Ok(self.pack.rows(&chosen, &floats(&log_probs), &status))
    }
}
