//! A gRPC server with what every service of ours has: health, reflection, keep-alive, and a shutdown
//! that ends.

use std::{convert::Infallible, io::Write as _, net::SocketAddr, time::Duration};

use futures::FutureExt as _;
use tokio_util::sync::CancellationToken;
use tonic::{
    body::Body,
    codegen::{
        Service,
        http::{Request, Response},
    },
    server::NamedService,
    service::{Routes, RoutesBuilder, interceptor::InterceptedService},
};
use tonic_health::{
    ServingStatus,
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};

use crate::{auth::Door, limits::LimitsConfig, listener::Bound, sections::ServerConfig, watched::Watched};

/// How long calls have for a last word when the drain time is over.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// A full batch of candidates with its rewards is some 30 KB: the windows leave room for many of them,
/// so that no step waits for a window update.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drain {
    /// Every call had ended by itself.
    Complete,
    /// Calls that were still running at the deadline were cut off.
    DeadlinePassed,
}

/// Why a server could not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The service's descriptors do not fit together: a fault of the program.
    #[error("cannot serve reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The transport failed.
    #[error("the server on {address} failed: {source}")]
    Transport {
        /// Where it listened.
        address: SocketAddr,
        /// What failed.
        source: tonic::transport::Error,
    },
}

/// Says how healthy the services are, on the service's port and on the admin port alike. Nothing is
/// healthy before the first [`Health::set_serving`].
#[derive(Debug, Clone)]
pub struct Health {
    reporter: HealthReporter,
    names: Vec<&'static str>,
    ready: tokio::sync::watch::Sender<bool>,
}

impl Health {
    fn new() -> Self {
        Self {
            reporter: HealthReporter::new(),
            names: vec![""],
            ready: tokio::sync::watch::Sender::new(false),
        }
    }

    /// Sets all services, and the server as a whole, to SERVING or NOT_SERVING.
    pub async fn set_serving(&self, serving: bool) {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        for name in &self.names {
            self.reporter.set_service_status(name, status).await;
        }
        self.ready.send_replace(serving);
    }

    /// Whether the services are SERVING.
    pub fn is_serving(&self) -> bool {
        *self.ready.borrow()
    }

    /// Answers who asks, and who watches until `shutdown`.
    pub(crate) fn service(&self, shutdown: CancellationToken) -> HealthServer<Watched> {
        HealthServer::new(Watched::new(HealthService::from_health_reporter(self.reporter.clone()), shutdown))
    }
}

/// A server and its services.
#[derive(Debug)]
pub struct Server {
    routes: RoutesBuilder,
    health: Health,
    drain: Duration,
    limits: LimitsConfig,
    reflection: bool,
    door: Door,
    last_call: CancellationToken,
}

impl Server {
    /// A server without services yet. Its calls come through this door; health is outside of it.
    pub fn new(config: &ServerConfig, door: Door) -> Self {
        Self {
            routes: RoutesBuilder::default(),
            health: Health::new(),
            drain: Duration::from_secs_f64(config.drain_seconds.clamp(0.0, 3600.0)),
            limits: config.limits.clone(),
            reflection: config.reflection,
            door,
            last_call: CancellationToken::new(),
        }
    }

    /// Adds a generated service. Set its message limit yourself:
    /// `XServer::new(api).max_decoding_message_size(config.max_request_bytes())` where clients call it.
    #[must_use]
    pub fn add_service<S>(mut self, service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        self.routes.add_service(InterceptedService::new(service, self.door.clone()));
        self.health.names.push(S::NAME);
        self
    }

    /// The health of the services added so far; call it after the last of them.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Cancelled when the drain time is over: calls that still run have a moment for a last word before
    /// they are cut off.
    pub fn last_call(&self) -> CancellationToken {
        self.last_call.clone()
    }

