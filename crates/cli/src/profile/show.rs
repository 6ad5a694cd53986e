//! Profiles as people read them.

use attune_proto::profile::v1::{FitMethod, FitReport, Profile};

use super::file::timestamp;
use crate::{
    json::short,
    table::{brief, rows, table},
};

/// One profile.
pub(super) fn one(p: &Profile) -> String {
    let mut lines = Vec::new();
    let mut say = |name: &'static str, value: String| lines.push((name, value));
    if let Some(text) = &p.text {
        say("text", text.clone());
    }
    if let Some(weights) = &p.weights {
        say("weights", numbers(&weights.values));
    }
    if let Some(latent) = &p.latent {
        say("latent", numbers(&latent.values));
    }
    if p.weights.is_some() || p.latent.is_some() {
        say(
            "against",
            short(p.reference().as_str_name(), "REFERENCE_").replace("unspecified", "the model's default"),
        );
        say("made for", format!("{} (revision {})", p.model_id, brief(&p.model_revision)));
    }
    if let Some(fit) = &p.fit {
        say("fitted", fitted(fit));
    }
    say("kept feedback", format!("{} answers", p.kept_feedback));
    for (name, time) in [("created", &p.created_at), ("changed", &p.updated_at)] {
        if let Some(time) = time {
            say(name, timestamp(time));
        }
    }
    format!("{} (revision {})\n{}", p.name, p.revision, rows(&lines))
}

/// All profiles, one a line.
pub(super) fn list(profiles: &[Profile]) -> String {
    if profiles.is_empty() {
        return "no profiles; `attune profile put NAME --text \"...\"` makes one\n".to_owned();
    }
    let body = profiles.iter().map(|p| {
        [
            p.name.clone(),
            p.revision.to_string(),
            p.updated_at.as_ref().map(timestamp).unwrap_or_default(),
            p.kept_feedback.to_string(),
            shorten(p.text.as_deref().unwrap_or("-")),
        ]
    });
    table(["name", "revision", "changed", "feedback", "text"], &body.collect::<Vec<_>>())
}

fn numbers(values: &[f32]) -> String {
    let least = values.iter().copied().fold(f32::INFINITY, f32::min);
    let most = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    format!("{} numbers, {least:.3} to {most:.3}", values.len())
}

fn fitted(fit: &FitReport) -> String {
    let what = match fit.method() {
        FitMethod::Unspecified | FitMethod::Weights => "weights",
        FitMethod::Latent => "latent",
    };
    format!(
        "{what}, to {} answers in {:.2} s; right of {} held out: {:.0} % before, {:.0} % after",
        fit.feedback,
        fit.seconds,
        fit.held_out,
        100.0 * fit.accuracy_before,
        100.0 * fit.accuracy_after
    )
}

/// The beginning of a text, on one line.
fn shorten(text: &str) -> String {
    const MOST: usize = 48;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use attune_proto::reward::v1::Weights;

    use super::*;

    #[test]
    fn what_is_there_is_shown() {
        let profile = Profile {
            name: "me".into(),
            text: Some("brief".into()),
            weights: Some(Weights { values: vec![0.5, 1.5] }),
            model_id: "taste".into(),
            model_revision: "0123456789abcdef".into(),
            revision: 3,
            kept_feedback: 20,
            fit: Some(FitReport { feedback: 20, held_out: 5, accuracy_after: 0.9, ..FitReport::default() }),
            ..Profile::default()
        };
        let text = one(&profile);
        for part in
            ["me (revision 3)", "2 numbers, 0.500 to 1.500", "taste (revision 0123456789ab)", "90 % after"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        let many = list(&[Profile { text: Some("very ".repeat(30)), ..profile }]);
        assert!(many.contains("very very") && many.contains('…'), "{many}");
        assert!(list(&[]).contains("no profiles"));
    }
}
