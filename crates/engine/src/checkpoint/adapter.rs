//! A LoRA adapter (arXiv 2106.09685) in PEFT's folder layout, added to a model's matrices while they load.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde::Deserialize;
use serde_json::Value;

use super::safetensors::SafetensorsFiles;
use crate::{LoadError, files};

/// The adapter's settings.
pub(crate) const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// What stands before a layer's name in PEFT's files.
const PREFIX: &str = "base_model.model.";
/// The linear layers of a decoder.
const LAYERS: [&str; 8] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"];
/// No adapter in use has a higher rank; a larger one in a file would only cost memory.
const MAX_RANK: usize = 4096;

/// Two thin matrices for each adapted one: `W + scale * B A`, with `A` `[rank, in]` and `B` `[out, rank]`.
pub(super) struct Adapter {
    scale: f32,
    /// By the name of the matrix's tensor.
    layers: BTreeMap<String, Layer>,
    files: SafetensorsFiles,
}

struct Layer {
    rank: usize,
    n_in: usize,
    n_out: usize,
    a: Vec<f32>,
    b: Vec<f32>,
}

/// The keys of `adapter_config.json` that change the arithmetic. PEFT writes many more.
#[derive(Deserialize)]
struct Config {
    peft_type: Option<String>,
    base_model_name_or_path: Option<String>,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

/// Settings that ask for more than two thin matrices, and the values with which they do not.
const UNSUPPORTED: [(&str, &[&str]); 15] = [
    ("bias", &["none"]),
    ("fan_in_fan_out", &[]),
    ("use_dora", &[]),
    ("use_qalora", &[]),
    ("lora_bias", &[]),
    ("modules_to_save", &[]),
    ("rank_pattern", &[]),
    ("alpha_pattern", &[]),
    ("layer_replication", &[]),
    ("trainable_token_indices", &[]),
    ("target_parameters", &[]),
    ("alora_invocation_tokens", &[]),
    ("megatron_config", &[]),
    ("arrow_config", &[]),
    // These change the base's own weights before training.
    ("init_lora_weights", &["gaussian", "eva", "orthogonal", "default"]),
];

impl Config {
    fn load(folder: &Path) -> Result<Self, LoadError> {
        let path = folder.join(CONFIG);
        let text = files::read_text(&path).map_err(|e| LoadError::file(&path, e))?;
        let config: Self = serde_json::from_str(&text).map_err(|e| LoadError::file(&path, e))?;
        config.check().map_err(|problem| LoadError::file(&path, problem))?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        if let Some(kind) = self.peft_type.as_deref().filter(|kind| *kind != "LORA") {
            return Err(format!(
                "`peft_type` {kind} is not supported, only LORA; merge it into its base first"
            ));
        }
        for (key, harmless) in UNSUPPORTED {
            let value = self.others.get(key).unwrap_or(&Value::Null);
            let off = match value {
                Value::Null => true,
                // `init_lora_weights` is true where nothing special was asked for.
                Value::Bool(on) => !on || key == "init_lora_weights",
                Value::String(text) => harmless.contains(&text.as_str()),
                Value::Array(list) => list.is_empty(),
                Value::Object(map) => map.is_empty(),
                Value::Number(_) => false,
            };
            if !off {
                return Err(format!(
                    "`{key}` {value} is not supported; merge the adapter into its base first"
                ));
            }
        }
        if self.r == 0 || self.r > MAX_RANK {
            return Err(format!("`r` is {}; it must be in 1..={MAX_RANK}", self.r));
        }
        if !self.scale().is_finite() {
            return Err(format!("`lora_alpha` is {}; it must be a number", self.lora_alpha));
        }
        Ok(())
    }

