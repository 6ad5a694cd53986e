//! Models from a hub: a small server on loopback answers as the hub's API does.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that fails should say where

use std::{
    collections::BTreeMap,
    env, fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
    thread,
};

use attune_engine::hub::{resolve, resolve_config, resolve_into};
use serde_json::json;
use tempfile::TempDir;

const FIRST: &str = "1111111111111111111111111111111111111111";
const SECOND: &str = "2222222222222222222222222222222222222222";

/// One repository, `org/tiny`, whose branch `main` stands at `commit`.
struct Repository {
    commit: String,
    files: BTreeMap<String, Vec<u8>>,
    /// Sends this share of a file only, without saying so.
    short: Option<String>,
    requests: Vec<String>,
    tokens: Vec<String>,
}

struct Hub {
    endpoint: String,
    state: Arc<Mutex<Repository>>,
}

impl Hub {
    fn start(files: &[(&str, &str)]) -> Self {
        let files = files.iter().map(|(name, text)| (name.to_string(), text.as_bytes().to_vec())).collect();
        let state = Arc::new(Mutex::new(Repository {
            commit: FIRST.to_owned(),
            files,
            short: None,
            requests: Vec::new(),
            tokens: Vec::new(),
        }));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::clone(&state);
        // Ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = answer(stream.unwrap(), &shared);
            }
        });
        Self { endpoint, state }
    }

    fn change(&self, change: impl FnOnce(&mut Repository)) {
        change(&mut self.state.lock().unwrap());
    }

    /// The paths asked for since the last call.
    fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().requests)
    }

    fn resolve(&self, cache: &TempDir) -> Result<std::path::PathBuf, String> {
        resolve_into("org/tiny", None, Some(&self.endpoint), Some(cache.path())).map_err(|e| e.to_string())
    }
}

fn answer(stream: TcpStream, state: &Mutex<Repository>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut range = None;
    let mut state = state.lock().unwrap();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "range" => range = value.strip_prefix("bytes=").and_then(|r| r.split_once('-')).map(parse_range),
            "authorization" => state.tokens.push(value.to_owned()),
            _ => {}
        }
    }
    state.requests.push(path.clone());
    let commit = state.commit.clone();
    if let Some(revision) = path.strip_prefix("/api/models/org/tiny/revision/")
        && (revision == "main" || revision == commit)
    {
        let siblings: Vec<_> = state.files.keys().map(|name| json!({"rfilename": name})).collect();
        let body = json!({"sha": commit, "siblings": siblings}).to_string();
        return respond(stream, "200 OK", &format!("Content-Length: {}\r\n", body.len()), body.as_bytes());
    }
    let name = path.strip_prefix(&format!("/org/tiny/resolve/{commit}/")).unwrap_or_default().to_owned();
    let Some(content) = state.files.get(&name) else {
        return respond(stream, "404 Not Found", "Content-Length: 0\r\n", b"");
    };
    let (start, end) = range.unwrap_or((0, None));
    let end = end.unwrap_or(content.len() - 1);
    let body = &content[start..=end];
    let common = format!(
        "Content-Range: bytes {start}-{end}/{}\r\nETag: \"{name}-{commit}\"\r\nX-Repo-Commit: {commit}\r\n",
        content.len()
    );
    if state.short.as_ref() == Some(&name) && body.len() > 1 {
        return respond(stream, "206 Partial Content", &common, &body[..body.len() / 2]);
    }
    respond(stream, "206 Partial Content", &format!("{common}Content-Length: {}\r\n", body.len()), body)
}

fn parse_range((start, end): (&str, &str)) -> (usize, Option<usize>) {
    (start.parse().unwrap_or(0), end.parse().ok())
}

fn respond(mut stream: TcpStream, status: &str, headers: &str, body: &[u8]) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\n{headers}\r\n")?;
    stream.write_all(body)
}

const INDEX: &str =
    r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}"#;
