//! Load on a running pair: concurrent streams, and when each token of each text came.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use attune_proto::generator::v1::{
    Finish, GenerateRequest, Usage, generator_service_client::GeneratorServiceClient,
};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tokio::task::JoinSet;
use tonic::{Code, Status, transport::Channel};

/// When texts are asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arrivals {
    /// Each stream asks for its next text as soon as its last has ended.
    Closed,
    /// One every `1 / rate` seconds, as long as a stream is free.
    Fixed {
        /// Texts a second, above 0.
        rate: f64,
    },
    /// A Poisson process: independent, exponentially distributed pauses.
    Poisson {
        /// Texts a second at the mean, above 0.
        rate: f64,
    },
}

/// How much load.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Streams at once; at least 1.
    pub streams: usize,
    /// Texts that are measured.
    pub texts: usize,
    /// Texts before them that are not.
    pub warmup: usize,
    /// When they are asked for.
    pub arrivals: Arrivals,
    /// The seed of the arrivals.
    pub seed: u64,
}

/// What one text took.
#[derive(Debug, Clone)]
pub struct TextTimes {
    /// When it was due: when it arrived, even where no stream was free yet.
    pub due: Instant,
    /// From then to its first token.
    pub first_token: Duration,
    /// Between each token and the one before it.
    pub gaps: Vec<Duration>,
    /// The tokens' ids.
    pub tokens: Vec<u32>,
    /// The end, as the generator told it.
    pub finish: Finish,
}

/// All that was measured.
#[derive(Debug, Default)]
pub struct Measured {
    /// The texts that ended well.
    pub texts: Vec<TextTimes>,
    /// The codes of those that did not.
    pub failures: Vec<Code>,
    /// From the first arrival to the last end.
    pub seconds: f64,
}

/// Drives the pair with the requests, in turn and over again; `on_text` sees every text as it ends, those
/// of the warm-up too.
///
/// # Errors
/// A task broke off. A text's failure is counted instead.
pub async fn drive(
    client: &GeneratorServiceClient<Channel>,
    requests: &[GenerateRequest],
    load: &Load,
    on_text: impl Fn() + Clone + Send + 'static,
) -> Result<Measured> {
    let warmup = Load { texts: load.warmup, warmup: 0, ..*load };
    drive_texts(client, requests, &warmup, 0, on_text.clone()).await?;
    drive_texts(client, requests, load, load.warmup, on_text).await
}

async fn drive_texts(
    client: &GeneratorServiceClient<Channel>,
    requests: &[GenerateRequest],
    load: &Load,
    skip: usize,
    on_text: impl Fn() + Clone + Send + 'static,
) -> Result<Measured> {
    if requests.is_empty() || load.texts == 0 {
        return Ok(Measured::default());
    }
    let start = Instant::now();
    let due: Arc<Option<Vec<Instant>>> = Arc::new(arrivals(load, start));
    let requests: Arc<[GenerateRequest]> = requests.into();
    let next = Arc::new(AtomicUsize::new(0));
    let mut streams = JoinSet::new();
    for _ in 0..load.streams.clamp(1, load.texts) {
        let (mut client, due, requests, next) =
            (client.clone(), Arc::clone(&due), Arc::clone(&requests), Arc::clone(&next));
        let (texts, on_text) = (load.texts, on_text.clone());
        streams.spawn(async move {
            let mut ended = Vec::new();
            loop {
                let text = next.fetch_add(1, Ordering::Relaxed);
                if text >= texts {
                    return ended;
                }
                let due = due.as_ref().as_ref().map(|due| due[text]);
                if let Some(due) = due {
                    tokio::time::sleep_until(due.into()).await;
                }
                let request = requests[(skip + text) % requests.len()].clone();
                ended.push(timed(&mut client, request, due.unwrap_or_else(Instant::now), || ()).await);
                on_text();
            }
        });
    }
    let mut measured = Measured::default();
    while let Some(ended) = streams.join_next().await {
        for text in ended? {
            match text {
                Ok(text) => measured.texts.push(text),
                Err(status) => measured.failures.push(status.code()),
            }
        }
    }
    measured.seconds = start.elapsed().as_secs_f64();
    Ok(measured)
}

