//! The generator's settings: defaults, file, environment (`ATTUNE_GENERATOR_...`), flags.

use std::{path::Path, time::Duration};

use attune_service::{
    args::ServiceArgs,
    config::{ConfigError, check_range, invalid, load},
    sections::{LogConfig, ServerConfig},
};
use serde::{Deserialize, Serialize};

/// The prefix of the generator's environment variables.
const ENV_PREFIX: &str = "ATTUNE_GENERATOR_";

/// The generator's default port.
const PORT: u16 = 50051;

/// How the matrices of the model are stored in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// As in the checkpoint.
    Auto,
    /// 32-bit floats.
    F32,
    /// 16-bit brain floats.
    Bf16,
    /// 16-bit floats.
    F16,
    /// Blocks of 8-bit integers, packed at start.
    Q8,
}

/// The settings of `attune-generator`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GeneratorConfig {
    /// The base model: a checkpoint folder, or an id of the Hugging Face hub. Required.
    pub model: String,
    /// The name that `Describe` tells. Absent: the folder's name, or the hub id.
    pub model_id: Option<String>,
    /// The revision to fetch of a hub id. Absent: its main branch.
    pub model_revision: Option<String>,
    /// The addresses of the reward workers, as URLs. Without any, requests with guidance are refused.
    pub reward: Vec<String>,
    /// Threads that compute, 0 to 1024. 0, the default: one for each core.
    pub threads: usize,
    /// How matrices are stored. Default: auto.
    pub dtype: Dtype,
    /// The longest context to serve, in tokens; at most the model's own is used. Absent: the model's.
    pub context: Option<usize>,
    /// Sequences that decode at once, 1 to 1024. Default: 64.
    pub slots: usize,
    /// Requests that wait beyond those, 0 to 65536. Default: 256.
    pub queue: usize,
    /// The memory of the cache of keys and values in MiB, 1 to 16777216. More than `slots` whole
    /// contexts need is not taken. Default: 1024.
    pub cache_mib: usize,
    /// Tokens of prompts that one forward pass reads, over all sequences, 1 to 65536. The steps of
    /// other sequences wait no longer than that takes. Default: 64.
    pub prefill_chunk: usize,
    /// The most tokens that a request may ask for, 1 to 16777216. Default: 1024.
    pub max_tokens: u32,
    /// How long rows that could run wait for the rewards of the others, in milliseconds, 0 to 1000, so
    /// that all share one forward pass. Default: 2.
    pub reward_grace_ms: f64,
    /// How long a text waits for a reward worker, or for the rewards of a step, in seconds, 0 to 3600.
    /// Default: 10.
    pub reward_wait_seconds: f64,
    /// Where and how gRPC is served. Default: port 50051 on loopback.
    pub server: ServerConfig,
    /// What is logged.
    pub log: LogConfig,
}

impl Default for GeneratorConfig {
    fn default() -> Self {
        Self {
            model: String::new(),
            model_id: None,
            model_revision: None,
            reward: Vec::new(),
            threads: 0,
            dtype: Dtype::Auto,
            context: None,
            slots: 64,
            queue: 256,
            cache_mib: 1024,
            prefill_chunk: 64,
            max_tokens: 1024,
            reward_grace_ms: 2.0,
            reward_wait_seconds: 10.0,
            server: ServerConfig::on_port(PORT),
            log: LogConfig::default(),
        }
    }
}

impl GeneratorConfig {
    /// Layers the flags over the environment, the file that the flags name, and the defaults.
    ///
    /// # Errors
    /// Names the unknown key, or the value that is not allowed, and where it stands.
    pub fn load(args: &Args, env: impl IntoIterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let config: Self = load(args.service.config.as_deref(), ENV_PREFIX, env, args.overrides()?)?;
        config.validate()?;
        Ok(config)
    }

