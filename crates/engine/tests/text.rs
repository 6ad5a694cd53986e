//! Tokenizers, chat templates and streamed text, over small checkpoints made here.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that fails should say where

use std::{fs, path::Path};

use attune_engine::{ChatTemplate, Message, Piece, PreferenceTemplate, TextError, TextStream, Tokenizer};
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokenizers::{
    AddedToken,
    models::{TrainerWrapper, bpe},
    normalizers::{Prepend, Replace, Sequence},
    pre_tokenizers::byte_level::ByteLevel,
    processors::template::TemplateProcessing,
};

const BOS: &str = "<|bos|>";
const END: &str = "<|end|>";

/// A byte-level BPE with merges, two special tokens, and a BOS before raw texts.
fn byte_level() -> tokenizers::Tokenizer {
    let mut tokenizer = tokenizers::Tokenizer::new(bpe::BPE::default());
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    let mut trainer = TrainerWrapper::from(
        bpe::BpeTrainer::builder()
            .vocab_size(290)
            .show_progress(false)
            .special_tokens(vec![AddedToken::from(BOS, true), AddedToken::from(END, true)])
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build(),
    );
    let lines = ["the tea is hot and the tea is sweet\n", "then they eat the heat", "Ünïcode ünïcode"];
    tokenizer.train(&mut trainer, lines.iter()).unwrap();
    let processor = TemplateProcessing::builder()
        .try_single(format!("{BOS} $A"))
        .unwrap()
        .special_tokens(vec![(BOS, 0)])
        .build()
        .unwrap();
    tokenizer.with_post_processor(Some(processor));
    tokenizer
}

/// As Llama 2's: "▁" for spaces, bytes for what the vocabulary lacks.
fn sentencepiece() -> tokenizers::Tokenizer {
    let mut names = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
    names.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    names.extend(["\u{2581}", "t", "e", "a", "\u{2581}t", "ea", "\u{2581}tea"].map(str::to_owned));
    let vocabulary: [(String, u32); 266] = names.into_iter().zip(0..).collect::<Vec<_>>().try_into().unwrap();
    let merges = [("\u{2581}", "t"), ("e", "a"), ("\u{2581}t", "ea")];
    let model = bpe::BPE::builder()
        .vocab_and_merges(vocabulary, merges.map(owned).to_vec())
        .unk_token("<unk>".to_owned())
        .fuse_unk(true)
        .byte_fallback(true)
        .build()
        .unwrap();
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer
        .with_normalizer(Some(Sequence::new(vec![
            Prepend::new("\u{2581}".to_owned()).into(),
            Replace::new(" ", "\u{2581}").unwrap().into(),
        ])))
        .unwrap();
    tokenizer.with_decoder(Some(tokenizers::decoders::sequence::Sequence::new(vec![
        Replace::new("\u{2581}", " ").unwrap().into(),
        tokenizers::decoders::byte_fallback::ByteFallback::new().into(),
        tokenizers::decoders::fuse::Fuse::new().into(),
        tokenizers::decoders::strip::Strip::new(' ', 1, 0).into(),
    ])));
    tokenizer.add_special_tokens(["<s>", "</s>"].map(|name| AddedToken::from(name, true))).unwrap();
    tokenizer
}

fn owned((a, b): (&str, &str)) -> (String, String) {
    (a.to_owned(), b.to_owned())
}

fn folder(tokenizer: &str, config: &Value) -> TempDir {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("tokenizer.json"), tokenizer).unwrap();
    fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    folder
}

fn load(tokenizer: &tokenizers::Tokenizer) -> Tokenizer {
    let folder = folder(&tokenizer.to_string(false).unwrap(), &json!({}));
    Tokenizer::load(folder.path()).unwrap()
}

fn output(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|&id| tokenizer.output_bytes(id)).copied().collect()
}

#[test]
fn raw_text_gets_the_special_tokens_and_rendered_text_has_its_own() {
    let tokenizer = load(&byte_level());
    let raw = tokenizer.encode_raw("the tea").unwrap();
    let rendered = tokenizer.encode_rendered("<|bos|>the tea<|end|>").unwrap();
    assert_eq!(raw[0], 0);
    assert_eq!(rendered[..raw.len()], raw);
    assert_eq!(rendered.last(), Some(&1));
    assert_eq!(tokenizer.encode_rendered("the tea").unwrap(), raw[1..]);
    assert_eq!(output(&tokenizer, &rendered), b"the tea");
    assert_eq!(tokenizer.token_id(END), Some(1));
    assert_eq!(tokenizer.bytes_of(1), Some(END.as_bytes()));
    assert!(tokenizer.is_special(1) && !tokenizer.is_special(2) && !tokenizer.is_special(u32::MAX));
    assert_eq!(tokenizer.size(), 290);
    assert_eq!(tokenizer.bytes_of(290), None);
    assert_eq!(tokenizer.output_bytes(u32::MAX), b"");
}

