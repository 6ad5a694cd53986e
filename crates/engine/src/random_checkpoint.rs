//! Seeded random checkpoints in the Hugging Face layout.
//!
//! Tests and benchmarks need models of known shape without a download, and the Python peers must
//! read the very same folders. Every weight depends on the seed and on its own name alone, so the
//! same call writes the same bytes on every machine, whatever the sharding.

mod shape;
mod tensors;
mod tokenizer;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use thiserror::Error;

pub use shape::{Family, Llama3Scaling, Shape};
pub use tensors::Storage;

/// What a folder is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A base language model.
    Base,
    /// A personalised reward model.
    PersRm {
        /// Also write `value_head.safetensors` (`v_head.summary.weight` `[d, d]`, near the
        /// identity, and `.bias` `[d]`), the full-matrix form of the official PAD release.
        value_head: bool,
    },
}

/// How the weights lie on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Number of weight files: 1 writes `model.safetensors`; more write
    /// `model-0000i-of-0000n.safetensors` and `model.safetensors.index.json`.
    pub shards: usize,
    /// Element type of every tensor of the model (the value head stays f32).
    pub storage: Storage,
}

impl Default for Layout {
    fn default() -> Self {
        Self { shards: 1, storage: Storage::F32 }
    }
}

/// Why a random checkpoint was not written.
#[derive(Debug, Error)]
pub enum WriteError {
    /// A dimension of the shape makes no model.
    #[error("a random checkpoint of this shape is impossible: {0}")]
    Shape(String),
    /// The folder or one of its files could not be written.
    #[error("cannot write {}: {source}; check that the folder is writable and the disk not full", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A weight file could not be written.
    #[error("cannot write the weights {}: {source}", path.display())]
    Weights {
        /// The file.
        path: PathBuf,
        /// The format's answer.
        source: safetensors::SafeTensorError,
    },
    /// The tokenizer could not be trained or saved.
    #[error("cannot make the tokenizer: {0}")]
    Tokenizer(String),
}

/// Writes the folder `dir` (made if absent): `config.json`, `generation_config.json`,
/// `tokenizer.json`, `tokenizer_config.json`, `model.safetensors` in f32, and
/// `value_head.safetensors` where `kind` asks for it.
///
/// # Errors
/// [`WriteError`] for an impossible shape or a folder that cannot be written.
pub fn write(dir: &Path, shape: &Shape, seed: u64, kind: Kind) -> Result<(), WriteError> {
    write_with(dir, shape, seed, kind, Layout::default())
}

/// [`write`] with another number of files or another element type.
///
/// # Errors
/// As [`write`]; also for zero shards, or more shards than tensors.
pub fn write_with(
    dir: &Path,
    shape: &Shape,
    seed: u64,
    kind: Kind,
    layout: Layout,
) -> Result<(), WriteError> {
    shape.check()?;
    fs::create_dir_all(dir).map_err(|source| WriteError::Io { path: dir.to_owned(), source })?;
    tokenizer::write(dir, shape)?;
    write_json(&dir.join("config.json"), &shape.config(layout.storage))?;
    let generation = json!({
        "_from_model_config": true,
        "bos_token_id": tokenizer::BOS_ID,
        "eos_token_id": tokenizer::EOS_ID,
    });
    write_json(&dir.join("generation_config.json"), &generation)?;
    tensors::write_model(dir, shape, seed, layout)?;
    match kind {
        Kind::PersRm { value_head: true } => tensors::write_value_head(dir, shape, seed),
        Kind::Base | Kind::PersRm { value_head: false } => Ok(()),
    }
}

