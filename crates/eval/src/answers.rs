//! Many answers at once from a running generator.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context as _, Result};
use attune_proto::{
    generator::v1::{GenerateRequest, Sampling, generator_service_client::GeneratorServiceClient},
    reward::v1::{ChatMessage, ChatMessages, Prompt, prompt::Kind},
};
use attune_train::tokenizer::with_preference;
use tokio::task::JoinSet;
use tonic::{Status, transport::Channel};

use crate::{asks::Ask, method::Method};

/// One answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answer {
    /// Its text.
    pub text: String,
    /// Its tokens, the end of text included.
    pub ids: Vec<u32>,
    /// Their log-probabilities under the model that decoded, without guidance, over the vocabulary.
    pub log_probs: Vec<f32>,
    /// Seconds from the first token to the last.
    pub seconds: f64,
}

/// The request for an answer; `seed` is the same for all methods, so that they draw the same noise.
pub fn request(ask: &Ask, method: Method, strength: f32, sampling: &Sampling, seed: u64) -> GenerateRequest {
    // The wording that the base model was trained with: the rival gets the prompt that it knows best.
    let content = with_preference(&ask.question, method.prompts().then_some(ask.preference.as_str()));
    let messages = vec![ChatMessage { role: "user".to_owned(), content }];
    GenerateRequest {
        prompt: Some(Prompt { kind: Some(Kind::Messages(ChatMessages { messages })) }),
        guidances: method.terms(ask, strength),
        sampling: Some(Sampling { seed: Some(seed), ..sampling.clone() }),
        ..GenerateRequest::default()
    }
}

/// Gathers the answers to all requests, in their order, over `streams` streams at once; `on_answer` hears
/// of each.
///
/// # Errors
/// The first request that fails, with its status.
pub async fn gather(
    client: &GeneratorServiceClient<Channel>,
    requests: Vec<GenerateRequest>,
    streams: usize,
    on_answer: impl Fn() + Clone + Send + 'static,
) -> Result<Vec<Answer>> {
    let count = requests.len();
    let (requests, next): (Arc<[GenerateRequest]>, _) = (requests.into(), Arc::new(AtomicUsize::new(0)));
    let mut running = JoinSet::new();
    for _ in 0..streams.clamp(1, count.max(1)) {
        let (mut client, requests, next, on_answer) =
            (client.clone(), Arc::clone(&requests), Arc::clone(&next), on_answer.clone());
        running.spawn(async move {
            let mut answers = Vec::new();
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                let Some(request) = requests.get(i) else { return Ok::<_, Status>(answers) };
                answers.push((i, answer(&mut client, request.clone()).await?));
                on_answer();
            }
        });
    }
    let mut all = vec![Answer::default(); count];
    while let Some(ended) = running.join_next().await {
        for (i, answer) in ended?.context("an answer failed")? {
            all[i] = answer;
        }
    }
    Ok(all)
}

/// One answer to its end.
async fn answer(
    client: &mut GeneratorServiceClient<Channel>,
    request: GenerateRequest,
) -> Result<Answer, Status> {
    let mut stream = client.generate(request).await?.into_inner();
    let (mut answer, mut finished) = (Answer::default(), false);
    // To the stream's end, past the text's: a stream that is dropped before it is reset, and a server ends a
    // connection on which too many are.
    while let Some(message) = stream.message().await? {
        answer.text.push_str(&message.text);
        answer.ids.extend(message.tokens.iter().map(|t| t.id));
        answer.log_probs.extend(message.tokens.iter().map(|t| t.base_log_prob));
        if let Some(finish) = message.finish {
            answer.seconds = finish.timings.map_or(0.0, |t| t.decode_seconds);
            finished = true;
        }
    }
    if finished { Ok(answer) } else { Err(Status::unavailable("a stream ended before its text did")) }
}
