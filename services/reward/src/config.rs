//! The worker's settings: defaults, file, environment (`ATTUNE_REWARD_...`), flags.

use attune_service::{
    args::ServiceArgs,
    config::{ConfigError, Merged, invalid},
    engine::{EngineArgs, EngineConfig},
    limits::LimitsConfig,
    sections::{LogConfig, ServerConfig},
    telemetry::{Settings, TelemetryConfig},
};
use serde::{Deserialize, Serialize};

use crate::profiles::ProfilesConfig;

/// The prefix of the worker's environment variables.
const ENV_PREFIX: &str = "ATTUNE_REWARD_";

/// The worker's default port.
const PORT: u16 = 50052;

/// The settings of `attune-reward`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RewardConfig {
    /// The reward model, and what its engine may take.
    #[serde(flatten, skip_deserializing)]
    pub engine: EngineConfig,
    /// Where people's profiles are kept.
    pub profiles: ProfilesConfig,
    /// Where and how gRPC is served. Default: port 50052 on loopback.
    pub server: ServerConfig,
    /// What is logged.
    pub log: LogConfig,
    /// What is exported by OTLP. Default: nothing.
    pub telemetry: TelemetryConfig,
    /// Whether people's texts may stand in the log, and in what is exported of it: prompts and preferences
    /// at debug; and on stderr what other crates write down of what they carry. Default: false.
    pub log_content: bool,
}

impl Default for RewardConfig {
    fn default() -> Self {
        Self {
            engine: EngineConfig::default(),
            profiles: ProfilesConfig::default(),
            server: ServerConfig {
                limits: LimitsConfig { lifetime_seconds: 86_400.0, ..LimitsConfig::default() },
                ..ServerConfig::on_port(PORT)
            },
            log: LogConfig::default(),
            telemetry: TelemetryConfig::default(),
            log_content: false,
        }
    }
}

impl RewardConfig {
    /// Layers the flags over the environment, the file that the flags name, and the defaults.
    ///
    /// # Errors
    /// Names the unknown key, or the value that is not allowed, and where it stands.
    pub fn load(args: &Args, env: impl IntoIterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let merged = Merged::of::<Self>(args.service.config.as_deref(), ENV_PREFIX, env, args.overrides()?)?;
        let mut config = Self { engine: merged.read()?, ..merged.read()? };
        config.profiles = config.profiles.or_default(|name| std::env::var_os(name).map(Into::into));
        config.validate()?;
        Ok(config)
    }

    /// Checks every range.
    ///
    /// # Errors
    /// Names the key and what is allowed.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.engine.validate()?;
        self.profiles.place()?;
        self.server.validate()?;
        let (tls, insecure) = (&self.server.tls, self.server.insecure);
        if let (Some(cert), true, false) = (&tls.cert, tls.client_names.is_empty(), insecure) {
            let allowed = "set together with `server.tls.client_ca` and `server.tls.client_names`: a worker believes \
                           whoever speaks to it whose texts these are, and has to know its generators by name; \
                           `server.insecure = true` lets everybody speak to it";
            return Err(invalid("server.tls.cert", cert.display(), allowed));
        }
        self.telemetry.validate()?;
        self.log.validate()
    }

    /// What the process tells of itself.
    pub fn telemetry(&self) -> Settings<'_> {
        Settings { log: &self.log, content: self.log_content, telemetry: &self.telemetry }
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
    /// The flags of the reward model and its engine.
    #[command(flatten)]
    pub engine: EngineArgs,
    /// The flags that every service has.
    #[command(flatten)]
    pub service: ServiceArgs,
}

impl Args {
    fn overrides(&self) -> Result<Vec<(String, String)>, ConfigError> {
        let mut all = self.service.overrides()?;
        all.extend(self.engine.overrides());
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use attune_service::engine::{Dtype, Quantize};
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
        let engine = &config.engine;
        assert_eq!((engine.model.as_str(), engine.slots, engine.dtype), ("b/c", 7, Dtype::Bf16));
        assert_eq!((config.server.listen.port(), engine.context), (0, Some(99)));
        assert_eq!((engine.quantize, engine.id().as_str()), (Quantize::None, "b/c"));
        let config = load(&["--model", "x", "--quantize", "q8", "--model-id", "y"], &[]).unwrap();
        assert_eq!((config.engine.quantize, config.engine.id().as_str()), (Quantize::Q8, "y"));
    }

    #[test]
    fn shared_prefixes_stand_in_the_file() {
        let file = |text: &str| {
            let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
            std::fs::write(file.path(), text).unwrap();
            load(&["--model", "x", "--config", &file.path().to_string_lossy()], &[])
        };
        let system = "[[shared_prefixes]]\nsystem = \"Be brief, please.\"\n";
        let config = file(&format!("prefix_cache = false\n{system}preference = \"in verse\"")).unwrap();
        assert!(!config.engine.prefix_cache);
        let prefix = &config.engine.shared_prefixes[0];
        assert_eq!(prefix.system.as_deref(), Some("Be brief, please."));
        assert_eq!((prefix.preference.as_deref(), &prefix.text), (Some("in verse"), &None));
        for wrong in ["[[shared_prefixes]]", &format!("{system}text = \"\""), "shared_prefixes = [\"x\"]"] {
            let error = file(wrong).unwrap_err().to_string();
            assert!(error.contains("shared_prefixes"), "{error}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (flags, env, named) in [
            (&["--slots", "3"][..], ("X", ""), "model"),
            (&["--model", "x", "--slots", "0"], ("X", ""), "slots"),
            (&["--model", "x", "--context", "0"], ("X", ""), "context"),
            (&["--model", "x"], ("ATTUNE_REWARD_SLOTTS", "3"), "SLOTTS"),
            (&["--model", "x"], ("ATTUNE_REWARD_SLOTS", "many"), "ATTUNE_REWARD_SLOTS"),
            (&["--model", "x", "--set", "dtype=q8"], ("X", ""), "none of auto, f32, bf16 or f16"),
            (&["--model", "x"], ("ATTUNE_REWARD_QUANTIZE", "q4"), "none or q8"),
        ] {
            let error = load(flags, &[env]).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