    /// Checks every range.
    ///
    /// # Errors
    /// Names the key and what is allowed.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.model.is_empty() {
            return Err(invalid("model", "absent", "a checkpoint folder or a hub id; give --model"));
        }
        check_range("threads", self.threads, 0..=1024)?;
        if let Some(context) = self.context {
            check_range("context", context, 2..=1 << 24)?;
        }
        check_range("slots", self.slots, 1..=1024)?;
        check_range("queue", self.queue, 0..=65_536)?;
        check_range("cache_mib", self.cache_mib, 1..=1 << 24)?;
        check_range("prefill_chunk", self.prefill_chunk, 1..=65_536)?;
        check_range("max_tokens", self.max_tokens, 1..=1 << 24)?;
        check_range("reward_grace_ms", self.reward_grace_ms, 0.0..=1000.0)?;
        check_range("reward_wait_seconds", self.reward_wait_seconds, 0.0..=3600.0)?;
        self.server.validate()?;
        self.log.validate()
    }

    /// The name that `Describe` tells; never empty.
    pub(crate) fn id(&self) -> String {
        let named = self.model_id.clone().filter(|id| !id.is_empty());
        named.unwrap_or_else(|| {
            let path = Path::new(&self.model);
            let folder = path.is_dir().then(|| path.canonicalize().ok()).flatten();
            let name = folder.as_deref().and_then(Path::file_name);
            name.map_or_else(|| self.model.clone(), |n| n.to_string_lossy().into_owned())
        })
    }

    pub(crate) fn grace(&self) -> Duration {
        Duration::from_secs_f64(self.reward_grace_ms / 1000.0)
    }

    pub(crate) fn reward_wait(&self) -> Duration {
        Duration::from_secs_f64(self.reward_wait_seconds)
    }
}

/// Attune's generator: decodes text with a base model, and lets reward workers steer every token to the
/// person whose text it is.
///
/// Settings come from defaults, then the --config file, then environment variables
/// (ATTUNE_GENERATOR_MODEL, ATTUNE_GENERATOR_SERVER__LISTEN, ...), then flags; the later wins.
#[derive(Debug, Clone, Default, clap::Parser)]
#[command(name = "attune-generator", version)]
pub struct Args {
    /// The base model: a checkpoint folder, or a hub id such as "organisation/name".
    #[arg(long, value_name = "FOLDER|ID")]
    pub model: Option<String>,
    /// The name that `describe` tells [default: the folder's name, or the hub id]
    #[arg(long, value_name = "NAME")]
    pub model_id: Option<String>,
    /// A reward worker, such as http://127.0.0.1:50052; repeatable.
    #[arg(long, value_name = "URL")]
    pub reward: Vec<String>,
    /// Threads that compute; 0: one for each core [default: 0]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// How matrices are stored in memory [default: auto, as in the checkpoint]
    #[arg(long, value_name = "TYPE")]
    pub dtype: Option<Dtype>,
    /// The longest context to serve, in tokens [default: the model's own]
    #[arg(long, value_name = "TOKENS")]
    pub context: Option<usize>,
    /// Sequences that decode at once [default: 64]
    #[arg(long, value_name = "N")]
    pub slots: Option<usize>,
    /// Requests that wait beyond those [default: 256]
    #[arg(long, value_name = "N")]
    pub queue: Option<usize>,
    /// The memory of the cache of keys and values [default: 1024]
    #[arg(long, value_name = "MIB")]
    pub cache_mib: Option<usize>,
    /// Tokens of prompts that one forward pass reads [default: 64]
    #[arg(long, value_name = "TOKENS")]
    pub prefill_chunk: Option<usize>,
    /// The flags that every service has.
    #[command(flatten)]
    pub service: ServiceArgs,
}

impl Args {
    fn overrides(&self) -> Result<Vec<(String, String)>, ConfigError> {
        let mut all = self.service.overrides()?;
        let mut set = |key: &str, value: Option<String>| all.extend(value.map(|v| (key.to_owned(), v)));
        let number = |n: Option<usize>| n.map(|n| n.to_string());
        set("model", self.model.clone());
        set("model_id", self.model_id.clone());
        for url in &self.reward {
            set("reward", Some(url.clone()));
        }
        set("threads", number(self.threads));
        let dtype = self.dtype.and_then(|d| clap::ValueEnum::to_possible_value(&d));
        set("dtype", dtype.map(|d| d.get_name().to_owned()));
        set("context", number(self.context));
        set("slots", number(self.slots));
        set("queue", number(self.queue));
        set("cache_mib", number(self.cache_mib));
        set("prefill_chunk", number(self.prefill_chunk));
        Ok(all)
    }
}
