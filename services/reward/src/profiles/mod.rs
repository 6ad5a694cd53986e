//! `ProfileService`: keeps what was learned of a person.

mod check;
pub(crate) mod fit;
mod settings;
pub(crate) mod wire;

use std::{sync::Arc, time::Duration};

use attune_engine::{LatentAdapter, PersRm};
use attune_profiles::{BasedOn, Change, Keep, Model, Profile, ProfileName, Store, StoreError};
use attune_proto::profile::v1::{
    self as proto, DeleteRequest, DeleteResponse, FitRequest, FitResponse, GetRequest, GetResponse,
    ListRequest, ListResponse, PutRequest, PutResponse, profile_service_server::ProfileService,
};
use attune_service::{caller::Caller, status};
use futures::stream::BoxStream;
use tonic::{Request, Response, Status};

use fit::Fits;
pub use settings::ProfilesConfig;

/// When it is worth to ask a store again that could not be reached.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// A page where none is asked for, and the largest.
const PAGE: (u32, u32) = (100, 1000);

/// The service; one for all calls.
pub(crate) struct ProfileApi {
    persrm: Arc<PersRm>,
    /// `None`: no profiles are kept.
    store: Option<Arc<Store>>,
    fits: Arc<Fits>,
}

impl ProfileApi {
    /// Keeps profiles in this store.
    pub(crate) fn new(persrm: Arc<PersRm>, store: Option<Arc<Store>>, fits: Arc<Fits>) -> Self {
        Self { persrm, store, fits }
    }

    fn store(&self) -> Result<&Store, Status> {
        self.store.as_deref().ok_or_else(|| {
            let message = "this worker keeps no profiles; its operator can set `profiles.url`";
            status::precondition("PROFILES", "profiles.url", message)
        })
    }

    /// The model that profiles are made for here.
    fn model(&self) -> Model {
        let assets = &self.persrm.assets;
        Model { id: assets.id.clone(), revision: assets.revision.clone() }
    }
}

#[tonic::async_trait]
impl ProfileService for ProfileApi {
    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let caller = Caller::of(&request)?;
        let store = self.store()?;
        let PutRequest { profile, expected_revision, imported, feedback } = request.into_inner();
        let profile = profile.ok_or_else(|| status::invalid("profile", "no profile came; send one"))?;
        let name = name("profile.name", &profile.name)?;
        let latent = self.persrm.latent().map_or(0, LatentAdapter::size);
        let limits = check::Limits { features: self.persrm.assets.config.hidden, latent };
        let content = check::content(profile, imported, &self.model(), limits)?;
        let keep = match (imported, feedback.is_empty()) {
            (true, _) => Keep::Only(wire::kept(&check::feedback(feedback)?)),
            (false, true) => Keep::AsItIs,
            (false, false) => {
                let message = "feedback is put with an imported profile alone; send it with Fit instead";
                return Err(status::invalid("feedback", message));
            }
        };
        let change = Change { content, based_on: based_on(expected_revision), keep };
        let kept = store.put(&caller.owner, &name, change, caller.profiles).await;
        let kept = kept.map_err(|error| refusal(&name, &error))?;
        Ok(Response::new(PutResponse { profile: Some(wire::profile(kept)?) }))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let caller = Caller::of(&request)?;
        let store = self.store()?;
        let GetRequest { name: asked, with_feedback } = request.into_inner();
        let name = name("name", &asked)?;
        let refuse = |error| refusal(&name, &error);
        let (profile, feedback): (Profile, Vec<proto::Feedback>) = if with_feedback {
            let (profile, kept) = store.get_with_feedback(&caller.owner, &name).await.map_err(refuse)?;
            (profile, wire::feedback(&kept)?)
        } else {
            (store.get(&caller.owner, &name).await.map_err(refuse)?, Vec::new())
        };
        Ok(Response::new(GetResponse { profile: Some(wire::profile(profile)?), feedback }))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let caller = Caller::of(&request)?;
        let store = self.store()?;
        let ListRequest { page_size, page_token } = request.into_inner();
        let size = match page_size {
            0 => PAGE.0,
            asked if asked <= PAGE.1 => asked,
            asked => {
                let message = format!("{asked} is more than {}, the most on a page", PAGE.1);
                return Err(status::invalid("page_size", message));
            }
        };
        let after = match page_token.as_str() {
            "" => None,
            token => Some(ProfileName::try_from(token.to_owned()).map_err(|_| {
                status::invalid("page_token", "it is of no page; send what the page before gave")
            })?),
        };
        // One more than asked for tells whether there is another page.
        let found = store.list(&caller.owner, after.as_ref(), size + 1).await;
        let mut found = found.map_err(|error| trouble(&error))?;
        let more = found.len() > size as usize;
        found.truncate(size as usize);
        let next_page_token =
            found.last().filter(|_| more).map(|last| last.name.to_string()).unwrap_or_default();
        let profiles = found.into_iter().map(wire::profile).collect::<Result<_, _>>()?;
        Ok(Response::new(ListResponse { profiles, next_page_token }))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        let caller = Caller::of(&request)?;
        let store = self.store()?;
        let name = name("name", &request.into_inner().name)?;
        store.delete(&caller.owner, &name).await.map_err(|error| refusal(&name, &error))?;
        Ok(Response::new(DeleteResponse {}))
    }

    type FitStream = BoxStream<'static, Result<FitResponse, Status>>;

    async fn fit(&self, request: Request<FitRequest>) -> Result<Response<Self::FitStream>, Status> {
        let caller = Caller::of(&request)?;
        self.store()?;
        let store = self.store.clone().ok_or_else(|| Status::internal("the profile store is gone"))?;
        Ok(Response::new(self.fits.fit(store, caller, request.into_inner()).await?))
    }
}

fn name(field: &str, name: &str) -> Result<ProfileName, Status> {
    ProfileName::try_from(name.to_owned()).map_err(|e| status::invalid(field, e.to_string()))
}

fn based_on(expected_revision: Option<u64>) -> BasedOn {
    match expected_revision {
        None => BasedOn::Anything,
        Some(0) => BasedOn::Nothing,
        Some(revision) => BasedOn::Revision(revision),
    }
}

/// Why nothing was done with a profile.
pub(crate) fn refusal(name: &ProfileName, error: &StoreError) -> Status {
    match error {
        StoreError::NotFound => {
            status::not_found("profile", name.as_str(), format!("you have no profile `{name}`"))
        }
        StoreError::Stale { .. } => Status::aborted(error.to_string()),
        StoreError::TooMany { .. } => Status::resource_exhausted(error.to_string()),
        error => trouble(error),
    }
}

fn trouble(error: &StoreError) -> Status {
    match error {
        StoreError::Unavailable(trouble) => status::unavailable(trouble.to_string(), RETRY_AFTER),
        error => Status::internal(error.to_string()),
    }
}
