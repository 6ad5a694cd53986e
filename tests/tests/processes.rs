//! Real processes on loopback: workers that die, services that end, the command line.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that fails should say where

use std::{path::Path, process::Command};

use attune_engine::random_checkpoint::{Family, Kind, Shape, write};
use attune_proto::generator::v1::{GenerateRequest, generator_service_client::GeneratorServiceClient};
use attune_tests::{Generated, Process, binary, by_ids, guided};

struct Models {
    folder: tempfile::TempDir,
}

impl Models {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let shape = Shape { max_position: 512, ..Shape::tiny(Family::Llama) };
        write(&folder.path().join("base"), &shape, 1, Kind::Base).unwrap();
        write(&folder.path().join("persrm"), &shape, 2, Kind::PersRm { value_head: true }).unwrap();
        Self { folder }
    }

    fn worker(&self) -> Process {
        Process::start(
            "attune-reward",
            ["--model", &self.path("persrm"), "--threads", "1", "--cache-mib", "64"],
        )
        .unwrap()
    }

    fn generator(&self, workers: &[&Process]) -> Process {
        let base = self.path("base");
        let mut args = vec!["--model", &base, "--threads", "1", "--cache-mib", "64"];
        for worker in workers {
            args.extend(["--reward", &worker.endpoint]);
        }
        Process::start("attune-generator", args).unwrap()
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_string_lossy().into_owned()
    }
}

fn request() -> GenerateRequest {
    let mut request = by_ids(&[1, 2, 3], 300);
    request.guidances = vec![guided(1.2), guided(-0.5)];
    if let Some(sampling) = &mut request.sampling {
        (sampling.temperature, sampling.seed) = (Some(0.9), Some(4));
    }
    request
}

#[tokio::test]
async fn a_worker_killed_in_mid_text_changes_no_token() {
    let models = Models::new();
    let (first, second) = (models.worker(), models.worker());
    let generator = models.generator(&[&first, &second]);
    let mut client = GeneratorServiceClient::connect(generator.endpoint.clone()).await.unwrap();
    let undisturbed = Generated::of(&mut client, request()).await.unwrap();

    let mut stream = client.generate(request()).await.unwrap().into_inner();
    let mut ids = Vec::new();
    let mut workers = vec![first, second];
    while let Some(message) = stream.message().await.unwrap() {
        ids.extend(message.tokens.iter().map(|t| t.id));
        assert!(message.tokens.iter().all(|t| t.guided));
        if ids.len() == 20 {
            // Dropped is killed, without a word: sessions of this text were on both.
            workers.pop();
        }
    }
    assert_eq!(ids, undisturbed.ids());
}

#[tokio::test]
async fn the_last_worker_comes_back_in_time() {
    let models = Models::new();
    let worker = models.worker();
    let generator = models.generator(&[&worker]);
    let mut client = GeneratorServiceClient::connect(generator.endpoint.clone()).await.unwrap();
    let undisturbed = Generated::of(&mut client, request()).await.unwrap();
    let mut stream = client.generate(request()).await.unwrap().into_inner();
    let mut ids = Vec::new();
    let address = worker.endpoint.strip_prefix("http://").unwrap().to_owned();
    let mut worker = Some(worker);
    while let Some(message) = stream.message().await.unwrap() {
        ids.extend(message.tokens.iter().map(|t| t.id));
        if ids.len() >= 20
            && let Some(killed) = worker.take()
        {
            drop(killed);
            let args = ["--model", &models.path("persrm"), "--threads", "1", "--cache-mib", "64"];
            worker = Some(Process::start_at("attune-reward", &address, args).unwrap());
            break;
        }
    }
    while let Some(message) = stream.message().await.unwrap() {
        ids.extend(message.tokens.iter().map(|t| t.id));
    }
    assert_eq!(ids, undisturbed.ids());
    drop(worker);
}

// On threads of its own: the waiting for a process must not keep the client from closing its connection.
#[tokio::test(flavor = "multi_thread")]
async fn services_end_cleanly_when_asked() {
    let models = Models::new();
    let worker = models.worker();
    let generator = models.generator(&[&worker]);
    let mut client = GeneratorServiceClient::connect(generator.endpoint.clone()).await.unwrap();
    Generated::of(&mut client, by_ids(&[1], 2)).await.unwrap();
    assert_eq!(generator.terminate().unwrap(), Some(0));
    assert_eq!(worker.terminate().unwrap(), Some(0));
}

#[test]
fn a_model_that_cannot_be_served_is_named_at_start() {
    let models = Models::new();
    let cut = models.path("base") + "/model.safetensors";
    let bytes = std::fs::read(&cut).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    let run = |name: &str, model: &str| {
        let output = Command::new(binary(name).unwrap())
            .args(["--model", model, "--listen", "127.0.0.1:0"])
            .env("ATTUNE_REWARD_PROFILES__URL", "")
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let truncated = run("attune-generator", &models.path("base"));
    assert!(truncated.contains("model.safetensors") && truncated.contains("truncated"), "{truncated}");
    let config = models.path("persrm") + "/config.json";
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("\"intermediate_size\": 160", "\"intermediate_size\": 161"))
        .unwrap();
    let wrong = run("attune-reward", &models.path("persrm"));
    assert!(wrong.contains("mlp.gate_proj.weight") && wrong.contains("shape"), "{wrong}");
    let nothing = run("attune-reward", "/nonexistent/folder");
    assert!(nothing.contains("/nonexistent/folder"), "{nothing}");
}

#[tokio::test]
async fn the_command_gives_the_official_algorithm_on_any_two_folders() {
    #[derive(serde::Deserialize)]
    struct Case {
        shape: String,
        base_seed: u64,
        rm_seed: u64,
        prompt_ids: Vec<u32>,
        strength: f32,
        tokens: Vec<u32>,
    }
    let vectors: serde_json::Value =
        serde_json::from_str(include_str!("../vectors/pad_official.json")).unwrap();
    let cases: Vec<Case> = serde_json::from_value(vectors["cases"].clone()).unwrap();
    let case = cases.iter().find(|c| c.strength > 0.7 && c.strength < 0.9).unwrap();
    let shape: Shape = serde_json::from_value(vectors["shapes"][&case.shape].clone()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    write(&path("base"), &shape, case.base_seed, Kind::Base).unwrap();
    write(&path("persrm"), &shape, case.rm_seed, Kind::PersRm { value_head: true }).unwrap();
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let worker = Process::start("attune-reward", ["--model", &text(&path("persrm"))]).unwrap();
    let generator =
        Process::start("attune-generator", ["--model", &text(&path("base")), "--reward", &worker.endpoint])
            .unwrap();
    let ids: Vec<String> = case.prompt_ids.iter().map(u32::to_string).collect();
    let output = Command::new(binary("attune").unwrap())
        .args(["generate", "--endpoint", &generator.endpoint, "--prompt-ids", &ids.join(",")])
        .args(["--reference", "generator", "--guide-context", "as-is", "--candidates", "10"])
        .args(["--strength", &case.strength.to_string(), "--temperature", "0"])
        .args(["--max-tokens", "64", "--ignore-eos", "--json"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let last = String::from_utf8(output.stdout).unwrap().lines().last().unwrap().to_owned();
    let last: serde_json::Value = serde_json::from_str(&last).unwrap();
    let tokens: Vec<u32> = serde_json::from_value(last["tokens"].clone()).unwrap();
    assert_eq!(tokens, case.tokens);
    for key in ["text", "finish_reason", "usage", "timings"] {
        assert!(!last[key].is_null(), "{key}");
    }
}
