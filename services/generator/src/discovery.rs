//! Where the reward workers are: from the settings, and from DNS, looked up again regularly.

use std::{collections::BTreeSet, fmt, io, net::SocketAddr, str::FromStr, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use tonic::transport::Uri;

/// How often names are looked up.
pub(crate) const LOOKUP_INTERVAL: Duration = Duration::from_secs(3);
/// How long one look-up may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// Gives the addresses of a host and port.
pub(crate) type Resolve =
    Arc<dyn Fn(String, u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// The system's resolver.
pub(crate) fn system_resolver() -> Resolve {
    Arc::new(|host, port| Box::pin(async move { Ok(tokio::net::lookup_host((host, port)).await?.collect()) }))
}

/// One entry of the setting `reward`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// One worker: `http://HOST:PORT`, or `https://HOST:PORT`.
    Worker(Uri),
    /// Every address of a name is a worker: `http+dns://HOST:PORT`, as of a Kubernetes headless service, or
    /// `https+dns://HOST:PORT`.
    Name {
        /// Whether the workers are spoken to by TLS.
        tls: bool,
        /// The name.
        host: String,
        /// Every worker's port.
        port: u16,
    },
}

/// An entry that names no worker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "reward worker `{0}`: write it as http://HOST:PORT, or http+dns://HOST:PORT where every address of HOST is a worker; \
     https and https+dns speak TLS"
)]
pub(crate) struct NoSource(String);

impl FromStr for Source {
    type Err = NoSource;

    fn from_str(text: &str) -> Result<Self, NoSource> {
        let fail = || NoSource(text.to_owned());
        let (scheme, authority) = text.split_once("://").ok_or_else(fail)?;
        let (scheme, dns) = scheme.strip_suffix("+dns").map_or((scheme, false), |scheme| (scheme, true));
        let tls = match scheme {
            "http" => false,
            "https" => true,
            _ => return Err(fail()),
        };
        let uri: Uri = format!("{scheme}://{authority}").parse().map_err(|_| fail())?;
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(fail());
        }
        if !dns {
            return Ok(Self::Worker(uri));
        }
        let port = uri.port_u16().ok_or_else(fail)?;
        let host = uri.host().ok_or_else(fail)?;
        Ok(Self::Name { tls, host: host.trim_matches(['[', ']']).to_owned(), port })
    }
}

impl Source {
    /// Whether its workers are spoken to by TLS.
    pub(crate) fn is_tls(&self) -> bool {
        match self {
            Self::Worker(uri) => uri.scheme_str() == Some("https"),
            Self::Name { tls, .. } => *tls,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Worker(uri) => write!(f, "{uri}"),
            Self::Name { tls, host, port } => write!(f, "{}+dns://{host}:{port}", scheme(*tls)),
        }
    }
}

fn scheme(tls: bool) -> &'static str {
    if tls { "https" } else { "http" }
}

/// The workers behind one source now, as URLs.
///
/// # Errors
/// The name cannot be looked up now.
pub(crate) async fn look_up(source: &Source, resolve: &Resolve) -> Result<BTreeSet<String>, String> {
    match source {
        Source::Worker(uri) => Ok([uri.to_string()].into()),
        Source::Name { tls, host, port } => {
            let addresses = tokio::time::timeout(LOOKUP_TIMEOUT, resolve(host.clone(), *port))
                .await
                .map_err(|_| "the resolver did not answer in time".to_owned())?
                .map_err(|e| e.to_string())?;
            Ok(addresses.into_iter().map(|a| format!("{}://{a}/", scheme(*tls))).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_workers_or_names() {
        let name = |host: &str| Source::Name { tls: false, host: host.into(), port: 50052 };
        assert_eq!("http+dns://rewards.attune.svc:50052".parse(), Ok(name("rewards.attune.svc")));
        assert_eq!("http+dns://[::1]:50052".parse(), Ok(name("::1")));
        assert!(matches!("http://10.0.0.1:50052".parse(), Ok(Source::Worker(_))));
        let secure: Source = "https+dns://rewards:7".parse().unwrap();
        assert!(secure.is_tls() && secure.to_string() == "https+dns://rewards:7");
        assert!("https://10.0.0.1:50052".parse::<Source>().unwrap().is_tls() && !name("x").is_tls());
        for wrong in [
            "",
            "rewards:50052",
            "ftp://a:1",
            "https+dns://a",
            "http+dns://a",
            "http://a:1/path",
            "http://a b",
        ] {
            assert!(wrong.parse::<Source>().is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn every_address_of_a_name_is_a_worker() {
        let source: Source = "http+dns://rewards:7".parse().unwrap();
        let resolve: Resolve = Arc::new(|host, port| {
            assert_eq!((host.as_str(), port), ("rewards", 7));
            let addresses = vec![([10, 0, 0, 1], port).into(), "[fd00::2]:7".parse().unwrap()];
            Box::pin(async { Ok(addresses) })
        });
        let workers = look_up(&source, &resolve).await.unwrap();
        assert_eq!(workers, ["http://10.0.0.1:7/", "http://[fd00::2]:7/"].map(str::to_owned).into());
        let failing: Resolve = Arc::new(|_, _| Box::pin(async { Err(io::Error::other("no such host")) }));
        assert!(look_up(&source, &failing).await.unwrap_err().contains("no such host"));
        let hanging: Resolve = Arc::new(|_, _| Box::pin(std::future::pending()));
        tokio::time::pause();
        assert!(look_up(&source, &hanging).await.unwrap_err().contains("in time"));
    }
}
