//! Where a store is, and how it is opened: its connections, and the migrations that bring it up to this version.

use std::{fmt, fs, io, path::Path, str::FromStr, time::Duration};

use futures::future::BoxFuture;
use sqlx::{
    ConnectOptions as _, Connection as _,
    migrate::{MigrateError, Migrator},
    postgres::{PgConnectOptions, PgPoolOptions},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use tokio::time::{Instant, sleep};

use super::{Pool, StoreError, Trouble, forget::checkpoint};

static SQLITE: Migrator = sqlx::migrate!("migrations/sqlite");
static POSTGRES: Migrator = sqlx::migrate!("migrations/postgres");

/// Connections of one process; a read takes far less than a millisecond.
const CONNECTIONS: u32 = 8;
/// A statement that takes longer is ended by PostgreSQL.
const STATEMENT_TIMEOUT: &str = "10s";

/// Where profiles are kept.
#[derive(Clone)]
pub struct Place {
    kind: Kind,
    wait: Duration,
}

#[derive(Clone)]
enum Kind {
    Sqlite(SqliteConnectOptions),
    Postgres(PgConnectOptions),
}

/// What is no place for profiles. The address is not repeated: it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PlaceError(&'static str);

/// Without the address, which may hold a password.
impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())
    }
}

impl FromStr for Place {
    type Err = PlaceError;

    /// `sqlite:PATH`, or `postgres://USER:PASSWORD@HOST:PORT/DATABASE` with what libpq allows behind it (`sslmode`,
    /// `sslrootcert`, `host` for a socket).
    fn from_str(url: &str) -> Result<Self, PlaceError> {
        if let Some(path) = url.strip_prefix("sqlite:") {
            return Self::sqlite(Path::new(path.strip_prefix("//").unwrap_or(path)));
        }
        if !(url.starts_with("postgres://") || url.starts_with("postgresql://")) {
            return Err(PlaceError("an address is sqlite:PATH or postgres://USER@HOST/DATABASE"));
        }
        let options = url.parse::<PgConnectOptions>().map_err(|_| {
            PlaceError(
                "the address of the PostgreSQL database cannot be read; write postgres://USER@HOST/DATABASE",
            )
        })?;
        // Without notices such as that a table is there already.
        let settings = [("statement_timeout", STATEMENT_TIMEOUT), ("client_min_messages", "warning")];
        let options = options.options(settings).application_name("attune");
        Ok(Self { kind: Kind::Postgres(options), wait: Self::WAIT })
    }
}

impl Place {
    /// How long a store is waited for where nothing else is said.
    pub const WAIT: Duration = Duration::from_secs(5);

    /// The same place, where a connection, and in SQLite another writer's end, is waited for so long.
    #[must_use]
    pub fn waiting(self, wait: Duration) -> Self {
        Self { wait, ..self }
    }

    /// How long a store is waited for.
    pub(super) fn wait(&self) -> Duration {
        self.wait
    }

    /// A file; it and its folder are made where they do not exist yet, for this user alone.
    ///
    /// # Errors
    /// The path names no file.
    pub fn sqlite(path: &Path) -> Result<Self, PlaceError> {
        if path.file_name().is_none() || path == Path::new(":memory:") {
            return Err(PlaceError(
                "sqlite: needs the path of a file, such as sqlite:/var/lib/attune/profiles.db",
            ));
        }
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            // What is acknowledged is on the disk, whatever happens next.
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            // What is deleted is overwritten.
            .pragma("secure_delete", "ON");
        Ok(Self { kind: Kind::Sqlite(options), wait: Self::WAIT })
    }

    /// What keeps them.
    pub fn kind(&self) -> &'static str {
        match self.kind {
            Kind::Sqlite(_) => "SQLite",
            Kind::Postgres(_) => "PostgreSQL",
        }
    }

    /// Whether it is a server's.
    pub(super) fn is_remote(&self) -> bool {
        matches!(self.kind, Kind::Postgres(_))
    }

    /// Connects, and brings the store up to this version. Owned and boxed: only so does the compiler see that it can
    /// go to another thread.
    pub(super) fn connect(&self) -> BoxFuture<'static, Result<Pool, StoreError>> {
        let wait = self.wait;
        match self.kind.clone() {
            Kind::Sqlite(options) => Box::pin(sqlite(options.busy_timeout(wait), wait)),
            Kind::Postgres(options) => Box::pin(postgres(options, wait)),
        }
    }
}

