//! What a decoder computes with, wherever its weights lie: on a CPU our kernels as candle operations, on a
//! card our kernels and cuBLAS. The model knows the operations alone.
//!
//! Each operation takes what lies on its own hardware. A model's parts are loaded on one, so anything else
//! is a cache of another model, and an error.

mod cpu;
mod load;

pub(crate) use load::attention_shape;

use std::fmt::Display;

use attune_kernels::{
    AttentionRow, AttentionShape, EmbeddingTable, Threads,
    cuda::{Array, CardLinear, CardRope, CardRow, Element, Gpu, Matrix, Pass, PassRows},
};
use candle_core::{Device, Tensor};

use crate::{ForwardError, kv::KvCache, rope::RopeTable};

/// What computes.
#[derive(Clone)]
pub(crate) enum Hardware {
    /// These cores.
    Cpu(Threads),
    /// A card, on which a model has this number format.
    Card(Gpu, Element),
}

/// Rows of numbers on the hardware that computed them.
pub enum Rows {
    /// `[rows, width]`.
    Cpu(Tensor),
    /// On this card.
    Card(Gpu, Matrix),
}

impl Rows {
    /// How many there are.
    pub fn count(&self) -> usize {
        match self {
            Self::Cpu(tensor) => tensor.dims().first().copied().unwrap_or(0),
            Self::Card(_, matrix) => matrix.rows(),
        }
    }

    /// The numbers, row by row; waits for a card to have made them.
    ///
    /// # Errors
    /// The device failed.
    pub fn to_vec2(&self) -> Result<Vec<Vec<f32>>, ForwardError> {
        match self {
            Self::Cpu(tensor) => Ok(tensor.to_vec2()?),
            Self::Card(gpu, matrix) => {
                let width = matrix.width().max(1);
                Ok(gpu.numbers(matrix)?.chunks_exact(width).map(<[f32]>::to_vec).collect())
            }
        }
    }

    /// The rows from `first` on.
    ///
    /// # Errors
    /// There are fewer, or the device failed.
    pub fn from_row(self, first: usize) -> Result<Self, ForwardError> {
        match self {
            Self::Cpu(tensor) => {
                let count = tensor.dim(0)?.saturating_sub(first);
                Ok(Self::Cpu(tensor.narrow(0, first, count)?.contiguous()?))
            }
            Self::Card(gpu, matrix) => {
                let (element, width) = (matrix.element(), matrix.width());
                let rows = CardRow::all(matrix);
                let rows: Vec<_> = rows.iter().skip(first).map(|row| (row, None)).collect();
                let rows = gpu.gather(element, width, &rows)?;
                Ok(Self::Card(gpu, rows))
            }
        }
    }

    /// The numbers, row-major.
    ///
    /// # Errors
    /// The device failed.
    pub(crate) fn to_vec1(&self) -> Result<Vec<f32>, ForwardError> {
        match self {
            Self::Cpu(tensor) => Ok(tensor.flatten_all()?.to_vec1()?),
            Self::Card(gpu, matrix) => Ok(gpu.numbers(matrix)?),
        }
    }
}

/// A linear layer.
pub(crate) enum Linear {
    Cpu(attune_kernels::Linear),
    Card(CardLinear),
}

/// An embedding, `[V, d]`.
pub(crate) enum Table {
    Cpu(EmbeddingTable),
    Card(Matrix),
}

/// A vector of weights.
pub(crate) enum Vector {
    Cpu(Vec<f32>),
    Card(Array<f32>),
}

/// Cosines and sines of positions.
pub(crate) enum Rope {
    Cpu(RopeTable),
    Card(CardRope),
}

/// Where each packed row stands, made once a pass for all layers.
pub(crate) struct Plan<'a> {
    pub(crate) tokens: Vec<u32>,
    pub(crate) positions: Vec<u32>,
    /// `block * block_size + offset`.
    pub(crate) slots: Vec<usize>,
    pub(crate) rows: Vec<AttentionRow<'a>>,
    pub(crate) outputs: Vec<u32>,
}

/// A plan where the hardware needs it.
pub(crate) struct Placed<'a> {
    plan: Plan<'a>,
    card: Option<Pass>,
}

/// The parts of a layer that the rotation needs.
pub(crate) struct Rotation<'a> {
    /// The product before it: on a card its bias is added here.
    pub(crate) qkv: &'a Linear,
    /// Qwen3's norms of each query and key head, and their epsilon.
    pub(crate) norms: Option<(&'a Vector, &'a Vector, f64)>,
    pub(crate) rope: &'a Rope,
    pub(crate) shape: AttentionShape,
    /// The layer whose cache takes keys and values.
    pub(crate) layer: usize,
}

impl Hardware {
    /// The card, where it is one.
    pub(crate) fn gpu(&self) -> Option<&Gpu> {
        match self {
            Self::Cpu(_) => None,
            Self::Card(gpu, _) => Some(gpu),
        }
    }

