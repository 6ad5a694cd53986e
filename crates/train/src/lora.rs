//! Low-rank adapters (LoRA, arXiv 2106.09685) on the linear layers, in PEFT's folder layout.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor, Var};
use serde::Deserialize;
use serde_json::json;

use crate::export::{write_json, write_vars};
use crate::model::{Llama, ModelConfig};
use crate::world::dice::Dice;

/// What stands before a layer's name in PEFT's files.
const PREFIX: &str = "base_model.model.";
/// The layers that are adapted.
const LAYERS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// Two thin matrices a layer: `W + scale * B A`, with `A` `[rank, in]` and `B` `[out, rank]`.
#[derive(Debug, Clone)]
pub struct Adapter {
    rank: usize,
    alpha: f64,
    /// By PEFT's names: `<prefix><layer>.lora_A.weight` and `.lora_B.weight`.
    vars: BTreeMap<String, Var>,
}

/// What `adapter_config.json` must say.
#[derive(Debug, Deserialize)]
struct AdapterConfig {
    r: usize,
    lora_alpha: f64,
}

fn names(weight: &str) -> Option<(String, String)> {
    let layer = weight.strip_suffix(".weight")?;
    Some((format!("{PREFIX}{layer}.lora_A.weight"), format!("{PREFIX}{layer}.lora_B.weight")))
}

impl Adapter {
    /// A fresh adapter of all linear layers: `A` at random, `B` zero, so that it changes nothing yet.
    ///
    /// # Errors
    /// Only if memory cannot be had.
    pub fn fresh(config: &ModelConfig, rank: usize, alpha: f64, seed: u64) -> candle_core::Result<Self> {
        let mut dice = Dice::new(seed, 60);
        let mut vars = BTreeMap::new();
        for (weight, shape) in config.shapes() {
            let adapted = LAYERS.iter().any(|layer| weight.ends_with(&format!("{layer}.weight")));
            let (Some((a, b)), true, [n_out, n_in]) = (names(&weight), adapted, shape.as_slice()) else {
                continue;
            };
            let deviation = 1.0 / (*n_in as f64).sqrt();
            let values: Vec<f32> = (0..rank * n_in).map(|_| (dice.normal() * deviation) as f32).collect();
            vars.insert(a, Var::from_vec(values, (rank, *n_in), &Device::Cpu)?);
            vars.insert(b, Var::zeros((*n_out, rank), DType::F32, &Device::Cpu)?);
        }
        Ok(Self { rank, alpha, vars })
    }

    /// The same on a device: the very same weights where they lie there already, else a copy.
    ///
    /// # Errors
    /// Only if memory cannot be had.
    pub fn on(&self, device: &Device) -> candle_core::Result<Self> {
        if self.vars.values().all(|var| var.device().same_device(device)) {
            return Ok(self.clone());
        }
        let moved = |(name, var): (&String, &Var)| {
            Ok((name.clone(), Var::from_tensor(&var.as_detached_tensor().to_device(device)?)?))
        };
        let vars = self.vars.iter().map(moved).collect::<candle_core::Result<_>>()?;
        Ok(Self { vars, ..self.clone() })
    }

    /// What is trained, by name.
    pub fn vars(&self) -> &BTreeMap<String, Var> {
        &self.vars
    }

    /// `scale * B A` of a weight `[out, in]`; `None` where it is not adapted. `frozen`: without a graph.
    ///
    /// # Errors
    /// The matrices do not fit each other.
    pub fn delta(&self, weight: &str, frozen: bool) -> candle_core::Result<Option<Tensor>> {
        let Some((a, b)) = names(weight) else { return Ok(None) };
        let (Some(a), Some(b)) = (self.vars.get(&a), self.vars.get(&b)) else { return Ok(None) };
        let of = |var: &Var| if frozen { var.as_detached_tensor() } else { var.as_tensor().clone() };
        Ok(Some((of(b).matmul(&of(a))? * (self.alpha / self.rank as f64))?))
    }

