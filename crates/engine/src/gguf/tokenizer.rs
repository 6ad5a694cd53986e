//! The tokenizer that a GGUF file carries, in the form of `tokenizer.json`, its chat template, and the
//! ids that end a text.

use std::{cmp::Reverse, collections::HashMap};

use serde_json::{Map, Value, json};

use super::GgufFile;
use crate::{ChatTemplate, LoadError, Tokenizer};

/// A longer token would only be there to keep this process busy; real ones have at most some hundred bytes.
const LONGEST: usize = 1024;
const METASPACE: &str = "\u{2581}";

/// What a token is, as ggml numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl GgufFile {
    /// The tokenizer.
    ///
    /// # Errors
    /// There is none, it is damaged, or of a kind that is not supported: a `tokenizer.json` beside the
    /// file then stands in for it.
    pub(crate) fn tokenizer(&self) -> Result<Tokenizer, LoadError> {
        let json = self.tokenizer_json().map_err(|problem| {
            let hint = "a `tokenizer.json` beside the file is used instead where there is one";
            self.refuse(format!("{problem}; {hint}"))
        })?;
        Tokenizer::parse(self.path(), json.to_string().as_bytes(), &Value::Null)
    }

    /// The chat template; one that refuses every use where the file has none.
    ///
    /// # Errors
    /// The template or the tokens that it speaks of are no texts.
    pub(crate) fn chat(&self) -> Result<ChatTemplate, LoadError> {
        self.read_chat().map_err(|problem| self.refuse(problem))
    }

    fn read_chat(&self) -> Result<ChatTemplate, String> {
        let source = self.metadata.text("tokenizer.chat_template")?.map(str::to_owned);
        let tokens = self.metadata.texts("tokenizer.ggml.tokens")?.unwrap_or_default();
        let mut named = Vec::new();
        for (key, name) in
            [("bos", "bos_token"), ("eos", "eos_token"), ("unknown", "unk_token"), ("padding", "pad_token")]
        {
            let id = self.metadata.integer(&format!("tokenizer.ggml.{key}_token_id"))?;
            let token = id.and_then(|id| tokens.get(usize::try_from(id).ok()?));
            named.extend(token.map(|token| (name.to_owned(), (*token).to_owned())));
        }
        Ok(ChatTemplate::new(self.path(), source, named))
    }

    /// The ids that end a text: of the whole text, of a turn, of a message.
    ///
    /// # Errors
    /// One lies outside the vocabulary.
    pub(crate) fn eos(&self, vocab: usize) -> Result<Vec<u32>, LoadError> {
        let mut ids = Vec::new();
        for key in ["eos", "eot", "eom"] {
            let key = format!("tokenizer.ggml.{key}_token_id");
            let Some(id) = self.metadata.integer(&key).map_err(|e| self.refuse(e))? else { continue };
            if id >= vocab as u64 {
                return Err(self.refuse(format!("`{key}` is {id}, outside the vocabulary of {vocab}")));
            }
            if !ids.contains(&(id as u32)) {
                ids.push(id as u32);
            }
        }
        Ok(ids)
    }

    /// `tokenizer.json` of the metadata.
    fn tokenizer_json(&self) -> Result<Value, String> {
        let metadata = &self.metadata;
        let model = metadata.text("tokenizer.ggml.model")?.ok_or("has no tokenizer")?;
        let tokens = metadata.texts("tokenizer.ggml.tokens")?.ok_or("has no `tokenizer.ggml.tokens`")?;
        if let Some(token) = tokens.iter().find(|token| token.len() > LONGEST) {
            return Err(format!("has a token of {} bytes; at most {LONGEST} are read", token.len()));
        }
        let kinds = self.kinds(tokens.len())?;
        let vocabulary = Vocabulary::new(&tokens, &kinds);
        let (normalizer, pre_tokenizer, decoder, model, adds_bos) = match model {
            "gpt2" => {
                let pre = metadata.text("tokenizer.ggml.pre")?.unwrap_or("none");
                let split = Split::named(pre)?;
                let merges = metadata.texts("tokenizer.ggml.merges")?;
                let merges = merges.ok_or("has no `tokenizer.ggml.merges`")?;
                let merges = merges.iter().map(|merge| pair(merge)).collect::<Result<Vec<_>, _>>()?;
                let model = vocabulary.bpe(&merges, json!({"ignore_merges": split.ignore_merges}));
                let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
                (split.normalizer, split.pre_tokenizer, bytes, model, split.adds_bos)
            }
            "llama" => {
                let scores = metadata.numbers("tokenizer.ggml.scores")?;
                let scores = scores.filter(|s| s.len() == tokens.len());
                let scores = scores.ok_or("has no `tokenizer.ggml.scores`, one for each token")?;
                let unknown = metadata.integer("tokenizer.ggml.unknown_token_id")?.unwrap_or(0);
                let unknown = usize::try_from(unknown).ok().and_then(|id| tokens.get(id));
                let settings = json!({"byte_fallback": true, "fuse_unk": true, "unk_token": unknown});
                let model = vocabulary.bpe(&vocabulary.merges(&scores), settings);
                let prefix = metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
                let (normalizer, decoder) = sentencepiece(prefix);
                (normalizer, Value::Null, decoder, model, true)
            }
            other => {
                return Err(format!("has a tokenizer of the kind `{other}`; supported: gpt2, llama"));
            }
        };
        Ok(json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": vocabulary.added(),
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": self.frame(&tokens, adds_bos)?,
            "decoder": decoder,
            "model": model,
        }))
    }

    fn kinds(&self, count: usize) -> Result<Vec<Kind>, String> {
        let key = "tokenizer.ggml.token_type";
        let Some(types) = self.metadata.numbers(key)? else { return Ok(vec![Kind::Normal; count]) };
        if types.len() != count {
            return Err(format!("`{key}` has {} entries for {count} tokens", types.len()));
        }
        let kind = |n: f64| match n as i64 {
            2 => Kind::Unknown,
            3 => Kind::Control,
            4 => Kind::UserDefined,
            5 => Kind::Unused,
            6 => Kind::Byte,
            _ => Kind::Normal,
        };
        Ok(types.into_iter().map(kind).collect())
    }

    /// The tokens that stand around every raw text.
    fn frame(&self, tokens: &[&str], adds_bos: bool) -> Result<Value, String> {
        let token = |which: &str, default: bool| {
            let adds = self.metadata.flag(&format!("tokenizer.ggml.add_{which}_token"))?;
            let key = format!("tokenizer.ggml.{which}_token_id");
            let id = self.metadata.integer(&key)?.filter(|_| adds.unwrap_or(default));
            let Some(id) = id else { return Ok(None) };
            let token = usize::try_from(id).ok().and_then(|id| tokens.get(id));
            token.map(|token| Some((*token, id))).ok_or_else(|| format!("`{key}` is {id}, which is no token"))
        };
        let (bos, eos) = (token("bos", adds_bos)?, token("eos", false)?);
        if bos.is_none() && eos.is_none() {
            return Ok(Value::Null);
        }
        let special = |token: Option<(&str, u64)>, of: u32| {
            token.map(|(token, _)| json!({"SpecialToken": {"id": token, "type_id": of}}))
        };
        let text = |id: &str, of: u32| Some(json!({"Sequence": {"id": id, "type_id": of}}));
        let one =
            |id: &str, of: u32| [special(bos, of), text(id, of), special(eos, of)].into_iter().flatten();
        let known: Map<String, Value> = [bos, eos]
            .into_iter()
            .flatten()
            .map(|(token, id)| (token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]})))
            .collect();
        Ok(json!({
            "type": "TemplateProcessing",
            "single": one("A", 0).collect::<Vec<_>>(),
            "pair": one("A", 0).chain(one("B", 1)).collect::<Vec<_>>(),
            "special_tokens": known,
        }))
    }
}