const SHARDED: [(&str, &str); 9] = [
    ("README.md", "not for us"),
    ("attune.json", "{}"),
    ("config.json", "{\"a\": 1}"),
    ("model-1.safetensors", "one"),
    ("model-2.safetensors", "second"),
    ("model-3.safetensors", "not in the index"),
    ("model.safetensors.index.json", INDEX),
    ("pytorch_model.bin", "never"),
    ("tokenizer.json", "{}"),
];

#[test]
fn a_checkpoint_is_fetched_once_and_only_what_is_needed() {
    let (hub, cache) = (Hub::start(&SHARDED), TempDir::new().unwrap());
    let folder = hub.resolve(&cache).unwrap();
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    assert_eq!(read("config.json"), "{\"a\": 1}");
    assert_eq!((read("model-1.safetensors"), read("model-2.safetensors")), ("one".into(), "second".into()));
    let mut names: Vec<_> =
        fs::read_dir(&folder).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let wanted = ["attune.json", "config.json", "model-1.safetensors", "model-2.safetensors"];
    assert_eq!(names, [&wanted[..], &["model.safetensors.index.json", "tokenizer.json"]].concat());

    hub.requests();
    assert_eq!(hub.resolve(&cache).unwrap(), folder);
    assert_eq!(hub.requests(), ["/api/models/org/tiny/revision/main"]);
}

#[test]
fn a_configuration_is_fetched_without_its_weights() {
    let (hub, cache) = (Hub::start(&SHARDED), TempDir::new().unwrap());
    let resolve = || resolve_config("org/tiny", None, Some(&hub.endpoint), Some(cache.path())).unwrap();
    let folder = resolve();
    assert_eq!(fs::read_to_string(folder.join("config.json")).unwrap(), "{\"a\": 1}");
    let asked = hub.requests();
    assert!(!asked.iter().any(|path| path.contains("model-") || path.contains("tokenizer")), "{asked:?}");
    // What is missing is fetched when the checkpoint is wanted.
    assert_eq!(hub.resolve(&cache).unwrap(), folder);
    assert!(folder.join("tokenizer.json").exists());
}

#[test]
fn a_branch_that_moves_on_is_followed_and_a_commit_stays() {
    let (hub, cache) = (Hub::start(&SHARDED), TempDir::new().unwrap());
    let first = hub.resolve(&cache).unwrap();
    hub.change(|repository| {
        repository.commit = SECOND.to_owned();
        repository.files.insert("config.json".to_owned(), b"{\"a\": 2}".to_vec());
    });
    let second = hub.resolve(&cache).unwrap();
    assert_eq!(fs::read_to_string(first.join("config.json")).unwrap(), "{\"a\": 1}");
    assert_eq!(fs::read_to_string(second.join("config.json")).unwrap(), "{\"a\": 2}");
    let pinned = resolve_into("org/tiny", Some(SECOND), Some(&hub.endpoint), Some(cache.path())).unwrap();
    assert_eq!(pinned, second);
}

#[test]
fn a_whole_copy_in_the_cache_does_without_the_hub() {
    let (hub, cache) = (Hub::start(&SHARDED), TempDir::new().unwrap());
    let folder = hub.resolve(&cache).unwrap();
    // A port that was free a moment ago refuses.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let dead = format!("http://127.0.0.1:{port}");
    let offline =
        || resolve_into("org/tiny", None, Some(&dead), Some(cache.path())).map_err(|e| e.to_string());
    assert_eq!(offline().unwrap(), folder);
    fs::remove_file(folder.join("model-2.safetensors")).unwrap();
    let error = offline().unwrap_err();
    assert!(error.contains("cannot be reached") && error.contains(&dead), "{error}");
}

