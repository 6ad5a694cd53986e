//! The store of profiles: SQLite in one file, or PostgreSQL for several workers.
//!
//! Every operation is one transaction, and what it has answered is on the disk. Another owner's profiles do not exist.

mod error;
mod forget;
mod place;
mod row;

use std::{fmt, time::SystemTime};

use futures::future::BoxFuture;
use sqlx::{PgPool, Postgres, Sqlite, SqlitePool, Transaction};
use tokio::{sync::OnceCell, time::timeout};

use crate::profile::{Content, Kept, Profile, ProfileName};

pub use error::{StoreError, Trouble};
use forget::Forgetting;
pub use place::{Place, PlaceError};
use row::{Row, Stored, micros};

/// An operation waits for a connection, for another's turn, and for the disk; at most so many times the place's wait.
const WAITS: u32 = 3;

/// A store of profiles. It connects when it is first asked, and again when the database was gone.
pub struct Store {
    place: Place,
    pool: OnceCell<Pool>,
    forgetting: Forgetting,
}

enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

/// A transaction that writes; dropped, it changes nothing.
enum Writing {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Transaction<'static, Postgres>),
}

/// The same statement for both: their SQL is alike, their types are not.
macro_rules! on {
    ($kind:ident, $either:expr, $to:pat => $statement:expr) => {
        match $either {
            $kind::Sqlite($to) => $statement,
            $kind::Postgres($to) => $statement,
        }
    };
}

/// What a change is based on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BasedOn {
    /// Whatever stands there.
    Anything,
    /// Nothing: the profile must not exist.
    Nothing,
    /// This revision of it.
    Revision(u64),
}

/// What becomes of the feedback that is kept with a profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keep {
    /// It stays.
    AsItIs,
    /// This is kept from now on, and nothing else; without answers: nothing.
    Only(Kept),
}

/// A profile to keep.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// What it shall hold.
    pub content: Content,
    /// What it is based on.
    pub based_on: BasedOn,
    /// The feedback to keep with it.
    pub keep: Keep,
}

const SELECT: &str = "SELECT p.name, p.revision, p.text, p.weights, p.latent, p.reference, p.model_id, \
     p.model_revision, p.fit, p.created_at, p.updated_at, f.answers \
     FROM profiles p LEFT JOIN feedback f ON f.owner = p.owner AND f.name = p.name \
     WHERE p.owner = $1 AND p.name = $2";
const SELECT_KEPT: &str = "SELECT p.name, p.revision, p.text, p.weights, p.latent, p.reference, p.model_id, \
     p.model_revision, p.fit, p.created_at, p.updated_at, f.answers, f.items \
     FROM profiles p LEFT JOIN feedback f ON f.owner = p.owner AND f.name = p.name \
     WHERE p.owner = $1 AND p.name = $2";
const PAGE: &str = "SELECT p.name, p.revision, p.text, CAST(NULL AS BYTEA) AS weights, \
     CAST(NULL AS BYTEA) AS latent, p.reference, p.model_id, p.model_revision, p.fit, p.created_at, p.updated_at, \
     f.answers \
     FROM profiles p LEFT JOIN feedback f ON f.owner = p.owner AND f.name = p.name \
     WHERE p.owner = $1 AND p.name > $2 ORDER BY p.name LIMIT $3";
const REVISION: &str = "SELECT revision, created_at FROM profiles WHERE owner = $1 AND name = $2";
const COUNT: &str = "SELECT COUNT(*) FROM profiles WHERE owner = $1";
const UPSERT: &str = "INSERT INTO profiles (owner, name, revision, text, weights, latent, reference, model_id, \
     model_revision, fit, created_at, updated_at) \
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) \
     ON CONFLICT (owner, name) DO UPDATE SET revision = excluded.revision, text = excluded.text, \
     weights = excluded.weights, latent = excluded.latent, reference = excluded.reference, \
     model_id = excluded.model_id, model_revision = excluded.model_revision, fit = excluded.fit, \
     updated_at = excluded.updated_at";
const DELETE: &str = "DELETE FROM profiles WHERE owner = $1 AND name = $2";
const KEPT: &str = "SELECT answers FROM feedback WHERE owner = $1 AND name = $2";
const FORGET: &str = "DELETE FROM feedback WHERE owner = $1 AND name = $2";
const KEEP: &str = "INSERT INTO feedback (owner, name, answers, items) VALUES ($1, $2, $3, $4)";
/// PostgreSQL: who writes for an owner takes turns, so that the owner's limit holds.
const TURN: &str = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))";

impl Store {
    /// A store at this place, not connected yet.
    pub fn new(place: Place) -> Self {
        Self { place, pool: OnceCell::new(), forgetting: Forgetting::default() }
    }