/// The tokens that have a text, the first of several alike.
struct Vocabulary<'a> {
    ids: HashMap<&'a str, u32>,
    tokens: Vec<(&'a str, u32, Kind)>,
}

impl<'a> Vocabulary<'a> {
    fn new(tokens: &[&'a str], kinds: &[Kind]) -> Self {
        let mut all = Self { ids: HashMap::with_capacity(tokens.len()), tokens: Vec::new() };
        for ((&token, &kind), id) in tokens.iter().zip(kinds).zip(0..) {
            // Unused ids only fill up the embedding.
            if kind != Kind::Unused && !token.is_empty() && !all.ids.contains_key(token) {
                all.ids.insert(token, id);
                all.tokens.push((token, id, kind));
            }
        }
        all
    }

    /// The tokens that are found before all others, in the order of their ids.
    fn added(&self) -> Vec<Value> {
        let added = self.tokens.iter().filter_map(|&(token, id, kind)| {
            let special = match kind {
                Kind::Control | Kind::Unknown => true,
                Kind::UserDefined => false,
                Kind::Normal | Kind::Byte | Kind::Unused => return None,
            };
            Some(json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special,
            }))
        });
        added.collect()
    }

    fn bpe(&self, merges: &[(&str, &str)], settings: Value) -> Value {
        let mut model = json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": self.ids, "merges": merges,
        });
        if let (Some(model), Value::Object(settings)) = (model.as_object_mut(), settings) {
            model.extend(settings);
        }
        model
    }

    /// The merges that sentencepiece's scores stand for: of every token all the pairs of tokens that make
    /// it, the higher score first; the rule by which transformers converts such a model.
    fn merges(&self, scores: &[f64]) -> Vec<(&'a str, &'a str)> {
        let mut ranked = Vec::new();
        for &(token, id, kind) in self.tokens.iter().filter(|t| t.2 == Kind::Normal) {
            debug_assert_eq!(kind, Kind::Normal);
            let mut pairs: Vec<_> = token
                .char_indices()
                .skip(1)
                .map(|(at, _)| token.split_at(at))
                .filter_map(|(left, right)| Some((*self.ids.get(left)?, *self.ids.get(right)?, left, right)))
                .collect();
            pairs.sort_unstable_by_key(|pair| (pair.0, pair.1));
            let score = scores[id as usize];
            ranked.extend(pairs.into_iter().map(|(_, _, left, right)| (score, left, right)));
        }
        let length = |text: &str| text.chars().count();
        // Stable, as the rule's own sort is.
        ranked.sort_by(|a, b| {
            let lengths = |pair: &(f64, &str, &str)| Reverse((length(pair.1), length(pair.2)));
            b.0.total_cmp(&a.0).then_with(|| lengths(a).cmp(&lengths(b)))
        });
        ranked.into_iter().map(|(_, left, right)| (left, right)).collect()
    }
}

