//! Two pairs under the same load, in turn: what one of them has and the other has not costs the ratio of
//! their tokens a second.

use anyhow::Result;
use attune_proto::generator::v1::generator_service_client::GeneratorServiceClient;
use tonic::transport::Channel;

use super::decode::{guided, middle, prompt, streams, throughput};

/// Streams at once: a full batch.
const STREAMS: u64 = 16;

/// Tokens a second of both sides, round by round.
#[derive(Default)]
pub(super) struct Sides {
    without: Vec<f64>,
    with: Vec<f64>,
}

impl Sides {
    /// The median of the rounds' ratios.
    pub(super) fn ratio(&self) -> f64 {
        middle(self.ratios())
    }

    /// Its standard error, were the ratios drawn from a normal distribution (of which the median of many draws
    /// is 1.25 times as uncertain as the mean).
    pub(super) fn error(&self) -> f64 {
        let n = self.with.len() as f64;
        let mean = self.ratios().sum::<f64>() / n;
        let squares: f64 = self.ratios().map(|ratio| (ratio - mean).powi(2)).sum();
        1.2533 * (squares / (n - 1.0).max(1.0) / n).sqrt()
    }

    /// The medians of both, in tokens a second: without, and with.
    pub(super) fn speeds(&self) -> (f64, f64) {
        (middle(self.without.iter().copied()), middle(self.with.iter().copied()))
    }

    fn ratios(&self) -> impl Iterator<Item = f64> {
        self.with.iter().zip(&self.without).map(|(with, without)| with / without)
    }

    /// Measures `with` against `without` for so many rounds of so many tokens a text.
    pub(super) async fn measure(
        &mut self,
        (rounds, tokens): (usize, u32),
        without: &GeneratorServiceClient<Channel>,
        with: &GeneratorServiceClient<Channel>,
    ) -> Result<()> {
        // The same prompts in every round: from the second time on they are in the prefix cache, so that it is
        // decoding that is measured.
        let load = || (0..STREAMS).map(|i| guided(&prompt(1000 + i), tokens));
        for client in [without, with] {
            streams(client, load()).await?;
        }
        for round in 0..rounds {
            // The first of a round and the second take turns, so that what changes meanwhile changes both.
            let (a, b) = if round % 2 == 0 { (without, with) } else { (with, without) };
            let first = throughput(&streams(a, load()).await?);
            let second = throughput(&streams(b, load()).await?);
            let (plain, other) = if round % 2 == 0 { (first, second) } else { (second, first) };
            self.without.push(plain);
            self.with.push(other);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_the_rounds_and_not_that_of_the_medians() {
        // The second round ran on a machine twice as fast: within each round the cost is the same.
        let sides = Sides { without: vec![100.0, 200.0, 100.0], with: vec![98.0, 196.0, 98.0] };
        assert!((sides.ratio() - 0.98).abs() < 1e-12 && sides.error() < 1e-12);
        assert_eq!(sides.speeds(), (100.0, 98.0));
        let sides = Sides { without: vec![1.0; 4], with: vec![0.9, 1.1, 0.9, 1.1] };
        assert!((sides.error() - 1.2533 * (0.04 / 3.0 / 4.0f64).sqrt()).abs() < 1e-9);
    }
}