    /// Connects now, to know at the start what is wrong.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may pass; the others need the operator.
    pub async fn connect(&self) -> Result<(), StoreError> {
        self.within(Box::pin(async move { self.pool().await.map(|_| ()) })).await
    }

    /// What keeps the profiles.
    pub fn kind(&self) -> &'static str {
        self.place.kind()
    }

    /// Whether it stands beyond this machine's file system, and may come back by itself.
    pub fn is_remote(&self) -> bool {
        self.place.is_remote()
    }

    /// Creates or replaces a profile. Of a new one the owner must have fewer than `most`.
    ///
    /// # Errors
    /// [`StoreError::Stale`], [`StoreError::TooMany`], or what the store has.
    pub async fn put(
        &self,
        owner: &str,
        name: &ProfileName,
        change: Change,
        most: Option<u32>,
    ) -> Result<Profile, StoreError> {
        let put = self.within(Box::pin(async move {
            let pool = self.pool().await?;
            let mut writing = pool.write(owner).await?;
            let found = writing.revision(owner, name).await?;
            check(change.based_on, found.map(|(revision, _)| revision))?;
            if let (None, Some(most)) = (found, most)
                && writing.count(owner).await? >= u64::from(most)
            {
                return Err(StoreError::TooMany { most });
            }
            let now = SystemTime::now();
            let (revision, created_at) = found.map_or((0, now), |found| found);
            let revision = revision.saturating_add(1);
            let Change { content, keep, .. } = change;
            writing.upsert(owner, name, revision, (created_at, now), &content).await?;
            let kept = writing.keep(owner, name, keep).await?;
            writing.commit().await?;
            // As it will be read: to the microsecond.
            let (created_at, updated_at) = (row::time(micros(created_at)), row::time(micros(now)));
            Ok(Profile { name: name.clone(), content, revision, created_at, updated_at, kept })
        }));
        let put = put.await?;
        if put.revision > 1 {
            self.forget().await;
        }
        Ok(put)
    }

    /// Reads a profile as it is now.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], or what the store has.
    pub async fn get(&self, owner: &str, name: &ProfileName) -> Result<Profile, StoreError> {
        self.within(Box::pin(async move {
            let row: Option<Row> = on!(Pool, self.pool().await?, pool => {
                sqlx::query_as(SELECT).bind(owner).bind(name.as_str()).fetch_optional(pool).await
            })?;
            row.ok_or(StoreError::NotFound)?.profile()
        }))
        .await
    }

    /// Reads a profile and the feedback that is kept with it, of one moment.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub async fn get_with_feedback(
        &self,
        owner: &str,
        name: &ProfileName,
    ) -> Result<(Profile, Kept), StoreError> {
        self.within(Box::pin(async move {
            let row: Option<Stored> = on!(Pool, self.pool().await?, pool => {
                sqlx::query_as(SELECT_KEPT).bind(owner).bind(name.as_str()).fetch_optional(pool).await
            })?;
            let Stored { row, items } = row.ok_or(StoreError::NotFound)?;
            let profile = row.profile()?;
            let kept = Kept { answers: profile.kept, items: items.unwrap_or_default() };
            Ok((profile, kept))
        }))
        .await
    }

    /// The owner's profiles in the order of their names' bytes, without their vectors: at most `most`, those behind
    /// `after`.
    ///
    /// # Errors
    /// What the store has.
    pub async fn list(
        &self,
        owner: &str,
        after: Option<&ProfileName>,
        most: u32,
    ) -> Result<Vec<Profile>, StoreError> {
        self.within(Box::pin(async move {
            let after = after.map_or("", ProfileName::as_str);
            let rows: Vec<Row> = on!(Pool, self.pool().await?, pool => {
                sqlx::query_as(PAGE).bind(owner).bind(after).bind(i64::from(most)).fetch_all(pool).await
            })?;
            rows.into_iter().map(Row::profile).collect()
        }))
        .await
    }

    /// Deletes a profile and the feedback behind it.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub async fn delete(&self, owner: &str, name: &ProfileName) -> Result<(), StoreError> {
        let deleted = self.within(Box::pin(async move {
            let pool = self.pool().await?;
            let mut writing = pool.write(owner).await?;
            let gone = on!(Writing, &mut writing, to => {
                let done = sqlx::query(DELETE).bind(owner).bind(name.as_str()).execute(&mut **to).await;
                done.map(|done| done.rows_affected())
            })?;
            if gone == 0 {
                return Err(StoreError::NotFound);
            }
            writing.commit().await
        }));
        deleted.await?;
        self.forget().await;
        Ok(())
    }

    /// Closes its connections; SQLite's log goes into its file.
    pub async fn close(&self) {
        match self.pool.get() {
            Some(Pool::Sqlite(pool)) => pool.close().await,
            Some(Pool::Postgres(pool)) => pool.close().await,
            None => {}
        }
    }

    /// Boxed, which tells the compiler where it is that the work can go to another thread.
    async fn within<T>(&self, work: BoxFuture<'_, Result<T, StoreError>>) -> Result<T, StoreError> {
        let late = Err(StoreError::Unavailable(Trouble::Unreachable));
        timeout(WAITS * self.place.wait(), work).await.unwrap_or(late)
    }

    /// Makes that nothing of what was replaced or deleted is left, as far as it is in our hands.
    async fn forget(&self) {
        if let Some(Pool::Sqlite(pool)) = self.pool.get() {
            self.forgetting.empty_log(pool).await;
        }
    }

    async fn pool(&self) -> Result<&Pool, StoreError> {
        self.pool.get_or_try_init(|| self.place.connect()).await
    }
}

