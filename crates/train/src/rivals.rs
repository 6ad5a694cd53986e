//! What the other methods of the bench need, made from the base of the pair: an expert for each trait and pair
//! of traits and an autoregressive reward model, as adapters; and further base models for the same PersRM.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::Device;
use serde_json::json;

use crate::dpo::{self, DpoOptions};
use crate::lm::{self, LmOptions};
use crate::lora::Adapter;
use crate::measure::SEEN_PAIRS;
use crate::model::ModelConfig;
use crate::world::preference::UNSEEN_PAIRS;
use crate::world::{Trait, pairs};
use crate::{export, tokenizer};

/// What to make.
#[derive(Debug, Clone)]
pub struct RivalOptions {
    /// The pair's base.
    pub base: PathBuf,
    /// The folder of `experts/<trait>/`, `genarm/`, `bases/<name>/` and `train.json`; made if absent.
    pub out: PathBuf,
    /// All chance comes from it.
    pub seed: u64,
    /// Rank of the adapters.
    pub rank: usize,
    /// Each expert's training: DPO against the base.
    pub expert: DpoOptions,
    /// The autoregressive reward model's training.
    pub genarm: DpoOptions,
    /// The other bases: name, seed, width, width of the MLP, layers.
    pub bases: Vec<(&'static str, u64, usize, usize, usize)>,
    /// Their training.
    pub lm: LmOptions,
    /// Where to train.
    pub device: Device,
    /// Shows no progress.
    pub quiet: bool,
}

impl RivalOptions {
    /// The recipe of the bench.
    pub fn new(base: impl Into<PathBuf>, out: impl Into<PathBuf>, seed: u64) -> Self {
        let adapter =
            DpoOptions { pairs: 1_920, batch: 16, rate: 4e-3, warm_up: 0.1, beta: 0.3, anchor: 8.0 };
        Self {
            base: base.into(),
            out: out.into(),
            seed,
            rank: 16,
            expert: adapter.clone(),
            // As many as the PersRM has.
            genarm: DpoOptions { pairs: 28_800, beta: 0.1, ..adapter },
            bases: vec![("small", 11, 96, 264, 3), ("other", 12, 128, 352, 4), ("wide", 13, 160, 440, 3)],
            lm: LmOptions { texts: 16_000, batch: 32, rate: 4e-3, warm_up: 0.04 },
            device: Device::Cpu,
            quiet: false,
        }
    }

