//! Guided against plain decoding where the reward side computes on another machine: a timed worker stands
//! for it, whose forward takes as long as the generator's own, and no core of this machine.

use std::time::Duration;

use anyhow::Result;
use attune_proto::generator::v1::DescribeRequest;

use super::{
    Settings, Size, cores,
    decode::{PROMPT, decode, guided, middle, plain, prompt, step_ms, tokens_per_second},
    rows::{Key, Results},
    service::Service,
};
use crate::{
    floor::Role,
    solo::{Solo, SoloStep},
    timed::{TimedConfig, TimedWorker},
};

pub(super) async fn run(settings: &Settings, size: Size, results: &mut Results<'_>) -> Result<()> {
    let key = Key::Elsewhere(size);
    if !settings.wants(key) {
        return Ok(());
    }
    results.say(&format!("a generator on '{}' with a timed worker", size.name()));
    // The worker must be there when the generator asks, and the generator when the worker wants to know
    // its tokenizer: the first generator only describes itself.
    let description = {
        let alone = Service::generator(settings, size, cores(), &[], &[]).await?;
        alone.client().await?.describe(DescribeRequest {}).await?.into_inner()
    };
    let worker = TimedWorker::start(TimedConfig::fitting(&description, Duration::ZERO))?;
    let generator = Service::generator(settings, size, cores(), &[&worker.endpoint()], &[]).await?;
    let client = generator.client().await?;
    let tokens = settings.tokens(64);
    let share = forward_share(settings, size, tokens)?;
    let (mut ratios, mut waits, mut steps) = (Vec::new(), Vec::new(), Vec::new());
    // The weights lie in the processor's cache as far as they fit, and get there over many steps: both sides must
    // find them as the other left them.
    decode(&client, guided(&prompt(0), tokens)).await?;
    for round in 0..settings.rounds(if size == Size::Small { 7 } else { 5 }) {
        let ids = prompt(300 + round as u64);
        let without = decode(&client, plain(&ids, tokens)).await?;
        let wait = step_ms(&without) * share;
        worker.set_forward(Duration::from_secs_f64(wait / 1e3));
        let with = decode(&client, guided(&ids, tokens)).await?;
        ratios.push(tokens_per_second(&with) / tokens_per_second(&without));
        waits.push(wait);
        steps.push(step_ms(&without));
    }
    let (wait, step) = (middle(waits), middle(steps));
    results.add(key, middle(ratios), &format!("a wait of {wait:.2} ms; a plain step takes {step:.2} ms"));
    Ok(())
}

/// The forward pass's share of a plain step: measured on the model by itself, since only there the two can be told
/// apart. Its weights are another copy, so it is gone before the services are measured.
fn forward_share(settings: &Settings, size: Size, steps: u32) -> Result<f64> {
    let mut alone = Solo::load(&settings.base(size), Role::Base, None, cores(), PROMPT)?;
    let mut shares = Vec::new();
    for _ in 0..steps {
        let SoloStep { forward, choose, .. } = alone.step()?;
        shares.push(forward.as_secs_f64() / (forward + choose).as_secs_f64());
    }
    Ok(middle(shares))
}
