//! A text does not know its company: the same seeded requests give the same tokens, rewards and
//! log-probabilities, bit for bit, whatever runs beside them. Over real sockets.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that fails should say where

use std::path::{Path, PathBuf};

use attune_engine::random_checkpoint::{self, Family, Kind, Shape};
use attune_proto::{
    generator::v1::{GenerateRequest, GuidanceTerm, OutputOptions, generator_service_client},
    reward::v1::{Normalization, Reference},
};
use attune_tests::{Generated, Pair, by_ids, generator_load, guided};
use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use tokio::task::JoinSet;
use tonic::transport::Channel;

type Client = generator_service_client::GeneratorServiceClient<Channel>;

/// A base model, and a PersRM with the weights before its training beside it.
struct Models(tempfile::TempDir);

impl Models {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // A block takes 32 KiB.
        let shape = Shape { max_position: 256, layers: 4, kv_heads: 4, ..Shape::tiny(Family::Qwen3) };
        let write = |name: &Path, seed, kind| {
            random_checkpoint::write(&folder.path().join(name), &shape, seed, kind).unwrap();
        };
        write(Path::new("base"), 11, Kind::Base);
        write(Path::new("persrm"), 12, Kind::PersRm { value_head: true });
        write(Path::new("persrm/before"), 13, Kind::Base);
        let settings = r#"{"reference_model": "before"}"#;
        std::fs::write(folder.path().join("persrm/attune.json"), settings).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    async fn pair(&self, setting: &Setting) -> Pair {
        let Setting { threads, chunks, prefix_cache, cache_mib } = *setting;
        Pair::start_with(
            &self.path("base"),
            &self.path("persrm"),
            |g| {
                (g.engine.threads, g.engine.prefill_chunk, g.engine.prefix_cache, g.engine.cache_mib) =
                    (threads, Some(chunks.0), prefix_cache, Some(cache_mib.0));
                g.engine.slots = 20;
            },
            |r| {
                (r.engine.threads, r.engine.prefill_chunk, r.engine.prefix_cache, r.engine.cache_mib) =
                    (threads, Some(chunks.1), prefix_cache, Some(cache_mib.1));
                r.engine.slots = 50;
            },
        )
        .await
        .unwrap()
    }
}

#[derive(Debug, Clone, Copy)]
struct Setting {
    threads: usize,
    /// The generator's and the worker's.
    chunks: (usize, usize),
    prefix_cache: bool,
    cache_mib: (usize, usize),
}

/// Short prompts that go on for long; they come first.
const SHORT: u32 = 8;

/// Requests that mix everything. Long prompts begin in one of three ways.
fn requests() -> Vec<GenerateRequest> {
    let references = [Reference::Generator, Reference::Model, Reference::None];
    (0..16u32)
        .map(|i| {
            let begin = if i < SHORT { 0 } else { 40 + 7 * (i % 3) };
            let begin = (0..begin).map(|t| (t * 31 + i % 3 * 17) % 500);
            let prompt: Vec<u32> = begin.chain((0..1 + i * 5).map(|t| (t * 7 + i * 3) % 500)).collect();
            let mut request = by_ids(&prompt, if i < SHORT { 70 } else { 6 + i % 9 });
            if let Some(sampling) = &mut request.sampling {
                sampling.temperature = Some([0.0, 0.7, 1.5][i as usize % 3]);
                sampling.seed = Some(u64::from(i));
                sampling.candidates = Some(1 + (i * 5) % 64);
                sampling.top_p = Some([1.0, 0.9][i as usize % 2]);
                sampling.repetition_penalty = Some([1.0, 1.2][i as usize / 2 % 2]);
            }
            request.guidances =
                (0..i % 4).map(|j| term(0.5 + j as f32, references[(i + j) as usize % 3])).collect();
            request.output = Some(OutputOptions { token_rewards: true, candidate_tables: i % 5 == 0 });
            request
        })
        .collect()
}

