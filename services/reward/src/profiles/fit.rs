//! `Fit`: feedback in, a fitted profile kept. One fit computes at a time, on one thread beside the engine's, so
//! that running texts keep theirs; a few more wait their turn.

use std::{ops::ControlFlow, sync::Arc, time::Duration};

use attune_engine::PersRm;
use attune_kernels::{KernelError, Threads};
use attune_profiles::{
    BasedOn, Change, Content, Keep, Model, Profile, ProfileName, Reference, Store, StoreError, Vector,
    fit::{self, Answer, FitError, Fitted, Item, Job, Measured, Method, Progress, Said},
};
use attune_proto::{
    profile::v1::{Feedback, FitMethod, FitReport, FitRequest, FitResponse, feedback::Kind},
    reward::v1::{Reference as WireReference, prompt},
};
use attune_service::{caller::Caller, progress::meanwhile, status};
use futures::stream::BoxStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{based_on, check, name, refusal, wire};
use crate::resolve::Resolver;

/// Fits that compute or wait; further ones are refused.
const PLACES: usize = 4;
/// When it is worth to try again where all places are taken.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// Messages that wait for the client to read them.
const MESSAGES: usize = 2;
/// The most tokens of prompts and answers in one fit.
const MOST_TOKENS: usize = 1 << 18;

/// Fits profiles on the worker's model.
pub(crate) struct Fits {
    persrm: Arc<PersRm>,
    resolver: Arc<Resolver>,
    threads: Threads,
    places: Arc<Semaphore>,
    turn: Arc<Semaphore>,
}

/// A fit that is ready to compute.
struct Ready {
    job: Job,
    /// The preference that its prompts carry.
    text: Option<String>,
    feedback: Vec<Feedback>,
}

impl Fits {
    /// For one model. `log_content`: people's texts may stand in the log.
    ///
    /// # Errors
    /// The system refused a thread.
    pub(crate) fn new(persrm: Arc<PersRm>, log_content: bool) -> Result<Self, KernelError> {
        let resolver = Arc::new(Resolver::new(Arc::clone(&persrm), log_content));
        let (places, turn) = (Arc::new(Semaphore::new(PLACES)), Arc::new(Semaphore::new(1)));
        Ok(Self { persrm, resolver, threads: Threads::new(1)?, places, turn })
    }

