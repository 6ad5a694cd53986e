//! The door of a server: no call passes it without a [`Caller`].

use std::sync::Arc;

use tonic::{Request, Status, service::Interceptor};

use super::Callers;
use crate::caller::Caller;

/// Says of every call whose it is, or turns it away.
#[derive(Debug, Clone)]
pub struct Door(Kind);

#[derive(Debug, Clone)]
enum Kind {
    /// Nobody is asked.
    Open(Caller),
    /// Every caller shows a token.
    Guarded(Arc<Callers>),
    /// The callers are generators, and say for whom they call.
    Generators,
}

impl Door {
    /// Everybody may call, as the one owner `local`, who may keep so many profiles.
    pub fn open(profiles: Option<u32>) -> Self {
        Self(Kind::Open(Caller { profiles, ..Caller::local() }))
    }

    /// Generators alone call, and are believed for whom: TLS has checked that they are generators, or the
    /// configuration has said that nobody else can call.
    pub fn generators() -> Self {
        Self(Kind::Generators)
    }

    pub(super) fn guarded(callers: Callers) -> Self {
        Self(Kind::Guarded(Arc::new(callers)))
    }
}

impl Interceptor for Door {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let caller = match &self.0 {
            Kind::Open(local) => local.clone(),
            Kind::Generators => Caller::forwarded(&request)?,
            Kind::Guarded(callers) => callers.identify(bearer(&request)?)?,
        };
        request.extensions_mut().insert(caller);
        Ok(request)
    }
}

fn bearer(request: &Request<()>) -> Result<&str, Status> {
    let missing = || {
        Status::unauthenticated(
            "no token came; send it as metadata `authorization: Bearer TOKEN` (attune: --token-file)",
        )
    };
    let value = request.metadata().get("authorization").ok_or_else(missing)?;
    let (scheme, token) = value.to_str().ok().and_then(|text| text.split_once(' ')).ok_or_else(missing)?;
    if !scheme.eq_ignore_ascii_case("bearer") || token.trim().is_empty() {
        return Err(missing());
    }
    Ok(token.trim())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tonic::Code;

    use super::*;
    use crate::auth::{AuthConfig, new_token};

    fn request(authorization: &str) -> Request<()> {
        let mut request = Request::new(());
        if !authorization.is_empty() {
            request.metadata_mut().insert("authorization", authorization.parse().unwrap());
        }
        request
    }

    #[tokio::test]
    async fn a_guarded_door_asks_and_believes_nobody_who_says_so_himself() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tokens");
        let (alice, bob) = (new_token("alice").unwrap(), new_token("bob").unwrap());
        std::fs::write(&file, format!("# people\n{}\n\n{}\n", alice.line, bob.line)).unwrap();
        let config = AuthConfig { tokens: Some(file), ..AuthConfig::default() };
        let mut door = config.door(Duration::from_secs(60)).unwrap();
        let mut asked = request(&format!("Bearer {}", alice.token.expose()));
        Caller { owner: "bob".into(), profiles: None }.forward(&mut asked);
        assert_eq!(Caller::of(&door.call(asked).unwrap()).unwrap().owner, "alice");
        let asked = request(&format!("bearer {}", bob.token.expose()));
        assert_eq!(Caller::of(&door.call(asked).unwrap()).unwrap().owner, "bob");
        let last = bob.token.expose().len() - 1;
        let wrong = format!("Bearer {}", &bob.token.expose()[..last]);
        for refused in ["", "Bearer", "Bearer ", "Basic abc", "Bearer x", "Bearer a b", &wrong] {
            let status = door.call(request(refused)).unwrap_err();
            assert_eq!(status.code(), Code::Unauthenticated, "{refused}");
        }
    }

    #[test]
    fn other_doors_say_who_it_is_as_well() {
        assert_eq!(Caller::of(&Door::open(None).call(request("")).unwrap()).unwrap(), Caller::local());
        let mut asked = request("");
        Caller { owner: "bob".into(), profiles: Some(3) }.forward(&mut asked);
        let caller = Caller::of(&Door::generators().call(asked).unwrap()).unwrap();
        assert_eq!((caller.owner.as_str(), caller.profiles), ("bob", Some(3)));
    }
}
