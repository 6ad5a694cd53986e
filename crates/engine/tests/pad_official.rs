//! Guided decoding in one process against the official PAD algorithm's kept tokens: engine, kernels
//! and guidance without the wire. All cases of a shape decode in one batch.
#![allow(clippy::unwrap_used)]

use attune_engine::kv::{KvCache, blocks_for};
use attune_engine::random_checkpoint::{self, Kind, Shape};
use attune_engine::{BaseModel, LoadOptions, Output, PersRm, SequenceRows, Side};
use attune_guidance::{Sampling, Term, against_generator, choose, fuse};
use attune_kernels::{Edits, ScoreJob, Threads, score, select_row};
use candle_core::Device;
use serde::Deserialize;
use std::{collections::BTreeMap, fs};

#[derive(Deserialize)]
struct Vectors {
    candidates: usize,
    new_tokens: usize,
    shapes: BTreeMap<String, Shape>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    shape: String,
    base_seed: u64,
    rm_seed: u64,
    prompt_ids: Vec<u32>,
    strength: f32,
    tokens: Vec<u32>,
}

#[test]
fn every_token_is_the_official_algorithms() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/pad_official.json");
    let vectors: Vectors = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    for (name, shape) in &vectors.shapes {
        let cases: Vec<&Case> = vectors.cases.iter().filter(|c| &c.shape == name).collect();
        assert!(cases.len() >= 21, "{name}: {} cases", cases.len());
        let decoded = decode(shape, &cases, vectors.candidates, vectors.new_tokens);
        for (case, tokens) in cases.iter().zip(decoded) {
            let (length, strength) = (case.prompt_ids.len(), case.strength);
            assert_eq!(tokens, case.tokens, "{name}, a prompt of {length} ids at strength {strength}");
        }
    }
}

/// Decodes all cases at once, greedily. All cases of a shape share their folders.
fn decode(shape: &Shape, cases: &[&Case], k: usize, steps: usize) -> Vec<Vec<u32>> {
    let seeds = (cases[0].base_seed, cases[0].rm_seed);
    assert!(cases.iter().all(|c| (c.base_seed, c.rm_seed) == seeds));
    let folder = tempfile::tempdir().unwrap();
    let (base, rm) = (folder.path().join("base"), folder.path().join("rm"));
    random_checkpoint::write(&base, shape, seeds.0, Kind::Base).unwrap();
    random_checkpoint::write(&rm, shape, seeds.1, Kind::PersRm { value_head: true }).unwrap();
    let threads = Threads::new(2).unwrap();
    let options = LoadOptions { format: None, context: None, threads: threads.clone() };
    let base = BaseModel::load(&base, "base", &options).unwrap();
    let rm = PersRm::load(&rm, "rm", &options).unwrap();

    let longest = cases.iter().map(|c| c.prompt_ids.len()).max().unwrap() + steps;
    let each = blocks_for(longest);
    let table = |s: usize| (s * each) as u32..((s + 1) * each) as u32;
    let tables: Vec<Vec<u32>> = (0..cases.len()).map(|s| table(s).collect()).collect();
    let base_cache = KvCache::new(base.decoder.config(), each * cases.len(), &Device::Cpu).unwrap();
    let rm_cache = rm.cache(each * cases.len()).unwrap();

    let mut texts: Vec<Vec<u32>> = cases.iter().map(|c| c.prompt_ids.clone()).collect();
    let mut read = vec![0; cases.len()];
    for step in 0..steps {
        let rows: Vec<SequenceRows<'_>> = (0..cases.len())
            .map(|s| SequenceRows {
                tokens: &texts[s][read[s]..],
                start: read[s],
                blocks: &tables[s],
                output: Output::Last,
            })
            .collect();
        let logits = base.logits(&base.decoder.forward(&rows, &base_cache).unwrap()).unwrap();
        let features = rm.features(Side::Policy, &rows, &rm_cache).unwrap();
        let chosen: Vec<u32> = logits
            .chunks_exact(shape.vocab)
            .zip(&features)
            .zip(cases)
            .map(|((logits, features), case)| {
                let candidates = select_row(logits, k, &Edits::NONE).unwrap();
                let table = rm.head(Side::Policy);
                let ids = &candidates.ids;
                let job = ScoreJob { table, features, ids, reference: None, over_vocabulary: false };
                let policy = score(&[job], &threads).remove(0).unwrap();
                let rewards = against_generator(&policy, &candidates, false).unwrap();
                let term = Term { strength: case.strength, clip: None, rewards: &rewards };
                let fused = fuse(&candidates, &[term], 0.0).unwrap();
                let sampling = Sampling { temperature: 0.0, top_p: 1.0, seed: 0, index: step as u32 };
                candidates.ids[choose(&candidates, &fused, sampling)]
            })
            .collect();
        for (s, token) in chosen.into_iter().enumerate() {
            read[s] = texts[s].len();
            texts[s].push(token);
        }
    }
    texts.iter().zip(cases).map(|(text, case)| text[case.prompt_ids.len()..].to_vec()).collect()
}
