//! The command against a small generator of its own, over a real socket.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    pin::Pin,
    process::{Command, Output},
    sync::{Arc, Mutex},
    time::Duration,
};

use attune_proto::generator::v1::{
    DescribeRequest, DescribeResponse, Finish, FinishReason, GenerateRequest, GenerateResponse, RewardWorker,
    Token, Usage,
    generator_service_server::{GeneratorService, GeneratorServiceServer},
};
use attune_service::{
    auth::Door,
    listener,
    sections::ServerConfig,
    server::{Health, Server},
    status,
};
use futures::{Stream, stream};
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

type Seen = Arc<Mutex<Vec<GenerateRequest>>>;

/// Says "Boil it", or "Just boil it" for whom it is guided; keeps what it was asked.
struct Kettle {
    seen: Seen,
}

#[tonic::async_trait]
impl GeneratorService for Kettle {
    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        let worker = RewardWorker { endpoint: "http://w".into(), connected: true, ..Default::default() };
        Ok(Response::new(DescribeResponse {
            model_id: "kettle".into(),
            reward_workers: vec![worker],
            ..Default::default()
        }))
    }

    type GenerateStream = Pin<Box<dyn Stream<Item = Result<GenerateResponse, Status>> + Send>>;

    async fn generate(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let request = request.into_inner();
        let guided = !request.guidances.is_empty();
        let sampling = request.sampling.clone().unwrap_or_default();
        self.seen.lock().unwrap().push(request);
        if sampling.top_p == Some(2.0) {
            return Err(status::invalid("sampling.top_p", "must be in (0, 1]; it is 2"));
        }
        if sampling.max_tokens == Some(1000) {
            return Ok(Response::new(Box::pin(stream::pending())));
        }
        let say = |text: &str, id, unguided_id| GenerateResponse {
            text: text.into(),
            tokens: vec![Token { id, unguided_id, guided, ..Token::default() }],
            finish: None,
        };
        let mut parts =
            if guided { vec![say("Just", 1, 2), say(" boil", 3, 2)] } else { vec![say("Boil", 2, 2)] };
        parts.push(say(" it", 4, 4));
        let usage = Usage { prompt_tokens: 3, generated_tokens: parts.len() as u32, cached_tokens: 0 };
        parts.push(GenerateResponse {
            finish: Some(Finish {
                reason: FinishReason::Eos.into(),
                usage: Some(usage),
                seed: 7,
                ..Finish::default()
            }),
            ..GenerateResponse::default()
        });
        Ok(Response::new(Box::pin(stream::iter(parts.into_iter().map(Ok)))))
    }
}

/// A running kettle; it ends with the runtime.
struct Running {
    runtime: tokio::runtime::Runtime,
    url: String,
    seen: Seen,
    health: Health,
}

fn start() -> Running {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let seen = Seen::default();
    let config = ServerConfig::default();
    let bound = runtime.block_on(listener::bind(config.listen)).unwrap();
    let url = format!("http://{}", bound.address());
    let server = Server::new(&config, Door::open(None))
        .add_service(GeneratorServiceServer::new(Kettle { seen: seen.clone() }));
    let health = server.health();
    runtime.spawn(server.serve(bound, CancellationToken::new()));
    Running { runtime, url, seen, health }
}

impl Running {
    fn attune(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_attune"))
            .args(args)
            .env("ATTUNE_ENDPOINT", &self.url)
            .env_remove("CLICOLOR_FORCE")
            .output()
            .unwrap()
    }