fn write_json(path: &Path, value: &Value) -> Result<(), WriteError> {
    fs::write(path, format!("{value:#}\n")).map_err(|source| WriteError::Io { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    fn read(path: &Path) -> Vec<u8> {
        fs::read(path).unwrap()
    }

    #[test]
    fn one_seed_gives_one_folder_and_another_seed_another() {
        let root = tempfile::tempdir().unwrap();
        let shape = Shape::tiny(Family::Qwen2);
        let kind = Kind::PersRm { value_head: true };
        for (name, seed) in [("a", 1), ("b", 1), ("c", 2)] {
            write(&root.path().join(name), &shape, seed, kind).unwrap();
        }
        let file = |folder: &str, name: &str| read(&root.path().join(folder).join(name));
        for name in [
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "model.safetensors",
            "value_head.safetensors",
        ] {
            assert_eq!(file("a", name), file("b", name), "{name}");
        }
        assert_ne!(file("a", "model.safetensors"), file("c", "model.safetensors"));
        assert_ne!(file("a", "value_head.safetensors"), file("c", "value_head.safetensors"));
    }

    #[test]
    fn shards_hold_the_same_tensors_as_one_file() {
        let root = tempfile::tempdir().unwrap();
        let shape = Shape::tiny(Family::Llama);
        let (one, two) = (root.path().join("one"), root.path().join("two"));
        write(&one, &shape, 7, Kind::Base).unwrap();
        let layout = Layout { shards: 2, ..Layout::default() };
        write_with(&two, &shape, 7, Kind::Base, layout).unwrap();

        let whole = read(&one.join("model.safetensors"));
        let whole = SafeTensors::deserialize(&whole).unwrap();
        let index: Value = serde_json::from_slice(&read(&two.join("model.safetensors.index.json"))).unwrap();
        let map = index["weight_map"].as_object().unwrap();
        assert_eq!(map.len(), whole.len());
        for (name, file) in map {
            let bytes = read(&two.join(file.as_str().unwrap()));
            let part = SafeTensors::deserialize(&bytes).unwrap();
            let (a, b) = (whole.tensor(name).unwrap(), part.tensor(name).unwrap());
            assert_eq!((a.shape(), a.data()), (b.shape(), b.data()), "{name}");
        }
    }

    #[test]
    fn weights_have_the_asked_spread_and_norms_are_not_ones() {
        let root = tempfile::tempdir().unwrap();
        let shape = Shape::tiny(Family::Qwen3);
        write(root.path(), &shape, 3, Kind::Base).unwrap();
        let bytes = read(&root.path().join("model.safetensors"));
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let stats = |name: &str| {
            let tensor = file.tensor(name).unwrap();
            let values: Vec<f64> = tensor
                .data()
                .chunks_exact(4)
                .map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())))
                .collect();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let var = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
            (mean, var.sqrt())
        };
        let (mean, std) = stats("model.embed_tokens.weight");
        assert!(mean.abs() < 0.01, "{mean}");
        assert!((std / f64::from(shape.std) - 1.0).abs() < 0.03, "{std} against {}", shape.std);
        for name in ["model.norm.weight", "model.layers.1.self_attn.q_norm.weight"] {
            let (mean, std) = stats(name);
            assert!((mean - 1.0).abs() < 0.2 && std > 0.02, "{name} {mean} {std}");
        }
    }

    #[test]
    fn impossible_shapes_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let mut shape = Shape::tiny(Family::Llama);
        shape.kv_heads = 3;
        let error = write(root.path(), &shape, 1, Kind::Base).unwrap_err();
        assert!(error.to_string().contains("kv_heads"), "{error}");
        let layout = Layout { shards: 0, ..Layout::default() };
        let shape = Shape::tiny(Family::Llama);
        assert!(write_with(root.path(), &shape, 1, Kind::Base, layout).is_err());
    }

    #[test]
    fn a_shape_survives_json() {
        for shape in [Shape::tiny(Family::Mistral), Shape::small(), Shape::medium()] {
            let text = serde_json::to_string(&shape).unwrap();
            assert_eq!(serde_json::from_str::<Shape>(&text).unwrap(), shape);
        }
    }
}
