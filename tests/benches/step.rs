//! One decoding step of the pair on the 'small' shape, guided (the wire included) and plain.
//!
//! Both services run in this process, each on one thread, and talk over loopback. A measurement is the
//! time from a text's first token to its last, over the steps between: prefill is not in it.

#![allow(clippy::expect_used)] // a benchmark that fails should say where

use std::time::{Duration, Instant};

use attune_engine::random_checkpoint::Shape;
use attune_proto::generator::v1::{GenerateRequest, generator_service_client::GeneratorServiceClient};
use attune_tests::{Pair, by_ids, guided};
use criterion::{Criterion, criterion_group, criterion_main};
use tonic::transport::Channel;

/// The longest text of one measurement: with its prompt it fits the context.
const STEPS: u64 = 512;

fn request(steps: u64, strength: Option<f32>) -> GenerateRequest {
    let prompt: Vec<u32> = (0..128).map(|i| (i * 37 + 11) % 4000).collect();
    let guidances = strength.map(guided).into_iter().collect();
    GenerateRequest { guidances, ..by_ids(&prompt, steps as u32 + 1) }
}

async fn decode(client: &mut GeneratorServiceClient<Channel>, steps: u64, strength: Option<f32>) -> Duration {
    let mut elapsed = Duration::ZERO;
    let mut left = steps;
    while left > 0 {
        let now = left.min(STEPS);
        let stream = client.generate(request(now, strength)).await;
        let mut stream = stream.expect("the pair answers").into_inner();
        let mut first = None;
        let mut last = Instant::now();
        while let Some(message) = stream.message().await.expect("the text goes on") {
            if !message.tokens.is_empty() {
                last = Instant::now();
                first.get_or_insert(last);
            }
        }
        elapsed += last - first.unwrap_or(last);
        left -= now;
    }
    elapsed
}

fn steps(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let pair =
        runtime.block_on(Pair::random(&Shape::small(), (20_260_101, 20_260_202))).expect("the pair starts");
    let mut client = runtime.block_on(pair.client()).expect("the generator answers");
    let mut group = criterion.benchmark_group("step/small");
    group.sample_size(10);
    for (name, strength) in [("plain", None), ("guided", Some(0.8))] {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| runtime.block_on(decode(&mut client, iterations, strength)));
        });
    }
    group.finish();
    runtime.block_on(pair.stop()).expect("the pair ends");
}

criterion_group!(benches, steps);
criterion_main!(benches);
