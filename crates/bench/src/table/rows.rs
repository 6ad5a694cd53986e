//! The rows: what each says, and what it must reach.

use std::{
    collections::BTreeMap,
    fmt::{self, Display, Formatter, Write as _},
};

use serde::Serialize;

use super::{Settings, Size};

/// Names a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// Guided step over the floor.
    Floor(Size),
    /// The official algorithm's step over the guided step.
    Official(Size),
    /// The same with caches.
    Cached(Size),
    /// llama.cpp's step over the plain step.
    Llama(Size),
    /// Guided step over the longer of two uncoupled steps.
    Coupling(Size),
    /// Guided over plain tokens a second with the reward side elsewhere.
    Elsewhere(Size),
    /// Tokens a second of 16 streams over those of one.
    Streams,
    /// 8-bit over f32.
    Q8Speed,
    /// Share of equal choices of the two.
    Q8Agreement,
    /// Tokens a second of a thousand people over those of one.
    Profiles,
    /// What the wire adds, one row.
    Wire1,
    /// The same with 64 rows.
    Wire64,
    /// Share of texts that stay the same.
    Identity,
    /// Tokens a second with telemetry over those without.
    Telemetry,
    /// Tokens a second with TLS over those in plain text.
    Tls,
}

/// What a row must reach.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reach {
    /// At most this.
    AtMost(f64),
    /// At least this.
    AtLeast(f64),
    /// Nothing: it is shown for comparison.
    Shown,
}

impl Reach {
    fn holds(self, measured: f64) -> Option<bool> {
        match self {
            Self::AtMost(limit) => Some(measured <= limit),
            Self::AtLeast(limit) => Some(measured >= limit),
            Self::Shown => None,
        }
    }
}

impl Display for Reach {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(limit) => write!(f, "at most {limit}"),
            Self::AtLeast(limit) => write!(f, "at least {limit}"),
            Self::Shown => f.write_str("-"),
        }
    }
}

impl Display for Key {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Floor(size) => write!(f, "floor-{}", size.name()),
            Self::Official(size) => write!(f, "official-{}", size.name()),
            Self::Cached(size) => write!(f, "cached-{}", size.name()),
            Self::Llama(size) => write!(f, "llama-{}", size.name()),
            Self::Coupling(size) => write!(f, "coupling-{}", size.name()),
            Self::Elsewhere(size) => write!(f, "elsewhere-{}", size.name()),
            Self::Streams => f.write_str("streams-medium"),
            Self::Q8Speed => f.write_str("q8-speed-medium"),
            Self::Q8Agreement => f.write_str("q8-agreement-medium"),
            Self::Profiles => f.write_str("profiles-small"),
            Self::Wire1 => f.write_str("wire-1"),
            Self::Wire64 => f.write_str("wire-64"),
            Self::Identity => f.write_str("identity"),
            Self::Telemetry => f.write_str("telemetry"),
            Self::Tls => f.write_str("tls"),
        }
    }
}

impl Key {
    /// What is measured, and what it must reach.
    fn about(self) -> (String, Reach) {
        use Reach::{AtLeast, AtMost, Shown};
        let of = |size: Size, what: &str| format!("{what}, {}", size.name());
        match self {
            Self::Floor(size) => (of(size, "guided step above the floor, times"), AtMost(1.2)),
            Self::Official(size) => {
                let reach = if size == Size::Small { 17.0 } else { 10.0 };
                (of(size, "guided decoding against the official algorithm, times faster"), AtLeast(reach))
            }
            Self::Cached(size) => {
                let reach = if size == Size::Small { 2.5 } else { 1.5 };
                (of(size, "the same against that algorithm with KV caches, times faster"), AtLeast(reach))
            }
            Self::Llama(size) => (of(size, "plain decoding against llama.cpp, times faster"), Shown),
            Self::Coupling(size) => {
                (of(size, "guided step against the longer of the two uncoupled steps, times"), AtMost(1.1))
            }
            Self::Elsewhere(size) => {
                (of(size, "guided against plain tokens/s, the reward side elsewhere"), AtLeast(0.9))
            }
            Self::Streams => (
                "16 concurrent guided streams against 1, times the tokens/s, medium".to_owned(),
                AtLeast(7.0),
            ),
            Self::Q8Speed => {
                ("8-bit weights against f32, guided, times faster, medium".to_owned(), AtLeast(3.0))
            }
            Self::Q8Agreement => (
                "8-bit weights against f32, guided, teacher-forced top-1 agreement, medium".to_owned(),
                AtLeast(0.99),
            ),
            Self::Profiles => {
                ("1,000 different profiles in the mix against one, tokens/s, small".to_owned(), AtLeast(0.97))
            }
            Self::Wire1 => ("what the wire adds to a step, 1 row, ms".to_owned(), AtMost(0.15)),
            Self::Wire64 => ("what the wire adds to a step, 64 rows, ms".to_owned(), AtMost(0.25)),
            Self::Identity => (
                "same text at batch 1, 4 and 16, with prefix hits and after a worker is killed, share"
                    .to_owned(),
                AtLeast(1.0),
            ),
            Self::Telemetry => (
                "16 guided streams, OTLP and a scraped /metrics against neither, share of the tokens/s, small"
                    .to_owned(),
                AtLeast(0.98),
            ),
            Self::Tls => (
                "16 guided streams, TLS for clients and mutual TLS in the pair against plain text, share of the \
                 tokens/s, small"
                    .to_owned(),
                AtLeast(0.95),
            ),
        }
    }
}

