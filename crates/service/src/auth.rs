//! Who may call a service, and how much each may have of it.

mod door;
mod jwt;
mod quota;
mod tokens;

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use tonic::Status;

use crate::{
    caller::Caller,
    config::{ConfigError, check_range, invalid},
    reload::FileError,
};

pub use door::Door;
pub use quota::{Account, Quotas};
pub use tokens::{NewToken, new_token};

/// `[auth]`: who may call. With neither `tokens` nor `jwks` everybody may, as the one owner `local`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuthConfig {
    /// A file of hashed tokens, one a line as `attune token` prints them. It is read again when it changes.
    pub tokens: Option<PathBuf>,
    /// A file with the keys (a JWK set) that sign JSON web tokens. It is read again when it changes.
    pub jwks: Option<PathBuf>,
    /// Who must have issued a JSON web token (`iss`). Required with `jwks`.
    pub issuer: Option<String>,
    /// For whom a JSON web token must be (`aud`). Required with `jwks`: a token for another service is
    /// none for this one.
    pub audience: Option<String>,
    /// The claim of a JSON web token that names the owner. Default: sub.
    pub owner_claim: String,
    /// What each owner may have.
    pub limits: OwnerLimits,
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self {
            tokens: None,
            jwks: None,
            issuer: None,
            audience: None,
            owner_claim: "sub".to_owned(),
            limits: OwnerLimits::default(),
        }
    }
}

/// `[auth.limits]`: what each owner may have. Absent: no limit but the service's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OwnerLimits {
    /// Texts at once, running or waiting, 1 to 65536.
    pub streams: Option<u32>,
    /// Tokens a minute, of prompts and of texts, 1 to 1000000000. A text that has begun goes on; what it
    /// takes too much is missing from the next.
    pub tokens_per_minute: Option<u32>,
    /// Profiles kept, 1 to 1000000.
    pub profiles: Option<u32>,
}

impl AuthConfig {
    /// Whether callers have to say who they are.
    pub fn is_on(&self) -> bool {
        self.tokens.is_some() || self.jwks.is_some()
    }

    /// Checks that what belongs together is there.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] names the key and what is allowed.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (name, value) in [("issuer", &self.issuer), ("audience", &self.audience)] {
            let key = format!("auth.{name}");
            match (&self.jwks, value) {
                (Some(jwks), None) => {
                    return Err(invalid(
                        "auth.jwks",
                        jwks.display(),
                        format!("set only together with `{key}`"),
                    ));
                }
                (None, Some(value)) => {
                    return Err(invalid(&key, value, "set only together with `auth.jwks`"));
                }
                _ => {}
            }
        }
        if self.owner_claim.is_empty() {
            return Err(invalid("auth.owner_claim", "", "the name of a claim, such as sub"));
        }
        let OwnerLimits { streams, tokens_per_minute, profiles } = self.limits;
        for (name, value, most) in [
            ("streams", streams, 65_536),
            ("tokens_per_minute", tokens_per_minute, 1_000_000_000),
            ("profiles", profiles, 1_000_000),
        ] {
            check_range(&format!("auth.limits.{name}"), value.unwrap_or(1), 1..=most)?;
        }
        Ok(())
    }

    /// The door of a service whose callers are clients. Files are looked at for changes this often. Must
    /// be called within a tokio runtime.
    ///
    /// # Errors
    /// Names the file that cannot be used.
    pub fn door(&self, every: Duration) -> Result<Door, FileError> {
        if !self.is_on() {
            return Ok(Door::open(self.limits.profiles));
        }
        let tokens = self.tokens.as_deref().map(|file| tokens::Tokens::load(file, every)).transpose()?;
        let jwt = self.jwks.as_deref().map(|file| jwt::Keys::load(file, self, every)).transpose()?;
        Ok(Door::guarded(Callers { tokens, jwt, profiles: self.limits.profiles }))
    }
}

/// Those who may call.
#[derive(Debug)]
pub(crate) struct Callers {
    tokens: Option<tokens::Tokens>,
    jwt: Option<jwt::Keys>,
    profiles: Option<u32>,
}

impl Callers {
    /// Whose token this is.
    ///
    /// # Errors
    /// UNAUTHENTICATED, which says what to do and nothing of why.
    fn identify(&self, token: &str) -> Result<Caller, Status> {
        let known = self.tokens.as_ref().and_then(|tokens| tokens.owner(token));
        let owner = known.or_else(|| self.jwt.as_ref().and_then(|keys| keys.owner(token)));
        let owner = owner.ok_or_else(|| {
            Status::unauthenticated("the token is not valid here (any more); ask the operator for another")
        })?;
        Ok(Caller { owner, profiles: self.profiles })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_together_is_asked_for() {
        AuthConfig::default().validate().unwrap();
        let jwks = AuthConfig {
            jwks: Some("keys.json".into()),
            issuer: Some("https://issuer".into()),
            audience: Some("attune".into()),
            ..AuthConfig::default()
        };
        jwks.validate().unwrap();
        let limits = OwnerLimits { streams: Some(0), ..OwnerLimits::default() };
        for (config, named) in [
            (AuthConfig { audience: None, ..jwks.clone() }, "`auth.audience`"),
            (AuthConfig { issuer: None, ..jwks.clone() }, "`auth.issuer`"),
            (AuthConfig { jwks: None, ..jwks.clone() }, "`auth.jwks`"),
            (AuthConfig { owner_claim: String::new(), ..jwks }, "`auth.owner_claim`"),
            (AuthConfig { limits, ..AuthConfig::default() }, "`auth.limits.streams`"),
        ] {
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
