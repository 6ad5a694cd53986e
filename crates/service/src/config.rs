//! Layered configuration: the defaults of the service, then a TOML file, then environment variables,
//! then flags; the later wins.
//!
//! Environment variables are `<PREFIX><KEY>` and `<PREFIX><SECTION>__<KEY>`, where the prefix names the
//! service (`ATTUNE_GENERATOR_`, `ATTUNE_REWARD_`), so that both can run in one environment:
//! `ATTUNE_GENERATOR_MODEL=models/demo/base`, `ATTUNE_GENERATOR_SERVER__LISTEN=0.0.0.0:50051`. Lists are
//! separated by commas. An unknown key is an error wherever it stands. The variables that Kubernetes
//! sets for a Service of the same name (`..._SERVICE_HOST`, `..._PORT_50051_TCP_ADDR`) are let by.

use std::{
    fmt::Display,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use config::{Config, File, FileFormat, Map, Value, ValueKind};
use serde::{Serialize, de::DeserializeOwned};

use crate::keys::{Kind, KnownKeys};

/// Why a configuration was refused. Every message names the key or the file, and where it stands.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read or is no TOML.
    #[error("cannot read the configuration file {}: {reason}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A key that no setting has.
    #[error("unknown key `{key}` in {origin}{}", suggestion.as_ref().map(|s| format!("; did you mean `{s}`?")).unwrap_or_default())]
    UnknownKey {
        /// The key, as its source spells it.
        key: String,
        /// Where it stands.
        origin: String,
        /// A known key that is close, as the source would spell it.
        suggestion: Option<String>,
    },
    /// A value of the wrong type.
    #[error("{0}")]
    Value(#[source] Box<config::ConfigError>),
    /// A value outside what is allowed.
    #[error("`{key}` is {value}; allowed is {allowed}")]
    Invalid {
        /// The key as a dotted path.
        key: String,
        /// The value.
        value: String,
        /// What is allowed.
        allowed: String,
    },
    /// A `--set` that is not KEY=VALUE.
    #[error("`--set {flag}` has no `=`; write it as `--set server.drain_seconds=5`")]
    Flag {
        /// The text behind `--set`.
        flag: String,
    },
    /// The defaults themselves cannot be written down: a fault of the program.
    #[error("the defaults are no configuration: {0}")]
    Defaults(#[source] serde_json::Error),
}

/// Merges `T::default()`, the file, the environment and the flags, in this order.
///
/// `env_prefix` ends in an underscore (`ATTUNE_GENERATOR_`); `env` is usually [`std::env::vars`].
/// `flags` are pairs of a dotted key and its value; the values of a list's key that is given several
/// times are gathered.
///
/// # Errors
/// [`ConfigError`]: an unreadable file, an unknown key in any source, a value of the wrong type. Ranges
/// are the service's own to check, with [`check_range`].
pub fn load<T: DeserializeOwned + Serialize + Default>(
    file: Option<&Path>,
    env_prefix: &str,
    env: impl IntoIterator<Item = (String, String)>,
    flags: impl IntoIterator<Item = (String, String)>,
) -> Result<T, ConfigError> {
    let defaults = serde_json::to_value(T::default()).map_err(ConfigError::Defaults)?;
    let known = KnownKeys::of(&defaults);
    let mut builder = Config::builder().add_source(Layer(vec![(String::new(), from_json(&defaults))]));
    if let Some(path) = file {
        builder = builder.add_source(read_file(path, &known)?);
    }
    builder = builder.add_source(read_env(env_prefix, env, &known)?);
    builder = builder.add_source(read_flags(flags, &known)?);
    let merged = builder.build().map_err(value_error)?;
    merged.try_deserialize().map_err(value_error)
}

fn value_error(error: config::ConfigError) -> ConfigError {
    ConfigError::Value(Box::new(error))
}

/// Refuses a value outside its range, naming the key and the range. NaN is outside of every range.
///
/// # Errors
/// [`ConfigError::Invalid`].
pub fn check_range<N: PartialOrd + Display>(
    key: &str,
    value: N,
    range: RangeInclusive<N>,
) -> Result<(), ConfigError> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(invalid(key, value, format!("{} to {}", range.start(), range.end())))
}

/// The error for a value that is not allowed.
pub fn invalid(key: &str, value: impl Display, allowed: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { key: key.to_owned(), value: value.to_string(), allowed: allowed.into() }
}

/// Values with their dotted keys; the empty key is the root. Each value carries its origin, which
/// stands in the messages of type errors.
#[derive(Debug, Clone)]
struct Layer(Vec<(String, Value)>);

impl config::Source for Layer {
    fn clone_into_box(&self) -> Box<dyn config::Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        let mut all = Map::new();
        for (key, value) in &self.0 {
            if key.is_empty() {
                all.extend(value.clone().into_table()?);
            } else {
                all.insert(key.clone(), value.clone());
            }
        }
        Ok(all)
    }
}

