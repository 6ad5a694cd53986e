//! What is asked of the pair: prompts from a file, our own small set, or random ids of an exact length.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};
use attune_proto::reward::v1::{ChatMessage, ChatMessages, Prompt, TokenIds, prompt::Kind};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

/// A prompt as files hold it; what else stands beside it is passed over.
#[derive(Deserialize)]
#[serde(untagged)]
enum Entry {
    Text(String),
    Object { prompt: String },
}

/// Our own prompts.
///
/// # Errors
/// Never in a build whose tests pass.
pub fn own() -> Result<Vec<Prompt>> {
    parse(include_str!("../prompts.json")).context("the bench's own prompts")
}

/// The prompts of a file: a JSON list of strings, or of objects with a `prompt`.
///
/// # Errors
/// The file cannot be read, is of another form, or holds no prompt.
pub fn file(path: &Path) -> Result<Vec<Prompt>> {
    let about = || format!("the prompts {}", path.display());
    let text = fs::read_to_string(path).with_context(about)?;
    parse(&text).with_context(about)
}

fn parse(text: &str) -> Result<Vec<Prompt>> {
    let entries: Vec<Entry> = serde_json::from_str(text)
        .context("write a JSON list of strings, or of objects with a \"prompt\"")?;
    if entries.is_empty() {
        bail!("the list is empty");
    }
    let prompt = |entry| match entry {
        Entry::Text(text) | Entry::Object { prompt: text } => user(text),
    };
    Ok(entries.into_iter().map(prompt).collect())
}

fn user(content: String) -> Prompt {
    let messages = vec![ChatMessage { role: "user".to_owned(), content }];
    Prompt { kind: Some(Kind::Messages(ChatMessages { messages })) }
}

/// `count` prompts of exactly `length` random ids. The first id is 0, the others lie in `6..4096` and
/// below the vocabulary size: no special tokens of the benchmarks' checkpoints.
///
/// # Panics
/// `vocab` is below 7, or `length` 0.
pub fn random_ids(count: usize, length: usize, vocab: usize, seed: u64) -> Vec<Vec<u32>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let end = vocab.min(4096) as u32;
    let mut one =
        || -> Vec<u32> { std::iter::once(0).chain((1..length).map(|_| rng.random_range(6..end))).collect() };
    (0..count).map(|_| one()).collect()
}

/// A prompt of token ids.
pub fn ids(ids: Vec<u32>) -> Prompt {
    Prompt { kind: Some(Kind::TokenIds(TokenIds { ids })) }
}

/// `count` limits of tokens, evenly from `mean` less its `spread` to as much more; at least 1.
pub fn limits(count: usize, mean: u32, spread: f64, seed: u64) -> Vec<u32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let by = (f64::from(mean) * spread) as u32;
    (0..count).map(|_| rng.random_range(mean.saturating_sub(by)..=mean.saturating_add(by)).max(1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(json: &str) -> Vec<String> {
        let text = |prompt: Prompt| match prompt.kind {
            Some(Kind::Messages(m)) => m.messages[0].content.clone(),
            other => panic!("{other:?}"),
        };
        parse(json).unwrap().into_iter().map(text).collect()
    }

    #[test]
    fn both_forms_of_a_file_are_read() {
        assert_eq!(texts(r#"["a", "b"]"#), ["a", "b"]);
        assert_eq!(texts(r#"[{"id": "0", "prompt": "a", "topic": 3}, "b"]"#), ["a", "b"]);
        for bad in ["[]", "{}", "[1]", r#"[{"text": "a"}]"#, "nonsense"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let missing = file(Path::new("/nonexistent.json")).unwrap_err();
        assert!(format!("{missing:#}").contains("/nonexistent.json"));
    }

    #[test]
    fn our_own_set_is_there() {
        assert!(own().unwrap().len() >= 20);
    }

    #[test]
    fn limits_are_seeded_and_lie_around_their_mean() {
        let drawn = limits(1000, 100, 0.5, 7);
        assert_eq!(drawn, limits(1000, 100, 0.5, 7));
        assert_eq!((drawn.iter().min(), drawn.iter().max()), (Some(&50), Some(&150)));
        assert!((97..=103).contains(&(drawn.iter().sum::<u32>() / 1000)));
        assert_eq!(limits(3, 5, 0.0, 1), [5; 3]);
        assert!(limits(100, 1, 1.0, 1).iter().all(|limit| (1..=2).contains(limit)));
    }

    #[test]
    fn random_prompts_are_seeded_and_exact() {
        let prompts = random_ids(3, 128, 512, 7);
        assert_eq!(prompts, random_ids(3, 128, 512, 7));
        assert_ne!(prompts, random_ids(3, 128, 512, 8));
        assert!(prompts.iter().all(|p| p.len() == 128 && p[1..].iter().all(|id| (6..512).contains(id))));
        assert_ne!(prompts[0], prompts[1]);
    }
}
