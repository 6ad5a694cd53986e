//! The store of profiles, on SQLite and on a real PostgreSQL server alike.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that fails should say where

use std::{
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, SystemTime},
};

use attune_profiles::{
    BasedOn, Change, Content, Keep, Kept, Model, Place, Profile, ProfileName, Reference, Store, StoreError,
    Trouble, Vector,
};
use attune_tests::Postgres;
use tokio::task::JoinSet;

/// The same for both.
async fn both(test: impl AsyncFn(Place)) {
    let folder = tempfile::tempdir().unwrap();
    test(Place::sqlite(&folder.path().join("state/profiles.db")).unwrap()).await;
    if let Some(server) = Postgres::start().unwrap() {
        test(server.place().unwrap()).await;
    }
}

fn name(text: &str) -> ProfileName {
    text.to_owned().try_into().unwrap()
}

fn content(text: &str) -> Content {
    Content {
        text: Some(text.to_owned()),
        vector: Some(Vector::Weights(vec![0.5, -1.0, f32::MIN_POSITIVE])),
        reference: Some(Reference::Model),
        model: Model { id: "taste".into(), revision: "f1".into() },
        fit: Some(vec![1, 2, 3]),
    }
}

fn change(text: &str, based_on: BasedOn) -> Change {
    Change { content: content(text), based_on, keep: Keep::AsItIs }
}

async fn put(store: &Store, owner: &str, named: &str, text: &str) -> Profile {
    store.put(owner, &name(named), change(text, BasedOn::Anything), None).await.unwrap()
}

fn kept(text: &str, answers: u32) -> Kept {
    Kept { answers, items: text.as_bytes().to_vec() }
}

#[tokio::test]
async fn what_is_put_is_read_by_every_store_at_once() {
    both(async |place| {
        let (one, other) = (Store::new(place.clone()), Store::new(place));
        let before = SystemTime::now();
        let first = put(&one, "alice", "me", "brief\n\"quoted\" é 漢 🦊").await;
        assert_eq!((first.revision, first.kept), (1, 0));
        assert_eq!(first.created_at, first.updated_at);
        assert!(
            first.created_at <= SystemTime::now()
                && first.created_at.duration_since(before).is_ok_and(|d| d.as_secs() < 60)
        );
        assert_eq!(other.get("alice", &name("me")).await.unwrap(), first);

        let latent = Content {
            vector: Some(Vector::Latent(vec![2.0])),
            reference: None,
            fit: None,
            ..content("long")
        };
        let change = Change { content: latent, based_on: BasedOn::Revision(1), keep: Keep::AsItIs };
        let second = other.put("alice", &name("me"), change, None).await.unwrap();
        assert_eq!((second.revision, second.created_at), (2, first.created_at));
        assert!(second.updated_at >= first.updated_at);
        assert_eq!(one.get("alice", &name("me")).await.unwrap(), second);
    })
    .await;
}

#[tokio::test]
async fn a_stale_change_is_refused_and_both_revisions_named() {
    both(async |place| {
        let store = Store::new(place);
        let stale = |based_on, found| Err(StoreError::Stale { based_on, found });
        let try_on = async |based_on| store.put("alice", &name("me"), change("x", based_on), None).await;
        assert_eq!(try_on(BasedOn::Revision(1)).await, stale(1, 0));
        try_on(BasedOn::Nothing).await.unwrap();
        assert_eq!(try_on(BasedOn::Nothing).await, stale(0, 1));
        try_on(BasedOn::Revision(1)).await.unwrap();
        assert_eq!(try_on(BasedOn::Revision(1)).await, stale(1, 2));
        assert_eq!(try_on(BasedOn::Revision(u64::MAX)).await, stale(u64::MAX, 2));
        assert_eq!(try_on(BasedOn::Anything).await.unwrap().revision, 3);
    })
    .await;
}

