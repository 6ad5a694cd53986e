//! What people write, and what they show to be let in, stands in no log, whatever is asked to be logged.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that fails should say where

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use attune_proto::{
    generator::v1::{
        GenerateRequest, GuidanceTerm, Sampling, generator_service_client::GeneratorServiceClient,
    },
    profile::v1::{Profile, PutRequest, profile_service_client::ProfileServiceClient},
    reward::v1::Guidance,
};
use attune_service::auth::new_token;
use attune_tests::{Generated, Process, say, workspace_root};
use tonic::{Code, Request};

/// Words that nothing else says.
const PROMPT: &str = "xylographer";
const PREFERENCE: &str = "quixotically";
const STOP: &str = "zephyrine";
const TASTE: &str = "sesquipedalian";

fn model(name: &str) -> String {
    workspace_root().join("models/demo").join(name).to_string_lossy().into_owned()
}

fn request(method: &str) -> GenerateRequest {
    let guidance =
        Guidance { text: Some(PREFERENCE.to_owned()), method: method.to_owned(), ..Guidance::default() };
    let mut request = say(&format!("How do I bake the {PROMPT}?"), 40);
    request.guidances = vec![GuidanceTerm { guidance: Some(guidance.into()), ..GuidanceTerm::default() }];
    let sampling = request.sampling.take();
    request.sampling = sampling.map(|s| Sampling { stop: vec![STOP.to_owned()], ..s });
    request
}

fn by<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

/// What both services log of a text that succeeds, of some that are refused, and of their own end; and the
/// answer, with the token that was shown.
async fn logged(folder: &Path, extra: &[&str]) -> (String, String, String) {
    let token = new_token("alice").unwrap();
    let tokens = folder.join("tokens");
    std::fs::write(&tokens, &token.line).unwrap();
    let log = |name: &str| -> (PathBuf, File) {
        let path = folder.join(name);
        (path.clone(), File::create(path).unwrap())
    };
    let start = |name: &str, own: &[&str]| {
        let (path, file) = log(name);
        let args = ["--threads", "1", "--log", "trace"].iter().chain(own).chain(extra);
        (path, Process::start_logging(name, "127.0.0.1:0", args, file).unwrap())
    };
    let profiles = format!("profiles.url=sqlite:{}", folder.join("profiles.db").display());
    let (worker_log, worker) = start("attune-reward", &["--model", &model("persrm"), "--set", &profiles]);
    let auth = format!("auth.tokens={}", tokens.display());
    let own = ["--model", &model("base"), "--reward", &worker.endpoint, "--set", &auth];
    let (generator_log, generator) = start("attune-generator", &own);

    let mut client = GeneratorServiceClient::connect(generator.endpoint.clone()).await.unwrap();
    let shown = token.token.expose();
    let answer = Generated::of(&mut client, by(shown, request(""))).await.unwrap();
    assert!(answer.text.len() > 20 && answer.tokens.iter().all(|t| t.guided), "{answer:?}");
    let mut long = request("");
    long.prompt = say(&PROMPT.repeat(2000), 1).prompt;
    for (refused, code) in [(request("magic"), Code::NotFound), (long, Code::InvalidArgument)] {
        let status = Generated::of(&mut client, by(shown, refused)).await.unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
    }
    let status = Generated::of(&mut client, by(&shown[..40], request(""))).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let mut profiles = ProfileServiceClient::connect(generator.endpoint.clone()).await.unwrap();
    let put = |expected_revision| {
        let profile = Profile { name: "me".into(), text: Some(TASTE.into()), ..Profile::default() };
        PutRequest { profile: Some(profile), expected_revision, ..PutRequest::default() }
    };
    profiles.put(by(shown, put(None))).await.unwrap();
    assert_eq!(profiles.put(by(shown, put(Some(9)))).await.unwrap_err().code(), Code::Aborted);
    let guidance = Guidance { profile: Some("me".into()), ..Guidance::default() };
    let mut kept = request("");
    kept.guidances = vec![GuidanceTerm { guidance: Some(guidance.into()), ..GuidanceTerm::default() }];
    let kept = Generated::of(&mut client, by(shown, kept)).await.unwrap();
    assert_eq!(kept.finish.guidances[0].text.as_deref(), Some(TASTE));
    drop((client, profiles));
    assert_eq!(generator.terminate().unwrap(), Some(0));
    assert_eq!(worker.terminate().unwrap(), Some(0));
    let read = |path| String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned();
    (read(generator_log) + &read(worker_log), answer.text, shown.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_and_tokens_stand_in_no_log() {
    for format in ["text", "json"] {
        let folder = tempfile::tempdir().unwrap();
        let (log, answer, token) = logged(folder.path(), &["--set", &format!("log.format={format}")]).await;
        assert!(log.contains("is loaded") && log.contains("attune_generator"), "{log}");
        // A part of a token is one too many as well: the refused caller showed 40 characters of it.
        for secret in [PROMPT, PREFERENCE, STOP, TASTE, &answer[..16], &token[..24]] {
            let line = log.lines().find(|line| line.contains(secret));
            assert_eq!(line, None, "{format}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_who_asks_for_texts_sees_them() {
    let folder = tempfile::tempdir().unwrap();
    let (log, ..) = logged(folder.path(), &["--set", "log_content=true"]).await;
    for text in [PROMPT, PREFERENCE, STOP] {
        assert!(log.contains(text), "{text}");
    }
}
