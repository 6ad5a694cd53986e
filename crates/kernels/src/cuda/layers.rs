//! What a decoder's layers are made of, on a card: products by cuBLAS, the rest by our kernels.
//!
//! The residual stream and what a product gives are in single precision; what a product reads, and the
//! cache, in the format of the model. Nothing here waits for the card.

use super::{
    Array, CudaError, Element, Gpu, HeadSize, Matrix, Program,
    blas::Product,
    matrix::{At, Stored, Words, address},
    pack::AttentionInput,
};
use crate::{AttentionRow, AttentionShape};

/// A linear layer's weights, `[n_out, n_in]`, and bias, `[n_out]`.
pub struct CardLinear {
    /// The matrix.
    pub weight: Matrix,
    /// The bias, where there is one.
    pub bias: Option<Array<f32>>,
}

/// Where the rows of a forward pass stand, on the card.
pub struct Pass {
    rows: usize,
    outputs: usize,
    input: Stored,
    tokens: At,
    positions: At,
    slots: At,
    output_rows: At,
    table_start: At,
    tables: At,
    /// The rows that attend one by one, how many they are, and the spans of the one with the most.
    singles: (At, usize, usize),
    /// The tiles of chunks, and how many they are.
    tiles: (At, usize),
    /// What spans of attention leave to one another; a layer leaves it as it was.
    parts: Array<f32>,
    done: Array<u32>,
}

/// What [`Gpu::pass`] lays out.
#[derive(Debug, Clone, Copy)]
pub struct PassRows<'a> {
    /// Each row's token.
    pub tokens: &'a [u32],
    /// Each row's position, and its sequence's blocks.
    pub rows: &'a [AttentionRow<'a>],
    /// Each row's place in the cache.
    pub slots: &'a [usize],
    /// The rows whose hidden states are wanted.
    pub outputs: &'a [u32],
}

/// What turns queries and keys by their position.
pub struct CardRope {
    /// `[context, head_dim / 2]`.
    pub cos: Array<f32>,
    /// `[context, head_dim / 2]`.
    pub sin: Array<f32>,
}

impl Gpu {
    /// Lays a pass out for a model with these heads and this number format.
    ///
    /// # Errors
    /// The card's memory is full.
    pub fn pass(
        &self,
        pass: &PassRows<'_>,
        shape: &AttentionShape,
        element: Element,
    ) -> Result<Pass, CudaError> {
        // A window makes rows need fewer spans, never more, and some layers may have none.
        let attention = AttentionInput::new(pass.rows, &AttentionShape { window: None, ..*shape }, element);
        let (singles, spans) = (attention.singles.len(), attention.spans as usize);
        let tiles = attention.tiles.len();
        let mut words = Words::default();
        let tokens = words.add(pass.tokens.iter().copied());
        let positions = words.add(attention.positions);
        let slots = words.add(pass.slots.iter().map(|&slot| slot as u32));
        let output_rows = words.add(pass.outputs.iter().copied());
        let table_start = words.add(attention.table_start);
        let tables = words.add(attention.tables);
        let single_rows = words.add(attention.singles);
        let tiled = words.add(attention.tiles.into_iter().flatten());
        let rows = pass.rows.len();
        let part = if spans > 1 { singles * shape.heads * spans * (shape.head_dim + 2) } else { 0 };
        Ok(Pass {
            rows,
            outputs: pass.outputs.len(),
            singles: (single_rows, singles, spans),
            tiles: (tiled, tiles),
            input: words.store(self)?,
            tokens,
            positions,
            slots,
            output_rows,
            table_start,
            tables,
            parts: self.room(part)?,
            done: self.zeros(singles * shape.kv_heads)?,
        })
    }

    /// The embeddings of a pass's tokens, `[rows, d]`, in single precision. Every token must lie within the
    /// table.
    ///
    /// # Errors
    /// The card failed, or its memory is full.
    pub fn embed(&self, table: &Matrix, pass: &Pass) -> Result<Matrix, CudaError> {
        let out = self.matrix(Element::F32, pass.rows, table.width())?;
        let tokens = pass.input.at(pass.tokens, self);
        self.launch(
            Program::Embed(table.element()),
            [pass.rows, 1, 1],
            &[table.at(self.stream()), tokens, table.width() as u64, out.at(self.stream())],
        )?;
        Ok(out)
    }

