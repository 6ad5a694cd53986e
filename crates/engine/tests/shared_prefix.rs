//! What of a configured text prompts really begin with.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that fails should say where

use attune_engine::{
    Assets, LoadOptions, Message, PreferenceTemplate, SharedPrefix,
    random_checkpoint::{Family, Kind, Shape, write},
};
use attune_kernels::Threads;

fn assets(folder: &std::path::Path) -> Assets {
    let options = LoadOptions { format: None, context: None, threads: Threads::new(1).unwrap() };
    Assets::open(folder, "x", &options).unwrap().0
}

fn encode(assets: &Assets, messages: &[Message]) -> Vec<u32> {
    assets.tokenizer.encode_rendered(&assets.chat.render(messages, true).unwrap()).unwrap()
}

#[test]
fn prompts_begin_with_the_configured_text_whatever_is_said() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &Shape::tiny(Family::Llama), 1, Kind::Base).unwrap();
    let assets = assets(folder.path());
    let template = PreferenceTemplate::new(None).unwrap();
    let system = "You are kind. Do not lie, not even a little.";
    let plain = SharedPrefix { system: Some(system.into()), ..Default::default() };
    let preferring = SharedPrefix { preference: Some("in verse".into()), ..plain.clone() };
    let raw = SharedPrefix { text: Some("Once upon".into()), ..Default::default() };
    let ids = |prefix: &SharedPrefix| prefix.token_ids(&assets, &template).unwrap();
    assert!(ids(&plain).len() > system.len() / 8, "the system prompt is in it");
    assert!(ids(&preferring).len() > ids(&plain).len() && ids(&preferring).starts_with(&ids(&plain)[..8]));
    for said in ["ba be bi", "Why not?", "1 + 2", " spaced", "\nbroken", "ünïcode", "Y"] {
        let messages = [Message::new("system", system), Message::new("user", said)];
        // The last tokens may be joined to what is said.
        let begins = |whole: &[u32], prefix: &[u32]| {
            let common = whole.iter().zip(prefix).take_while(|(a, b)| a == b).count();
            assert!(common + 2 >= prefix.len(), "{said}: {common} of {}", prefix.len());
        };
        begins(&encode(&assets, &messages), &ids(&plain));
        let messages = template.apply(&messages, "in verse").unwrap();
        begins(&encode(&assets, &messages), &ids(&preferring));
        begins(&assets.tokenizer.encode_raw(&format!("Once upon{said}")).unwrap(), &ids(&raw));
    }
}

#[test]
fn an_entry_says_what_it_lacks() {
    let prefix = |system: Option<&str>, text: Option<&str>| SharedPrefix {
        system: system.map(Into::into),
        text: text.map(Into::into),
        preference: None,
    };
    assert!(prefix(None, None).problem().is_some());
    assert!(prefix(Some("a"), Some("b")).problem().is_some());
    assert!(prefix(Some("a"), None).problem().is_none() && prefix(None, Some("")).problem().is_none());
}