    /// Fits, keeps what was fitted, and tells of both. Dropping the stream ends the fit at its next step.
    ///
    /// # Errors
    /// What the request has wrong, before anything is computed.
    pub(crate) async fn fit(
        self: &Arc<Self>,
        store: Arc<Store>,
        caller: Caller,
        request: FitRequest,
    ) -> Result<BoxStream<'static, Result<FitResponse, Status>>, Status> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place =
            place.map_err(|_| status::exhausted(format!("all {PLACES} fits are taken"), RETRY_AFTER))?;
        let name = name("name", &request.name)?;
        self.check_model(&request.reward_model)?;
        let found = match store.get_with_feedback(&caller.owner, &name).await {
            Ok((profile, kept)) => Some((profile, wire::feedback(&kept)?)),
            Err(StoreError::NotFound) => None,
            Err(error) => return Err(refusal(&name, &error)),
        };
        // What was read is what the fit is based on, unless the client knows better.
        let stands = found.as_ref().map_or(0, |(profile, _)| profile.revision);
        let expected = request.expected_revision.unwrap_or(stands);
        if expected != stands {
            let error = StoreError::Stale { based_on: expected, found: stands };
            return Err(refusal(&name, &error));
        }
        let this = Arc::clone(self);
        let keep_feedback = request.keep_feedback;
        // The place goes along: who no longer waits does not make room for others before this has ended.
        let prepared = tokio::task::spawn_blocking(move || (this.prepare(request, found), place)).await;
        let (ready, place) = prepared.map_err(|e| Status::internal(format!("the fit broke off: {e}")))?;
        let ready = ready?;
        let (messages, stream) = mpsc::channel(MESSAGES);
        let kept = if keep_feedback { wire::kept(&ready.feedback) } else { wire::kept(&[]) };
        let keeping =
            Keeping { store, caller, name, keep: Keep::Only(kept), based_on: based_on(Some(expected)) };
        tokio::spawn(Arc::clone(self).run(ready, keeping, place, messages));
        Ok(Box::pin(ReceiverStream::new(stream)))
    }

    async fn run(
        self: Arc<Self>,
        ready: Ready,
        keeping: Keeping,
        place: OwnedSemaphorePermit,
        messages: mpsc::Sender<Result<FitResponse, Status>>,
    ) {
        let (progress, mut news) = watch::channel(FitResponse::default());
        let turn = Arc::clone(&self.turn).acquire_owned();
        let Some(turn) = meanwhile(&messages, &mut news, turn).await else { return };
        let Ready { job, text, .. } = ready;
        let reference = job.reference;
        let this = Arc::clone(&self);
        let fitted = tokio::task::spawn_blocking(move || {
            let _held = (turn, place);
            fit::fit(&this.persrm, &this.threads, &job, |step| tell(&progress, step))
        });
        let Some(fitted) = meanwhile(&messages, &mut news, fitted).await else { return };
        let done = match fitted {
            Err(error) => Err(Status::internal(format!("the fit broke off: {error}"))),
            Ok(Err(error)) => Err(refused(error)),
            Ok(Ok(fitted)) => self.keep(fitted, text, reference, keeping).await,
        };
        // It fails only where nobody reads any more.
        let _ = messages.send(done).await;
    }

    fn check_model(&self, asked: &str) -> Result<(), Status> {
        let serves = &self.persrm.assets.id;
        if asked.is_empty() || asked == serves {
            return Ok(());
        }
        let message =
            format!("this worker serves the reward model `{serves}`, not the one that was asked for");
        Err(status::not_found("reward_model", asked, message))
    }

    /// Checks and encodes all that the fit reads.
    fn prepare(&self, request: FitRequest, found: Option<(Profile, Vec<Feedback>)>) -> Result<Ready, Status> {
        let (profile, kept) = found.map_or((None, Vec::new()), |(profile, kept)| (Some(profile), kept));
        let method = match FitMethod::try_from(request.method) {
            Ok(FitMethod::Unspecified) if request.feedback.is_empty() => self.same_method(profile.as_ref()),
            Ok(FitMethod::Unspecified | FitMethod::Weights) => Method::Weights,
            Ok(FitMethod::Latent) => Method::Latent,
            Err(_) => {
                let message = format!("{} is no method that this version knows", request.method);
                return Err(status::invalid("method", message));
            }
        };
        let before = profile.as_ref().and_then(|p| p.content.reference);
        let reference = self.reference(request.reference, before)?;
        let text = request.text.or_else(|| profile.as_ref().and_then(|p| p.content.text.clone()));
        let text = text.filter(|text| !text.trim().is_empty());
        if let Some(text) = &text {
            check::preference(text).map_err(|what| status::invalid("text", what))?;
        }
        let new = check::feedback(request.feedback)?;
        // Without consent to keep it, what was kept is deleted, and serves no more fits but one that asks for it.
        let use_kept = request.keep_feedback || new.is_empty();
        let start = profile
            .as_ref()
            .filter(|p| !use_kept || p.kept == 0)
            .and_then(|p| self.start(p, method, reference));
        let feedback: Vec<Feedback> = if use_kept { kept.into_iter().chain(new).collect() } else { new };
        if feedback.is_empty() {
            let message = "no feedback came, and none is kept with the profile; send some";
            return Err(status::invalid("feedback", message));
        }
        fit::feedback::check_count(feedback.len()).map_err(|refusal| refused(refusal.into()))?;
        if request.keep_feedback {
            check::size(&feedback)?;
        }
        let mut tokens = 0;
        let mut items = Vec::with_capacity(feedback.len());
        for (index, one) in feedback.iter().enumerate() {
            let item = self
                .item(one, text.as_deref())
                .map_err(|(field, message)| status::invalid(format!("feedback[{index}]{field}"), message))?;
            tokens += item.answers().map(|a| item.prompt.len() + a.ids.len()).sum::<usize>();
            if tokens > MOST_TOKENS {
                let message = format!(
                    "prompts and answers up to feedback[{index}] are {tokens} tokens together; {MOST_TOKENS} are allowed"
                );
                return Err(status::invalid("feedback", message));
            }
            items.push(item);
        }
        Ok(Ready { job: Job { items, reference, method, start, spread: None }, text, feedback })
    }

    /// How a profile was fitted, where this model can fit so.
    fn same_method(&self, profile: Option<&Profile>) -> Method {
        match profile.and_then(|p| p.content.vector.as_ref()) {
            Some(Vector::Latent(_)) if self.persrm.latent().is_some() => Method::Latent,
            _ => Method::Weights,
        }
    }

    /// The weights to go on from: of a profile for this very model, measured against the same.
    fn start(&self, profile: &Profile, method: Method, reference: Reference) -> Option<Vec<f32>> {
        let content = &profile.content;
        let same =
            content.model.revision == self.persrm.assets.revision && content.reference == Some(reference);
        match &content.vector {
            Some(Vector::Weights(values)) if same && method == Method::Weights => Some(values.clone()),
            _ => None,
        }
    }

    /// What is asked for, else what the profile was fitted against, else the model's default.
    fn reference(&self, asked: i32, before: Option<Reference>) -> Result<Reference, Status> {
        let asked = WireReference::try_from(asked).map_err(|_| {
            status::invalid("reference", format!("{asked} is no reference that this version knows"))
        })?;
        let offered = Resolver::references(&self.persrm);
        let chosen = match asked {
            WireReference::Unspecified => match before {
                Some(before) if offered.contains(&wire::reference(Some(before))) => return Ok(before),
                _ => offered.first().copied().unwrap_or(WireReference::None),
            },
            asked if offered.contains(&asked) => asked,
            _ => {
                let message = "the model has no reference of its own; ask for GENERATOR or NONE";
                return Err(status::precondition("REFERENCE", "reference", message));
            }
        };
        Ok(match chosen {
            WireReference::Model => Reference::Model,
            WireReference::Generator => Reference::Generator,
            WireReference::None | WireReference::Unspecified => Reference::None,
        })
    }

    fn item(&self, feedback: &Feedback, text: Option<&str>) -> Result<Item, (&'static str, String)> {
        let kind = feedback.prompt.clone().and_then(|p| p.kind);
        let kind = kind.ok_or((".prompt", "the prompt is absent; send what was asked".to_owned()))?;
        if text.is_some() && matches!(kind, prompt::Kind::TokenIds(_)) {
            let message = "a preference cannot be put into token ids; send messages or text, or fit without a preference";
            return Err((".prompt", message.to_owned()));
        }
        let prompt = self.resolver.encode(kind, text).map_err(|failure| (".prompt", failure.message))?;
        let answer = |field: &'static str, text: &str, base_log_prob: Option<f32>| {
            let assets = &self.persrm.assets;
            let ids = assets.tokenizer.encode_rendered(text);
            let mut ids = ids.map_err(|e| (field, format!("the answer cannot be encoded: {e}")))?;
            ids.extend(assets.eos.first());
            let (length, context) = (prompt.len() + ids.len(), assets.config.context);
            if text.is_empty() || ids.is_empty() {
                return Err((field, "the answer is empty; send what was said".to_owned()));
            }
            if length > context {
                let message = format!(
                    "prompt and answer are {length} tokens; the reward model's context holds {context}"
                );
                return Err((field, message));
            }
            if base_log_prob.is_some_and(|p| !p.is_finite()) {
                return Err((field, "its log-probability under the base model is not finite".to_owned()));
            }
            let vocab = assets.config.vocab;
            if let Some(id) = prompt.iter().chain(&ids).find(|&&id| id as usize >= vocab) {
                return Err((
                    field,
                    format!("token id {id} lies outside the vocabulary; ids lie below {vocab}"),
                ));
            }
            Ok(Answer { ids, base_log_prob: base_log_prob.map(f64::from) })
        };
        let said = match &feedback.kind {
            None => return Err(("", "nothing is said of it; send a pair or a thumb".to_owned())),
            Some(Kind::Pair(pair)) => Said::Pair {
                chosen: answer(".pair.chosen", &pair.chosen, pair.chosen_base_log_prob)?,
                rejected: answer(".pair.rejected", &pair.rejected, pair.rejected_base_log_prob)?,
            },
            Some(Kind::Thumb(thumb)) => Said::Thumb {
                answer: answer(".thumb.answer", &thumb.answer, thumb.base_log_prob)?,
                up: thumb.up,
            },
        };
        Ok(Item { prompt, said })
    }

    async fn keep(
        &self,
        fitted: Fitted,
        text: Option<String>,
        reference: Reference,
        keeping: Keeping,
    ) -> Result<FitResponse, Status> {
        let Keeping { store, caller, name, keep, based_on } = keeping;
        let assets = &self.persrm.assets;
        let steps = u32::try_from(fitted.steps).unwrap_or(u32::MAX);
        let report = report(&fitted);
        let content = Content {
            text,
            vector: Some(fitted.person),
            reference: Some(reference),
            model: Model { id: assets.id.clone(), revision: assets.revision.clone() },
            fit: Some(wire::report(&report)),
        };
        let change = Change { content, based_on, keep };
        let kept = store.put(&caller.owner, &name, change, caller.profiles).await;
        let kept = kept.map_err(|error| refusal(&name, &error))?;
        tracing::info!(feedback = report.feedback, seconds = report.seconds, "a profile was fitted");
        Ok(FitResponse {
            done: steps,
            total: steps,
            accuracy: Some(report.accuracy_after),
            profile: Some(wire::profile(kept)?),
        })
    }
}

