//! Names, shapes and values of a random checkpoint's tensors, and the files that hold them.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;
use std::thread;

use half::{bf16, f16};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::{Dtype, View};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{Family, Layout, Shape, WriteError, write_json};

/// Element type of the stored weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// 32-bit floats.
    F32,
    /// Brain floats: the upper half of an f32, rounded to nearest even.
    Bf16,
    /// IEEE half floats.
    F16,
}

impl Storage {
    pub(super) fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
        }
    }

    fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::Bf16 => Dtype::BF16,
            Self::F16 => Dtype::F16,
        }
    }

    fn width(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }
}

/// One tensor whose values are made when they are written, so that a large model never lies in
/// memory whole.
struct RandomTensor {
    name: String,
    dims: Vec<usize>,
    center: Center,
    std: f32,
    seed: u64,
    storage: Storage,
}

/// What the noise is added to.
#[derive(Clone, Copy, PartialEq)]
enum Center {
    Zero,
    One,
    Identity,
}

impl RandomTensor {
    fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// Calls `put` with every value in row order.
    ///
    /// A value is the sum of four 16-bit uniforms, scaled: near enough to a normal one, and exact
    /// integers up to the last product, so that no platform's `ln` or `cos` changes a bit of it.
    fn values(&self, mut put: impl FnMut(f32)) {
        let digest = Sha256::digest(self.name.as_bytes());
        let stream = digest.iter().take(8).fold(0, |n, b| n << 8 | u64::from(*b));
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(stream);
        // Four uniforms over 0..=65535 have mean 131070 and variance (65536^2 - 1) / 3.
        let scale = self.std * (3.0_f32.sqrt() / 65536.0);
        let diagonal = self.dims.last().map_or(1, |columns| columns + 1);
        for i in 0..self.len() {
            let bits = rng.next_u64();
            let sum: u64 = (0..4).map(|part| bits >> (16 * part) & 0xffff).sum();
            let noise = (sum as f32 - 131_070.0) * scale;
            let center = match self.center {
                Center::Zero => 0.0,
                Center::One => 1.0,
                Center::Identity if i % diagonal == 0 => 1.0,
                Center::Identity => 0.0,
            };
            put(center + noise);
        }
    }
}

impl View for &RandomTensor {
    fn dtype(&self) -> Dtype {
        self.storage.dtype()
    }

    fn shape(&self) -> &[usize] {
        &self.dims
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = Vec::with_capacity(self.data_len());
        self.values(|v| match self.storage {
            Storage::F32 => bytes.extend(v.to_le_bytes()),
            Storage::Bf16 => bytes.extend(bf16::from_f32(v).to_le_bytes()),
            Storage::F16 => bytes.extend(f16::from_f32(v).to_le_bytes()),
        });
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        self.len() * self.storage.width()
    }
}

/// Every tensor of the model, in the order of the layers.
fn model(shape: &Shape, seed: u64, storage: Storage) -> Vec<RandomTensor> {
    let (d, inner) = (shape.hidden, shape.intermediate);
    let (q, kv) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let tensor = |name: String, dims: &[usize], center, std| RandomTensor {
        name,
        dims: dims.to_vec(),
        center,
        std,
        seed,
        storage,
    };
    let matrix = |name: String, rows, columns| tensor(name, &[rows, columns], Center::Zero, shape.std);
    // Not all ones: a skipped norm weight shows.
    let norm = |name: String, width| tensor(name, &[width], Center::One, 0.1);
    let bias = |name: String, width| tensor(name, &[width], Center::Zero, 0.2);

    let mut all = vec![matrix("model.embed_tokens.weight".into(), shape.vocab, d)];
    for layer in 0..shape.layers {
        let at = |part: &str| format!("model.layers.{layer}.{part}");
        all.push(norm(at("input_layernorm.weight"), d));
        for (part, rows, columns) in [("q", q, d), ("k", kv, d), ("v", kv, d), ("o", d, q)] {
            all.push(matrix(at(&format!("self_attn.{part}_proj.weight")), rows, columns));
            if shape.family == Family::Qwen2 && part != "o" {
                all.push(bias(at(&format!("self_attn.{part}_proj.bias")), rows));
            }
        }
        if shape.family == Family::Qwen3 {
            all.push(norm(at("self_attn.q_norm.weight"), shape.head_dim));
            all.push(norm(at("self_attn.k_norm.weight"), shape.head_dim));
        }
        all.push(norm(at("post_attention_layernorm.weight"), d));
        all.push(matrix(at("mlp.gate_proj.weight"), inner, d));
        all.push(matrix(at("mlp.up_proj.weight"), inner, d));
        all.push(matrix(at("mlp.down_proj.weight"), d, inner));
    }
    all.push(norm("model.norm.weight".into(), d));
    if !shape.tied {
        all.push(matrix("lm_head.weight".into(), shape.vocab, d));
    }
    all
}

/// Writes the model's weights in `layout.shards` files, and their index where there are several.
pub(super) fn write_model(dir: &Path, shape: &Shape, seed: u64, layout: Layout) -> Result<(), WriteError> {
    let tensors = model(shape, seed, layout.storage);
    let shards = layout.shards;
    if shards == 0 || shards > tensors.len() {
        return Err(WriteError::Shape(format!(
            "{shards} shards asked for {} tensors; ask for 1 to that many",
            tensors.len()
        )));
    }
    if shards == 1 {
        return write_file(&dir.join("model.safetensors"), &tensors);
    }
    let mut weight_map = Map::new();
    // A file each on a thread of its own: a large model's numbers take longer to make than to write.
    thread::scope(|scope| {
        let mut writers = Vec::new();
        for (i, part) in tensors.chunks(tensors.len().div_ceil(shards)).enumerate() {
            let file = format!("model-{:05}-of-{shards:05}.safetensors", i + 1);
            let path = dir.join(&file);
            writers.push(scope.spawn(move || write_file(&path, part)));
            weight_map.extend(part.iter().map(|t| (t.name.clone(), Value::from(file.clone()))));
        }
        let written = writers.into_iter().map(|w| w.join().unwrap_or_else(|e| std::panic::resume_unwind(e)));
        written.collect::<Result<Vec<()>, WriteError>>()
    })?;
    let total_size: usize = tensors.iter().map(|t| View::data_len(&t)).sum();
    let index = json!({"metadata": {"total_size": total_size}, "weight_map": weight_map});
    write_json(&dir.join("model.safetensors.index.json"), &index)
}

/// Writes the official release's value head: the identity and some noise.
pub(super) fn write_value_head(dir: &Path, shape: &Shape, seed: u64) -> Result<(), WriteError> {
    let d = shape.hidden;
    let part = |name: &str, dims: &[usize], center| RandomTensor {
        name: format!("v_head.summary.{name}"),
        dims: dims.to_vec(),
        center,
        std: 0.02,
        seed,
        storage: Storage::F32,
    };
    let head = [part("weight", &[d, d], Center::Identity), part("bias", &[d], Center::Zero)];
    write_file(&dir.join("value_head.safetensors"), &head)
}

fn write_file(path: &Path, tensors: &[RandomTensor]) -> Result<(), WriteError> {
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let views = tensors.iter().map(|t| (t.name.as_str(), t));
    safetensors::serialize_to_file(views, Some(metadata), path)
        .map_err(|source| WriteError::Weights { path: path.to_owned(), source })
}
