//! What telemetry costs at full load: every request traced, traces, metrics and logs exported to a collector
//! that reads and discards, and `/metrics` scraped, against a pair that has none of it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

use super::{
    Settings, Size, half,
    rows::{Key, Results},
    service::Pair,
    sides::Sides,
};
use crate::collector::Collector;

/// Both pairs are started anew so many times, and take so many turns each time.
const STARTS: usize = 6;
const ROUNDS: usize = 16;
/// Far more often than a Prometheus does.
const SCRAPE: Duration = Duration::from_secs(1);

pub(super) async fn run(settings: &Settings, results: &mut Results<'_>) -> Result<()> {
    if !settings.wants(Key::Telemetry) {
        return Ok(());
    }
    results.say("16 streams with telemetry and without, on 'small'");
    let exports = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&exports);
    let collector = Collector::start(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
    })
    .await?;
    let endpoint = format!("telemetry.endpoint={}", collector.endpoint());
    let mut sides = Sides::default();
    for start in 0..settings.rounds(STARTS) {
        // Where a process lies in memory is worth more than what is measured, and stays until its end.
        let args = ["--set", &endpoint, "--admin-listen", "127.0.0.1:0"];
        let (without, with) = if start % 2 == 0 {
            let without = Pair::start(settings, Size::Small, half(), &[]).await?;
            (without, Pair::start(settings, Size::Small, half(), &args).await?)
        } else {
            let with = Pair::start(settings, Size::Small, half(), &args).await?;
            (Pair::start(settings, Size::Small, half(), &[]).await?, with)
        };
        let mut scrapers = JoinSet::new();
        for admin in with.admin() {
            scrapers.spawn(scrape(admin.context("a service has no admin port")?.to_owned()));
        }
        let length = (settings.rounds(ROUNDS), settings.tokens(48));
        tokio::select! {
            measured = sides.measure(length, &without.client, &with.client) => measured?,
            Some(failed) = scrapers.join_next() => return Err(failed?),
        };
    }
    let (plain, traced) = sides.speeds();
    let (error, exports) = (sides.error(), exports.load(Ordering::Relaxed));
    let remark = format!(
        "{plain:.1} tokens/s without, {traced:.1} with; standard error {error:.3}; {exports} exports"
    );
    results.add(Key::Telemetry, sides.ratio(), &remark);
    Ok(())
}

/// Reads `/metrics` again and again. Gives why it cannot.
async fn scrape(admin: String) -> anyhow::Error {
    loop {
        if let Err(error) = scrape_once(&admin).await {
            return error.context("cannot scrape /metrics");
        }
        tokio::time::sleep(SCRAPE).await;
    }
}

async fn scrape_once(admin: &str) -> Result<()> {
    let mut stream = TcpStream::connect(admin).await?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: attune\r\nconnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    anyhow::ensure!(answer.starts_with(b"HTTP/1.1 200"), "it is not there");
    Ok(())
}
