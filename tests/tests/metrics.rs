//! What both services measure of themselves is what `docs/operations.md` says.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that fails should say where

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use attune_engine::random_checkpoint::{Family, Shape};
use attune_tests::{Generated, Pair, by_ids, guided, workspace_root};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// A metric as the table names it: the family, with the part of a step where it has one.
type Names = BTreeSet<String>;

/// The table's metrics of one service, with their kinds.
fn documented(service: &str) -> Names {
    let text = std::fs::read_to_string(workspace_root().join("docs/operations.md")).unwrap();
    let rows = text.lines().filter_map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, name, kind, of, what, _] = cells[..] else { return None };
        let name = name.strip_prefix('`')?.strip_suffix('`')?;
        let measured = matches!(kind, "histogram" | "gauge" | "counter");
        assert!(!measured || !what.is_empty(), "{name} is not explained");
        (measured && (of == service || of == "both")).then(|| format!("{kind} {name}"))
    });
    rows.collect()
}

/// The metrics in a scrape, with their kinds.
fn emitted(text: &str) -> Names {
    let mut names = Names::new();
    for line in text.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declared.split_once(' ').unwrap();
            if name != "attune_step_seconds" {
                names.insert(format!("{kind} {name}"));
            }
        } else if let Some(labels) = line.strip_prefix("attune_step_seconds_count") {
            let (labels, _) = labels.split_once(' ').unwrap();
            names.insert(format!("histogram attune_step_seconds{labels}"));
        }
    }
    names
}

async fn scrape(admin: SocketAddr) -> String {
    let mut stream = TcpStream::connect(admin).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("text/plain; version=0.0.4"), "{answer}");
    answer
}

fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find(|line| line.starts_with(&format!("{series} ")));
    line.unwrap_or_else(|| panic!("{series} in\n{text}")).rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn what_is_emitted_is_what_is_documented_and_it_counts() {
    let admin = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    let pair = Pair::random_with(
        &Shape::tiny(Family::Llama),
        (1, 2),
        |g| {
            g.server.admin_listen = admin;
            g.engine.context = Some(80);
            g.engine.slots = 2;
        },
        |r| {
            r.server.admin_listen = admin;
            r.engine.context = Some(80);
        },
    )
    .await
    .unwrap();
    let client = pair.client().await.unwrap();
    let tokens = 24;
    for seed in 0..2 {
        let prompt: Vec<u32> = (0..20).map(|i| (i * 31 + seed * 7) % 500).collect();
        let mut request = by_ids(&prompt, tokens);
        request.guidances = vec![guided(0.8)];
        Generated::of(&mut client.clone(), request).await.unwrap();
    }
    let (generator, worker) = (pair.admin.0.unwrap(), pair.admin.1.unwrap());
    let (generator, worker) = (scrape(generator).await, scrape(worker).await);
    assert_eq!(emitted(&generator), documented("generator"));
    assert_eq!(emitted(&worker), documented("worker"));

    let texts = 2.0;
    let tokens = f64::from(tokens) * texts;
    assert_eq!(value(&generator, "attune_tokens_total"), tokens);
    assert_eq!(value(&generator, "attune_time_to_first_token_seconds_count"), texts);
    assert_eq!(value(&generator, "attune_time_per_output_token_seconds_count"), tokens - texts);
    for part in ["reward_wait", "fuse", "emit"] {
        assert_eq!(value(&generator, &format!("attune_step_seconds_count{{part=\"{part}\"}}")), tokens);
    }
    // Each token but a text's last is read again; the prompts of 20 tokens before that.
    assert_eq!(value(&generator, "attune_batch_rows_sum"), 2.0 * 20.0 + tokens - texts);
    // The engine tells its levels when it is done with the text, its client's end included.
    let idle =
        async { while value(&scrape(pair.admin.0.unwrap()).await, "attune_sequences_running") > 0.0 {} };
    tokio::time::timeout(Duration::from_secs(20), idle).await.unwrap();
    assert!(value(&generator, "attune_cache_blocks") >= 5.0);
    pair.stop().await.unwrap();
}
