//! The settings of a service's engine, the same in both: which model, how it is stored, and what it may
//! take of the machine.

use std::{path::Path, thread};

use attune_engine::{LoadError, ModelPath, SharedPrefix, hub};
use attune_kernels::{
    Format, KernelError, Threads,
    cuda::{Cache, CudaError, Gpu},
};
use serde::{Deserialize, Serialize};

pub use crate::device::Device;

use crate::config::{ConfigError, check_range, choice, invalid};

/// In which floats matrices are kept in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub enum Dtype {
    /// As the checkpoint has them.
    Auto,
    /// 32-bit floats.
    F32,
    /// 16-bit brain floats.
    Bf16,
    /// 16-bit floats.
    F16,
}

impl TryFrom<String> for Dtype {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        choice(&text)
    }
}

/// How matrices are packed while a model loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub enum Quantize {
    /// Not at all: in the floats that `dtype` says.
    None,
    /// Blocks of 32 8-bit integers with a scale each.
    Q8,
}

impl TryFrom<String> for Quantize {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        choice(&text)
    }
}

/// What an engine loads, and what it may take. Its keys stand at the top level of a service's
/// configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EngineConfig {
    /// The model: a checkpoint folder, a GGUF file, the folder of a LoRA adapter, or an id of the Hugging Face
    /// hub. Required.
    pub model: String,
    /// The model that a LoRA adapter is worn on, where `model` is the folder of one. Absent: the hub id that
    /// the adapter names.
    pub base_model: Option<String>,
    /// The name that others know the model by. Absent: the folder's or file's name, or the hub
    /// id.
    pub model_id: Option<String>,
    /// The revision to fetch of a hub id. Absent: its main branch.
    pub model_revision: Option<String>,
    /// Where the model computes: cpu, cuda:N or auto. Default: cpu.
    pub device: Device,
    /// Threads that compute on a CPU, 0 to 1024. 0, the default: one for each core.
    pub threads: usize,
    /// In which floats matrices are kept. Default: auto.
    pub dtype: Dtype,
    /// How matrices are packed at load; goes before `dtype`. Default: none.
    pub quantize: Quantize,
    /// The longest context to serve, in tokens, from 2; at most the model's own is used. Absent: the
    /// model's.
    pub context: Option<usize>,
    /// Texts that are computed at once (on a worker: open sessions), 1 to 65536. Default: 64.
    pub slots: usize,
    /// The memory of the cache of keys and values in MiB, 1 to 16777216 (on a worker, the reference's
    /// included). More than `slots` whole contexts need is not taken. Absent: 1024 on a CPU, on a card half
    /// of what is free there once the model is loaded.
    pub cache_mib: Option<usize>,
    /// Tokens of prompts that one forward pass reads, over all texts, 1 to 65536. The steps of other
    /// texts wait no longer than that takes. Absent: 64 on a CPU, 512 on a card.
    pub prefill_chunk: Option<usize>,
    /// Whether what has been computed is kept for texts that begin alike. Default: true.
    pub prefix_cache: bool,
    /// The operator's own beginnings of prompts, shared between all owners; anything else is shared
    /// within one owner alone. A table each, `{ system = "..." }`, so they stand in the file.
    pub shared_prefixes: Vec<SharedPrefix>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            model: String::new(),
            base_model: None,
            model_id: None,
            model_revision: None,
            device: Device::Cpu,
            threads: 0,
            dtype: Dtype::Auto,
            quantize: Quantize::None,
            context: None,
            slots: 64,
            cache_mib: None,
            prefill_chunk: None,
            prefix_cache: true,
            shared_prefixes: Vec::new(),
        }
    }
}

