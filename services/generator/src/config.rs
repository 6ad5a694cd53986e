//! The generator's settings: defaults, file, environment (`ATTUNE_GENERATOR_...`), flags.

use std::time::Duration;

use attune_service::{
    args::ServiceArgs,
    auth::AuthConfig,
    config::{ConfigError, Merged, check_range, invalid},
    engine::{EngineArgs, EngineConfig},
    sections::{LogConfig, ServerConfig},
    telemetry::{Settings, TelemetryConfig},
    tls::ClientTlsConfig,
};
use serde::{Deserialize, Serialize};

use crate::{discovery::Source, fuse::FuseOn, guides::Patience};

/// The prefix of the generator's environment variables.
const ENV_PREFIX: &str = "ATTUNE_GENERATOR_";

/// The generator's default port.
const PORT: u16 = 50051;

/// The settings of `attune-generator`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GeneratorConfig {
    /// The base model, and what its engine may take.
    #[serde(flatten, skip_deserializing)]
    pub engine: EngineConfig,
    /// The reward workers: http://HOST:PORT, or http+dns://HOST:PORT, where every address of HOST is a
    /// worker and is looked up again every few seconds; https and https+dns speak TLS. Without any, requests with guidance are refused.
    pub reward: Vec<String>,
    /// How this generator makes sure of its workers, and which certificate it shows them. It counts for
    /// https and https+dns.
    pub reward_tls: ClientTlsConfig,
    /// Requests that wait beyond those that decode, 0 to 65536. Default: 256.
    pub queue: usize,
    /// Where rewards are fused and tokens are chosen: host, or device, by the kernel on the model's card.
    /// Default: host.
    pub fuse: FuseOn,
    /// The most tokens that a request may ask for, 1 to 16777216. Default: 1024.
    pub max_tokens: u32,
    /// How long rows that could run wait for the rewards of the others, in milliseconds, 0 to 1000, so
    /// that all share one forward pass. Default: 2.
    pub reward_grace_ms: f64,
    /// How long the rewards of a step may take, in seconds, 0.001 to 3600; then the text's session moves to
    /// another worker. Default: 5.
    pub reward_wait_max_seconds: f64,
    /// The same for a session's first rewards, before which its worker reads the whole context, in seconds,
    /// 0.001 to 3600. Default: 60.
    pub reward_prefill_max_seconds: f64,
    /// How long a text waits while no reward worker can take it, in seconds, 0 to 3600. Default: 10.
    pub reward_loss_seconds: f64,
    /// Where and how gRPC is served. Default: port 50051 on loopback.
    pub server: ServerConfig,
    /// Who may call, and how much each may have. Default: everybody, as one owner.
    pub auth: AuthConfig,
    /// What is logged.
    pub log: LogConfig,
    /// What is exported by OTLP. Default: nothing.
    pub telemetry: TelemetryConfig,
    /// Whether people's texts may stand in the log, and in what is exported of it: prompts and preferences
    /// at debug; and on stderr what other crates write down of what they carry. Default: false.
    pub log_content: bool,
}

impl Default for GeneratorConfig {
    fn default() -> Self {
        Self {
            engine: EngineConfig::default(),
            reward: Vec::new(),
            reward_tls: ClientTlsConfig::default(),
            queue: 256,
            fuse: FuseOn::Host,
            max_tokens: 1024,
            reward_grace_ms: 2.0,
            reward_wait_max_seconds: 5.0,
            reward_prefill_max_seconds: 60.0,
            reward_loss_seconds: 10.0,
            server: ServerConfig::on_port(PORT),
            auth: AuthConfig::default(),
            log: LogConfig::default(),
            telemetry: TelemetryConfig::default(),
            log_content: false,
        }
    }
}

impl GeneratorConfig {
    /// Layers the flags over the environment, the file that the flags name, and the defaults.
    ///
    /// # Errors
    /// Names the unknown key, or the value that is not allowed, and where it stands.
    pub fn load(args: &Args, env: impl IntoIterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let merged = Merged::of::<Self>(args.service.config.as_deref(), ENV_PREFIX, env, args.overrides()?)?;
        let config = Self { engine: merged.read()?, ..merged.read()? };
        config.validate()?;
        Ok(config)
    }

    /// Checks every range.
    ///
    /// # Errors
    /// Names the key and what is allowed.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.engine.validate()?;
        check_range("queue", self.queue, 0..=65_536)?;
        check_range("max_tokens", self.max_tokens, 1..=1 << 24)?;
        check_range("reward_grace_ms", self.reward_grace_ms, 0.0..=1000.0)?;
        check_range("reward_wait_max_seconds", self.reward_wait_max_seconds, 0.001..=3600.0)?;
        check_range("reward_prefill_max_seconds", self.reward_prefill_max_seconds, 0.001..=3600.0)?;
        check_range("reward_loss_seconds", self.reward_loss_seconds, 0.0..=3600.0)?;
        self.reward_tls.validate("reward_tls")?;
        for entry in &self.reward {
            let allowed = "http://HOST:PORT, or http+dns://HOST:PORT where every address of HOST is a worker; https and \
                           https+dns speak TLS";
            let source: Source = entry.parse().map_err(|_| invalid("reward", entry, allowed))?;
            if !source.is_tls() && self.reward_tls != ClientTlsConfig::default() {
                let allowed =
                    "https or https+dns where `reward_tls` is set: no worker is to be spoken to without it";
                return Err(invalid("reward", entry, allowed));
            }
            if source.is_tls()
                && matches!(source, Source::Name { .. })
                && self.reward_tls.server_name.is_none()
            {
                let allowed = "https+dns only with `reward_tls.server_name`, the name that the workers' certificates are \
                               for: they are reached by their addresses";
                return Err(invalid("reward", entry, allowed));
            }
        }
        self.server.validate()?;
        self.auth.validate()?;
        self.telemetry.validate()?;
        self.log.validate()
    }

    /// What the process tells of itself.
    pub fn telemetry(&self) -> Settings<'_> {
        Settings { log: &self.log, content: self.log_content, telemetry: &self.telemetry }
    }

    pub(crate) fn patience(&self) -> Patience {
        Patience {
            grace: Duration::from_secs_f64(self.reward_grace_ms / 1000.0),
            step: Duration::from_secs_f64(self.reward_wait_max_seconds),
            prefill: Duration::from_secs_f64(self.reward_prefill_max_seconds),
            lost: Duration::from_secs_f64(self.reward_loss_seconds),
        }
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
    /// The flags of the base model and its engine.
    #[command(flatten)]
    pub engine: EngineArgs,
    /// A reward worker, such as http://127.0.0.1:50052, or all addresses of a name, such as
    /// http+dns://rewards:50052; repeatable.
    #[arg(long, value_name = "URL")]
    pub reward: Vec<String>,
    /// Requests that wait beyond those that decode [default: 256]
    #[arg(long, value_name = "N")]
    pub queue: Option<usize>,
    /// The flags that every service has.
    #[command(flatten)]
    pub service: ServiceArgs,
}

impl Args {
    fn overrides(&self) -> Result<Vec<(String, String)>, ConfigError> {
        let mut all = self.service.overrides()?;
        all.extend(self.engine.overrides());
        all.extend(self.reward.iter().map(|url| ("reward".to_owned(), url.clone())));
        all.extend(self.queue.map(|n| ("queue".to_owned(), n.to_string())));
        Ok(all)
    }
}
