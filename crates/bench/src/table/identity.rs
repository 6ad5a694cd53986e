//! Whether a text stays the same in any company: alone, among 4 and 16, with prefix hits, and after a
//! worker is killed in its middle.

use std::time::Instant;

use anyhow::{Context as _, Result};
use attune_proto::generator::v1::{
    GenerateRequest, Sampling, generator_service_client::GeneratorServiceClient,
};
use tokio::sync::mpsc;
use tonic::transport::Channel;

use super::{
    Settings, Size,
    decode::{decode, guided, prompt},
    half,
    rows::{Key, Results},
    service::Service,
};
use crate::load::{TextTimes, timed};

const TEXTS: usize = 16;
/// The worker is killed once the texts have this many tokens each, taken together.
const TOKENS_BEFORE: usize = 8;

pub(super) async fn run(settings: &Settings, results: &mut Results<'_>) -> Result<()> {
    if !settings.wants(Key::Identity) {
        return Ok(());
    }
    results.say("the same texts in all kinds of company, on 'small' with two workers");
    let size = Size::Small;
    let first = Service::worker(settings, size, half(), &[]).await?;
    let second = Service::worker(settings, size, half(), &[]).await?;
    let workers = [first.endpoint.as_str(), second.endpoint.as_str()];
    let generator = Service::generator(settings, size, half(), &workers, &[]).await?;
    let client = generator.client().await?;
    let requests: Vec<GenerateRequest> = (0..TEXTS).map(|i| request(i, settings.tokens(48))).collect();

    let mut want = Vec::new();
    for request in &requests {
        want.push(decode(&client, request.clone()).await?);
    }
    let mut found = Found { want: &want, same: 0, all: 0, remarks: Vec::new() };
    let mut again = Vec::new();
    for request in &requests {
        again.push(decode(&client, request.clone()).await?);
    }
    let (before, hits) = (cached(&want), cached(&again));
    found.compare(&format!("again ({before} prompt tokens from the cache, then {hits})"), &again);
    for width in [4, TEXTS] {
        let mut company = Vec::new();
        for requests in requests.chunks(width) {
            company.extend(together(&client, requests, || ()).await?);
        }
        found.compare(&format!("among {width}"), &company);
    }
    let (seen, mut tokens) = mpsc::unbounded_channel();
    let kill = tokio::spawn(async move {
        for _ in 0..TOKENS_BEFORE * TEXTS {
            tokens.recv().await.context("the texts ended before a worker was killed")?;
        }
        first.kill().await
    });
    let survived = together(&client, &requests, move || {
        // Nobody counts any more once the worker is killed.
        let _ = seen.send(());
    })
    .await?;
    kill.await??;
    found.compare("with a worker killed", &survived);
    let Found { same, all, remarks, .. } = found;
    results.add(Key::Identity, same as f64 / all as f64, &remarks.join(", "));
    Ok(())
}

/// Texts of different lengths, half of them sampled.
fn request(i: usize, tokens: u32) -> GenerateRequest {
    let ids = prompt(600 + i as u64);
    let request = guided(&ids[..32 + 6 * i], tokens);
    let sampling = request.sampling.unwrap_or_default();
    let temperature = if i.is_multiple_of(2) { 0.0 } else { 0.9 };
    let sampling = Sampling { temperature: Some(temperature), seed: Some(i as u64), ..sampling };
    GenerateRequest { sampling: Some(sampling), ..request }
}

/// All at once; `on_token` hears of every token.
async fn together(
    client: &GeneratorServiceClient<Channel>,
    requests: &[GenerateRequest],
    on_token: impl Fn() + Clone + Send + 'static,
) -> Result<Vec<TextTimes>> {
    let begun: Vec<_> = requests
        .iter()
        .map(|request| {
            let (mut client, request, on_token) = (client.clone(), request.clone(), on_token.clone());
            tokio::spawn(async move { timed(&mut client, request, Instant::now(), on_token).await })
        })
        .collect();
    let mut texts = Vec::new();
    for text in begun {
        texts.push(text.await?.context("a text failed")?);
    }
    Ok(texts)
}

fn cached(texts: &[TextTimes]) -> u32 {
    texts.iter().map(|t| t.usage().cached_tokens).sum()
}

struct Found<'a> {
    want: &'a [TextTimes],
    same: usize,
    all: usize,
    remarks: Vec<String>,
}

impl Found<'_> {
    fn compare(&mut self, company: &str, texts: &[TextTimes]) {
        let same = self.want.iter().zip(texts).filter(|(a, b)| a.tokens == b.tokens).count();
        self.same += same;
        self.all += self.want.len();
        self.remarks.push(format!("{company}: {same} of {}", self.want.len()));
    }
}