#[test]
fn a_file_that_cuts_and_pads_does_not_cut_a_prompt() {
    let mut tokenizer = byte_level();
    tokenizer
        .with_truncation(Some(tokenizers::TruncationParams { max_length: 2, ..Default::default() }))
        .unwrap()
        .with_padding(Some(tokenizers::PaddingParams {
            strategy: tokenizers::PaddingStrategy::Fixed(100),
            ..Default::default()
        }));
    assert_eq!(
        load(&tokenizer).encode_raw("a much longer text").unwrap(),
        load(&byte_level()).encode_raw("a much longer text").unwrap()
    );
}

#[test]
fn sentencepiece_bytes_and_spaces_come_back() {
    let tokenizer = load(&sentencepiece());
    let ids = tokenizer.encode_rendered("tea é\n").unwrap();
    assert_eq!(tokenizer.bytes_of(ids[0]), Some(&b" tea"[..]));
    assert_eq!(output(&tokenizer, &ids), " tea é\n".as_bytes());
    assert_eq!(tokenizer.bytes_of(3 + 0xC3), Some(&[0xC3][..]));
    assert_eq!(tokenizer.output_bytes(1), b"");
}

#[test]
fn special_tokens_that_only_the_config_declares_are_recognised() {
    let mut tokenizer: Value = serde_json::from_str(&byte_level().to_string(false).unwrap()).unwrap();
    tokenizer["model"]["vocab"]["<|call|>"] = json!(290);
    let entry = |content: &str| json!({"content": content, "special": true});
    let config = json!({"added_tokens_decoder": {
        "290": entry("<|call|>"),
        "291": entry("<|unknown|>"),
        "12": entry("<|call|>"),
        "x": 3,
    }});
    let folder = folder(&tokenizer.to_string(), &config);
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    assert!(tokenizer.is_special(290) && !tokenizer.is_special(12));
    assert_eq!(tokenizer.encode_rendered("<|call|>").unwrap(), [290]);
    assert_eq!(tokenizer.size(), 291);
}

#[test]
fn the_fingerprint_covers_exactly_the_first_ids() {
    let base = load(&byte_level());
    let mut grown = byte_level();
    grown.add_tokens([AddedToken::from("extra", false)]).unwrap();
    let grown = load(&grown);
    assert_eq!(grown.size(), 291);
    assert_eq!(base.fingerprint(290), grown.fingerprint(290));
    assert_ne!(base.fingerprint(291), grown.fingerprint(291));
    assert_ne!(base.fingerprint(290), base.fingerprint(289));
    assert_ne!(base.fingerprint(259), load(&sentencepiece()).fingerprint(259));
    assert_eq!(base.fingerprint(u32::MAX).len(), 64);
}

#[test]
fn a_missing_or_damaged_tokenizer_is_named() {
    let folder = TempDir::new().unwrap();
    let error = |folder: &Path| Tokenizer::load(folder).map(|_| ()).unwrap_err().to_string();
    assert!(error(folder.path()).contains("tokenizer.json"));
    for text in
        ["", "[]", "{}", r#"{"model": 1}"#, r#"{"model":{"type":"BPE","vocab":{"a":0},"merges":["a b c"]}}"#]
    {
        fs::write(folder.path().join("tokenizer.json"), text).unwrap();
        assert!(error(folder.path()).contains("tokenizer.json"), "{text}");
    }
    let far = json!({"model": {"type": "BPE", "vocab": {"a": u32::MAX}, "merges": []}});
    fs::write(folder.path().join("tokenizer.json"), far.to_string()).unwrap();
    assert!(error(folder.path()).contains("4294967295"));
    let whole = byte_level().to_string(false).unwrap();
    // A template of special tokens of which one does not exist makes the library panic, at every text.
    let mut lame: Value = serde_json::from_str(&whole).unwrap();
    lame["post_processor"] = json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<unheard-of>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {},
    });
    fs::write(folder.path().join("tokenizer.json"), lame.to_string()).unwrap();
    assert!(error(folder.path()).contains("damaged"));
    fs::write(folder.path().join("tokenizer.json"), &whole).unwrap();
    fs::write(folder.path().join("tokenizer_config.json"), "{").unwrap();
    assert!(error(folder.path()).contains("tokenizer_config.json"));
}

