//! What both services export by OTLP, as a collector gets it over a real socket.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that fails should say where

use std::{
    collections::BTreeSet,
    net::TcpListener,
    sync::{Arc, Mutex},
    time::Duration,
};

use attune_bench::collector::{Collector, Export};
use attune_proto::{
    generator::v1::{GenerateRequest, GuidanceTerm, generator_service_client::GeneratorServiceClient},
    reward::v1::Guidance,
};
use attune_tests::{Generated, Process, say, workspace_root};
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value::Value},
    logs::v1::LogRecord,
    resource::v1::Resource,
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use prost::Message as _;
use tonic::{Request, transport::Channel};

/// Nothing here takes so long.
const PATIENCE: Duration = Duration::from_secs(60);
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";
/// Words of people's that stand nowhere else.
const PROMPT: &str = "How do I bake zwieback with marzipan for Wilhelmine?";
const PREFERENCE: &str = "in a polite tone, cockatoo";
const SECRETS: [&str; 4] = ["zwieback", "marzipan", "Wilhelmine", "cockatoo"];

/// A pair of processes on the embedded models.
struct Services {
    generator: Process,
    worker: Process,
}

impl Services {
    fn start(endpoint: &str, more: &[&str]) -> Self {
        let endpoint = format!("telemetry.endpoint={endpoint}");
        let model = |name: &str| workspace_root().join("models/demo").join(name).display().to_string();
        let args = |model: &str| {
            let mut args = ["--model", model, "--threads", "1", "--cache-mib", "64", "--set", &endpoint]
                .map(str::to_owned)
                .to_vec();
            args.extend(more.iter().flat_map(|set| ["--set".to_owned(), (*set).to_owned()]));
            args
        };
        let worker = Process::start("attune-reward", args(&model("persrm"))).unwrap();
        let mut own = args(&model("base"));
        own.extend(["--reward".to_owned(), worker.endpoint.clone()]);
        let generator = Process::start("attune-generator", own).unwrap();
        Self { generator, worker }
    }

    async fn client(&self) -> GeneratorServiceClient<Channel> {
        GeneratorServiceClient::connect(self.generator.endpoint.clone()).await.unwrap()
    }

    /// Asks both to end, and waits until they have.
    async fn end(self) {
        let Self { generator, worker } = self;
        let ended =
            tokio::task::spawn_blocking(|| [generator.terminate().unwrap(), worker.terminate().unwrap()]);
        let codes = tokio::time::timeout(PATIENCE, ended).await.expect("a service does not end").unwrap();
        assert_eq!(codes, [Some(0), Some(0)]);
    }
}

fn request() -> GenerateRequest {
    let guidance = Guidance { text: Some(PREFERENCE.into()), ..Guidance::default() };
    let term = GuidanceTerm { guidance: Some(guidance.into()), ..GuidanceTerm::default() };
    GenerateRequest { guidances: vec![term], ..say(PROMPT, 12) }
}

/// All that a collector got.
#[derive(Clone, Default)]
struct Got(Arc<Mutex<Vec<Export>>>);

impl Got {
    async fn collector(&self) -> Collector {
        let got = self.clone();
        Collector::start(move |export| got.0.lock().unwrap().push(export)).await.unwrap()
    }

    /// The spans, each with its service's name.
    fn spans(&self) -> Vec<(String, Span)> {
        let mut spans = Vec::new();
        for export in self.0.lock().unwrap().iter() {
            let Export::Traces(traces) = export else { continue };
            for of_one in &traces.resource_spans {
                let service = service(&of_one.resource);
                let its = of_one.scope_spans.iter().flat_map(|scope| scope.spans.clone());
                spans.extend(its.map(|span| (service.clone(), span)));
            }
        }
        spans
    }

    /// The log lines, each with its service's name.
    fn logs(&self) -> Vec<(String, LogRecord)> {
        let mut lines = Vec::new();
        for export in self.0.lock().unwrap().iter() {
            let Export::Logs(logs) = export else { continue };
            for of_one in &logs.resource_logs {
                let service = service(&of_one.resource);
                let its = of_one.scope_logs.iter().flat_map(|scope| scope.log_records.clone());
                lines.extend(its.map(|line| (service.clone(), line)));
            }
        }
        lines
    }

    /// The names of the metrics of a service.
    fn metrics(&self, of: &str) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for export in self.0.lock().unwrap().iter() {
            let Export::Metrics(metrics) = export else { continue };
            for of_one in metrics.resource_metrics.iter().filter(|one| service(&one.resource) == of) {
                let its = of_one.scope_metrics.iter().flat_map(|scope| &scope.metrics);
                names.extend(its.map(|metric| metric.name.clone()));
            }
        }
        names
    }

    /// Whether a text stands anywhere in what was exported.
    fn holds(&self, text: &str) -> bool {
        self.0.lock().unwrap().iter().any(|export| {
            let bytes = match export {
                Export::Traces(traces) => traces.encode_to_vec(),
                Export::Metrics(metrics) => metrics.encode_to_vec(),
                Export::Logs(logs) => logs.encode_to_vec(),
            };
            bytes.windows(text.len()).any(|window| window == text.as_bytes())
        })
    }
}

fn service(resource: &Option<Resource>) -> String {
    text(&resource.as_ref().unwrap().attributes, "service.name")
}