impl EngineConfig {
    /// Checks every range.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] names the key and what is allowed.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.model.is_empty() {
            return Err(invalid(
                "model",
                "absent",
                "a checkpoint folder, a .gguf file or a hub id; give --model",
            ));
        }
        check_range("threads", self.threads, 0..=1024)?;
        if let Some(context) = self.context {
            check_range("context", context, 2..=1 << 24)?;
        }
        check_range("slots", self.slots, 1..=65_536)?;
        if let Some(mib) = self.cache_mib {
            check_range("cache_mib", mib, 1..=1 << 24)?;
        }
        if let Some(tokens) = self.prefill_chunk {
            check_range("prefill_chunk", tokens, 1..=65_536)?;
        }
        for (i, prefix) in self.shared_prefixes.iter().enumerate() {
            if let Some(allowed) = prefix.problem() {
                return Err(invalid(&format!("shared_prefixes[{i}]"), format!("{prefix:?}"), allowed));
            }
        }
        Ok(())
    }

    /// The name that others know the model by; never empty.
    pub fn id(&self) -> String {
        let named = self.model_id.clone().filter(|id| !id.is_empty());
        named.unwrap_or_else(|| {
            let path = Path::new(&self.model);
            let place = path.canonicalize().ok();
            let name = match &place {
                Some(folder) if folder.is_dir() => folder.file_name(),
                Some(file) => file.file_stem(),
                None => None,
            };
            name.map_or_else(|| self.model.clone(), |n| n.to_string_lossy().into_owned())
        })
    }

    /// Where the model lies, fetched where it is a hub id.
    ///
    /// # Errors
    /// As [`hub::locate`].
    pub fn locate(&self) -> Result<ModelPath, LoadError> {
        hub::locate(&self.model, self.model_revision.as_deref(), self.base_model.as_deref())
    }

    /// The packed form of matrices. `None`: as the checkpoint has them.
    pub fn format(&self) -> Option<Format> {
        match (self.quantize, self.dtype) {
            (Quantize::Q8, _) => Some(Format::Q8),
            (Quantize::None, Dtype::Auto) => None,
            (Quantize::None, Dtype::F32) => Some(Format::F32),
            (Quantize::None, Dtype::Bf16) => Some(Format::Bf16),
            (Quantize::None, Dtype::F16) => Some(Format::F16),
        }
    }

    /// The threads to compute on.
    ///
    /// # Errors
    /// The system refuses them.
    pub fn threads(&self) -> Result<Threads, KernelError> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Threads::new(if self.threads == 0 { cores } else { self.threads })
    }

    /// The card to compute on; none: the CPU. It opens the card, and looks for driver and libraries first.
    ///
    /// # Errors
    /// The card that is asked for cannot be used; the sentence says why, and what to do.
    pub fn gpu(&self) -> Result<Option<Gpu>, CudaError> {
        let open = |ordinal| {
            let gpu = Gpu::open(ordinal, Cache::default())?;
            tracing::info!(card = gpu.name(), "the model computes on a card");
            Ok(gpu)
        };
        match self.device {
            Device::Cpu => Ok(None),
            Device::Cuda(ordinal) => open(ordinal).map(Some),
            // 8-bit weights compute on a CPU alone.
            Device::Auto if self.quantize == Quantize::Q8 => Ok(None),
            Device::Auto => {
                let opened = open(0);
                if let Err(error) = &opened {
                    tracing::info!(%error, "no card can be used; the model computes on the CPU");
                }
                Ok(opened.ok())
            }
        }
    }

    /// Tokens of prompts that one forward pass reads, where the model has been loaded: to a card or not.
    pub fn prefill_chunk(&self, gpu: Option<&Gpu>) -> usize {
        // A card reads all weights in every pass, however few its rows: many cost little more than one there, up to
        // the some hundred at which its products are bound by arithmetic. A CPU's pass takes as long as its rows.
        self.prefill_chunk.unwrap_or(if gpu.is_some() { 512 } else { 64 })
    }

    /// The memory of the cache in MiB, where the model has been loaded: to a card or not.
    ///
    /// # Errors
    /// The card does not say how much of its memory is free.
    pub fn cache_mib(&self, gpu: Option<&Gpu>) -> Result<usize, CudaError> {
        match (self.cache_mib, gpu) {
            (Some(mib), _) => Ok(mib),
            (None, None) => Ok(1024),
            // The other half is for the passes themselves, and for a second service on the same card.
            (None, Some(gpu)) => Ok((gpu.memory()?.0 / 2) >> 20),
        }
    }

    /// The blocks of `block_bytes` that `cache_mib` hold, at least `least`, and no more than the slots need at
    /// `per_slot` each.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] where they are fewer than `least`.
    pub fn blocks(
        &self,
        cache_mib: usize,
        block_bytes: usize,
        per_slot: usize,
        least: usize,
    ) -> Result<usize, ConfigError> {
        let fit = (cache_mib << 20) / block_bytes.max(1);
        if fit < least {
            let needed = (least * block_bytes).div_ceil(1 << 20);
            let allowed = format!("{needed} or more: {least} blocks of this model's cache must fit");
            return Err(invalid("cache_mib", cache_mib, allowed));
        }
        Ok(fit.min(self.slots.saturating_mul(per_slot).max(least)))
    }
}