/// Templates in the manner of known families, written for these tests.
const LLAMA3: &str = "{{- bos_token }}\n\
    {%- if messages[0]['role'] == 'system' %}\n\
    {%- set system = messages[0]['content']|trim %}{%- set messages = messages[1:] %}\n\
    {%- else %}{%- set system = '' %}{%- endif %}\n\
    {%- if strftime_now is defined and tools is not none %}{{ strftime_now('%d %b %Y') }}{%- endif %}\n\
    {%- if system %}{{- '<|h|>system<|/h|>\\n\\n' + system + '<|eot|>' }}{%- endif %}\n\
    {%- for message in messages %}\n\
    {{- '<|h|>' + message['role'] + '<|/h|>\\n\\n' + message['content'] | trim + '<|eot|>' }}\n\
    {%- endfor %}\n\
    {%- if add_generation_prompt %}{{- '<|h|>assistant<|/h|>\\n\\n' }}{%- endif %}\n";
const QWEN: &str = "{%- if tools %}no{%- endif %}\n\
    {%- set ns = namespace(last=messages|length - 1) %}\n\
    {%- for message in messages[::-1] %}{%- if message.role == 'user' %}\n\
    {%- set ns.last = loop.index0 %}{%- break %}{%- endif %}{%- endfor %}\n\
    {%- for message in messages %}\n\
    {%- set content = message.content %}\n\
    {%- if message.role == 'assistant' and content is string and '</think>' in content %}\n\
    {%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}\n\
    {{- '<|s|>' + message.role + '\\n' + content + '<|e|>\\n' }}\n\
    {%- endfor %}\n\
    {%- if add_generation_prompt %}{{- '<|s|>assistant\\n' }}{%- endif %}";
const MISTRAL: &str = "{{ bos_token }}{% for message in messages %}\
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
    {{ raise_exception('roles must alternate user/assistant') }}{% endif %}\
    {% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}\
    {% else %}{% generation %}{{ message['content'] + eos_token }}{%- endgeneration -%}{% endif %}{% endfor %}";

fn chat(template: &Value) -> ChatTemplate {
    let config = json!({
        "chat_template": template,
        "bos_token": "<s>",
        "eos_token": {"content": "</s>", "special": true},
    });
    let folder = folder("{}", &config);
    ChatTemplate::load(folder.path()).unwrap()
}

fn talk() -> Vec<Message> {
    vec![
        Message::new("user", " Why <tea>? "),
        Message::new("assistant", "<think>hm</think>\n\nIt's hot & good."),
        Message::new("user", "More"),
    ]
}

#[test]
fn templates_of_known_families_render_as_in_python() {
    let mut with_system = vec![Message::new("system", "Be kind. ")];
    with_system.extend(talk());
    assert_eq!(
        chat(&json!(LLAMA3)).render(&with_system, true).unwrap(),
        "<s><|h|>system<|/h|>\n\nBe kind.<|eot|><|h|>user<|/h|>\n\nWhy <tea>?<|eot|>\
         <|h|>assistant<|/h|>\n\n<think>hm</think>\n\nIt's hot & good.<|eot|><|h|>user<|/h|>\n\nMore<|eot|>\
         <|h|>assistant<|/h|>\n\n"
    );
    assert_eq!(
        chat(&json!(QWEN)).render(&talk(), true).unwrap(),
        "<|s|>user\n Why <tea>? <|e|>\n<|s|>assistant\nIt's hot & good.<|e|>\n<|s|>user\nMore<|e|>\n<|s|>assistant\n"
    );
    assert_eq!(
        chat(&json!(MISTRAL)).render(&talk(), true).unwrap(),
        "<s>[INST]  Why <tea>?  [/INST]<think>hm</think>\n\nIt's hot & good.</s>[INST] More [/INST]"
    );
}

