//! The sources of a configuration, each as values with their keys, checked against the known keys.

use std::path::Path;

use config::{Config, File, FileFormat, Map, Value, ValueKind};

use crate::{
    config::ConfigError,
    keys::{Kind, KnownKeys},
};

/// Values with their dotted keys; the empty key is the root. Each value carries its origin, which
/// stands in the messages of type errors.
#[derive(Debug, Clone)]
pub(crate) struct Layer(Vec<(String, Value)>);

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

/// The defaults themselves as the lowest layer.
pub(crate) fn defaults(all: &serde_json::Value) -> Layer {
    Layer(vec![(String::new(), from_json(all))])
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

/// A TOML file.
pub(crate) fn read_file(path: &Path, known: &KnownKeys) -> Result<Layer, ConfigError> {
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

/// The variables with the prefix.
pub(crate) fn read_env(
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

/// Pairs of a dotted key and its value; the values of a list that is given several times are gathered.
pub(crate) fn read_flags(
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