/// Each reads, and writes on what was read, as two people's devices do: no change is lost.
#[tokio::test(flavor = "multi_thread")]
async fn changes_at_once_come_one_after_the_other() {
    const WRITERS: usize = 6;
    const CHANGES: usize = 5;
    both(async |place| {
        let stores = [Store::new(place.clone()), Store::new(place)].map(Arc::new);
        put(&stores[0], "alice", "me", "").await;
        let mut writers = JoinSet::new();
        for i in 0..WRITERS {
            let store = Arc::clone(&stores[i % 2]);
            writers.spawn(async move {
                let mut stale = 0;
                for _ in 0..CHANGES {
                    loop {
                        let now = store.get("alice", &name("me")).await.unwrap();
                        let text = now.content.text.unwrap() + "x";
                        let based_on = BasedOn::Revision(now.revision);
                        match store.put("alice", &name("me"), change(&text, based_on), None).await {
                            Ok(_) => break,
                            Err(StoreError::Stale { .. }) => stale += 1,
                            Err(error) => panic!("{error:?}"),
                        }
                    }
                }
                stale
            });
        }
        let _stale: Vec<i32> = writers.join_all().await;
        let at_last = stores[1].get("alice", &name("me")).await.unwrap();
        assert_eq!(at_last.content.text.unwrap().len(), WRITERS * CHANGES);
        assert_eq!(at_last.revision, 1 + (WRITERS * CHANGES) as u64);
    })
    .await;
}

#[tokio::test]
async fn owners_do_not_meet() {
    both(async |place| {
        let store = Store::new(place);
        put(&store, "alice", "me", "alice's").await;
        put(&store, "bob", "me", "bob's").await;
        put(&store, "alice", "mine", "alice's alone").await;
        let text = async |owner| store.get(owner, &name("me")).await.unwrap().content.text.unwrap();
        assert_eq!((text("alice").await, text("bob").await), ("alice's".to_owned(), "bob's".to_owned()));
        assert_eq!(store.get("bob", &name("mine")).await, Err(StoreError::NotFound));
        assert_eq!(store.delete("bob", &name("mine")).await, Err(StoreError::NotFound));
        assert_eq!(store.list("bob", None, 10).await.unwrap().len(), 1);
        store.delete("bob", &name("me")).await.unwrap();
        assert_eq!(text("alice").await, "alice's");
    })
    .await;
}

