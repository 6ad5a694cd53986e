//! Across base models: one PersRM steers others of the same vocabulary, that it has never met.

use std::fmt::Write as _;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::{
    answers::{gather, request},
    method::{Method, Worker},
    run::{Running, Settings},
    score::{Scores, judged},
};

/// One base model under the PersRM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BaseRow {
    /// The base's name.
    pub base: String,
    /// Its weights' size in bytes.
    pub bytes: u64,
    /// The method's name: unguided, prompted, or PAD.
    pub method: String,
    /// How strongly it acts.
    pub strength: f64,
    /// Answers that have all that was asked for.
    pub satisfaction: f64,
    /// Its 95 % interval.
    pub satisfaction_interval: [f64; 2],
    /// Points of satisfaction over the same base unguided.
    pub gain: f64,
    /// Answers that are well formed.
    pub well_formed: f64,
    /// Its 95 % interval.
    pub well_formed_interval: [f64; 2],
}

/// Steers every base with PAD at this strength, against the same base unguided and prompted.
///
/// # Errors
/// A service that does not start, a request that fails.
pub async fn run(
    settings: &Settings,
    strength: f32,
    on_answer: impl Fn() + Clone + Send + 'static,
) -> Result<Vec<BaseRow>> {
    let mut bases = vec![("base".to_owned(), settings.models.base())];
    bases.extend(settings.models.bases());
    let mut rows = Vec::new();
    for (name, folder) in bases {
        let running = Running::start(&settings.binaries, &folder, &settings.models, [Worker::Persrm]).await?;
        let bytes = std::fs::metadata(folder.join("model.safetensors")).map_or(0, |m| m.len());
        let mut plain = 0.0;
        for (method, strength) in
            [(Method::Unguided, 0.0), (Method::Prompted, 0.0), (Method::PadModel, strength)]
        {
            let asks: Vec<_> = settings.asks.iter().collect();
            let requests = (0u64..)
                .zip(&asks)
                .map(|(i, ask)| {
                    request(ask, method, strength, &settings.sampling, settings.seed.wrapping_add(i))
                })
                .collect();
            let answers = gather(&running.client, requests, settings.streams, on_answer.clone()).await?;
            let judged: Vec<_> = asks.iter().zip(&answers).map(|(ask, a)| judged(ask, a, 0.0)).collect();
            let scores = Scores::of(&asks, &judged);
            let satisfaction = scores.satisfaction.value;
            if method == Method::Unguided {
                plain = satisfaction;
            }
            rows.push(BaseRow {
                base: name.clone(),
                bytes,
                method: method.name().to_owned(),
                strength: f64::from(strength),
                satisfaction,
                satisfaction_interval: [scores.satisfaction.low, scores.satisfaction.high],
                gain: satisfaction - plain,
                well_formed: scores.well_formed.value,
                well_formed_interval: [scores.well_formed.low, scores.well_formed.high],
            });
        }
    }
    Ok(rows)
}

/// How many answers [`run`] takes.
pub fn answers(settings: &Settings) -> usize {
    3 * (1 + settings.models.bases().len()) * settings.asks.len()
}

/// The table for people.
pub fn print(rows: &[BaseRow]) -> String {
    let mut out = String::from(
        "| base | weights, MB | method | strength | satisfied % | gain, points | well formed % |\n\
         | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for row in rows {
        let half = |[low, high]: [f64; 2]| 50.0 * (high - low);
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "| {} | {:.1} | {} | {} | {:.1} ± {:.1} | {:+.1} | {:.1} ± {:.1} |",
            row.base,
            row.bytes as f64 / 1e6,
            row.method,
            row.strength,
            100.0 * row.satisfaction,
            half(row.satisfaction_interval),
            100.0 * row.gain,
            100.0 * row.well_formed,
            half(row.well_formed_interval),
        );
    }
    out
}
