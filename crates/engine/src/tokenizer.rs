//! Text to token ids, and token ids to the bytes they stand for.

use std::path::Path;

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokenizers::AddedToken;

use crate::{LoadError, TextError};

/// No tokenizer has more ids; a larger one in a file would only make this process allocate for it.
const MAX_IDS: u32 = 1 << 22;

/// A checkpoint's tokenizer: `tokenizer.json`, and the special tokens of `tokenizer_config.json`.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// What each id stands for; none where an id has no text.
    bytes: Vec<Option<Box<[u8]>>>,
    special: Vec<bool>,
}

impl Tokenizer {
    /// Reads the tokenizer of a checkpoint folder.
    ///
    /// # Errors
    /// `tokenizer.json` is missing or damaged, or `tokenizer_config.json` is not JSON: the file is named.
    pub fn load(folder: &Path) -> Result<Self, LoadError> {
        let path = folder.join("tokenizer.json");
        let text = crate::files::read(&path).map_err(|e| {
            let problem = format!("{e}; a checkpoint needs its tokenizer.json (the `fast` tokenizer)");
            LoadError::file(&path, problem)
        })?;
        Self::parse(&path, &text, &read_config(folder)?)
    }

    /// A tokenizer from the text of a `tokenizer.json` and the value of a `tokenizer_config.json`.
    ///
    /// # Errors
    /// The text is damaged or of another form; `path` is named.
    pub(crate) fn parse(path: &Path, text: &[u8], config: &Value) -> Result<Self, LoadError> {
        let json: Value = serde_json::from_slice(text).map_err(|e| LoadError::file(path, e))?;
        guarded(|| Self::build(text, &json, config))
            .unwrap_or_else(|| Err("is damaged: the tokenizer cannot be built from it".to_owned()))
            .map_err(|problem| LoadError::file(path, problem))
    }

    fn build(text: &[u8], json: &Value, config: &Value) -> Result<Self, String> {
        let mut inner = tokenizers::Tokenizer::from_bytes(text)
            .map_err(|e| format!("is no tokenizer that is understood: {e}"))?;
        // Files often keep the cut and the padding of their training run; a prompt must stay whole.
        inner.with_truncation(None).map_err(|e| e.to_string())?;
        inner.with_padding(None);
        // A template of special tokens that lacks one is found out when a text is encoded, here at the latest.
        drop(inner.encode_fast("", true));
        let declared = declared_special(config, &inner);
        Self::new(inner, declared, &Spelling::of(json))
    }

    fn new(
        mut inner: tokenizers::Tokenizer,
        declared: Vec<AddedToken>,
        spelling: &Spelling,
    ) -> Result<Self, String> {
        if !declared.is_empty() {
            inner.add_special_tokens(declared).map_err(|e| e.to_string())?;
        }
        let vocabulary = inner.get_vocab(true);
        let added = inner.get_added_tokens_decoder();
        let highest = vocabulary.values().chain(added.keys()).max().ok_or("has no tokens")?;
        if *highest >= MAX_IDS {
            return Err(format!("has a token with id {highest}; ids must be below {MAX_IDS}"));
        }
        let size = *highest as usize + 1;
        let mut bytes = vec![None; size];
        let mut special = vec![false; size];
        for (token, &id) in &vocabulary {
            bytes[id as usize] = Some(spelling.bytes(token).into_boxed_slice());
        }
        // Added tokens stand for themselves, whatever the model's own spelling is.
        for (&id, token) in &added {
            bytes[id as usize] = Some(token.content.as_bytes().into());
            special[id as usize] = token.special;
        }
        Ok(Self { inner, bytes, special })
    }

    /// The ids of a raw text, with the special tokens that the tokenizer itself adds (such as BOS).
    ///
    /// # Errors
    /// The tokenizer cannot express the text.
    pub fn encode_raw(&self, text: &str) -> Result<Vec<u32>, TextError> {
        self.encode(text, true)
    }

    /// The ids of a text that a chat template has rendered: none are added, and special tokens that
    /// stand in the text are recognised.
    ///
    /// # Errors
    /// The tokenizer cannot express the text.
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<u32>, TextError> {
        self.encode(text, false)
    }

    fn encode(&self, text: &str, add: bool) -> Result<Vec<u32>, TextError> {
        let ids = |encoding: tokenizers::Encoding| encoding.get_ids().to_vec();
        guarded(|| self.inner.encode_fast(text, add))
            .ok_or_else(|| TextError::Encode("the model's tokenizer is damaged".to_owned()))?
            .map(ids)
            .map_err(|e| TextError::Encode(e.to_string()))
    }

    /// The highest id that has text, and one. A model's embedding may have more rows.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The bytes that an id stands for; a special token's are its name. None: the id has no text.
    pub fn bytes_of(&self, id: u32) -> Option<&[u8]> {
        self.bytes.get(id as usize)?.as_deref()
    }

    /// The bytes that an id adds to an answer: none for special tokens and for ids without text.
    pub fn output_bytes(&self, id: u32) -> &[u8] {
        if self.is_special(id) { &[] } else { self.bytes_of(id).unwrap_or_default() }
    }

    /// Whether an id is a special token, one that marks up a text and is no part of it.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    /// The id of a token by its name in the files, such as `<|eot_id|>`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// SHA-256, hexadecimal, over the map from id to bytes of the ids below `first_ids`.
    ///
    /// Each id with text adds its number, its length and its bytes, so that ids without text count by
    /// their absence. Two tokenizers with the same value spell these ids alike.
    pub fn fingerprint(&self, first_ids: u32) -> String {
        let mut hash = Sha256::new();
        for (id, bytes) in (0..first_ids).zip(&self.bytes) {
            if let Some(bytes) = bytes {
                hash.update(id.to_le_bytes());
                hash.update((bytes.len() as u64).to_le_bytes());
                hash.update(bytes);
            }
        }
        hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
    }
}

