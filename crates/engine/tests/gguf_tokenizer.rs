//! The tokenizers of GGUF files: sentencepiece's by a plain reference, the named splits by their words.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "gguf/writer.rs"]
mod writer;

use std::{collections::HashMap, sync::Arc};

use attune_engine::random_checkpoint::{self, Family, Kind, Shape};
use attune_engine::{Assets, BaseModel, LoadOptions};
use attune_kernels::Threads;
use candle_core::quantized::{GgmlDType, gguf_file::Value};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use writer::Gguf;

/// The assets of a file with these tokenizer settings on a tiny model.
fn assets(settings: Vec<(&str, Value)>) -> Arc<Assets> {
    let root = tempfile::tempdir().unwrap();
    let shape = Shape { layers: 1, ..Shape::tiny(Family::Llama) };
    random_checkpoint::write(root.path(), &shape, 3, Kind::Base).unwrap();
    let mut gguf = Gguf::of(root.path(), GgmlDType::F32);
    for (key, value) in settings {
        gguf.set(&format!("tokenizer.ggml.{key}"), Some(value));
    }
    let folder = tempfile::tempdir().unwrap();
    gguf.write(&folder.path().join("model.gguf"));
    let options = LoadOptions { format: None, context: Some(64), threads: Threads::new(1).unwrap() };
    BaseModel::load(folder.path(), "test", &options).unwrap().assets
}

fn texts(all: &[String]) -> Value {
    Value::Array(all.iter().cloned().map(Value::String).collect())
}

/// A sentencepiece vocabulary: three special tokens, the bytes, and pieces with their scores.
struct Pieces {
    tokens: Vec<String>,
    scores: Vec<f32>,
    kinds: Vec<i32>,
}

impl Pieces {
    fn random(rng: &mut ChaCha8Rng) -> Self {
        let mut all = Self { tokens: vec![], scores: vec![], kinds: vec![] };
        for (token, kind) in [("<unk>", 2), ("<s>", 3), ("</s>", 3)] {
            all.add(token.to_owned(), 0.0, kind);
        }
        for byte in 0..=255 {
            all.add(format!("<0x{byte:02X}>"), 0.0, 6);
        }
        let alphabet = ["\u{2581}", "a", "b", "c", "e", "\u{e9}"];
        for (i, letter) in alphabet.iter().enumerate() {
            all.add((*letter).to_owned(), -1000.0 - i as f32, 1);
        }
        // Pieces of known pieces, each with a score of its own, the short ones not always first.
        while all.tokens.len() < 380 {
            let from = 259;
            let pick = |rng: &mut ChaCha8Rng, all: &Self| {
                all.tokens[rng.random_range(from..all.tokens.len())].clone()
            };
            let piece = pick(rng, &all) + &pick(rng, &all);
            if piece.chars().count() <= 6 && !all.tokens.contains(&piece) {
                let score = -rng.random_range(0.0f32..900.0);
                all.add(piece, score, 1);
            }
        }
        all
    }

    fn add(&mut self, token: String, score: f32, kind: i32) {
        self.tokens.push(token);
        self.scores.push(score);
        self.kinds.push(kind);
    }

    /// As sentencepiece's BPE and llama.cpp do it: of all neighbours that make a piece, the pair with the
    /// highest score, the left one of equals, becomes that piece, until none does.
    fn reference(&self, text: &str) -> Vec<u32> {
        let ids: HashMap<&str, usize> =
            self.tokens.iter().enumerate().map(|(i, t)| (t.as_str(), i)).collect();
        let text = format!("\u{2581}{}", text.replace(' ', "\u{2581}"));
        let mut parts: Vec<String> = text.chars().map(String::from).collect();
        loop {
            let pairs = parts.windows(2).enumerate().filter_map(|(at, pair)| {
                let id = *ids.get((pair[0].clone() + &pair[1]).as_str())?;
                Some((self.scores[id], at))
            });
            let best = pairs.max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
            let Some((_, at)) = best else { break };
            let right = parts.remove(at + 1);
            parts[at].push_str(&right);
        }
        let id = |part: &String| match ids.get(part.as_str()) {
            Some(&id) => vec![id as u32],
            None => part.bytes().map(|b| ids[format!("<0x{b:02X}>").as_str()] as u32).collect(),
        };
        parts.iter().flat_map(id).collect()
    }
}

