//! Requests as tests write them, and whole answers.

use attune_proto::{
    generator::v1::{
        Finish, GenerateRequest, GuidanceTerm, Sampling, Token,
        generator_service_client::GeneratorServiceClient,
    },
    reward::v1::{ChatMessage, ChatMessages, Context, Guidance, Prompt, Reference, TokenIds, prompt::Kind},
};
use tonic::{IntoRequest, Status, transport::Channel};

/// A whole answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// The text.
    pub text: String,
    /// The tokens.
    pub tokens: Vec<Token>,
    /// The end.
    pub finish: Finish,
}

impl Generated {
    /// Sends a request and gathers its stream.
    ///
    /// # Errors
    /// The service's status, or DATA_LOSS for a stream without an end.
    pub async fn of(
        client: &mut GeneratorServiceClient<Channel>,
        request: impl IntoRequest<GenerateRequest>,
    ) -> Result<Self, Status> {
        let mut stream = client.generate(request).await?.into_inner();
        let (mut text, mut tokens) = (String::new(), Vec::new());
        while let Some(message) = stream.message().await? {
            text.push_str(&message.text);
            tokens.extend(message.tokens);
            if let Some(finish) = message.finish {
                return match stream.message().await? {
                    None => Ok(Self { text, tokens, finish }),
                    Some(_) => Err(Status::data_loss("the stream went on behind its end")),
                };
            }
        }
        Err(Status::data_loss("the stream ended without its end"))
    }

    /// The tokens' ids.
    pub fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|t| t.id).collect()
    }
}

/// A request that continues token ids, greedily, for `max_tokens` tokens whatever they are.
pub fn by_ids(ids: &[u32], max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        prompt: Some(Prompt { kind: Some(Kind::TokenIds(TokenIds { ids: ids.to_vec() })) }),
        sampling: Some(Sampling { ignore_eos: true, ..greedy(max_tokens) }),
        ..GenerateRequest::default()
    }
}

/// A request that answers one user message, greedily.
pub fn say(content: &str, max_tokens: u32) -> GenerateRequest {
    let message = ChatMessage { role: "user".into(), content: content.into() };
    GenerateRequest {
        prompt: Some(Prompt { kind: Some(Kind::Messages(ChatMessages { messages: vec![message] })) }),
        sampling: Some(greedy(max_tokens)),
        ..GenerateRequest::default()
    }
}

/// Greedy sampling.
pub fn greedy(max_tokens: u32) -> Sampling {
    Sampling { temperature: Some(0.0), max_tokens: Some(max_tokens), ..Sampling::default() }
}

/// A guidance as the official algorithm has it: reference GENERATOR over the same prompt.
pub fn guided(strength: f32) -> GuidanceTerm {
    GuidanceTerm {
        guidance: Some(Box::new(Guidance {
            reference: Reference::Generator.into(),
            context: Context::AsIs.into(),
            ..Guidance::default()
        })),
        strength: Some(strength),
        clip: None,
    }
}
