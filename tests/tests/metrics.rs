//! What both services measure of themselves is what `docs/operations.md` says.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that fails should say where

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use attune_engine::random_checkpoint::{Family, Shape};
use attune_tests::{Generated, Pair, by_ids, guided, workspace_root};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Metrics as the table names them: kind, family, and in braces the labels, or the part of a step.
type Names = BTreeSet<String>;

/// The one family of which the table lists every value of its label.
const LISTED: &str = "attune_step_seconds";
/// Its labels are whatever the process is told to be.
const PROCESS: &str = "target_info";

/// The table's metrics of one service.
fn documented(service: &str) -> Names {
    let text = std::fs::read_to_string(workspace_root().join("docs/operations.md")).unwrap();
    let rows = text.lines().filter_map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, name, kind, of, what, _] = cells[..] else { return None };
        let name = name.strip_prefix('`')?.strip_suffix('`')?;
        let measured = matches!(kind, "histogram" | "gauge" | "counter");
        assert!(!measured || !what.is_empty(), "{name} is not explained");
        let sorted = match name.split_once('{') {
            Some((family, labels)) => {
                let mut labels: Vec<&str> = labels.strip_suffix('}').unwrap().split(',').collect();
                labels.sort_unstable();
                format!("{family}{{{}}}", labels.join(","))
            }
            None => name.to_owned(),
        };
        (measured && (of == service || of == "both")).then(|| format!("{kind} {sorted}"))
    });
    rows.collect()
}

/// A series of a scrape: its name, and its labels as they are written.
fn series(line: &str) -> (&str, Vec<(&str, &str)>) {
    let (series, _) = line.rsplit_once(' ').unwrap();
    let Some((name, labels)) = series.split_once('{') else { return (series, Vec::new()) };
    let labels = labels.strip_suffix("\"}").unwrap().split("\",");
    (name, labels.map(|label| label.split_once("=\"").unwrap()).collect())
}

/// The metrics in a scrape; of each family all labels that any of its series has.
fn emitted(text: &str) -> Names {
    let body = text.split_once("\r\n\r\n").unwrap().1;
    let mut kinds = BTreeMap::new();
    let mut labels = BTreeMap::<&str, BTreeSet<String>>::new();
    for line in body.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declared.split_once(' ').unwrap();
            kinds.insert(name, kind);
        } else if !line.starts_with('#') && line.contains(' ') {
            let (name, its_labels) = series(line);
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| {
                name.strip_suffix(end).filter(|family| kinds.get(family) == Some(&"histogram"))
            });
            let family = family.unwrap_or(name);
            let labels = labels.entry(family).or_default();
            for (label, value) in its_labels.into_iter().filter(|(label, _)| *label != "le") {
                labels.insert(match family {
                    LISTED => format!("{label}=\"{value}\""),
                    _ => label.to_owned(),
                });
            }
        }
    }
    let mut names = Names::new();
    for (family, labels) in labels {
        let kind = kinds[family];
        let all: Vec<String> = labels.into_iter().collect();
        match family {
            PROCESS => drop(names.insert(format!("{kind} {family}"))),
            LISTED => names.extend(all.iter().map(|label| format!("{kind} {family}{{{label}}}"))),
            _ if all.is_empty() => drop(names.insert(format!("{kind} {family}"))),
            _ => drop(names.insert(format!("{kind} {family}{{{}}}", all.join(",")))),
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
            g.engine.model_id = Some("base".into());
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
    let refused = Generated::of(&mut client.clone(), by_ids(&[1], 0)).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    let (generator, worker) = (pair.admin.0.unwrap(), pair.admin.1.unwrap());
    let (generator, worker) = (scrape(generator).await, scrape(worker).await);
    assert_eq!(emitted(&generator), documented("generator"));
    assert_eq!(emitted(&worker), documented("worker"));

    let texts = 2.0;
    let tokens = f64::from(tokens) * texts;
    assert_eq!(value(&generator, "attune_requests_total{code=\"OK\"}"), texts);
    assert_eq!(value(&generator, "attune_requests_total{code=\"INVALID_ARGUMENT\"}"), 1.0);
    assert_eq!(value(&generator, "attune_tokens_total{gen_ai_token_type=\"output\"}"), tokens);
    assert_eq!(value(&generator, "attune_tokens_total{gen_ai_token_type=\"input\"}"), 20.0 * texts);
    let labels = "gen_ai_operation_name=\"text_completion\",gen_ai_provider_name=\"attune\",\
                  gen_ai_request_model=\"base\"";
    for name in ["time_to_first_token", "time_per_output_token", "request_duration"] {
        assert_eq!(value(&generator, &format!("gen_ai_server_{name}_seconds_count{{{labels}}}")), texts);
    }
    assert_eq!(value(&generator, "attune_inter_token_seconds_count"), tokens - texts);
    for part in ["reward_wait", "fuse", "emit"] {
        assert_eq!(value(&generator, &format!("attune_step_seconds_count{{part=\"{part}\"}}")), tokens);
    }
    assert_eq!(value(&worker, "attune_step_seconds_count{part=\"answer\"}"), tokens);
    assert_eq!(value(&worker, "attune_sessions_opened_total"), texts);
    // Each token but a text's last is read again; the prompts of 20 tokens before that.
    assert_eq!(value(&generator, "attune_batch_rows_sum"), 2.0 * 20.0 + tokens - texts);
    // The engines tell their levels when they are done with the text, its client's end included.
    let idle = async {
        while value(&scrape(pair.admin.0.unwrap()).await, "attune_sequences_running") > 0.0 {}
        for level in ["attune_slots_busy", "attune_steps_waiting"] {
            while value(&scrape(pair.admin.1.unwrap()).await, level) > 0.0 {}
        }
    };
    tokio::time::timeout(Duration::from_secs(20), idle).await.unwrap();
    assert_eq!(value(&generator, "attune_slots"), 2.0);
    assert!(value(&generator, "attune_cache_blocks") >= 5.0);
    pair.stop().await.unwrap();
}