    fn scale(&self) -> f32 {
        let rank = self.r as f64;
        // Rank-stabilised scaling (arXiv 2312.03732) divides by the root.
        (self.lora_alpha / if self.use_rslora { rank.sqrt() } else { rank }) as f32
    }
}

/// Whether a folder holds an adapter instead of a model.
pub(super) fn is_adapter(folder: &Path) -> bool {
    folder.join(CONFIG).exists() && !folder.join("config.json").exists()
}

/// What the adapter of a folder says of the model that it was trained on.
///
/// # Errors
/// The adapter's settings cannot be read, or ask for something unsupported.
pub(crate) fn base_of(folder: &Path) -> Result<Option<String>, LoadError> {
    Ok(Config::load(folder)?.base_model_name_or_path.filter(|name| !name.is_empty()))
}

impl Adapter {
    /// Opens an adapter for a model that has the tensors of which `base` says so.
    ///
    /// # Errors
    /// A setting that is not supported, a tensor that is no part of a LoRA, or one that does not fit the model:
    /// named.
    pub(super) fn open(folder: &Path, base: impl Fn(&str) -> bool) -> Result<Self, LoadError> {
        let config = Config::load(folder)?;
        let path = folder.join(WEIGHTS);
        if !path.exists() {
            let problem = "is missing: an adapter needs its weights as safetensors";
            return Err(LoadError::file(&path, problem));
        }
        let files = SafetensorsFiles::open_files(folder, vec![path.clone()])?;
        let mut layers = BTreeMap::new();
        for module in modules(&path, &files)? {
            let (a, b) = (part(&files, &module, "A"), part(&files, &module, "B"));
            let (n_in, n_out) = match (files.shape(&a)?.as_slice(), files.shape(&b)?.as_slice()) {
                ([rank, n_in], [n_out, rank_b]) if *rank == config.r && rank == rank_b => (*n_in, *n_out),
                (a, b) => {
                    let problem = format!("has parts {a:?} and {b:?}, which do not fit rank {}", config.r);
                    return Err(LoadError::tensor(&path, &module, problem));
                }
            };
            let name = format!("{module}.weight");
            if !base(&name) {
                let problem = "is adapted, but the base model has no such matrix; name the right base";
                return Err(LoadError::tensor(&path, &name, problem));
            }
            let (a, b) = (files.f32(&a, &[config.r, n_in])?, files.f32(&b, &[n_out, config.r])?);
            layers.insert(name, Layer { rank: config.r, n_in, n_out, a, b });
        }
        if layers.is_empty() {
            return Err(LoadError::file(&path, "holds no LoRA matrices"));
        }
        Ok(Self { scale: config.scale(), layers, files })
    }

    /// Whether a tensor is adapted; refuses it where its shape is another than the adapter's.
    ///
    /// # Errors
    /// The shapes differ.
    pub(super) fn adapts(&self, name: &str, shape: &[usize]) -> Result<bool, String> {
        match self.layers.get(name) {
            None => Ok(false),
            Some(layer) if shape == [layer.n_out, layer.n_in] => Ok(true),
            Some(layer) => Err(format!(
                "has shape {shape:?}, but the adapter was trained for {:?}",
                [layer.n_out, layer.n_in]
            )),
        }
    }

    /// Adds its part to one row of a matrix.
    pub(super) fn add(&self, name: &str, row: usize, out: &mut [f32]) {
        let Some(layer) = self.layers.get(name) else { return };
        let weights = &layer.b[row * layer.rank..][..layer.rank];
        for (weight, thin) in weights.iter().zip(layer.a.chunks_exact(layer.n_in)) {
            let weight = self.scale * weight;
            out.iter_mut().zip(thin).for_each(|(out, a)| *out += weight * a);
        }
    }

    /// Whether this tensor is adapted.
    pub(super) fn has(&self, name: &str) -> bool {
        self.layers.contains_key(name)
    }

    /// What multiplies the product of its matrices.
    pub(super) fn scale(&self) -> f32 {
        self.scale
    }

    /// The file's bytes.
    pub(super) fn bytes(&self) -> impl Iterator<Item = &[u8]> {
        self.files.bytes()
    }
}

/// The modules that a file adapts, `model.layers.0.mlp.up_proj` and the like.
fn modules(path: &Path, files: &SafetensorsFiles) -> Result<BTreeSet<String>, LoadError> {
    let mut modules = BTreeSet::new();
    for name in files.names() {
        let module = name.strip_prefix(PREFIX).and_then(|rest| {
            let endings =
                [".lora_A.weight", ".lora_B.weight", ".lora_A.default.weight", ".lora_B.default.weight"];
            endings.iter().find_map(|ending| rest.strip_suffix(ending))
        });
        let module = module.filter(|module| {
            let last = module.rsplit('.').next().unwrap_or(module);
            LAYERS.contains(&last)
        });
        match module {
            Some(module) => drop(modules.insert(module.to_owned())),
            None => {
                let problem = "is not supported in an adapter: LoRA matrices of linear layers alone are; merge \
                               the adapter into its base first";
                return Err(LoadError::tensor(path, name, problem));
            }
        }
    }
    Ok(modules)
}

/// The full name of a module's `A` or `B`.
fn part(files: &SafetensorsFiles, module: &str, which: &str) -> String {
    let named = format!("{PREFIX}{module}.lora_{which}.default.weight");
    if files.contains(&named) { named } else { format!("{PREFIX}{module}.lora_{which}.weight") }
}