#[test]
fn the_helpers_of_the_environment_are_pythons() {
    let render = |template: &str| chat(&json!(template)).render(&talk(), false).unwrap();
    assert_eq!(render("{{ {'b': [1, 'é<'], 'a': none} | tojson }}"), r#"{"b": [1, "é<"], "a": null}"#);
    assert_eq!(render("{{ {'b': [1]} | tojson(indent=2) }}"), "{\n  \"b\": [\n    1\n  ]\n}");
    let year: u32 = render("{{ strftime_now('%Y') }}").parse().unwrap();
    assert!((2024..3000).contains(&year));
    assert_eq!(render("{% if true %}\n  {% if true %}\nx\n  {% endif %}\n{% endif %}\n"), "x\n");
    assert_eq!(render("{{ nothing }}{{ 'yes' if messages[0].tool_calls is defined else 'no' }}"), "no");
    assert_eq!(render("{{ ' A,b '.strip().lower().split(',')|length }}"), "2");
    assert_eq!(render("{{ 'yes' if 'ab'.startswith('a') }}"), "yes");
}

#[test]
fn a_template_is_found_in_each_of_its_places() {
    let hi = [Message::new("user", "hi")];
    let named = json!([{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]);
    assert_eq!(chat(&named).render(&hi, true).unwrap(), "D");
    assert_eq!(chat(&json!([{"name": "rag", "template": "R"}])).render(&hi, true).unwrap(), "R");
    let folder = folder("{}", &json!({"chat_template": "config", "bos_token": "<s>"}));
    fs::write(folder.path().join("chat_template.jinja"), "file{{ bos_token }}\n").unwrap();
    let file = ChatTemplate::load(folder.path()).unwrap();
    assert_eq!(file.render(&hi, true).unwrap(), "file<s>");
}

#[test]
fn without_a_usable_template_only_messages_fail() {
    let empty = TempDir::new().unwrap();
    let none = ChatTemplate::load(empty.path()).unwrap();
    assert!(!none.usable());
    assert_eq!(none.render(&talk(), true), Err(TextError::NoChatTemplate));
    let broken = chat(&json!("{% if %}"));
    assert!(matches!(broken.render(&talk(), true), Err(TextError::ChatTemplate(p)) if p.contains("compile")));
    let two_users = [Message::new("user", "a"), Message::new("user", "b")];
    assert_eq!(
        chat(&json!(MISTRAL)).render(&two_users, true),
        Err(TextError::Refused("roles must alternate user/assistant".to_owned()))
    );
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}";
    assert!(matches!(chat(&json!(endless)).render(&talk(), true), Err(TextError::ChatTemplate(_))));
    let deep = format!("{{{{ {}1{} }}}}", "(".repeat(5000), ")".repeat(5000));
    assert!(!chat(&json!(deep)).usable());
    for odd in [json!(3), json!([{"name": 1}, 2]), json!({"default": "x"}), json!([7])] {
        let folder = folder("{}", &json!({"chat_template": odd}));
        let error = ChatTemplate::load(folder.path()).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("tokenizer_config.json") && error.contains("chat_template"), "{error}");
    }
    for odd in [json!([]), json!("x"), json!(null), json!({"bos_token": 3, "eos_token": [1]})] {
        assert!(ChatTemplate::load(folder("{}", &odd).path()).is_ok(), "{odd}");
    }
}

#[test]
fn a_preference_goes_into_the_last_user_message() {
    let template = PreferenceTemplate::new(Some("[{{ preference }}] {{ content }}")).unwrap();
    let mut messages = talk();
    messages.push(Message::new("assistant", "So"));
    let guided = template.apply(&messages, "{{ short }} & <plain>").unwrap();
    assert_eq!(guided[2].content, "[{{ short }} & <plain>] More");
    assert_eq!((&guided[..2], &guided[3]), (&messages[..2], &messages[3]));
    assert_eq!(template.apply_text("Q", "short").unwrap(), "[short] Q");
    assert_eq!(template.apply(&messages[1..2], "short"), Err(TextError::NoUserMessage));

    let default = PreferenceTemplate::new(None).unwrap().apply_text("Why?", "be brief").unwrap();
    assert!(default.contains("be brief") && default.ends_with("\n\nWhy?"));
    for bad in ["{{ preference", "{{ content }}", "{{ preference }}", ""] {
        assert!(matches!(PreferenceTemplate::new(Some(bad)), Err(TextError::PreferenceTemplate(_))), "{bad}");
    }
}