fn value<'a>(attributes: &'a [KeyValue], key: &str) -> &'a Value {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    let found = found.unwrap_or_else(|| panic!("{key} in {attributes:?}"));
    found.value.as_ref().unwrap().value.as_ref().unwrap()
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    match value(attributes, key) {
        Value::StringValue(text) => text.clone(),
        other => panic!("{key} is {other:?}"),
    }
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn a_request_is_one_trace_across_both_services_and_holds_nobodys_text() {
    let got = Got::default();
    let collector = got.collector().await;
    // The share is none: what the caller records is recorded all the same.
    let settings = ["telemetry.sampling=0", "telemetry.steps=true", "log.filter=debug"];
    let services = Services::start(collector.endpoint(), &settings);
    let mut client = services.client().await;
    let mut recorded = Request::new(request());
    recorded.metadata_mut().insert("traceparent", format!("00-{TRACE}-{CALLER}-01").parse().unwrap());
    let answer = Generated::of(&mut client, recorded).await.unwrap();
    // Nobody records this one.
    Generated::of(&mut client, request()).await.unwrap();
    services.end().await;

    let spans = got.spans();
    let (of_trace, others): (Vec<_>, Vec<_>) = spans.iter().partition(|(_, s)| hex(&s.trace_id) == TRACE);
    let one = |service: &str, name: &str| {
        let mut found = of_trace.iter().filter(|(of, span)| of == service && span.name == name);
        let (_, span) = found.next().unwrap_or_else(|| panic!("{name} of {service} in {of_trace:?}"));
        assert!(found.next().is_none(), "{name} of {service} is there twice");
        span
    };
    let generator = |name: &str| one("attune-generator", name);
    let worker = |name: &str| one("attune-reward", name);
    let call = generator("attune.generator.v1.GeneratorService/Generate");
    assert_eq!(hex(&call.parent_span_id), CALLER);
    assert_eq!(call.kind(), SpanKind::Server);
    assert_eq!(text(&call.attributes, "rpc.response.status_code"), "OK");
    assert_eq!(text(&call.attributes, "gen_ai.operation.name"), "chat");
    let usage = answer.finish.usage.unwrap();
    let output = Value::IntValue(i64::from(usage.generated_tokens));
    assert_eq!(value(&call.attributes, "gen_ai.usage.output_tokens"), &output);
    for stage in ["queue", "prefill", "decode", "reward session"] {
        assert_eq!(generator(stage).parent_span_id, call.span_id, "{stage}");
    }
    let (queue, prefill, decode) = (generator("queue"), generator("prefill"), generator("decode"));
    assert!(queue.end_time_unix_nano <= prefill.start_time_unix_nano);
    assert!(prefill.end_time_unix_nano <= decode.start_time_unix_nano);
    assert!(decode.end_time_unix_nano <= call.end_time_unix_nano);
    assert_eq!(generator("reward session").kind(), SpanKind::Client);
    let session = worker("session");
    assert_eq!(session.parent_span_id, generator("reward session").span_id);
    assert_eq!(session.kind(), SpanKind::Server);
    for stage in ["prompt", "prefill"] {
        assert_eq!(worker(stage).parent_span_id, session.span_id, "{stage}");
    }
    assert!(of_trace.iter().all(|(_, s)| s.status.as_ref().is_none_or(|s| s.code() != StatusCode::Error)));

    // Batches are traces of their own, linked to the requests in them; those of nobody's are not recorded.
    let steps = |service: &str, name: &str, of: &Span| {
        let steps = others.iter().filter(|(at, span)| at == service && span.name == name);
        let steps: Vec<&Span> = steps.map(|(_, span)| span).collect();
        assert_eq!(steps.len(), usage.generated_tokens as usize, "{name} of {service}");
        for step in steps {
            assert!(step.parent_span_id.is_empty());
            let linked: Vec<_> = step.links.iter().map(|link| &link.span_id).collect();
            assert_eq!(linked, [&of.span_id], "{name} of {service}");
        }
    };
    steps("attune-generator", "step", call);
    steps("attune-reward", "step", session);
    steps("attune-reward", "score", session);
    let names: BTreeSet<&str> = others.iter().map(|(_, span)| span.name.as_str()).collect();
    assert_eq!(names, ["forward", "score", "select", "step"].into());

    for name in ["gen_ai.server.time_to_first_token", "attune.requests", "attune.step", "attune.slots"] {
        assert!(got.metrics("attune-generator").contains(name), "{name}");
    }
    assert!(got.metrics("attune-reward").contains("attune.steps.waiting"));
    let body = |line: &LogRecord| match &line.body {
        Some(AnyValue { value: Some(Value::StringValue(text)), .. }) => text.clone(),
        other => panic!("{other:?}"),
    };
    for (service, said) in [
        ("attune-generator", "the base model is loaded"),
        ("attune-generator", "shutting down; a second signal ends at once"),
        ("attune-reward", "the reward model is loaded"),
    ] {
        assert!(got.logs().iter().any(|(of, line)| of == service && body(line) == said), "{said}");
    }

    assert!(got.holds("GeneratorService/Generate"), "what is exported is looked through");
    for secret in SECRETS {
        assert!(!got.holds(secret), "{secret}");
    }
    assert!(!answer.text.is_empty() && !got.holds(&answer.text));
}

#[tokio::test]
async fn a_collector_that_is_away_or_hangs_disturbs_nobody() {
    let got = Got::default();
    let collector = got.collector().await;
    let undisturbed = Services::start(collector.endpoint(), &[]);
    let expected = Generated::of(&mut undisturbed.client().await, request()).await.unwrap();
    undisturbed.end().await;
    assert!(!got.spans().is_empty());

    // A port that nobody listens on, and one that takes connections and never answers.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let hangs = TcpListener::bind("127.0.0.1:0").unwrap();
    for endpoint in [nobody, hangs.local_addr().unwrap()] {
        let services = Services::start(&format!("http://{endpoint}"), &["telemetry.flush_seconds=0.5"]);
        let mut client = services.client().await;
        let text = Generated::of(&mut client, request()).await.unwrap();
        assert_eq!(text.ids(), expected.ids());
        services.end().await;
    }
}
