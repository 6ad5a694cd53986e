//! Profiles as they go on the wire, and as the store keeps them.

use attune_profiles::{Content, Kept, Profile, Reference, Vector};
use attune_proto::{
    profile::v1::{self as proto, Feedback, FitReport},
    reward::v1::{self as reward, Latent, Weights},
};
use prost::Message as _;
use tonic::Status;

/// A profile for its owner.
///
/// # Errors
/// INTERNAL: the store holds what was never put there.
pub(crate) fn profile(profile: Profile) -> Result<proto::Profile, Status> {
    let Profile { name, content, revision, created_at, updated_at, kept } = profile;
    let Content { text, vector, reference: fitted, model, fit } = content;
    let (weights, latent) = match vector {
        None => (None, None),
        Some(Vector::Weights(values)) => (Some(Weights { values }), None),
        Some(Vector::Latent(values)) => (None, Some(Latent { values })),
    };
    let fit = fit.map(|bytes| FitReport::decode(bytes.as_slice())).transpose().map_err(|_| damaged())?;
    Ok(proto::Profile {
        name: name.to_string(),
        text,
        weights,
        model_revision: model.revision,
        reference: reference(fitted).into(),
        revision,
        created_at: Some(created_at.into()),
        updated_at: Some(updated_at.into()),
        latent,
        model_id: model.id,
        kept_feedback: kept,
        fit,
    })
}

/// A report as it is kept.
pub(crate) fn report(fit: &FitReport) -> Vec<u8> {
    fit.encode_to_vec()
}

/// Feedback as it is kept: one message behind the other, each with its length.
pub(crate) fn kept(feedback: &[Feedback]) -> Kept {
    let items = feedback.iter().flat_map(|item| item.encode_length_delimited_to_vec()).collect();
    Kept { answers: u32::try_from(feedback.len()).unwrap_or(u32::MAX), items }
}

/// Kept feedback, as it came.
///
/// # Errors
/// INTERNAL: the store holds what was never put there.
pub(crate) fn feedback(kept: &Kept) -> Result<Vec<Feedback>, Status> {
    let mut items = kept.items.as_slice();
    let mut all = Vec::new();
    while !items.is_empty() {
        all.push(Feedback::decode_length_delimited(&mut items).map_err(|_| damaged())?);
    }
    Ok(all)
}

/// `None`: the model's default.
pub(crate) fn reference(reference: Option<Reference>) -> reward::Reference {
    match reference {
        None => reward::Reference::Unspecified,
        Some(Reference::Model) => reward::Reference::Model,
        Some(Reference::Generator) => reward::Reference::Generator,
        Some(Reference::None) => reward::Reference::None,
    }
}

fn damaged() -> Status {
    tracing::error!("the profile store holds what was never put there");
    Status::internal("the profile store failed; see the service's log")
}

#[cfg(test)]
mod tests {
    use attune_proto::profile::v1::{Pair, feedback::Kind};

    use super::*;

    #[test]
    fn kept_feedback_comes_back() {
        let pair = |chosen: &str| Feedback {
            prompt: None,
            kind: Some(Kind::Pair(Pair { chosen: chosen.into(), ..Pair::default() })),
        };
        let all = vec![pair("a"), Feedback::default(), pair(&"long ".repeat(99))];
        let mut there = kept(&all);
        assert_eq!((there.answers, feedback(&there).unwrap()), (3, all));
        assert_eq!(kept(&[]), Kept::default());
        there.items.pop();
        assert!(feedback(&there).is_err());
    }
}