    /// The root-mean-square norm of `x`, `[rows, d]` in single precision, as `element`: of all rows, or of
    /// those that a pass gives out.
    ///
    /// # Errors
    /// As [`Gpu::embed`].
    pub fn rms_norm(
        &self,
        x: &Matrix,
        weight: &Array<f32>,
        eps: f32,
        outputs: Option<&Pass>,
        element: Element,
    ) -> Result<Matrix, CudaError> {
        let (rows, chosen) = outputs.map_or((x.rows(), 0), |p| (p.outputs, p.input.at(p.output_rows, self)));
        let out = self.matrix(element, rows, x.width())?;
        self.launch(
            Program::RmsNorm(element),
            [rows, 1, 1],
            &[
                x.at(self.stream()),
                chosen,
                address(weight, self.stream()),
                x.width() as u64,
                u64::from(eps.to_bits()),
                out.at(self.stream()),
            ],
        )?;
        Ok(out)
    }

    /// `x w^T + b`, as `out`: the format of `x`, or single precision.
    ///
    /// # Errors
    /// As [`Gpu::embed`].
    pub fn linear(&self, x: &Matrix, linear: &CardLinear, out: Element) -> Result<Matrix, CudaError> {
        let mut y = self.product(x, &linear.weight, out)?;
        self.add_bias(&mut y, linear)?;
        Ok(y)
    }

    /// `x w^T`, as `out`.
    ///
    /// # Errors
    /// As [`Gpu::embed`].
    pub fn product(&self, x: &Matrix, weight: &Matrix, out: Element) -> Result<Matrix, CudaError> {
        let y = self.matrix(out, x.rows(), weight.rows())?;
        self.multiply(x, weight, &y, false)?;
        Ok(y)
    }

    /// `sum + x w^T + b`, in place; `sum` is in single precision.
    ///
    /// # Errors
    /// As [`Gpu::embed`].
    pub fn linear_add(&self, x: &Matrix, linear: &CardLinear, sum: &mut Matrix) -> Result<(), CudaError> {
        self.multiply(x, &linear.weight, sum, true)?;
        self.add_bias(sum, linear)
    }

    fn multiply(&self, x: &Matrix, weight: &Matrix, y: &Matrix, add: bool) -> Result<(), CudaError> {
        let fits = x.width() == weight.width() && x.element() == weight.element();
        if !fits || (y.rows(), y.width()) != (x.rows(), weight.rows()) {
            return Err(CudaError::Unsupported("the matrices of a product do not fit each other".into()));
        }
        if x.rows() == 0 {
            return Ok(());
        }
        let shape = Product {
            rows: x.rows(),
            n_in: x.width(),
            n_out: weight.rows(),
            element: x.element(),
            out: y.element(),
            add,
        };
        let stream = self.stream();
        self.blas().product(shape, x.at(stream), weight.at(stream), y.at(stream))
    }

    fn add_bias(&self, y: &mut Matrix, linear: &CardLinear) -> Result<(), CudaError> {
        let Some(bias) = &linear.bias else { return Ok(()) };
        let program = Program::AddBias(y.element());
        let columns = y.width().div_ceil(program.threads() as usize);
        let arguments = [y.at(self.stream()), address(bias, self.stream()), y.width() as u64];
        self.launch(program, [y.rows(), columns, 1], &arguments)
    }

    /// `silu(gate) * up` of `[rows, 2 n]` in single precision, the gate first, as `element`.
    ///
    /// # Errors
    /// As [`Gpu::embed`].
    pub fn silu_gate(&self, gate_up: &Matrix, element: Element) -> Result<Matrix, CudaError> {
        let n = gate_up.width() / 2;
        let out = self.matrix(element, gate_up.rows(), n)?;
        let program = Program::SiluGate(element);
        // A thread has eight numbers.
        let columns = n.div_ceil(8 * program.threads() as usize);
        let arguments = [gate_up.at(self.stream()), n as u64, out.at(self.stream())];
        self.launch(program, [gate_up.rows(), columns, 1], &arguments)?;
        Ok(out)
    }

