//! A tiny run of the whole recipe: the files that it writes, and that they are the same every time.

// Its helper is no test function, where unwrapping is allowed anyway.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use attune_train::demo::{DemoOptions, make};
use attune_train::measure::HeldOut;
use attune_train::world::Prompt;

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(
                    path.strip_prefix(folder).unwrap().display().to_string(),
                    fs::read(&path).unwrap(),
                );
            }
        }
    }
    found
}

#[test]
fn one_seed_gives_the_same_files() {
    let make_in = |seed| {
        let folder = tempfile::tempdir().unwrap();
        make(&DemoOptions::tiny(folder.path(), seed)).unwrap();
        files(folder.path())
    };
    let (first, second) = (make_in(7), make_in(7));
    let names: Vec<&str> = first.keys().map(String::as_str).collect();
    let wanted = [
        "README.md",
        "base/config.json",
        "base/generation_config.json",
        "base/model.safetensors",
        "base/tokenizer.json",
        "base/tokenizer_config.json",
        "persrm/attune.json",
        "persrm/config.json",
        "persrm/generation_config.json",
        "persrm/latent_adapter.safetensors",
        "persrm/model.safetensors",
        "persrm/reference/config.json",
        "persrm/reference/model.safetensors",
        "persrm/tokenizer.json",
        "persrm/tokenizer_config.json",
        "persrm/weight_head.safetensors",
        "persrm/weight_prior.safetensors",
        "prompts.json",
    ];
    assert_eq!(names, wanted);
    for (name, bytes) in &first {
        assert!(second[name] == *bytes, "{name} differs");
    }
    assert_eq!(first["persrm/reference/model.safetensors"], first["base/model.safetensors"]);
    assert_ne!(first["persrm/model.safetensors"], first["base/model.safetensors"]);

    let held_out: HeldOut = serde_json::from_slice(&first["prompts.json"]).unwrap();
    assert!(
        held_out
            .prompts
            .iter()
            .all(|one| Prompt::parse(&one.prompt).is_some_and(|prompt| prompt.topic.held_out()))
    );

    let weights = safetensors::SafeTensors::deserialize(&first["base/model.safetensors"]).unwrap();
    assert!(weights.tensors().iter().all(|(_, tensor)| tensor.dtype() == safetensors::Dtype::BF16));
    assert!(weights.tensor("model.layers.0.self_attn.q_proj.weight").is_ok());
}