#[test]
fn sentencepiece_merges_by_score() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let pieces = Pieces::random(&mut rng);
    let assets = assets(vec![
        ("model", Value::String("llama".into())),
        ("tokens", texts(&pieces.tokens)),
        ("scores", Value::Array(pieces.scores.iter().map(|&s| Value::F32(s)).collect())),
        ("token_type", Value::Array(pieces.kinds.iter().map(|&k| Value::I32(k)).collect())),
        ("unknown_token_id", Value::U32(0)),
        ("bos_token_id", Value::U32(1)),
        ("eos_token_id", Value::U32(2)),
        ("add_bos_token", Value::Bool(true)),
    ]);
    let tokenizer = &assets.tokenizer;
    assert_eq!(assets.eos, [2]);
    for _ in 0..300 {
        let letters = ["a", "b", "c", "e", "\u{e9}", " ", "z", "\u{1f600}"];
        let length = rng.random_range(1..25);
        let text: String = (0..length).map(|_| letters[rng.random_range(0..letters.len())]).collect();
        let raw = tokenizer.encode_raw(&text).unwrap();
        assert_eq!((raw[0], &raw[1..]), (1, &pieces.reference(&text)[..]), "{text:?}");
        let bytes: Vec<u8> = raw.iter().flat_map(|&id| tokenizer.output_bytes(id)).copied().collect();
        assert_eq!(String::from_utf8(bytes).unwrap(), format!(" {text}"));
    }
    assert_eq!(tokenizer.encode_rendered("</s>").unwrap().last(), Some(&2));
    assert!(tokenizer.is_special(1) && !tokenizer.is_special(3));
}

#[test]
fn every_named_split_cuts_digits_and_words_in_its_own_way() {
    let bytes = |text: &str| -> Vec<String> {
        // What stands between two tokens is not visible, so that whole words are put into the vocabulary.
        text.split('|').map(|word| word.replace(' ', "\u{120}").replace('\n', "\u{10a}")).collect()
    };
    for (pre, words) in [
        ("gpt-2", "it|'s| 1234| x|\n|\n"),
        ("llama-bpe", "it|'s| |123|4| x|\n\n"),
        ("smaug-bpe", "it|'s| |123|4| x|\n\n"),
        ("qwen2", "it|'s| |1|2|3|4| x|\n\n"),
        ("deepseek-r1-qwen", "it|'s| |1|2|3|4| x|\n\n"),
        ("tekken", "it|'s| |1|2|3|4| x|\n\n"),
        ("smollm", "it|'s| |1|2|3|4| x|\n|\n"),
    ] {
        let words = bytes(words);
        // The bytes, every prefix of a word, and the merges that build it letter by letter.
        let mut tokens: Vec<String> = Vec::new();
        let mut merges: Vec<String> = Vec::new();
        let add = |token: String, all: &mut Vec<String>| {
            if !all.contains(&token) {
                all.push(token);
            }
        };
        for word in words.iter().chain(&bytes("it's 1234 x\n\n")) {
            word.chars().for_each(|c| add(c.to_string(), &mut tokens));
        }
        // One whole line is a token too: only the split keeps it from being made.
        for word in words.iter().chain(&bytes("it's 1234 x\n\n")) {
            let letters: Vec<String> = word.chars().map(String::from).collect();
            for end in 1..letters.len() {
                let left = letters[..end].concat();
                add(left.clone() + &letters[end], &mut tokens);
                add(format!("{left} {}", letters[end]), &mut merges);
            }
        }
        let kinds = Value::Array(tokens.iter().map(|_| Value::I32(1)).collect());
        let assets = assets(vec![
            ("pre", Value::String(pre.into())),
            ("tokens", texts(&tokens)),
            ("merges", texts(&merges)),
            ("token_type", kinds),
            ("add_bos_token", Value::Bool(false)),
            ("bos_token_id", Value::U32(0)),
            ("eos_token_id", Value::U32(0)),
            ("unknown_token_id", Value::U32(0)),
        ]);
        let ids = assets.tokenizer.encode_raw("it's 1234 x\n\n").unwrap();
        let got: Vec<&str> = ids.iter().map(|&id| tokens[id as usize].as_str()).collect();
        assert_eq!(got, words, "{pre}");
    }
}
