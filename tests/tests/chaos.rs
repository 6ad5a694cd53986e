//! Chaos: many streams of the embedded pair, whose workers are killed one after the other and started
//! again. No request fails, and no token differs from the undisturbed run.
//!
//! `make chaos` runs it for a minute; the form of `make test` is shorter. Both write
//! `target/chaos/report.json`.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that fails should say where

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use attune_proto::{
    generator::v1::{
        DescribeRequest, GenerateRequest, GuidanceTerm, Resume, Sampling,
        generator_service_client::GeneratorServiceClient,
    },
    reward::v1::Guidance,
};
use attune_tests::{Generated, Process, say, workspace_root};
use serde::Serialize;
use tokio::task::JoinSet;
use tonic::transport::Channel;

const STREAMS: usize = 64;
const WORKERS: usize = 3;
const KILL_EVERY: Duration = Duration::from_secs(2);

#[derive(Serialize)]
struct Report {
    requests: usize,
    failed: usize,
    differing_tokens: usize,
    kills: usize,
    /// What clients saw of the kills.
    pauses: Pauses,
    /// One stream, whose worker is killed.
    failover: Failover,
    seconds: f64,
    tokens: usize,
}

/// The times between two tokens of one stream with a kill between them, in milliseconds.
#[derive(Serialize)]
struct Pauses {
    count: usize,
    median_ms: f64,
    p95_ms: f64,
    max_ms: f64,
}

/// Medians, in milliseconds.
#[derive(Serialize)]
struct Failover {
    pause_ms: f64,
    step_ms: f64,
    /// The prefill of the context on another worker, as a resumed text sees it.
    prefill_ms: f64,
}

struct Pair {
    workers: Vec<Process>,
    generator: Process,
}

impl Pair {
    fn start(workers: usize) -> Self {
        let workers: Vec<Process> = (0..workers).map(|_| worker("127.0.0.1:0")).collect();
        let mut args = vec!["--model".to_owned(), models("base"), "--threads".into(), "1".into()];
        args.extend(["--log".into(), "off".into()]);
        for worker in &workers {
            args.extend(["--reward".into(), worker.endpoint.clone()]);
        }
        Self { generator: Process::start("attune-generator", args).unwrap(), workers }
    }