fn from_json(value: &serde_json::Value) -> Value {
    let kind = match value {
        serde_json::Value::Null => ValueKind::Nil,
        serde_json::Value::Bool(b) => ValueKind::Boolean(*b),
        serde_json::Value::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(i), _) => ValueKind::I64(i),
            (None, Some(u)) => ValueKind::U64(u),
            (None, None) => ValueKind::Float(n.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(s) => ValueKind::String(s.clone()),
        serde_json::Value::Array(items) => ValueKind::Array(items.iter().map(from_json).collect()),
        serde_json::Value::Object(fields) => {
            ValueKind::Table(fields.iter().map(|(k, v)| (k.clone(), from_json(v))).collect())
        }
    };
    Value::new(Some(&"the defaults".to_owned()), kind)
}

fn read_file(path: &Path, known: &KnownKeys) -> Result<Layer, ConfigError> {
    let refuse = |reason: String| ConfigError::File { file: path.to_owned(), reason };
    let text = std::fs::read_to_string(path).map_err(|e| refuse(e.to_string()))?;
    let parsed = Config::builder()
        .add_source(File::from_str(&text, FileFormat::Toml))
        .build()
        .map_err(|e| refuse(e.to_string()))?;
    let mut values = Vec::new();
    flatten(parsed.cache, String::new(), known, &mut values);
    let origin = path.display().to_string();
    let mut layer = Vec::new();
    for (key, value) in values {
        if known.kind(&key).is_none() {
            let suggestion = known.nearest(&key).map(str::to_owned);
            return Err(ConfigError::UnknownKey { key, origin, suggestion });
        }
        layer.push((key, Value::new(Some(&origin), value.kind)));
    }
    Ok(Layer(layer))
}

/// Walks a table down to the values that stand behind known keys, or behind none.
fn flatten(value: Value, path: String, known: &KnownKeys, into: &mut Vec<(String, Value)>) {
    match value.kind {
        ValueKind::Table(fields) if known.kind(&path).is_none() => {
            // In the order of their names, so that of several unknown keys always the same is named.
            let mut fields: Vec<_> = fields.into_iter().collect();
            fields.sort_by(|a, b| a.0.cmp(&b.0));
            for (name, field) in fields {
                let path = if path.is_empty() { name } else { format!("{path}.{name}") };
                flatten(field, path, known, into);
            }
        }
        _ => into.push((path, value)),
    }
}

fn read_env(
    prefix: &str,
    env: impl IntoIterator<Item = (String, String)>,
    known: &KnownKeys,
) -> Result<Layer, ConfigError> {
    let mut vars: Vec<(String, String)> = env.into_iter().collect();
    vars.sort();
    let mut layer = Vec::new();
    for (variable, value) in vars {
        let Some(name) = variable.strip_prefix(prefix) else { continue };
        if is_service_link(name) {
            continue;
        }
        let key = name.to_lowercase().replace("__", ".");
        let origin = format!("the environment variable {variable}");
        let Some(kind) = known.kind(&key) else {
            let spell = |key: &str| format!("{prefix}{}", key.to_uppercase().replace('.', "__"));
            return Err(ConfigError::UnknownKey {
                suggestion: known.nearest(&key).map(spell),
                key: variable,
                origin: "the environment".to_owned(),
            });
        };
        layer.push((key, text_value(kind, &value, &origin)));
    }
    Ok(Layer(layer))
}