/// Where a fitted profile goes.
struct Keeping {
    store: Arc<Store>,
    caller: Caller,
    name: ProfileName,
    keep: Keep,
    based_on: BasedOn,
}

/// Tells of a step; ends the fit where nobody reads any more.
fn tell(progress: &watch::Sender<FitResponse>, step: Progress) -> ControlFlow<()> {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let accuracy = step.accuracy.map(|a| a as f32);
    let step = FitResponse { done: count(step.done), total: count(step.total), accuracy, profile: None };
    match progress.send(step) {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    }
}

fn refused(error: FitError) -> Status {
    match error {
        FitError::Refused(refusal) => status::invalid("feedback", refusal.to_string()),
        FitError::Unfit(what) => status::precondition("FIT", "reward_model", what),
        FitError::Cancelled => Status::cancelled("the fit was cancelled"),
        error @ (FitError::NotFinite | FitError::Forward(_)) => {
            tracing::error!(%error, "a fit failed");
            Status::internal(error.to_string())
        }
    }
}

fn report(fitted: &Fitted) -> FitReport {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let method = match fitted.person {
        Vector::Weights(_) => FitMethod::Weights,
        Vector::Latent(_) => FitMethod::Latent,
    };
    let Measured { feedback, held_out, .. } = fitted.measured;
    FitReport {
        method: method.into(),
        feedback: count(feedback),
        held_out: count(held_out),
        accuracy_before: fitted.measured.accuracy_before as f32,
        accuracy_after: fitted.measured.accuracy_after as f32,
        loss_before: fitted.measured.loss_before as f32,
        loss_after: fitted.measured.loss_after as f32,
        seconds: fitted.measured.seconds as f32,
    }
}