    /// Made in seconds, having learned nothing, for tests.
    pub fn tiny(base: impl Into<PathBuf>, out: impl Into<PathBuf>, seed: u64) -> Self {
        let mut options = Self::new(base, out, seed);
        (options.expert.pairs, options.genarm.pairs, options.lm.texts) = (4, 4, 8);
        (options.expert.batch, options.genarm.batch, options.lm.batch) = (4, 4, 8);
        options.bases = vec![("small", 11, 16, 24, 1)];
        options.rank = 2;
        options.quiet = true;
        options
    }
}

/// What there is an expert for: every trait, and every pair that the bench asks for.
pub fn experts() -> impl Iterator<Item = Vec<Trait>> {
    let pairs = SEEN_PAIRS.into_iter().chain(UNSEEN_PAIRS).map(|pair| pair.to_vec());
    Trait::ALL.into_iter().map(|one| vec![one]).chain(pairs)
}

/// The name of an expert's folder.
pub fn expert(asked: &[Trait]) -> String {
    asked.iter().map(|one| one.name()).collect::<Vec<_>>().join("-")
}

/// Makes what is not there yet, so that an interrupted run goes on where it was.
///
/// # Errors
/// A base that cannot be read, a folder that cannot be written, a loss that is not finite.
pub fn make(options: &RivalOptions) -> Result<()> {
    let (base, words) = export::read_checkpoint(&options.base)?;
    let base = base.on(&options.device)?;
    fs::create_dir_all(&options.out).with_context(|| format!("cannot make {}", options.out.display()))?;
    let fresh = |stream| Adapter::fresh(base.config(), options.rank, 2.0 * options.rank as f64, stream);
    let path = options.out.join("train.json");
    let mut seconds: BTreeMap<String, serde_json::Value> =
        fs::read_to_string(&path).ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    for (i, asked) in (0u64..).zip(experts()) {
        let name = expert(&asked);
        let folder = options.out.join("experts").join(&name);
        if folder.is_dir() {
            continue;
        }
        let begun = Instant::now();
        let model = base.with_adapter(&fresh(options.seed + i)?)?;
        let pairs = pairs::pairs_for(asked.iter().copied().collect(), options.expert.pairs, options.seed + i);
        dpo::fit(
            &model,
            Some(&base),
            &words,
            pairs,
            &options.expert,
            options.seed,
            ("expert", options.quiet),
        )?;
        write(&model, &folder)?;
        let experts = seconds.entry("experts".to_owned()).or_insert_with(|| json!({}));
        experts[name] = json!(begun.elapsed().as_secs_f64());
        export::write_json(&path, &json!(seconds))?;
    }
    let folder = options.out.join("genarm");
    if !folder.is_dir() {
        let begun = Instant::now();
        let model = base.with_adapter(&fresh(options.seed + 100)?)?;
        let pairs = pairs::pairs(options.genarm.pairs, options.seed);
        dpo::fit(&model, None, &words, pairs, &options.genarm, options.seed, ("genarm", options.quiet))?;
        write(&model, &folder)?;
        let attune = json!({"template": tokenizer::PREFERENCE_TEMPLATE, "reference": "none"});
        export::write_json(&folder.join("attune.json"), &attune)?;
        seconds.insert("genarm".to_owned(), json!(begun.elapsed().as_secs_f64()));
        export::write_json(&path, &json!(seconds))?;
    }
    for &(name, seed, hidden_size, intermediate_size, num_hidden_layers) in &options.bases {
        let folder = options.out.join("bases").join(name);
        if folder.is_dir() {
            continue;
        }
        let config =
            ModelConfig { hidden_size, intermediate_size, num_hidden_layers, ..base.config().clone() };
        let (model, _) = lm::train(config, &words, &options.lm, seed, options.quiet, &options.device)?;
        export::write_checkpoint(&folder, &model, &words)?;
    }
    Ok(())
}

fn write(model: &crate::model::Llama, folder: &std::path::Path) -> Result<()> {
    let adapter = model.adapter().context("the model wears no adapter")?;
    adapter.write(folder, "models/demo/base")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::lora;

    #[test]
    fn what_is_there_is_kept_and_what_is_not_is_made() {
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo/base");
        let folder = tempfile::tempdir().unwrap();
        let options = RivalOptions::tiny(&base, folder.path(), 1);
        make(&options).unwrap();
        let (model, _) = export::read_checkpoint(&base).unwrap();
        for asked in experts() {
            let adapter = Adapter::read(&folder.path().join("experts").join(expert(&asked))).unwrap();
            assert!(lora::merged(&model, &adapter).is_ok());
        }
        assert!(folder.path().join("bases/small/config.json").exists());
        let seconds = fs::read_to_string(folder.path().join("train.json")).unwrap();
        let seconds: serde_json::Value = serde_json::from_str(&seconds).unwrap();
        assert!(seconds["experts"]["formal"].as_f64().unwrap() > 0.0 && seconds["genarm"].is_number());

        let kept = folder.path().join("experts/brief/adapter_model.safetensors");
        fs::write(&kept, "mine").unwrap();
        fs::remove_dir_all(folder.path().join("genarm")).unwrap();
        make(&options).unwrap();
        assert_eq!(fs::read_to_string(&kept).unwrap(), "mine");
        assert!(folder.path().join("genarm/attune.json").exists());
    }
}