/// Whether Kubernetes set the variable for a Service whose name starts like ours.
fn is_service_link(name: &str) -> bool {
    let parts: Vec<&str> = name.split('_').collect();
    let ends = |tail: &[&str]| parts.ends_with(tail);
    let port_number = parts.windows(2).any(|w| w[0] == "PORT" && w[1].parse::<u16>().is_ok());
    ends(&["SERVICE", "HOST"])
        || parts.windows(2).any(|w| w == ["SERVICE", "PORT"])
        || ends(&["PORT"])
        || port_number
}

fn read_flags(
    flags: impl IntoIterator<Item = (String, String)>,
    known: &KnownKeys,
) -> Result<Layer, ConfigError> {
    let mut layer: Vec<(String, Value)> = Vec::new();
    for (key, text) in flags {
        let origin = "the command line".to_owned();
        let Some(kind) = known.kind(&key) else {
            let suggestion = known.nearest(&key).map(str::to_owned);
            return Err(ConfigError::UnknownKey { key, origin, suggestion });
        };
        let value = text_value(kind, &text, &origin);
        let before = layer.iter_mut().find(|(k, _)| *k == key).map(|(_, v)| &mut v.kind);
        match (before, value.kind) {
            (Some(ValueKind::Array(list)), ValueKind::Array(more)) => list.extend(more),
            (Some(before), kind) => *before = kind,
            (None, kind) => layer.push((key, Value::new(Some(&origin), kind))),
        }
    }
    Ok(Layer(layer))
}

