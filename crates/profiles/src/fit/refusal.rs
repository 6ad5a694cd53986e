//! Feedback that no profile should be made of, and why.

/// The least feedback: with fewer, four rightly ordered ones happen by chance too often to mean anything.
pub const LEAST: usize = 5;
/// The most feedback of one fit: its kernel has this many rows.
pub const MOST: usize = 512;

/// Why feedback is refused, with the numbers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is too little of it.
    #[error("{got} pieces of feedback are too few to fit a profile to; {LEAST} or more are needed")]
    TooFew {
        /// How many came.
        got: usize,
    },
    /// There is too much of it.
    #[error("{got} pieces of feedback are too many for one fit; at most {MOST} are allowed")]
    TooMany {
        /// How many came.
        got: usize,
    },
    /// All thumbs point the same way, and there are no pairs.
    #[error(
        "all {thumbs} thumbs point the same way; a fit needs answers that were liked and ones that were not"
    )]
    OneSided {
        /// How many thumbs.
        thumbs: usize,
    },
    /// It says of the same answers now this and now that.
    #[error(
        "{contradicting} of {all} pieces of feedback contradict another one on the same answers; at most a quarter may"
    )]
    Contradictory {
        /// Pieces that are contradicted.
        contradicting: usize,
        /// All pieces.
        all: usize,
    },
    /// Nothing that holds for the rest was learned from a part of it.
    #[error(
        "of {held_out} held-out pieces of feedback the fit orders {right} rightly, no better than chance: the feedback \
         contradicts itself, or is about something that this reward model does not see"
    )]
    Chance {
        /// Rightly ordered ones.
        right: usize,
        /// Held-out ones.
        held_out: usize,
    },
}