    async fn client(&self) -> GeneratorServiceClient<Channel> {
        let mut client = GeneratorServiceClient::connect(self.generator.endpoint.clone()).await.unwrap();
        loop {
            let described = client.describe(DescribeRequest {}).await.unwrap().into_inner();
            if described.reward_workers.iter().all(|w| w.connected) {
                return client;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn models(name: &str) -> String {
    workspace_root().join("models/demo").join(name).to_string_lossy().into_owned()
}

fn worker(listen: &str) -> Process {
    let args = ["--model", &models("persrm"), "--threads", "1", "--log", "off"];
    Process::start_at("attune-reward", listen, args).unwrap()
}

/// Kills a worker without a word, and starts it again where it was.
fn restart(worker_process: Process) -> Process {
    let address = worker_process.endpoint.strip_prefix("http://").unwrap().to_owned();
    drop(worker_process);
    worker(&address)
}

/// A text that goes on to its last token, so that every stream is there for the kills.
fn request(i: usize) -> GenerateRequest {
    let things = ["bread", "lemon tree", "bicycle", "letter", "garden", "guitar", "kitchen", "tent"];
    let wishes =
        ["with a funny joke", "in one short sentence, please", "with scientific terms", "in a polite tone"];
    let mut request = say(&format!("How do I care for the {}?", things[i % things.len()]), 120);
    let text = Some(wishes[i / things.len() % wishes.len()].to_owned());
    request.guidances = vec![GuidanceTerm {
        guidance: Some(Box::new(Guidance { text, ..Guidance::default() })),
        strength: Some(1.0),
        clip: None,
    }];
    let sampling = request.sampling.unwrap_or_default();
    request.sampling =
        Some(Sampling { temperature: Some(0.8), seed: Some(i as u64), ignore_eos: true, ..sampling });
    request
}

/// A text's token ids, and when each came.
async fn timed(
    client: &mut GeneratorServiceClient<Channel>,
    request: GenerateRequest,
) -> Result<Vec<(u32, Instant)>, tonic::Status> {
    let mut stream = client.generate(request).await?.into_inner();
    let (mut tokens, mut finished) = (Vec::new(), false);
    while let Some(message) = stream.message().await? {
        let now = Instant::now();
        tokens.extend(message.tokens.iter().map(|t| (t.id, now)));
        finished |= message.finish.is_some();
    }
    if finished { Ok(tokens) } else { Err(tonic::Status::data_loss("no end")) }
}

fn quantile(sorted: &[f64], share: f64) -> f64 {
    if sorted.is_empty() { 0.0 } else { sorted[((sorted.len() - 1) as f64 * share).round() as usize] }
}

fn milliseconds(from: Instant, to: Instant) -> f64 {
    to.duration_since(from).as_secs_f64() * 1000.0
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_workers_changes_nothing_that_a_client_sees() {
    let seconds = std::env::var("ATTUNE_CHAOS_SECONDS").map_or(15.0, |s| s.parse().unwrap());
    let mut pair = Pair::start(WORKERS);
    let client = pair.client().await;
    let mut expected = vec![Vec::new(); STREAMS];
    let mut undisturbed = JoinSet::new();
    for i in 0..STREAMS {
        let mut client = client.clone();
        undisturbed.spawn(async move { (i, Generated::of(&mut client, request(i)).await.unwrap().ids()) });
    }
    while let Some(answer) = undisturbed.join_next().await {
        let (i, ids) = answer.unwrap();
        expected[i] = ids;
    }

    let (start, stop) = (Instant::now(), Arc::new(AtomicBool::new(false)));
    let kills: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let killer = {
        let (stop, kills) = (Arc::clone(&stop), Arc::clone(&kills));
        let mut workers = std::mem::take(&mut pair.workers);
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(KILL_EVERY);
                if stop.load(Ordering::Relaxed) {
                    return workers;
                }
                let victim = workers.remove(0);
                kills.lock().unwrap().push(Instant::now());
                workers.push(restart(victim));
            }
        })
    };
    let mut streams = JoinSet::new();
    for (i, expected) in expected.into_iter().enumerate() {
        let (mut client, stop) = (client.clone(), Arc::clone(&stop));
        streams.spawn(async move {
            let (mut times, mut failed, mut differing) = (Vec::new(), 0, 0);
            while !stop.load(Ordering::Relaxed) {
                match timed(&mut client, request(i)).await {
                    Ok(tokens) => {
                        let same = tokens.iter().zip(&expected).filter(|((id, _), e)| id == *e).count();
                        differing += tokens.len().max(expected.len()) - same;
                        times.push(tokens.into_iter().map(|(_, at)| at).collect::<Vec<Instant>>());
                    }
                    Err(status) => {
                        eprintln!("stream {i}: {status:?}");
                        failed += 1;
                    }
                }
            }
            (times, failed, differing)
        });
    }
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    stop.store(true, Ordering::Relaxed);
    let (mut texts, mut failed, mut differing) = (Vec::new(), 0, 0);
    while let Some(stream) = streams.join_next().await {
        let (times, f, d) = stream.unwrap();
        texts.extend(times);
        (failed, differing) = (failed + f, differing + d);
    }
    let elapsed = start.elapsed().as_secs_f64();
    let workers = tokio::task::spawn_blocking(move || killer.join().unwrap()).await.unwrap();
    drop((client, workers, pair));

    let kills = kills.lock().unwrap().clone();
    let mut pauses: Vec<f64> = Vec::new();
    for kill in &kills {
        for times in &texts {
            let after = times.partition_point(|at| at < kill);
            if after > 0 && after < times.len() {
                pauses.push(milliseconds(times[after - 1], times[after]));
            }
        }
    }
    pauses.sort_by(f64::total_cmp);
    let report = Report {
        requests: texts.len() + failed,
        failed,
        differing_tokens: differing,
        kills: kills.len(),
        pauses: Pauses {
            count: pauses.len(),
            median_ms: quantile(&pauses, 0.5),
            p95_ms: quantile(&pauses, 0.95),
            max_ms: quantile(&pauses, 1.0),
        },
        failover: failover().await,
        seconds: elapsed,
        tokens: texts.iter().map(Vec::len).sum(),
    };
    let folder: PathBuf = workspace_root().join("target/chaos");
    std::fs::create_dir_all(&folder).unwrap();
    let json = serde_json::to_string_pretty(&report).unwrap();
    std::fs::write(folder.join("report.json"), &json).unwrap();
    println!("{json}");

    assert!(
        report.kills >= (seconds / KILL_EVERY.as_secs_f64()) as usize / 3,
        "hardly any worker was killed"
    );
    assert!(report.requests >= STREAMS);
    assert_eq!((report.failed, report.differing_tokens), (0, 0));
    if std::env::var_os("ATTUNE_STRICT").is_some() {
        let Failover { pause_ms, step_ms, prefill_ms } = report.failover;
        assert!(
            pause_ms <= 3.0 * step_ms + prefill_ms,
            "{pause_ms} ms; a step takes {step_ms}, the prefill {prefill_ms}"
        );
    }
}

/// One stream alone, whose worker is killed in mid-text: the pause, a step, and the prefill of the context,
/// each the median over several texts.
async fn failover() -> Failover {
    let mut pair = Pair::start(2);
    let mut client = pair.client().await;
    let (mut pauses, mut steps, mut prefills) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..9 {
        let mut stream = client.clone().generate(request(turn)).await.unwrap().into_inner();
        let (mut ids, mut times, mut killed, mut address) = (Vec::new(), Vec::new(), None, None);
        let mut gone = None;
        while let Some(message) = stream.message().await.unwrap() {
            let now = Instant::now();
            for token in &message.tokens {
                ids.push(token.id);
                times.push(now);
            }
            if ids.len() >= 60 && killed.is_none() {
                let busy = loop {
                    let described = client.describe(DescribeRequest {}).await.unwrap().into_inner();
                    if let Some(w) =
                        described.reward_workers.into_iter().find(|w| w.connected && w.sessions > 0)
                    {
                        break w.endpoint.trim_end_matches('/').to_owned();
                    }
                };
                let victim = pair.workers.iter().position(|w| w.endpoint == busy).unwrap();
                let victim = pair.workers.remove(victim);
                address = Some(victim.endpoint.strip_prefix("http://").unwrap().to_owned());
                killed = Some(Instant::now());
                // Elsewhere: until the process is gone, this task has tokens to take the time of.
                gone = Some(tokio::task::spawn_blocking(move || drop(victim)));
            }
        }
        let killed = killed.unwrap();
        gone.unwrap().await.unwrap();
        let after = times.partition_point(|at| *at < killed);
        let gap = |i: usize| milliseconds(times[i - 1], times[i]);
        if after > 0 && after + 3 < times.len() {
            // The token under way at the kill may still have come.
            pauses.push((after..after + 3).map(gap).fold(0.0, f64::max));
        }
        steps.extend((20..55).map(gap));
        // As long a context, behind a question that nobody has asked yet: the prefix caches know the text
        // itself by now, and whoever took it over did not.
        let start = Instant::now();
        let resume = Some(Resume { token_ids: ids[..61].to_vec(), seed: None });
        let fresh = GenerateRequest { resume, ..request(turn + 17) };
        let mut stream = client.clone().generate(fresh).await.unwrap().into_inner();
        stream.message().await.unwrap();
        prefills.push(milliseconds(start, Instant::now()));
        drop(stream);
        pair.workers.push(worker(&address.unwrap()));
        client = pair.client().await;
    }
    let median = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        quantile(values, 0.5)
    };
    Failover { pause_ms: median(&mut pauses), step_ms: median(&mut steps), prefill_ms: median(&mut prefills) }
}
