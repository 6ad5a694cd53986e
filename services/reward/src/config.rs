//! The worker's settings: defaults, file, environment (`ATTUNE_REWARD_...`), flags.

use std::path::Path;

use attune_service::{
    args::ServiceArgs,
    config::{ConfigError, check_range, invalid, load},
    sections::{LogConfig, ServerConfig},
};
use serde::{Deserialize, Serialize};

/// The prefix of the worker's environment variables.
const ENV_PREFIX: &str = "ATTUNE_REWARD_";

/// The worker's default port.
const PORT: u16 = 50052;

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

/// The settings of `attune-reward`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RewardConfig {
    /// The reward model: a checkpoint folder, or an id of the Hugging Face hub. Required.
    pub model: String,
    /// The name that guidances know the model by. Absent: the folder's name, or the hub id.
    pub model_id: Option<String>,
    /// The revision to fetch of a hub id. Absent: its main branch.
    pub model_revision: Option<String>,
    /// Threads that compute, 0 to 1024. 0, the default: one for each core.
    pub threads: usize,
    /// How matrices are stored. Default: auto.
    pub dtype: Dtype,
    /// The longest context to serve, in tokens; at most the model's own is used. Absent: the model's.
    pub context: Option<usize>,
    /// The most sessions that are open at once, 1 to 65536. Default: 64.
    pub slots: usize,
    /// The memory of the cache of keys and values in MiB, 1 to 16777216, the reference's included.
    /// More than `slots` whole contexts need is not taken. Default: 1024.
    pub cache_mib: usize,
    /// Tokens of prompts that one forward pass reads, over all sessions, 1 to 65536. The steps of other
    /// sessions wait no longer than that takes. Default: 64.
    pub prefill_chunk: usize,
    /// Where and how gRPC is served. Default: port 50052 on loopback.
    pub server: ServerConfig,
    /// What is logged.
    pub log: LogConfig,
}

impl Default for RewardConfig {
    fn default() -> Self {
        Self {
            model: String::new(),
            model_id: None,
            model_revision: None,
            threads: 0,
            dtype: Dtype::Auto,
            context: None,
            slots: 64,
            cache_mib: 1024,
            prefill_chunk: 64,
            server: ServerConfig::on_port(PORT),
            log: LogConfig::default(),
        }
    }
}

impl RewardConfig {
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
            check_range("context", context, 1..=1 << 24)?;
        }
        check_range("slots", self.slots, 1..=65_536)?;
        check_range("cache_mib", self.cache_mib, 1..=1 << 24)?;
        check_range("prefill_chunk", self.prefill_chunk, 1..=65_536)?;
        self.server.validate()?;
        self.log.validate()
    }

    /// The name that guidances know the model by; never empty.
    pub(crate) fn id(&self) -> String {
        let named = self.model_id.clone().filter(|id| !id.is_empty());
        named.unwrap_or_else(|| {
            let path = Path::new(&self.model);
            let folder = path.is_dir().then(|| path.canonicalize().ok()).flatten();
            let name = folder.as_deref().and_then(Path::file_name);
            name.map_or_else(|| self.model.clone(), |n| n.to_string_lossy().into_owned())
        })
    }
}

/// Attune's reward worker: scores the tokens that a generator considers, for the person whose text it
/// is, with a personalised reward model (PersRM).
///
/// Settings come from defaults, then the --config file, then environment variables (ATTUNE_REWARD_MODEL,
/// ATTUNE_REWARD_SERVER__LISTEN, ...), then flags; the later wins.
#[derive(Debug, Clone, Default, clap::Parser)]
#[command(name = "attune-reward", version)]
pub struct Args {
    /// The reward model: a checkpoint folder, or a hub id such as "organisation/name".
    #[arg(long, value_name = "FOLDER|ID")]
    pub model: Option<String>,
    /// The name that guidances know the model by [default: the folder's name, or the hub id]
    #[arg(long, value_name = "NAME")]
    pub model_id: Option<String>,
    /// Threads that compute; 0: one for each core [default: 0]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// How matrices are stored in memory [default: auto, as in the checkpoint]
    #[arg(long, value_name = "TYPE")]
    pub dtype: Option<Dtype>,
    /// The longest context to serve, in tokens [default: the model's own]
    #[arg(long, value_name = "TOKENS")]
    pub context: Option<usize>,
    /// The most sessions that are open at once [default: 64]
    #[arg(long, value_name = "N")]
    pub slots: Option<usize>,
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
        set("threads", number(self.threads));
        let dtype = self.dtype.and_then(|d| clap::ValueEnum::to_possible_value(&d));
        set("dtype", dtype.map(|d| d.get_name().to_owned()));
        set("context", number(self.context));
        set("slots", number(self.slots));
        set("cache_mib", number(self.cache_mib));
        set("prefill_chunk", number(self.prefill_chunk));
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn load(flags: &[&str], env: &[(&str, &str)]) -> Result<RewardConfig, ConfigError> {
        let args = Args::try_parse_from([&["attune-reward"], flags].concat()).unwrap();
        RewardConfig::load(&args, env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
    }

    #[test]
    fn flags_win_over_the_environment() {
        let env = [("ATTUNE_REWARD_MODEL", "a"), ("ATTUNE_REWARD_SLOTS", "7"), ("ATTUNE_GENERATOR_X", "1")];
        let flags = ["--model", "b/c", "--dtype", "bf16", "--listen", "127.0.0.1:0", "--context", "99"];
        let config = load(&flags, &env).unwrap();
        assert_eq!((config.model.as_str(), config.slots, config.dtype), ("b/c", 7, Dtype::Bf16));
        assert_eq!((config.server.listen.port(), config.context), (0, Some(99)));
        assert_eq!(config.id(), "b/c");
        assert_eq!(load(&["--model", "x", "--model-id", "y"], &[]).unwrap().id(), "y");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (flags, env, named) in [
            (&["--slots", "3"][..], ("X", ""), "model"),
            (&["--model", "x", "--slots", "0"], ("X", ""), "slots"),
            (&["--model", "x", "--context", "0"], ("X", ""), "context"),
            (&["--model", "x"], ("ATTUNE_REWARD_SLOTTS", "3"), "SLOTTS"),
        ] {
            let error = load(flags, &[env]).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
