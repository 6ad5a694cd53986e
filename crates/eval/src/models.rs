//! The checkpoints of the bench: the pair, the methods' adapters, and the averages made of these.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use attune_engine::ModelPath;
use attune_train::{
    export,
    lora::{self, Adapter},
    model::Llama,
    rivals,
    tokenizer::PREFERENCE_TEMPLATE,
    world::Trait,
};
use candle_core::Tensor;
use serde::Deserialize;
use serde_json::json;
use tempfile::TempDir;

use crate::{
    asks::Ask,
    method::{Decodes, Method, Worker},
};

/// Seconds of training, as `train.json` beside the adapters tells them.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct TrainSeconds {
    /// By trait.
    experts: BTreeMap<String, f64>,
}

/// Where everything lies.
#[derive(Debug)]
pub struct Models {
    pair: PathBuf,
    adapters: PathBuf,
    seconds: TrainSeconds,
    /// Averages, made when they are asked for, and the base with a template of preferences.
    made: TempDir,
}

impl Models {
    /// The folder of `base/` and `persrm/`, and the folder of `genarm/`, `experts/<trait>/`,
    /// `bases/<name>/` and `train.json`, any of which may be absent.
    ///
    /// # Errors
    /// `base/` or `persrm/` is not there, or `train.json` cannot be read.
    pub fn open(pair: &Path, adapters: &Path) -> Result<Self> {
        for part in ["base", "persrm"] {
            let folder = pair.join(part);
            anyhow::ensure!(folder.is_dir(), "{} is not there; name the pair's folder", folder.display());
        }
        let path = adapters.join("train.json");
        let seconds = match std::fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text)
                .with_context(|| format!("{} does not hold seconds of training", path.display()))?,
            Err(_) => TrainSeconds::default(),
        };
        let made = tempfile::tempdir().context("cannot make a folder for averaged checkpoints")?;
        let models = Self { pair: pair.into(), adapters: adapters.into(), seconds, made };
        models.teach_base().context("cannot copy the base model")?;
        Ok(models)
    }

    /// Puts the wording of preferences that the base was trained with beside a copy of it: as a worker it
    /// would else read our default's, which it has never met.
    fn teach_base(&self) -> Result<()> {
        let folder = self.taught_base();
        std::fs::create_dir_all(&folder)?;
        for entry in std::fs::read_dir(self.base())? {
            let path = entry?.path();
            if let (true, Some(name)) = (path.is_file(), path.file_name()) {
                std::fs::copy(&path, folder.join(name))?;
            }
        }
        export::write_json(&folder.join("attune.json"), &json!({"template": PREFERENCE_TEMPLATE}))
    }

    fn taught_base(&self) -> PathBuf {
        self.made.path().join("base")
    }

    /// The base model.
    pub fn base(&self) -> PathBuf {
        self.pair.join("base")
    }

    /// A worker's model.
    pub fn worker(&self, worker: &Worker) -> PathBuf {
        match worker {
            Worker::Persrm => self.pair.join("persrm"),
            Worker::Base => self.taught_base(),
            Worker::Genarm => self.adapters.join("genarm"),
            Worker::Expert(one) => self.expert(&[*one]),
        }
    }

    /// The flags by which a service serves a folder; an adapter is worn on the pair's base.
    pub fn serve(&self, folder: &Path) -> Vec<String> {
        let mut flags = vec!["--model".to_owned(), folder.to_string_lossy().into_owned()];
        if ModelPath::is_adapter(folder) {
            flags.extend(["--base-model".to_owned(), self.base().to_string_lossy().into_owned()]);
        }
        flags
    }

    /// Other base models, by name.
    pub fn bases(&self) -> Vec<(String, PathBuf)> {
        let Ok(entries) = std::fs::read_dir(self.adapters.join("bases")) else { return Vec::new() };
        let folders = entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.join("config.json").exists());
        let mut bases: Vec<_> =
            folders.filter_map(|p| Some((p.file_name()?.to_string_lossy().into_owned(), p))).collect();
        bases.sort();
        bases
    }

    /// What a method lacks here, in words. `None`: nothing.
    pub fn lacks(&self, method: Method) -> Option<String> {
        let missing = match method {
            Method::Soups | Method::Dpo => {
                Trait::ALL.into_iter().map(|one| self.expert(&[one])).find(|folder| !folder.is_dir())
            }
            Method::PadWeights => {
                let head = self.pair.join("persrm/weight_head.safetensors");
                (!head.exists()).then_some(head)
            }
            _ => method.workers().iter().map(|w| self.worker(w)).find(|folder| !folder.is_dir()),
        };
        missing.map(|path| format!("{} is not there", path.display()))
    }

    /// Whether a method can be asked so here: an expert decodes just what it was trained for.
    pub fn serves(&self, method: Method, ask: &Ask) -> bool {
        method != Method::Dpo || self.expert(&ask.traits).is_dir()
    }

    /// Seconds of training that a new preference takes. `None`: not told.
    pub fn train_seconds(&self, method: Method) -> Option<f64> {
        match method {
            Method::Soups | Method::Dpo | Method::Experts => {
                let each: Vec<f64> = self.seconds.experts.values().copied().collect();
                (!each.is_empty()).then(|| each.iter().sum::<f64>() / each.len() as f64)
            }
            // One model serves whatever is asked for.
            _ => Some(0.0),
        }
    }

    /// The checkpoint that decodes alone, made where it is an average.
    ///
    /// # Errors
    /// An expert cannot be read, or the average not be written.
    pub fn decodes(&self, decodes: &Decodes) -> Result<PathBuf> {
        match decodes {
            Decodes::Base => Ok(self.base()),
            Decodes::Persrm => Ok(self.pair.join("persrm")),
            Decodes::Expert(traits) => Ok(self.expert(traits)),
            Decodes::Soup(traits) => {
                let folder = self.made.path().join(rivals::expert(traits));
                if !folder.is_dir() {
                    let experts: Vec<Llama> =
                        traits.iter().map(|&one| self.read(&self.expert(&[one]))).collect::<Result<_>>()?;
                    let (base, tokenizer) = export::read_checkpoint(&self.base())?;
                    let tensors = averaged(&experts)?;
                    let soup = Llama::from_tensors(base.config().clone(), &tensors)?;
                    export::write_checkpoint(&folder, &soup, &tokenizer)?;
                }
                Ok(folder)
            }
        }
    }

    fn expert(&self, traits: &[Trait]) -> PathBuf {
        self.adapters.join("experts").join(rivals::expert(traits))
    }

    /// The weights of a folder, an adapter's with the base's.
    fn read(&self, folder: &Path) -> Result<Llama> {
        if ModelPath::is_adapter(folder) {
            let (base, _) = export::read_checkpoint(&self.base())?;
            return Ok(lora::merged(&base, &Adapter::read(folder)?)?);
        }
        Ok(export::read_checkpoint(folder)?.0)
    }
}

