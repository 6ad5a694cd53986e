//! Profiles as rows.

use std::time::{Duration, SystemTime};

use super::StoreError;
use crate::profile::{Content, Model, Profile, ProfileName, Reference, Vector};

/// A profile as it is read.
#[derive(sqlx::FromRow)]
pub(super) struct Row {
    name: String,
    revision: i64,
    text: Option<String>,
    weights: Option<Vec<u8>>,
    latent: Option<Vec<u8>>,
    reference: Option<String>,
    model_id: String,
    model_revision: String,
    fit: Option<Vec<u8>>,
    created_at: i64,
    updated_at: i64,
    answers: Option<i64>,
}

/// The same, with the feedback that is kept.
#[derive(sqlx::FromRow)]
pub(super) struct Stored {
    #[sqlx(flatten)]
    pub(super) row: Row,
    pub(super) items: Option<Vec<u8>>,
}

impl Row {
    /// # Errors
    /// [`StoreError::Failed`]: it holds what was never put there.
    pub(super) fn profile(self) -> Result<Profile, StoreError> {
        let vector = match (self.weights, self.latent) {
            (None, None) => None,
            (Some(bytes), None) => Some(Vector::Weights(floats(&bytes)?)),
            (None, Some(bytes)) => Some(Vector::Latent(floats(&bytes)?)),
            (Some(_), Some(_)) => return Err(damaged("weights and a latent")),
        };
        let reference =
            self.reference.map(|name| Reference::named(&name).ok_or_else(|| damaged("a reference")));
        let content = Content {
            text: self.text,
            vector,
            reference: reference.transpose()?,
            model: Model { id: self.model_id, revision: self.model_revision },
            fit: self.fit,
        };
        Ok(Profile {
            name: ProfileName::try_from(self.name).map_err(|_| damaged("a name"))?,
            content,
            revision: count(self.revision)?,
            created_at: time(self.created_at),
            updated_at: time(self.updated_at),
            kept: answers(self.answers)?,
        })
    }
}

/// The columns `weights` and `latent`.
pub(super) fn vectors(vector: Option<&Vector>) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
    let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
    match vector {
        None => (None, None),
        Some(Vector::Weights(values)) => (Some(bytes(values)), None),
        Some(Vector::Latent(values)) => (None, Some(bytes(values))),
    }
}

fn floats(bytes: &[u8]) -> Result<Vec<f32>, StoreError> {
    let (values, rest) = bytes.as_chunks::<4>();
    if rest.is_empty() {
        Ok(values.iter().map(|v| f32::from_le_bytes(*v)).collect())
    } else {
        Err(damaged("a vector"))
    }
}

/// Microseconds since 1970, or before.
pub(super) fn micros(time: SystemTime) -> i64 {
    let micros = |d: Duration| i64::try_from(d.as_micros()).unwrap_or(i64::MAX);
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => micros(since),
        Err(before) => -micros(before.duration()),
    }
}

pub(super) fn time(micros: i64) -> SystemTime {
    let away = Duration::from_micros(micros.unsigned_abs());
    let time = if micros < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(away)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(away)
    };
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// A number that counts.
pub(super) fn count(number: i64) -> Result<u64, StoreError> {
    u64::try_from(number).map_err(|_| damaged("a count"))
}

/// How many answers are kept.
pub(super) fn answers(number: Option<i64>) -> Result<u32, StoreError> {
    u32::try_from(number.unwrap_or(0)).map_err(|_| damaged("a count"))
}

fn damaged(what: &'static str) -> StoreError {
    tracing::error!(what, "the profile store holds what was never put there");
    StoreError::Failed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn vectors_and_times_come_back(bits in prop::collection::vec(any::<u32>(), 0..9), at in -(1i64 << 52)..1 << 52) {
            let values: Vec<f32> = bits.iter().map(|&b| f32::from_bits(b)).collect();
            let (weights, latent) = vectors(Some(&Vector::Weights(values)));
            let back = floats(&weights.unwrap()).unwrap();
            prop_assert_eq!(back.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), bits);
            prop_assert!(latent.is_none());
            prop_assert_eq!(micros(time(at)), at);
        }
    }

    #[test]
    fn what_was_never_put_there_is_said() {
        assert_eq!(floats(&[1, 2, 3]), Err(StoreError::Failed));
        assert_eq!(count(-1), Err(StoreError::Failed));
        assert_eq!(answers(Some(i64::MAX)), Err(StoreError::Failed));
    }
}
