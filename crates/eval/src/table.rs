//! The table: rows as they are written, and as people read them.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::{Deserialize, Serialize};

use crate::{
    method::Method,
    score::{Figure, Scores},
};

/// One method at one strength. Shares are of 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The method's name.
    pub method: String,
    /// How strongly it acts; 0 where there is nothing to set.
    pub strength: f64,
    /// Answers that have all that was asked for.
    pub satisfaction: f64,
    /// Of these, where training had asked for it so.
    pub seen: f64,
    /// Where it had not: other combinations, other words.
    pub unseen: f64,
    /// Where one trait was asked for.
    pub single: f64,
    /// Where two were; absent where no expert for pairs of traits is there to be asked.
    pub pairs: Option<f64>,
    /// Of each trait: answers that have it, where it was asked for, alone or with another.
    pub dimensions: BTreeMap<String, f64>,
    /// Of each trait: answers that have it, whatever was asked for.
    pub present: BTreeMap<String, f64>,
    /// Answers that are well formed.
    pub well_formed: f64,
    /// Of the answers, under the unguided base.
    pub perplexity: f64,
    /// Median milliseconds a token, one text at a time.
    pub ms_per_token: f64,
    /// The same over that of unguided texts which took turns with them.
    pub relative_time: f64,
    /// Seconds of training for a new preference. Absent: not told.
    pub train_seconds: Option<f64>,
    /// How many answers.
    pub answers: usize,
    /// The 95 % intervals of the figures above, by name; of a trait by its name.
    pub intervals: BTreeMap<String, [f64; 2]>,
}

impl Row {
    /// The row of these scores; `(ms_per_token, relative)` is its time.
    pub fn new(
        method: &str,
        strength: f64,
        scores: &Scores,
        (ms_per_token, relative_time): (f64, f64),
        train_seconds: Option<f64>,
    ) -> Self {
        let named = [
            ("satisfaction", scores.satisfaction),
            ("seen", scores.seen),
            ("unseen", scores.unseen),
            ("single", scores.single),
            ("pairs", scores.pairs),
            ("well_formed", scores.well_formed),
            ("perplexity", scores.perplexity),
        ];
        let dimensions = scores.dimensions.iter().map(|(one, figure)| (one.name(), *figure));
        let ends = |(name, figure): (&str, Figure)| (name.to_owned(), [figure.low, figure.high]);
        Self {
            method: method.to_owned(),
            strength,
            satisfaction: scores.satisfaction.value,
            seen: scores.seen.value,
            unseen: scores.unseen.value,
            single: scores.single.value,
            pairs: scores.pairs_asked.then_some(scores.pairs.value),
            dimensions: dimensions.clone().map(|(name, figure)| (name.to_owned(), figure.value)).collect(),
            present: scores.present.iter().map(|(one, share)| (one.name().to_owned(), *share)).collect(),
            well_formed: scores.well_formed.value,
            perplexity: scores.perplexity.value,
            ms_per_token,
            relative_time,
            train_seconds,
            answers: scores.answers,
            intervals: named.into_iter().chain(dimensions).map(ends).collect(),
        }
    }

    /// Half the width of a figure's interval.
    fn half(&self, name: &str) -> f64 {
        self.intervals.get(name).map_or(0.0, |[low, high]| (high - low) / 2.0)
    }
}

/// What has to come out, and whether it did.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// The line in words, with what was measured.
    pub line: String,
    /// Whether it holds.
    pub holds: bool,
}

/// Whether a row is PAD's, with the preference in the PersRM's prompt.
fn is_pad(row: &Row) -> bool {
    [Method::PadModel, Method::PadGenerator].iter().any(|method| method.name() == row.method)
}

/// The row of PAD that is judged: of those well formed in at least 95 % of cases the one with the highest
/// satisfaction; where there is none, the best formed.
pub fn judged(rows: &[Row]) -> Option<&Row> {
    let pad = || rows.iter().filter(|row| is_pad(row));
    let fluent = pad().filter(|row| row.well_formed >= 0.95);
    let best = fluent.max_by(|a, b| a.satisfaction.total_cmp(&b.satisfaction));
    best.or_else(|| pad().max_by(|a, b| a.well_formed.total_cmp(&b.well_formed)))
}