/// The flags of an engine; flatten it into the service's own with `#[command(flatten)]`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct EngineArgs {
    /// The model: a checkpoint folder, a .gguf file, an adapter's folder, or a hub id such as
    /// "organisation/name".
    #[arg(long, value_name = "FOLDER|FILE|ID")]
    pub model: Option<String>,
    /// The model that an adapter is worn on [default: the hub id that the adapter names]
    #[arg(long, value_name = "FOLDER|FILE|ID")]
    pub base_model: Option<String>,
    /// The name that others know the model by [default: the folder's or file's name, or the hub id]
    #[arg(long, value_name = "NAME")]
    pub model_id: Option<String>,
    /// Where the model computes: cpu, cuda:N (an NVIDIA card's number, from 0), or auto (the first card that
    /// can be used, else the CPU) [default: cpu]
    #[arg(long, value_name = "cpu|cuda:N|auto")]
    pub device: Option<Device>,
    /// Threads that compute on a CPU; 0: one for each core [default: 0]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// In which floats matrices are kept in memory [default: auto, as in the checkpoint]
    #[arg(long, value_name = "TYPE")]
    pub dtype: Option<Dtype>,
    /// Pack matrices at load, to a quarter of f32's size with q8; goes before --dtype [default: none]
    #[arg(long, value_name = "FORM")]
    pub quantize: Option<Quantize>,
    /// The longest context to serve, in tokens [default: the model's own]
    #[arg(long, value_name = "TOKENS")]
    pub context: Option<usize>,
    /// Texts that are computed at once; on a worker, open sessions [default: 64]
    #[arg(long, value_name = "N")]
    pub slots: Option<usize>,
    /// The memory of the cache of keys and values [default: 1024 on a CPU, half of a card's free memory]
    #[arg(long, value_name = "MIB")]
    pub cache_mib: Option<usize>,
    /// Tokens of prompts that one forward pass reads [default: 64 on a CPU, 512 on a card]
    #[arg(long, value_name = "TOKENS")]
    pub prefill_chunk: Option<usize>,
}

impl EngineArgs {
    /// The flags that were given, as overrides for [`crate::config::Merged::of`].
    pub fn overrides(&self) -> impl Iterator<Item = (String, String)> {
        let number = |n: Option<usize>| n.map(|n| n.to_string());
        [
            ("model", self.model.clone()),
            ("base_model", self.base_model.clone()),
            ("model_id", self.model_id.clone()),
            ("device", self.device.map(|device| device.to_string())),
            ("threads", number(self.threads)),
            ("dtype", self.dtype.as_ref().map(name)),
            ("quantize", self.quantize.as_ref().map(name)),
            ("context", number(self.context)),
            ("slots", number(self.slots)),
            ("cache_mib", number(self.cache_mib)),
            ("prefill_chunk", number(self.prefill_chunk)),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?)))
    }
}

/// A choice's name, as flags and files spell it.
fn name(choice: &impl clap::ValueEnum) -> String {
    choice.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_goes_before_floats() {
        let mut config = EngineConfig::default();
        assert_eq!(config.format(), None);
        config.dtype = Dtype::Bf16;
        assert_eq!(config.format(), Some(Format::Bf16));
        config.quantize = Quantize::Q8;
        assert_eq!(config.format(), Some(Format::Q8));
    }

    #[test]
    fn choices_are_listed() {
        let error = Dtype::try_from("q8".to_owned()).unwrap_err();
        assert_eq!(error, "\"q8\" is none of auto, f32, bf16 or f16");
        assert_eq!(Quantize::try_from("q8".to_owned()), Ok(Quantize::Q8));
        assert!(Quantize::try_from("q4".to_owned()).unwrap_err().contains("none or q8"));
    }

    #[test]
    fn blocks_stay_between_the_least_and_what_slots_need() {
        let config = EngineConfig { slots: 2, ..EngineConfig::default() };
        assert_eq!(config.blocks(1, 1 << 10, 8, 2).unwrap(), 16);
        assert_eq!(config.blocks(1, 1 << 18, 8, 2).unwrap(), 4);
        let error = config.blocks(1, 1 << 20, 8, 2).unwrap_err().to_string();
        assert!(error.contains("`cache_mib` is 1") && error.contains("2 or more"), "{error}");
    }

    #[test]
    fn what_is_set_goes_before_what_the_device_suggests() {
        let config = EngineConfig::default();
        assert_eq!((config.prefill_chunk(None), config.cache_mib(None).unwrap()), (64, 1024));
        let config = EngineConfig { prefill_chunk: Some(7), cache_mib: Some(3), ..config };
        assert_eq!((config.prefill_chunk(None), config.cache_mib(None).unwrap()), (7, 3));
    }

    #[test]
    fn the_id_is_never_empty() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().to_str().unwrap().to_owned();
        let name = folder.path().file_name().unwrap().to_str().unwrap();
        assert_eq!(EngineConfig { model, ..EngineConfig::default() }.id(), name);
        let file = folder.path().join("base.q8.gguf");
        std::fs::write(&file, "").unwrap();
        let model = file.to_str().unwrap().to_owned();
        assert_eq!(EngineConfig { model, ..EngineConfig::default() }.id(), "base.q8");
        let hub = EngineConfig { model: "b/c".into(), ..EngineConfig::default() };
        assert_eq!(hub.id(), "b/c");
        assert_eq!(EngineConfig { model_id: Some("y".into()), ..hub }.id(), "y");
    }
}
