//! What was deleted stands in SQLite's log until the log is emptied into the file, where it is overwritten.

use std::{sync::Arc, time::Duration};

use sqlx::SqlitePool;
use tokio::{sync::Mutex, time::sleep};

use super::StoreError;

const CHECKPOINT: &str = "PRAGMA wal_checkpoint(TRUNCATE)";
/// Where another process empties the log, SQLite neither waits nor says when it is done: so it is asked again.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(20);

/// Empties the log, one at a time.
#[derive(Debug, Clone, Default)]
pub(super) struct Forgetting(Arc<Mutex<()>>);

impl Forgetting {
    /// Empties the log, also where whoever asked for it has gone. What was acknowledged is not taken back where it
    /// cannot be done: the next change, or the next start, does it.
    pub(super) async fn empty_log(&self, pool: &SqlitePool) {
        let (turn, pool) = (Arc::clone(&self.0), pool.clone());
        let emptied = tokio::spawn(async move {
            let _turn = turn.lock().await;
            for _ in 0..TRIES {
                match checkpoint(&pool).await {
                    Ok(true) => return,
                    Ok(false) => sleep(PAUSE).await,
                    Err(error) => return drop(StoreError::from(error)),
                }
            }
            tracing::warn!(
                "others are in the way of emptying the profile store's log; the next change tries again"
            );
        });
        // It fails only where the process ends.
        let _ = emptied.await;
    }
}

/// Whether the log is empty now.
pub(super) async fn checkpoint(pool: &SqlitePool) -> sqlx::Result<bool> {
    let (busy, ..): (i64, i64, i64) = sqlx::query_as(CHECKPOINT).fetch_one(pool).await?;
    Ok(busy == 0)
}