    /// Says that a step is computed: see [`Threads::rest`].
    pub(crate) fn rest(&self) {
        if let Self::Cpu(threads) = self {
            threads.rest();
        }
    }

    /// Brings a plan to where it is needed.
    pub(crate) fn place<'a>(
        &self,
        plan: Plan<'a>,
        shape: &AttentionShape,
    ) -> Result<Placed<'a>, ForwardError> {
        let card = match self {
            Self::Cpu(_) => None,
            Self::Card(gpu, element) => {
                let Plan { tokens, slots, rows, outputs, .. } = &plan;
                Some(gpu.pass(&PassRows { tokens, rows, slots, outputs }, shape, *element)?)
            }
        };
        Ok(Placed { plan, card })
    }

    /// The tokens' embeddings, `[rows, d]`: the residual stream.
    pub(crate) fn embed(&self, table: &Table, placed: &Placed<'_>) -> Result<Rows, ForwardError> {
        match (self, table, &placed.card) {
            (Self::Cpu(_), Table::Cpu(table), _) => {
                let (hidden, tokens) = (table.d(), &placed.plan.tokens);
                let mut x = vec![0.0; tokens.len() * hidden];
                for (row, &token) in x.chunks_exact_mut(hidden).zip(tokens) {
                    table.row_into(token, row);
                }
                Ok(Rows::Cpu(Tensor::from_vec(x, (tokens.len(), hidden), &Device::Cpu)?))
            }
            (Self::Card(gpu, _), Table::Card(table), Some(pass)) => {
                Ok(Rows::Card(gpu.clone(), gpu.embed(table, pass)?))
            }
            _ => elsewhere("the embedding"),
        }
    }

    /// The norm of the residual stream.
    pub(crate) fn norm(&self, x: &Rows, weight: &Vector, eps: f64) -> Result<Rows, ForwardError> {
        match (self, x, weight) {
            (Self::Cpu(_), Rows::Cpu(x), Vector::Cpu(weight)) => {
                Ok(Rows::Cpu(cpu::rms_norm(x, weight, eps)?))
            }
            (Self::Card(gpu, element), Rows::Card(_, x), Vector::Card(weight)) => {
                Ok(Rows::Card(gpu.clone(), gpu.rms_norm(x, weight, eps as f32, None, *element)?))
            }
            _ => elsewhere("a norm"),
        }
    }

    /// The norm of those rows of the residual stream that a pass gives out.
    pub(crate) fn outputs(
        &self,
        x: &Rows,
        placed: &Placed<'_>,
        weight: &Vector,
        eps: f64,
    ) -> Result<Rows, ForwardError> {
        match (self, x, weight, &placed.card) {
            (Self::Cpu(_), Rows::Cpu(x), Vector::Cpu(weight), _) => {
                let outputs = Tensor::new(placed.plan.outputs.as_slice(), x.device())?;
                Ok(Rows::Cpu(cpu::rms_norm(&x.index_select(&outputs, 0)?, weight, eps)?))
            }
            (Self::Card(gpu, element), Rows::Card(_, x), Vector::Card(weight), Some(pass)) => {
                let normed = gpu.rms_norm(x, weight, eps as f32, Some(pass), *element)?;
                Ok(Rows::Card(gpu.clone(), normed))
            }
            _ => elsewhere("the last norm"),
        }
    }

    /// `x W^T + b`; on a card in single precision.
    pub(crate) fn linear(&self, x: &Rows, linear: &Linear) -> Result<Rows, ForwardError> {
        self.linear_as(x, linear, Element::F32)
    }

    /// The same, in the model's number format on a card.
    pub(crate) fn linear_narrow(&self, x: &Rows, linear: &Linear) -> Result<Rows, ForwardError> {
        let out = if let Self::Card(_, element) = self { *element } else { Element::F32 };
        self.linear_as(x, linear, out)
    }

    fn linear_as(&self, x: &Rows, linear: &Linear, out: Element) -> Result<Rows, ForwardError> {
        match (self, x, linear) {
            (Self::Cpu(threads), Rows::Cpu(x), Linear::Cpu(weights)) => {
                Ok(Rows::Cpu(cpu::linear(x, weights, threads)?))
            }
            (Self::Card(gpu, _), Rows::Card(_, x), Linear::Card(linear)) => {
                Ok(Rows::Card(gpu.clone(), gpu.linear(x, linear, out)?))
            }
            _ => elsewhere("a linear layer"),
        }
    }

    /// The product before attention: its bias is left to the rotation on a card.
    pub(crate) fn before_rotation(&self, x: &Rows, linear: &Linear) -> Result<Rows, ForwardError> {
        match (self, x, linear) {
            (Self::Card(gpu, _), Rows::Card(_, x), Linear::Card(linear)) => {
                Ok(Rows::Card(gpu.clone(), gpu.product(x, &linear.weight, Element::F32)?))
            }
            _ => self.linear(x, linear),
        }
    }

    /// The residual connection: `sum + (x W^T + b)`.
    pub(crate) fn add(&self, sum: Rows, x: &Rows, linear: &Linear) -> Result<Rows, ForwardError> {
        match (self, sum, x, linear) {
            (Self::Cpu(threads), Rows::Cpu(sum), Rows::Cpu(x), Linear::Cpu(weights)) => {
                Ok(Rows::Cpu((sum + cpu::linear(x, weights, threads)?)?))
            }
            (Self::Card(gpu, _), Rows::Card(_, mut sum), Rows::Card(_, x), Linear::Card(linear)) => {
                gpu.linear_add(x, linear, &mut sum)?;
                Ok(Rows::Card(gpu.clone(), sum))
            }
            _ => elsewhere("a residual connection"),
        }
    }

    /// Normalises and rotates queries and keys, stores keys and values, and gives what attention starts from.
    pub(crate) fn rotate(
        &self,
        qkv: Rows,
        rotation: &Rotation<'_>,
        placed: &Placed<'_>,
        cache: &KvCache,
    ) -> Result<Rows, ForwardError> {
        let AttentionShape { heads, kv_heads, head_dim, .. } = rotation.shape;
        match (self, qkv, rotation.rope, cache, &placed.card) {
            (Self::Cpu(_), Rows::Cpu(qkv), Rope::Cpu(rope), KvCache::Cpu { keys, values }, _) => {
                let norms = match rotation.norms {
                    None => None,
                    Some((Vector::Cpu(q), Vector::Cpu(k), eps)) => Some((&q[..], &k[..], eps as f32)),
                    Some(_) => return elsewhere("the norms of heads"),
                };
                let (positions, slots) = (&placed.plan.positions[..], &placed.plan.slots[..]);
                let (cos, sin) = (rope.cos(), rope.sin());
                qkv.inplace_op1(&cpu::Rotate { heads, kv_heads, head_dim, positions, cos, sin, norms })?;
                let store = |column| cpu::Store { column, slots };
                keys[rotation.layer].inplace_op2(&qkv, &store(heads * head_dim))?;
                values[rotation.layer].inplace_op2(&qkv, &store((heads + kv_heads) * head_dim))?;
                Ok(Rows::Cpu(qkv))
            }
            (
                Self::Card(gpu, _),
                Rows::Card(_, qkv),
                Rope::Card(rope),
                KvCache::Card { keys, values },
                Some(pass),
            ) => {
                let norms = match rotation.norms {
                    None => None,
                    Some((Vector::Card(q), Vector::Card(k), eps)) => Some((q, k, eps as f32)),
                    Some(_) => return elsewhere("the norms of heads"),
                };
                let Linear::Card(linear) = rotation.qkv else { return elsewhere("a bias") };
                let cache = (&keys[rotation.layer], &values[rotation.layer]);
                let bias = linear.bias.as_ref();
                let q = gpu.rotate(&qkv, bias, norms, rope, &rotation.shape, pass, cache)?;
                Ok(Rows::Card(gpu.clone(), q))
            }
            _ => elsewhere("a rotation"),
        }
    }

    /// The attention of packed rows over a layer's cache.
    pub(crate) fn attend(
        &self,
        q: &Rows,
        rotation: &Rotation<'_>,
        placed: &Placed<'_>,
        cache: &KvCache,
    ) -> Result<Rows, ForwardError> {
        let (shape, layer) = (rotation.shape, rotation.layer);
        match (self, q, cache, &placed.card) {
            (Self::Cpu(threads), Rows::Cpu(qkv), KvCache::Cpu { keys, values }, _) => {
                let attention = cpu::Attention { shape, rows: &placed.plan.rows, threads };
                Ok(Rows::Cpu(attention.forward(qkv, &keys[layer], &values[layer])?))
            }
            (Self::Card(gpu, _), Rows::Card(_, q), KvCache::Card { keys, values }, Some(pass)) => {
                let out = gpu.attend(q, (&keys[layer], &values[layer]), &shape, pass)?;
                Ok(Rows::Card(gpu.clone(), out))
            }
            _ => elsewhere("attention"),
        }
    }

    /// The gate of an MLP.
    pub(crate) fn silu_gate(&self, gate_up: &Rows) -> Result<Rows, ForwardError> {
        match (self, gate_up) {
            (Self::Cpu(_), Rows::Cpu(gate_up)) => Ok(Rows::Cpu(cpu::silu_gate(gate_up)?)),
            (Self::Card(gpu, element), Rows::Card(_, gate_up)) => {
                Ok(Rows::Card(gpu.clone(), gpu.silu_gate(gate_up, *element)?))
            }
            _ => elsewhere("a gate"),
        }
    }
}

fn elsewhere<T>(what: impl Display) -> Result<T, ForwardError> {
    Err(ForwardError::Elsewhere(what.to_string()))
}
