//! What is known of one person's taste.

use std::{fmt, time::SystemTime};

/// The longest name, in characters.
const MAX_NAME: usize = 128;

/// The name of a profile: 1 to 128 characters, none of them a control character. Unique among its owner's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProfileName(String);

/// What a profile may not be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a profile's name has 1 to {MAX_NAME} characters, none of them a control character")]
pub struct InvalidName;

impl ProfileName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ProfileName {
    type Error = InvalidName;

    fn try_from(name: String) -> Result<Self, InvalidName> {
        let fits = (1..=MAX_NAME).contains(&name.chars().count()) && !name.chars().any(char::is_control);
        if fits { Ok(Self(name)) } else { Err(InvalidName) }
    }
}

impl fmt::Display for ProfileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A person as numbers; each is finite.
#[derive(Clone, PartialEq)]
pub enum Vector {
    /// `w_p`, `[d]`: one for each of the reward model's features.
    Weights(Vec<f32>),
    /// What the reward model's latent adapter turns into a person's way, `[latent size]`.
    Latent(Vec<f32>),
}

/// It is personal data: its kind and its length are all that is shown.
impl fmt::Debug for Vector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Weights(values) => write!(f, "Weights([{}])", values.len()),
            Self::Latent(values) => write!(f, "Latent([{}])", values.len()),
        }
    }
}

/// What a vector was fitted against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reference {
    /// The reward model before its training.
    Model,
    /// The base model.
    Generator,
    /// Nothing.
    None,
}

impl Reference {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Generator => "generator",
            Self::None => "none",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::Model, Self::Generator, Self::None].into_iter().find(|r| r.as_str() == name)
    }
}

/// The reward model that a vector was made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// What its operator calls it.
    pub id: String,
    /// The fingerprint of its files.
    pub revision: String,
}

/// What a profile holds.
#[derive(Clone, PartialEq)]
pub struct Content {
    /// The preference in words.
    pub text: Option<String>,
    /// The person as numbers.
    pub vector: Option<Vector>,
    /// What the vector was fitted against. `None`: the model's default.
    pub reference: Option<Reference>,
    /// The model that it was made for.
    pub model: Model,
    /// How the vector was fitted, as the service encodes it. `None`: it was given.
    pub fit: Option<Vec<u8>>,
}

/// Without anything of the person.
impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Content")
            .field("text", &self.text.as_ref().map(String::len))
            .field("vector", &self.vector)
            .field("reference", &self.reference)
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}

/// A profile as it is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// Its name.
    pub name: ProfileName,
    /// What it holds.
    pub content: Content,
    /// Counts the changes, from 1.
    pub revision: u64,
    /// When it was first put, to the microsecond.
    pub created_at: SystemTime,
    /// When it last changed, to the microsecond.
    pub updated_at: SystemTime,
    /// How many answers are kept to fit it again.
    pub kept: u32,
}

/// Feedback that is kept with its owner's consent, as the service encodes it.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Kept {
    /// How many answers; 0: nothing is kept.
    pub answers: u32,
    /// The encoded answers.
    pub items: Vec<u8>,
}

/// It is what people wrote: how much of it is all that is shown.
impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kept({} answers, {} bytes)", self.answers, self.items.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_bounds() {
        for good in ["a".to_owned(), "Zoë at work".to_owned(), "é".repeat(128)] {
            assert_eq!(ProfileName::try_from(good.clone()).unwrap().as_str(), good);
        }
        for bad in [String::new(), "a".repeat(129), "a\nb".to_owned(), "\0".to_owned()] {
            assert_eq!(ProfileName::try_from(bad), Err(InvalidName));
        }
    }

    #[test]
    fn nothing_of_a_person_is_shown() {
        let content = Content {
            text: Some("verbose".into()),
            vector: Some(Vector::Weights(vec![0.125; 3])),
            reference: Some(Reference::Model),
            model: Model { id: "m".into(), revision: "r".into() },
            fit: Some(vec![77]),
        };
        let shown = format!("{content:?} {:?}", Kept { answers: 1, items: b"hello".to_vec() });
        assert!(shown.contains("Weights([3])") && shown.contains("5 bytes"), "{shown}");
        assert!(!shown.contains("verbose") && !shown.contains("0.125") && !shown.contains("77"), "{shown}");
    }
}