    /// Prints `listening on ADDRESS` as one line to stdout, serves until `shutdown` is cancelled, then
    /// reports NOT_SERVING, takes no new connections, and gives running calls the drain time of the
    /// configuration before they are cut off.
    ///
    /// Health stays NOT_SERVING until [`Health::set_serving`] is called.
    ///
    /// # Errors
    /// [`ServeError`].
    pub async fn serve(mut self, bound: Bound, shutdown: CancellationToken) -> Result<Drain, ServeError> {
        if !self.health.is_serving() {
            self.health.set_serving(false).await;
        }
        let health = self.health.service(shutdown.clone());
        if self.reflection {
            let mut v1 = tonic_reflection::server::Builder::configure();
            // Older clients (grpcurl among them) know only the alpha.
            let mut v1alpha = tonic_reflection::server::Builder::configure();
            for set in [attune_proto::DESCRIPTORS, tonic_health::pb::FILE_DESCRIPTOR_SET] {
                v1 = v1.register_encoded_file_descriptor_set(set);
                v1alpha = v1alpha.register_encoded_file_descriptor_set(set);
            }
            let served = self.health.names.iter().copied().filter(|name| !name.is_empty());
            for name in served.chain([service_name(&health)]) {
                v1 = v1.with_service_name(name);
                v1alpha = v1alpha.with_service_name(name);
            }
            let v1 = InterceptedService::new(v1.build_v1()?, self.door.clone());
            let v1alpha = InterceptedService::new(v1alpha.build_v1alpha()?, self.door.clone());
            self.routes.add_service(v1).add_service(v1alpha);
        }
        self.routes.add_service(health);
        let address = bound.address();
        announce("listening on", address);
        let terms = Terms { drain: self.drain, limits: self.limits, last_call: self.last_call, http1: false };
        let drained = serve_routes(self.routes.routes(), bound, Some(&self.health), shutdown, terms).await?;
        match drained {
            Drain::Complete => tracing::info!(%address, "drained: every call has ended"),
            Drain::DeadlinePassed => {
                tracing::warn!(%address, seconds = self.drain.as_secs_f64(), "drain deadline passed: the calls still running were cut off");
            }
        }
        Ok(drained)
    }
}

fn service_name<S: NamedService>(_: &S) -> &'static str {
    S::NAME
}

/// Tells whoever started the process where it listens: one line, `<what> <address>`. A closed stdout is
/// nobody's failure.
pub(crate) fn announce(what: &str, address: SocketAddr) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{what} {address}").and_then(|()| out.flush()).is_err() {
        tracing::debug!(%address, "stdout is closed");
    }
}

/// What a server allows, and how it ends.
pub(crate) struct Terms {
    /// How long running calls may go on once it shuts down.
    pub(crate) drain: Duration,
    /// What clients can hold.
    pub(crate) limits: LimitsConfig,
    /// Cancelled when the drain time is over.
    pub(crate) last_call: CancellationToken,
    /// HTTP/1 is accepted as well: the admin port needs it, gRPC never does.
    pub(crate) http1: bool,
}

/// Serves until `shutdown`, then drains for at most the drain time.
pub(crate) async fn serve_routes(
    routes: Routes,
    bound: Bound,
    health: Option<&Health>,
    shutdown: CancellationToken,
    terms: Terms,
) -> Result<Drain, ServeError> {
    let Terms { drain, limits, last_call, http1 } = terms;
    let address = bound.address();
    let abort = CancellationToken::new();
    let _abort_on_drop = abort.clone().drop_guard();
    let transport = tonic::transport::Server::builder()
        .accept_http1(http1)
        .http2_keepalive_interval(Some(limits.keepalive()))
        .http2_keepalive_timeout(Some(limits.silent()))
        .http2_max_header_list_size(limits.header_bytes)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(limits.streams)
        .timeout(limits.request())
        .add_routes(routes)
        .serve_with_incoming_shutdown(
            bound.connections(limits.connections, limits.silent(), abort.clone()),
            shutdown.clone().cancelled_owned(),
        );
    let mut transport = std::pin::pin!(transport.map(|done| {
        done.map(|()| Drain::Complete).map_err(|source| ServeError::Transport { address, source })
    }));
    tokio::select! {
        done = &mut transport => return done,
        () = shutdown.cancelled() => {}
    }
    if let Some(health) = health {
        health.set_serving(false).await;
    }
    // The transport's own graceful shutdown waits for open streams without an end.
    if let Ok(done) = tokio::time::timeout(drain, &mut transport).await {
        return done;
    }
    last_call.cancel();
    if let Ok(done) = tokio::time::timeout(LAST_WORDS, &mut transport).await {
        return done.map(|_| Drain::DeadlinePassed);
    }
    abort.cancel();
    // The connections see it at once and end; the wait is only for them to be dropped.
    match tokio::time::timeout(LAST_WORDS, transport).await {
        Ok(done) => done.map(|_| Drain::DeadlinePassed),
        Err(_) => Ok(Drain::DeadlinePassed),
    }
}