impl Pool {
    async fn write(&self, owner: &str) -> Result<Writing, StoreError> {
        match self {
            // At once, so that a second writer waits here and does not fail in the middle.
            Self::Sqlite(pool) => Ok(Writing::Sqlite(pool.begin_with("BEGIN IMMEDIATE").await?)),
            Self::Postgres(pool) => {
                let mut writing = pool.begin().await?;
                sqlx::query(TURN).bind(owner).execute(&mut *writing).await?;
                Ok(Writing::Postgres(writing))
            }
        }
    }
}

impl Writing {
    async fn revision(
        &mut self,
        owner: &str,
        name: &ProfileName,
    ) -> Result<Option<(u64, SystemTime)>, StoreError> {
        let found: Option<(i64, i64)> = on!(Self, self, to => {
            sqlx::query_as(REVISION).bind(owner).bind(name.as_str()).fetch_optional(&mut **to).await
        })?;
        found.map(|(revision, created_at)| Ok((row::count(revision)?, row::time(created_at)))).transpose()
    }

    async fn count(&mut self, owner: &str) -> Result<u64, StoreError> {
        let count: i64 = on!(Self, self, to => {
            sqlx::query_scalar(COUNT).bind(owner).fetch_one(&mut **to).await
        })?;
        row::count(count)
    }

    async fn upsert(
        &mut self,
        owner: &str,
        name: &ProfileName,
        revision: u64,
        (created_at, updated_at): (SystemTime, SystemTime),
        content: &Content,
    ) -> Result<(), StoreError> {
        let (weights, latent) = row::vectors(content.vector.as_ref());
        let revision = i64::try_from(revision).map_err(|_| StoreError::Failed)?;
        on!(Self, self, to => {
            let insert = sqlx::query(UPSERT)
                .bind(owner)
                .bind(name.as_str())
                .bind(revision)
                .bind(content.text.as_deref())
                .bind(weights)
                .bind(latent)
                .bind(content.reference.map(|r| r.as_str()))
                .bind(content.model.id.as_str())
                .bind(content.model.revision.as_str())
                .bind(content.fit.as_deref())
                .bind(micros(created_at))
                .bind(micros(updated_at));
            insert.execute(&mut **to).await.map(|_| ())
        })?;
        Ok(())
    }

    /// Keeps the feedback; gives how many answers are kept now.
    async fn keep(&mut self, owner: &str, name: &ProfileName, keep: Keep) -> Result<u32, StoreError> {
        let kept = match keep {
            Keep::AsItIs => {
                let answers: Option<i64> = on!(Self, self, to => {
                    sqlx::query_scalar(KEPT).bind(owner).bind(name.as_str()).fetch_optional(&mut **to).await
                })?;
                return row::answers(answers);
            }
            Keep::Only(kept) => kept,
        };
        on!(Self, self, to => {
            sqlx::query(FORGET).bind(owner).bind(name.as_str()).execute(&mut **to).await.map(|_| ())
        })?;
        if kept.answers > 0 {
            on!(Self, self, to => {
                let insert = sqlx::query(KEEP)
                    .bind(owner)
                    .bind(name.as_str())
                    .bind(i64::from(kept.answers))
                    .bind(kept.items.as_slice());
                insert.execute(&mut **to).await.map(|_| ())
            })?;
        }
        Ok(kept.answers)
    }

    async fn commit(self) -> Result<(), StoreError> {
        Ok(on!(Self, self, to => to.commit().await)?)
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.place).finish()
    }
}

/// Whether a change fits what is there.
fn check(based_on: BasedOn, found: Option<u64>) -> Result<(), StoreError> {
    let based_on = match based_on {
        BasedOn::Anything => return Ok(()),
        BasedOn::Nothing => 0,
        BasedOn::Revision(revision) => revision,
    };
    let found = found.unwrap_or(0);
    if based_on == found { Ok(()) } else { Err(StoreError::Stale { based_on, found }) }
}
