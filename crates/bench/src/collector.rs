//! A collector that takes what services export by OTLP over gRPC, and hands it to whoever started it.

use std::{net::Ipv4Addr, sync::Arc};

use anyhow::Result;
use opentelemetry_proto::tonic::collector::{
    logs::v1::{
        ExportLogsServiceRequest, ExportLogsServiceResponse,
        logs_service_server::{LogsService, LogsServiceServer},
    },
    metrics::v1::{
        ExportMetricsServiceRequest, ExportMetricsServiceResponse,
        metrics_service_server::{MetricsService, MetricsServiceServer},
    },
    trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

/// One export.
#[derive(Debug, Clone)]
pub enum Export {
    /// Spans.
    Traces(ExportTraceServiceRequest),
    /// Metrics.
    Metrics(ExportMetricsServiceRequest),
    /// Log lines.
    Logs(ExportLogsServiceRequest),
}

/// A collector on a free loopback port; it ends when it is dropped.
pub struct Collector {
    endpoint: String,
    _server: JoinSet<()>,
}

impl Collector {
    /// Starts one; `take` gets every export as it comes.
    ///
    /// # Errors
    /// No port can be opened.
    pub async fn start(take: impl Fn(Export) + Send + Sync + 'static) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let take = Take(Arc::new(take));
        let serving = Server::builder()
            .add_service(TraceServiceServer::new(take.clone()))
            .add_service(MetricsServiceServer::new(take.clone()))
            .add_service(LogsServiceServer::new(take))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let mut server = JoinSet::new();
        server.spawn(async move {
            // Whoever exports sees that it has ended.
            let _ = serving.await;
        });
        Ok(Self { endpoint, _server: server })
    }

    /// Its address, as a URL.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }
}

struct Take<F>(Arc<F>);

impl<F> Clone for Take<F> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[tonic::async_trait]
impl<F: Fn(Export) + Send + Sync + 'static> TraceService for Take<F> {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0(Export::Traces(request.into_inner()));
        Ok(Response::new(ExportTraceServiceResponse { partial_success: None }))
    }
}

#[tonic::async_trait]
impl<F: Fn(Export) + Send + Sync + 'static> MetricsService for Take<F> {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.0(Export::Metrics(request.into_inner()));
        Ok(Response::new(ExportMetricsServiceResponse { partial_success: None }))
    }
}

#[tonic::async_trait]
impl<F: Fn(Export) + Send + Sync + 'static> LogsService for Take<F> {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        self.0(Export::Logs(request.into_inner()));
        Ok(Response::new(ExportLogsServiceResponse { partial_success: None }))
    }
}
