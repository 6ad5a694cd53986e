//! JSON web tokens, signed by the keys of a set.

use std::{path::Path, sync::Arc, time::Duration};

use jsonwebtoken::{
    Algorithm, DecodingKey, Validation, decode, decode_header,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse},
};
use serde_json::Value;
use tokio::sync::watch;

use super::AuthConfig;
use crate::{
    caller::is_owner,
    reload::{self, FileError},
};

/// How far the clocks of this machine and the issuer's may be apart, in seconds.
const LEEWAY: u64 = 30;
/// Who signs with so many keys signs with no key.
const MOST: usize = 64;

/// The keys of a file, and what their tokens must say.
#[derive(Debug)]
pub(super) struct Keys {
    keys: watch::Receiver<Arc<Vec<Key>>>,
    issuer: String,
    audience: String,
    owner_claim: String,
}

struct Key {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key")
            .field("id", &self.id)
            .field("algorithms", &self.algorithms)
            .finish_non_exhaustive()
    }
}

impl Keys {
    pub(super) fn load(file: &Path, config: &AuthConfig, every: Duration) -> Result<Self, FileError> {
        let path = file.to_owned();
        let keys = reload::watch(vec![path.clone()], every, move |files| {
            let refuse = |problem: String| FileError::new(&path, problem);
            let set: JwkSet = serde_json::from_slice(files.bytes(&path))
                .map_err(|e| refuse(format!("is no set of JSON web keys: {e}")))?;
            if !(1..=MOST).contains(&set.keys.len()) {
                return Err(refuse(format!("has {} keys; 1 to {MOST} are allowed", set.keys.len())));
            }
            set.keys.iter().map(Key::new).collect::<Result<Vec<_>, _>>().map_err(refuse)
        })?;
        Ok(Self {
            keys,
            issuer: config.issuer.clone().unwrap_or_default(),
            audience: config.audience.clone().unwrap_or_default(),
            owner_claim: config.owner_claim.clone(),
        })
    }

    /// Whose token it is. Without a key's id all keys of its algorithm are tried.
    pub(super) fn owner(&self, token: &str) -> Option<String> {
        let header = decode_header(token).ok()?;
        let keys = Arc::clone(&self.keys.borrow());
        keys.iter()
            .filter(|key| header.kid.is_none() || header.kid == key.id)
            .filter(|key| key.algorithms.contains(&header.alg))
            .find_map(|key| self.verify(token, header.alg, key))
    }

