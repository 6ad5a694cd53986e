//! Bearer tokens: long random texts, of which the service knows the hashes alone.

use std::{path::Path, sync::Arc, time::Duration};

use sha2::{Digest as _, Sha256};
use subtle::{ConditionallySelectable as _, ConstantTimeEq as _};
use tokio::sync::watch;

use crate::{
    caller::{MAX_OWNER, is_owner},
    reload::{self, FileError},
    secret::Secret,
};

/// What a token begins with, so that it is recognised where it should not be.
const PREFIX: &str = "attune_";
/// The random part, in bytes: nobody guesses it, so that a fast hash is enough.
const RANDOM: usize = 32;
const HASH: &str = "sha256:";
/// Every call is compared with all of them.
const MOST: usize = 10_000;

type Hash = [u8; 32];

/// The tokens of a file.
#[derive(Debug)]
pub(super) struct Tokens(watch::Receiver<Arc<Vec<Known>>>);

struct Known {
    hash: Hash,
    owner: String,
}

impl std::fmt::Debug for Known {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Known").field("owner", &self.owner).finish_non_exhaustive()
    }
}

impl Tokens {
    pub(super) fn load(file: &Path, every: Duration) -> Result<Self, FileError> {
        let path = file.to_owned();
        reload::watch(vec![path.clone()], every, move |files| {
            let refuse = |problem: String| FileError::new(&path, problem);
            let text = std::str::from_utf8(files.bytes(&path)).map_err(|e| refuse(e.to_string()))?;
            parse(text).map_err(refuse)
        })
        .map(Self)
    }

    /// Whose token it is. The time that it takes does not depend on which of them it is, nor on how much
    /// of a hash agrees.
    pub(super) fn owner(&self, token: &str) -> Option<String> {
        let hash = hash(token);
        let known = Arc::clone(&self.0.borrow());
        let mut found = u32::MAX;
        for (i, known) in (0..).zip(known.iter()) {
            found.conditional_assign(&i, known.hash[..].ct_eq(&hash[..]));
        }
        known.get(found as usize).map(|known| known.owner.clone())
    }
}

fn hash(token: &str) -> Hash {
    Sha256::digest(token.as_bytes()).into()
}

/// Lines of a hash and an owner; empty ones and those that begin with # say nothing.
fn parse(text: &str) -> Result<Vec<Known>, String> {
    let mut all = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        // The line itself is not repeated: it may be a token put there by mistake.
        let refuse = |what: &str| {
            format!("line {number}: {what}; write `{HASH}HEX OWNER`, as `attune token` prints it")
        };
        let (hash, owner) = line.split_once(char::is_whitespace).ok_or_else(|| refuse("has no owner"))?;
        let hash = hash.strip_prefix(HASH).and_then(from_hex).ok_or_else(|| refuse("has no hash"))?;
        let owner = owner.trim();
        if !is_owner(owner) {
            return Err(refuse(&format!("the owner must have 1 to {MAX_OWNER} bytes")));
        }
        all.push(Known { hash, owner: owner.to_owned() });
        if all.len() > MOST {
            return Err(format!("has more than {MOST} tokens; use JSON web tokens for so many callers"));
        }
    }
    Ok(all)
}

fn from_hex(text: &str) -> Option<Hash> {
    let mut hash = Hash::default();
    if text.len() != 2 * hash.len() || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (i, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()?;
    }
    Some(hash)
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A token and what the service is told of it.
#[derive(Debug)]
pub struct NewToken {
    /// For the caller, who keeps it.
    pub token: Secret,
    /// For the file `auth.tokens`.
    pub line: String,
}

/// Makes a token for an owner from the system's random numbers.
///
/// # Errors
/// A sentence: nobody can be called so, or the system has no random numbers.
pub fn new_token(owner: &str) -> Result<NewToken, String> {
    if !is_owner(owner) || owner.trim() != owner {
        return Err(format!("the owner must have 1 to {MAX_OWNER} bytes of text, without space around it"));
    }
    let mut random = [0; RANDOM];
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.secure_random.fill(&mut random).map_err(|_| "the system gives no random numbers".to_owned())?;
    let token = format!("{PREFIX}{}", to_hex(&random));
    let line = format!("{HASH}{} {owner}", to_hex(&hash(&token)));
    Ok(NewToken { token: Secret::new(token), line })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_that_of_everybody_else() {
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(to_hex(&hash("abc")), known);
        assert_eq!(from_hex(known), Some(hash("abc")));
    }

    #[tokio::test]
    async fn the_right_owner_is_found_among_many() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tokens");
        let owners: Vec<String> = (0..20).map(|i| format!("owner {i}")).collect();
        let tokens: Vec<NewToken> = owners.iter().map(|owner| new_token(owner).unwrap()).collect();
        std::fs::write(&file, tokens.iter().map(|t| format!("{}\n", t.line)).collect::<String>()).unwrap();
        let known = Tokens::load(&file, Duration::from_secs(60)).unwrap();
        for (owner, new) in owners.iter().zip(&tokens) {
            assert_eq!(known.owner(new.token.expose()).as_ref(), Some(owner));
            assert!(!new.line.contains(new.token.expose()));
        }
        assert_eq!(known.owner(""), None);
        assert!(!format!("{known:?} {:?}", tokens[0]).contains(&tokens[0].token.expose()[7..]));
    }

    #[test]
    fn what_is_wrong_is_said_without_showing_it() {
        for (text, named) in [
            ("# x\nattune_0123 alice", "line 2: has no hash"),
            ("attune_0123", "line 1: has no owner"),
            (&format!("{HASH}{} alice", "é".repeat(32)), "has no hash"),
        ] {
            let error = parse(text).err().unwrap();
            assert!(error.contains(named) && !error.contains("attune_0123"), "{error}");
        }
        for wrong in ["", " a", "a\n"] {
            assert!(new_token(wrong).is_err());
        }
    }
}
