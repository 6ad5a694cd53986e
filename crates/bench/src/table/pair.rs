//! The guided step on one shape: against the floor, the uncoupled pair, the Python decoders, and in
//! company.

use anyhow::Result;
use attune_kernels::Format;
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::{
    Settings, Size,
    child::Child,
    cores,
    decode::{STRENGTH, decode, guided, middle, prompt, step_ms, streams, throughput, tokens_per_second},
    half,
    rows::{Key, Results},
    service::Pair,
};
use crate::{
    floor::{Bandwidth, Role, step_bytes},
    load::TextTimes,
    solo::{Answer, Ask, K},
};

const STREAMS: u64 = 16;

pub(super) async fn run(
    settings: &Settings,
    size: Size,
    bandwidth: &Bandwidth,
    results: &mut Results<'_>,
) -> Result<()> {
    let uncoupled = settings.wants(Key::Coupling(size));
    let (official, cached) = (settings.wants(Key::Official(size)), settings.wants(Key::Cached(size)));
    let streams = size == Size::Medium && settings.wants(Key::Streams);
    if !settings.wants(Key::Floor(size)) && !uncoupled && !official && !cached && !streams {
        return Ok(());
    }
    results.say(&format!("the pair on '{}'", size.name()));
    let pair = Pair::start(settings, size, cores(), &[]).await?;
    let mut solos = if uncoupled { Some(Solos::start(settings, size).await?) } else { None };
    let mut python = match &settings.peers {
        Some(_) if official || cached => Some(python(settings, size).await?),
        _ => None,
    };
    let bytes = step_bytes(&settings.base(size), Role::Base, Format::F32, K)?
        + step_bytes(&settings.persrm(size), Role::Reward, Format::F32, K)?;
    let tokens = settings.tokens(64);
    // The first text warms caches and connections.
    decode(&pair.client, guided(&prompt(0), 4)).await?;

    let mut figures = Figures::default();
    for round in 0..settings.rounds(if size == Size::Small { 5 } else { 3 }) {
        let ids = prompt(1 + round as u64);
        let read = bandwidth.measure();
        let text = decode(&pair.client, guided(&ids, tokens)).await?;
        let step = step_ms(&text);
        let floor = bytes / read * 1e3;
        figures.floor.push((step / floor, step, floor));
        if let Some(solos) = &mut solos {
            let (base, reward) = solos.side_by_side(settings).await?;
            figures.coupling.push((step / base.max(reward), base, reward));
        }
        if let Some(python) = &mut python {
            if official {
                let steps = if size == Size::Small { tokens } else { tokens.min(10) };
                figures.official.push(against(python, "official", &ids, steps, &text).await?);
            }
            if cached {
                figures.cached.push(against(python, "cached", &ids, tokens.min(48), &text).await?);
            }
        }
    }
    figures.report(size, results);
    if streams {
        in_company(settings, &pair, results).await?;
    }
    Ok(())
}

/// Of each round: the ratio, and what it comes from.
#[derive(Default)]
struct Figures {
    floor: Vec<(f64, f64, f64)>,
    coupling: Vec<(f64, f64, f64)>,
    official: Vec<Against>,
    cached: Vec<Against>,
}

impl Figures {
    fn report(&self, size: Size, results: &mut Results<'_>) {
        let of =
            |figures: &[(f64, f64, f64)], part: fn(&(f64, f64, f64)) -> f64| middle(figures.iter().map(part));
        let (step, floor) = (of(&self.floor, |f| f.1), of(&self.floor, |f| f.2));
        let remark = format!("step {step:.2} ms, floor {floor:.2} ms");
        results.add(Key::Floor(size), of(&self.floor, |f| f.0), &remark);
        if !self.coupling.is_empty() {
            let (base, reward) = (of(&self.coupling, |f| f.1), of(&self.coupling, |f| f.2));
            let remark =
                format!("step {step:.2} ms; alone side by side: base {base:.2} ms, reward {reward:.2} ms");
            results.add(Key::Coupling(size), of(&self.coupling, |f| f.0), &remark);
        }
        for (key, all) in [(Key::Official(size), &self.official), (Key::Cached(size), &self.cached)] {
            if !all.is_empty() {
                let same = all.iter().filter(|a| a.same).count();
                let remark = format!(
                    "Python's step {:.2} ms; same tokens in {same} of {} texts",
                    middle(all.iter().map(|a| a.step)),
                    all.len()
                );
                results.add(key, middle(all.iter().map(|a| a.ratio)), &remark);
            }
        }
    }
}

