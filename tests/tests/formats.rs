//! The pair on models in other forms: GGUF files, and weights packed at load.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that fails should say where

#[path = "../../crates/engine/tests/gguf/writer.rs"]
mod writer;

use attune_engine::random_checkpoint::{self, Family, Kind, Shape};
use attune_proto::{
    generator::v1::{DescribeRequest, GenerateRequest},
    reward::v1::{DescribeRequest as DescribeWorker, reward_service_client::RewardServiceClient},
};
use attune_service::engine::Quantize;
use attune_tests::{Generated, Pair, by_ids, guided};
use candle_core::quantized::GgmlDType;
use tokio::task::JoinSet;
use writer::Gguf;

fn requests() -> Vec<GenerateRequest> {
    let request = |seed: u32| {
        let ids: Vec<u32> = (0..9 + seed).map(|i| 6 + (i * 37 + seed * 11) % 480).collect();
        GenerateRequest { guidances: vec![guided(0.8)], ..by_ids(&ids, 20) }
    };
    (0..4).map(request).collect()
}

/// The tokens of every request, one after the other.
async fn alone(pair: &Pair) -> Vec<Vec<u32>> {
    let mut client = pair.client().await.unwrap();
    let mut all = Vec::new();
    for request in requests() {
        let generated = Generated::of(&mut client, request).await.unwrap();
        assert!(generated.tokens.iter().all(|t| t.guided));
        all.push(generated.ids());
    }
    all
}

/// The same, all at once.
async fn together(pair: &Pair) -> Vec<Vec<u32>> {
    let client = pair.client().await.unwrap();
    let mut running = JoinSet::new();
    for (i, request) in requests().into_iter().enumerate() {
        let mut client = client.clone();
        running.spawn(async move { (i, Generated::of(&mut client, request).await.unwrap().ids()) });
    }
    let mut all = running.join_all().await;
    all.sort();
    all.into_iter().map(|(_, ids)| ids).collect()
}

/// What both sides say they compute in.
async fn dtypes(pair: &Pair) -> [String; 2] {
    let mut worker = RewardServiceClient::connect(pair.workers[0].clone()).await.unwrap();
    let generator = pair.client().await.unwrap().describe(DescribeRequest {}).await.unwrap().into_inner();
    let worker = worker.describe(DescribeWorker::default()).await.unwrap().into_inner();
    assert_eq!((generator.model_id.as_str(), worker.model_id.as_str()), ("base", "persrm"));
    [generator.dtype, worker.dtype]
}

#[tokio::test]
async fn a_pair_of_gguf_files_decodes_what_the_checkpoints_decode() {
    let root = tempfile::tempdir().unwrap();
    let (base, persrm) = (root.path().join("base"), root.path().join("persrm"));
    let shape = Shape::tiny(Family::Llama);
    random_checkpoint::write(&base, &shape, 1, Kind::Base).unwrap();
    random_checkpoint::write(&persrm, &shape, 2, Kind::PersRm { value_head: false }).unwrap();
    let (base_file, persrm_file) = (root.path().join("base.gguf"), root.path().join("persrm.gguf"));
    Gguf::of(&base, GgmlDType::F32).write(&base_file);
    Gguf::of(&persrm, GgmlDType::F32).write(&persrm_file);

    let pair = Pair::start(&base, &persrm).await.unwrap();
    let wanted = alone(&pair).await;
    pair.stop().await.unwrap();
    let pair = Pair::start(&base_file, &persrm_file).await.unwrap();
    assert_eq!(alone(&pair).await, wanted);
    assert_eq!(dtypes(&pair).await, ["f32", "f32"]);
    pair.stop().await.unwrap();
}

#[tokio::test]
async fn packed_weights_serve_as_others_do() {
    let shape = Shape::tiny(Family::Qwen3);
    let pair = Pair::random_with(
        &shape,
        (1, 2),
        |g| g.engine.quantize = Quantize::Q8,
        |r| r.engine.quantize = Quantize::Q8,
    )
    .await
    .unwrap();
    assert_eq!(dtypes(&pair).await, ["q8", "q8"]);
    assert_eq!(together(&pair).await, alone(&pair).await);
    pair.stop().await.unwrap();
}