fn term(strength: f32, reference: Reference) -> GuidanceTerm {
    let mut term = guided(strength);
    if let Some(guidance) = &mut term.guidance {
        guidance.reference = reference.into();
        if reference == Reference::Model {
            guidance.normalization = Normalization::Vocabulary.into();
        }
    }
    term
}

/// Comes, reads a few tokens, and leaves.
async fn passer_by(mut client: Client, seed: u64) {
    let mut dice = StdRng::seed_from_u64(seed);
    let prompt: Vec<u32> = (0..dice.random_range(1..90)).map(|_| dice.next_u32() % 500).collect();
    let mut request = by_ids(&prompt, 100);
    request.guidances = (0..dice.random_range(0..3)).map(|_| guided(1.0)).collect();
    let mut stream = client.generate(request).await.unwrap().into_inner();
    for _ in 0..dice.random_range(0..8) {
        stream.message().await.unwrap();
    }
}

#[tokio::test]
async fn company_changes_no_bit() {
    let models = Models::new();
    let requests = requests();
    let plain = Setting { threads: 1, chunks: (64, 64), prefix_cache: false, cache_mib: (64, 64) };
    let pair = models.pair(&plain).await;
    let mut client = pair.client().await.unwrap();
    let mut alone = Vec::new();
    for request in &requests {
        let answer = Generated::of(&mut client, request.clone()).await.unwrap();
        assert_eq!(answer.finish.usage.unwrap().cached_tokens, 0);
        alone.push(answer);
    }
    pair.stop().await.unwrap();

    // One MiB holds 32 blocks on the generator, two hold as many on the worker, which has two caches:
    // too few for sixteen texts of up to ten blocks, so that some are pre-empted or wait.
    for setting in [
        Setting { threads: 2, chunks: (1, 3), prefix_cache: true, cache_mib: (64, 64) },
        Setting { threads: 1, chunks: (7, 5), prefix_cache: true, cache_mib: (1, 2) },
        Setting { threads: 2, chunks: (512, 300), prefix_cache: true, cache_mib: (64, 64) },
        Setting { threads: 2, chunks: (16, 64), prefix_cache: false, cache_mib: (1, 2) },
    ] {
        let pair = models.pair(&setting).await;
        let client = pair.client().await.unwrap();
        let mut dice = StdRng::seed_from_u64(setting.chunks.0 as u64);
        let mut found = 0;
        for batch in [1, 4, 16] {
            let mut order: Vec<usize> = (0..requests.len()).collect();
            order.shuffle(&mut dice);
            if batch == 16 {
                // All of these fit at first, and no longer when they have grown.
                order.extend((0..SHORT as usize).chain(0..SHORT as usize));
            }
            for wave in order.chunks(batch) {
                let mut strangers = JoinSet::new();
                let mut together = JoinSet::new();
                for &i in wave {
                    if dice.random_bool(0.3) {
                        strangers.spawn(passer_by(client.clone(), dice.next_u64()));
                    }
                    let (mut client, request) = (client.clone(), requests[i].clone());
                    together.spawn(async move { (i, Generated::of(&mut client, request).await) });
                }
                while let Some(ended) = together.join_next().await {
                    let (i, answer) = ended.unwrap();
                    let answer = answer.unwrap();
                    let about = format!("request {i} of {batch} at once, {setting:?}");
                    assert_eq!(answer.tokens, alone[i].tokens, "{about}");
                    assert_eq!(answer.text, alone[i].text, "{about}");
                    found += answer.finish.usage.unwrap().cached_tokens;
                }
                while let Some(gone) = strangers.join_next().await {
                    gone.unwrap();
                }
            }
        }
        assert_eq!(found > 0, setting.prefix_cache, "{setting:?}");
        let load = generator_load(&mut client.clone()).await.unwrap();
        assert_eq!(load.preempted > 0, setting.cache_mib.0 == 1, "{setting:?}");
        pair.stop().await.unwrap();
    }
}
