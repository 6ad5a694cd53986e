//! The life of a service whose engine is loaded: it serves, drains, and ends with its engine.

use std::{
    net::SocketAddr,
    process::ExitCode,
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, anyhow};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::Admin,
    config::ConfigError,
    listener::{self, Bound},
    metrics::Metrics,
    sections::ServerConfig,
    server::{Drain, Server},
    shutdown,
    telemetry::{Settings, Telemetry},
};

/// A configuration that cannot be used (`EX_USAGE`).
const EXIT_USAGE: u8 = 64;

/// The whole of a service's `main`: telemetry, signals, and `serve` until its end; what telemetry has not
/// sent by then goes last. What goes wrong is said on stderr. `settings` gives what the process tells of
/// itself.
pub fn run<C>(
    name: &str,
    config: Result<C, ConfigError>,
    settings: impl FnOnce(&C) -> Settings<'_>,
    serve: impl AsyncFnOnce(C, Metrics, CancellationToken) -> anyhow::Result<Drain>,
) -> ExitCode {
    let config = match config {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{name}: {error}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    allow_open_files();
    let served = tokio::runtime::Runtime::new().context("cannot start threads").and_then(|runtime| {
        let served = runtime.block_on(async {
            let telemetry = Telemetry::start(name, settings(&config))?;
            let served = match shutdown::on_signals() {
                Ok(signals) => serve(config, telemetry.metrics(), signals).await,
                Err(error) => Err(error.into()),
            };
            telemetry.shutdown().await;
            served
        });
        // What computes for nobody, such as the loading of a model, ends with the process.
        runtime.shutdown_background();
        served
    });
    match served {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Asks for as many open files as the process may have: a connection is one, and many systems allow 1024 until asked.
fn allow_open_files() {
    let limit = getrlimit(Resource::Nofile);
    // Where it is refused, connections beyond the limit are.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// `start`, unless `shutdown` comes first.
///
/// # Errors
/// What `start` has.
pub async fn until_shutdown<T>(
    shutdown: &CancellationToken,
    start: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<Option<T>> {
    tokio::select! {
        started = start => started.map(Some),
        () = shutdown.cancelled() => {
            tracing::info!("ended before anything was served");
            Ok(None)
        }
    }
}

/// The one thread that owns a service's model.
#[derive(Debug)]
pub struct EngineThread {
    thread: JoinHandle<anyhow::Result<()>>,
    /// Cancelled when the thread ends, for whatever reason.
    ended: CancellationToken,
}

impl EngineThread {
    /// Starts the thread. What `run` fails with is what the service fails with.
    ///
    /// # Errors
    /// The system refuses it.
    pub fn spawn(run: impl FnOnce() -> anyhow::Result<()> + Send + 'static) -> anyhow::Result<Self> {
        let ended = CancellationToken::new();
        let guard = ended.clone().drop_guard();
        let thread = thread::Builder::new()
            .name("engine".into())
            .spawn(move || {
                let _guard = guard;
                run()
            })
            .context("cannot start a thread")?;
        Ok(Self { thread, ended })
    }
}

/// A service that is loaded and bound, ready to serve.
#[derive(Debug)]
pub struct Service {
    server: Server,
    bound: Bound,
    admin: Option<(Admin, Bound)>,
    engine: EngineThread,
}

impl Service {
    /// Binds the admin port where the configuration asks for one. `metrics` renders what it shows, as
    /// [`Admin::new`] says.
    ///
    /// # Errors
    /// The admin port cannot be bound.
    pub async fn new(
        config: &ServerConfig,
        server: Server,
        bound: Bound,
        engine: EngineThread,
        metrics: impl Fn() -> String + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        let admin = match config.admin_listen {
            Some(address) => Some((Admin::new(server.health(), metrics), listener::bind(address).await?)),
            None => None,
        };
        Ok(Self { server, bound, admin, engine })
    }

    /// Where it listens, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.bound.address()
    }

    /// Where the admin port listens, with the real port. `None`: there is none.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(|(_, bound)| bound.address())
    }

    /// Serves until `shutdown`, or until the engine ends unasked: a service without its engine is of no
    /// use, and its supervisor starts another. Running calls then get the drain time of the configuration.
    ///
    /// `drain` is awaited when `shutdown` comes, before calls are refused; `stop` when all calls have
    /// ended or the drain time is over: it must make the engine's thread end, and with it every call.
    ///
    /// # Errors
    /// The engine or the transport failed.
    pub async fn serve(
        self,
        shutdown: CancellationToken,
        drain: impl Future<Output = ()> + Send + 'static,
        stop: impl Future<Output = ()>,
    ) -> anyhow::Result<Drain> {
        let Self { server, bound, admin, engine: EngineThread { thread, ended } } = self;
        let (health, last_call) = (server.health(), server.last_call());
        health.set_serving(true).await;
        let served = CancellationToken::new();
        let admin = admin.map(|(admin, bound)| tokio::spawn(admin.serve(bound, served.clone())));
        let draining = CancellationToken::new();
        let watch = {
            let draining = draining.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = shutdown.cancelled() => {
                        health.set_serving(false).await;
                        drain.await;
                    }
                    () = ended.cancelled() => {
                        tracing::error!("the engine has ended unasked; the service stops");
                        health.set_serving(false).await;
                    }
                }
                draining.cancel();
            })
        };
        let mut serving = std::pin::pin!(server.serve(bound, draining));
        let drained = tokio::select! {
            drained = &mut serving => {
                stop.await;
                drained
            }
            // The calls that still run end in good order, before they are cut off.
            () = last_call.cancelled() => {
                stop.await;
                serving.await
            }
        };
        watch.abort();
        let engine = tokio::task::spawn_blocking(move || thread.join()).await?;
        served.cancel();
        if let Some(admin) = admin {
            admin.await??;
        }
        engine.map_err(|_| anyhow!("the engine panicked; see the log above"))??;
        Ok(drained?)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn a_start_that_is_no_longer_wanted_ends() {
        let shutdown = CancellationToken::new();
        let started = until_shutdown(&shutdown, async { Ok(7) }).await;
        assert_eq!(started.unwrap(), Some(7));
        shutdown.cancel();
        let started = until_shutdown(&shutdown, pending::<anyhow::Result<u32>>()).await;
        assert_eq!(started.unwrap(), None);
    }
}