/// The mean of every tensor: a soup with equal weights.
fn averaged(models: &[Llama]) -> Result<BTreeMap<String, Tensor>> {
    let mut sums: BTreeMap<String, Tensor> = BTreeMap::new();
    for model in models {
        for (name, tensor) in model.tensors() {
            let sum = match sums.get(&name) {
                Some(sum) => (sum + tensor)?,
                None => tensor,
            };
            sums.insert(name, sum);
        }
    }
    sums.into_iter().map(|(name, sum)| Ok((name, (sum / models.len() as f64)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_soup_is_the_mean_of_its_experts() {
        let config: attune_train::model::ModelConfig = serde_json::from_value(serde_json::json!({
            "vocab_size": 7, "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 8,
            "rms_norm_eps": 1e-5, "rope_theta": 100.0,
        }))
        .unwrap();
        let models = [1, 2, 3].map(|seed| Llama::fresh(config.clone(), seed).unwrap());
        let soup = averaged(&models).unwrap();
        for (name, mean) in soup {
            let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let each = models.each_ref().map(|m| flat(&m.tensors()[&name]));
            for (i, got) in flat(&mean).into_iter().enumerate() {
                let want = each.iter().map(|values| values[i]).sum::<f32>() / 3.0;
                assert!((got - want).abs() < 1e-6, "{name}");
            }
        }
    }
}
