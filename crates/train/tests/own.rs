//! Training on one's own data, from a foreign folder: both stages, full weights and adapters, in pieces.

// Its helpers are no test functions, where unwrapping is allowed anyway.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use attune_engine::random_checkpoint::{self, Family, Kind, Shape};
use attune_engine::{DefaultReference, LoadOptions, ModelPath, PersRm, PersRmSettings, WeightsForm};
use attune_kernels::Threads;
use attune_train::own::{self, Lora, OwnOptions, StageOne, StageTwo};
use attune_train::trainer::{Ended, Recipe};
use tempfile::TempDir;

static NEVER: AtomicBool = AtomicBool::new(false);

/// A foreign model and some data about two tastes.
fn setup() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let shape = Shape { tied: false, ..Shape::tiny(Family::Qwen2) };
    random_checkpoint::write(&root.path().join("base"), &shape, 3, Kind::Base).unwrap();
    let mut pairs = String::new();
    let mut texts = String::new();
    for i in 0..24 {
        let (prompt, short, long) = (format!("Question {i}?"), "Yes.", "Yes, and here is much more of it.");
        let (preference, chosen, rejected) =
            if i % 2 == 0 { ("short", short, long) } else { ("long", long, short) };
        let line = serde_json::json!({
            "prompt": prompt, "preference": preference, "chosen": chosen, "rejected": rejected
        });
        pairs += &format!("{line}\n");
        texts += &format!("{}\n", serde_json::json!({"prompt": prompt, "answer": short}));
    }
    fs::write(root.path().join("pairs.jsonl"), pairs).unwrap();
    fs::write(root.path().join("texts.jsonl"), texts).unwrap();
    root
}

fn options(root: &Path, model: &str, data: &str, out: &str) -> OwnOptions {
    OwnOptions {
        model: root.join(model).to_string_lossy().into_owned(),
        base_model: None,
        data: root.join(data),
        held_out: Some(root.join(data)),
        out: root.join(out),
        recipe: Recipe { epochs: 5, ..Recipe::once(4, 3e-3, 0.1, (1, 31)) },
        longest: None,
        every: 7,
        resume: false,
        device: candle_core::Device::Cpu,
        quiet: true,
    }
}

fn one(lora: Option<Lora>) -> StageOne {
    StageOne { lora, template: None, beta: 0.2, anchor: 0.5 }
}

fn load(path: impl Into<ModelPath>) -> PersRm {
    let options = LoadOptions { format: None, context: None, threads: Threads::new(1).unwrap() };
    PersRm::load(path, "m", &options).unwrap()
}

fn bytes(folder: PathBuf) -> Vec<u8> {
    let file = ["model.safetensors", "adapter_model.safetensors", "weight_head.safetensors"];
    let all: Vec<u8> =
        file.iter().filter_map(|name| fs::read(folder.join(name)).ok()).collect::<Vec<_>>().concat();
    assert!(!all.is_empty());
    all
}

#[test]
fn both_stages_learn_and_are_served() {
    let root = setup();
    let path = |name: &str| root.path().join(name);
    let first =
        own::stage_one(&options(root.path(), "base", "pairs.jsonl", "persrm"), &one(None), &NEVER).unwrap();
    let held_out = first.held_out.unwrap();
    assert!(held_out.accuracy > 0.95 && held_out.loss < 0.5, "{held_out:?}");
    let persrm = load(&path("persrm"));
    assert!(persrm.has_reference() && persrm.beta == 0.2);
    // The reference is the model as it was, to the bit.
    assert_eq!(bytes(path("persrm/reference")), bytes(path("base")));
    for file in ["loss.jsonl", "loss.svg", "tokenizer.json", "generation_config.json"] {
        assert!(path("persrm").join(file).exists(), "{file}");
    }
    assert!(!path("persrm/training.safetensors").exists(), "what it led to is written");
    assert_eq!(fs::read_to_string(path("persrm/loss.jsonl")).unwrap().lines().count(), 30);

    let two = StageTwo { reference: None, generator: None, in_prompt: false, beta: None };
    let mut head = options(root.path(), "persrm", "pairs.jsonl", "headed");
    head.recipe.rate = 3e-2;
    head.recipe.epochs = 12;
    let second = own::stage_two(&head, &two, &NEVER).unwrap();
    assert!(second.held_out.unwrap().accuracy > 0.95, "{:?}", second.held_out);
    let headed = load(&path("headed"));
    assert_eq!(headed.weights_form(), WeightsForm::HeadAsIs);
    assert_eq!(bytes(path("headed/reference")), bytes(path("base")), "the backbone is as it was");
    let text = headed.assets.tokenizer.encode_raw("short").unwrap();
    let weights = headed.preference_weights(&text).unwrap().unwrap();
    assert!(weights.iter().any(|w| (w - 1.0).abs() > 0.01));
}

