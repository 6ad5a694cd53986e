//! What the base model says of answers that somebody judged: their log-probabilities, which reference GENERATOR
//! needs. Read on a thread beside the engine's.

use std::{ops::ControlFlow, sync::Arc};

use attune_engine::{BaseModel, Message, TextError};
use attune_kernels::{KernelError, Threads};
use attune_proto::{
    profile::v1::{Feedback, Pair, Thumb, feedback::Kind},
    reward::v1::{Prompt, prompt},
};
use attune_service::status;
use tonic::Status;

/// The most tokens of prompts and answers that are read for one fit: what a worker takes.
const MOST_TOKENS: usize = 1 << 18;

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
    /// `step` is told of every answer, and how many there are; the reading ends where it breaks off.
    ///
    /// # Errors
    /// INVALID_ARGUMENT names the feedback at fault; CANCELLED; INTERNAL where the device failed.
    pub(crate) fn fill(
        &self,
        feedback: &mut [Feedback],
        mut step: impl FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<(), Status> {
        let mut behind = Vec::with_capacity(feedback.len());
        let mut tokens = 0;
        for (index, item) in feedback.iter().enumerate() {
            let invalid = |what: String| status::invalid(format!("feedback[{index}]"), what);
            let texts = self.encode(item).map_err(|error| invalid(error.to_string()))?;
            tokens += texts.answers.iter().map(|answer| texts.prompt.len() + answer.len()).sum::<usize>();
            if tokens > MOST_TOKENS {
                return Err(invalid(format!(
                    "up to here {tokens} tokens are to be read; {MOST_TOKENS} are allowed"
                )));
            }
            behind.push(texts);
        }
        let (mut done, all) = (0, behind.iter().map(|texts| texts.answers.len()).sum());
        for (item, texts) in feedback.iter_mut().zip(&behind) {
            for (answer, log_prob) in texts.answers.iter().zip(log_probs(item)) {
                if step(done, all).is_break() {
                    return Err(Status::cancelled("nobody waits for the fit any more"));
                }
                let read = self.model.log_prob_on(&texts.prompt, answer, &self.threads).map_err(|error| {
                    tracing::error!(%error, "an answer could not be read");
                    Status::internal("the base model could not read an answer")
                })?;
                *log_prob = Some(read as f32);
                done += 1;
            }
        }
        Ok(())
    }

    /// What is to be read for a piece of feedback.
    fn encode(&self, item: &Feedback) -> Result<Texts, Unreadable> {
        let prompt = self.prompt(item.prompt.as_ref())?;
        let answers = match &item.kind {
            Some(Kind::Pair(Pair { chosen, rejected, .. })) => vec![chosen, rejected],
            Some(Kind::Thumb(Thumb { answer, .. })) => vec![answer],
            // The worker says what is wrong with it.
            None => Vec::new(),
        };
        let answers =
            answers.into_iter().map(|answer| self.answer(&prompt, answer)).collect::<Result<_, _>>()?;
        Ok(Texts { prompt, answers })
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

    /// An answer and the end of its text, which fits behind the prompt.
    fn answer(&self, prompt: &[u32], answer: &str) -> Result<Vec<u32>, Unreadable> {
        let assets = &self.model.assets;
        let mut answer = assets.tokenizer.encode_rendered(answer)?;
        answer.extend(assets.eos.first());
        let (context, vocab) = (assets.config.context, assets.config.vocab);
        let tokens = prompt.len() + answer.len();
        if tokens > context {
            let message =
                format!("prompt and answer are {tokens} tokens; the base model's context holds {context}");
            return Err(Unreadable::Shape(message));
        }
        if let Some(id) = prompt.iter().chain(&answer).find(|&&id| id as usize >= vocab) {
            return Err(Unreadable::Shape(format!("token id {id} lies outside the vocabulary of {vocab}")));
        }
        Ok(answer)
    }
}

/// A prompt, and what was answered.
struct Texts {
    prompt: Vec<u32>,
    answers: Vec<Vec<u32>>,
}

/// Where the log-probabilities of a piece's answers go, in the order of its answers.
fn log_probs(item: &mut Feedback) -> Vec<&mut Option<f32>> {
    match &mut item.kind {
        Some(Kind::Pair(pair)) => vec![&mut pair.chosen_base_log_prob, &mut pair.rejected_base_log_prob],
        Some(Kind::Thumb(thumb)) => vec![&mut thumb.base_log_prob],
        None => Vec::new(),
    }
}
