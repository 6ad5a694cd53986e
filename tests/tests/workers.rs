//! Many workers as real processes: hanging, leaving, lying, coming and going, while texts are written.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that fails should say where

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use attune_bench::timed::{TimedConfig, TimedWorker};
use attune_engine::random_checkpoint::{Family, Kind, Shape, write};
use attune_proto::{
    generator::v1::{
        DescribeRequest, GenerateRequest, OnRewardLoss, Resume,
        generator_service_client::GeneratorServiceClient,
    },
    reward::v1::{Load, Rewards, response_frame::Frame},
};
use attune_tests::{Generated, Process, Proxy, Signal, by_ids, guided};
use tokio::task::JoinSet;
use tonic::{Code, transport::Channel};
use tonic_types::StatusExt as _;

struct Models {
    folder: tempfile::TempDir,
}

impl Models {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let shape = Shape { max_position: 512, ..Shape::tiny(Family::Llama) };
        write(&folder.path().join("base"), &shape, 1, Kind::Base).unwrap();
        write(&folder.path().join("persrm"), &shape, 2, Kind::PersRm { value_head: true }).unwrap();
        write(&folder.path().join("other"), &shape, 3, Kind::PersRm { value_head: true }).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_string_lossy().into_owned()
    }

    fn worker(&self) -> Process {
        self.worker_of("persrm", "127.0.0.1:0", &[])
    }

    fn worker_of(&self, model: &str, listen: &str, more: &[&str]) -> Process {
        let path = self.path(model);
        let mut args = vec!["--model", &path, "--threads", "1", "--cache-mib", "64", "--log", "error"];
        args.extend(more);
        Process::start_at("attune-reward", listen, args).unwrap()
    }

    fn generator(&self, workers: &[&str], more: &[&str]) -> Process {
        let base = self.path("base");
        let mut args = vec!["--model", &base, "--threads", "1", "--cache-mib", "64", "--log", "off"];
        for worker in workers {
            args.extend(["--reward", worker]);
        }
        args.extend(more);
        Process::start("attune-generator", args).unwrap()
    }
}

fn request(seed: u64, tokens: u32) -> GenerateRequest {
    let mut request = by_ids(&[1, 2, 3 + seed as u32], tokens);
    request.guidances = vec![guided(1.2)];
    if let Some(sampling) = &mut request.sampling {
        (sampling.temperature, sampling.seed) = (Some(0.9), Some(seed));
    }
    request
}

async fn connect(process: &Process) -> GeneratorServiceClient<Channel> {
    GeneratorServiceClient::connect(process.endpoint.clone()).await.unwrap()
}

/// The address of the worker that holds a session.
async fn holder(client: &mut GeneratorServiceClient<Channel>) -> String {
    loop {
        let described = client.describe(DescribeRequest {}).await.unwrap().into_inner();
        let busy = described.reward_workers.iter().find(|w| w.connected && w.sessions > 0);
        if let Some(worker) = busy {
            return worker.endpoint.trim_end_matches('/').to_owned();
        }
        tokio::task::yield_now().await;
    }
}

