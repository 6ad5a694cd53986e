//! `attune profile` and `attune generate --profile`, against a running pair.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that fails should say where

use std::process::{Command, Output};

use attune_engine::random_checkpoint::{Family, Shape};
use attune_service::secret::Secret;
use attune_tests::{Pair, binary};
use serde_json::Value;

struct Running {
    pair: Pair,
    folder: tempfile::TempDir,
}

impl Running {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = Secret::new(format!("sqlite:{}", folder.path().join("profiles.db").display()));
        let shape = Shape { max_position: 512, ..Shape::tiny(Family::Llama) };
        let keep = |config: &mut attune_reward::RewardConfig| config.profiles.url = Some(url);
        let pair = Pair::random_with(&shape, (1, 2), |_| (), keep).await.unwrap();
        // A text that is guided waits for the worker, which the commands do not.
        let running = Self { pair, folder };
        running.said(&["generate", "How?", "--prefer", "brief", "--max-tokens", "1"]).await;
        running
    }

    async fn attune(&self, args: &[&str]) -> Output {
        let mut command = Command::new(binary("attune").unwrap());
        command.args(args).env("ATTUNE_ENDPOINT", &self.pair.endpoint);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    async fn said(&self, args: &[&str]) -> String {
        let output = self.attune(args).await;
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    async fn refused(&self, args: &[&str]) -> String {
        let output = self.attune(args).await;
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_string_lossy().into_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_from_its_making_to_its_end() {
    let running = Running::start().await;
    let made = running.said(&["profile", "put", "me", "--text", "brief, please", "--new"]).await;
    assert!(made.contains("me (revision 1)") && made.contains("brief, please"), "{made}");
    assert!(!made.contains('\u{1b}'), "colour is for terminals");
    let again = running.refused(&["profile", "put", "me", "--text", "x", "--new"]).await;
    assert!(again.contains("ABORTED") && again.contains("revision 1"), "{again}");
    let d = Shape::tiny(Family::Llama).hidden;
    let weights = running.path("weights.json");
    let numbers: Vec<f32> = (0..d).map(|i| 0.5 + i as f32 * 0.1).collect();
    std::fs::write(&weights, serde_json::to_string(&numbers).unwrap()).unwrap();
    let put = ["profile", "put", "me", "--text", "brief", "--weights", &weights, "--revision", "1", "--json"];
    let kept: Value = serde_json::from_str(&running.said(&put).await).unwrap();
    assert_eq!((&kept["revision"], &kept["text"]), (&2.into(), &"brief".into()));

    // It guides, beside words, each with its strength.
    let generate =
        ["generate", "How?", "--profile", "me", "--prefer", "long", "--strength", "1", "--strength", "2"];
    let last = running.said(&[&generate[..], &["--max-tokens", "4", "--json"]].concat()).await;
    let last: Value = serde_json::from_str(last.lines().last().unwrap()).unwrap();
    let used: Vec<_> =
        last["guidances"].as_array().unwrap().iter().map(|g| (&g["text"], &g["profile_revision"])).collect();
    assert_eq!(used, [(&"long".into(), &0.into()), (&"brief".into(), &2.into())]);

    // Out into a file, and in again under another name.
    let file = running.path("me.json");
    running.said(&["profile", "export", "me", "--feedback", "--out", &file]).await;
    let exported: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(exported["weights"].as_array().unwrap().len(), d);
    let there = running.refused(&["profile", "export", "me", "--out", &file]).await;
    assert!(there.contains("me.json"), "a file that is there is not written over: {there}");
    // With feedback that somebody kept elsewhere, for a model that is not here.
    let mut edited = exported.clone();
    edited["model_revision"] = "f0f0".into();
    edited["feedback"] = serde_json::json!([{"prompt": "How?", "chosen": "so", "rejected": "or so"}]);
    std::fs::write(running.path("old.json"), edited.to_string()).unwrap();
    let imported = running.said(&["profile", "import", &running.path("old.json"), "--name", "old"]).await;
    assert!(imported.contains("old (revision 1)") && imported.contains("1 answers"), "{imported}");
    let refused = running.refused(&["generate", "How?", "--profile", "old"]).await;
    assert!(refused.contains("FAILED_PRECONDITION") && refused.contains("f0f0"), "{refused}");
    running.said(&["profile", "export", "old", "--feedback", "--out", &running.path("again.json")]).await;
    let again: Value =
        serde_json::from_str(&std::fs::read_to_string(running.path("again.json")).unwrap()).unwrap();
    for field in ["weights", "text", "model_revision", "feedback"] {
        assert_eq!(again[field], edited[field], "{field}");
    }
    assert!(running.refused(&["profile", "import", &weights]).await.contains("no exported profile"));

    let list = running.said(&["profile", "list"]).await;
    assert!(list.lines().count() == 3 && list.contains("me ") && list.contains("old "), "{list}");
    running.said(&["profile", "delete", "me"]).await;
    let gone = running.refused(&["profile", "get", "me"]).await;
    assert!(gone.contains("NOT_FOUND") && gone.contains("`me`"), "{gone}");
    running.said(&["profile", "delete", "old"]).await;
    assert!(running.said(&["profile", "list"]).await.contains("no profiles"));
    assert_eq!(running.said(&["profile", "list", "--json"]).await, "");
    running.pair.stop().await.unwrap();
}
