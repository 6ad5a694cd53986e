//! `[profiles]`: where people's profiles are kept.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use attune_profiles::Place;
use attune_service::{
    config::{ConfigError, check_range, invalid},
    secret::Secret,
};
use serde::{Deserialize, Serialize};

/// `[profiles]`: where people's profiles are kept. With neither setting: nowhere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProfilesConfig {
    /// `sqlite:PATH`, a file of one machine's workers, or `postgres://USER:PASSWORD@HOST/DATABASE` for workers on
    /// several; empty: no profiles. Default of the command: `attune/profiles.db` in `XDG_STATE_HOME`, or in
    /// `.local/state` in `HOME`.
    pub url: Option<Secret>,
    /// A file that holds the address, for one with a password. Not together with `url`.
    pub url_file: Option<PathBuf>,
    /// How long a connection, and in SQLite another writer's end, is waited for, in seconds, 0.01 to 60. Default: 5.
    pub wait_seconds: f64,
}

impl Default for ProfilesConfig {
    fn default() -> Self {
        Self { url: None, url_file: None, wait_seconds: Place::WAIT.as_secs_f64() }
    }
}

/// What is said where an address is no use.
const ALLOWED: &str = "sqlite:PATH, postgres://USER@HOST/DATABASE, or empty for no profiles";

impl ProfilesConfig {
    /// The user's own file, where nothing else is set and the user has a home.
    pub(crate) fn or_default(self, variable: impl Fn(&str) -> Option<PathBuf>) -> Self {
        if self.url.is_some() || self.url_file.is_some() {
            return self;
        }
        let full = |name: &str| variable(name).filter(|path| path.is_absolute());
        let state = full("XDG_STATE_HOME").or_else(|| Some(full("HOME")?.join(".local/state")));
        let url = state.and_then(|state| {
            let path = state.join("attune/profiles.db");
            Some(Secret::new(format!("sqlite:{}", path.to_str()?)))
        });
        Self { url, ..self }
    }

    /// Where they are kept. `None`: nowhere.
    ///
    /// # Errors
    /// Names the setting at fault, and never the address itself, which may hold a password.
    pub(crate) fn place(&self) -> Result<Option<Place>, ConfigError> {
        check_range("profiles.wait_seconds", self.wait_seconds, 0.01..=60.0)?;
        let wait = Duration::from_secs_f64(self.wait_seconds);
        let parse = |key: &str, url: &str| match url {
            "" => Ok(None),
            url => match url.parse::<Place>() {
                Ok(place) => Ok(Some(place.waiting(wait))),
                Err(error) => Err(invalid(key, "[secret]", format!("{ALLOWED} ({error})"))),
            },
        };
        match (&self.url, &self.url_file) {
            (None, None) => Ok(None),
            (Some(url), None) => parse("profiles.url", url.expose()),
            (None, Some(file)) => parse("profiles.url_file", read(file)?.expose().trim()),
            (Some(_), Some(file)) => {
                Err(invalid("profiles.url_file", file.display(), "set only without `profiles.url`"))
            }
        }
    }
}

fn read(file: &Path) -> Result<Secret, ConfigError> {
    let text = std::fs::read_to_string(file);
    let refuse =
        |e| invalid("profiles.url_file", file.display(), format!("a file that holds {ALLOWED} ({e})"));
    text.map(Secret::new).map_err(refuse)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(url: &str) -> ProfilesConfig {
        ProfilesConfig { url: Some(Secret::new(url)), ..ProfilesConfig::default() }
    }

    #[test]
    fn a_password_shows_nowhere() {
        let postgres = url("postgres://attune:hunter2@db.example/attune");
        assert_eq!(format!("{:?}", postgres.place().unwrap().unwrap()), "PostgreSQL");
        let shown = format!("{postgres:?} {}", toml_like(&postgres));
        assert!(!shown.contains("hunter2"), "{shown}");
        let error = url("postgres://attune:hunter2@db.example:x/").place().unwrap_err().to_string();
        assert!(error.contains("profiles.url") && !error.contains("hunter2"), "{error}");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "postgres://attune:hunter2@db.example/attune\n").unwrap();
        let from_file = ProfilesConfig { url_file: Some(file.path().into()), ..ProfilesConfig::default() };
        assert!(from_file.place().unwrap().is_some());
        let both = ProfilesConfig { url: Some(Secret::new("")), ..from_file };
        assert!(both.place().unwrap_err().to_string().contains("only without"));
        let missing = ProfilesConfig { url_file: Some("nowhere".into()), ..ProfilesConfig::default() };
        assert!(missing.place().unwrap_err().to_string().contains("nowhere"));
    }

    fn toml_like(config: &ProfilesConfig) -> String {
        serde_json::to_string(config).unwrap()
    }

    #[test]
    fn without_a_setting_they_are_the_users() {
        let home = |name: &str| (name == "HOME").then(|| PathBuf::from("/home/me"));
        let expose = |config: ProfilesConfig| config.url.unwrap().expose().to_owned();
        let path = expose(ProfilesConfig::default().or_default(home));
        assert_eq!(path, "sqlite:/home/me/.local/state/attune/profiles.db");
        let state = |_: &str| Some(PathBuf::from("/state"));
        assert_eq!(expose(ProfilesConfig::default().or_default(state)), "sqlite:/state/attune/profiles.db");
        assert_eq!(expose(url("").or_default(state)), "");
        let nowhere = ProfilesConfig::default().or_default(|_| None);
        assert!(nowhere.place().unwrap().is_none());
    }
}
