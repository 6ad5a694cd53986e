//! Layered configuration: the defaults of the service, then a TOML file, then environment variables,
//! then flags; the later wins.
//!
//! Environment variables are `<PREFIX><KEY>` and `<PREFIX><SECTION>__<KEY>`, where the prefix names the
//! service (`ATTUNE_GENERATOR_`, `ATTUNE_REWARD_`), so that both can run in one environment:
//! `ATTUNE_GENERATOR_MODEL=models/demo/base`, `ATTUNE_GENERATOR_SERVER__LISTEN=0.0.0.0:50051`. Lists are
//! separated by commas. An unknown key is an error wherever it stands. The variables that Kubernetes
//! sets for a Service of the same name (`..._SERVICE_HOST`, `..._PORT_50051_TCP_ADDR`) are let by.

use std::{
    ffi::OsString,
    fmt::Display,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use clap::ValueEnum;
use config::Config;
use serde::{Serialize, de::DeserializeOwned};

use crate::{keys::KnownKeys, layers};

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
    /// A variable of ours whose name or value is no Unicode.
    #[error("the environment variable {variable} is not valid Unicode; set it anew or unset it")]
    NotUnicode {
        /// Its name, what is unreadable of it replaced.
        variable: String,
    },
    /// The defaults themselves cannot be written down: a fault of the program.
    #[error("the defaults are no configuration: {0}")]
    Defaults(#[source] serde_json::Error),
}

/// The merged sources of a configuration, from which its parts are read.
#[derive(Debug)]
pub struct Merged(Config);

impl Merged {
    /// Merges `T::default()`, the file, the environment and the flags, in this order.
    ///
    /// `env_prefix` ends in an underscore (`ATTUNE_GENERATOR_`); `env` is usually [`environment`].
    /// `flags` are pairs of a dotted key and its value; the values of a list's key that is given
    /// several times are gathered.
    ///
    /// # Errors
    /// [`ConfigError`]: an unreadable file, or a key in any source that `T::default()` does not have.
    pub fn of<T: Serialize + Default>(
        file: Option<&Path>,
        env_prefix: &str,
        env: impl IntoIterator<Item = (String, String)>,
        flags: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let defaults = serde_json::to_value(T::default()).map_err(ConfigError::Defaults)?;
        let known = KnownKeys::of(&defaults);
        let mut builder = Config::builder().add_source(layers::defaults(&defaults));
        if let Some(path) = file {
            builder = builder.add_source(layers::read_file(path, &known)?);
        }
        builder = builder.add_source(layers::read_env(env_prefix, env, &known)?);
        builder = builder.add_source(layers::read_flags(flags, &known)?);
        Ok(Self(builder.build().map_err(value_error)?))
    }

    /// Reads a configuration, or a part of one that shares its top level. A struct with a flattened
    /// part skips that part and gets it by a read of its own: serde's own way of flattening loses
    /// the key that an error names, and cannot turn text into numbers.
    ///
    /// # Errors
    /// [`ConfigError::Value`]: a value of the wrong type. Ranges are the service's own to check, with
    /// [`check_range`].
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        self.0.clone().try_deserialize().map_err(value_error)
    }
}

/// The variables of this process whose names start with `ATTUNE_`.
///
/// # Errors
/// [`ConfigError::NotUnicode`] for one of them whose name or value is no Unicode. Others may be what
/// they like.
pub fn environment() -> Result<Vec<(String, String)>, ConfigError> {
    ours(std::env::vars_os())
}

fn ours(all: impl Iterator<Item = (OsString, OsString)>) -> Result<Vec<(String, String)>, ConfigError> {
    all.filter(|(name, _)| name.as_encoded_bytes().starts_with(b"ATTUNE_"))
        .map(|(name, value)| {
            let refuse = |name: OsString| ConfigError::NotUnicode { variable: name.display().to_string() };
            let name = name.into_string().map_err(refuse)?;
            let value = value.into_string().map_err(|_| refuse(name.clone().into()))?;
            Ok((name, value))
        })
        .collect()
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

/// Reads one of a few names, for `#[serde(try_from = "String")]`: the derived message would not say
/// what is allowed.
///
/// # Errors
/// A sentence that lists the names.
pub fn choice<T: ValueEnum>(text: &str) -> Result<T, String> {
    T::from_str(text, false).map_err(|_| {
        let names = T::value_variants().iter().filter_map(ValueEnum::to_possible_value);
        let names: Vec<String> = names.map(|v| v.get_name().to_owned()).collect();
        match names.split_last() {
            Some((last, [])) => format!("{text:?} is not {last}"),
            Some((last, rest)) => format!("{text:?} is none of {} or {last}", rest.join(", ")),
            None => format!("{text:?} is not allowed"),
        }
    })
}

#[cfg(test)]
mod tests;
