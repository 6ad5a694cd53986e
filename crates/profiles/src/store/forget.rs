//! What was deleted stands in SQLite's log until the log is emptied into the file, where it is overwritten.

use std::{sync::Arc, time::Duration};

use sqlx::{AssertSqlSafe, SqliteConnection, SqlitePool};
use tokio::{sync::Mutex, time::sleep};

use super::StoreError;

const CHECKPOINT: &str = "PRAGMA wal_checkpoint(TRUNCATE)";
/// Where others read or write just then, it is asked again.
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
    let mut connection = pool.acquire().await?;
    let (wait,): (i64,) = sqlx::query_as("PRAGMA busy_timeout").fetch_one(&mut *connection).await?;
    // While SQLite waits for others who read, it holds the lock of all who write: it shall not wait.
    set_wait(&mut connection, 0).await?;
    let emptied = sqlx::query_as(CHECKPOINT).fetch_one(&mut *connection).await;
    set_wait(&mut connection, wait).await?;
    let (busy, ..): (i64, i64, i64) = emptied?;
    Ok(busy == 0)
}

/// How long this connection waits for others, in milliseconds.
async fn set_wait(connection: &mut SqliteConnection, wait: i64) -> sqlx::Result<()> {
    // A pragma takes no parameters.
    sqlx::query(AssertSqlSafe(format!("PRAGMA busy_timeout = {wait}"))).execute(connection).await.map(drop)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Instant;

    use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};

    use super::*;

    #[tokio::test]
    async fn somebody_who_reads_holds_up_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let wait = Duration::from_secs(20);
        let file = SqliteConnectOptions::new()
            .filename(folder.path().join("a.db"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .busy_timeout(wait);
        let one = || SqlitePoolOptions::new().max_connections(1).connect_with(file.clone());
        let (pool, other) = (one().await.unwrap(), one().await.unwrap());
        let write = async |value: i64| {
            sqlx::query("INSERT INTO t VALUES (?)").bind(value).execute(&pool).await.unwrap();
        };
        sqlx::query("CREATE TABLE t (x)").execute(&pool).await.unwrap();
        write(1).await;
        // What it reads is of this moment, and stays in the log as long as it reads.
        let mut reading = other.begin().await.unwrap();
        sqlx::query("SELECT * FROM t").fetch_all(&mut *reading).await.unwrap();
        write(2).await;
        let begun = Instant::now();
        assert!(!checkpoint(&pool).await.unwrap());
        write(3).await;
        assert!(begun.elapsed() < wait / 2, "{:?}", begun.elapsed());
        reading.rollback().await.unwrap();
        assert!(checkpoint(&pool).await.unwrap());
        let (waits,): (i64,) = sqlx::query_as("PRAGMA busy_timeout").fetch_one(&pool).await.unwrap();
        assert_eq!(u128::try_from(waits).unwrap(), wait.as_millis());
    }
}
