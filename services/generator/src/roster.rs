//! The workers that there are: found, connected to, described to clients, and let go.

use std::collections::{BTreeMap, BTreeSet};

use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    discovery::{LOOKUP_INTERVAL, Resolve, Source, look_up},
    engine::Inbox,
    worker::{Dialer, Event, Known, WorkerId, keep_connected},
};

/// Each worker's address and what is known of it.
pub(crate) type Listing = Vec<(String, watch::Receiver<Known>)>;

/// Finds workers and keeps a connection to each.
pub(crate) struct Roster {
    sources: Vec<Source>,
    resolve: Resolve,
    dialer: Dialer,
    engine: Inbox,
    listing: watch::Sender<Listing>,
    /// By source, so that one that cannot be looked up now keeps what it had.
    found: Vec<BTreeSet<String>>,
    members: BTreeMap<String, Member>,
    connections: JoinSet<()>,
    last_id: WorkerId,
}

struct Member {
    id: WorkerId,
    known: watch::Receiver<Known>,
    leave: CancellationToken,
}

impl Roster {
    /// A roster of nobody yet, and what it tells of its workers.
    pub(crate) fn new(
        sources: Vec<Source>,
        resolve: Resolve,
        dialer: Dialer,
        engine: Inbox,
    ) -> (Self, watch::Receiver<Listing>) {
        let (listing, listed) = watch::channel(Vec::new());
        let found = vec![BTreeSet::new(); sources.len()];
        let (members, connections) = (BTreeMap::new(), JoinSet::new());
        let roster =
            Self { sources, resolve, dialer, engine, listing, found, members, connections, last_id: 0 };
        (roster, listed)
    }

    /// Looks up, connects and lets go until it is dropped; all connections end with it.
    pub(crate) async fn run(mut self) {
        let dynamic = self.sources.iter().any(|s| matches!(s, Source::Name { .. }));
        loop {
            self.look_up().await;
            if !dynamic {
                while self.connections.join_next().await.is_some() {}
                return;
            }
            tokio::time::sleep(LOOKUP_INTERVAL).await;
            while self.connections.try_join_next().is_some() {}
        }
    }

    async fn look_up(&mut self) {
        for (source, found) in self.sources.iter().zip(&mut self.found) {
            match look_up(source, &self.resolve).await {
                Ok(workers) => *found = workers,
                Err(problem) => {
                    self.dialer.counters.lookups_failed.add();
                    tracing::warn!(%source, problem, "reward workers cannot be looked up; the known ones stay");
                }
            }
        }
        let wanted: BTreeSet<&String> = self.found.iter().flatten().collect();
        let gone: Vec<String> = self.members.keys().filter(|w| !wanted.contains(w)).cloned().collect();
        for worker in &gone {
            if let Some(member) = self.members.remove(worker) {
                tracing::info!(worker, "reward worker removed");
                member.leave.cancel();
                self.engine.worker(member.id, Event::Leaving);
            }
        }
        let new: Vec<String> =
            wanted.into_iter().filter(|w| !self.members.contains_key(*w)).cloned().collect();
        if gone.is_empty() && new.is_empty() {
            return;
        }
        for worker in new {
            self.last_id += 1;
            let (known, watched) = watch::channel(Known::default());
            let leave = CancellationToken::new();
            let member = Member { id: self.last_id, known: watched, leave: leave.clone() };
            self.engine.worker(member.id, Event::Found(worker.clone()));
            self.connections.spawn(keep_connected(
                member.id,
                worker.clone(),
                self.dialer.clone(),
                self.engine.clone(),
                known,
                leave,
            ));
            self.members.insert(worker, member);
        }
        let listing = self.members.iter().map(|(url, m)| (url.clone(), m.known.clone())).collect();
        self.listing.send_replace(listing);
    }
}