/// Holds the rows against what they have to reach; nothing without PAD or the unguided base.
pub fn verdicts(rows: &[Row]) -> Vec<Verdict> {
    let (Some(pad), Some(plain)) = (judged(rows), rows.iter().find(|r| r.method == Method::Unguided.name()))
    else {
        return Vec::new();
    };
    let mut verdicts = Vec::new();
    let judged = format!("PAD is judged as {} at strength {}", pad.method, pad.strength);
    verdicts.push(Verdict { line: judged, holds: true });
    let mut say = |line: String, holds: bool| verdicts.push(Verdict { line, holds });
    for (name, share) in &pad.dimensions {
        let gain = 100.0 * (share - plain.dimensions.get(name).copied().unwrap_or(0.0));
        say(format!("{name}: {gain:+.1} points over unguided, at least +30"), gain >= 30.0);
    }
    // What guidance is measured against: a base that has each trait at times, and none nearly always.
    let percent: Vec<String> =
        plain.present.iter().map(|(name, share)| format!("{name} {:.0}", 100.0 * share)).collect();
    say(
        format!("each trait in 20 to 60 % of all unguided answers: {}", percent.join(", ")),
        plain.present.values().all(|share| (0.2..=0.6).contains(share)),
    );
    let formed = 100.0 * pad.well_formed;
    say(format!("well formed in {formed:.1} %, at least 95 %"), formed >= 95.0);
    let rivals =
        [Method::Prompted, Method::LinearAlignment, Method::Soups, Method::Experts].map(Method::name);
    for rival in rivals {
        let of_it: Vec<&Row> = rows.iter().filter(|row| row.method == rival).collect();
        let Some(best) = of_it.iter().max_by(|a, b| a.satisfaction.total_cmp(&b.satisfaction)) else {
            continue;
        };
        // At no strength may the rival be as good in one and better in the other.
        let dominated = |among: &dyn Fn(&Row) -> bool| {
            of_it.iter().filter(|row| among(row)).all(|row| {
                let above = |p: &Row| p.satisfaction > row.satisfaction && p.well_formed >= row.well_formed;
                rows.iter().any(|p| is_pad(p) && above(p))
            })
        };
        let shares = |row: &Row| {
            format!("{:.1} % well formed {:.1} %", 100.0 * row.satisfaction, 100.0 * row.well_formed)
        };
        let fluent = |row: &Row| row.well_formed >= 0.95;
        let line = format!("above {rival} wherever it is well formed in at least 95 %: {}", shares(pad));
        say(line, dominated(&fluent));
        let line = format!("above {rival} at every strength: {}, its highest {}", shares(pad), shares(best));
        say(line, dominated(&|_| true));
        // The other strengths of experts are ours.
        let merged = of_it.iter().find(|row| rival == Method::Experts.name() && row.strength == 1.0);
        if let Some(merged) = merged {
            let better = pad.satisfaction > merged.satisfaction && pad.well_formed >= merged.well_formed;
            let line =
                format!("above {rival} merged as published (weights that sum to 1): {}", shares(merged));
            say(line, better);
        }
    }
    let (seen, unseen) = (pad.seen - plain.seen, pad.unseen - plain.unseen);
    let share = if seen > 0.0 { 100.0 * unseen / seen } else { 0.0 };
    let line = format!(
        "gain on unseen {:.1} points, on seen {:.1}: {share:.0} %, at least 90 %",
        100.0 * unseen,
        100.0 * seen
    );
    say(line, share >= 90.0);
    verdicts
}

/// The table for people, as Markdown has it.
pub fn print(rows: &[Row]) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let mut line = |cells: &[String]| {
        let _ = writeln!(out, "| {} |", cells.join(" | "));
    };
    let heads = [
        "method            ",
        "strength",
        "satisfied % ",
        "seen %",
        "unseen %",
        "well formed %",
        "perplexity",
        "ms a token",
        "of unguided",
        "training s",
    ];
    line(&heads.map(str::to_owned));
    line(&heads.map(|head| "-".repeat(head.len())));
    for row in rows {
        let strength = if row.strength == 0.0 { "-".to_owned() } else { row.strength.to_string() };
        let percent = |share: f64| 100.0 * share;
        line(&[
            format!("{:<18}", row.method),
            format!("{strength:>8}"),
            format!("{:>5.1} ± {:<4.1}", percent(row.satisfaction), percent(row.half("satisfaction"))),
            format!("{:>6.1}", percent(row.seen)),
            format!("{:>8.1}", percent(row.unseen)),
            format!("{:>6.1} ± {:<4.1}", percent(row.well_formed), percent(row.half("well_formed"))),
            format!("{:>10.3}", row.perplexity),
            format!("{:>10.2}", row.ms_per_token),
            format!("{:>10.2}x", row.relative_time),
            row.train_seconds.map_or_else(|| format!("{:>10}", "?"), |s| format!("{s:>10.0}")),
        ]);
    }
    out
}

