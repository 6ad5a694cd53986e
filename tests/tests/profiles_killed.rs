//! Workers that die while they keep profiles, and a disk that is full.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that fails should say where

use std::{
    collections::BTreeMap,
    path::Path,
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use attune_engine::random_checkpoint::{Family, Kind, Shape, write};
use attune_proto::profile::v1::{
    GetRequest, ListRequest, Profile, PutRequest, profile_service_client::ProfileServiceClient,
};
use attune_tests::{Postgres, Process, binary};
use tokio::{sync::Notify, task::JoinSet};
use tonic::{Code, transport::Channel};

fn model(folder: &Path) -> String {
    let path = folder.join("persrm");
    write(&path, &Shape::tiny(Family::Llama), 2, Kind::PersRm { value_head: true }).unwrap();
    path.to_string_lossy().into_owned()
}

fn worker(model: &str, url: &str) -> Process {
    let profiles = format!("profiles.url={url}");
    Process::start(
        "attune-reward",
        ["--model", model, "--threads", "1", "--cache-mib", "16", "--set", &profiles],
    )
    .unwrap()
}

async fn client(worker: &Process) -> ProfileServiceClient<Channel> {
    ProfileServiceClient::connect(worker.endpoint.clone()).await.unwrap()
}

fn put(name: &str, text: &str) -> PutRequest {
    let profile = Profile { name: name.into(), text: Some(text.into()), ..Profile::default() };
    PutRequest { profile: Some(profile), ..PutRequest::default() }
}

/// What was acknowledged: names, and the last revision of each.
type Acknowledged = Arc<Mutex<BTreeMap<String, u64>>>;

/// Puts profiles, new ones and changes, until the worker is gone.
async fn write_on(
    mut client: ProfileServiceClient<Channel>,
    who: usize,
    acknowledged: Acknowledged,
    so_far: Arc<(AtomicUsize, Notify)>,
) {
    for i in 0.. {
        let name = format!("{who} {}", i % 40);
        match client.put(put(&name, &format!("change {i} ").repeat(20))).await {
            Ok(kept) => {
                let revision = kept.into_inner().profile.unwrap().revision;
                acknowledged.lock().unwrap().insert(name, revision);
                so_far.0.fetch_add(1, Ordering::Relaxed);
                so_far.1.notify_one();
            }
            Err(_) => return,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_loses_no_acknowledged_profile() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    let server = Postgres::start().unwrap();
    let sqlite = format!("sqlite:{}", folder.path().join("profiles.db").display());
    for url in std::iter::once(sqlite).chain(server.iter().map(Postgres::url)) {
        let acknowledged = Acknowledged::default();
        for round in 1..=3 {
            let process = worker(&model, &url);
            let so_far = Arc::new((AtomicUsize::new(0), Notify::new()));
            let mut writers = JoinSet::new();
            for who in 0..4 {
                let client = client(&process).await;
                writers.spawn(write_on(client, who, Arc::clone(&acknowledged), Arc::clone(&so_far)));
            }
            while so_far.0.load(Ordering::Relaxed) < 50 * round {
                so_far.1.notified().await;
            }
            // Dropped is killed, in the middle of whatever is being written.
            drop(process);
            writers.join_all().await;
            let process = worker(&model, &url);
            let mut client = client(&process).await;
            let there: BTreeMap<String, u64> = list(&mut client).await;
            let acknowledged = acknowledged.lock().unwrap().clone();
            for (name, revision) in &acknowledged {
                let found = there.get(name).copied().unwrap_or(0);
                assert!(found >= *revision, "{name}: revision {revision} was acknowledged, {found} is there");
                // One change of each writer may have been on its way.
                assert!(found <= revision + 1, "{name}: {found}");
            }
            let any = acknowledged.keys().next().unwrap();
            let asked = GetRequest { name: any.clone(), with_feedback: true };
            assert!(
                client
                    .get(asked)
                    .await
                    .unwrap()
                    .into_inner()
                    .profile
                    .unwrap()
                    .text
                    .unwrap()
                    .starts_with("change")
            );
        }
    }
}

async fn list(client: &mut ProfileServiceClient<Channel>) -> BTreeMap<String, u64> {
    let asked = ListRequest { page_size: 1000, page_token: String::new() };
    let page = client.list(asked).await.unwrap().into_inner();
    assert_eq!(page.next_page_token, "");
    page.profiles.into_iter().map(|p| (p.name, p.revision)).collect()
}

/// No file of the worker may grow beyond a bound: what it writes fails, as on a disk that is full.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_and_what_was_kept_stays() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    let path = folder.path().join("profiles.db");
    let url = format!("sqlite:{}", path.display());
    let script = r#"trap "" XFSZ; ulimit -f 256; exec "$0" "$@""#;
    let program = binary("attune-reward").unwrap().display().to_string();
    let profiles = format!("profiles.url={url}");
    let args = [
        "-c",
        script,
        &program,
        "--listen",
        "127.0.0.1:0",
        "--model",
        &model,
        "--threads",
        "1",
        "--cache-mib",
        "16",
        "--set",
        &profiles,
    ];
    let limited = Process::of("bash", args, Stdio::null()).unwrap();
    let mut client = client(&limited).await;
    let mut kept = 0;
    let refused = loop {
        match client.put(put(&format!("{kept:04}"), &"words ".repeat(500))).await {
            Ok(_) => kept += 1,
            Err(status) => break status,
        }
    };
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(refused.message().contains("disk is full"), "{refused:?}");
    assert!(!refused.message().contains("profiles.db"), "{refused:?}");
    assert!(kept > 5, "{kept}");
    // It still reads, and answers; and with room again nothing is missing.
    assert_eq!(list(&mut client).await.len(), kept);
    drop(limited);
    let process = worker(&model, &url);
    let mut client = self::client(&process).await;
    assert_eq!(list(&mut client).await.len(), kept);
    client.put(put("more", "words")).await.unwrap();
    assert_eq!(process.terminate().unwrap(), Some(0));
}
