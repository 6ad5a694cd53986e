//! Both services end to end on a card.

use std::{path::Path, time::Instant};

use anyhow::{Context as _, Result, ensure};
use attune_engine::random_checkpoint::Shape;
use attune_proto::{
    generator::v1::{
        DescribeRequest, GenerateRequest, GuidanceTerm, Sampling,
        generator_service_client::GeneratorServiceClient,
    },
    reward::v1::{Context as Reads, Guidance, Reference},
};
use tonic::transport::Channel;

use super::{Extent, Findings, models::random_base};
use crate::{
    load::{Arrivals, Load, drive, timed},
    prompts,
    service::Service,
};

/// A running pair.
struct Pair {
    client: GeneratorServiceClient<Channel>,
    _generator: Service,
    _worker: Service,
}

impl Pair {
    async fn start(
        binaries: &Path,
        base: &Path,
        persrm: &Path,
        device: &str,
        more: (&[&str], &[&str]),
    ) -> Result<Self> {
        let args = |model: &Path, more: &[&str]| -> Vec<String> {
            let own = ["--model", &model.to_string_lossy(), "--device", device, "--context", "512"];
            own.iter().chain(more).map(|&arg| arg.to_owned()).collect()
        };
        let worker = Service::start(binaries, "attune-reward", &args(persrm, more.1)).await?;
        let mut all = args(base, more.0);
        all.extend(["--reward".to_owned(), worker.endpoint.clone()]);
        let generator = Service::start(binaries, "attune-generator", &all).await?;
        Ok(Self { client: generator.client().await?, _generator: generator, _worker: worker })
    }

    async fn decode(&self, request: GenerateRequest) -> Result<Vec<u32>> {
        let mut client = self.client.clone();
        Ok(timed(&mut client, request, Instant::now(), || ()).await.context("a text failed")?.tokens)
    }

    async fn decode_all(&self, requests: &[GenerateRequest]) -> Result<Vec<Vec<u32>>> {
        let mut texts = Vec::new();
        for request in requests {
            texts.push(self.decode(request.clone()).await?);
        }
        Ok(texts)
    }
}

/// A text of `tokens` tokens without guidance.
pub(super) fn plain(ids: Vec<u32>, tokens: usize, temperature: f32) -> GenerateRequest {
    GenerateRequest {
        prompt: Some(prompts::ids(ids)),
        sampling: Some(Sampling {
            temperature: Some(temperature),
            seed: Some(7),
            max_tokens: Some(tokens as u32),
            ignore_eos: true,
            ..Sampling::default()
        }),
        ..GenerateRequest::default()
    }
}

/// The same, guided by a worker's reward model as it is.
pub(super) fn guided(ids: Vec<u32>, tokens: usize, temperature: f32) -> GenerateRequest {
    let guidance = Guidance {
        reference: Reference::Generator.into(),
        context: Reads::AsIs.into(),
        ..Guidance::default()
    };
    let term = GuidanceTerm { guidance: Some(guidance.into()), strength: Some(0.8), clip: None };
    GenerateRequest { guidances: vec![term], ..plain(ids, tokens, temperature) }
}

/// The share of tokens in which two sets of texts differ.
fn differ(a: &[Vec<u32>], b: &[Vec<u32>]) -> f64 {
    let pairs = || a.iter().zip(b).flat_map(|(a, b)| a.iter().zip(b));
    pairs().filter(|(a, b)| a != b).count() as f64 / pairs().count().max(1) as f64
}

pub(super) async fn check(ordinal: usize, extent: &Extent, findings: &mut Findings<'_>) -> Result<()> {
    let (texts, tokens, length) = if extent.quick { (2, 4, 6) } else { (8, 64, 64) };
    let many = if extent.quick { 4 } else { 16 };
    let ids = prompts::random_ids(texts, length, 1500, 11);
    let device = format!("cuda:{ordinal}");
    let requests = |temperature: f32| -> Vec<GenerateRequest> {
        ids.iter().map(|ids| guided(ids.clone(), tokens, temperature)).collect()
    };
    let (base, persrm) = (extent.demo.join("base"), extent.demo.join("persrm"));
    let start = async |device: &str, more: (&[&str], &[&str])| {
        Pair::start(&extent.binaries, &base, &persrm, device, more).await
    };
    let single = &["--dtype", "f32"][..];
    let on_cpu = start("cpu", (single, single)).await?.decode_all(&requests(0.0)).await?;
    match start(&device, (single, single)).await {
        Err(error) => findings.add("the embedded pair on the card", Some(false), format!("{error:#}")),
        Ok(pair) => {
            let described = pair.client.clone().describe(DescribeRequest {}).await?.into_inner();
            let named = described.device.starts_with(&device);
            findings.add("Describe names the card", Some(named), described.device);
            let got = pair.decode_all(&requests(0.0)).await;
            let name = "the embedded pair on the card, f32, guided, greedy: tokens as on the CPU";
            // Sums have another order there, and a tie may fall the other way: few tokens may differ.
            findings.take(name, got.and_then(|got| close(differ(&got, &on_cpu))));
            let name = format!("the same, {many} streams at once");
            findings.take(&name, streams(&pair.client, &requests(0.0), many).await);
            let sampled = pair.decode_all(&requests(0.8)).await?;
            drop(pair);
            let fused = [single, &["--set", "fuse=device"][..]].concat();
            let pair = start(&device, (&fused, single)).await?;
            let got = pair.decode_all(&requests(0.8)).await;
            let name = "fused by the kernel: the tokens of fusing on the host, sampled";
            findings.take(name, got.and_then(|got| same(differ(&got, &sampled))));
        }
    }
    for dtype in ["bf16", "f16"] {
        let more = &["--dtype", dtype][..];
        let name = format!("the embedded pair on the card, {dtype}: {many} streams at once");
        let run = async { streams(&start(&device, (more, more)).await?.client, &requests(0.0), many).await };
        findings.take(&name, run.await);
    }
    if !extent.quick {
        let folder = random_base(&extent.work, "1b", &Shape::one_billion())?;
        let run = async {
            let fused = &["--set", "fuse=device"][..];
            let pair = Pair::start(&extent.binaries, &folder, &folder, &device, (fused, &[])).await?;
            streams(&pair.client, &requests(0.0), many).await
        };
        findings.take("a random pair of 1B weights, bf16, fused by the kernel", run.await);
    }
    Ok(())
}

fn close(share: f64) -> Result<String> {
    ensure!(share < 0.25, "{:.1} % of the tokens differ", 100.0 * share);
    Ok(format!("{:.1} % of the tokens differ", 100.0 * share))
}

fn same(share: f64) -> Result<String> {
    ensure!(share == 0.0, "{:.1} % of the tokens differ", 100.0 * share);
    Ok("all the same".into())
}

async fn streams(
    client: &GeneratorServiceClient<Channel>,
    requests: &[GenerateRequest],
    many: usize,
) -> Result<String> {
    let load = Load { streams: many, texts: many, warmup: 0, arrivals: Arrivals::Closed, seed: 0 };
    let measured = drive(client, requests, &load, || ()).await?;
    ensure!(measured.failures.is_empty(), "texts failed: {:?}", measured.failures);
    let tokens: usize = measured.texts.iter().map(|t| t.tokens.len()).sum();
    Ok(format!("{} texts, {:.0} tokens a second", measured.texts.len(), tokens as f64 / measured.seconds))
}
