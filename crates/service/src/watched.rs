//! `grpc.health.v1` as tonic has it, whose `Watch` ends with its server: open for ever it would hold up each
//! shutdown to its deadline.

use std::sync::Arc;

use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tonic_health::{
    pb::{HealthCheckRequest, HealthCheckResponse, health_server::Health},
    server::HealthService,
};

/// Streams at once, of all clients: nobody is asked for a token here.
const WATCHERS: usize = 4096;

/// The health of a server.
pub(crate) struct Watched {
    health: HealthService,
    shutdown: CancellationToken,
    watchers: Arc<Semaphore>,
}

impl Watched {
    /// Watched until `shutdown`.
    pub(crate) fn new(health: HealthService, shutdown: CancellationToken) -> Self {
        Self { health, shutdown, watchers: Arc::new(Semaphore::new(WATCHERS)) }
    }
}

#[tonic::async_trait]
impl Health for Watched {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        self.health.check(request).await
    }

    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let place = Arc::clone(&self.watchers).try_acquire_owned();
        let place =
            place.map_err(|_| Status::resource_exhausted(format!("{WATCHERS} streams watch already")))?;
        let changes = self.health.watch(request).await?.into_inner();
        let watched =
            stream::unfold((changes, place, self.shutdown.clone()), |(mut changes, place, shutdown)| async {
                let change = tokio::select! {
                    // What is known is said before the end.
                    biased;
                    change = changes.next() => change,
                    () = shutdown.cancelled() => None,
                };
                change.map(|change| (change, (changes, place, shutdown)))
            });
        Ok(Response::new(watched.boxed()))
    }
}
