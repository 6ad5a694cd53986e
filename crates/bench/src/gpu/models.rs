//! Models on a card against the same models on the CPU, and how far a row there depends on its company.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use attune_engine::{
    BaseModel, LoadOptions, Output, PersRm, Question, SequenceRows, Side,
    kv::blocks_for,
    random_checkpoint::{self, Family, Kind, Layout, Shape, Storage},
};
use attune_kernels::{Format, Threads, cuda::Gpu};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::{Extent, Findings};

pub(super) fn check(gpu: &Gpu, extent: &Extent, findings: &mut Findings<'_>) -> Result<()> {
    for (family, name) in [
        (Family::Llama, "llama"),
        (Family::Mistral, "mistral"),
        (Family::Qwen2, "qwen2"),
        (Family::Qwen3, "qwen3"),
    ] {
        let mut shape = Shape::tiny(family);
        shape.sliding_window = (family == Family::Mistral).then_some(24);
        let folder = extent.work.join(format!("tiny-{name}"));
        random_checkpoint::write(&folder, &shape, 3, Kind::PersRm { value_head: true })?;
        findings.take(&format!("{name} f32: logits as on the CPU"), logits(gpu, &folder));
        findings.take(&format!("{name} f32: rewards as on the CPU"), rewards(gpu, &folder));
    }
    for format in [Format::F32, Format::F16, Format::Bf16] {
        let (texts, tokens) = if extent.quick { (3, 2) } else { (16, 64) };
        let rate = company(gpu, &extent.demo.join("base"), format, texts, tokens);
        let name = format!("embedded base {format:?}: tokens that differ between batch 1 and {texts}");
        match rate {
            Ok(rate) => findings.add(name, None, format!("{:.2} %", 100.0 * rate)),
            Err(error) => findings.add(name, Some(false), format!("{error:#}")),
        }
    }
    if !extent.quick {
        let folder = random_base(&extent.work, "1b", &Shape::one_billion())?;
        let name = "random 1B bf16: tokens that differ between batch 1 and 16";
        match company(gpu, &folder, Format::Bf16, 16, 64) {
            Ok(rate) => findings.add(name, None, format!("{:.2} %", 100.0 * rate)),
            Err(error) => findings.add(name, Some(false), format!("{error:#}")),
        }
    }
    Ok(())
}

fn options(format: Option<Format>) -> Result<LoadOptions> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(LoadOptions { format, context: Some(512), threads: Threads::new(cores)? })
}

fn prompt(seed: u64, vocab: usize, length: usize) -> Vec<u32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..length).map(|_| rng.random_range(3..vocab.min(4000) as u32)).collect()
}

/// Logits of a text that is read in chunks beside another, on both.
fn logits(gpu: &Gpu, folder: &Path) -> Result<String> {
    let options = options(None)?;
    let cpu = BaseModel::load(folder, "cpu", &options)?;
    let card = BaseModel::load_on(folder, "card", &options, Some(gpu))?;
    let (long, short) = (prompt(1, 500, 40), prompt(2, 500, 3));
    let run = |model: &BaseModel| -> Result<Vec<f32>> {
        let cache = model.decoder.cache(8)?;
        let (first, second): ([u32; 4], [u32; 1]) = ([6, 1, 3, 0], [2]);
        let rows = |tokens, start, blocks| SequenceRows { tokens, start, blocks, output: Output::All };
        let mut logits = Vec::new();
        for batch in [
            vec![rows(&long[..17], 0, &first[..])],
            vec![rows(&long[17..39], 17, &first), rows(&short, 0, &second)],
            vec![rows(&long[39..], 39, &first)],
        ] {
            logits.extend(model.logits(&model.decoder.forward(&batch, &cache)?)?);
        }
        Ok(logits)
    };
    let (want, got) = (run(&cpu)?, run(&card)?);
    ensure!(want.len() == got.len(), "{} logits for {}", got.len(), want.len());
    let largest = largest(&got, &want)?;
    ensure!(largest < 2e-3, "a logit is {largest:e} away");
    Ok(format!("largest difference {largest:.1e}"))
}

fn largest(got: &[f32], want: &[f32]) -> Result<f32> {
    // A NaN must not vanish in the maximum.
    ensure!(got.iter().chain(want).all(|x| x.is_finite()), "a number is not finite");
    Ok(got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max))
}