    fn verify(&self, token: &str, algorithm: Algorithm, key: &Key) -> Option<String> {
        let mut validation = Validation::new(algorithm);
        validation.leeway = LEEWAY;
        validation.validate_nbf = true;
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(&[&self.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        let claims: Value = decode(token, &key.key, &validation).ok()?.claims;
        let owner = claims.get(&self.owner_claim)?.as_str()?;
        is_owner(owner).then(|| owner.to_owned())
    }
}

impl Key {
    fn new(jwk: &Jwk) -> Result<Self, String> {
        let id = jwk.common.key_id.clone();
        let name = id.as_deref().unwrap_or("without an id");
        let refuse = |why: &str| format!("key {name}: {why}");
        if jwk.common.public_key_use.as_ref().is_some_and(|usage| *usage != PublicKeyUse::Signature) {
            return Err(refuse("is not for signatures; leave it out"));
        }
        // What the key is decides which algorithms count, never the token alone. A shared secret does not
        // belong on this side at all.
        let possible = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => vec![
                Algorithm::RS256,
                Algorithm::RS384,
                Algorithm::RS512,
                Algorithm::PS256,
                Algorithm::PS384,
                Algorithm::PS512,
            ],
            AlgorithmParameters::EllipticCurve(curve) => match curve.curve {
                EllipticCurve::P256 => vec![Algorithm::ES256],
                EllipticCurve::P384 => vec![Algorithm::ES384],
                _ => Vec::new(),
            },
            AlgorithmParameters::OctetKeyPair(_) => vec![Algorithm::EdDSA],
            _ => Vec::new(),
        };
        let algorithms = match jwk.common.key_algorithm {
            None => possible,
            Some(named) => possible.into_iter().filter(|a| key_algorithm(*a) == named).collect(),
        };
        if algorithms.is_empty() {
            return Err(refuse("is of no kind that is taken here: RSA, P-256, P-384 or Ed25519"));
        }
        let key = DecodingKey::from_jwk(jwk).map_err(|e| refuse(&format!("cannot be used: {e}")))?;
        Ok(Self { id, algorithms, key })
    }
}

fn key_algorithm(algorithm: Algorithm) -> KeyAlgorithm {
    match algorithm {
        Algorithm::RS256 => KeyAlgorithm::RS256,
        Algorithm::RS384 => KeyAlgorithm::RS384,
        Algorithm::RS512 => KeyAlgorithm::RS512,
        Algorithm::PS256 => KeyAlgorithm::PS256,
        Algorithm::PS384 => KeyAlgorithm::PS384,
        Algorithm::PS512 => KeyAlgorithm::PS512,
        Algorithm::ES256 => KeyAlgorithm::ES256,
        Algorithm::ES384 => KeyAlgorithm::ES384,
        Algorithm::EdDSA => KeyAlgorithm::EdDSA,
        _ => KeyAlgorithm::UNKNOWN_ALGORITHM,
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{EncodingKey, Header, encode, get_current_timestamp};
    use serde_json::json;

    use super::*;

    /// An issuer with a key of its own.
    struct Issuer {
        signing: EncodingKey,
        jwk: Jwk,
    }

    impl Issuer {
        fn new(id: &str) -> Self {
            let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
            let signing = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap();
            let mut jwk = Jwk::from_encoding_key(&signing, Algorithm::ES256).unwrap();
            jwk.common.key_id = Some(id.to_owned());
            Self { signing, jwk }
        }

        fn sign(&self, change: impl FnOnce(&mut Value)) -> String {
            let mut claims = json!({
                "iss": "https://issuer", "aud": "attune", "sub": "alice", "exp": get_current_timestamp() + 600,
            });
            change(&mut claims);
            let mut header = Header::new(Algorithm::ES256);
            header.kid = self.jwk.common.key_id.clone();
            encode(&header, &claims, &self.signing).unwrap()
        }
    }

    fn keys(jwks: &Value) -> Result<Keys, FileError> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("jwks.json");
        std::fs::write(&file, jwks.to_string()).unwrap();
        let config = AuthConfig {
            issuer: Some("https://issuer".into()),
            audience: Some("attune".into()),
            ..AuthConfig::default()
        };
        Keys::load(&file, &config, Duration::from_secs(60))
    }

    #[tokio::test]
    async fn a_token_must_be_ours_in_time_and_signed() {
        let (issuer, other) = (Issuer::new("a"), Issuer::new("b"));
        let keys = keys(&json!({"keys": [issuer.jwk]})).unwrap();
        assert_eq!(keys.owner(&issuer.sign(|_| ())).as_deref(), Some("alice"));
        let now = get_current_timestamp();
        for (what, token) in [
            ("another key", other.sign(|_| ())),
            ("expired", issuer.sign(|c| c["exp"] = json!(now - 60))),
            ("not yet", issuer.sign(|c| c["nbf"] = json!(now + 600))),
            ("for ever", issuer.sign(|c| drop(c.as_object_mut().unwrap().remove("exp")))),
            ("for others", issuer.sign(|c| c["aud"] = json!("another"))),
            ("for nobody", issuer.sign(|c| drop(c.as_object_mut().unwrap().remove("aud")))),
            ("from others", issuer.sign(|c| c["iss"] = json!("https://other"))),
            ("of nobody", issuer.sign(|c| c["sub"] = json!(""))),
            ("cut", issuer.sign(|_| ()).rsplit_once('.').unwrap().0.to_owned()),
            ("empty", String::new()),
        ] {
            assert_eq!(keys.owner(&token), None, "{what}");
        }
        // Signed with the public key as a shared secret, or not at all.
        let header = Header::new(Algorithm::HS256);
        let secret = EncodingKey::from_secret(issuer.jwk.common.key_id.as_ref().unwrap().as_bytes());
        let claims = json!({"iss": "https://issuer", "aud": "attune", "sub": "alice", "exp": now + 600});
        assert_eq!(keys.owner(&encode(&header, &claims, &secret).unwrap()), None);
        assert_eq!(keys.owner("eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9."), None);
    }

    #[tokio::test]
    async fn a_set_with_a_shared_secret_is_refused() {
        let secret = json!({"kty": "oct", "k": "c2VjcmV0", "kid": "s", "alg": "HS256"});
        let error = keys(&json!({"keys": [secret]})).err().unwrap().to_string();
        assert!(error.contains("key s") && error.contains("RSA"), "{error}");
        for wrong in [json!({}), json!({"keys": []})] {
            assert!(keys(&wrong).is_err());
        }
    }
}
