//! 8-bit weights against f32 on 'medium': how much faster a guided step is, and how often the choice is
//! the same behind the same tokens.

use anyhow::{Context as _, Result};
use attune_engine::{
    BaseModel, LoadOptions, Output, PersRm, SequenceRows, Side,
    kv::{KvCache, blocks_for},
};
use attune_guidance::{Sampling, Term, against_generator};
use attune_kernels::{Edits, Format, FuseRow, ScoreJob, Threads, fuse_sample, score, select_row};
use candle_core::Device;

use super::{
    Settings, Size, cores,
    decode::{STRENGTH, decode, guided, middle, prompt, step_ms},
    half,
    rows::{Key, Results},
    service::Pair,
};
use crate::solo::K;

/// Rows of one forward pass.
const CHUNK: usize = 64;

pub(super) async fn run(settings: &Settings, results: &mut Results<'_>) -> Result<()> {
    if !settings.wants_any(&[Key::Q8Speed, Key::Q8Agreement]) {
        return Ok(());
    }
    results.say(&format!("8-bit weights on 'medium', {}", cpu()));
    let tokens = settings.tokens(64);
    let texts = {
        let full = Pair::start(settings, Size::Medium, half(), &[]).await?;
        if settings.wants(Key::Q8Speed) {
            speed(settings, &full, tokens, results).await?;
        }
        if !settings.wants(Key::Q8Agreement) {
            return Ok(());
        }
        texts(&full, if settings.quick { 2 } else { 8 }, tokens).await?
    };
    let settings = settings.clone();
    let (same, all) = tokio::task::spawn_blocking(move || agreement(&settings, &texts)).await??;
    results.add(Key::Q8Agreement, same as f64 / all as f64, &format!("{same} of {all} guided choices"));
    Ok(())
}

async fn speed(settings: &Settings, full: &Pair, tokens: u32, results: &mut Results<'_>) -> Result<()> {
    let packed = Pair::start(settings, Size::Medium, half(), &["--quantize", "q8"]).await?;
    for pair in [full, &packed] {
        decode(&pair.client, guided(&prompt(0), 4)).await?;
    }
    let (mut ratios, mut steps) = (Vec::new(), Vec::new());
    for round in 0..settings.rounds(3) {
        let ids = prompt(400 + round as u64);
        let slow = step_ms(&decode(&full.client, guided(&ids, tokens)).await?);
        let fast = step_ms(&decode(&packed.client, guided(&ids, tokens)).await?);
        ratios.push(slow / fast);
        steps.push(fast);
    }
    let remark = format!("8-bit step {:.2} ms, {}", middle(steps), cpu());
    results.add(Key::Q8Speed, middle(ratios), &remark);
    Ok(())
}

/// Texts of the f32 pair: each prompt, and the tokens that it chose.
async fn texts(pair: &Pair, count: u64, tokens: u32) -> Result<Vec<(Vec<u32>, Vec<u32>)>> {
    let begun: Vec<_> = (0..count)
        .map(|i| {
            let (client, ids) = (pair.client.clone(), prompt(500 + i));
            tokio::spawn(
                async move { Ok((ids.clone(), decode(&client, guided(&ids, tokens)).await?.tokens)) },
            )
        })
        .collect();
    let mut texts = Vec::new();
    for text in begun {
        texts.push(text.await?);
    }
    texts.into_iter().collect()
}

/// How many of the f32 pair's choices the 8-bit models make as well, each behind the f32 pair's tokens.
fn agreement(settings: &Settings, texts: &[(Vec<u32>, Vec<u32>)]) -> Result<(usize, usize)> {
    let threads = Threads::new(cores())?;
    let options = LoadOptions { format: Some(Format::Q8), context: None, threads: threads.clone() };
    let base = BaseModel::load(&settings.base(Size::Medium), "base", &options)?;
    let persrm = PersRm::load(&settings.persrm(Size::Medium), "reward", &options)?;
    let (mut same, mut all) = (0, 0);
    for (prompt, chosen) in texts {
        let tokens = [&prompt[..], chosen].concat();
        let blocks: Vec<u32> = (0..blocks_for(tokens.len()) as u32).collect();
        let caches = (
            KvCache::new(&base.assets.config, blocks.len(), &Device::Cpu)?,
            KvCache::new(&persrm.assets.config, blocks.len(), &Device::Cpu)?,
        );
        let vocab = base.assets.config.vocab;
        for (start, chunk) in (0..).step_by(CHUNK).zip(tokens.chunks(CHUNK)) {
            let rows = [SequenceRows { tokens: chunk, start, blocks: &blocks, output: Output::All }];
            let logits = base.logits(&base.decoder.forward(&rows, &caches.0)?)?;
            let features = persrm.features(Side::Policy, &rows, &caches.1)?;
            for (i, (logits, features)) in logits.chunks(vocab).zip(&features).enumerate() {
                // Behind token `start + i` the next one is chosen.
                let Some(place) = (start + i + 1).checked_sub(prompt.len()) else { continue };
                let Some(&want) = chosen.get(place) else { continue };
                all += 1;
                same += usize::from(choice(logits, features, &persrm, &threads)? == want);
            }
        }
    }
    Ok((same, all))
}

/// The guided, greedy choice behind these logits and features.
fn choice(logits: &[f32], features: &[f32], persrm: &PersRm, threads: &Threads) -> Result<u32> {
    let candidates = select_row(logits, K, &Edits::NONE)?;
    let job = ScoreJob {
        table: persrm.head(Side::Policy),
        features,
        ids: &candidates.ids,
        reference: None,
        over_vocabulary: false,
    };
    let policy = score(&[job], threads).remove(0)?;
    let rewards = against_generator(&policy, &candidates, false)?;
    let terms = [Term { strength: STRENGTH, clip: None, rewards: &rewards }];
    let sampling = Sampling { temperature: 0.0, top_p: 1.0, seed: 0, index: 0 };
    let row = FuseRow { candidates: &candidates, terms: &terms, min_p: 0.0, sampling };
    Ok(fuse_sample(&[row]).remove(0)?.id)
}

/// The processor's name, and whether it has the 8-bit products that make the difference.
pub(super) fn cpu() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim())
    };
    let name = field("model name").context("unknown").unwrap_or("a processor of unknown name");
    let flags = field("flags").unwrap_or_default();
    let vnni = if flags.split(' ').any(|f| f.ends_with("_vnni")) { "with VNNI" } else { "without VNNI" };
    format!("{name}, {} cores, {vnni}", cores())
}