    /// Reads a PEFT folder.
    ///
    /// # Errors
    /// A missing or damaged file, named.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("adapter_config.json");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let config: AdapterConfig =
            serde_json::from_str(&text).with_context(|| format!("{} is no LoRA's", path.display()))?;
        let path = folder.join("adapter_model.safetensors");
        let tensors = candle_core::safetensors::load(&path, &Device::Cpu)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let vars = tensors
            .into_iter()
            .map(|(name, tensor)| Ok((name, Var::from_tensor(&tensor.to_dtype(DType::F32)?)?)))
            .collect::<Result<_>>()?;
        Ok(Self { rank: config.r, alpha: config.lora_alpha, vars })
    }

    /// Writes a PEFT folder, made if absent.
    ///
    /// # Errors
    /// A file that cannot be written, named.
    pub fn write(&self, folder: &Path, base: &str) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let config = json!({
            "base_model_name_or_path": base,
            "bias": "none",
            "fan_in_fan_out": false,
            "lora_alpha": self.alpha,
            "lora_dropout": 0.0,
            "peft_type": "LORA",
            "r": self.rank,
            "target_modules": LAYERS,
            "task_type": "CAUSAL_LM",
        });
        write_json(&folder.join("adapter_config.json"), &config)?;
        write_vars(&folder.join("adapter_model.safetensors"), &self.vars)
    }
}

/// The base's weights with the adapter's in them.
///
/// # Errors
/// The adapter fits another base.
pub fn merged(base: &Llama, adapter: &Adapter) -> candle_core::Result<Llama> {
    let mut tensors = base.tensors();
    for (name, tensor) in &mut tensors {
        if let Some(delta) = adapter.delta(name, true)? {
            *tensor = (&*tensor + delta)?;
        }
    }
    Llama::from_tensors(base.config().clone(), &tensors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Variant;

    fn base() -> Llama {
        let config = ModelConfig {
            vocab_size: 23,
            hidden_size: 16,
            intermediate_size: 24,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            max_position_embeddings: 32,
            rms_norm_eps: 1e-5,
            rope_theta: 100.0,
            variant: Variant::default(),
        };
        Llama::fresh(config, 1).unwrap()
    }

    fn log_probs(model: &Llama) -> Vec<f32> {
        let tokens = Tensor::new(&[[1u32, 7, 9, 4]], &Device::Cpu).unwrap();
        let (at, next) = (Tensor::new(&[0u32, 1, 2], &Device::Cpu), Tensor::new(&[7u32, 9, 4], &Device::Cpu));
        model.log_probs(&tokens, &at.unwrap(), &next.unwrap(), true).unwrap().to_vec1().unwrap()
    }

    #[test]
    fn an_adapter_that_is_worn_merged_or_read_back_gives_the_same() {
        let base = base();
        let adapter = Adapter::fresh(base.config(), 3, 6.0, 2).unwrap();
        assert_eq!(log_probs(&base), log_probs(&merged(&base, &adapter).unwrap()), "a fresh one is nothing");
        for (i, var) in adapter.vars().values().enumerate() {
            let numbers = var.elem_count();
            // Quarters, which bf16 holds exactly.
            let values: Vec<f32> = (0..numbers).map(|n| ((n * 7 + i) % 9) as f32 / 4.0 - 1.0).collect();
            var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap()).unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        adapter.write(folder.path(), "base").unwrap();
        let read = Adapter::read(folder.path()).unwrap();
        let want = log_probs(&merged(&base, &adapter).unwrap());
        assert_ne!(want, log_probs(&base));
        assert_eq!(want, log_probs(&merged(&base, &read).unwrap()));
        let worn = log_probs(&base.with_adapter(&adapter).unwrap());
        assert!(want.iter().zip(worn).all(|(a, b)| (a - b).abs() < 1e-5));
    }
}
