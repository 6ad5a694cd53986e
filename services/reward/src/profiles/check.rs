//! What a profile may hold.

use attune_profiles::{Content, Model, Reference, Vector};
use attune_proto::{
    profile::v1::{Feedback, Profile, feedback::Kind},
    reward::v1 as reward,
};
use attune_service::status::{self, Violation};
use prost::Message as _;
use tonic::Status;

use super::wire;

/// The longest preference, in bytes.
const MAX_TEXT: usize = 8192;
/// The longest vector of a model that is not served here.
const MAX_VECTOR: usize = 1 << 16;
/// The longest id and fingerprint of a model that is not served here, in bytes.
const MAX_MODEL: usize = 512;
/// The most answers that are kept with one profile, and their bytes.
pub(crate) const MAX_FEEDBACK: (usize, usize) = (10_000, 4 << 20);

/// The sizes of the served model's vectors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Of weights.
    pub(crate) features: usize,
    /// Of a latent; 0: it takes none.
    pub(crate) latent: usize,
}

/// What a profile shall hold, for the served model, or as it was exported.
///
/// # Errors
/// INVALID_ARGUMENT names every field at fault, and what is allowed.
pub(crate) fn content(
    profile: Profile,
    imported: bool,
    serves: &Model,
    limits: Limits,
) -> Result<Content, Status> {
    let mut wrong = Vec::new();
    let mut refuse = |field: &str, what: String| wrong.push(Violation::new(format!("profile.{field}"), what));

    let text = profile.text.filter(|text| !text.trim().is_empty());
    if let Some(Err(what)) = text.as_deref().map(preference) {
        refuse("text", what);
    }
    let vector = match (profile.weights, profile.latent) {
        (None, None) => None,
        (Some(weights), None) => Some(Vector::Weights(weights.values)),
        (None, Some(latent)) => Some(Vector::Latent(latent.values)),
        (Some(_), Some(_)) => {
            refuse("latent", "weights and a latent do not go together; send one of them".to_owned());
            None
        }
    };
    if text.is_none() && vector.is_none() {
        refuse("text", "the profile holds nothing; send a text, weights, or a latent".to_owned());
    }
    let reference = match reward::Reference::try_from(profile.reference) {
        Ok(reward::Reference::Unspecified) => None,
        Ok(reward::Reference::Model) => Some(Reference::Model),
        Ok(reward::Reference::Generator) => Some(Reference::Generator),
        Ok(reward::Reference::None) => Some(Reference::None),
        Err(_) => {
            let message = format!("{} is no reference that this version knows", profile.reference);
            refuse("reference", message);
            None
        }
    };
    let model = if imported {
        let model = Model { id: profile.model_id, revision: profile.model_revision };
        for (field, value) in [("model_id", &model.id), ("model_revision", &model.revision)] {
            if value.len() > MAX_MODEL || value.contains('\0') {
                refuse(field, format!("an imported one has at most {MAX_MODEL} bytes, and no NUL"));
            }
        }
        if vector.is_some() && model.revision.is_empty() {
            refuse(
                "model_revision",
                "an imported profile with a vector says which model it is for".to_owned(),
            );
        }
        model
    } else {
        if !profile.model_id.is_empty() && profile.model_id != serves.id {
            let message = format!("this worker serves the reward model `{}`; name it, or none", serves.id);
            refuse("model_id", message);
        }
        serves.clone()
    };
    if let Some(vector) = &vector {
        let here = (model.revision == serves.revision).then_some(limits);
        if let Err((field, message)) = numbers(vector, here) {
            refuse(field, message);
        }
    }
    if wrong.is_empty() {
        let fit = profile.fit.filter(|_| imported).as_ref().map(wire::report);
        Ok(Content { text, vector, reference, model, fit })
    } else {
        Err(status::invalid_all(wrong))
    }
}

/// Whether a preference in words can be kept.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn preference(text: &str) -> Result<(), String> {
    if text.len() > MAX_TEXT {
        return Err(format!("the preference has {} bytes; {MAX_TEXT} are allowed", text.len()));
    }
    if text.contains('\0') {
        return Err("the preference holds the character NUL; leave it out".to_owned());
    }
    Ok(())
}

/// Whether a vector has the model's length (of a model that is not served here: a bounded one), and finite numbers.
fn numbers(vector: &Vector, here: Option<Limits>) -> Result<(), (&'static str, String)> {
    let (field, what, values, expected) = match vector {
        Vector::Weights(values) => ("weights.values", "features", values, here.map(|h| h.features)),
        Vector::Latent(values) => ("latent.values", "latent dimensions", values, here.map(|h| h.latent)),
    };
    let got = values.len();
    match expected {
        Some(0) => {
            return Err((field, "the reward model has no latent adapter; leave the latent out".to_owned()));
        }
        Some(d) if got != d => {
            let message =
                format!("{got} numbers came; the reward model has {d} {what} and needs one for each");
            return Err((field, message));
        }
        None if !(1..=MAX_VECTOR).contains(&got) => {
            return Err((field, format!("{got} numbers came; 1 to {MAX_VECTOR} are allowed")));
        }
        _ => {}
    }
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(i) => Err((field, format!("number {i} is not finite"))),
    }
}

