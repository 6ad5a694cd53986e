//! The decoder against transformers (kept vectors), candle-transformers (run here), and itself:
//! sharded, in company, in chunks.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use attune_engine::kv::{BLOCK_SIZE, KvCache, blocks_for};
use attune_engine::random_checkpoint::{self, Family, Kind, Layout, Shape, Storage};
use attune_engine::{BaseModel, LoadOptions, Output, SequenceRows};
use attune_kernels::Threads;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{llama, mistral, qwen2, qwen3};
use serde::Deserialize;
use serde_json::Value;

/// The largest absolute difference of a logit allowed, in f32.
const TOLERANCE: f32 = 1e-3;
const VECTORS: [&str; 5] = ["llama2", "llama3", "mistral", "qwen2", "qwen3"];

#[derive(Deserialize)]
struct Vectors {
    shape: Shape,
    seed: u64,
    prompt_ids: Vec<u32>,
    positions: Vec<usize>,
    logits: Vec<Vec<f32>>,
}

fn vectors(name: &str) -> Vectors {
    let path = format!("{}/tests/vectors/logits_{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn load(folder: &Path, threads: usize) -> BaseModel {
    let threads = Threads::new(threads).unwrap();
    BaseModel::load(folder, "test", &LoadOptions { format: None, context: None, threads }).unwrap()
}

fn cache(model: &BaseModel, blocks: usize) -> KvCache {
    KvCache::new(model.decoder.config(), blocks, &Device::Cpu).unwrap()
}

fn hidden(model: &BaseModel, rows: &[SequenceRows<'_>], cache: &KvCache) -> Vec<Vec<f32>> {
    model.decoder.forward(rows, cache).unwrap().to_vec2().unwrap()
}

/// Logits of every position of one prompt, read in one pass, `[tokens, V]`.
fn logits(model: &BaseModel, tokens: &[u32]) -> Vec<Vec<f32>> {
    let blocks: Vec<u32> = (0..blocks_for(tokens.len()) as u32).collect();
    let rows = SequenceRows { tokens, start: 0, blocks: &blocks, output: Output::All };
    let hidden = model.decoder.forward(&[rows], &cache(model, blocks.len())).unwrap();
    let vocab = model.decoder.config().vocab;
    model.logits(&hidden).unwrap().chunks_exact(vocab).map(<[f32]>::to_vec).collect()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    // A NaN must not vanish in the maximum.
    assert!(a.iter().chain(b).all(|v| v.is_finite()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// The last position's logits by candle-transformers.
fn candle_logits(folder: &Path, tokens: &[u32]) -> Vec<f32> {
    let device = Device::Cpu;
    let weights = fs::read(folder.join("model.safetensors")).unwrap();
    let vars = VarBuilder::from_buffered_safetensors(weights, DType::F32, &device).unwrap();
    let mut config: Value =
        serde_json::from_str(&fs::read_to_string(folder.join("config.json")).unwrap()).unwrap();
    let input = Tensor::from_slice(tokens, (1, tokens.len()), &device).unwrap();
    let family = config["model_type"].as_str().unwrap().to_owned();
    let logits = match family.as_str() {
        "llama" => {
            let config: llama::LlamaConfig = serde_json::from_value(config).unwrap();
            let config = config.into_config(false);
            let mut cache = llama::Cache::new(false, DType::F32, &config, &device).unwrap();
            llama::Llama::load(vars, &config).unwrap().forward(&input, 0, &mut cache)
        }
        "mistral" => {
            // candle's window does not count the token itself, transformers' does.
            if let Some(window) = config["sliding_window"].as_u64() {
                config["sliding_window"] = (window - 1).into();
            }
            let config: mistral::Config = serde_json::from_value(config).unwrap();
            mistral::Model::new(&config, vars).unwrap().forward(&input, 0)
        }
        "qwen2" => {
            let config: qwen2::Config = serde_json::from_value(config).unwrap();
            qwen2::ModelForCausalLM::new(&config, vars).unwrap().forward(&input, 0)
        }
        "qwen3" => {
            let config: qwen3::Config = serde_json::from_value(config).unwrap();
            qwen3::ModelForCausalLM::new(&config, vars).unwrap().forward(&input, 0)
        }
        other => panic!("no candle model for {other}"),
    };
    logits.unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn logits_equal_transformers_and_candle_in_every_architecture() {
    for name in VECTORS {
        let vectors = vectors(name);
        let folder = tempfile::tempdir().unwrap();
        random_checkpoint::write(folder.path(), &vectors.shape, vectors.seed, Kind::Base).unwrap();
        let ours = logits(&load(folder.path(), 1), &vectors.prompt_ids);
        for (&position, kept) in vectors.positions.iter().zip(&vectors.logits) {
            let difference = largest_difference(&ours[position], kept);
            assert!(difference < TOLERANCE, "{name}, position {position}: transformers is {difference} away");
            let candle = candle_logits(folder.path(), &vectors.prompt_ids[..=position]);
            let difference = largest_difference(&ours[position], &candle);
            assert!(difference < TOLERANCE, "{name}, position {position}: candle is {difference} away");
        }
    }
}

#[test]
fn shards_load_as_one_file_does() {
    let folder = tempfile::tempdir().unwrap();
    let (one, three) = (folder.path().join("one"), folder.path().join("three"));
    let shape = Shape::tiny(Family::Qwen2);
    random_checkpoint::write(&one, &shape, 5, Kind::Base).unwrap();
    let layout = Layout { shards: 3, ..Layout::default() };
    random_checkpoint::write_with(&three, &shape, 5, Kind::Base, layout).unwrap();
    let tokens: Vec<u32> = (6..30).collect();
    assert_eq!(logits(&load(&one, 1), &tokens), logits(&load(&three, 1), &tokens));
}

#[test]
fn half_precision_storage_stays_near_full_precision() {
    let folder = tempfile::tempdir().unwrap();
    let shape = Shape { std: 0.1, ..Shape::tiny(Family::Llama) };
    let tokens: Vec<u32> = (6..40).collect();
    let stored = |storage, name: &str| {
        let path = folder.path().join(name);
        let layout = Layout { storage, ..Layout::default() };
        random_checkpoint::write_with(&path, &shape, 5, Kind::Base, layout).unwrap();
        logits(&load(&path, 1), &tokens).concat()
    };
    let full = stored(Storage::F32, "f32");
    // The spread of these logits is about 0.8; bf16 keeps 8 bits of each weight, f16 11.
    for (storage, name, near) in [(Storage::Bf16, "bf16", 0.05), (Storage::F16, "f16", 0.01)] {
        let difference = largest_difference(&full, &stored(storage, name));
        assert!(difference > 0.0 && difference < near, "{name}: {difference}");
    }
}

/// Prefill and decode rows of several sequences in one pass are, bit for bit, each sequence alone,
/// in every architecture, whatever the chunks, the blocks and the number of threads.
#[test]
fn company_chunks_and_threads_change_no_bit() {
    for name in VECTORS {
        let Vectors { shape, seed, .. } = vectors(name);
        let folder = tempfile::tempdir().unwrap();
        random_checkpoint::write(folder.path(), &shape, seed, Kind::Base).unwrap();
        let prompts: Vec<Vec<u32>> = [37, 5, 18, 1, 26]
            .iter()
            .map(|&length: &u32| (0..length).map(|i| 6 + (i * 7 + length * 13) % 500).collect())
            .collect();

        let alone = load(folder.path(), 1);
        let expected: Vec<Vec<Vec<f32>>> = prompts
            .iter()
            .map(|tokens| {
                let blocks: Vec<u32> = (0..blocks_for(tokens.len()) as u32).collect();
                let rows = SequenceRows { tokens, start: 0, blocks: &blocks, output: Output::All };
                hidden(&alone, &[rows], &cache(&alone, blocks.len()))
            })
            .collect();

        let together = load(folder.path(), 3);
        // Interleaved blocks in falling order: nothing may lean on neighbouring slots.
        let most = blocks_for(prompts.iter().map(Vec::len).max().unwrap());
        let total = most * prompts.len();
        let tables: Vec<Vec<u32>> = (0..prompts.len())
            .map(|s| (0..most).map(|b| (total - 1 - b * prompts.len() - s) as u32).collect())
            .collect();
        let cache = cache(&together, total);
        let mut done = vec![0; prompts.len()];
        let mut chunk = 0;
        while done.iter().zip(&prompts).any(|(&done, prompt)| done < prompt.len()) {
            let mut rows = Vec::new();
            let mut wanted = Vec::new();
            for (s, tokens) in prompts.iter().enumerate() {
                // Chunks of changing lengths, single rows and whole blocks among them.
                let length = [1, 7, BLOCK_SIZE, 3][(chunk + s) % 4].min(tokens.len() - done[s]);
                if length == 0 {
                    continue;
                }
                let (start, end) = (done[s], done[s] + length);
                let output = if s == 2 { Output::Last } else { Output::All };
                rows.push(SequenceRows { tokens: &tokens[start..end], start, blocks: &tables[s], output });
                let first = if s == 2 { end - 1 } else { start };
                wanted.extend(expected[s][first..end].iter());
                done[s] = end;
            }
            let got = hidden(&together, &rows, &cache);
            assert_eq!(got.len(), wanted.len());
            for (row, (got, wanted)) in got.iter().zip(wanted).enumerate() {
                assert!(
                    got.iter().map(|v| v.to_bits()).eq(wanted.iter().map(|v| v.to_bits())),
                    "{name}, pass {chunk}, row {row}"
                );
            }
            chunk += 1;
        }
    }
}