/// In the order of the names' bytes, whatever the database's own order is.
#[tokio::test]
async fn pages_are_in_order_and_whole() {
    both(async |place| {
        let store = Store::new(place);
        let mut names = ["b", "a", "B", "é", "a b", "a-b", "Z", "漢", "_", "'; DROP TABLE profiles; --"];
        for name in names {
            put(&store, "alice", name, name).await;
        }
        put(&store, "bob", "c", "c").await;
        names.sort_unstable();
        let mut found: Vec<String> = Vec::new();
        loop {
            let after = found.last().map(|last| name(last));
            let page = store.list("alice", after.as_ref(), 3).await.unwrap();
            assert!(page.iter().all(|p| p.content.vector.is_none() && p.content.text.is_some()));
            found.extend(page.iter().map(|p| p.name.to_string()));
            if page.len() < 3 {
                break;
            }
        }
        assert_eq!(found, names);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_has_so_many_profiles_whoever_writes_at_once() {
    both(async |place| {
        let stores = [Store::new(place.clone()), Store::new(place)].map(Arc::new);
        let mut writers = JoinSet::new();
        for i in 0..16 {
            let store = Arc::clone(&stores[i % 2]);
            writers.spawn(async move {
                store
                    .put("alice", &name(&i.to_string()), change("x", BasedOn::Anything), Some(5))
                    .await
                    .map(|_| ())
            });
        }
        let done = writers.join_all().await;
        assert_eq!(done.iter().filter(|done| done.is_ok()).count(), 5);
        for error in done.iter().filter_map(|done| done.as_ref().err()) {
            assert_eq!(*error, StoreError::TooMany { most: 5 });
        }
        let first = stores[0].list("alice", None, 99).await.unwrap().remove(0);
        // What is there can be changed, and another owner is another account.
        let again = stores[0].put("alice", &first.name, change("y", BasedOn::Revision(1)), Some(5)).await;
        assert_eq!(again.unwrap().revision, 2);
        stores[0].put("bob", &name("me"), change("x", BasedOn::Nothing), Some(5)).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn feedback_is_kept_while_it_may_be() {
    both(async |place| {
        let store = Store::new(place);
        let me = name("me");
        let put = async |keep| {
            let change = Change { content: content("x"), based_on: BasedOn::Anything, keep };
            store.put("alice", &me, change, None).await.unwrap().kept
        };
        let there = async || store.get_with_feedback("alice", &me).await.unwrap().1;
        assert_eq!(put(Keep::Only(kept("first", 2))).await, 2);
        assert_eq!(put(Keep::AsItIs).await, 2);
        assert_eq!(there().await, kept("first", 2));
        assert_eq!(put(Keep::Only(kept("second", 3))).await, 3);
        assert_eq!(there().await, kept("second", 3));
        assert_eq!(store.list("alice", None, 9).await.unwrap()[0].kept, 3);
        assert_eq!(put(Keep::Only(Kept::default())).await, 0);
        assert_eq!(there().await, Kept::default());
        // It goes with the profile, and a new one of the same name has none.
        put(Keep::Only(kept("third", 1))).await;
        store.delete("alice", &me).await.unwrap();
        assert_eq!(put(Keep::AsItIs).await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_may_start_at_once_on_nothing() {
    both(async |place| {
        let mut starts = JoinSet::new();
        for i in 0..8 {
            let store = Store::new(place.clone());
            starts.spawn(async move { put(&store, "alice", &i.to_string(), "x").await.revision });
        }
        assert_eq!(starts.join_all().await, [1; 8]);
        assert_eq!(Store::new(place).list("alice", None, 99).await.unwrap().len(), 8);
    })
    .await;
}

const FROM_A_LATER_VERSION: &str = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                                    VALUES (9999, 'from a later version', TRUE, 'x', 0)";

#[tokio::test]
async fn what_a_newer_version_wrote_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("profiles.db");
    let place = Place::sqlite(&path).unwrap();
    Store::new(place.clone()).connect().await.unwrap();
    let pool = sqlx::SqlitePool::connect_with(sqlx::sqlite::SqliteConnectOptions::new().filename(&path))
        .await
        .unwrap();
    sqlx::query(FROM_A_LATER_VERSION).execute(&pool).await.unwrap();
    pool.close().await;
    let refused = Store::new(place).connect().await.unwrap_err();
    assert_eq!(refused, StoreError::Foreign);
    assert!(refused.to_string().contains("newer version"));

    if let Some(server) = Postgres::start().unwrap() {
        Store::new(server.place().unwrap()).connect().await.unwrap();
        let pool = sqlx::PgPool::connect(&server.url()).await.unwrap();
        sqlx::query(FROM_A_LATER_VERSION).execute(&pool).await.unwrap();
        pool.close().await;
        assert_eq!(Store::new(server.place().unwrap()).connect().await.unwrap_err(), StoreError::Foreign);
    }
}

#[tokio::test]
async fn a_file_that_is_no_store_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("profiles.db");
    let text = "somebody's notes, by no means a database\n".repeat(100);
    std::fs::write(&path, &text).unwrap();
    assert_eq!(Store::new(Place::sqlite(&path).unwrap()).connect().await, Err(StoreError::Foreign));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
}

/// The files of a store that hold these bytes.
fn files_with(folder: &Path, bytes: &[u8]) -> Vec<String> {
    let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let holds = |path: &Path| std::fs::read(path).unwrap().windows(bytes.len()).any(|window| window == bytes);
    files.filter(|path| holds(path)).map(|path| path.display().to_string()).collect()
}

#[tokio::test]
async fn what_is_deleted_is_in_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(Place::sqlite(&folder.path().join("profiles.db")).unwrap());
    // As long as they really are, so that they fill pages of their own.
    let weights: Vec<f32> = (0..4096).map(|i| 0.5 + i as f32 * 1e-4).collect();
    let numbers: Vec<u8> = weights[2000..2016].iter().flat_map(|v| v.to_le_bytes()).collect();
    let put = async |text: &str, feedback: &str| {
        let content = Content { vector: Some(Vector::Weights(weights.clone())), ..content(text) };
        let keep = Keep::Only(kept(&feedback.repeat(200), 1));
        store
            .put("alice", &name("me"), Change { content, based_on: BasedOn::Anything, keep }, None)
            .await
            .unwrap();
    };
    for i in 0..20 {
        let other = name(&format!("other {i}"));
        store.put("alice", &other, change("stays", BasedOn::Nothing), None).await.unwrap();
    }
    put("with a wombat please", "I liked the marmot").await;
    for bytes in [&b"wombat"[..], b"marmot", &numbers] {
        assert!(!files_with(folder.path(), bytes).is_empty());
    }
    // Replaced is gone as well.
    put("with an ocelot please", "I liked the gannet").await;
    for bytes in [&b"wombat"[..], b"marmot"] {
        assert_eq!(files_with(folder.path(), bytes), Vec::<String>::new());
    }
    store.delete("alice", &name("me")).await.unwrap();
    for bytes in [&b"ocelot"[..], b"gannet", &numbers] {
        assert_eq!(files_with(folder.path(), bytes), Vec::<String>::new());
    }
    assert!(!files_with(folder.path(), b"stays").is_empty());
}

#[cfg(unix)]
#[tokio::test]
async fn nobody_else_may_read_the_file() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state/profiles.db");
    let store = Store::new(Place::sqlite(&path).unwrap());
    put(&store, "alice", "me", "x").await;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    for file in std::fs::read_dir(path.parent().unwrap()).unwrap() {
        assert_eq!(mode(&file.unwrap().path()), 0o600);
    }
}

/// A small file system, unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None`: this process may not mount.
    fn new(kib: usize) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={kib}k");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path());
        mount.output().is_ok_and(|done| done.status.success()).then_some(Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

/// By a process's limit this is tried everywhere (`profiles_killed.rs`); here with a disk that is really full.
#[tokio::test]
async fn a_full_disk_is_an_error_and_no_corruption() {
    let Some(disk) = SmallDisk::new(512) else {
        eprintln!("left out: a disk that is really full, which takes the right to mount one");
        return;
    };
    let path = disk.0.path().join("profiles.db");
    let place = Place::sqlite(&path).unwrap();
    let store = Store::new(place.clone());
    let mut acknowledged = Vec::new();
    let refused = loop {
        let profile = name(&format!("{:04}", acknowledged.len()));
        let text = format!("{profile} ").repeat(200);
        match store.put("alice", &profile, change(&text, BasedOn::Nothing), None).await {
            Ok(put) => acknowledged.push(put),
            Err(error) => break error,
        }
    };
    assert_eq!(refused, StoreError::Unavailable(Trouble::Disk), "after {}", acknowledged.len());
    assert!(!refused.to_string().contains("profiles.db"));
    assert!(acknowledged.len() > 10);
    // What was acknowledged can be read, also by one who comes now; with room again it goes on.
    let comes = Store::new(place);
    for store in [&store, &comes] {
        for put in &acknowledged {
            assert_eq!(&store.get("alice", &put.name).await.unwrap(), put);
        }
    }
    let larger =
        Command::new("mount").args(["-o", "remount,size=4096k"]).arg(disk.0.path()).status().unwrap();
    assert!(larger.success());
    put(&store, "alice", "room again", "x").await;
    comes.delete("alice", &acknowledged[0].name).await.unwrap();
    store.close().await;
    comes.close().await;
    let pool = sqlx::SqlitePool::connect_with(sqlx::sqlite::SqliteConnectOptions::new().filename(&path))
        .await
        .unwrap();
    let sound: String = sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&pool).await.unwrap();
    assert_eq!(sound, "ok");
    pool.close().await;
}

#[tokio::test]
async fn a_database_that_is_gone_is_an_error_until_it_is_back() {
    let Some(mut server) = Postgres::start().unwrap() else { return };
    // It has to be long enough for a slow machine, and is waited for where nothing answers.
    let place = server.place().unwrap().waiting(Duration::from_secs(1));
    let store = Store::new(place.clone());
    let first = put(&store, "alice", "me", "x").await;
    server.kill().unwrap();
    let me = name("me");
    assert_eq!(store.get("alice", &me).await, Err(StoreError::Unavailable(Trouble::Unreachable)));
    let refused = store.put("alice", &me, change("y", BasedOn::Anything), None).await;
    assert_eq!(refused, Err(StoreError::Unavailable(Trouble::Unreachable)));
    // A store that starts meanwhile finds it later.
    let late = Store::new(place);
    assert_eq!(late.connect().await, Err(StoreError::Unavailable(Trouble::Unreachable)));
    server.restart().unwrap();
    assert_eq!(store.get("alice", &me).await.unwrap(), first);
    assert_eq!(late.get("alice", &me).await.unwrap(), first);
    assert_eq!(put(&late, "alice", "me", "y").await.revision, 2);
}