#[test]
fn characters_wait_for_their_rest_and_stops_for_their_end() {
    let piece = |text: &str, stopped| Piece { text: text.to_owned(), stopped };
    let mut stream = TextStream::new(vec!["END".to_owned(), String::new()]);
    assert_eq!(stream.push(b"a\xe2\x82"), piece("a", false));
    assert_eq!(stream.push(b""), piece("", false));
    assert_eq!(stream.push(b"\xac\xff"), piece("€\u{fffd}", false));
    assert_eq!(stream.push(b" E"), piece(" ", false));
    assert_eq!(stream.push(b"N"), piece("", false));
    assert_eq!(stream.push(b"x"), piece("ENx", false));
    assert_eq!(stream.push(b"EEN"), piece("E", false));
    assert_eq!(stream.push(b"D more"), piece("", true));
    assert_eq!(stream.push(b"more"), piece("", true));
    assert_eq!(stream.finish(), "");

    let mut stream = TextStream::new(vec!["bcd".to_owned(), "abcdX".to_owned()]);
    assert_eq!(stream.push(b"-abcd"), piece("-", false), "the longer one may still begin earlier");
    assert_eq!(stream.finish(), "a");
    assert!(stream.stopped());

    let mut stream = TextStream::new(vec!["ab".to_owned()]);
    assert_eq!(stream.push(b"a\xe2"), piece("", false));
    assert_eq!(stream.finish(), "a\u{fffd}");
    assert_eq!(stream.finish(), "");
    assert!(!stream.stopped());
}

/// Bytes among which stop strings, broken characters and their borders are frequent.
fn some_bytes() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        4 => prop::sample::select(vec!["a", "b", "c", "aé", "€", "😀"]).prop_map(|s| s.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 1..3),
        1 => prop::sample::select(vec![vec![0xe2, 0x82], vec![0xf0, 0x9f], vec![0xed, 0xa0, 0x80], vec![0xc3]]),
    ];
    prop::collection::vec(part, 0..24).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn a_stream_is_the_whole_text_cut_at_the_first_stop(
        bytes in some_bytes(),
        stop in prop::collection::vec("[abcé€\u{fffd}]{0,4}", 0..4),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let whole = String::from_utf8_lossy(&bytes).into_owned();
        let first = stop.iter().filter(|s| !s.is_empty()).filter_map(|s| whole.find(s.as_str())).min();
        let expected = &whole[..first.unwrap_or(whole.len())];

        let mut borders: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        borders.extend([0, bytes.len()]);
        borders.sort_unstable();
        let mut stream = TextStream::new(stop);
        let mut text = String::new();
        for border in borders.windows(2) {
            let piece = stream.push(&bytes[border[0]..border[1]]);
            text.push_str(&piece.text);
            prop_assert_eq!(piece.stopped, stream.stopped());
        }
        text.push_str(&stream.finish());
        prop_assert_eq!(text, expected);
        prop_assert_eq!(stream.stopped(), first.is_some());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn bytes_of_the_ids_are_the_text(text in "[ a-zé€😀\n<0x>\u{2581}|]{0,40}") {
        thread_local! {
            static TOKENIZERS: (Tokenizer, Tokenizer) = (load(&byte_level()), load(&sentencepiece()));
        }
        TOKENIZERS.with(|(bytes, pieces)| {
            let ids = bytes.encode_rendered(&text).unwrap();
            prop_assert_eq!(output(bytes, &ids), text.as_bytes());
            if !text.is_empty() && !text.contains('\u{2581}') {
                let ids = pieces.encode_rendered(&text).unwrap();
                prop_assert_eq!(output(pieces, &ids), format!(" {text}").into_bytes());
            }
            Ok(())
        })?;
    }

    #[test]
    fn a_damaged_tokenizer_never_ends_the_process(
        at in any::<prop::sample::Index>(),
        with in prop_oneof![Just(String::new()), "[0-9{}\\[\\],:\"a-z]{1,6}"],
        take in 0usize..40,
    ) {
        thread_local! {
            static TEXT: String = sentencepiece().to_string(false).unwrap();
        }
        let mut text = TEXT.with(Clone::clone).into_bytes();
        let at = at.index(text.len());
        let end = (at + take).min(text.len());
        text.splice(at..end, with.into_bytes());
        let folder = folder(&String::from_utf8_lossy(&text), &json!({}));
        if let Ok(tokenizer) = Tokenizer::load(folder.path()) {
            let _ = tokenizer.fingerprint(300);
        }
    }
}
