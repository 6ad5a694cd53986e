//! Three clocks on a stream: to its first item, between items, and to its end.
//!
//! tonic's own timeout ends with the response's head. These run beside whatever the peer does: a stream
//! whose reader has stopped reading is not polled any more, so the clocks have a task of their own, and
//! what the stream holds is freed when one of them runs out.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures::Stream;
use tokio::{task::AbortHandle, time::Instant};
use tonic::Status;

/// How long a stream may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clocks {
    /// From its start until its first item has been taken.
    pub first: Duration,
    /// From one item to the next.
    pub idle: Duration,
    /// From its start to its end.
    pub lifetime: Duration,
}

/// A stream under [`Clocks`]: when one runs out, it is dropped, and DEADLINE_EXCEEDED ends it.
pub struct Clocked<S> {
    shared: Arc<Mutex<Shared<S>>>,
    watcher: AbortHandle,
}

struct Shared<S> {
    /// `None`: it has ended.
    stream: Option<S>,
    verdict: Option<Status>,
    started: Instant,
    /// When the last item was taken.
    last: Option<Instant>,
    waker: Option<Waker>,
}

impl<S: Send + 'static> Clocked<S> {
    /// Starts the clocks. Must be called within a tokio runtime.
    pub fn new(stream: S, clocks: Clocks) -> Self {
        let started = Instant::now();
        let shared = Shared { stream: Some(stream), verdict: None, started, last: None, waker: None };
        let shared = Arc::new(Mutex::new(shared));
        let watcher = tokio::spawn(watch(Arc::clone(&shared), clocks)).abort_handle();
        Self { shared, watcher }
    }
}

impl<S> Drop for Clocked<S> {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

impl<T, S: Stream<Item = Result<T, Status>> + Unpin> Stream for Clocked<S> {
    type Item = Result<T, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut shared = lock(&self.shared);
        let Some(stream) = &mut shared.stream else { return Poll::Ready(shared.verdict.take().map(Err)) };
        match Pin::new(stream).poll_next(cx) {
            Poll::Ready(Some(item)) => {
                shared.last = Some(Instant::now());
                Poll::Ready(Some(item))
            }
            Poll::Ready(None) => {
                let ended = shared.stream.take();
                drop(shared);
                drop(ended);
                Poll::Ready(None)
            }
            Poll::Pending => {
                shared.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// Waits for the first clock that runs out, and ends the stream then.
async fn watch<S>(shared: Arc<Mutex<Shared<S>>>, clocks: Clocks) {
    loop {
        let (due, message) = {
            let shared = lock(&shared);
            if shared.stream.is_none() {
                return;
            }
            let next = match shared.last {
                None => (shared.started + clocks.first, format!("nothing came within {:?}", clocks.first)),
                Some(last) => (last + clocks.idle, format!("nothing more was taken for {:?}", clocks.idle)),
            };
            let end = (shared.started + clocks.lifetime, format!("it went on for {:?}", clocks.lifetime));
            if end.0 < next.0 { end } else { next }
        };
        if due > Instant::now() {
            tokio::time::sleep_until(due).await;
            // An item may have been taken meanwhile.
            continue;
        }
        let mut shared = lock(&shared);
        shared.verdict = Some(Status::deadline_exceeded(format!("the stream was ended: {message}")));
        let (stream, waker) = (shared.stream.take(), shared.waker.take());
        drop(shared);
        drop(stream);
        if let Some(waker) = waker {
            waker.wake();
        }
        return;
    }
}

fn lock<S>(shared: &Mutex<Shared<S>>) -> MutexGuard<'_, Shared<S>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::ReceiverStream;
    use tonic::Code;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const CLOCKS: Clocks =
        Clocks { first: Duration::from_secs(10), idle: SECOND, lifetime: Duration::from_secs(30) };

    type Items = mpsc::Sender<Result<u32, Status>>;

    fn stream() -> (Items, Clocked<ReceiverStream<Result<u32, Status>>>) {
        let (items, stream) = mpsc::channel(64);
        (items, Clocked::new(ReceiverStream::new(stream), CLOCKS))
    }

    async fn ends_after(stream: &mut Clocked<ReceiverStream<Result<u32, Status>>>) -> Duration {
        let start = Instant::now();
        let status = stream.next().await.unwrap().unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
        assert!(stream.next().await.is_none());
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_item_has_a_clock_of_its_own() {
        let (items, mut stream) = stream();
        let elapsed = ends_after(&mut stream).await;
        assert!((CLOCKS.first..CLOCKS.first + SECOND / 100).contains(&elapsed), "{elapsed:?}");
        assert!(items.is_closed(), "what it held is free");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_between_items_ends_it() {
        let (items, mut stream) = stream();
        tokio::time::sleep(9 * SECOND).await;
        for i in 0..3 {
            items.send(Ok(i)).await.unwrap();
            assert_eq!(stream.next().await.unwrap().unwrap(), i);
            tokio::time::sleep(SECOND * 9 / 10).await;
        }
        let elapsed = ends_after(&mut stream).await;
        assert!(elapsed <= SECOND / 5, "{elapsed:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stops_reading_holds_nothing() {
        let (items, mut stream) = stream();
        for i in 0..64 {
            items.send(Ok(i)).await.unwrap();
        }
        assert_eq!(stream.next().await.unwrap().unwrap(), 0);
        // Nobody polls, and yet the stream is gone.
        tokio::time::sleep(2 * SECOND).await;
        assert!(items.is_closed());
        assert!(stream.next().await.unwrap().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn no_stream_lives_for_ever() {
        let (items, mut stream) = stream();
        let start = Instant::now();
        let feeder = tokio::spawn(async move {
            while items.send(Ok(1)).await.is_ok() {
                tokio::time::sleep(SECOND / 2).await;
            }
        });
        while let Some(item) = stream.next().await {
            if item.is_err() {
                break;
            }
        }
        assert!((CLOCKS.lifetime..CLOCKS.lifetime + SECOND).contains(&start.elapsed()));
        feeder.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_in_time_is_left_alone() {
        let (items, mut stream) = stream();
        items.send(Ok(1)).await.unwrap();
        drop(items);
        assert_eq!(stream.next().await.unwrap().unwrap(), 1);
        assert!(stream.next().await.is_none());
        tokio::time::sleep(CLOCKS.lifetime * 2).await;
        assert!(stream.next().await.is_none());
    }
}
