//! People: the fit of a profile to feedback, and the store that keeps it.
#![forbid(unsafe_code)]

pub mod fit;
mod profile;
mod store;

pub use profile::{Content, InvalidName, Kept, Model, Profile, ProfileName, Reference, Vector};
pub use store::{BasedOn, Change, Keep, Place, PlaceError, Store, StoreError, Trouble};
