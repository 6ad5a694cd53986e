//! What a store answers where it cannot do what it was asked. No message holds SQL, a path or a person's text: that is
//! for the operator's log.

use sqlx::sqlite::SqliteError;

/// Why a store did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The owner has no profile of this name.
    #[error("there is no profile of this name")]
    NotFound,
    /// The profile is another one than the change is based on.
    #[error("{}", stale(*.based_on, *.found))]
    Stale {
        /// The revision that the change is based on; 0: none.
        based_on: u64,
        /// The revision that is kept; 0: none.
        found: u64,
    },
    /// The owner has as many profiles as one may have.
    #[error("this owner has {most} profiles, as many as one may have; delete one first")]
    TooMany {
        /// The most that one may have.
        most: u32,
    },
    /// Nothing was changed, or it is not known whether anything was; another try may succeed.
    #[error("{0}")]
    Unavailable(Trouble),
    /// The store was written by a newer version, or by something else.
    #[error(
        "the profile store was written by a newer version of this service, or by something else; see the service's log"
    )]
    Foreign,
    /// The store holds what it cannot hold: it is damaged, or this program is wrong.
    #[error("the profile store failed; see the service's log")]
    Failed,
}

/// What is wrong with a store for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// It does not answer.
    #[error("the profile store cannot be reached now")]
    Unreachable,
    /// Others write to it.
    #[error("the profile store is busy")]
    Busy,
    /// Its disk is full, or fails.
    #[error("the profile store cannot write: its disk is full or fails; nothing was changed")]
    Disk,
    /// It may be read alone.
    #[error("the profile store is read-only; nothing was changed")]
    ReadOnly,
}

fn stale(based_on: u64, found: u64) -> String {
    match (based_on, found) {
        (0, found) => format!("the profile exists already, at revision {found}; the change asks for none"),
        (based_on, 0) => format!("the profile is gone; the change is based on its revision {based_on}"),
        (based_on, found) => format!(
            "the profile is at revision {found}; the change is based on revision {based_on}: read it and change it anew"
        ),
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let judged = judge(&error);
        // What the database says stands here alone: it may hold paths and statements.
        tracing::error!(error = error.to_string(), judged = judged.to_string(), "the profile store");
        judged
    }
}

fn judge(error: &sqlx::Error) -> StoreError {
    use sqlx::Error as E;
    let trouble = match error {
        E::Io(_) | E::Tls(_) | E::PoolTimedOut | E::PoolClosed | E::WorkerCrashed | E::Protocol(_) => {
            Some(Trouble::Unreachable)
        }
        E::Database(database) => {
            let code = database.code().unwrap_or_default();
            match database.try_downcast_ref::<SqliteError>() {
                Some(_) => sqlite(&code),
                None => postgres(&code),
            }
        }
        _ => None,
    };
    match trouble {
        Some(trouble) => StoreError::Unavailable(trouble),
        None if matches!(error, E::Database(e) if e.code().as_deref() == Some(NOT_A_DATABASE)) => {
            StoreError::Foreign
        }
        None => StoreError::Failed,
    }
}

/// SQLITE_NOTADB.
const NOT_A_DATABASE: &str = "26";

/// By SQLite's result codes (sqlite.org/rescode.html), whose last byte is the class.
fn sqlite(code: &str) -> Option<Trouble> {
    match code.parse::<u32>().ok()? & 0xff {
        5 | 6 => Some(Trouble::Busy),
        8 => Some(Trouble::ReadOnly),
        10 | 13 => Some(Trouble::Disk),
        14 => Some(Trouble::Unreachable),
        _ => None,
    }
}

/// By PostgreSQL's SQLSTATE, whose first two characters are the class.
fn postgres(code: &str) -> Option<Trouble> {
    match (code, code.get(..2)) {
        ("53100", _) => Some(Trouble::Disk),
        ("25006", _) => Some(Trouble::ReadOnly),
        // Serialization failures and deadlocks; locks that cannot be had.
        (_, Some("40" | "55")) => Some(Trouble::Busy),
        // Connections, resources, who may come in, shutdowns and time-outs, the system around it.
        (_, Some("08" | "28" | "53" | "57" | "58")) => Some(Trouble::Unreachable),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_say_whether_another_try_is_worth_it() {
        for (code, trouble) in [
            ("5", Some(Trouble::Busy)),
            ("517", Some(Trouble::Busy)),
            ("13", Some(Trouble::Disk)),
            ("778", Some(Trouble::Disk)),
            ("1032", Some(Trouble::ReadOnly)),
            ("11", None),
            ("26", None),
            ("x", None),
        ] {
            assert_eq!(sqlite(code), trouble, "{code}");
        }
        for (code, trouble) in [
            ("57P01", Some(Trouble::Unreachable)),
            ("53300", Some(Trouble::Unreachable)),
            ("53100", Some(Trouble::Disk)),
            ("40P01", Some(Trouble::Busy)),
            ("42P01", None),
            ("", None),
        ] {
            assert_eq!(postgres(code), trouble, "{code}");
        }
        assert_eq!(
            StoreError::from(sqlx::Error::PoolTimedOut),
            StoreError::Unavailable(Trouble::Unreachable)
        );
        assert_eq!(StoreError::from(sqlx::Error::RowNotFound), StoreError::Failed);
    }

    #[test]
    fn both_revisions_are_named() {
        let stale = StoreError::Stale { based_on: 3, found: 5 }.to_string();
        assert!(stale.contains("revision 3") && stale.contains("revision 5"), "{stale}");
    }
}
