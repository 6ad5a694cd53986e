//! The admin port: `/live`, `/ready`, `/metrics` over HTTP/1 and gRPC health, for probes and scrapers.
//!
//! Plain text and without authentication: it shows nothing of people's texts, and belongs on loopback
//! or inside the pod.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::{
    limits::LimitsConfig,
    listener::Bound,
    server::{Drain, Health, ServeError, Terms, announce, serve_routes},
};

/// Probes and scrapers are done quickly; none of them holds up an end.
const DRAIN: Duration = Duration::from_secs(1);
/// More probes and scrapers than that are none.
const CONNECTIONS: usize = 64;

/// What the admin port shows.
#[derive(Clone)]
pub struct Admin {
    health: Health,
    metrics: Arc<dyn Fn() -> String + Send + Sync>,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").field("health", &self.health).finish_non_exhaustive()
    }
}

impl Admin {
    /// An admin port for a server's health. `metrics` renders the Prometheus text format (0.0.4), and is
    /// called at every scrape.
    pub fn new(health: Health, metrics: impl Fn() -> String + Send + Sync + 'static) -> Self {
        Self { health, metrics: Arc::new(metrics) }
    }

    /// Prints `admin on ADDRESS` as one line to stdout and serves until `shutdown`. Give it a token that
    /// is cancelled after the service has drained, so that probes are answered meanwhile.
    ///
    /// # Errors
    /// [`ServeError`].
    pub async fn serve(self, bound: Bound, shutdown: CancellationToken) -> Result<Drain, ServeError> {
        announce("admin on", bound.address());
        let grpc = self.health.service(shutdown.clone());
        let (health, metrics) = (self.health, self.metrics);
        let router = Router::new()
            .route("/live", get(async || "live\n"))
            .route("/ready", get(async move || ready(&health)))
            .route(
                "/metrics",
                get(async move || {
                    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics())
                }),
            );
        let limits = LimitsConfig { connections: CONNECTIONS, ..LimitsConfig::default() };
        let terms = Terms { drain: DRAIN, limits, last_call: CancellationToken::new(), http1: true };
        serve_routes(Routes::from(router).add_service(grpc), bound, None, shutdown, terms).await
    }
}

fn ready(health: &Health) -> impl IntoResponse + use<> {
    if health.is_serving() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}
