//! How busy the services say they are.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use attune_proto::{
    generator::v1::{self as generator, generator_service_client::GeneratorServiceClient},
    reward::v1::{self as reward, response_frame::Frame, reward_service_client::RewardServiceClient},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// Nothing that a test waits for takes so long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How busy a generator is.
///
/// # Errors
/// It cannot be asked, or does not say.
pub async fn generator_load(client: &mut GeneratorServiceClient<Channel>) -> Result<generator::Load> {
    let description = client.describe(generator::DescribeRequest {}).await?.into_inner();
    description.load.context("the generator does not say how busy it is")
}

/// How busy a worker is, as it says at the start of a call.
///
/// # Errors
/// It cannot be asked, or does not say.
pub async fn worker_load(endpoint: &str) -> Result<reward::Load> {
    let mut client = RewardServiceClient::connect(endpoint.to_owned()).await?;
    // Held until the answer is here: a call that is half-closed ends.
    let (_requests, outbound) = mpsc::channel(1);
    let mut responses = client.score(ReceiverStream::new(outbound)).await?.into_inner();
    while let Some(message) = responses.message().await? {
        for frame in message.frames {
            if let Some(Frame::Load(load)) = frame.frame {
                return Ok(load);
            }
        }
    }
    bail!("the worker ended the call without a word")
}

/// Waits until a generator's load is as wanted, and gives it.
///
/// # Errors
/// It cannot be asked, or [`PATIENCE`] is over.
pub async fn wait_for_load(
    client: &mut GeneratorServiceClient<Channel>,
    wanted: impl Fn(&generator::Load) -> bool,
) -> Result<generator::Load> {
    let wait = async {
        loop {
            let load = generator_load(client).await?;
            if wanted(&load) {
                return Ok(load);
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.context("the generator's load is never as wanted")?
}

/// Waits until a worker has this many sessions, and gives its load.
///
/// # Errors
/// It cannot be asked, or [`PATIENCE`] is over.
pub async fn wait_for_sessions(endpoint: &str, sessions: u32) -> Result<reward::Load> {
    let wait = async {
        loop {
            let load = worker_load(endpoint).await?;
            if load.sessions == sessions {
                return Ok(load);
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.context("the worker never has so many sessions")?
}
