//! Linear layers by format and rows, beside the bandwidth of memory in the same run.
//!
//! `Throughput::Bytes` counts each weight once, as memory sees it, and is to be compared with
//! `read`; at 16 rows and more the arithmetic is the limit, and `Elements` are floating-point
//! operations.
#![allow(missing_docs, clippy::unwrap_used)]

use std::time::Duration;

use attune_kernels::{Format, Linear, ReadProbe, Threads};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const N_OUT: usize = 4096;
const N_IN: usize = 2048;
/// More than caches hold.
const BYTES: usize = 512 << 20;

fn benches(c: &mut Criterion) {
    let mut group = c.benchmark_group("linear");
    group.sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let probe = ReadProbe::new(BYTES);
    let weights: Vec<f32> = (0..N_OUT * N_IN).map(|i| (i as f32 * 0.7).sin()).collect();
    for count in [1, cores] {
        let threads = Threads::new(count).unwrap();
        group.throughput(Throughput::Bytes(probe.bytes() as u64));
        group.bench_function(BenchmarkId::new("read", format!("{count} threads")), |b| {
            b.iter(|| probe.read(&threads));
        });
    }
    for format in [Format::F32, Format::Bf16, Format::F16, Format::Q8] {
        let layer = Linear::pack(&weights, N_OUT, N_IN, None, format).unwrap();
        // Copies in turn, so that no cache holds the next one.
        let layers = vec![layer.clone(); BYTES / layer.bytes() + 1];
        for count in [1, cores] {
            let threads = Threads::new(count).unwrap();
            for rows in [1, 4, 16, 64] {
                let x: Vec<f32> = (0..rows * N_IN).map(|i| (i as f32).cos()).collect();
                let mut out = vec![0.0; rows * N_OUT];
                group.throughput(match rows {
                    1 | 4 => Throughput::Bytes(layer.bytes() as u64),
                    _ => Throughput::Elements((2 * rows * N_IN * N_OUT) as u64),
                });
                let name = format!("{format:?}, {count} threads");
                let mut turn = 0;
                group.bench_function(BenchmarkId::new(name, format!("{rows} rows")), |b| {
                    b.iter(|| {
                        turn = (turn + 1) % layers.len();
                        layers[turn].forward(&x, &mut out, &threads);
                    });
                });
            }
        }
    }
    group.finish();
}

criterion_group!(linear, benches);
criterion_main!(linear);