/// Both models by themselves, each on half of the cores.
struct Solos {
    base: Child,
    reward: Child,
}

impl Solos {
    async fn start(settings: &Settings, size: Size) -> Result<Self> {
        let solo = |role: &str, model| {
            let mut command = Command::new(settings.binaries.join("attune"));
            command.args(["bench", "solo", "--role", role, "--threads", &half().to_string(), "--model"]);
            command.arg(model);
            command
        };
        let (base, reward) = tokio::try_join!(
            Child::start(solo("base", settings.base(size))),
            Child::start(solo("reward", settings.persrm(size)))
        )?;
        Ok(Self { base, reward })
    }

    /// The median steps of both, in milliseconds, while both decode.
    async fn side_by_side(&mut self, settings: &Settings) -> Result<(f64, f64)> {
        let ask = Ask { seconds: if settings.quick { 1.0 } else { 4.0 } };
        let (base, reward): (Answer, Answer) = tokio::try_join!(self.base.ask(&ask), self.reward.ask(&ask))?;
        Ok((middle(base.step_ms), middle(reward.step_ms)))
    }
}

/// What the Python decoders are asked.
#[derive(Serialize)]
struct Task<'a> {
    mode: &'a str,
    prompt: &'a [u32],
    steps: u32,
    candidates: usize,
    strength: f32,
}

#[derive(Deserialize)]
struct Decoded {
    step_ms: Vec<f64>,
    tokens: Vec<u32>,
}

struct Against {
    ratio: f64,
    step: f64,
    same: bool,
}

async fn python(settings: &Settings, size: Size) -> Result<Child> {
    let peers = settings.peers.as_ref().ok_or_else(|| anyhow::anyhow!("no Python interpreter"))?;
    let mut command = Command::new(&peers.python);
    command.arg(peers.folder.join("bench.py")).args(["--threads", &cores().to_string()]);
    command.arg("--base").arg(settings.base(size)).arg("--rm").arg(settings.persrm(size));
    Child::start(command).await
}

/// One Python text against ours: the medians over the same steps behind the same prompt. A cached
/// mode's first step is the prefill, which is no step of ours either.
async fn against(
    python: &mut Child,
    mode: &str,
    prompt: &[u32],
    steps: u32,
    ours: &TextTimes,
) -> Result<Against> {
    let task = Task { mode, prompt, steps, candidates: K, strength: STRENGTH };
    let decoded: Decoded = python.ask(&task).await?;
    let step = middle(decoded.step_ms.into_iter().skip(1));
    let mine = middle(ours.gaps.iter().take(steps as usize - 1).map(|gap| gap.as_secs_f64() * 1e3));
    let same = ours.tokens.starts_with(&decoded.tokens);
    Ok(Against { ratio: step / mine, step, same })
}

/// Many streams at once against one.
async fn in_company(settings: &Settings, pair: &Pair, results: &mut Results<'_>) -> Result<()> {
    // The last stream starts while the first are at work: long enough that all decode for a while.
    let tokens = if settings.quick { 48 } else { 128 };
    let mut ratios = Vec::new();
    let mut last = (0.0, 0.0);
    for round in 0..settings.rounds(3) as u64 {
        let one = decode(&pair.client, guided(&prompt(100 + round), settings.tokens(64))).await?;
        let requests = (0..STREAMS).map(|i| guided(&prompt(200 + round * STREAMS + i), tokens));
        let texts = streams(&pair.client, requests).await?;
        let (alone, together) = (tokens_per_second(&one), throughput(&texts));
        ratios.push(together / alone);
        last = (alone, together);
    }
    let remark = format!("{:.1} tokens/s alone, {:.1} together", last.0, last.1);
    results.add(Key::Streams, middle(ratios), &remark);
    Ok(())
}
