//! What other languages do with a pair: the Python client's own tests, and every example of
//! `docs/clients.md`, as it stands there.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that fails should say where

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use attune_tests::{Authority, Process, binary, left_out, workspace_root};

const DOCS: &str = include_str!("../../docs/clients.md");
/// What the examples call the two generators.
const PLAIN: &str = "127.0.0.1:50051";
const SECURED: &str = "attune.example:50051";

/// A worker, a generator in plain text, and one that wants certificates and tokens; and a folder with what
/// its client needs, in which the examples run.
struct Doors {
    folder: tempfile::TempDir,
    plain: Process,
    secured: Process,
    _worker: Process,
}

impl Doors {
    fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let authority = Authority::new("authority").unwrap();
        let ca = authority.write(path, "ca.pem").unwrap();
        let door = authority.issue(path, "door", &["127.0.0.1"]).unwrap();
        authority.issue(path, "client", &["client.example"]).unwrap();
        let token = path.join("client.token");
        let mut attune = Command::new(binary("attune").unwrap());
        let known = run(attune.args(["token", "new", "client", "--out"]).arg(&token));
        std::fs::write(path.join("tokens"), known).unwrap();

        let models = workspace_root().join("models/demo");
        let model = |name: &str| models.join(name).to_string_lossy().into_owned();
        let store = format!("profiles.url=sqlite:{}", path.join("profiles.db").display());
        let persrm = model("persrm");
        let args = ["--model", &persrm, "--threads", "1", "--set", &store];
        let worker = Process::start("attune-reward", args).unwrap();
        let base = model("base");
        let common = ["--model", &base, "--threads", "1", "--reward", &worker.endpoint];
        let plain = Process::start("attune-generator", common).unwrap();
        let settings = [
            ("server.tls.cert", door.cert.to_string_lossy().into_owned()),
            ("server.tls.key", door.key.to_string_lossy().into_owned()),
            ("server.tls.client_ca", ca.to_string_lossy().into_owned()),
            ("server.tls.client_names", "client.example".to_owned()),
            ("auth.tokens", path.join("tokens").to_string_lossy().into_owned()),
        ]
        .map(|(key, value)| format!("{key}={value}"));
        let settings = settings.iter().flat_map(|setting| ["--set", setting]);
        let secured = Process::start("attune-generator", common.into_iter().chain(settings)).unwrap();
        Self { folder, plain, secured, _worker: worker }
    }

    /// The blocks of one kind in a section of the docs, with the addresses of these doors.
    fn examples(&self, section: &str, kind: &str) -> Vec<String> {
        let begin = DOCS.find(&format!("\n## {section}\n")).expect(section) + 1;
        let section = &DOCS[begin..];
        let section = section.find("\n## ").map_or(section, |end| &section[..end]);
        let fence = format!("\n```{kind}\n");
        let blocks: Vec<String> = section
            .split(&fence)
            .skip(1)
            .map(|block| {
                let block = block.split("\n```").next().unwrap_or_default();
                let address = |process: &Process| process.endpoint.replace("http://", "");
                block.replace(PLAIN, &address(&self.plain)).replace(SECURED, &address(&self.secured)) + "\n"
            })
            .collect();
        assert!(!blocks.is_empty(), "{kind}");
        blocks
    }
}

/// Runs to the end, and gives what was printed.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?} failed\n{out}\n{err}");
    out.into_owned()
}

/// Bash in a folder, with the project's tools, that stops at the first failure.
fn bash(folder: &Path, script: &str) -> String {
    let path = std::env::join_paths(search_path()).unwrap();
    run(Command::new("bash").args(["-euo", "pipefail", "-c", script]).env("PATH", path).current_dir(folder))
}

/// Where `.ci/run` puts what the tests need.
fn tools() -> PathBuf {
    workspace_root().canonicalize().unwrap().join("target/tools")
}

fn search_path() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    [tools()].into_iter().chain(std::env::split_paths(&path)).collect()
}

/// Whether all of these programs are there; else says what is left out.
fn have(programs: &[&str], what: &str) -> bool {
    let path = search_path();
    let missing = programs.iter().find(|program| !path.iter().any(|folder| folder.join(program).exists()));
    if let Some(missing) = missing {
        left_out(&format!("{what}: {missing} is not installed"));
    }
    missing.is_none()
}

/// The Python that has the client and what its tests need.
fn python(what: &str) -> Option<PathBuf> {
    have(&["python/bin/python"], what).then(|| tools().join("python/bin/python"))
}

#[test]
fn the_python_clients_own_tests_pass() {
    let Some(python) = python("the Python client's own tests") else { return };
    let bin = binary("attune").unwrap().parent().unwrap().to_path_buf();
    for checked in [&["pytest"][..], &["mypy", "--cache-dir", env!("CARGO_TARGET_TMPDIR")]] {
        let mut command = Command::new(&python);
        command.arg("-m").args(checked).current_dir(workspace_root().join("clients/python"));
        run(command.env("ATTUNE_BIN", &bin).env("PYTHONDONTWRITEBYTECODE", "1"));
    }
}

#[test]
fn the_python_examples_run() {
    let Some(python) = python("the Python examples") else { return };
    let doors = Doors::open();
    let examples = doors.examples("Python", "python");
    let said = ["ended by eos", "in a polite tone: ", "sampling.top_p: is 2", "revision 2", "base\n"];
    assert_eq!(examples.len(), said.len());
    for (example, said) in examples.iter().zip(said) {
        let out = run(Command::new(&python).args(["-c", example]).current_dir(doors.folder.path()));
        assert!(out.contains(said), "{example}\n{out}");
    }
}

#[test]
fn the_go_examples_run() {
    if !have(&["go", "buf", "protoc-gen-go", "protoc-gen-go-grpc"], "the Go examples") {
        return;
    }
    let doors = Doors::open();
    let folder = doors.folder.path();
    let files = [doors.examples("Go", "yaml"), doors.examples("Go", "go")].concat();
    for file in files {
        let name = file.lines().next().unwrap_or_default().trim_start_matches(['/', '#', ' ']);
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, &file).unwrap();
    }
    std::os::unix::fs::symlink(workspace_root().canonicalize().unwrap(), folder.join("attune")).unwrap();
    let out = bash(folder, &doors.examples("Go", "sh").concat());
    for said in ["tokens, FINISH_REASON_EOS", "sampling.top_p: ", "base in bf16"] {
        assert!(out.contains(said), "{out}");
    }
}

#[test]
fn the_grpcurl_examples_run() {
    if !have(&["grpcurl"], "the grpcurl examples") {
        return;
    }
    let doors = Doors::open();
    let examples = doors.examples("grpcurl", "sh");
    assert_eq!(examples.len(), 2);
    let plain = bash(doors.folder.path(), &examples[0]);
    for said in ["attune.generator.v1.GeneratorService\n", "\"modelId\": \"base\"", "FINISH_REASON_LENGTH"] {
        assert!(plain.contains(said), "{plain}");
    }
    let secured = bash(doors.folder.path(), &examples[1]);
    assert!(secured.contains("\"modelId\": \"base\""), "{secured}");
}