#[test]
fn what_is_no_model_says_what_was_tried() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().to_str().unwrap();
    assert_eq!(resolve(path, None, None).unwrap(), folder.path());
    let file = folder.path().join("model.gguf");
    fs::write(&file, "x").unwrap();
    let error = |model: &str| resolve(model, None, None).unwrap_err().to_string();
    assert_eq!(resolve(file.to_str().unwrap(), None, None).unwrap(), file);
    let file = folder.path().join("model.safetensors");
    fs::write(&file, "x").unwrap();
    assert!(error(file.to_str().unwrap()).contains("is a file"));
    for model in ["no-such-folder", "./a/b/c", "", "http://x/y", "../up"] {
        let error = error(model);
        assert!(error.contains("folder") && error.contains("org/name"), "{error}");
    }
    assert!(resolve("org/tiny", Some("../x"), None).unwrap_err().to_string().contains("revision"));

    let (hub, cache) = (Hub::start(&SHARDED), TempDir::new().unwrap());
    let missing =
        resolve_into("org/other", None, Some(&hub.endpoint), Some(cache.path())).unwrap_err().to_string();
    assert!(missing.contains("no such folder") && missing.contains("404"), "{missing}");
}

#[test]
fn a_repository_that_is_no_checkpoint_is_refused() {
    let refused = |change: &dyn Fn(&mut Repository)| {
        let (hub, cache) = (Hub::start(&SHARDED), TempDir::new().unwrap());
        hub.change(|repository| change(repository));
        hub.resolve(&cache).unwrap_err()
    };
    let index = |text: &'static str| {
        refused(&move |r: &mut Repository| {
            r.files.insert("model.safetensors.index.json".to_owned(), text.as_bytes().to_vec());
        })
    };
    assert!(refused(&|r| drop(r.files.remove("tokenizer.json"))).contains("no tokenizer.json"));
    assert!(refused(&|r| drop(r.files.remove("model.safetensors.index.json"))).contains("neither"));
    assert!(refused(&|r| drop(r.files.remove("model-2.safetensors"))).contains("model-2.safetensors"));
    assert!(refused(&|r| r.commit = "../../x".to_owned()).contains("commit"));
    assert!(index(r#"{"weight_map": {"a": "../x.safetensors"}}"#).contains("plain file name"));
    assert!(index("nonsense").contains("index.json"));
}

#[test]
fn a_file_that_breaks_off_is_not_kept() {
    let (hub, cache) = (Hub::start(&SHARDED), TempDir::new().unwrap());
    hub.change(|repository| repository.short = Some("model-2.safetensors".to_owned()));
    let error = hub.resolve(&cache).unwrap_err();
    assert!(error.contains("model-2.safetensors") && error.contains("whole"), "{error}");
    hub.change(|repository| repository.short = None);
    let folder = hub.resolve(&cache).unwrap();
    assert_eq!(fs::read_to_string(folder.join("model-2.safetensors")).unwrap(), "second");
}

/// Runs the next test in a process of its own, since an environment belongs to a process.
#[test]
fn the_hubs_own_environment_is_honoured() {
    let (hub, home) = (Hub::start(&SHARDED), TempDir::new().unwrap());
    let done = Command::new(env::current_exe().unwrap())
        .args(["--exact", "resolve_by_the_environment", "--ignored"])
        .env("HF_HOME", home.path())
        .env("HF_ENDPOINT", &hub.endpoint)
        .env("HF_TOKEN", "secret")
        .env_remove("HF_HUB_CACHE")
        .status()
        .unwrap();
    assert!(done.success());
    assert!(home.path().join("hub").join("models--org--tiny").is_dir());
    let state = hub.state.lock().unwrap();
    assert!(!state.tokens.is_empty() && state.tokens.iter().all(|token| token == "Bearer secret"));
}

#[test]
#[ignore = "a part of the test above"]
fn resolve_by_the_environment() {
    let Some(home) = env::var_os("HF_HOME") else { return };
    assert!(resolve("org/tiny", None, None).unwrap().starts_with(Path::new(&home)));
}
