//! What a load run comes to: percentiles, throughput, and the share of the wait for the other service.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use serde::Serialize;

use crate::load::Measured;

/// Percentiles in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Percentiles {
    /// The median.
    pub p50: f64,
    /// 95 of 100 are at most this.
    pub p95: f64,
    /// 99 of 100 are at most this.
    pub p99: f64,
}

impl Percentiles {
    /// `None` without values.
    pub fn of(seconds: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = seconds.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let at = |share| quantile(&sorted, share);
        Some(Self { p50: at(0.5)?, p95: at(0.95)?, p99: at(0.99)? })
    }
}

/// The value below which this share of the sorted values lies, with linear interpolation.
fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let place = share * last as f64;
    let (below, above) = (sorted[place as usize], sorted[(place as usize + 1).min(last)]);
    Some(below + (above - below) * place.fract())
}

/// The median; `None` without values.
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    Percentiles::of(values).map(|p| p.p50)
}

/// A load run in numbers. Times are in seconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Texts that ended well.
    pub texts: usize,
    /// Texts that did not, by their status code.
    pub failures: BTreeMap<String, usize>,
    /// Tokens of the texts that ended well.
    pub tokens: usize,
    /// From the first arrival to the last end.
    pub seconds: f64,
    /// Tokens a second over all streams.
    pub tokens_per_second: f64,
    /// From a text's arrival to its first token. Absent: no text.
    pub time_to_first_token: Option<Percentiles>,
    /// Between one token and the next of the same text. Absent: no text of two tokens.
    pub time_per_output_token: Option<Percentiles>,
    /// Share of the decoding time that was spent waiting for rewards. Absent: no text of two tokens.
    pub reward_wait_share: Option<f64>,
    /// Share of the prompts' tokens that the prefix cache held.
    pub cached_prompt_share: f64,
}

impl Report {
    /// Sums up a run.
    pub fn new(measured: &Measured) -> Self {
        let texts = &measured.texts;
        let tokens = texts.iter().map(|t| t.tokens.len()).sum();
        let mut failures = BTreeMap::new();
        for code in &measured.failures {
            *failures.entry(format!("{code:?}")).or_default() += 1;
        }
        let timings = || texts.iter().filter_map(|t| t.finish.timings.as_ref());
        let decode: f64 = timings().map(|t| t.decode_seconds).sum();
        let wait: f64 = timings().map(|t| t.reward_wait_seconds).sum();
        let usage = |of: fn(&attune_proto::generator::v1::Usage) -> u32| {
            texts.iter().map(|t| u64::from(of(&t.usage()))).sum::<u64>() as f64
        };
        let prompts = usage(|u| u.prompt_tokens);
        Self {
            texts: texts.len(),
            failures,
            tokens,
            seconds: measured.seconds,
            tokens_per_second: if measured.seconds > 0.0 { tokens as f64 / measured.seconds } else { 0.0 },
            time_to_first_token: Percentiles::of(texts.iter().map(|t| t.first_token.as_secs_f64())),
            time_per_output_token: Percentiles::of(
                texts.iter().flat_map(|t| &t.gaps).map(Duration::as_secs_f64),
            ),
            reward_wait_share: (decode > 0.0).then(|| wait / decode),
            cached_prompt_share: if prompts > 0.0 { usage(|u| u.cached_tokens) / prompts } else { 0.0 },
        }
    }

    /// A table for people.
    pub fn table(&self) -> String {
        let mut out = String::new();
        let mut line = |name: &str, value: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{name:<26} {value}");
        };
        line("texts", self.texts.to_string());
        for (code, count) in &self.failures {
            line(&format!("failed {code}"), count.to_string());
        }
        line("tokens", self.tokens.to_string());
        line("tokens a second", format!("{:.1}", self.tokens_per_second));
        let percentiles = |p: &Option<Percentiles>| match p {
            Some(p) => {
                format!(
                    "p50 {:9.2} ms   p95 {:9.2} ms   p99 {:9.2} ms",
                    p.p50 * 1e3,
                    p.p95 * 1e3,
                    p.p99 * 1e3
                )
            }
            None => "-".to_owned(),
        };
        line("time to first token", percentiles(&self.time_to_first_token));
        line("time per output token", percentiles(&self.time_per_output_token));
        let share = |s: f64| format!("{:.1} %", s * 100.0);
        line("of it waiting for rewards", self.reward_wait_share.map_or_else(|| "-".to_owned(), share));
        if self.cached_prompt_share > 0.0 {
            line("prompt tokens from cache", share(self.cached_prompt_share));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use attune_proto::generator::v1::{Finish, Timings, Usage};
    use tonic::Code;

    use super::*;
    use crate::load::TextTimes;

    #[test]
    fn percentiles_interpolate() {
        let p = Percentiles::of((0..=100).rev().map(f64::from)).unwrap();
        assert_eq!((p.p50, p.p95, p.p99), (50.0, 95.0, 99.0));
        assert_eq!(median([1.0, 2.0]), Some(1.5));
        assert_eq!(median([]), None);
        assert_eq!(Percentiles::of([7.0]).unwrap().p99, 7.0);
    }

    #[test]
    fn a_run_is_summed_up() {
        let text = |gap: u64| TextTimes {
            due: std::time::Instant::now(),
            first_token: Duration::from_millis(100),
            gaps: vec![Duration::from_millis(gap); 9],
            tokens: vec![1; 10],
            finish: Finish {
                usage: Some(Usage { prompt_tokens: 20, generated_tokens: 10, cached_tokens: 5 }),
                timings: Some(Timings {
                    decode_seconds: 0.1,
                    reward_wait_seconds: 0.02,
                    ..Timings::default()
                }),
                ..Finish::default()
            },
        };
        let measured = Measured {
            texts: vec![text(10), text(20)],
            failures: vec![Code::ResourceExhausted, Code::ResourceExhausted],
            seconds: 2.0,
        };
        let report = Report::new(&measured);
        assert_eq!((report.texts, report.tokens, report.tokens_per_second), (2, 20, 10.0));
        assert_eq!(report.failures["ResourceExhausted"], 2);
        let gaps = report.time_per_output_token.unwrap();
        assert!((gaps.p50 - 0.015).abs() < 1e-9 && (gaps.p99 - 0.02).abs() < 1e-9, "{gaps:?}");
        assert!((report.reward_wait_share.unwrap() - 0.2).abs() < 1e-9);
        assert_eq!(report.cached_prompt_share, 0.25);
        let table = report.table();
        for part in ["tokens a second            10.0", "failed ResourceExhausted   2", "20.0 %", "25.0 %"] {
            assert!(table.contains(part), "{part} in\n{table}");
        }
    }

    #[test]
    fn nothing_measured_is_no_number() {
        let report = Report::new(&Measured::default());
        assert_eq!((report.time_to_first_token, report.reward_wait_share), (None, None));
        assert!(serde_json::to_string(&report).unwrap().contains("\"tokens_per_second\":0.0"));
    }
}
