//! `attune train` as people use it: on a file of theirs, interrupted by ctrl-c, and gone on with.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that fails should say where

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    process::{Command, Output, Stdio},
};

use attune_engine::random_checkpoint::{self, Family, Kind, Shape};
use attune_tests::{Process, binary};

fn attune(args: &[&str]) -> Command {
    let mut command = Command::new(binary("attune").unwrap());
    command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    attune(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn an_interrupted_training_goes_on_to_the_same_bytes_and_is_served() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name).to_string_lossy().into_owned();
    let shape = Shape { tied: true, ..Shape::tiny(Family::Llama) };
    random_checkpoint::write(&root.path().join("base"), &shape, 3, Kind::Base).unwrap();
    let data = path("pairs.jsonl");
    assert!(run(&["train", "data", "--pairs", "40", "--out", &data]).status.success());
    assert_eq!(fs::read_to_string(&data).unwrap().lines().count(), 40);

    let (base, whole, pieces) = (path("base"), path("whole"), path("pieces"));
    let settings =
        ["--lora", "2", "--rate", "0.01", "--batch", "2", "--epochs", "6", "--checkpoint-every", "50"];
    let train = |out: &str, more: &[&str]| {
        let given = ["train", "persrm", "--model", &base, "--data", &data, "--out", out];
        attune(&[&given[..], &settings, more].concat())
    };
    let done = train(&whole, &[]).output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert!(text(&done.stdout).contains("40 lines"), "{}", text(&done.stdout));

    let mut child = train(&pieces, &[]).spawn().unwrap();
    // Its first line says that some of the 120 steps are done.
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    stderr.read_line(&mut said).unwrap();
    assert!(said.contains("/120 loss"), "{said}");
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    stderr.read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{said}");
    assert!(said.contains("--resume"), "{said}");
    assert!(!root.path().join("pieces/adapter_model.safetensors").exists());

    let done = train(&pieces, &["--resume"]).output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    for file in ["adapter_model.safetensors", "loss.jsonl", "loss.svg", "attune.json"] {
        let bytes = |out: &str| fs::read(root.path().join(out).join(file)).unwrap();
        assert_eq!(bytes("pieces"), bytes("whole"), "{file}");
    }

    // The adapter is served on its base, and its reference is the base.
    let worker =
        Process::start("attune-reward", ["--model", &pieces, "--base-model", &base, "--threads", "1"])
            .unwrap();
    let described = run(&["describe", "--endpoint", &worker.endpoint]);
    assert!(described.status.success(), "{}", text(&described.stderr));
    assert!(text(&described.stdout).to_lowercase().contains("model"), "{}", text(&described.stdout));
}

#[test]
fn what_is_wrong_is_named() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name).to_string_lossy().into_owned();
    random_checkpoint::write(&root.path().join("base"), &Shape::tiny(Family::Llama), 3, Kind::Base).unwrap();
    let good = r#"{"prompt": "a", "preference": "b", "chosen": "c", "rejected": "d"}"#;
    fs::write(path("bad.jsonl"), format!("{good}\n{{\"prompt\": \"a\"}}\n")).unwrap();
    let (base, bad, out) = (path("base"), path("bad.jsonl"), path("out"));
    let train = |more: &[&str]| {
        let given = ["train", "persrm", "--model", &base, "--data", &bad, "--out", &out];
        let output = run(&[&given[..], more].concat());
        assert!(!output.status.success());
        text(&output.stderr)
    };
    let error = train(&[]);
    assert!(error.contains("bad.jsonl, line 2") && error.contains("chosen"), "{error}");
    assert!(train(&["--stage", "two", "--lora", "4"]).contains("--lora belongs to stage one"));
    assert!(train(&["--weights-alone"]).contains("--weights-alone belongs to stage two"));
    assert!(train(&["--rate=-1"]).contains("no number above 0"));
    assert!(train(&["--resume"]).contains("line 2"), "the data is read first");
}
