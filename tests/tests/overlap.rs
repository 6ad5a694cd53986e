//! Both services' forwards of one step run at once: the trace shows it.
//!
//! Each forward that begins is held up until the other service's forward of the same step has begun as
//! well. If one of them waited for the other's end, the two would never meet, on a machine of any speed.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that fails should say where

use std::{
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use attune_engine::random_checkpoint::{Family, Shape};
use attune_tests::{Generated, Pair, by_ids, guided};
use tracing::{Id, Metadata, Subscriber, span::Attributes};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt as _},
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};

const SERVICES: [&str; 2] = ["attune_generator", "attune_reward"];
/// No forward takes this long to begin once the other has.
const PATIENCE: Duration = Duration::from_secs(20);

/// When each service's forwards began and ended, in their order.
#[derive(Debug, Default)]
struct Seen {
    begun: [Vec<Instant>; 2],
    ended: [Vec<Instant>; 2],
}

/// Sees the spans "forward" of both services.
#[derive(Clone, Default)]
struct Meeting(Arc<(Mutex<Seen>, Condvar)>);

/// Whose forward it is.
fn service(span: &Metadata<'_>) -> Option<usize> {
    let of = SERVICES.iter().position(|name| span.target().starts_with(name));
    of.filter(|_| span.name() == "forward")
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Meeting {
    fn on_new_span(&self, attributes: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
        let Some(me) = service(attributes.metadata()) else { return };
        let (seen, changed) = &*self.0;
        let mut seen = seen.lock().unwrap();
        seen.begun[me].push(Instant::now());
        changed.notify_all();
        let step = seen.begun[me].len();
        // A meeting that fails is seen below: this forward then ends before the other begins.
        drop(changed.wait_timeout_while(seen, PATIENCE, |seen| seen.begun[1 - me].len() < step));
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(me) = service(context.span(&id).unwrap().metadata()) else { return };
        self.0.0.lock().unwrap().ended[me].push(Instant::now());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_worker_computes_a_step_while_the_generator_does() {
    let pair = Pair::random(&Shape::tiny(Family::Llama), (1, 2)).await.unwrap();
    let mut client = pair.client().await.unwrap();
    // A generator serves before its first worker is connected, and prefills meanwhile.
    let mut first = by_ids(&[7], 1);
    first.guidances = vec![guided(0.8)];
    Generated::of(&mut client, first).await.unwrap();

    let meeting = Meeting::default();
    tracing_subscriber::registry().with(meeting.clone()).init();
    let mut request = by_ids(&[5, 17, 91, 33], 12);
    request.guidances = vec![guided(0.8)];
    Generated::of(&mut client, request).await.unwrap();
    pair.stop().await.unwrap();

    let seen = meeting.0.0.lock().unwrap();
    // The prompt, and every token but the last.
    assert_eq!(seen.begun.each_ref().map(Vec::len), [12, 12]);
    for step in 0..12 {
        let begun = seen.begun.each_ref().map(|times| times[step]);
        let ended = seen.ended.each_ref().map(|times| times[step]);
        let (last_begun, first_ended) = (begun.into_iter().max(), ended.into_iter().min());
        assert!(last_begun < first_ended, "the forwards of step {step} ran one after the other");
    }
}