/// When each text is due; `None`: as soon as a stream is free.
fn arrivals(load: &Load, start: Instant) -> Option<Vec<Instant>> {
    let mut rng = ChaCha8Rng::seed_from_u64(load.seed);
    let mut pause = || match load.arrivals {
        Arrivals::Closed => None,
        Arrivals::Fixed { rate } => Some(1.0 / rate),
        // The inverse of the exponential distribution's function.
        Arrivals::Poisson { rate } => Some(-(1.0 - rng.random::<f64>()).ln() / rate),
    };
    let mut at = start;
    (0..load.texts)
        .map(|_| {
            let due = at;
            at += Duration::from_secs_f64(pause()?);
            Some(due)
        })
        .collect()
}

/// Generates one text and notes when each of its tokens came; `on_token` hears of it at once.
///
/// # Errors
/// The service's status; DATA_LOSS for a stream without an end.
pub async fn timed(
    client: &mut GeneratorServiceClient<Channel>,
    request: GenerateRequest,
    due: Instant,
    mut on_token: impl FnMut(),
) -> Result<TextTimes, Status> {
    let mut stream = client.generate(request).await?.into_inner();
    let mut first_token = None;
    let mut last = due;
    let (mut gaps, mut tokens, mut ended) = (Vec::new(), Vec::new(), None);
    // To the stream's end, past the text's: a stream that is dropped before it is reset, and a server ends a
    // connection on which too many are.
    while let Some(message) = stream.message().await? {
        let now = Instant::now();
        for token in &message.tokens {
            match first_token {
                None => first_token = Some(now - due),
                Some(_) => gaps.push(now - last),
            }
            last = now;
            tokens.push(token.id);
            on_token();
        }
        if let Some(finish) = message.finish {
            ended = Some((first_token.unwrap_or(now - due), finish));
        }
    }
    let (first_token, finish) = ended.ok_or_else(|| Status::data_loss("the stream ended without its end"))?;
    Ok(TextTimes { due, first_token, gaps, tokens, finish })
}

impl TextTimes {
    /// What it took in tokens, as the generator told it.
    pub fn usage(&self) -> Usage {
        self.finish.usage.unwrap_or_default()
    }

    /// When each token came.
    pub fn arrivals(&self) -> impl Iterator<Item = Instant> + '_ {
        let first = self.due + self.first_token;
        let later = self.gaps.iter().scan(first, |at, &gap| {
            *at += gap;
            Some(*at)
        });
        std::iter::once(first).chain(later)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(arrivals_of: Arrivals, texts: usize) -> Vec<f64> {
        let start = Instant::now();
        let load = Load { streams: 1, texts, warmup: 0, arrivals: arrivals_of, seed: 3 };
        arrivals(&load, start).unwrap().into_iter().map(|at| (at - start).as_secs_f64()).collect()
    }

    #[test]
    fn fixed_arrivals_are_even() {
        let got = seconds(Arrivals::Fixed { rate: 4.0 }, 3);
        assert!(got.iter().zip([0.0, 0.25, 0.5]).all(|(a, b)| (a - b).abs() < 1e-6), "{got:?}");
    }

    #[test]
    fn poisson_arrivals_have_their_mean_and_spread() {
        let got = seconds(Arrivals::Poisson { rate: 10.0 }, 4001);
        let pauses: Vec<f64> = got.windows(2).map(|w| w[1] - w[0]).collect();
        let mean = pauses.iter().sum::<f64>() / pauses.len() as f64;
        let variance = pauses.iter().map(|p| (p - mean).powi(2)).sum::<f64>() / pauses.len() as f64;
        assert!((mean - 0.1).abs() < 0.01, "{mean}");
        // The spread of an exponential distribution is its mean.
        assert!((variance.sqrt() - 0.1).abs() < 0.015, "{variance}");
    }

    #[test]
    fn a_closed_loop_has_no_schedule() {
        let load = Load { streams: 2, texts: 3, warmup: 0, arrivals: Arrivals::Closed, seed: 0 };
        assert!(arrivals(&load, Instant::now()).is_none());
    }
}
