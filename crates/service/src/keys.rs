//! The keys that a configuration knows, read off its default, and what is near to an unknown one.

use serde_json::Value;

/// All keys of a configuration as dotted paths.
#[derive(Debug)]
pub(crate) struct KnownKeys {
    leaves: Vec<Leaf>,
}

#[derive(Debug)]
struct Leaf {
    path: String,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One value.
    Scalar,
    /// A list; sources of plain text give it with commas, or several times.
    List,
    /// A table with keys of the user's own.
    Map,
}

impl KnownKeys {
    /// Reads the keys off the serialised default: nulls are keys without a default, empty objects are
    /// tables with keys of the user's own.
    pub(crate) fn of(default: &Value) -> Self {
        let mut leaves = Vec::new();
        collect(default, String::new(), &mut leaves);
        Self { leaves }
    }

    /// What the key holds; none: unknown.
    pub(crate) fn kind(&self, path: &str) -> Option<Kind> {
        self.leaves.iter().find_map(|leaf| {
            if leaf.path == path {
                return Some(leaf.kind);
            }
            let below = path.strip_prefix(leaf.path.as_str())?.starts_with('.');
            (below && leaf.kind != Kind::Scalar).then_some(Kind::Scalar)
        })
    }

    /// The known key that a misspelled one most likely stands for.
    pub(crate) fn nearest(&self, path: &str) -> Option<&str> {
        let last = |p: &str| p.rsplit('.').next().unwrap_or_default().to_owned();
        let score = |known: &str| {
            // A right name in the wrong section, or without its section, is as near as a typo.
            strsim::jaro_winkler(path, known).max(0.98 * strsim::jaro_winkler(&last(path), &last(known)))
        };
        self.leaves
            .iter()
            .map(|leaf| (score(&leaf.path), leaf.path.as_str()))
            .filter(|(score, _)| *score > 0.75)
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(_, path)| path)
    }
}

fn collect(value: &Value, path: String, leaves: &mut Vec<Leaf>) {
    let kind = match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, field) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                collect(field, path, leaves);
            }
            return;
        }
        Value::Object(_) => Kind::Map,
        Value::Array(_) => Kind::List,
        _ => Kind::Scalar,
    };
    leaves.push(Leaf { path, kind });
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn known() -> KnownKeys {
        KnownKeys::of(&json!({
            "model": null, "reward": [], "labels": {}, "server": {"listen": "x", "drain_seconds": 1}
        }))
    }

    #[test]
    fn keys_are_known_with_their_kind() {
        let known = known();
        assert_eq!(known.kind("model"), Some(Kind::Scalar));
        assert_eq!(known.kind("reward"), Some(Kind::List));
        assert_eq!(known.kind("labels.anything"), Some(Kind::Scalar));
        assert_eq!(known.kind("server.listen"), Some(Kind::Scalar));
        assert_eq!(known.kind("server.listen.deeper"), None);
        assert_eq!(known.kind("server"), None);
        assert_eq!(known.kind("modell"), None);
    }

    #[test]
    fn near_keys_are_found_across_sections() {
        let known = known();
        assert_eq!(known.nearest("modle"), Some("model"));
        assert_eq!(known.nearest("server.drain_second"), Some("server.drain_seconds"));
        assert_eq!(known.nearest("listen"), Some("server.listen"));
        assert_eq!(known.nearest("zzz"), None);
    }
}
