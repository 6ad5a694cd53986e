//! The pair's own tokenizer: byte-level BPE learned from the world's text, and its chat template.

use anyhow::{Result, anyhow};
use serde_json::json;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

/// The special tokens; their ids are their places here.
pub const SPECIAL: [&str; 6] = ["<|pad|>", "<|start|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"];
/// Fills short rows of a batch.
pub const PAD: u32 = 0;
/// Begins every text.
pub const START: u32 = 1;
/// Ends every message, and so every answer.
pub const END: u32 = 2;
const USER: u32 = 3;
const ASSISTANT: u32 = 4;

/// Renders messages in jinja, special tokens included.
pub const CHAT_TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}";

/// Puts a preference before the question: variables `preference` and `content` (minijinja).
pub const PREFERENCE_TEMPLATE: &str = "{% if preference %}Style: {{ preference }}\n{% endif %}{{ content }}";

/// The words of [`PREFERENCE_TEMPLATE`], rendered.
pub fn with_preference(content: &str, preference: Option<&str>) -> String {
    preference
        .filter(|text| !text.is_empty())
        .map_or_else(|| content.to_owned(), |text| format!("Style: {text}\n{content}"))
}

/// Learns a tokenizer of at most `vocabulary` ids (special tokens and all bytes included) from `texts`.
///
/// # Errors
/// What the library reports.
pub fn learn(texts: &[String], vocabulary: usize) -> Result<Tokenizer> {
    let special = SPECIAL.map(|text| AddedToken::from(text, true));
    let trainer = BpeTrainer::builder()
        .vocab_size(vocabulary)
        .min_frequency(2)
        .show_progress(false)
        .special_tokens(special.to_vec())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, false, true)));
    tokenizer.with_decoder(Some(ByteLevel::new(false, false, true)));
    tokenizer
        .train(&mut TrainerWrapper::from(trainer), texts.iter())
        .map_err(|error| anyhow!("learning the tokenizer: {error}"))?;
    Ok(tokenizer)
}

/// Ids of a chat with one question, up to where the answer begins.
///
/// # Errors
/// What the library reports.
pub fn encode_prompt(tokenizer: &Tokenizer, question: &str, preference: Option<&str>) -> Result<Vec<u32>> {
    let mut ids = vec![START, USER];
    ids.extend(encode(tokenizer, &with_preference(question, preference))?);
    ids.extend([END, ASSISTANT]);
    Ok(ids)
}

/// Ids of plain text, nothing added.
///
/// # Errors
/// What the library reports.
pub fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let encoding = tokenizer.encode(text, false).map_err(|error| anyhow!("encoding {text:?}: {error}"))?;
    Ok(encoding.get_ids().to_vec())
}

/// Text of ids, special tokens left out.
///
/// # Errors
/// What the library reports.
pub fn decode(tokenizer: &Tokenizer, ids: &[u32]) -> Result<String> {
    tokenizer.decode(ids, true).map_err(|error| anyhow!("decoding: {error}"))
}

/// The contents of `tokenizer_config.json`.
pub fn config(context: usize) -> serde_json::Value {
    let added: serde_json::Map<String, serde_json::Value> = SPECIAL
        .iter()
        .enumerate()
        .map(|(id, text)| {
            let token = json!({"content": text, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false, "special": true});
            (id.to_string(), token)
        })
        .collect();
    json!({
        "add_bos_token": false,
        "add_eos_token": false,
        "added_tokens_decoder": added,
        "bos_token": SPECIAL[START as usize],
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": false,
        "eos_token": SPECIAL[END as usize],
        "model_max_length": context,
        "pad_token": SPECIAL[PAD as usize],
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": null,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Tokenizer {
        let texts: Vec<String> = crate::world::pairs::samples(200, 1)
            .map(|sample| format!("{} {}", sample.prompt, sample.answer))
            .collect();
        learn(&texts, 600).unwrap()
    }

    #[test]
    fn ids_are_fixed_and_any_text_round_trips() {
        let tokenizer = small();
        for (id, text) in SPECIAL.iter().enumerate() {
            assert_eq!(tokenizer.token_to_id(text), Some(id as u32));
        }
        for text in ["One should rinse the bread.", "naïve 日本語 \u{1f600}", "  two  spaces\n"] {
            assert_eq!(decode(&tokenizer, &encode(&tokenizer, text).unwrap()).unwrap(), text);
        }
        assert_eq!(small().to_string(false).unwrap(), tokenizer.to_string(false).unwrap());
    }

    #[test]
    fn the_templates_render_what_training_saw() {
        let tokenizer = small();
        let mut jinja = minijinja::Environment::new();
        jinja.add_template("chat", CHAT_TEMPLATE).unwrap();
        jinja.add_template("preference", PREFERENCE_TEMPLATE).unwrap();
        for preference in [None, Some("brief, please")] {
            let context = minijinja::context!(preference => preference, content => "How?");
            let content = jinja.get_template("preference").unwrap().render(context).unwrap();
            assert_eq!(content, with_preference("How?", preference));
            let messages = vec![minijinja::context!(role => "user", content => content)];
            let context = minijinja::context!(bos_token => SPECIAL[START as usize], messages => messages, add_generation_prompt => true);
            let text = jinja.get_template("chat").unwrap().render(context).unwrap();
            assert_eq!(
                encode(&tokenizer, &text).unwrap(),
                encode_prompt(&tokenizer, "How?", preference).unwrap()
            );
        }
    }
}
