//! What a person may ask of an answer: five independent axes, eight traits.

use serde::{Deserialize, Serialize};

/// A property of an answer that a program can judge exactly and a person can ask for.
///
/// Traits of one axis exclude each other; traits of different axes combine freely.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trait {
    /// Length: exactly one sentence of substance.
    Brief,
    /// Length: three or four sentences of substance.
    Detailed,
    /// Register: formal turns of phrase, and no casual ones.
    Formal,
    /// Register: casual turns of phrase, and no formal ones.
    Casual,
    /// Wording: remarks in everyday words, and no expert terms.
    Plain,
    /// Wording: expert terms, and no remarks in everyday words.
    Expert,
    /// A joke.
    Humour,
    /// A warning.
    Caution,
}

/// What traits are about; each axis can be asked for independently of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Axis {
    /// Brief, in between, or detailed.
    Length,
    /// Formal, neutral, or casual.
    Register,
    /// Plain, neutral, or expert.
    Wording,
    /// With or without a joke.
    Humour,
    /// With or without a warning.
    Caution,
}

impl Axis {
    /// All axes.
    pub const ALL: [Self; 5] = [Self::Length, Self::Register, Self::Wording, Self::Humour, Self::Caution];
}

impl Trait {
    /// All traits, in the order of reports.
    pub const ALL: [Self; 8] = [
        Self::Brief,
        Self::Detailed,
        Self::Formal,
        Self::Casual,
        Self::Plain,
        Self::Expert,
        Self::Humour,
        Self::Caution,
    ];

    /// The axis it lies on.
    pub fn axis(self) -> Axis {
        match self {
            Self::Brief | Self::Detailed => Axis::Length,
            Self::Formal | Self::Casual => Axis::Register,
            Self::Plain | Self::Expert => Axis::Wording,
            Self::Humour => Axis::Humour,
            Self::Caution => Axis::Caution,
        }
    }

    /// The other pole of its axis; a joke and a warning have none, they are there or not.
    pub fn opposite(self) -> Option<Self> {
        match self {
            Self::Brief => Some(Self::Detailed),
            Self::Detailed => Some(Self::Brief),
            Self::Formal => Some(Self::Casual),
            Self::Casual => Some(Self::Formal),
            Self::Plain => Some(Self::Expert),
            Self::Expert => Some(Self::Plain),
            Self::Humour | Self::Caution => None,
        }
    }

    /// Name in reports and files: the serde name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Brief => "brief",
            Self::Detailed => "detailed",
            Self::Formal => "formal",
            Self::Casual => "casual",
            Self::Plain => "plain",
            Self::Expert => "expert",
            Self::Humour => "humour",
            Self::Caution => "caution",
        }
    }

    /// The trait of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|candidate| candidate.name() == name)
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// A set of traits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Traits(u8);

impl Traits {
    /// No trait.
    pub const NONE: Self = Self(0);

    /// Whether `one` is in the set.
    pub fn has(self, one: Trait) -> bool {
        self.0 & one.bit() != 0
    }

    /// Whether every trait of `other` is in the set.
    pub fn has_all(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The set with `one`; whatever lay on the same axis goes.
    #[must_use]
    pub fn with(self, one: Trait) -> Self {
        Self(self.without_axis(one.axis()).0 | one.bit())
    }

    /// The set with nothing on `axis`.
    #[must_use]
    pub fn without_axis(self, axis: Axis) -> Self {
        self.iter().filter(|kept| kept.axis() != axis).fold(Self::NONE, |set, kept| Self(set.0 | kept.bit()))
    }

    /// The traits of the set, in the order of [`Trait::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Trait> {
        Trait::ALL.into_iter().filter(move |one| self.has(*one))
    }

    /// How many.
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl FromIterator<Trait> for Traits {
    fn from_iter<I: IntoIterator<Item = Trait>>(iter: I) -> Self {
        iter.into_iter().fold(Self::NONE, Self::with)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_trait_per_axis() {
        let set: Traits = [Trait::Brief, Trait::Humour, Trait::Detailed].into_iter().collect();
        assert!(set.has(Trait::Detailed) && set.has(Trait::Humour) && !set.has(Trait::Brief));
        assert_eq!(set.len(), 2);
        assert!(set.without_axis(Axis::Length).without_axis(Axis::Humour).is_empty());
    }

    #[test]
    fn names_round_trip() {
        for one in Trait::ALL {
            assert_eq!(Trait::parse(one.name()), Some(one));
            assert_eq!(one.opposite().and_then(Trait::opposite), one.opposite().map(|_| one));
        }
    }
}