    fn stop(self) {
        self.runtime.shutdown_timeout(Duration::from_secs(1));
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn lines(output: &Output) -> Vec<Value> {
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn text_goes_to_stdout() {
    let running = start();
    let output = running.attune(&["generate", "How?", "--system", "You are a cook.", "--prefer", "brief"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "Just boil it\n");
    let seen = running.seen.lock().unwrap().remove(0);
    assert_eq!(seen.guidances.len(), 1);
    assert_eq!(seen.guidances[0].guidance.as_ref().unwrap().text.as_deref(), Some("brief"));
    running.stop();
}

#[test]
fn health_is_told_by_the_exit_code() {
    let running = start();
    let ask = |service| running.attune(&["health", "--service", service]);
    let ours = "attune.generator.v1.GeneratorService";
    for (serving, said) in [(false, "NOT_SERVING"), (true, "SERVING")] {
        running.runtime.block_on(running.health.set_serving(serving));
        for service in ["", ours] {
            let output = ask(service);
            let shown = text(&output.stdout) + &text(&output.stderr);
            assert_eq!(output.status.success(), serving, "{shown}");
            assert!(shown.trim().ends_with(said), "{shown}");
        }
    }
    let unknown = ask("attune.generator.v2.GeneratorService");
    assert!(!unknown.status.success() && text(&unknown.stderr).contains("NOT_FOUND"), "{unknown:?}");
    running.stop();
}

#[test]
fn the_parity_command_sends_one_guidance_and_prints_json() {
    let running = start();
    let line = "generate --endpoint URL --prompt-ids 1,2,3 --reference generator --guide-context as-is --candidates 10 \
                --strength 0.8 --temperature 0 --max-tokens 64 --ignore-eos --json";
    let args: Vec<&str> =
        line.split_whitespace().map(|a| if a == "URL" { running.url.as_str() } else { a }).collect();
    let output = running.attune(&args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let events = lines(&output);
    assert_eq!(events[0]["event"], "chunk");
    let last = events.last().unwrap();
    assert_eq!(last["event"], "finish");
    assert_eq!(last["tokens"], serde_json::json!([1, 3, 4]));
    assert_eq!(last["text"], "Just boil it");
    assert_eq!(last["finish_reason"], "eos");
    assert_eq!(last["usage"]["prompt_tokens"], 3);
    assert!(last["timings"].is_object());
    let seen = running.seen.lock().unwrap().remove(0);
    let sampling = seen.sampling.unwrap();
    assert_eq!(seen.guidances[0].strength, Some(0.8));
    assert_eq!((sampling.candidates, sampling.max_tokens, sampling.ignore_eos), (Some(10), Some(64), true));
    assert_eq!(sampling.temperature, Some(0.0));
    running.stop();
}

#[test]
fn comparisons_mark_what_changed() {
    let running = start();
    let output = running.attune(&[
        "generate",
        "--compare",
        "How?",
        "--prefer",
        "brief",
        "--prefer",
        "curt",
        "--width",
        "90",
    ]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    assert!(shown.starts_with("unguided"), "{shown}");
    assert!(shown.contains("Boil it") && shown.contains("│ [Just boil] it"), "{shown}");
    assert!(shown.contains("3 tokens · 2 changed · eos"), "{shown}");
    assert!(!shown.contains('\u{1b}'));
    let seen = running.seen.lock().unwrap();
    let mut counts: Vec<usize> = seen.iter().map(|r| r.guidances.len()).collect();
    counts.sort_unstable();
    assert_eq!(counts, [0, 1, 1]);
    drop(seen);
    let colored = running.attune(&["generate", "--compare", "How?", "--prefer", "brief", "--mark", "color"]);
    assert!(text(&colored.stdout).contains('\u{1b}'));
    let json = running.attune(&["generate", "--compare", "How?", "--prefer", "brief", "--json"]);
    let ends: Vec<Value> = lines(&json).into_iter().filter(|e| e["event"] == "finish").collect();
    assert_eq!(ends.len(), 2);
    assert!(ends.iter().any(|e| e["column"] == "brief"));
    running.stop();
}

#[test]
fn errors_name_the_field_and_fail() {
    let running = start();
    let output = running.attune(&["generate", "How?", "--top-p", "2"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout), "");
    let message = text(&output.stderr);
    assert!(message.contains("INVALID_ARGUMENT") && message.contains("sampling.top_p"), "{message}");
    let output = running.attune(&["generate", "How?", "--top-p", "2", "--json"]);
    let last = lines(&output).pop().unwrap();
    assert_eq!(last["event"], "error");
    assert_eq!(last["violations"][0]["field"], "sampling.top_p");
    running.stop();
}

#[test]
fn a_timeout_ends_a_silent_stream() {
    let running = start();
    let output = running.attune(&["generate", "How?", "--max-tokens", "1000", "--timeout", "0.2"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("DEADLINE_EXCEEDED"), "{}", text(&output.stderr));
    running.stop();
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_it_with_130() {
    let running = start();
    let mut child = Command::new(env!("CARGO_BIN_EXE_attune"))
        .args(["generate", "How?", "--max-tokens", "1000", "--endpoint", &running.url])
        .spawn()
        .unwrap();
    // Once the server has the request, the command is in the middle of its stream.
    while running.seen.lock().unwrap().is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    running.stop();
}

#[test]
fn describe_shows_model_and_workers() {
    let running = start();
    let output = running.attune(&["describe"]);
    assert!(text(&output.stdout).contains("kettle") && text(&output.stdout).contains("http://w"));
    let json: Value = serde_json::from_slice(&running.attune(&["describe", "--json"]).stdout).unwrap();
    assert_eq!(json["model_id"], "kettle");
    running.stop();
}

#[test]
fn wrong_command_lines_and_absent_servers_are_told() {
    let running = start();
    for args in [
        &["generate"][..],
        &["generate", "How?", "--text", "raw"],
        &["generate", "How?", "--prompt-ids", "1"],
        &["generate", "How?", "--timeout", "0"],
        &["generate", "How?", "--reference", "nothing"],
    ] {
        assert_eq!(running.attune(args).status.code(), Some(2), "{args:?}");
    }
    let output = running.attune(&["generate", "How?", "--endpoint", "127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("nothing answers at http://127.0.0.1:1"),
        "{}",
        text(&output.stderr)
    );
    running.stop();
}

#[test]
fn a_plan_needs_no_server() {
    let models = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo");
    let (base, reward) = (format!("{models}/base"), format!("{models}/persrm"));
    let plan = |more: &[&str]| {
        let given = ["plan", "--base", &base, "--reward", &reward, "--bandwidth", "30", "--tflops", "0.1"];
        Command::new(env!("CARGO_BIN_EXE_attune")).args(given).args(more).output().unwrap()
    };
    let output = plan(&["--memory", "8", "--requests", "10", "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let json = &lines(&output)[0];
    assert!(json["step"].as_f64().unwrap() > 0.0 && json["reward"]["replicas"].as_f64().unwrap() >= 1.0);
    let table = plan(&["--memory", "8", "--reference", "generator"]);
    assert!(text(&table.stdout).contains("workers for a generator"), "{}", text(&table.stdout));
    for (wrong, named) in [
        (&["--memory", "0.001"][..], "does not fit"),
        (&["--device", "h100", "--quantize", "q8"], "CPU alone"),
        (&["--memory", "8", "--max-step-ms", "0.001"], "--max-step-ms"),
        (&["--memory", "8", "--device", "abacus", "--tflops", "0"], "--tflops"),
    ] {
        let output = plan(wrong);
        assert!(!output.status.success() && text(&output.stderr).contains(named), "{}", text(&output.stderr));
    }
}

#[test]
fn a_load_run_reports_and_draws() {
    let running = start();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    std::fs::write(path("prompts.json"), r#"[{"id": "0", "prompt": "How?"}, "Why?"]"#).unwrap();
    let (prompts, plot) = (path("prompts.json"), path("out.svg"));
    let args = ["bench", "serve", "--streams", "2", "--texts", "4", "--warmup", "1", "--prefer", "brief"];
    let output = running.attune(&[&args[..], &["--prompts", &prompts, "--plot", &plot, "--json"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report = &lines(&output)[0];
    assert_eq!((report["texts"].as_u64(), report["tokens"].as_u64()), (Some(4), Some(12)));
    assert!(report["time_per_output_token"]["p99"].is_number(), "{report}");
    assert!(std::fs::read_to_string(&plot).unwrap().contains("<svg"));
    {
        let seen = running.seen.lock().unwrap();
        assert_eq!(seen.len(), 5, "the warm-up too");
        assert!(seen.iter().all(|request| request.guidances.len() == 1));
    }
    let spread = ["--max-tokens", "20", "--spread", "0.5", "--texts", "8", "--warmup", "0"];
    let output = running.attune(&[&["bench", "serve", "--plain"], &spread[..]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    {
        let seen = running.seen.lock().unwrap();
        let mut limits: Vec<_> =
            seen[5..].iter().map(|r| r.sampling.as_ref().unwrap().max_tokens.unwrap()).collect();
        assert!(limits.len() == 8 && limits.iter().all(|limit| (10..=30).contains(limit)), "{limits:?}");
        limits.dedup();
        assert!(limits.len() > 1, "{limits:?}");
    }
    let table = running.attune(&["bench", "serve", "--plain", "--streams", "1", "--texts", "2"]);
    assert!(text(&table.stdout).contains("time per output token"), "{}", text(&table.stdout));
    assert!(running.seen.lock().unwrap().last().unwrap().guidances.is_empty());
    for (wrong, named) in [
        (&["bench", "serve", "--plain", "--prefer", "brief"][..], "--plain"),
        (&["bench", "serve", "--arrivals", "poisson"], "--rate"),
        (&["bench", "serve", "--prompts", "/nonexistent.json"], "/nonexistent.json"),
        (&["bench", "serve", "--spread", "0.5"], "--max-tokens"),
        (&["bench", "serve", "--max-tokens", "5", "--spread", "1.5"], "from 0 to 1"),
        (&["bench", "table", "--rows", "nonsense"], "nonsense"),
    ] {
        let output = running.attune(wrong);
        assert!(!output.status.success() && text(&output.stderr).contains(named), "{}", text(&output.stderr));
    }
    running.stop();
}