/// Waits until this many workers are connected.
async fn connected(client: &mut GeneratorServiceClient<Channel>, workers: usize) {
    loop {
        let described = client.describe(DescribeRequest {}).await.unwrap().into_inner();
        if described.reward_workers.iter().filter(|w| w.connected).count() == workers {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_worker_that_hangs_loses_its_sessions() {
    let models = Models::new();
    let workers = [models.worker(), models.worker()];
    let addresses: Vec<&str> = workers.iter().map(|w| w.endpoint.as_str()).collect();
    let generator = models.generator(&addresses, &["--set", "reward_wait_max_seconds=0.5"]);
    let mut client = connect(&generator).await;
    connected(&mut client, 2).await;
    let undisturbed = Generated::of(&mut client, request(4, 300)).await.unwrap();

    let mut stream = client.clone().generate(request(4, 300)).await.unwrap().into_inner();
    let mut ids = Vec::new();
    let mut hung = None;
    while let Some(message) = stream.message().await.unwrap() {
        ids.extend(message.tokens.iter().map(|t| t.id));
        assert!(message.tokens.iter().all(|t| t.guided));
        if ids.len() >= 20 && hung.is_none() {
            let address = holder(&mut client).await;
            let worker = workers.iter().find(|w| w.endpoint == address).unwrap();
            // It keeps its connection and says nothing.
            worker.signal(Signal::Stop).unwrap();
            hung = Some(worker);
        }
    }
    assert_eq!(ids, undisturbed.ids());
    hung.unwrap().signal(Signal::Continue).unwrap();
}

#[tokio::test]
async fn without_workers_a_text_ends_with_what_it_takes_to_go_on() {
    let models = Models::new();
    let worker = models.worker();
    let generator = models.generator(&[&worker.endpoint], &["--set", "reward_loss_seconds=0.3"]);
    let mut client = connect(&generator).await;
    let undisturbed = Generated::of(&mut client, request(5, 200)).await.unwrap();
    let address = worker.endpoint.strip_prefix("http://").unwrap().to_owned();

    let interrupt = async |worker: Process, request: GenerateRequest| {
        let mut stream = client.clone().generate(request).await.unwrap().into_inner();
        let (mut tokens, mut alive) = (Vec::new(), Some(worker));
        loop {
            match stream.message().await {
                Ok(Some(message)) => tokens.extend(message.tokens),
                Ok(None) => break (tokens, None),
                Err(status) => break (tokens, Some(status)),
            }
            if tokens.len() >= 20 {
                drop(alive.take());
            }
        }
    };
    let (tokens, status) = interrupt(worker, request(5, 200)).await;
    let status = status.unwrap();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let info = status.get_details_error_info().unwrap();
    assert_eq!(info.metadata["resume_tokens"], tokens.len().to_string());
    let seed: u64 = info.metadata["resume_seed"].parse().unwrap();

    // With what it had and was told, the client goes on once there is a worker again.
    let worker = models.worker_of("persrm", &address, &[]);
    connected(&mut client.clone(), 1).await;
    let token_ids: Vec<u32> = tokens.iter().map(|t| t.id).collect();
    let resume = Some(Resume { token_ids: token_ids.clone(), seed: Some(seed) });
    let rest =
        Generated::of(&mut client.clone(), GenerateRequest { resume, ..request(5, 200) }).await.unwrap();
    assert_eq!([token_ids, rest.ids()].concat(), undisturbed.ids());

    // Who said beforehand that it need not be guided goes on, and every token says so.
    let unguided =
        GenerateRequest { on_reward_loss: OnRewardLoss::ContinueUnguided.into(), ..request(5, 200) };
    let (tokens, status) = interrupt(worker, unguided).await;
    assert!(status.is_none(), "{status:?}");
    assert_eq!(tokens.len(), 200);
    let guided = tokens.iter().take_while(|t| t.guided).count();
    assert!((20..200).contains(&guided) && tokens[guided..].iter().all(|t| !t.guided), "{guided}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_of_all_workers_fails_no_request() {
    let models = Arc::new(Models::new());
    let mut workers: Vec<Process> = (0..3).map(|_| models.worker()).collect();
    let addresses: Vec<String> = workers.iter().map(|w| w.endpoint.clone()).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let generator = models.generator(&addresses, &[]);
    let mut client = connect(&generator).await;
    connected(&mut client, 3).await;
    let mut expected = Vec::new();
    for seed in 0..8 {
        expected.push(Generated::of(&mut client, request(seed, 100)).await.unwrap().ids());
    }
    let restart = {
        let models = Arc::clone(&models);
        tokio::task::spawn_blocking(move || {
            for worker in &mut workers {
                let address = worker.endpoint.strip_prefix("http://").unwrap().to_owned();
                worker.signal(Signal::Terminate).unwrap();
                // Its end in good order, while its texts go elsewhere.
                assert_eq!(worker.wait().unwrap(), Some(0));
                *worker = models.worker_of("persrm", &address, &[]);
            }
            workers
        })
    };
    let mut streams = JoinSet::new();
    let restarted = Arc::new(AtomicU64::new(0));
    for seed in 0..8 {
        let (mut client, expected) = (client.clone(), expected[seed as usize].clone());
        let restarted = Arc::clone(&restarted);
        streams.spawn(async move {
            let mut texts = 0;
            while restarted.load(Ordering::Relaxed) == 0 {
                let answer = Generated::of(&mut client, request(seed, 100)).await.unwrap();
                assert_eq!(answer.ids(), expected);
                texts += 1;
            }
            texts
        });
    }
    let workers = restart.await.unwrap();
    restarted.store(1, Ordering::Relaxed);
    let mut texts = 0;
    while let Some(count) = streams.join_next().await {
        texts += count.unwrap();
    }
    assert!(texts >= 8, "{texts}");
    drop(workers);
}

#[tokio::test]
async fn a_worker_that_lies_is_found_out_and_no_client_sees_it() {
    type Lie = fn(Rewards) -> Vec<Frame>;
    let lies: [(&str, Lie); 6] = [
        ("too few", |mut r| {
            r.values.pop();
            vec![Frame::Rewards(r)]
        }),
        ("too many", |mut r| {
            r.values.push(0.0);
            vec![Frame::Rewards(r)]
        }),
        ("not a number", |mut r| {
            r.values[0] = f32::NAN;
            vec![Frame::Rewards(r)]
        }),
        ("a step to come", |mut r| {
            r.step += 1;
            vec![Frame::Rewards(r)]
        }),
        ("twice", |r| vec![Frame::Rewards(r.clone()), Frame::Rewards(r)]),
        ("another's session", |r| {
            vec![Frame::Rewards(Rewards { session_id: r.session_id + 1_000_000, ..r })]
        }),
    ];
    let models = Models::new();
    let (honest, behind) = (models.worker(), models.worker());
    for (lie, change) in lies {
        let told = Arc::new(AtomicU64::new(0));
        let proxy = {
            let told = Arc::clone(&told);
            Proxy::start(&behind.endpoint, move |frame| match frame {
                // It begins to lie in mid-text, and makes itself look idle.
                Frame::Rewards(r) if r.step > 5 => {
                    told.fetch_add(1, Ordering::Relaxed);
                    change(r)
                }
                Frame::Load(load) => vec![Frame::Load(Load { sessions: 0, ..load })],
                other => vec![other],
            })
            .await
            .unwrap()
        };
        let generator =
            models.generator(&[&honest.endpoint, &proxy.endpoint], &["--set", "reward_wait_max_seconds=0.5"]);
        let mut client = connect(&generator).await;
        connected(&mut client, 2).await;
        let expected = GenerateRequest { guidances: vec![], ..request(9, 40) };
        let unguided = Generated::of(&mut client, expected).await.unwrap().ids();
        let mut answers = JoinSet::new();
        for _ in 0..6 {
            let mut client = client.clone();
            answers.spawn(async move { Generated::of(&mut client, request(9, 40)).await.unwrap() });
        }
        let mut all = Vec::new();
        while let Some(answer) = answers.join_next().await {
            let answer = answer.unwrap();
            assert!(answer.tokens.iter().all(|t| t.guided), "{lie}");
            all.push(answer.ids());
        }
        assert!(all.iter().all(|ids| *ids == all[0] && *ids != unguided), "{lie}");
        assert!(told.load(Ordering::Relaxed) > 0, "{lie}: nobody was lied to");
    }
}

#[tokio::test]
async fn each_guidance_goes_to_a_worker_of_its_reward_model() {
    let models = Models::new();
    let workers = [models.worker(), models.worker_of("other", "127.0.0.1:0", &[])];
    let addresses: Vec<&str> = workers.iter().map(|w| w.endpoint.as_str()).collect();
    let generator = models.generator(&addresses, &[]);
    let mut client = connect(&generator).await;
    connected(&mut client, 2).await;
    let by = |model: &str| {
        let mut request = request(1, 20);
        for term in &mut request.guidances {
            term.guidance.as_mut().unwrap().reward_model = model.to_owned();
        }
        request
    };
    let mut texts = Vec::new();
    for model in ["persrm", "other"] {
        let answer = Generated::of(&mut client, by(model)).await.unwrap();
        assert_eq!(answer.finish.guidances[0].reward_model, model);
        texts.push(answer.ids());
    }
    assert_ne!(texts[0], texts[1]);
    let unknown = Generated::of(&mut client, by("nobody")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound, "{unknown:?}");
    assert!(unknown.message().contains("other, persrm"), "{unknown:?}");
    let unnamed = Generated::of(&mut client, by("")).await.unwrap_err();
    assert_eq!(unnamed.code(), Code::InvalidArgument, "{unnamed:?}");
    assert!(unnamed.message().contains("guidances[0].guidance.reward_model"), "{unnamed:?}");
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_session_within_one_step() {
    let models = Models::new();
    let step = Duration::from_millis(200);
    let worker = timed(&models, 4, step);
    let generator = models.generator(&[&worker.endpoint()], &[]);
    let mut client = connect(&generator).await;
    connected(&mut client, 1).await;
    let mut stream = client.clone().generate(request(1, 400)).await.unwrap().into_inner();
    stream.message().await.unwrap();
    assert_eq!(worker.sessions(), 1);
    drop(stream);
    let before = worker.forwards();
    while worker.sessions() > 0 {
        assert!(worker.forwards() <= before + 1, "its text goes on");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // The step that was under way when the client left may come to its end.
    assert!(worker.forwards() <= before + 1, "{before} {}", worker.forwards());
}

#[tokio::test]
async fn a_text_that_no_workers_could_ever_hold_is_refused_at_once() {
    let models = Models::new();
    let worker = timed(&models, 2, Duration::from_millis(1));
    let generator = models.generator(&[&worker.endpoint()], &[]);
    let mut client = connect(&generator).await;
    connected(&mut client, 1).await;
    let of = |guidances: usize| GenerateRequest { guidances: vec![guided(0.5); guidances], ..request(1, 5) };
    let refused = Generated::of(&mut client, of(3)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(
        refused.message().contains("3 reward sessions") && refused.message().contains("2 slots"),
        "{refused:?}"
    );
    assert_eq!(Generated::of(&mut client, of(2)).await.unwrap().tokens.len(), 5);
}

/// A worker of timed waits that fits the base model.
fn timed(models: &Models, slots: u32, forward: Duration) -> TimedWorker {
    let tokenizer = attune_engine::Tokenizer::load(Path::new(&models.path("base"))).unwrap();
    let size = tokenizer.size() as u32;
    TimedWorker::start(TimedConfig {
        slots,
        forward,
        on_card: true,
        fingerprint: tokenizer.fingerprint(size),
        vocab: size,
        model_id: "timed".to_owned(),
    })
    .unwrap()
}

/// Tokens per second of 64 streams with so many workers of 8 slots, whose passes all take the same time.
async fn throughput(models: &Models, workers: usize) -> f64 {
    let (streams, tokens) = (64, 10);
    let mut all = Vec::new();
    for _ in 0..workers {
        all.push(timed(models, 8, Duration::from_millis(30)));
    }
    let addresses: Vec<String> = all.iter().map(TimedWorker::endpoint).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let generator = models.generator(&addresses, &[]);
    let mut client = connect(&generator).await;
    connected(&mut client, workers).await;
    let start = std::time::Instant::now();
    let mut texts = JoinSet::new();
    for seed in 0..streams {
        let mut client = client.clone();
        texts.spawn(async move { Generated::of(&mut client, request(seed, tokens)).await.unwrap() });
    }
    while let Some(text) = texts.join_next().await {
        assert_eq!(text.unwrap().tokens.len() as u32, tokens);
    }
    (streams as f64) * f64::from(tokens) / start.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread")]
async fn more_workers_give_more_tokens() {
    let models = Models::new();
    let one = throughput(&models, 1).await;
    let (two, four) = (throughput(&models, 2).await / one, throughput(&models, 4).await / one);
    println!("{one:.0} tokens/s with 1 worker; 2 give {two:.2} times as many, 4 give {four:.2}");
    // `make chaos` demands what the design asks for; here, on a machine that may be busy, a bit less.
    let (least_two, least_four) =
        if std::env::var_os("ATTUNE_STRICT").is_some() { (1.9, 3.6) } else { (1.6, 2.6) };
    assert!(two >= least_two && four >= least_four, "{two:.2}, {four:.2}");
}
