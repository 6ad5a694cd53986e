//! The least that an exchange over gRPC costs here: tonic alone, with nothing behind it.
//!
//! A forward pass reads all weights, and drives out of the caches what the exchange needs: both programs,
//! the kernel's network code, the sockets. So it is measured with warm caches and with cold ones.

use std::{
    hint::black_box,
    sync::mpsc as plain,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use attune_proto::reward::v1::{
    Candidates, DescribeRequest, DescribeResponse, RequestFrame, ResponseFrame, Rewards, ScoreRequest,
    ScoreResponse,
    request_frame::Frame as Asked,
    response_frame::Frame,
    reward_service_client::RewardServiceClient,
    reward_service_server::{RewardService, RewardServiceServer},
};
use futures::{StreamExt as _, stream::BoxStream};
use tokio::{net::TcpListener, runtime::Builder, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Endpoint, Server, server::TcpIncoming},
};

/// More than any cache holds.
const EVICTING_BYTES: usize = 128 << 20;
/// Between two exchanges, so that all threads are asleep.
const PAUSE: Duration = Duration::from_millis(2);

/// What one exchange takes.
#[derive(Debug, Clone, Copy)]
pub struct Bare {
    /// Right after another one.
    pub warm: Duration,
    /// After memory was read from one end to the other.
    pub cold: Duration,
}

/// Medians over `exchanges` messages of `rows` frames with `k` candidates each. The two sides have a
/// thread each, which handles its messages itself: nothing is handed from one thread to another.
///
/// # Errors
/// No port or no thread is to be had.
pub fn exchange(rows: usize, k: usize, exchanges: usize) -> Result<Bare> {
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let (told, address) = plain::channel();
    let server = Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("bare".into()).spawn(move || {
        server.block_on(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let at = listener.local_addr()?;
            // Whoever asked may have gone.
            let _ = told.send(at);
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            let served = Server::builder().add_service(RewardServiceServer::new(Echo));
            served.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).await?;
            anyhow::Ok(())
        })
    })?;
    let address = address.recv().context("the bare server does not start")?;
    let memory = vec![1u64; EVICTING_BYTES / size_of::<u64>()];
    Builder::new_current_thread().enable_all().build()?.block_on(async {
        let channel = Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true).connect().await?;
        let (requests, outbound) = mpsc::channel(4);
        let mut client = RewardServiceClient::new(channel);
        let mut responses = client.score(ReceiverStream::new(outbound)).await?.into_inner();
        let (mut warm, mut cold) = (Vec::new(), Vec::new());
        for step in 0..exchanges as u32 {
            for (evict, times) in [(false, &mut warm), (true, &mut cold)] {
                if evict {
                    black_box(memory.iter().fold(0u64, |sum, word| sum.wrapping_add(*word)));
                }
                thread::sleep(PAUSE);
                let start = Instant::now();
                requests.send(question(rows, k, step)).await?;
                responses.message().await?.context("the bare server has ended")?;
                times.push(start.elapsed());
            }
        }
        Ok(Bare { warm: middle(warm), cold: middle(cold) })
    })
}

fn middle(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn question(rows: usize, k: usize, step: u32) -> ScoreRequest {
    let candidates =
        |session_id| Candidates { session_id, step, token_ids: (0..k as u32).map(|i| 7 * i).collect() };
    let frame = |id| RequestFrame { frame: Some(Asked::Candidates(candidates(id))) };
    ScoreRequest { frames: (1..=rows as u64).map(frame).collect() }
}

/// Answers every message where it is read.
struct Echo;

#[tonic::async_trait]
impl RewardService for Echo {
    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        Ok(Response::new(DescribeResponse::default()))
    }

    type ScoreStream = BoxStream<'static, Result<ScoreResponse, Status>>;

    async fn score(
        &self,
        request: Request<Streaming<ScoreRequest>>,
    ) -> Result<Response<Self::ScoreStream>, Status> {
        Ok(Response::new(request.into_inner().map(|message| message.map(answer)).boxed()))
    }
}

fn answer(message: ScoreRequest) -> ScoreResponse {
    let reward = |frame: RequestFrame| match frame.frame {
        Some(Asked::Candidates(Candidates { session_id, step, token_ids })) => {
            let rewards = Rewards { session_id, step, values: vec![0.5; token_ids.len()], work_seconds: 0.0 };
            Some(ResponseFrame { frame: Some(Frame::Rewards(rewards)) })
        }
        _ => None,
    };
    ScoreResponse { frames: message.frames.into_iter().filter_map(reward).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_are_measured() {
        let bare = exchange(2, 3, 3).unwrap();
        assert!(bare.warm > Duration::ZERO && bare.cold > Duration::ZERO, "{bare:?}");
    }

    #[test]
    fn every_row_is_answered() {
        let answer = answer(question(3, 5, 9));
        let values = |f: &ResponseFrame| match &f.frame {
            Some(Frame::Rewards(r)) => (r.session_id, r.step, r.values.len()),
            _ => (0, 0, 0),
        };
        assert_eq!(answer.frames.iter().map(values).collect::<Vec<_>>(), [(1, 9, 5), (2, 9, 5), (3, 9, 5)]);
    }
}
