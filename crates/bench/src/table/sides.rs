//! Two pairs under the same load, in turn: what one of them has and the other has not costs the ratio of
//! their tokens a second.

use anyhow::Result;
use attune_proto::generator::v1::generator_service_client::GeneratorServiceClient;
use tonic::transport::Channel;

use super::{
    Settings,
    decode::{guided, middle, prompt, streams, throughput},
};

/// Streams at once: a full batch.
const STREAMS: u64 = 16;

/// What was measured.
pub(super) struct Sides {
    /// The median of the rounds' ratios.
    pub(super) ratio: f64,
    /// The medians of both sides, in tokens a second.
    pub(super) without: f64,
    pub(super) with: f64,
}

/// Measures `with` against `without`.
pub(super) async fn compare(
    settings: &Settings,
    without: &GeneratorServiceClient<Channel>,
    with: &GeneratorServiceClient<Channel>,
) -> Result<Sides> {
    let tokens = if settings.quick { 32 } else { 96 };
    // The same prompts in every round: from the second time on they are in the prefix cache, so that it is
    // decoding that is measured.
    let load = || (0..STREAMS).map(|i| guided(&prompt(1000 + i), tokens));
    for client in [without, with] {
        streams(client, load()).await?;
    }
    let (mut ratios, mut all_without, mut all_with) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..settings.rounds(11) {
        // The first of a round and the second take turns, so that what changes meanwhile changes both.
        let (a, b) = if round % 2 == 0 { (without, with) } else { (with, without) };
        let first = throughput(&streams(a, load()).await?);
        let second = throughput(&streams(b, load()).await?);
        let (plain, other) = if round % 2 == 0 { (first, second) } else { (second, first) };
        ratios.push(other / plain);
        all_without.push(plain);
        all_with.push(other);
    }
    Ok(Sides { ratio: middle(ratios), without: middle(all_without), with: middle(all_with) })
}
