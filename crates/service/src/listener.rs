//! A bound socket and its connections, plain or by TLS, which a server can cut off.

use std::{
    future::pending,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::{Stream, stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::Sleep,
};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::{
    reload::FileError,
    sections::ServerConfig,
    tls::{self, ServerTls},
};

/// A socket that is bound but not served yet: clients that connect wait.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<ServerTls>,
}

/// A service's port that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The address is taken, not ours, or not permitted.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A certificate or a key cannot be used.
    #[error(transparent)]
    Tls(#[from] FileError),
}

/// A socket that could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}; choose another address, or port 0 for a free one")]
pub struct BindError {
    address: SocketAddr,
    source: io::Error,
}

/// Binds a service's port, with TLS where the configuration asks for it. Must be called within a tokio
/// runtime.
///
/// # Errors
/// [`OpenError`].
pub async fn open(config: &ServerConfig) -> Result<Bound, OpenError> {
    let tls = config.tls.load(config.reload())?;
    Ok(Bound { tls, ..bind(config.listen).await? })
}

/// Binds an address, for plain text; port 0 takes a free one.
///
/// # Errors
/// [`BindError`]: in use, not ours, or not permitted.
pub async fn bind(address: SocketAddr) -> Result<Bound, BindError> {
    let fail = |source| BindError { address, source };
    let listener = TcpListener::bind(address).await.map_err(fail)?;
    let bound = listener.local_addr().map_err(fail)?;
    Ok(Bound { listener, address: bound, tls: None })
}

impl Bound {
    /// The address with its real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The connections, at most so many at once; all of them end when `abort` is cancelled. `silence` is
    /// how long a client may take to be met by TLS, and to say what every client says first.
    pub(crate) fn connections(
        self,
        most: usize,
        silence: Duration,
        abort: CancellationToken,
    ) -> impl Stream<Item = io::Result<Connection>> {
        let places = Arc::new(Semaphore::new(most));
        let turned_away = AtomicBool::new(false);
        let door = Door { listener: self.listener, tls: self.tls, places, silence, abort, turned_away };
        stream::unfold((door, JoinSet::new()), async |(door, mut handshakes)| {
            let next = loop {
                tokio::select! {
                    arrived = door.arrived() => drop(handshakes.spawn(door.meet(arrived))),
                    Some(met) = handshakes.join_next() => match met {
                        Ok(Ok(connection)) => break connection,
                        // One client's failure, and nobody else's.
                        Ok(Err(error)) => tracing::debug!(%error, "a client was turned away"),
                        Err(_) => {}
                    },
                }
            };
            Some((Ok(next), (door, handshakes)))
        })
    }
}

/// Between two tries where the system gives no connection.
const PAUSE: Duration = Duration::from_millis(100);

/// Where connections come in.
struct Door {
    listener: TcpListener,
    tls: Option<ServerTls>,
    places: Arc<Semaphore>,
    silence: Duration,
    abort: CancellationToken,
    /// Whether the system refused the last one.
    turned_away: AtomicBool,
}

impl Door {
    /// The next connection, with its place.
    async fn arrived(&self) -> (TcpStream, OwnedSemaphorePermit) {
        loop {
            // Nobody closes it.
            let Ok(place) = Arc::clone(&self.places).acquire_owned().await else { pending().await };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    self.turned_away.store(false, Relaxed);
                    return (stream, place);
                }
                // It was gone before it was taken.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    if !self.turned_away.swap(true, Relaxed) {
                        tracing::warn!(%error, "no connection can be taken now; allow the process more open files, or lower server.limits.connections");
                    }
                    // The system says that files have run out, and not when there are some again.
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Makes a connection of it, on a task of its own: handshakes of many go on side by side, and a slow
    /// one holds up nobody.
    fn meet(
        &self,
        (stream, place): (TcpStream, OwnedSemaphorePermit),
    ) -> impl Future<Output = io::Result<Connection>> + use<> {
        let (silence, abort) = (self.silence, self.abort.clone());
        let tls = self.tls.as_ref().map(|tls| Arc::clone(&tls.borrow()));
        async move {
            // One small message each way per decoding step: waiting to fill a packet would cost 40 ms.
            stream.set_nodelay(true)?;
            let socket = match tls {
                None => Socket::Plain(stream),
                Some(config) => Socket::Tls(Box::new(tls::accept(stream, config, silence).await?)),
            };
            let silent = Some((PREFACE, Box::pin(tokio::time::sleep(silence))));
            let abort = Box::pin(abort.cancelled_owned());
            Ok(Connection { socket, abort, silent, _place: place })
        }
    }
}

/// What carries a connection's bytes.
enum Socket {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Does the same on either socket.
macro_rules! on_either {
    ($socket:expr, $stream:ident => $does:expr) => {
        match $socket {
            Socket::Plain($stream) => $does,
            Socket::Tls($stream) => $does,
        }
    };
}

/// A connection that fails once its server has given up waiting for it.
pub(crate) struct Connection {
    socket: Socket,
    abort: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Bytes still missing of what every client sends at once, and until when.
    silent: Option<(usize, Pin<Box<Sleep>>)>,
    _place: OwnedSemaphorePermit,
}

/// HTTP/2's preface; the shortest request of HTTP/1 is no longer.
const PREFACE: usize = 16;

impl Connection {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.abort.as_mut().poll(cx).is_ready() {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the server has ended"));
        }
        if let Some((_, timeout)) = &mut self.silent
            && timeout.as_mut().poll(cx).is_ready()
        {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the client says nothing"));
        }
        Ok(())
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        match &self.socket {
            Socket::Plain(stream) => stream.connect_info(),
            Socket::Tls(stream) => stream.get_ref().0.connect_info(),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Data first: the token is asked only when the connection would wait, which keeps its lock out
        // of the path of a busy stream.
        let before = buf.filled().len();
        match on_either!(&mut self.socket, stream => Pin::new(stream).poll_read(cx, buf)) {
            Poll::Pending => {
                self.check(cx)?;
                Poll::Pending
            }
            done => {
                if let Some((missing, _)) = &mut self.silent {
                    *missing = missing.saturating_sub(buf.filled().len() - before);
                    if *missing == 0 {
                        self.silent = None;
                    }
                }
                done
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        on_either!(&mut self.socket, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on_either!(&mut self.socket, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        on_either!(&self.socket, stream => stream.is_write_vectored())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_either!(&mut self.socket, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_either!(&mut self.socket, stream => Pin::new(stream).poll_shutdown(cx))
    }
}