    /// Adds the bias to `qkv`, `[rows, (heads + 2 kv_heads) * head_dim]` in single precision, normalises its
    /// heads where `norms` has weights (`[head_dim]` each) and an epsilon, turns queries and keys, and stores
    /// keys and values in the cache. Gives the queries, `[rows, heads * head_dim]`.
    ///
    /// # Errors
    /// As [`Gpu::embed`].
    #[allow(clippy::too_many_arguments)]
    pub fn rotate(
        &self,
        qkv: &Matrix,
        bias: Option<&Array<f32>>,
        norms: Option<(&Array<f32>, &Array<f32>, f32)>,
        rope: &CardRope,
        shape: &AttentionShape,
        pass: &Pass,
        cache: (&Matrix, &Matrix),
    ) -> Result<Matrix, CudaError> {
        let (stream, element) = (self.stream(), cache.0.element());
        let q = self.matrix(element, pass.rows, shape.heads * shape.head_dim)?;
        let program = Program::Rotate(element);
        let warps = program.threads() as usize / 32;
        let groups = (shape.heads + 2 * shape.kv_heads).div_ceil(warps);
        let at = |array: Option<&Array<f32>>| array.map_or(0, |a| address(a, stream));
        self.launch(
            program,
            [pass.rows, groups, 1],
            &[
                qkv.at(stream),
                at(bias),
                shape.heads as u64,
                shape.kv_heads as u64,
                shape.head_dim as u64,
                pass.input.at(pass.positions, self),
                pass.input.at(pass.slots, self),
                address(&rope.cos, stream),
                address(&rope.sin, stream),
                at(norms.map(|n| n.0)),
                at(norms.map(|n| n.1)),
                u64::from(norms.map_or(0.0, |n| n.2).to_bits()),
                q.at(stream),
                cache.0.at(stream),
                cache.1.at(stream),
            ],
        )?;
        Ok(q)
    }

    /// Attends from the queries, `[rows, heads * head_dim]`, over a layer's cache.
    ///
    /// # Errors
    /// No kernel takes heads of this size; else as [`Gpu::embed`].
    pub fn attend(
        &self,
        q: &Matrix,
        cache: (&Matrix, &Matrix),
        shape: &AttentionShape,
        pass: &Pass,
    ) -> Result<Matrix, CudaError> {
        let (stream, width) = (self.stream(), shape.heads * shape.head_dim);
        let size = head_size(shape.head_dim)?;
        let out = self.matrix(q.element(), pass.rows, width)?;
        let common = [
            q.at(stream),
            q.width() as u64,
            cache.0.at(stream),
            cache.1.at(stream),
            shape.heads as u64,
            shape.kv_heads as u64,
            shape.head_dim as u64,
            shape.block_size as u64,
            shape.window.unwrap_or(0) as u64,
        ];
        let places = [pass.positions, pass.table_start, pass.tables].map(|at| pass.input.at(at, self));
        let to = [out.at(stream), width as u64];
        let (rows, singles, spans) = pass.singles;
        let rows = [pass.input.at(rows, self)];
        let parts = [address(&pass.parts, stream), address(&pass.done, stream)];
        self.launch(
            Program::PagedAttention(q.element(), size),
            [singles, shape.kv_heads, spans],
            &[&common[..], &rows, &places, &parts, &to].concat(),
        )?;
        let (tiles, count) = pass.tiles;
        let tiles = [pass.input.at(tiles, self)];
        self.launch(
            Program::ChunkAttention(q.element(), size),
            [count, shape.kv_heads, 1],
            &[&common[..], &places, &tiles, &to].concat(),
        )?;
        Ok(out)
    }
}

/// The attention kernel for heads of `dim`.
///
/// # Errors
/// There is none.
pub fn head_size(dim: usize) -> Result<HeadSize, CudaError> {
    HeadSize::of(dim).ok_or_else(|| {
        CudaError::Unsupported(format!("heads of {dim} numbers are not supported on a card; 256 is the most"))
    })
}
