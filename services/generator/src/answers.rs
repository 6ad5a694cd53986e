//! What the base model says of answers that somebody judged: their log-probabilities, which reference GENERATOR
//! needs. Read on a thread beside the engine's.

use std::sync::Arc;

use attune_engine::{BaseModel, ForwardError, Message, TextError};
use attune_kernels::{KernelError, Threads};
use attune_proto::{
    profile::v1::{Feedback, Pair, Thumb, feedback::Kind},
    reward::v1::{Prompt, prompt},
};
use attune_service::status;
use tonic::Status;

/// Reads answers with the base model, on one thread.
pub(crate) struct AnswerReader {
    model: Arc<BaseModel>,
    threads: Threads,
}

/// Why answers could not be read.
#[derive(Debug, thiserror::Error)]
enum Unreadable {
    #[error("{0}")]
    Text(#[from] TextError),
    #[error("{0}")]
    Shape(String),
    #[error(transparent)]
    Forward(#[from] ForwardError),
}

impl AnswerReader {
    /// A reader of this model.
    ///
    /// # Errors
    /// The system refused a thread.
    pub(crate) fn new(model: Arc<BaseModel>) -> Result<Self, KernelError> {
        Ok(Self { model, threads: Threads::new(1)? })
    }

    /// Puts the base model's log-probabilities into the feedback; it takes as long as the answers are.
    /// `wanted` tells whether somebody still waits.
    ///
    /// # Errors
    /// INVALID_ARGUMENT names the feedback at fault; CANCELLED; INTERNAL where the device failed.
    pub(crate) fn fill(&self, feedback: &mut [Feedback], wanted: impl Fn() -> bool) -> Result<(), Status> {
        for (index, item) in feedback.iter_mut().enumerate() {
            if !wanted() {
                return Err(Status::cancelled("nobody waits for the fit any more"));
            }
            self.fill_one(item).map_err(|error| match error {
                Unreadable::Forward(error) => {
                    tracing::error!(%error, "an answer could not be read");
                    Status::internal("the base model could not read an answer")
                }
                unfit => status::invalid(format!("feedback[{index}]"), unfit.to_string()),
            })?;
        }
        Ok(())
    }

    fn fill_one(&self, item: &mut Feedback) -> Result<(), Unreadable> {
        let prompt = self.prompt(item.prompt.as_ref())?;
        match &mut item.kind {
            Some(Kind::Pair(Pair { chosen, rejected, chosen_base_log_prob, rejected_base_log_prob })) => {
                *chosen_base_log_prob = Some(self.log_prob(&prompt, chosen)?);
                *rejected_base_log_prob = Some(self.log_prob(&prompt, rejected)?);
            }
            Some(Kind::Thumb(Thumb { answer, base_log_prob, .. })) => {
                *base_log_prob = Some(self.log_prob(&prompt, answer)?);
            }
            // The worker says what is wrong with it.
            None => {}
        }
        Ok(())
    }

    /// The prompt as the base model reads it: without any preference.
    fn prompt(&self, prompt: Option<&Prompt>) -> Result<Vec<u32>, Unreadable> {
        let assets = &self.model.assets;
        let ids = match prompt.and_then(|p| p.kind.as_ref()) {
            None => Vec::new(),
            Some(prompt::Kind::TokenIds(ids)) => ids.ids.clone(),
            Some(prompt::Kind::Text(text)) => assets.tokenizer.encode_raw(text)?,
            Some(prompt::Kind::Messages(messages)) => {
                let messages = messages.messages.iter();
                let messages: Vec<Message> = messages.map(|m| Message::new(&m.role, &m.content)).collect();
                assets.tokenizer.encode_rendered(&assets.chat.render(&messages, true)?)?
            }
        };
        if ids.is_empty() {
            return Err(Unreadable::Shape("the prompt is absent or empty; send what was asked".to_owned()));
        }
        Ok(ids)
    }

    /// The log-probability, in nats, of an answer and the end of its text behind the prompt.
    fn log_prob(&self, prompt: &[u32], answer: &str) -> Result<f32, Unreadable> {
        let assets = &self.model.assets;
        let answer = assets.tokenizer.encode_rendered(answer)?;
        let targets: Vec<u32> = answer.iter().copied().chain(assets.eos.first().copied()).collect();
        let (context, vocab) = (assets.config.context, assets.config.vocab);
        let tokens = prompt.len() + targets.len();
        if tokens > context {
            let message =
                format!("prompt and answer are {tokens} tokens; the base model's context holds {context}");
            return Err(Unreadable::Shape(message));
        }
        if let Some(id) = prompt.iter().chain(&targets).find(|&&id| id as usize >= vocab) {
            return Err(Unreadable::Shape(format!("token id {id} lies outside the vocabulary of {vocab}")));
        }
        Ok(self.model.log_prob_on(prompt, &targets, &self.threads)? as f32)
    }
}
