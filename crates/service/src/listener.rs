//! A bound socket and its connections, which a server can cut off.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::{Stream, stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Sleep,
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::{Connected, TcpConnectInfo};

/// A socket that is bound but not served yet: clients that connect wait.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    address: SocketAddr,
}

/// A socket that could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}; choose another address, or port 0 for a free one")]
pub struct BindError {
    address: SocketAddr,
    source: io::Error,
}

/// Binds an address; port 0 takes a free one.
///
/// # Errors
/// [`BindError`]: in use, not ours, or not permitted.
pub async fn bind(address: SocketAddr) -> Result<Bound, BindError> {
    let fail = |source| BindError { address, source };
    let listener = TcpListener::bind(address).await.map_err(fail)?;
    let bound = listener.local_addr().map_err(fail)?;
    Ok(Bound { listener, address: bound })
}

impl Bound {
    /// The address with its real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The connections, at most so many at once; all of them end when `abort` is cancelled.
    pub(crate) fn connections(
        self,
        most: usize,
        abort: CancellationToken,
    ) -> impl Stream<Item = io::Result<Connection>> {
        let places = Arc::new(Semaphore::new(most));
        stream::unfold((self.listener, places, abort), async |(listener, places, abort)| {
            // It fails only for a semaphore that is closed, which this one never is.
            let place = Arc::clone(&places).acquire_owned().await.ok()?;
            let accepted = listener.accept().await.and_then(|(stream, _)| {
                // One small message each way per decoding step: waiting to fill a packet would cost 40 ms.
                stream.set_nodelay(true)?;
                let abort = Box::pin(abort.clone().cancelled_owned());
                let silent = Some((PREFACE, Box::pin(tokio::time::sleep(PREFACE_TIMEOUT))));
                Ok(Connection { stream, abort, silent, _place: place })
            });
            Some((accepted, (listener, places, abort)))
        })
    }
}

/// A connection that fails once its server has given up waiting for it.
pub(crate) struct Connection {
    stream: TcpStream,
    abort: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Bytes still missing of what every client sends at once, and until when.
    silent: Option<(usize, Pin<Box<Sleep>>)>,
    _place: OwnedSemaphorePermit,
}

/// HTTP/2's preface; the shortest request of HTTP/1 is no longer.
const PREFACE: usize = 16;
/// A client that has not said so much by then only holds a place.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);

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
        self.stream.connect_info()
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
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
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
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = ready!(Pin::new(&mut self.stream).poll_shutdown(cx));
        Poll::Ready(done)
    }
}
