//! What the wire adds to a step: from `Candidates` sent to `Rewards` received with the hidden state ready,
//! less the worker's own time, which `Rewards.work_seconds` tells.
//!
//! The probe is a generator's side of one `Score` call: it is sent from and received by a plain thread,
//! as the generator's engine does it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use attune_proto::reward::v1::{
    Advance, Candidates, Context, Guidance, Open, Reference, RequestFrame, ScoreRequest, ScoreResponse,
    open::By, request_frame::Frame as Asked, response_frame::Frame,
    reward_service_client::RewardServiceClient,
};
use crossbeam_channel::Receiver;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

use crate::prompts;

/// Nothing that is asked here takes this long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Ids of the candidates are below this, as are the tokens that are advanced.
const IDS: u32 = 256;

/// One exchange.
#[derive(Debug, Clone, Copy)]
pub struct Exchange {
    /// From `Candidates` sent to the last `Rewards` received.
    pub total: Duration,
    /// The worker's own part.
    pub work: Duration,
}

impl Exchange {
    /// What the wire added.
    pub fn added(&self) -> Duration {
        self.total.saturating_sub(self.work)
    }
}

/// Runs `exchanges` steps of `rows` sessions, each with `k` candidates, against the worker at `endpoint`.
///
/// # Errors
/// The worker cannot be reached, or answers otherwise than it should.
pub async fn probe(endpoint: &str, rows: usize, k: usize, exchanges: usize) -> Result<Vec<Exchange>> {
    let channel = Endpoint::from_shared(endpoint.to_owned())?.tcp_nodelay(true).connect().await?;
    let (requests, outbound) = mpsc::channel(256);
    let mut responses =
        RewardServiceClient::new(channel).score(ReceiverStream::new(outbound)).await?.into_inner();
    let (answers, inbox) = crossbeam_channel::unbounded();
    let reader = tokio::spawn(async move {
        while let Ok(Some(message)) = responses.message().await {
            if answers.send(message).is_err() {
                break;
            }
        }
    });
    let side = Side { requests, inbox, rows: rows as u64 };
    let exchanges = tokio::task::spawn_blocking(move || side.run(k, exchanges)).await?;
    reader.abort();
    exchanges
}

struct Side {
    requests: mpsc::Sender<ScoreRequest>,
    inbox: Receiver<ScoreResponse>,
    rows: u64,
}

impl Side {
    fn run(&self, k: usize, exchanges: usize) -> Result<Vec<Exchange>> {
        let prompt = prompts::random_ids(1, 16, IDS as usize, 1).remove(0);
        let guidance = Guidance {
            reference: Reference::None.into(),
            context: Context::AsIs.into(),
            ..Guidance::default()
        };
        self.send(|session_id| {
            Asked::Open(Open {
                session_id,
                owner: "local".to_owned(),
                prompt: Some(prompts::ids(prompt.clone())),
                by: Some(By::Guidance(guidance.clone())),
                ..Open::default()
            })
        })?;
        let ask = |step: u32| {
            move |session_id: u64| {
                let token_ids = (0..k as u32).map(|i| (step + 7 * i) % IDS).collect();
                Asked::Candidates(Candidates { session_id, step, token_ids })
            }
        };
        let advance =
            |step: u32| move |session_id| Asked::Advance(Advance { session_id, step, token: step % IDS });
        // How long a forward takes: a step whose candidates wait for it.
        let mut forward = Duration::ZERO;
        for step in 0..3 {
            let start = Instant::now();
            self.send(ask(step))?;
            self.rewards(step)?;
            forward = start.elapsed();
            self.send(advance(step))?;
        }
        let mut all = Vec::with_capacity(exchanges);
        for step in 3..3 + exchanges as u32 {
            // The hidden state must be ready, and the worker asleep again, before it is asked.
            std::thread::sleep(2 * forward + Duration::from_millis(2));
            let start = Instant::now();
            self.send(ask(step))?;
            let work = self.rewards(step)?;
            all.push(Exchange { total: start.elapsed(), work });
            self.send(advance(step))?;
        }
        Ok(all)
    }

    /// One message with a frame for every session.
    fn send(&self, frame: impl Fn(u64) -> Asked) -> Result<()> {
        let frames = (1..=self.rows).map(|id| RequestFrame { frame: Some(frame(id)) }).collect();
        self.requests.try_send(ScoreRequest { frames }).context("the worker does not take messages")
    }

    /// Waits for every session's rewards; gives the longest of their work.
    fn rewards(&self, step: u32) -> Result<Duration> {
        let mut missing = self.rows;
        let mut work = 0f32;
        while missing > 0 {
            let message = self.inbox.recv_timeout(PATIENCE).context("the worker does not answer")?;
            for frame in message.frames.into_iter().filter_map(|f| f.frame) {
                match frame {
                    Frame::Rewards(rewards) if rewards.step == step => {
                        missing -= 1;
                        work = work.max(rewards.work_seconds);
                    }
                    Frame::Failed(failed) => bail!("the worker refused a session: {}", failed.message),
                    _ => {}
                }
            }
        }
        Ok(Duration::try_from_secs_f32(work).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timed::{TimedConfig, TimedWorker};

    #[tokio::test]
    async fn a_wait_of_the_worker_is_not_the_wires() {
        let worker = TimedWorker::start(TimedConfig {
            slots: 8,
            forward: Duration::from_millis(1),
            on_card: false,
            fingerprint: String::new(),
            vocab: IDS,
            model_id: "timed".to_owned(),
        })
        .unwrap();
        for rows in [1, 8] {
            let exchanges = probe(&worker.endpoint(), rows, 10, 3).await.unwrap();
            assert_eq!(exchanges.len(), 3);
            assert!(exchanges.iter().all(|e| e.total > e.work && e.added() == e.total - e.work));
        }
        let full = probe(&worker.endpoint(), 9, 10, 1).await.unwrap_err();
        assert!(full.to_string().contains("slots"), "{full}");
    }
}
