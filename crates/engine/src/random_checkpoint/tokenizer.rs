//! A real byte-level BPE for random checkpoints, trained from made-up seeded words.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer};

use super::{Shape, WriteError, write_json};

/// Id of the first token of a text.
pub(super) const BOS_ID: u32 = 0;
/// Id of the end of a text.
pub(super) const EOS_ID: u32 = 1;
/// The special tokens in the order of their ids, and one id for each byte.
pub(super) const MIN_VOCAB: usize = SPECIALS.len() + 256;

const BOS: &str = "<|begin_of_text|>";
const EOS: &str = "<|end_of_text|>";
const UNK: &str = "<|unk|>";
const SPECIALS: [&str; 6] = [BOS, EOS, UNK, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"];
const MAX_IDS: usize = 4096;
const CHAT_TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}\
    {{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}\
    {% endfor %}{% if add_generation_prompt %}\
    {{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}";

/// Writes `tokenizer.json` and `tokenizer_config.json`.
pub(super) fn write(dir: &Path, shape: &Shape) -> Result<(), WriteError> {
    let path = dir.join("tokenizer.json");
    std::fs::write(&path, trained(shape.vocab.min(MAX_IDS))?)
        .map_err(|source| WriteError::Io { path, source })?;
    let added: Map<String, Value> = SPECIALS
        .iter()
        .enumerate()
        .map(|(id, content)| {
            let token = json!({
                "content": content, "lstrip": false, "normalized": false, "rstrip": false,
                "single_word": false, "special": true,
            });
            (id.to_string(), token)
        })
        .collect();
    let config = json!({
        "added_tokens_decoder": added,
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": UNK,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": false,
        "model_max_length": shape.max_position,
        "tokenizer_class": "PreTrainedTokenizerFast",
    });
    write_json(&dir.join("tokenizer_config.json"), &config)
}

/// The text of `tokenizer.json` with `ids` ids; trained once a process for each size, because
/// tests write many folders.
fn trained(ids: usize) -> Result<String, WriteError> {
    static DONE: OnceLock<Mutex<HashMap<usize, String>>> = OnceLock::new();
    let mut done = DONE.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(text) = done.get(&ids) {
        return Ok(text.clone());
    }
    let text = train(ids).map_err(|e| WriteError::Tokenizer(e.to_string()))?;
    done.insert(ids, text.clone());
    Ok(text)
}

fn train(ids: usize) -> tokenizers::Result<String> {
    let mut trainer = TrainerWrapper::from(
        BpeTrainer::builder()
            .vocab_size(ids)
            .show_progress(false)
            .special_tokens(SPECIALS.map(|s| AddedToken::from(s, true)).to_vec())
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build(),
    );
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    tokenizer.train(&mut trainer, made_up_lines().into_iter())?;
    tokenizer.with_post_processor(Some(
        TemplateProcessing::builder()
            .try_single(format!("{BOS} $A"))?
            .try_pair(format!("{BOS} $A {BOS} $B"))?
            .special_tokens(vec![(BOS, BOS_ID)])
            .build()?,
    ));
    tokenizer.to_string(true)
}

/// Lines of words from a few syllables; the text itself does not matter.
fn made_up_lines() -> Vec<String> {
    const ONSETS: [&str; 19] =
        ["b", "c", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "th", "sh", "st"];
    const VOWELS: [&str; 8] = ["a", "e", "i", "o", "u", "ai", "ou", "er"];
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut below = |n: usize| rng.next_u32() as usize % n;
    let words: Vec<String> = (0..3000)
        .map(|_| {
            (0..1 + below(4))
                .flat_map(|_| [ONSETS[below(ONSETS.len())], VOWELS[below(VOWELS.len())]])
                .collect()
        })
        .collect();
    (0..3000)
        .map(|_| {
            let line: Vec<&str> = (0..12).map(|_| words[below(words.len())].as_str()).collect();
            line.join(" ") + "."
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tokenizer_is_full_deterministic_and_reads_its_own_text() {
        for ids in [MIN_VOCAB, 512, MAX_IDS] {
            let text = train(ids).unwrap();
            assert_eq!(text, train(ids).unwrap());
            let tokenizer: Tokenizer = text.parse().unwrap();
            assert_eq!(tokenizer.get_vocab_size(true), ids);
            assert_eq!(tokenizer.token_to_id(BOS), Some(BOS_ID));
            assert_eq!(tokenizer.token_to_id(EOS), Some(EOS_ID));
            let encoded = tokenizer.encode("thaiko baster, \u{e9}\u{1f600}", true).unwrap();
            assert_eq!(encoded.get_ids()[0], BOS_ID);
            let decoded = tokenizer.decode(encoded.get_ids(), true).unwrap();
            assert_eq!(decoded, "thaiko baster, \u{e9}\u{1f600}");
        }
    }
}
