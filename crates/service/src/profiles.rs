//! `ProfileService`, which this version does not implement: the same answer on both services.

use attune_proto::profile::v1::{
    DeleteRequest, DeleteResponse, FitRequest, FitResponse, GetRequest, GetResponse, ListRequest,
    ListResponse, PutRequest, PutResponse, profile_service_server::ProfileService,
};

use futures::stream::BoxStream;
use tonic::{Request, Response, Status};

use crate::status::unimplemented;

/// Answers UNIMPLEMENTED, so that clients learn it from the service itself.
#[derive(Debug, Clone, Copy)]
pub struct Profiles;

#[tonic::async_trait]
impl ProfileService for Profiles {
    async fn put(&self, _: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        Err(unimplemented("ProfileService.Put"))
    }

    async fn get(&self, _: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        Err(unimplemented("ProfileService.Get"))
    }

    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        Err(unimplemented("ProfileService.List"))
    }

    async fn delete(&self, _: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        Err(unimplemented("ProfileService.Delete"))
    }

    type FitStream = BoxStream<'static, Result<FitResponse, Status>>;

    async fn fit(&self, _: Request<FitRequest>) -> Result<Response<Self::FitStream>, Status> {
        Err(unimplemented("ProfileService.Fit"))
    }
}
