//! The training forward against the engine's: the same logits in every family, plain, adapted and headed.

// Its helpers are no test functions, where unwrapping is allowed anyway.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use attune_engine::kv::{KvCache, blocks_for};
use attune_engine::random_checkpoint::{self, Family, Kind, Llama3Scaling, Shape};
use attune_engine::{BaseModel, LoadOptions, ModelPath, Output, PersRm, SequenceRows};
use attune_kernels::Threads;
use attune_train::head::WeightHead;
use attune_train::lora::Adapter;
use attune_train::model::Llama;
use attune_train::open::Opened;
use candle_core::{Device, Tensor};

const TOKENS: [u32; 11] = [6, 90, 17, 33, 240, 8, 8, 61, 12, 200, 7];

fn options() -> LoadOptions {
    LoadOptions { format: None, context: None, threads: Threads::new(1).unwrap() }
}

/// Logits of every position, by the engine.
fn engines(path: impl Into<ModelPath>) -> Vec<f32> {
    let model = BaseModel::load(path, "m", &options()).unwrap();
    let blocks: Vec<u32> = (0..blocks_for(TOKENS.len()) as u32).collect();
    let rows = SequenceRows { tokens: &TOKENS, start: 0, blocks: &blocks, output: Output::All };
    let cache = KvCache::new(model.decoder.config(), blocks.len(), &Device::Cpu).unwrap();
    model.logits(&model.decoder.forward(&[rows], &cache).unwrap()).unwrap()
}

/// The same by the trainer, with a second, longer text beside it in the batch.
fn trainers(model: &Llama, frozen: bool) -> Vec<f32> {
    let time = TOKENS.len() + 5;
    let mut tokens = vec![9u32; 2 * time];
    tokens[..TOKENS.len()].copy_from_slice(&TOKENS);
    let tokens = Tensor::from_vec(tokens, (2, time), &Device::Cpu).unwrap();
    let hidden = model.hidden(&tokens, frozen).unwrap().narrow(0, 0, TOKENS.len()).unwrap();
    let logits = hidden.matmul(&model.output(frozen).unwrap().t().unwrap()).unwrap();
    logits.flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_close(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len());
    let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-3 && a.iter().all(|v| v.is_finite()), "{what}: {worst} apart");
}

fn shapes() -> Vec<(&'static str, Shape)> {
    let scaling = Llama3Scaling {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 16,
    };
    let tiny = Shape::tiny;
    vec![
        ("llama, tied", Shape { tied: true, ..tiny(Family::Llama) }),
        ("llama, untied, scaled", Shape { rope_scaling: Some(scaling), tied: false, ..tiny(Family::Llama) }),
        ("qwen2", Shape { tied: false, ..tiny(Family::Qwen2) }),
        ("qwen3", Shape { tied: true, ..tiny(Family::Qwen3) }),
    ]
}

fn written(folder: &Path, shape: &Shape) {
    random_checkpoint::write(folder, shape, 3, Kind::Base).unwrap();
}

#[test]
fn logits_are_the_engines_in_every_family() {
    for (name, shape) in shapes() {
        let folder = tempfile::tempdir().unwrap();
        written(folder.path(), &shape);
        let opened = Opened::at(folder.path()).unwrap();
        let want = engines(folder.path());
        for frozen in [false, true] {
            assert_close(&trainers(&opened.model, frozen), &want, name);
        }
    }
}

#[test]
fn an_adapter_that_is_trained_is_the_one_that_is_served() {
    for (name, shape) in shapes() {
        let root = tempfile::tempdir().unwrap();
        let (base, folder) = (root.path().join("base"), root.path().join("adapter"));
        written(&base, &shape);
        let opened = Opened::at(&base).unwrap();
        let adapter = Adapter::fresh(opened.model.config(), 3, 6.0, 2).unwrap();
        for (i, var) in adapter.vars().values().enumerate() {
            // Eighths, which bf16 holds exactly.
            let values = (0..var.elem_count()).map(|n| ((n * 7 + i) % 9) as f32 / 8.0 - 0.5).collect();
            var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap()).unwrap();
        }
        adapter.write(&folder, "base").unwrap();
        let want = engines(ModelPath::adapted(&base, &folder));
        assert_close(&trainers(&opened.model.with_adapter(&adapter).unwrap(), false), &want, name);
        let again = Opened::at(ModelPath::adapted(&base, &folder)).unwrap();
        assert_close(&trainers(&again.model, true), &want, name);
        assert_close(&trainers(&again.without_adapter().unwrap().unwrap(), true), &engines(&base), name);
    }
}

#[test]
fn the_head_that_is_trained_is_the_one_that_is_served() {
    let folder = tempfile::tempdir().unwrap();
    written(folder.path(), &Shape::tiny(Family::Llama));
    let opened = Opened::at(folder.path()).unwrap();
    let head = WeightHead::fresh(opened.model.config().hidden_size).unwrap();
    for (i, var) in head.vars().values().enumerate() {
        let values = (0..var.elem_count()).map(|n| ((n * 5 + i) % 7) as f32 / 32.0).collect();
        var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap()).unwrap();
    }
    head.write(folder.path()).unwrap();
    std::fs::write(folder.path().join("attune.json"), "{\"weights\": \"head-as-is\"}").unwrap();
    let served = PersRm::load(folder.path(), "m", &options()).unwrap();
    let want = served.preference_weights(&TOKENS).unwrap().unwrap();

    let tokens = Tensor::new(&[TOKENS], &Device::Cpu).unwrap();
    let hidden = opened.model.hidden(&tokens, true).unwrap().narrow(0, TOKENS.len() - 1, 1).unwrap();
    let got = head.weights(&hidden).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_close(&got, &want, "w_p");
}

#[test]
fn what_cannot_be_trained_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let shape = Shape { sliding_window: Some(8), ..Shape::tiny(Family::Mistral) };
    written(folder.path(), &shape);
    let error = Opened::at(folder.path()).err().unwrap().to_string();
    assert!(error.contains("sliding window of 8"), "{error}");
}