#[test]
fn an_adapter_is_trained_and_served_against_its_base() {
    let root = setup();
    let path = |name: &str| root.path().join(name);
    let mut adapted = options(root.path(), "base", "pairs.jsonl", "adapter");
    adapted.recipe.rate = 1e-2;
    let stage = StageOne {
        template: Some("[{{ preference }}] {{ content }}".into()),
        ..one(Some(Lora::of(4, None)))
    };
    let outcome = own::stage_one(&adapted, &stage, &NEVER).unwrap();
    assert!(outcome.held_out.unwrap().accuracy > 0.95, "{:?}", outcome.held_out);
    let persrm = load(ModelPath::adapted(path("base"), path("adapter")));
    assert!(persrm.has_reference() && persrm.default_reference == DefaultReference::Model);
    let settings = PersRmSettings::load(&path("adapter")).unwrap();
    assert_eq!(settings.template, stage.template);

    // Stage two on the adapter, with the preference in the prompt and the base as it is on the other side.
    let two = StageTwo {
        reference: Some(DefaultReference::Generator),
        generator: Some(path("base")),
        in_prompt: true,
        beta: Some(0.5),
    };
    let mut head = options(root.path(), "adapter", "pairs.jsonl", "headed");
    head.base_model = Some(path("base").to_string_lossy().into_owned());
    own::stage_two(&head, &two, &NEVER).unwrap();
    assert_eq!(load(ModelPath::adapted(path("base"), path("headed"))).weights_form(), WeightsForm::Head);

    let error = own::lm(&OwnOptions { out: path("x"), ..head }, Some(Lora::of(2, None)), &NEVER).unwrap_err();
    assert!(error.to_string().contains("adapter already"), "{error}");
}

#[test]
fn a_run_that_is_stopped_goes_on_to_the_same_bytes() {
    let root = setup();
    for (name, lora) in [("full", None), ("lora", Some(Lora::of(2, Some(8.0))))] {
        let whole = options(root.path(), "base", "texts.jsonl", &format!("{name}-whole"));
        let Ended::Done(summary) = own::lm(&whole, lora, &NEVER).unwrap().ended else { panic!("not done") };
        let pieces = options(root.path(), "base", "texts.jsonl", &format!("{name}-pieces"));
        let ended = own::lm(&pieces, lora, &AtomicBool::new(true)).unwrap().ended;
        assert_eq!(ended, Ended::Stopped { steps: 0, of: 30 });
        let error = own::lm(&pieces, lora, &NEVER).unwrap_err().to_string();
        assert!(error.contains("--resume"), "{error}");
        let resumed = OwnOptions { resume: true, ..pieces };
        assert_eq!(own::lm(&resumed, lora, &NEVER).unwrap().ended, Ended::Done(summary));
        assert_eq!(bytes(resumed.out.clone()), bytes(whole.out.clone()), "{name}");
        let error = own::lm(&resumed, lora, &NEVER).unwrap_err().to_string();
        assert!(error.contains("nothing to resume"), "{error}");
    }
}

#[test]
fn a_line_that_is_too_long_is_named() {
    let root = setup();
    let short = OwnOptions { longest: Some(30), ..options(root.path(), "base", "pairs.jsonl", "out") };
    let error = format!("{:#}", own::stage_one(&short, &one(None), &NEVER).unwrap_err());
    assert!(error.contains("pairs.jsonl, line 1") && error.contains("30 are allowed"), "{error}");
}
