//! What the comparison found: rows, and how they read as tables.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::score::Figure;

/// One way to serve all people.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// "unguided", "text", "weights" or "latent".
    pub profile: String,
    /// Pairs that each profile was fitted to. 0: none was.
    pub pairs: usize,
    /// Answers with all that their person likes.
    pub satisfied: Figure,
    /// Answers that are well formed.
    pub well_formed: Figure,
    /// The gain over unguided answers as a share of the text's.
    pub gain: f64,
    /// Seconds of a fit on one core, the median.
    pub seconds: f64,
    /// Of a fit's own held-out feedback, the share that is ordered rightly; the mean.
    pub accuracy: f64,
    /// People whose feedback was refused; they are answered unguided.
    pub refused: usize,
}

/// One way to learn a person, to the same held-out accuracy.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RivalRow {
    /// The person.
    pub person: String,
    /// "weights" or "latent".
    pub profile: String,
    /// Of held-out pairs, the share that the fit orders rightly.
    pub accuracy: f64,
    /// Seconds of the fit on one core.
    pub seconds: f64,
    /// Of the same held-out pairs, the adapter's share when it stopped.
    pub rival_accuracy: f64,
    /// Seconds of its training, on all cores.
    pub rival_seconds: f64,
    /// Its steps.
    pub rival_steps: usize,
}

impl RivalRow {
    /// The share of the rival's time that the fit saves.
    pub fn saved(&self) -> f64 {
        1.0 - self.seconds / self.rival_seconds
    }
}

/// All of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// How each way serves people.
    pub rows: Vec<Row>,
    /// How long learning takes.
    pub rivals: Vec<RivalRow>,
}

/// What a report says of one promise.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// The promise, and what was measured.
    pub line: String,
    /// Whether it holds.
    pub holds: bool,
}

impl Report {
    /// The promises: of 20 pairs the gain and the time, and the time that is saved.
    pub fn verdicts(&self) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        for row in self.rows.iter().filter(|row| row.pairs == 20) {
            let (gain, holds) = (100.0 * row.gain, row.gain >= 0.85);
            let line =
                format!("{} from 20 pairs: {gain:.0} % of the text's gain, at least 85 %", row.profile);
            verdicts.push(Verdict { line, holds });
            let line = format!("{} from 20 pairs: {:.2} s on one core, under 2 s", row.profile, row.seconds);
            verdicts.push(Verdict { line, holds: row.seconds < 2.0 });
        }
        for (profile, least) in [("weights", 0.95), ("latent", 0.80)] {
            if let Some(saved) = self.saved(profile) {
                let line = format!(
                    "{profile}: {:.1} % less time than an adapter to the same held-out accuracy, at least {:.0} %",
                    100.0 * saved,
                    100.0 * least
                );
                verdicts.push(Verdict { line, holds: saved >= least });
            }
        }
        verdicts
    }

    /// The median of the shares of time that a kind of profile saves.
    pub fn saved(&self, profile: &str) -> Option<f64> {
        attune_bench::report::median(self.rivals.iter().filter(|r| r.profile == profile).map(RivalRow::saved))
    }

    /// Both tables, as Markdown has them.
    pub fn print(&self) -> String {
        let mut out = String::from(
            "| profile | pairs | satisfied % | well formed % | share of the text's gain % | held-out accuracy % | \
             seconds | refused |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n",
        );
        for row in &self.rows {
            let fitted = row.pairs > 0;
            let or_dash = |text: String| if fitted { text } else { "-".to_owned() };
            // Writing to a string cannot fail.
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} | {:.0} | {} | {} | {} |",
                row.profile,
                or_dash(row.pairs.to_string()),
                percent(row.satisfied),
                percent(row.well_formed),
                100.0 * row.gain,
                or_dash(format!("{:.0}", 100.0 * row.accuracy)),
                or_dash(format!("{:.2}", row.seconds)),
                or_dash(row.refused.to_string()),
            );
        }
        if self.rivals.is_empty() {
            return out;
        }
        out += "\n| person | profile | accuracy % | seconds | adapter's accuracy % | its seconds | its steps | time saved % |\n\
                | --- | --- | --- | --- | --- | --- | --- | --- |\n";
        for r in &self.rivals {
            let _ = writeln!(
                out,
                "| {} | {} | {:.0} | {:.2} | {:.0} | {:.1} | {} | {:.1} |",
                r.person,
                r.profile,
                100.0 * r.accuracy,
                r.seconds,
                100.0 * r.rival_accuracy,
                r.rival_seconds,
                r.rival_steps,
                100.0 * r.saved(),
            );
        }
        out
    }
}

fn percent(figure: Figure) -> String {
    format!("{:.1} ± {:.1}", 100.0 * figure.value, 50.0 * (figure.high - figure.low))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_are_held_to_their_figures() {
        let row = |gain, seconds| Row {
            profile: "weights".to_owned(),
            pairs: 20,
            satisfied: Figure::share(50, 100),
            well_formed: Figure::share(99, 100),
            gain,
            seconds,
            accuracy: 0.9,
            refused: 0,
        };
        let rival = |seconds, rival_seconds| RivalRow {
            person: "brief".to_owned(),
            profile: "weights".to_owned(),
            accuracy: 0.9,
            seconds,
            rival_accuracy: 0.9,
            rival_seconds,
            rival_steps: 7,
        };
        let holds = |report: &Report| report.verdicts().iter().map(|v| v.holds).collect::<Vec<_>>();
        let good = Report { rows: vec![row(0.86, 1.0)], rivals: vec![rival(1.0, 30.0), rival(1.0, 25.0)] };
        assert_eq!(holds(&good), [true, true, true]);
        let bad = Report { rows: vec![row(0.84, 2.5)], rivals: vec![rival(1.0, 10.0)] };
        assert_eq!(holds(&bad), [false, false, false]);
        let lines = bad.print();
        assert!(lines.contains("| weights | 20 |") && lines.contains("| 90.0 |"), "{lines}");
    }
}