/// Between two tries to open a file that another process is about to make.
const PAUSE: Duration = Duration::from_millis(10);

/// Opens the file. Whoever makes it turns its log on, for which SQLite has the file alone: others are told that it is
/// busy instead of being made to wait, so they ask again.
async fn sqlite(options: SqliteConnectOptions, wait: Duration) -> Result<Pool, StoreError> {
    let until = Instant::now() + wait;
    loop {
        match sqlite_now(options.clone(), wait).await {
            Err(StoreError::Unavailable(Trouble::Busy)) if Instant::now() < until => sleep(PAUSE).await,
            opened => return opened,
        }
    }
}

async fn sqlite_now(options: SqliteConnectOptions, wait: Duration) -> Result<Pool, StoreError> {
    private_file(options.get_filename()).map_err(sqlx::Error::Io)?;
    let pool = SqlitePoolOptions::new().max_connections(CONNECTIONS).acquire_timeout(wait);
    // A full disk makes SQLite end a transaction by itself, which its driver does not see: it would take no other.
    let pool = pool.before_acquire(|connection, _| {
        let within = connection.is_in_transaction();
        Box::pin(async move { Ok(!within) })
    });
    let pool = pool.connect_with(options.disable_statement_logging()).await?;
    // Two services that start at once take turns: for SQLite the migrator itself takes no lock.
    let mut all = pool.begin_with("BEGIN IMMEDIATE").await?;
    SQLITE.run_direct(None, &mut *all, false).await.map_err(judge)?;
    all.commit().await?;
    // What a process that was killed did not come to. What is there can be read even where this fails, as on a full disk.
    if let Err(error) = checkpoint(&pool).await {
        drop(StoreError::from(error));
    }
    Ok(Pool::Sqlite(pool))
}

async fn postgres(options: PgConnectOptions, wait: Duration) -> Result<Pool, StoreError> {
    let pool = PgPoolOptions::new().max_connections(CONNECTIONS).acquire_timeout(wait);
    let pool = pool.connect_with(options.disable_statement_logging()).await?;
    POSTGRES.run_direct(None, &mut *pool.acquire().await?, false).await.map_err(judge)?;
    Ok(Pool::Postgres(pool))
}

fn judge(error: MigrateError) -> StoreError {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => error.into(),
        error => {
            tracing::error!(error = error.to_string(), "the profile store is not of this version");
            StoreError::Foreign
        }
    }
}

/// Makes the file, and its folder, before SQLite does, so that nobody else may read them.
fn private_file(path: &Path) -> io::Result<()> {
    let (mut folder, mut file) = (fs::DirBuilder::new(), fs::OpenOptions::new());
    #[cfg(unix)]
    {
        use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
        folder.mode(0o700);
        file.mode(0o600);
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        folder.recursive(true).create(parent)?;
    }
    // A file that exists is not even opened: closing it would drop the locks that SQLite holds on it.
    match file.write(true).create_new(true).open(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_not_repeated() {
        for (url, kind) in [
            ("sqlite:profiles.db", "SQLite"),
            ("sqlite:///var/lib/attune/profiles.db", "SQLite"),
            ("postgres://attune:hunter2@db.example:5433/attune?sslmode=verify-full", "PostgreSQL"),
            ("postgresql:///attune?host=/run/postgresql", "PostgreSQL"),
        ] {
            let place: Place = url.parse().unwrap();
            assert_eq!(format!("{place:?}"), kind);
        }
        for bad in [
            "",
            "profiles.db",
            "sqlite:",
            "sqlite::memory:",
            "sqlite:/",
            "mysql://hunter2@host/db",
            "postgres://hunter2@h:x/",
        ] {
            let error = bad.parse::<Place>().unwrap_err().to_string();
            assert!(
                !error.contains("hunter2") && error.contains("sqlite:") | error.contains("postgres:"),
                "{error}"
            );
        }
    }
}
