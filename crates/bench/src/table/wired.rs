//! What the wire adds to one step on loopback, to a real worker.

use anyhow::Result;

use super::{
    Settings, Size,
    decode::middle,
    half,
    rows::{Key, Results},
    service::Service,
};
use crate::{bare, solo::K, wire};

pub(super) async fn run(settings: &Settings, results: &mut Results<'_>) -> Result<()> {
    if !settings.wants_any(&[Key::Wire1, Key::Wire64]) {
        return Ok(());
    }
    results.say("the wire, on a worker of the 'small' shape");
    let worker = Service::worker(settings, Size::Small, half(), &[]).await?;
    let exchanges = if settings.quick { 20 } else { 200 };
    for (key, rows) in [(Key::Wire1, 1), (Key::Wire64, 64)] {
        let all = wire::probe(&worker.endpoint, rows, K, exchanges).await?;
        let added = middle(all.iter().map(|e| e.added().as_secs_f64() * 1e3));
        let work = middle(all.iter().map(|e| e.work.as_secs_f64() * 1e3));
        let least = tokio::task::spawn_blocking(move || bare::exchange(rows, K, exchanges)).await??;
        let [warm, cold] = [least.warm, least.cold].map(|time| time.as_secs_f64() * 1e3);
        results.add(
            key,
            added,
            &format!(
                "the worker's own part {work:.3} ms; tonic alone {warm:.3} ms, with cold caches {cold:.3} ms"
            ),
        );
    }
    Ok(())
}