/// Every row, in the table's order.
pub fn rows() -> Vec<Key> {
    use Size::{Medium, Small};
    let both = |key: fn(Size) -> Key| [key(Small), key(Medium)];
    [
        &both(Key::Floor)[..],
        &both(Key::Official),
        &both(Key::Cached),
        &both(Key::Llama),
        &both(Key::Coupling),
        &both(Key::Elsewhere),
        &[
            Key::Streams,
            Key::Q8Speed,
            Key::Q8Agreement,
            Key::Profiles,
            Key::Wire1,
            Key::Wire64,
            Key::Identity,
        ],
        &[Key::Telemetry, Key::Tls],
    ]
    .concat()
}

/// A row of the finished table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What was measured.
    pub row: String,
    /// The figure. Absent: it could not be measured here.
    pub measured: Option<f64>,
    /// What it must reach.
    pub reach: String,
    /// Whether it does. Absent: not measured, or nothing is to be reached.
    pub holds: Option<bool>,
}

/// The figures so far.
pub(super) struct Results<'a> {
    settings: &'a Settings,
    say: &'a dyn Fn(&str),
    measured: BTreeMap<Key, f64>,
}

impl<'a> Results<'a> {
    pub(super) fn new(settings: &'a Settings, say: &'a dyn Fn(&str)) -> Self {
        Self { settings, say, measured: BTreeMap::new() }
    }

    /// Takes a figure and says what it comes from.
    pub(super) fn add(&mut self, key: Key, measured: f64, remark: &str) {
        if self.settings.wants(key) {
            self.measured.insert(key, measured);
            (self.say)(&format!("{key}: {measured:.3} ({remark})"));
        }
    }

    pub(super) fn say(&self, what: &str) {
        (self.say)(what);
    }

    pub(super) fn into_rows(self) -> Vec<Row> {
        let row = |key: Key| {
            let (row, reach) = key.about();
            let measured = self.measured.get(&key).copied().filter(|m| m.is_finite());
            Row { row, measured, reach: reach.to_string(), holds: measured.and_then(|m| reach.holds(m)) }
        };
        rows().into_iter().filter(|&key| self.settings.wants(key)).map(row).collect()
    }
}

/// The table for people.
pub fn print(rows: &[Row]) -> String {
    let width = rows.iter().map(|r| r.row.chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for Row { row, measured, reach, holds } in rows {
        let holds = match (holds, measured) {
            (Some(true), _) => "holds",
            (Some(false), _) => "MISSED",
            (None, Some(_)) => "for comparison",
            (None, None) => "not measured here",
        };
        let measured = measured.map_or_else(|| "-".to_owned(), |m| format!("{m:.3}"));
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{row:<width$}  {measured:>8}  {reach:<13}  {holds}");
    }
    out
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn settings(only: &[&str]) -> Settings {
        Settings {
            binaries: PathBuf::new(),
            models: PathBuf::new(),
            only: only.iter().map(|&o| o.to_owned()).collect(),
            quick: false,
            peers: None,
        }
    }

    #[test]
    fn a_filter_picks_rows_by_the_beginning_of_their_keys() {
        let picked = |only: &[&str]| -> Vec<String> {
            let settings = settings(only);
            rows().into_iter().filter(|&k| settings.wants(k)).map(|k| k.to_string()).collect()
        };
        assert_eq!(picked(&["wire"]), ["wire-1", "wire-64"]);
        assert_eq!(picked(&["floor-s", "identity"]), ["floor-small", "identity"]);
        assert_eq!(picked(&[]).len(), rows().len());
    }

    #[test]
    fn a_row_holds_misses_or_was_not_measured() {
        let settings = settings(&["wire", "streams", "identity", "llama-small"]);
        let silent = |_: &str| ();
        let mut results = Results::new(&settings, &silent);
        results.add(Key::Wire1, 0.15, "");
        results.add(Key::Wire64, 0.26, "");
        results.add(Key::Identity, 1.0, "");
        results.add(Key::Llama(Size::Small), 1.5, "");
        results.add(Key::Floor(Size::Small), 1.0, "not asked for");
        let rows = results.into_rows();
        let holds: Vec<Option<bool>> = rows.iter().map(|r| r.holds).collect();
        assert_eq!(holds, [None, None, Some(true), Some(false), Some(true)]);
        let json = serde_json::to_value(&rows[3]).unwrap();
        assert_eq!(json["measured"], 0.26);
        assert_eq!((json["reach"].as_str(), json["holds"].as_bool()), (Some("at most 0.25"), Some(false)));
        let text = print(&rows);
        assert!(text.contains("MISSED") && text.contains("not measured here"), "{text}");
        assert!(text.contains("1.500  -              for comparison"), "{text}");
    }
}
