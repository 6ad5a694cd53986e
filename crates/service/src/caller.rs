//! Whose call it is: every call's extensions hold a [`Caller`], put there by the server's door.

use tonic::{Request, Status, metadata::MetadataValue};

/// The owner of everything while callers are not authenticated.
pub const LOCAL: &str = "local";

/// The longest name of an owner, in bytes.
pub(crate) const MAX_OWNER: usize = 256;

/// In these a generator says for whom it calls a worker; from clients they are not taken.
const OWNER: &str = "attune-owner-bin";
const PROFILES: &str = "attune-profiles";

/// Who calls: what belongs to another owner does not exist for this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The owner of the caller's texts and profiles, 1 to 256 bytes. Without authentication: [`LOCAL`].
    pub owner: String,
    /// The most profiles that this owner may keep. `None`: no limit.
    pub profiles: Option<u32>,
}

impl Caller {
    /// The owner of everything while callers are not authenticated.
    pub fn local() -> Self {
        Self { owner: LOCAL.to_owned(), profiles: None }
    }

    /// The caller of a call.
    ///
    /// # Errors
    /// INTERNAL: nobody has said who calls, a fault of the program; such a call is refused.
    pub fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let caller = request.extensions().get::<Self>().cloned();
        caller.ok_or_else(|| Status::internal("the call came past the server's door"))
    }

    /// Says on a call from a generator to a worker for whom it is.
    pub fn forward<T>(&self, request: &mut Request<T>) {
        let metadata = request.metadata_mut();
        metadata.insert_bin(OWNER, MetadataValue::from_bytes(self.owner.as_bytes()));
        if let Some(most) = self.profiles {
            metadata.insert(PROFILES, most.into());
        }
    }

    /// For whom a generator calls; for nobody in particular: [`Caller::local`].
    ///
    /// # Errors
    /// INVALID_ARGUMENT: it says what no generator says.
    pub(crate) fn forwarded<T>(request: &Request<T>) -> Result<Self, Status> {
        let metadata = request.metadata();
        let Some(owner) = metadata.get_bin(OWNER) else { return Ok(Self::local()) };
        let refuse =
            || Status::invalid_argument(format!("{OWNER} names no owner: 1 to {MAX_OWNER} bytes of text"));
        let owner = owner.to_bytes().map_err(|_| refuse())?;
        let owner = String::from_utf8(owner.to_vec()).ok().filter(|o| is_owner(o)).ok_or_else(refuse)?;
        let profiles = match metadata.get(PROFILES) {
            None => None,
            Some(most) => Some(
                most.to_str()
                    .ok()
                    .and_then(|most| most.parse().ok())
                    .ok_or_else(|| Status::invalid_argument(format!("{PROFILES} is no number")))?,
            ),
        };
        Ok(Self { owner, profiles })
    }
}

/// Whether an owner may be called so.
pub(crate) fn is_owner(name: &str) -> bool {
    (1..=MAX_OWNER).contains(&name.len()) && !name.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_generator_says_arrives() {
        let caller = Caller { owner: "Zoë of museum".into(), profiles: Some(7) };
        let mut request = Request::new(());
        assert_eq!(Caller::forwarded(&request).unwrap(), Caller::local());
        caller.forward(&mut request);
        assert_eq!(Caller::forwarded(&request).unwrap(), caller);
        assert!(Caller::of(&request).is_err(), "what is said is not yet believed");
        let long = Caller { owner: "x".repeat(257), profiles: None };
        long.forward(&mut request);
        assert!(Caller::forwarded(&request).is_err());
    }
}