fn text_value(kind: Kind, text: &str, origin: &str) -> Value {
    let origin = origin.to_owned();
    let one = |text: &str| Value::new(Some(&origin), ValueKind::String(text.to_owned()));
    match kind {
        Kind::List => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Value::new(Some(&origin), ValueKind::Array(items.map(one).collect()))
        }
        Kind::Scalar | Kind::Map => one(text),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use serde::Deserialize;

    use super::*;
    use crate::sections::{LogConfig, LogFormat, ServerConfig};

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Demo {
        model: Option<String>,
        reward: Vec<String>,
        slots: u32,
        grace_ms: f32,
        server: ServerConfig,
        log: LogConfig,
    }

    impl Default for Demo {
        fn default() -> Self {
            Self {
                model: None,
                reward: vec!["http://127.0.0.1:50052".into()],
                slots: 16,
                grace_ms: 0.1,
                server: ServerConfig::on_port(50051),
                log: LogConfig::default(),
            }
        }
    }

    fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
        of.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn demo(toml: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Demo, ConfigError> {
        let mut file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
        file.write_all(toml.as_bytes()).unwrap();
        load(Some(file.path()), "ATTUNE_GENERATOR_", pairs(env), pairs(flags))
    }

    #[test]
    fn without_sources_it_is_the_default() {
        let got: Demo = load(None, "ATTUNE_GENERATOR_", [], []).unwrap();
        assert_eq!(got, Demo::default());
    }

    #[test]
    fn later_layers_win_and_leave_the_rest() {
        let got = demo(
            "slots = 1\nreward = [\"http://a\", \"http://b\"]\n[server]\nlisten = \"127.0.0.1:1\"\ndrain_seconds = 3\n[log]\nformat = \"json\"",
            &[
                ("ATTUNE_GENERATOR_SLOTS", "2"),
                ("ATTUNE_GENERATOR_SERVER__LISTEN", "127.0.0.1:2"),
                ("ATTUNE_REQUIRE_ALL", "1"),
                ("ATTUNE_REWARD_SLOTS", "9"),
            ],
            &[("server.listen", "127.0.0.1:3"), ("model", "dir"), ("reward", "http://c"), ("reward", "http://d")],
        )
        .unwrap();
        assert_eq!(got.slots, 2);
        assert_eq!(got.model.as_deref(), Some("dir"));
        assert_eq!(got.reward, ["http://c", "http://d"]);
        assert_eq!(got.server.listen.port(), 3);
        assert_eq!(got.server.drain_seconds, 3.0);
        assert_eq!(got.server.max_message_bytes, ServerConfig::default().max_message_bytes);
        assert_eq!(got.log.format, LogFormat::Json);
    }

    #[test]
    fn a_shorter_list_replaces_a_longer_one() {
        let got = demo("reward = []", &[], &[]).unwrap();
        assert!(got.reward.is_empty());
        let got = demo("", &[("ATTUNE_GENERATOR_REWARD", "http://a, http://b")], &[]).unwrap();
        assert_eq!(got.reward, ["http://a", "http://b"]);
    }

    #[test]
    fn unknown_keys_are_named_with_their_source_and_a_suggestion() {
        let text = demo("slotts = 1", &[], &[]).unwrap_err().to_string();
        assert!(text.contains("`slotts`") && text.contains(".toml") && text.contains("`slots`"), "{text}");
        let text = demo("[server]\nlisen = \"x\"", &[], &[]).unwrap_err().to_string();
        assert!(text.contains("`server.lisen`") && text.contains("`server.listen`"), "{text}");
        let text = demo("", &[("ATTUNE_GENERATOR_SERVER_LISTEN", "x")], &[]).unwrap_err().to_string();
        assert!(
            text.contains("ATTUNE_GENERATOR_SERVER_LISTEN")
                && text.contains("`ATTUNE_GENERATOR_SERVER__LISTEN`"),
            "{text}"
        );
        let text = demo("", &[], &[("log.fliter", "x")]).unwrap_err().to_string();
        assert!(text.contains("`log.fliter`") && text.contains("command line"), "{text}");
    }

    #[test]
    fn kubernetes_service_links_are_let_by() {
        demo(
            "",
            &[
                ("ATTUNE_GENERATOR_SERVICE_HOST", "10.0.0.1"),
                ("ATTUNE_GENERATOR_SERVICE_PORT_GRPC", "50051"),
                ("ATTUNE_GENERATOR_PORT", "tcp://10.0.0.1:50051"),
                ("ATTUNE_GENERATOR_PORT_50051_TCP_ADDR", "10.0.0.1"),
                ("ATTUNE_GENERATOR_HEADLESS_SERVICE_HOST", "10.0.0.1"),
            ],
            &[],
        )
        .unwrap();
    }

    #[test]
    fn wrong_types_name_key_and_source() {
        let text = demo("slots = \"many\"", &[], &[]).unwrap_err().to_string();
        assert!(text.contains("slots") && text.contains(".toml"), "{text}");
        let text = demo("", &[("ATTUNE_GENERATOR_SLOTS", "many")], &[]).unwrap_err().to_string();
        assert!(text.contains("ATTUNE_GENERATOR_SLOTS"), "{text}");
        let text = demo("slots = -1", &[], &[]).unwrap_err().to_string();
        assert!(text.contains("slots"), "{text}");
        let text = demo("", &[("ATTUNE_GENERATOR_SERVER__LISTEN", "here")], &[]).unwrap_err().to_string();
        assert!(text.contains("server.listen"), "{text}");
        let text = demo("[log]\nformat = \"xml\"", &[], &[]).unwrap_err().to_string();
        assert!(text.contains("json") && text.contains("log.format"), "{text}");
        let text = demo("server = 3", &[], &[]).unwrap_err().to_string();
        assert!(text.contains("`server`"), "{text}");
        let text = demo("slots = [", &[], &[]).unwrap_err().to_string();
        assert!(text.contains("cannot read"), "{text}");
    }

    #[test]
    fn ranges_name_key_and_limits() {
        let mut server = ServerConfig::default();
        server.validate().unwrap();
        server.drain_seconds = f64::NAN;
        let text = server.validate().unwrap_err().to_string();
        assert!(text.contains("`server.drain_seconds`") && text.contains("0 to 3600"), "{text}");
        let log = LogConfig { filter: "info,=".into(), ..LogConfig::default() };
        assert!(log.validate().unwrap_err().to_string().contains("log.filter"));
    }
}
