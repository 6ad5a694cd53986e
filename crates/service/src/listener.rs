//! A bound socket and its connections, which a server can cut off.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::{Stream, StreamExt as _};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};
use tokio_stream::wrappers::TcpListenerStream;
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

    /// The connections; all of them end when `abort` is cancelled.
    pub(crate) fn connections(self, abort: CancellationToken) -> impl Stream<Item = io::Result<Connection>> {
        TcpListenerStream::new(self.listener).map(move |accepted| {
            let stream = accepted?;
            // One small message each way per decoding step: waiting to fill a packet would cost 40 ms.
            stream.set_nodelay(true)?;
            Ok(Connection { stream, abort: Box::pin(abort.clone().cancelled_owned()) })
        })
    }
}

/// A connection that fails once its server has given up waiting for it.
pub(crate) struct Connection {
    stream: TcpStream,
    abort: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Connection {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.abort.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the server has ended")),
            Poll::Pending => Ok(()),
        }
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
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Pending => {
                self.check(cx)?;
                Poll::Pending
            }
            done => done,
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