/// The traits by themselves: a row a method, at the strength of the row given for it.
pub fn print_dimensions(rows: &[&Row]) -> String {
    let mut out = String::from("| method | strength |");
    let Some(first) = rows.first() else { return String::new() };
    for name in first.dimensions.keys() {
        let _ = write!(out, " {name} % |");
    }
    let _ = writeln!(out, " one % | two % |\n|{}", " --- |".repeat(first.dimensions.len() + 4));
    for row in rows {
        let _ = write!(out, "| {} | {} |", row.method, row.strength);
        for (name, share) in &row.dimensions {
            let _ = write!(out, " {:.0} ± {:.0} |", 100.0 * share, 100.0 * row.half(name));
        }
        let pairs = row.pairs.map_or_else(|| "-".to_owned(), |share| format!("{:.0}", 100.0 * share));
        let _ = writeln!(out, " {:.0} | {pairs} |", 100.0 * row.single);
    }
    out
}

/// Of every method the row with the highest satisfaction among those that are well formed in at least 95 %
/// of cases; where there is none, the best formed.
pub fn best(rows: &[Row]) -> Vec<&Row> {
    let of = |method: Method| {
        let all = || rows.iter().filter(move |row| row.method == method.name());
        let fluent = all().filter(|row| row.well_formed >= 0.95);
        let best = fluent.max_by(|a, b| a.satisfaction.total_cmp(&b.satisfaction));
        best.or_else(|| all().max_by(|a, b| a.well_formed.total_cmp(&b.well_formed)))
    };
    Method::ALL.into_iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(method: Method, strength: f64, satisfaction: f64, well_formed: f64) -> Row {
        Row {
            method: method.name().to_owned(),
            strength,
            satisfaction,
            seen: satisfaction,
            unseen: satisfaction,
            single: satisfaction,
            pairs: Some(satisfaction),
            dimensions: BTreeMap::from([("brief".to_owned(), satisfaction)]),
            present: BTreeMap::from([("brief".to_owned(), satisfaction)]),
            well_formed,
            perplexity: 3.0,
            ms_per_token: 1.0,
            relative_time: 1.0,
            train_seconds: Some(0.0),
            answers: 100,
            intervals: BTreeMap::new(),
        }
    }

    #[test]
    fn a_rival_that_is_better_anywhere_is_not_beaten() {
        let mut rows = vec![
            row(Method::Unguided, 0.0, 0.3, 0.96),
            row(Method::PadModel, 1.0, 0.8, 0.96),
            row(Method::PadModel, 2.0, 0.9, 0.8),
            row(Method::LinearAlignment, 2.0, 0.5, 0.9),
            row(Method::LinearAlignment, 4.0, 0.85, 0.7),
        ];
        assert_eq!(judged(&rows).unwrap().strength, 1.0);
        assert!(verdicts(&rows).iter().all(|v| v.holds), "{:?}", verdicts(&rows));
        rows.push(row(Method::LinearAlignment, 3.0, 0.6, 0.97));
        let missed = |rows: &[Row]| -> Vec<String> {
            verdicts(rows).into_iter().filter(|v| !v.holds).map(|v| v.line).collect()
        };
        assert_eq!(missed(&rows).len(), 2);
        assert!(missed(&rows).iter().all(|line| line.contains("linear-alignment")));
        let best = best(&rows);
        assert_eq!(best.iter().find(|r| r.method == "linear-alignment").unwrap().strength, 3.0);
        // Where it pays with its form, it is above at a strength, but not where that counts.
        rows.pop();
        rows.push(row(Method::LinearAlignment, 9.0, 0.95, 0.6));
        assert!(missed(&rows).iter().all(|line| line.contains("at every strength")));
        assert_eq!(missed(&rows).len(), 1);
    }

    #[test]
    fn the_table_has_every_row_and_column() {
        let rows = [row(Method::Unguided, 0.0, 0.3, 0.96), row(Method::PadModel, 1.5, 0.8, 0.96)];
        let table = print(&rows);
        assert!(table.lines().all(|line| line.matches('|').count() == 11), "{table}");
        assert!(table.contains("pad-model") && table.contains("1.5") && table.contains("80.0"));
        let dimensions = print_dimensions(&[&rows[1]]);
        assert!(dimensions.contains("brief") && dimensions.contains("80"), "{dimensions}");
    }
}
