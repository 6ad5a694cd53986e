//! What a long call says while it works: how far it is, and at least that it still goes on.

use std::{future::pending, pin::pin, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tonic::Status;

/// The longest silence: clocks on the way end a stream that says nothing.
const BEAT: Duration = Duration::from_secs(5);

/// Waits for `work`, and sends the news of it meanwhile: when there are some, and the same again where there are none for
/// five seconds. A reader who is slow gets the newest. `None`: nobody reads any more, and the work was dropped.
pub async fn meanwhile<M: Clone, T>(
    messages: &mpsc::Sender<Result<M, Status>>,
    news: &mut watch::Receiver<M>,
    work: impl Future<Output = T>,
) -> Option<T> {
    let mut work = pin!(work);
    loop {
        let changed = async {
            // Who told of it has ended: there is no more news.
            if news.changed().await.is_err() {
                pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            () = messages.closed() => return None,
            done = &mut work => return Some(done),
            _ = timeout(BEAT, changed) => {}
        }
        let room = tokio::select! {
            biased;
            done = &mut work => return Some(done),
            room = messages.reserve() => room.ok()?,
        };
        let now = news.borrow_and_update().clone();
        room.send(Ok(now));
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;

    type Messages = mpsc::Receiver<Result<u32, Status>>;

    fn call() -> (mpsc::Sender<Result<u32, Status>>, Messages) {
        mpsc::channel(1)
    }

    #[tokio::test(start_paused = true)]
    async fn what_changes_is_told_and_silence_is_broken() {
        let (messages, mut told) = call();
        let ((progress, mut news), begun) = (watch::channel(0), Instant::now());
        let work = async {
            sleep(Duration::from_secs(1)).await;
            progress.send_replace(7);
            sleep(Duration::from_secs(12)).await;
            "done"
        };
        let read = async {
            let mut all = Vec::new();
            while let Some(message) = told.recv().await {
                all.push((message.unwrap(), begun.elapsed().as_secs()));
            }
            all
        };
        let work = async {
            let done = meanwhile(&messages, &mut news, work).await;
            drop(messages);
            done
        };
        let (done, all) = tokio::join!(work, read);
        assert_eq!((done, all), (Some("done"), vec![(7, 1), (7, 6), (7, 11)]));
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_nobody_waits_for_is_dropped() {
        let (messages, told) = call();
        let (_, mut news) = watch::channel(0);
        let read = async {
            sleep(Duration::from_secs(2)).await;
            drop(told);
        };
        let work = meanwhile(&messages, &mut news, std::future::pending::<()>());
        assert_eq!(tokio::join!(work, read).0, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_gets_the_newest() {
        let (messages, mut told) = call();
        let (progress, mut news) = watch::channel(0);
        let work = async {
            for step in 1..=100 {
                progress.send_replace(step);
                sleep(Duration::from_millis(10)).await;
            }
            sleep(Duration::from_secs(60)).await;
        };
        let read = async {
            sleep(Duration::from_secs(3)).await;
            let mut all = Vec::new();
            while all.last() != Some(&100) {
                all.push(told.recv().await.unwrap().unwrap());
            }
            drop(told);
            all
        };
        let all = tokio::join!(meanwhile(&messages, &mut news, work), read).1;
        assert!(all.len() <= 3, "{all:?}");
    }
}
