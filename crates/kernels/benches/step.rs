//! The other parts of a step: attention over the cache, selection, and the reward's gather.
#![allow(missing_docs, clippy::unwrap_used)]

use std::time::Duration;

use attune_kernels::{
    AttentionRow, AttentionShape, Edits, EmbeddingTable, ScoreJob, Threads, paged_attention, score,
    select_row,
};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

fn numbers(n: usize) -> Vec<f32> {
    (0..n as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / 16_777_216.0 - 0.5).collect()
}

fn attention(c: &mut Criterion) {
    let mut group = c.benchmark_group("attention");
    group.sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
    let shape = AttentionShape { heads: 16, kv_heads: 4, head_dim: 64, block_size: 16, window: None };
    let threads = Threads::new(1).unwrap();
    for (rows, context) in [(1, 128), (1, 2048), (16, 512), (128, 128)] {
        let width = shape.heads * shape.head_dim;
        let kv_width = shape.kv_heads * shape.head_dim;
        let blocks: Vec<u32> = (0..(context / shape.block_size) as u32).rev().collect();
        let (k, v) = (numbers(context * kv_width), numbers(context * kv_width));
        let q = numbers(rows * width);
        let mut out = vec![0.0; q.len()];
        let rows: Vec<AttentionRow<'_>> =
            (0..rows).map(|i| AttentionRow { position: context - 1 - i, blocks: &blocks }).collect();
        // Keys and values that the rows read.
        let read: usize = rows.iter().map(|row| 2 * 4 * (row.position + 1) * kv_width).sum();
        group.throughput(Throughput::Bytes(read as u64));
        group.bench_function(BenchmarkId::new(format!("{} rows", rows.len()), context), |b| {
            b.iter(|| paged_attention(&q, &k, &v, &rows, &shape, &mut out, &threads));
        });
    }
    group.finish();
}

fn selection(c: &mut Criterion) {
    let mut group = c.benchmark_group("select");
    group.sample_size(20).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
    for vocab in [32_000, 128_256] {
        let logits = numbers(vocab);
        let seen: Vec<u32> = (0..500).map(|i| i * 61).collect();
        group.throughput(Throughput::Bytes(4 * vocab as u64));
        group.bench_function(BenchmarkId::new("plain", vocab), |b| {
            b.iter(|| select_row(&logits, 10, &Edits::NONE).unwrap());
        });
        let edits = Edits { penalty: 1.1, seen: &seen, bias: &[(7, 1.0)], banned: &[2] };
        group.bench_function(BenchmarkId::new("edited", vocab), |b| {
            b.iter(|| select_row(&logits, 10, &edits).unwrap());
        });
    }
    group.finish();
}

fn scoring(c: &mut Criterion) {
    let mut group = c.benchmark_group("score");
    group.sample_size(20).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
    let (vocab, d) = (32_000, 1024);
    let table = EmbeddingTable::from_f32(numbers(vocab * d), vocab, d).unwrap();
    let features = numbers(d);
    let threads = Threads::new(1).unwrap();
    let ids: Vec<u32> = (0..10).map(|i| i * 3001).collect();
    for rows in [1, 16] {
        let job = ScoreJob {
            table: &table,
            features: &features,
            ids: &ids,
            reference: None,
            over_vocabulary: false,
        };
        let jobs = vec![job; rows];
        group.bench_function(BenchmarkId::new("rows", rows), |b| b.iter(|| score(&jobs, &threads)));
    }
    group.finish();
}

criterion_group!(step, attention, selection, scoring);
criterion_main!(step);
