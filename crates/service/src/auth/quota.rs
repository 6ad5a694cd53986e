//! What each owner has taken, and may still take.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tonic::Status;

use super::OwnerLimits;
use crate::status;

const MINUTE: f64 = 60.0;
/// When to look for owners who have nothing open and nothing to pay.
const MANY: usize = 1024;

/// The accounts of all owners. Clones share them.
#[derive(Debug, Clone)]
pub struct Quotas {
    limits: OwnerLimits,
    owners: Arc<Mutex<HashMap<String, Arc<Owner>>>>,
}

#[derive(Debug)]
struct Owner {
    limits: OwnerLimits,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    streams: u32,
    /// Tokens that may still be taken now; below zero: owed.
    tokens: f64,
    at: Instant,
}

/// One stream of an owner, on whose account its tokens go. Dropped, the stream is over.
#[derive(Debug)]
pub struct Account(Arc<Owner>);

impl Quotas {
    /// The same limits for every owner.
    pub fn new(limits: OwnerLimits) -> Self {
        Self { limits, owners: Arc::default() }
    }

    /// Opens a stream for an owner.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED: the owner has as many as allowed, or has taken too many tokens; it says when to
    /// come again.
    pub fn open(&self, owner: &str) -> Result<Account, Status> {
        let entry = {
            let mut owners = lock(&self.owners);
            if owners.len() >= MANY && !owners.contains_key(owner) {
                owners.retain(|_, owner| Arc::strong_count(owner) > 1 || !owner.is_at_rest());
            }
            let new = || Arc::new(Owner::new(self.limits));
            Arc::clone(owners.entry(owner.to_owned()).or_insert_with(new))
        };
        entry.open()?;
        Ok(Account(entry))
    }
}

impl Owner {
    fn new(limits: OwnerLimits) -> Self {
        let tokens = limits.tokens_per_minute.map_or(0.0, f64::from);
        Self { limits, state: Mutex::new(State { streams: 0, tokens, at: Instant::now() }) }
    }

    fn open(&self) -> Result<(), Status> {
        let mut state = lock(&self.state);
        if let Some(most) = self.limits.streams
            && state.streams >= most
        {
            let message =
                format!("{most} texts of this owner are running or waiting, as many as one may have");
            return Err(status::exhausted(message, Duration::from_secs(1)));
        }
        if let Some(rate) = self.limits.tokens_per_minute {
            state.refill(rate);
            if state.tokens < 1.0 {
                let seconds = (1.0 - state.tokens) * MINUTE / f64::from(rate);
                let message = format!("this owner has taken its {rate} tokens a minute");
                return Err(status::exhausted(message, Duration::from_secs_f64(seconds)));
            }
        }
        state.streams += 1;
        Ok(())
    }

    /// Whether it is as good as new.
    fn is_at_rest(&self) -> bool {
        let mut state = lock(&self.state);
        let full = self.limits.tokens_per_minute.is_none_or(|rate| {
            state.refill(rate);
            state.tokens >= f64::from(rate)
        });
        full && state.streams == 0
    }
}

impl State {
    fn refill(&mut self, rate: u32) {
        let now = Instant::now();
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * f64::from(rate) / MINUTE).min(f64::from(rate));
        self.at = now;
    }
}

impl Account {
    /// Puts tokens on the account. What was begun goes on; the next stream has to wait.
    pub fn take(&self, tokens: usize) {
        if self.0.limits.tokens_per_minute.is_some() {
            lock(&self.0.state).tokens -= tokens as f64;
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        lock(&self.0.state).streams -= 1;
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tonic::Code;
    use tonic_types::StatusExt as _;

    use super::*;

    #[test]
    fn streams_are_given_back() {
        let quotas = Quotas::new(OwnerLimits { streams: Some(2), ..OwnerLimits::default() });
        let first = quotas.open("a").unwrap();
        let _second = quotas.open("a").unwrap();
        assert_eq!(quotas.open("a").unwrap_err().code(), Code::ResourceExhausted);
        let _other = quotas.open("b").unwrap();
        drop(first);
        quotas.open("a").unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn debts_are_paid_before_the_next_text() {
        let quotas = Quotas::new(OwnerLimits { tokens_per_minute: Some(60), ..OwnerLimits::default() });
        let account = quotas.open("a").unwrap();
        account.take(89);
        let status = quotas.open("a").unwrap_err();
        let after = status.get_details_retry_info().unwrap().retry_delay.unwrap();
        assert!(after > Duration::from_secs(29) && after < Duration::from_secs(31), "{after:?}");
        quotas.open("b").unwrap();
        tokio::time::advance(after + Duration::from_millis(10)).await;
        quotas.open("a").unwrap();
        tokio::time::advance(Duration::from_secs(3600)).await;
        quotas.open("a").unwrap().take(59);
        quotas.open("a").unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn owners_without_anything_are_forgotten() {
        let quotas = Quotas::new(OwnerLimits { tokens_per_minute: Some(60), ..OwnerLimits::default() });
        let held = quotas.open("held").unwrap();
        quotas.open("indebted").unwrap().take(100);
        for i in 0..2 * MANY {
            quotas.open(&format!("owner {i}")).unwrap();
        }
        let owners = lock(&quotas.owners);
        assert!(owners.len() <= MANY, "{}", owners.len());
        assert!(owners.contains_key("held") && owners.contains_key("indebted"));
        drop(held);
    }
}