/// The two halves of a merge. A half may begin with a space of its own.
fn pair(merge: &str) -> Result<(&str, &str), String> {
    let space = merge.char_indices().skip(1).find(|(_, c)| *c == ' ');
    let (at, _) =
        space.ok_or_else(|| format!("`tokenizer.ggml.merges` holds `{merge}`, which is no pair"))?;
    Ok((&merge[..at], &merge[at + 1..]))
}

/// How sentencepiece spells spaces and bytes: normaliser and decoder.
fn sentencepiece(prefix: bool) -> (Value, Value) {
    let replace =
        |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let mut normalizers = vec![replace(" ", METASPACE)];
    let mut decoders =
        vec![replace(METASPACE, " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    if prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": METASPACE}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    (
        json!({"type": "Sequence", "normalizers": normalizers}),
        json!({"type": "Sequence", "decoders": decoders}),
    )
}

/// How a byte-level tokenizer cuts a text into words before it merges.
struct Split {
    normalizer: Value,
    pre_tokenizer: Value,
    ignore_merges: bool,
    adds_bos: bool,
}

impl Split {
    /// By llama.cpp's name for it. The expressions are those of the models' own `tokenizer.json`.
    fn named(name: &str) -> Result<Self, String> {
        const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        let bytes = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
        let by = |regex: &str| {
            let split = json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
            json!({"type": "Sequence", "pretokenizers": [split, bytes(false)]})
        };
        let plain = |pre_tokenizer| Self {
            normalizer: Value::Null,
            pre_tokenizer,
            ignore_merges: false,
            adds_bos: false,
        };
        Ok(match name {
            "gpt-2" | "gpt2" => plain(bytes(true)),
            "llama-bpe" | "llama3" | "llama-v3" => {
                Self { ignore_merges: true, adds_bos: true, ..plain(by(LLAMA3)) }
            }
            "smaug-bpe" => plain(by(LLAMA3)),
            "qwen2" | "deepseek-r1-qwen" => Self { normalizer: json!({"type": "NFC"}), ..plain(by(QWEN2)) },
            "tekken" => Self { ignore_merges: true, adds_bos: true, ..plain(by(TEKKEN)) },
            "smollm" => {
                let digits = json!({"type": "Digits", "individual_digits": true});
                plain(json!({"type": "Sequence", "pretokenizers": [digits, bytes(true)]}))
            }
            other => {
                return Err(format!(
                    "cuts texts as `tokenizer.ggml.pre` = `{other}` says, which is not known; known: gpt-2, llama-bpe, qwen2, smollm, smaug-bpe, tekken, deepseek-r1-qwen"
                ));
            }
        })
    }
}