/// Rewards with and without weights, over the candidates and over the vocabulary, on both.
fn rewards(gpu: &Gpu, folder: &Path) -> Result<String> {
    let options = options(None)?;
    let cpu = PersRm::load(folder, "cpu", &options)?;
    let card = PersRm::load_on(folder, "card", &options, Some(gpu))?;
    let (text, other) = (prompt(3, 500, 20), prompt(4, 500, 5));
    let ids: Vec<u32> = (0..10).map(|i| i * 37 + 1).collect();
    let run = |model: &PersRm| -> Result<Vec<f32>> {
        let cache = model.cache(4)?;
        let (first, second) = ([3u32, 0], [1u32]);
        let rows = |tokens, blocks| SequenceRows { tokens, start: 0, blocks, output: Output::Last };
        let mut features =
            model.read(Side::Policy, &[rows(&text, &first[..]), rows(&other, &second)], &cache)?;
        let d = model.assets.config.hidden;
        let weights = model.weights((0..d).map(|i| 0.5 + (i % 7) as f32 * 0.2).collect())?;
        features[1].weigh(&weights);
        let question = |i: usize, over_vocabulary| Question {
            policy: &features[i],
            reference: None,
            ids: &ids,
            over_vocabulary,
        };
        let questions = [question(0, false), question(1, false), question(0, true), question(1, true)];
        let mut values = Vec::new();
        for answer in model.score(&questions)? {
            values.extend(answer.map_err(|e| anyhow::anyhow!("{e}"))?);
        }
        Ok(values)
    };
    let (want, got) = (run(&cpu)?, run(&card)?);
    ensure!(want.len() == 4 * ids.len() && got.len() == want.len(), "{} values", got.len());
    let largest = largest(&got, &want)?;
    ensure!(largest < 2e-3, "a reward is {largest:e} away");
    Ok(format!("largest difference {largest:.1e}"))
}

/// The share of tokens of greedy texts that are others together than alone.
fn company(gpu: &Gpu, folder: &Path, format: Format, texts: usize, tokens: usize) -> Result<f64> {
    const PROMPT: usize = 16;
    let model = BaseModel::load_on(folder, "card", &options(Some(format))?, Some(gpu))?;
    let vocab = model.assets.config.vocab;
    let each = blocks_for(PROMPT + tokens) as u32;
    let cache = model.decoder.cache(each as usize * texts)?;
    let tables: Vec<Vec<u32>> = (0..texts as u32).map(|i| (i * each..(i + 1) * each).collect()).collect();
    let decode = |chosen: &[usize]| -> Result<Vec<Vec<u32>>> {
        let mut all: Vec<Vec<u32>> =
            chosen.iter().map(|&i| prompt(i as u64, vocab.min(1500), PROMPT)).collect();
        let mut read = 0;
        for _ in 0..tokens {
            let rows: Vec<SequenceRows<'_>> = chosen
                .iter()
                .zip(&all)
                .map(|(&i, tokens)| SequenceRows {
                    tokens: &tokens[read..],
                    start: read,
                    blocks: &tables[i],
                    output: Output::Last,
                })
                .collect();
            let logits = model.logits(&model.decoder.forward(&rows, &cache)?)?;
            read = all[0].len();
            for (text, logits) in all.iter_mut().zip(logits.chunks_exact(vocab)) {
                let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
                text.push(best.context("no logits")?.0 as u32);
            }
        }
        Ok(all.into_iter().map(|text| text[PROMPT..].to_vec()).collect())
    };
    let together = decode(&(0..texts).collect::<Vec<usize>>())?;
    let mut differ = 0;
    for (i, text) in together.iter().enumerate() {
        let alone = decode(&[i])?.remove(0);
        differ += alone.iter().zip(text).filter(|(a, b)| a != b).count();
    }
    Ok(differ as f64 / (texts * tokens) as f64)
}

/// Writes a random base model in bfloat16 where none stands.
pub(super) fn random_base(work: &Path, name: &str, shape: &Shape) -> Result<PathBuf> {
    let folder = work.join(name);
    let done = folder.join("model.safetensors.index.json");
    if !done.exists() {
        let layout = Layout { shards: 16, storage: Storage::Bf16 };
        random_checkpoint::write_with(&folder, shape, 5, Kind::Base, layout)?;
    }
    Ok(folder)
}