/// What the crate makes of a file or a text; `None`: it panicked. It is not written for hostile files, and a panic in
/// it must not end the service.
fn guarded<T>(work: impl FnOnce() -> T) -> Option<T> {
    // Nothing of the crate is used again but its cache, which it gives up where a panic has left it locked.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).ok()
}

/// `tokenizer_config.json`, or null where there is none.
pub(crate) fn read_config(folder: &Path) -> Result<Value, LoadError> {
    let path = folder.join("tokenizer_config.json");
    match crate::files::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map_err(|e| LoadError::file(&path, e)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Value::Null),
        Err(e) => Err(LoadError::file(&path, e)),
    }
}

/// The text of a `*_token` entry: a string, or an object with `content`.
pub(crate) fn token_text(entry: &Value) -> Option<&str> {
    entry.as_str().or_else(|| entry.get("content")?.as_str())
}

/// Special tokens that only `tokenizer_config.json` declares, under ids that exist. Some checkpoints
/// leave them out of `tokenizer.json`, where chat templates could not use them.
fn declared_special(config: &Value, inner: &tokenizers::Tokenizer) -> Vec<AddedToken> {
    let Some(entries) = config.get("added_tokens_decoder").and_then(Value::as_object) else {
        return Vec::new();
    };
    let known = inner.get_added_tokens_decoder();
    let flag = |entry: &Value, name: &str| entry.get(name).and_then(Value::as_bool).unwrap_or(false);
    entries
        .iter()
        .filter(|(_, entry)| flag(entry, "special"))
        .filter_map(|(id, entry)| {
            let content = token_text(entry)?;
            let id = id.parse::<u32>().ok()?;
            let missing = !known.get(&id).is_some_and(|token| token.special);
            (missing && !content.is_empty() && inner.token_to_id(content) == Some(id)).then(|| {
                AddedToken::from(content, true)
                    .lstrip(flag(entry, "lstrip"))
                    .rstrip(flag(entry, "rstrip"))
                    .single_word(flag(entry, "single_word"))
            })
        })
        .collect()
}

/// How a tokenizer's vocabulary spells bytes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Spelling {
    /// Every byte as one printable character (GPT-2's map).
    byte_level: bool,
    /// "▁" stands for a space (sentencepiece).
    metaspace: bool,
    /// `<0xNN>` stands for one byte.
    byte_fallback: bool,
}

impl Spelling {
    /// Read off the decoder, which must know it; off the other parts where a file has no decoder.
    fn of(tokenizer: &Value) -> Self {
        let mut spelling = Self::default();
        let decoder = &tokenizer["decoder"];
        if decoder.is_object() {
            spelling.add(decoder);
        } else {
            spelling.add(&tokenizer["normalizer"]);
            spelling.add(&tokenizer["pre_tokenizer"]);
        }
        spelling.byte_fallback |= tokenizer["model"]["byte_fallback"] == true;
        spelling
    }

    /// Depth is bounded by the JSON parser's own limit.
    fn add(&mut self, part: &Value) {
        match part["type"].as_str() {
            Some("ByteLevel") => self.byte_level = true,
            Some("Metaspace") => self.metaspace = true,
            Some("ByteFallback") => self.byte_fallback = true,
            Some("Replace") => {
                let ends = [&part["pattern"]["String"], &part["content"]];
                self.metaspace |= ends.iter().any(|v| v.as_str() == Some(METASPACE));
            }
            _ => {}
        }
        for list in ["decoders", "pretokenizers", "normalizers"] {
            for inner in part[list].as_array().into_iter().flatten() {
                self.add(inner);
            }
        }
    }

    fn bytes(&self, token: &str) -> Vec<u8> {
        if self.byte_level {
            // A token outside the map stands for itself, as in the reference decoder.
            return token
                .chars()
                .map(byte_of_char)
                .collect::<Option<_>>()
                .unwrap_or_else(|| token.as_bytes().to_vec());
        }
        if self.byte_fallback
            && let Some(byte) = fallback_byte(token)
        {
            return vec![byte];
        }
        if self.metaspace { token.replace(METASPACE, " ").into_bytes() } else { token.as_bytes().to_vec() }
    }
}

const METASPACE: &str = "\u{2581}";

fn fallback_byte(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let digits = hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    digits.then(|| u8::from_str_radix(hex, 16).ok()).flatten()
}

/// The inverse of GPT-2's map: printable bytes stand for themselves, the 68 others follow from U+0100.
fn byte_of_char(c: char) -> Option<u8> {
    let code = c as u32;
    match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => u8::try_from(code).ok(),
        0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_map_is_one_to_one_over_the_librarys_alphabet() {
        let alphabet = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
        let mut bytes: Vec<u8> = alphabet.into_iter().map(|c| byte_of_char(c).unwrap()).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(byte_of_char('\u{120}'), Some(b' '));
        assert_eq!(byte_of_char('\u{10a}'), Some(b'\n'));
        assert_eq!(byte_of_char(' '), None);
    }

    #[test]
    fn only_two_hex_digits_are_a_byte() {
        assert_eq!(fallback_byte("<0x0A>"), Some(10));
        assert_eq!(fallback_byte("<0xff>"), Some(255));
        for other in ["<0x+1>", "<0x1>", "<0x100>", "0x0A", "<0x0A", "<0xg0>"] {
            assert_eq!(fallback_byte(other), None, "{other}");
        }
    }
}