/// Whether so much feedback may be kept with one profile.
///
/// # Errors
/// INVALID_ARGUMENT names the bound.
pub(crate) fn size(feedback: &[Feedback]) -> Result<(), Status> {
    let bytes: usize = feedback.iter().map(Feedback::encoded_len).sum();
    if feedback.len() > MAX_FEEDBACK.0 || bytes > MAX_FEEDBACK.1 {
        let message = format!(
            "{} answers of {bytes} bytes are too much for one profile; {} of {} bytes together are allowed",
            feedback.len(),
            MAX_FEEDBACK.0,
            MAX_FEEDBACK.1
        );
        return Err(status::invalid("feedback", message));
    }
    Ok(())
}

/// Feedback that may be kept.
///
/// # Errors
/// INVALID_ARGUMENT names the first item at fault, or the bound.
pub(crate) fn feedback(feedback: Vec<Feedback>) -> Result<Vec<Feedback>, Status> {
    size(&feedback)?;
    for (i, item) in feedback.iter().enumerate() {
        if item.prompt.as_ref().is_none_or(|prompt| prompt.kind.is_none()) {
            return Err(status::invalid(
                format!("feedback[{i}].prompt"),
                "the prompt is absent; send what was asked",
            ));
        }
        match &item.kind {
            Some(Kind::Pair(_) | Kind::Thumb(_)) => {}
            None => {
                let message = "nothing is said of it; send a pair or a thumb";
                return Err(status::invalid(format!("feedback[{i}]"), message));
            }
        }
    }
    Ok(feedback)
}

#[cfg(test)]
mod tests {
    use attune_proto::reward::v1::{Latent, Weights};
    use tonic::Code;

    use super::*;

    const HERE: Limits = Limits { features: 3, latent: 0 };

    fn serves() -> Model {
        Model { id: "taste".into(), revision: "f1".into() }
    }

    fn weights(values: &[f32]) -> Profile {
        Profile {
            name: "me".into(),
            weights: Some(Weights { values: values.to_vec() }),
            ..Profile::default()
        }
    }

    #[test]
    fn what_the_server_sets_is_not_the_clients() {
        let sent =
            Profile { model_revision: "x".into(), fit: Some(Default::default()), ..weights(&[1.0; 3]) };
        let content = content(sent, false, &serves(), HERE).unwrap();
        assert_eq!((content.model, content.fit), (serves(), None));
    }

    #[test]
    fn imported_profiles_keep_their_model() {
        let sent = Profile {
            model_id: "older".into(),
            model_revision: "f0".into(),
            fit: Some(Default::default()),
            ..weights(&[1.0; 7])
        };
        let content = content(sent, true, &serves(), HERE).unwrap();
        assert_eq!((content.model.revision.as_str(), content.fit.is_some()), ("f0", true));
    }

    #[test]
    fn every_field_at_fault_is_named() {
        let latent = Some(Latent { values: vec![1.0] });
        let text = |text: &str| Profile { text: Some(text.into()), ..Profile::default() };
        let imported =
            |revision: &str, values: &[f32]| Profile { model_revision: revision.into(), ..weights(values) };
        for (sent, is_imported, named) in [
            (Profile::default(), false, "profile.text"),
            (text("  "), false, "profile.text"),
            (text(&"x".repeat(MAX_TEXT + 1)), false, "8192 are allowed"),
            (text("a\0b"), false, "NUL"),
            (weights(&[1.0; 2]), false, "has 3 features"),
            (weights(&[1.0, f32::NAN, 1.0]), false, "number 1 is not finite"),
            (Profile { latent: latent.clone(), ..weights(&[1.0; 3]) }, false, "profile.latent"),
            (Profile { latent, ..text("a") }, false, "no latent adapter"),
            (Profile { reference: 9, ..text("a") }, false, "profile.reference"),
            (Profile { model_id: "other".into(), ..text("a") }, false, "`taste`"),
            (imported("", &[1.0; 3]), true, "profile.model_revision"),
            (imported("f1", &[1.0; 2]), true, "has 3 features"),
            (imported("f0", &[]), true, "1 to 65536"),
            (imported("f0", &[f32::INFINITY]), true, "not finite"),
        ] {
            let status = content(sent, is_imported, &serves(), HERE).unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument);
            assert!(status.message().contains(named), "{named}: {}", status.message());
        }
    }

    #[test]
    fn feedback_has_a_prompt_and_a_verdict() {
        let status = feedback(vec![Feedback::default()]).unwrap_err();
        assert!(status.message().contains("feedback[0].prompt"), "{status:?}");
        let status = feedback(vec![Feedback::default(); MAX_FEEDBACK.0 + 1]).unwrap_err();
        assert!(status.message().contains("10001 answers"), "{status:?}");
    }
}
