//! Where the server is, and how it is reached.

use std::{future::Future, time::Duration};

use anyhow::{Context as _, Result, bail};
use attune_proto::{
    generator::v1::generator_service_client::GeneratorServiceClient,
    reward::v1::reward_service_client::RewardServiceClient,
};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Tables of 64 candidates with 16 rewards each, and the last message's resolved prompts, fit well.
const MAX_MESSAGE: usize = 64 << 20;

/// Where the server is, and how long it may take.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct EndpointArgs {
    /// The generator's address.
    #[arg(long, value_name = "URL", env = "ATTUNE_ENDPOINT", default_value = "http://127.0.0.1:50051")]
    pub(crate) endpoint: String,
    /// Give up after this many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout: Option<Duration>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|e| format!("{e}"))?;
    match Duration::try_from_secs_f64(number) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("must be a number of seconds above 0".to_owned()),
    }
}

impl EndpointArgs {
    async fn channel(&self) -> Result<Channel> {
        let url = with_scheme(&self.endpoint);
        let endpoint = Endpoint::from_shared(url.clone())
            .with_context(|| format!("--endpoint {url} is no address; write it as http://127.0.0.1:50051"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true);
        endpoint.connect().await.with_context(|| {
            format!("nothing answers at {url}; start it with `make run`, or name another with --endpoint")
        })
    }

    /// A client of the generator.
    pub(crate) async fn generator(&self) -> Result<GeneratorServiceClient<Channel>> {
        let client = GeneratorServiceClient::new(self.channel().await?);
        Ok(client.max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE))
    }

    /// A client of a reward worker.
    pub(crate) async fn reward(&self) -> Result<RewardServiceClient<Channel>> {
        Ok(RewardServiceClient::new(self.channel().await?))
    }

    /// Runs the call to its very end within the time allowed: the transport's own timeout ends at the
    /// head of the response.
    pub(crate) async fn within<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        let Some(limit) = self.timeout else { return call.await };
        match tokio::time::timeout(limit, call).await {
            Ok(done) => done,
            Err(_) => bail!(Status::deadline_exceeded(format!("not done after {} s", limit.as_secs_f64()))),
        }
    }

    /// A request that tells the server how long it has.
    pub(crate) fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        if let Some(limit) = self.timeout {
            request.set_timeout(limit);
        }
        request
    }
}

fn with_scheme(endpoint: &str) -> String {
    if endpoint.contains("://") { endpoint.to_owned() } else { format!("http://{endpoint}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_address_is_enough() {
        assert_eq!(with_scheme("127.0.0.1:1"), "http://127.0.0.1:1");
        assert_eq!(with_scheme("https://host"), "https://host");
    }

    #[test]
    fn timeouts_are_above_zero() {
        assert_eq!(seconds("0.5").unwrap(), Duration::from_millis(500));
        for bad in ["0", "-1", "nan", "inf", "soon"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
