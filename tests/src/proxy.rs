//! A worker that lies: it stands before a real one, passes everything on, and changes what comes back.

use std::{net::SocketAddr, pin::Pin, sync::Arc};

use anyhow::Result;
use attune_proto::reward::v1::{
    DescribeRequest, DescribeResponse, RequestFrame, ScoreRequest, ScoreResponse,
    response_frame::Frame,
    reward_service_client::RewardServiceClient,
    reward_service_server::{RewardService, RewardServiceServer},
};
use futures::Stream;
use tokio::{net::TcpListener, sync::mpsc, task::AbortHandle};
use tokio_stream::{
    StreamExt as _,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Server},
};

/// What it makes of a worker's frame.
type Lie = dyn Fn(Frame) -> Vec<Frame> + Send + Sync;
/// What it does with a generator's frame, beside passing it on.
type Hear = dyn Fn(&RequestFrame) + Send + Sync;

/// A worker that stands before another one. It ends when dropped.
pub struct Proxy {
    /// Its address, as a URL.
    pub endpoint: String,
    server: AbortHandle,
}

impl Proxy {
    /// Starts one before the worker at `behind`.
    ///
    /// # Errors
    /// That one cannot be reached, or there is no port.
    pub async fn start(
        behind: &str,
        lie: impl Fn(Frame) -> Vec<Frame> + Send + Sync + 'static,
    ) -> Result<Self> {
        Self::start_listening(behind, |_| (), lie).await
    }

    /// `start`; it hears what the generator says, too.
    ///
    /// # Errors
    /// As `start`.
    pub async fn start_listening(
        behind: &str,
        hear: impl Fn(&RequestFrame) + Send + Sync + 'static,
        lie: impl Fn(Frame) -> Vec<Frame> + Send + Sync + 'static,
    ) -> Result<Self> {
        let client = RewardServiceClient::connect(behind.to_owned()).await?;
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let service = RewardServiceServer::new(Service { client, hear: Arc::new(hear), lie: Arc::new(lie) });
        let served =
            Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener));
        let server = tokio::spawn(async move {
            // It ends by being aborted.
            let _ = served.await;
        });
        Ok(Self { endpoint, server: server.abort_handle() })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

struct Service {
    client: RewardServiceClient<Channel>,
    hear: Arc<Hear>,
    lie: Arc<Lie>,
}

#[tonic::async_trait]
impl RewardService for Service {
    async fn describe(
        &self,
        request: Request<DescribeRequest>,
    ) -> Result<Response<DescribeResponse>, Status> {
        self.client.clone().describe(request.into_inner()).await
    }

    type ScoreStream = Pin<Box<dyn Stream<Item = Result<ScoreResponse, Status>> + Send>>;

    async fn score(
        &self,
        request: Request<Streaming<ScoreRequest>>,
    ) -> Result<Response<Self::ScoreStream>, Status> {
        let hear = Arc::clone(&self.hear);
        let (passed_on, requests) = mpsc::channel(16);
        let mut incoming = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(message)) = incoming.message().await {
                message.frames.iter().for_each(|frame| hear(frame));
                if passed_on.send(message).await.is_err() {
                    return;
                }
            }
        });
        let responses = self.client.clone().score(ReceiverStream::new(requests)).await?.into_inner();
        let lie = Arc::clone(&self.lie);
        let changed = responses.map(move |message| {
            let mut message = message?;
            let frames = std::mem::take(&mut message.frames).into_iter().filter_map(|f| f.frame);
            message.frames = frames
                .flat_map(|f| lie(f))
                .map(|f| attune_proto::reward::v1::ResponseFrame { frame: Some(f) })
                .collect();
            Ok(message)
        });
        Ok(Response::new(Box::pin(changed)))
    }
}
