//! Where the server is, and how it is reached.

use std::{future::Future, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail};
use attune_proto::{
    generator::v1::generator_service_client::GeneratorServiceClient,
    profile::v1::profile_service_client::ProfileServiceClient,
    reward::v1::reward_service_client::RewardServiceClient,
};
use attune_service::{
    secret::Secret,
    tls::{ClientTls, ClientTlsConfig},
};
use tonic::{
    Status,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};
use tonic_health::pb::health_client::HealthClient;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Tables of 64 candidates with 16 rewards each, and the last message's resolved prompts, fit well.
const MAX_MESSAGE: usize = 64 << 20;

/// One command makes its connections and ends: files do not change meanwhile.
const RELOAD: Duration = Duration::from_secs(3600);
/// No token is longer.
const MAX_TOKEN: usize = 16 << 10;

/// Where the server is, how it is known, and how long it may take.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct EndpointArgs {
    /// The generator's address; https://HOST:PORT speaks TLS.
    #[arg(long, value_name = "URL", env = "ATTUNE_ENDPOINT", default_value = "http://127.0.0.1:50051")]
    pub(crate) endpoint: String,
    /// The certificates, PEM, of those who may vouch for the server [default: the system's]
    #[arg(long, value_name = "FILE", env = "ATTUNE_CA")]
    ca: Option<PathBuf>,
    /// The certificate to show to the server, PEM.
    #[arg(long, value_name = "FILE", env = "ATTUNE_CERT", requires = "key")]
    cert: Option<PathBuf>,
    /// The certificate's private key, PEM.
    #[arg(long, value_name = "FILE", env = "ATTUNE_KEY", requires = "cert")]
    key: Option<PathBuf>,
    /// The name that the server's certificate must be for [default: the address's host]
    #[arg(long, value_name = "NAME", env = "ATTUNE_SERVER_NAME")]
    server_name: Option<String>,
    /// A file with the token that says who calls.
    #[arg(long, value_name = "FILE", env = "ATTUNE_TOKEN_FILE")]
    token_file: Option<PathBuf>,
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
        if url.starts_with("https://") {
            let connected = self.tls()?.connect(ready(ClientTls::endpoint(&url)?)).await;
            return connected.with_context(|| format!("no connection by TLS to {url}"));
        }
        if self.token_file.is_some() && !is_loopback(&url) {
            bail!("a token is not sent to {url} in plain text; write https://");
        }
        let endpoint = Endpoint::from_shared(url.clone())
            .with_context(|| format!("--endpoint {url} is no address; write it as http://127.0.0.1:50051"))?;
        ready(endpoint).connect().await.with_context(|| {
            format!("nothing answers at {url}; start it with `make run`, or name another with --endpoint")
        })
    }

    fn tls(&self) -> Result<ClientTls> {
        let Self { ca, cert, key, server_name, .. } = self.clone();
        let config = ClientTlsConfig { ca, cert, key, server_name };
        config.validate("tls")?;
        Ok(ClientTls::load(&config, RELOAD)?)
    }

    /// What says who calls.
    fn authorization(&self) -> Result<Option<MetadataValue<Ascii>>> {
        let Some(file) = &self.token_file else { return Ok(None) };
        let text = std::fs::read_to_string(file);
        let token = Secret::new(text.with_context(|| format!("--token-file {}", file.display()))?.trim());
        let value = format!("Bearer {}", token.expose());
        let fits = (1..=MAX_TOKEN).contains(&token.expose().len());
        let value = value.parse::<MetadataValue<Ascii>>().ok().filter(|_| fits);
        let mut value = value.with_context(|| format!("--token-file {} holds no token", file.display()))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    /// A client of the generator.
    pub(crate) async fn generator(&self) -> Result<GeneratorServiceClient<Channel>> {
        let client = GeneratorServiceClient::new(self.channel().await?);
        Ok(client.max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE))
    }

    /// A client of the service that keeps profiles.
    pub(crate) async fn profiles(&self) -> Result<ProfileServiceClient<Channel>> {
        let client = ProfileServiceClient::new(self.channel().await?);
        Ok(client.max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE))
    }

    /// A client of a reward worker.
    pub(crate) async fn reward(&self) -> Result<RewardServiceClient<Channel>> {
        Ok(RewardServiceClient::new(self.channel().await?))
    }

    /// A client of any service's health.
    pub(crate) async fn health(&self) -> Result<HealthClient<Channel>> {
        Ok(HealthClient::new(self.channel().await?))
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

    /// A request that tells the server who calls and how long it has.
    ///
    /// # Errors
    /// The token's file cannot be used.
    pub(crate) fn request<T>(&self, message: T) -> Result<tonic::Request<T>> {
        let mut request = tonic::Request::new(message);
        if let Some(limit) = self.timeout {
            request.set_timeout(limit);
        }
        if let Some(authorization) = self.authorization()? {
            request.metadata_mut().insert("authorization", authorization);
        }
        Ok(request)
    }
}

fn ready(endpoint: Endpoint) -> Endpoint {
    endpoint.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true)
}

fn is_loopback(url: &str) -> bool {
    let uri: Option<tonic::transport::Uri> = url.parse().ok();
    let host = uri.as_ref().and_then(|uri| uri.host()).unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
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
    fn a_token_goes_nowhere_in_plain_text() {
        assert!(is_loopback("http://127.0.0.1:1") && is_loopback("http://[::1]:1"));
        assert!(is_loopback("http://localhost:1"));
        for far in ["http://10.0.0.1:1", "http://localhost.example:1", "http://127.0.0.1.example"] {
            assert!(!is_loopback(far), "{far}");
        }
    }

    #[test]
    fn timeouts_are_above_zero() {
        assert_eq!(seconds("0.5").unwrap(), Duration::from_millis(500));
        for bad in ["0", "-1", "nan", "inf", "soon"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
