//! One running text: its responses as they come, and all of it at the end.

use anyhow::Result;
use attune_proto::generator::v1::{
    Finish, GenerateRequest, GenerateResponse, Token, generator_service_client::GeneratorServiceClient,
};
use tonic::{Status, transport::Channel};

use crate::client::EndpointArgs;

/// Text that became certain at once, and whether guidance chose another token for any part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) text: String,
    pub(crate) changed: bool,
}

/// A whole text.
#[derive(Debug, Default)]
pub(crate) struct Whole {
    pub(crate) text: String,
    pub(crate) tokens: Vec<Token>,
    pub(crate) segments: Vec<Segment>,
    pub(crate) finish: Finish,
    /// A token whose text is still held back was changed.
    held_back_changed: bool,
}

impl Whole {
    /// Takes in a response; the end is true.
    pub(crate) fn add(&mut self, response: GenerateResponse) -> bool {
        let changed = response.tokens.iter().any(is_changed) || self.held_back_changed;
        self.held_back_changed = changed && response.text.is_empty();
        if !response.text.is_empty() {
            self.text.push_str(&response.text);
            self.segments.push(Segment { text: response.text, changed });
        }
        self.tokens.extend(response.tokens);
        match response.finish {
            Some(finish) => {
                self.finish = finish;
                true
            }
            None => false,
        }
    }

    /// How many tokens guidance chose otherwise.
    pub(crate) fn changed(&self) -> usize {
        self.tokens.iter().filter(|t| is_changed(t)).count()
    }

    /// How many tokens were not guided.
    pub(crate) fn unguided(&self) -> usize {
        self.tokens.iter().filter(|t| !t.guided).count()
    }

    /// Tokens per second of decoding, the first token aside. None: too few to say.
    pub(crate) fn tokens_per_second(&self) -> Option<f64> {
        let seconds = self.finish.timings.as_ref()?.decode_seconds;
        let after_first = self.tokens.len().checked_sub(1).filter(|n| *n > 0)?;
        (seconds > 0.0).then(|| after_first as f64 / seconds)
    }
}

fn is_changed(token: &Token) -> bool {
    token.guided && token.id != token.unguided_id
}

/// Generates one text; `on_event` sees every response before it is taken in.
///
/// # Errors
/// The server's status; UNAVAILABLE when the stream ends without saying why; what `on_event` returns.
pub(crate) async fn generate(
    client: &mut GeneratorServiceClient<Channel>,
    endpoint: &EndpointArgs,
    request: GenerateRequest,
    mut on_event: impl FnMut(&GenerateResponse) -> Result<()>,
) -> Result<Whole> {
    endpoint
        .within(async {
            let mut stream = client.generate(endpoint.request(request)?).await?.into_inner();
            let mut whole = Whole::default();
            while let Some(response) = stream.message().await? {
                on_event(&response)?;
                if whole.add(response) {
                    return Ok(whole);
                }
            }
            Err(Status::unavailable("the stream ended before the text did").into())
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(text: &str, tokens: &[(u32, u32)]) -> GenerateResponse {
        let token = |(id, unguided_id): &(u32, u32)| Token {
            id: *id,
            unguided_id: *unguided_id,
            guided: true,
            ..Token::default()
        };
        GenerateResponse { text: text.into(), tokens: tokens.iter().map(token).collect(), finish: None }
    }

    #[test]
    fn held_back_text_keeps_its_mark() {
        let mut whole = Whole::default();
        assert!(!whole.add(response("a", &[(1, 1)])));
        assert!(!whole.add(response("", &[(2, 9)])));
        assert!(!whole.add(response("bc", &[(3, 3)])));
        assert!(!whole.add(response("d", &[(4, 4)])));
        let marks: Vec<_> = whole.segments.iter().map(|s| (s.text.as_str(), s.changed)).collect();
        assert_eq!(marks, [("a", false), ("bc", true), ("d", false)]);
        assert_eq!(whole.changed(), 1);
        assert_eq!(whole.text, "abcd");
        let end = GenerateResponse { finish: Some(Finish::default()), ..GenerateResponse::default() };
        assert!(whole.add(end));
    }

    #[test]
    fn unguided_tokens_are_never_marked() {
        let mut whole = Whole::default();
        let mut plain = response("a", &[(1, 2)]);
        plain.tokens[0].guided = false;
        whole.add(plain);
        assert!(!whole.segments[0].changed);
        assert_eq!(whole.unguided(), 1);
    }
}
