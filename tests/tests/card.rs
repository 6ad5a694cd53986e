//! Everything on a card, on a stand-in for one: libraries of the names of NVIDIA's that compute on this CPU
//! (`tests/card`). Services and the command find them as they would find the real ones.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that fails should say where

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::Command,
};

use attune_engine::random_checkpoint::{Family, Kind, Shape, write};
use attune_proto::generator::v1::{
    DescribeRequest, GenerateRequest, generator_service_client::GeneratorServiceClient,
};
use attune_tests::{Generated, PATIENCE, Process, binary, by_ids, guided, workspace_root};
use tonic::Code;

/// A stand-in for a card, and models for it.
struct Card {
    folder: tempfile::TempDir,
    libraries: OsString,
}

impl Card {
    /// `None`: this machine has no C++ compiler to make it.
    fn new() -> Option<Self> {
        let root = workspace_root();
        let libraries = root.join("target/tools/card");
        let made = Command::new("bash").arg(root.join("scripts/card.sh")).arg(&libraries).output().unwrap();
        if !made.status.success() {
            let said = String::from_utf8_lossy(&made.stderr);
            assert!(said.contains("needs a C++ compiler"), "{said}");
            assert!(std::env::var_os("ATTUNE_REQUIRE_ALL").is_none_or(|v| v != "1"), "left out: {said}");
            println!("left out: {said}");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let shape = Shape { max_position: 512, ..Shape::tiny(Family::Llama) };
        write(&folder.path().join("base"), &shape, 1, Kind::Base).unwrap();
        write(&folder.path().join("persrm"), &shape, 2, Kind::PersRm { value_head: true }).unwrap();
        Some(Self { folder, libraries: libraries.canonicalize().unwrap().into_os_string() })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What a process finds the stand-in by, and where it keeps what it compiles.
    fn variables(&self) -> Vec<(&str, &OsStr)> {
        vec![("LD_LIBRARY_PATH", &self.libraries), ("XDG_CACHE_HOME", self.folder.path().as_os_str())]
    }

    fn start(&self, service: &str, model: &str, more: &[&str]) -> Process {
        let (model, trouble) = (self.path(model), self.path(service));
        let mut args = vec!["--model", model.to_str().unwrap(), "--device", "cuda:0", "--cache-mib", "16"];
        args.extend(more);
        let mut variables = self.variables();
        variables.push(("ATTUNE_CARD_TROUBLE", trouble.as_os_str()));
        Process::start_in(service, args, &variables).unwrap()
    }

    /// Puts the card of a service in trouble.
    fn trouble(&self, service: &str, what: &str) {
        // Moved into place, so that the service sees all of it or nothing.
        let written = self.path("trouble");
        std::fs::write(&written, what).unwrap();
        std::fs::rename(written, self.path(service)).unwrap();
    }

    /// Runs what `make gpu-test` and `make gpu-bench` run, and gives what it writes as JSON.
    fn gpu(&self, what: &str) -> serde_json::Value {
        let (root, bin) = (workspace_root(), binary("attune").unwrap());
        let output = Command::new("bash")
            .arg(root.join("scripts/gpu.sh"))
            .args([bin.parent().unwrap(), Path::new(what), Path::new("--dry-run"), Path::new("--work")])
            .arg(self.path("work"))
            .env("XDG_CACHE_HOME", self.folder.path())
            .env("ATTUNE_GPU_OUT", self.path("out"))
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        assert!(output.status.success(), "{}", said.concat());
        let written = std::fs::read(self.path("out").join(format!("{what}.json"))).unwrap();
        serde_json::from_slice(&written).unwrap()
    }
}

/// How a generator that is not to start ends: what it says.
fn refused(variables: &[(&str, &OsStr)], model: &Path, more: &[&str]) -> String {
    let mut command = Command::new(binary("attune-generator").unwrap());
    command.args(["--listen", "127.0.0.1:0", "--cache-mib", "16", "--model"]).arg(model).args(more);
    let output = command.envs(variables.iter().copied()).output().unwrap();
    assert!(!output.status.success());
    assert!(output.stdout.is_empty(), "the port opened");
    String::from_utf8(output.stderr).unwrap()
}

async fn client(process: &Process) -> GeneratorServiceClient<tonic::transport::Channel> {
    GeneratorServiceClient::connect(process.endpoint.clone()).await.unwrap()
}

fn long_prompt() -> GenerateRequest {
    by_ids(&(3..103).collect::<Vec<u32>>(), 4)
}

#[test]
fn all_that_is_checked_on_a_card_holds_on_the_stand_in() {
    let Some(card) = Card::new() else { return };
    let found = card.gpu("test");
    let found = found.as_array().unwrap();
    let names: Vec<&str> = found.iter().map(|f| f["name"].as_str().unwrap()).collect();
    for part in [
        "select bf16",
        "score f16",
        "fuse_sample",
        "product bf16",
        "attention f16",
        "qwen3 f32",
        "fused by the kernel",
        "f16: 4 streams",
    ] {
        assert!(names.iter().any(|name| name.contains(part)), "{part} is not in {names:?}");
    }
}

#[test]
fn all_that_is_measured_on_a_card_runs_on_the_stand_in() {
    let Some(card) = Card::new() else { return };
    let speeds = card.gpu("bench");
    let kernels = speeds["kernels"].as_array().unwrap();
    for kernel in ["select", "score", "fuse_sample"] {
        let own: Vec<_> = kernels.iter().filter(|k| k["kernel"] == kernel).collect();
        assert!(own.len() == 2 && own.iter().all(|k| k["microseconds"].as_f64().unwrap() > 0.0), "{speeds}");
    }
    assert_eq!(speeds["decode"].as_array().unwrap().len(), 2);
    assert!(speeds["decode"][1]["guided"].as_f64().unwrap() > 0.0, "{speeds}");
}

#[test]
fn what_a_card_has_wrong_is_told_before_the_port_opens() {
    let Some(card) = Card::new() else { return };
    let base = card.path("base");
    let device = ["--device", "cuda:0"];
    let with = |name, value: &'static str| {
        let mut variables = card.variables();
        variables.push((name, OsStr::new(value)));
        variables
    };
    for (variables, more, parts) in [
        (card.variables(), &["--device", "cuda:3"][..], ["there is no cuda:3", "one card"]),
        (card.variables(), &["--device", "gpu"], ["gpu", "cuda:N"]),
        (card.variables(), &["--device", "cuda:0", "--quantize", "q8"], ["8-bit", "--device cpu"]),
        (card.variables(), &["--set", "fuse=device"], ["fuse", "--device cuda:N"]),
        (with("ATTUNE_CARD_CAPABILITY", "75"), &device, ["compute capability 7.5", "8.0"]),
        (with("ATTUNE_CARD_MIB", "1"), &device, ["memory is full", "cache_mib"]),
    ] {
        let said = refused(&variables, &base, more);
        assert!(parts.iter().all(|part| said.contains(part)), "{said}");
    }
    // Only where there is no driver either.
    if !Path::new("/proc/driver/nvidia").exists() {
        let said = refused(&[], &base, &device);
        assert!(said.contains("libcuda.so cannot be loaded") && said.contains("--device cpu"), "{said}");
    }
}

#[tokio::test]
async fn auto_takes_the_card_where_there_is_one() {
    let Some(card) = Card::new() else { return };
    let base = card.path("base");
    let args = |more: &[&str]| -> Vec<String> {
        let own = ["--model", base.to_str().unwrap(), "--cache-mib", "16", "--device", "auto"];
        own.iter().chain(more).map(|&arg| arg.to_owned()).collect()
    };
    for (more, device) in [(&[][..], "cuda:0"), (&["--quantize", "q8"], "cpu")] {
        let generator = Process::start_in("attune-generator", args(more), &card.variables()).unwrap();
        let described = client(&generator).await.describe(DescribeRequest {}).await.unwrap().into_inner();
        assert_eq!(described.device, device);
        assert_eq!(
            Generated::of(&mut client(&generator).await, by_ids(&[1, 2, 3], 5)).await.unwrap().ids().len(),
            5
        );
    }
    if !Path::new("/proc/driver/nvidia").exists() {
        let generator = Process::start("attune-generator", args(&[])).unwrap();
        let described = client(&generator).await.describe(DescribeRequest {}).await.unwrap().into_inner();
        assert_eq!(described.device, "cpu");
    }
}

#[tokio::test]
async fn too_little_memory_refuses_the_newest_text_alone() {
    let Some(card) = Card::new() else { return };
    let generator = card.start("attune-generator", "base", &[]);
    let mut other = client(&generator).await;
    let mut old = other.generate(by_ids(&[1, 2, 3], 200)).await.unwrap().into_inner();
    let mut tokens = old.message().await.unwrap().unwrap().tokens.len();
    // A step of one text needs little, the reading of a long prompt more.
    card.trouble("attune-generator", "full 8000");
    let status = Generated::of(&mut other, long_prompt()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(status.message().contains("memory is full"), "{status}");
    while let Some(message) = old.message().await.unwrap() {
        tokens += message.tokens.len();
    }
    assert_eq!(tokens, 200);
    std::fs::remove_file(card.path("attune-generator")).unwrap();
    assert_eq!(Generated::of(&mut other, long_prompt()).await.unwrap().ids().len(), 4);
}

#[tokio::test]
async fn a_broken_card_ends_its_generator() {
    let Some(card) = Card::new() else { return };
    let mut generator = card.start("attune-generator", "base", &[]);
    let mut text = client(&generator).await.generate(by_ids(&[1, 2, 3], 400)).await.unwrap().into_inner();
    text.message().await.unwrap().unwrap();
    card.trouble("attune-generator", "broken");
    let status = loop {
        match text.message().await {
            Ok(message) => assert!(message.is_some(), "the text ended well"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(
        status.message().contains("device has failed") && status.message().contains("resume"),
        "{status}"
    );
    assert_eq!(generator.wait().unwrap(), Some(1));
}

#[tokio::test]
async fn sessions_move_from_a_broken_card_to_another_worker() {
    let Some(card) = Card::new() else { return };
    let mut first = card.start("attune-reward", "persrm", &[]);
    let base = card.path("base");
    let args = ["--model", base.to_str().unwrap(), "--cache-mib", "64", "--threads", "1"];
    let persrm = card.path("persrm");
    let second =
        Process::start("attune-reward", ["--model", persrm.to_str().unwrap(), "--threads", "1"]).unwrap();
    let workers = ["--reward", &first.endpoint, "--reward", &second.endpoint];
    let generator = Process::start("attune-generator", args.iter().chain(&workers)).unwrap();
    let request = || {
        let mut request = by_ids(&[1, 2, 3], 60);
        request.guidances = vec![guided(1.2), guided(-0.5), guided(0.3), guided(0.4)];
        request
    };
    let mut client = client(&generator).await;
    let mut text = client.generate(request()).await.unwrap().into_inner();
    let mut tokens = text.message().await.unwrap().unwrap().tokens.len();
    card.trouble("attune-reward", "broken");
    while let Some(message) = text.message().await.unwrap() {
        assert!(message.tokens.iter().all(|token| token.guided));
        tokens += message.tokens.len();
    }
    assert_eq!(tokens, 60);
    // The first worker learns of it when it computes: the texts go on until one of them had a session there.
    let broken = async {
        while !first.has_ended().unwrap() {
            let answer = Generated::of(&mut client, request()).await.unwrap();
            assert!(answer.tokens.len() == 60 && answer.tokens.iter().all(|token| token.guided));
        }
    };
    tokio::time::timeout(PATIENCE, broken).await.expect("a broken card ends its worker");
    assert_eq!(first.wait().unwrap(), Some(1));
}
