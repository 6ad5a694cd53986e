//! A thousand people in the batch mix against one: what it costs that every row has weights of its own.

use anyhow::{Context as _, Result, ensure};
use attune_proto::{
    generator::v1::{GenerateRequest, GuidanceTerm},
    profile::v1::{Profile, PutRequest, profile_service_client::ProfileServiceClient},
    reward::v1::{
        Context as Reads, DescribeRequest, Guidance, Reference, Weights,
        reward_service_client::RewardServiceClient,
    },
};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::{
    Settings, Size,
    decode::{STRENGTH, middle, plain, prompt},
    half,
    rows::{Key, Results},
    service::Service,
};
use crate::load::{Arrivals, Load, drive};

/// Different people.
const PEOPLE: usize = 1000;
/// Streams at once.
const STREAMS: usize = 16;
/// Tokens of a prompt: short, so that decoding is most of the work.
const PROMPT: usize = 16;
/// In how many parts the people take their turns with the one.
const ROUNDS: usize = 20;

pub(super) async fn run(settings: &Settings, results: &mut Results<'_>) -> Result<()> {
    if !settings.wants(Key::Profiles) {
        return Ok(());
    }
    results.say("a thousand profiles, on the 'small' shape");
    let folder = tempfile::tempdir()?;
    let url = format!("profiles.url=sqlite:{}", folder.path().join("profiles.db").display());
    // A prompt that is found in the cache would be found by the second side alone.
    let fresh = ["--set", "prefix_cache=false"];
    let size = Size::Small;
    let worker = Service::worker(settings, size, half(), &[&fresh[..], &["--set", &url]].concat()).await?;
    let generator = Service::generator(settings, size, half(), &[&worker.endpoint], &fresh).await?;
    let people = if settings.quick { 32 } else { PEOPLE };
    put(&worker.endpoint, people).await?;

    let client = generator.client().await?;
    let (each, tokens) = (people / settings.rounds(ROUNDS), settings.tokens(32));
    let mut ratios = Vec::new();
    let mut last = [0.0; 2];
    for round in 0..settings.rounds(ROUNDS) {
        // Who comes first changes, so that a machine that gets slower favours nobody.
        for side in [round % 2, 1 - round % 2] {
            let request =
                |i: usize| guided(round * each + i, if side == 0 { round * each + i } else { 0 }, tokens);
            let requests: Vec<_> = (0..each).map(request).collect();
            let load = Load { streams: STREAMS, texts: each, warmup: 0, arrivals: Arrivals::Closed, seed: 0 };
            let measured = drive(&client, &requests, &load, || ()).await?;
            ensure!(measured.failures.is_empty(), "texts failed: {:?}", measured.failures);
            let all: usize = measured.texts.iter().map(|text| text.tokens.len()).sum();
            last[side] = all as f64 / measured.seconds;
        }
        ratios.push(last[0] / last[1]);
    }
    let remark = format!("{people} people {:.1} tokens/s, one {:.1}, {STREAMS} streams", last[0], last[1]);
    results.add(Key::Profiles, middle(ratios), &remark);
    Ok(())
}

/// Keeps these many different people.
async fn put(worker: &str, people: usize) -> Result<()> {
    let mut describe = RewardServiceClient::connect(worker.to_owned()).await?;
    let d = describe.describe(DescribeRequest::default()).await?.into_inner().hidden_size;
    let mut profiles = ProfileServiceClient::connect(worker.to_owned()).await?;
    let mut dice = ChaCha8Rng::seed_from_u64(1);
    for person in 0..people {
        let values = (0..d).map(|_| dice.random_range(0.5..1.5)).collect();
        let profile = Profile { name: name(person), weights: Some(Weights { values }), ..Profile::default() };
        let put = PutRequest { profile: Some(profile), ..PutRequest::default() };
        profiles.put(put).await.with_context(|| format!("person {person}"))?;
    }
    Ok(())
}

fn name(person: usize) -> String {
    format!("person {person}")
}

/// A text for a person.
fn guided(text: usize, person: usize, tokens: u32) -> GenerateRequest {
    let guidance = Guidance {
        profile: Some(name(person)),
        reference: Reference::Generator.into(),
        context: Reads::AsIs.into(),
        ..Guidance::default()
    };
    let term = GuidanceTerm { guidance: Some(guidance.into()), strength: Some(STRENGTH), clip: None };
    GenerateRequest { guidances: vec![term], ..plain(&prompt(1000 + text as u64)[..PROMPT], tokens) }
}
