//! What a model costs: memory, and the bytes and the arithmetic of a step.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use attune_engine::{
    Checkpoint, DecoderConfig,
    kv::{BLOCK_SIZE, KvCache},
};
use attune_kernels::Format;
use serde_json::Value;

use crate::floor::{Role, bytes_per_weight, weights};

/// A model as its files describe it; the weights need not be there.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// What it is called.
    pub name: String,
    /// The decoder's shape.
    pub config: DecoderConfig,
    /// How its matrices are stored. `None`: the files do not say.
    pub stored: Option<Format>,
    /// Of a reward model: the features pass through a full matrix, `[d, d]`.
    pub value_head: bool,
    /// Of a reward model: the weights before training are there, for reference MODEL.
    pub has_reference: bool,
    /// Of a reward model: sessions that name no reference have MODEL.
    pub compares: bool,
}

impl Model {
    /// Reads a folder (`config.json`, `attune.json`; weights where they are there) or a GGUF file.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn open(path: &Path, name: &str) -> Result<Self> {
        let weights = Checkpoint::open(path).ok();
        let folder = weights.as_ref().map_or(path, Checkpoint::folder);
        let config = match &weights {
            Some(weights) => weights.config()?,
            None => DecoderConfig::load(path)?,
        };
        let gate = "model.layers.0.mlp.gate_proj.weight";
        let stored =
            weights.as_ref().and_then(|w| w.format(gate, &[config.intermediate, config.hidden]).ok());
        let settings = json(folder, "attune.json")?;
        let has_reference = !settings["reference_model"].is_null();
        Ok(Self {
            name: name.to_owned(),
            stored: stored.or(said(path)?),
            value_head: folder.join("value_head.safetensors").exists(),
            has_reference,
            compares: settings["reference"].as_str().map_or(has_reference, |kind| kind == "model"),
            config,
        })
    }
}

/// The element type that `config.json` names.
fn said(folder: &Path) -> Result<Option<Format>> {
    let config = json(folder, "config.json")?;
    let said = ["dtype", "torch_dtype"].iter().find_map(|key| config[key].as_str());
    Ok(said.and_then(|dtype| match dtype {
        "float32" => Some(Format::F32),
        "bfloat16" => Some(Format::Bf16),
        "float16" => Some(Format::F16),
        _ => None,
    }))
}

/// A JSON file; null where it is not there.
fn json(folder: &Path, file: &str) -> Result<Value> {
    let path = folder.join(file);
    if !path.exists() {
        return Ok(Value::Null);
    }
    let read = || Ok::<_, anyhow::Error>(serde_json::from_str(&std::fs::read_to_string(&path)?)?);
    read().with_context(|| format!("cannot read {}", path.display()))
}

/// How a side keeps its model and its caches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Storage {
    /// Of the matrices. `None`: as the checkpoint has them.
    pub weights: Option<Format>,
    /// Bytes of a number in the caches of keys and values: 4 on a CPU, as of the matrices on a card.
    pub cache_number: f64,
}

/// What a side of the pair costs. Bytes and floating-point operations.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Bytes of weights in memory.
    pub memory: f64,
    /// Bytes of weights that a step reads once for all rows.
    pub read: f64,
    /// Bytes of weights that a step reads for each row: of a reward model's head, the candidates' rows.
    pub row_read: f64,
    /// Operations of a row, without attention: two for each weight.
    pub flops: f64,
    /// Operations of a row's attention for each token of its context.
    pub attention_flops: f64,
    /// Bytes that a token of context takes in all caches.
    pub cache: f64,
    /// Bytes that a step reads of the caches for each token of a row's context.
    pub cache_read: f64,
}

impl Cost {
    /// The generator's side.
    ///
    /// # Errors
    /// Neither the files nor `storage` say how the weights are stored.
    pub fn of_base(model: &Model, storage: Storage) -> Result<Self> {
        // The output head is packed by itself, tied or not.
        Self::new(model, storage, Role::Base, 0, [1, 1], 2)
    }

    /// The worker's side, with `k` candidates a step. `compares`: sessions with reference MODEL, whose every
    /// step passes both models.
    ///
    /// # Errors
    /// As `of_base`; or there is no reference model to compare with.
    pub fn of_reward(model: &Model, storage: Storage, k: usize, compares: bool) -> Result<Self> {
        if compares && !model.has_reference {
            bail!("{} has no reference model: `reference_model` in its attune.json", model.name);
        }
        let sides = [1 + usize::from(model.has_reference), 1 + usize::from(compares)];
        Self::new(model, storage, Role::Reward, k, sides, 1 + usize::from(!model.config.tied))
    }

    /// `sides`: models in memory, and models that a step passes. `tables`: matrices of `[V, d]` in each.
    fn new(
        model: &Model,
        storage: Storage,
        role: Role,
        k: usize,
        sides: [usize; 2],
        tables: usize,
    ) -> Result<Self> {
        let Model { name, config: c, stored, value_head, .. } = model;
        let Some(format) = storage.weights.or(*stored) else {
            bail!("{name} does not say how its weights are stored: give their type (--dtype)");
        };
        let number = bytes_per_weight(format);
        let [held, passed] = sides.map(|sides| sides as f64);
        let table = (c.vocab * c.hidden) as f64;
        let common = weights(c, role, *value_head, 0);
        let layers = match role {
            Role::Base => common - table,
            Role::Reward => common,
        };
        // Tables stay as the checkpoint has them; the generator's head does not.
        let table_number = stored.map_or(number, bytes_per_weight);
        let tables = match role {
            Role::Base => table * (table_number + number),
            Role::Reward => tables as f64 * table * table_number,
        };
        let rows = (k * c.hidden) as f64;
        let cache = KvCache::block_bytes(c) as f64 / BLOCK_SIZE as f64 * storage.cache_number / 4.0;
        Ok(Self {
            memory: held * (layers * number + tables),
            read: passed * common * number,
            row_read: passed * rows * table_number,
            flops: 2.0 * passed * (common + rows),
            attention_flops: passed * (4 * c.layers * c.heads * c.head_dim) as f64,
            cache: held * cache,
            cache_read: passed * cache,
        })
    }
}
