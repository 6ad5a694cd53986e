//! One session: which frame its step allows, what is left to read, what is left to answer.
//!
//! Pure state, no I/O: any sequence of frames ends in a status, never in a panic.

use attune_guidance::MAX_CANDIDATES;

use crate::failure::Failure;

/// What bounds every session of a worker.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Rows of the output embedding: each id lies below.
    pub(crate) vocab: usize,
    /// The longest prompt and generated text together, in tokens.
    pub(crate) context: usize,
}

/// One guidance of one sequence.
#[derive(Debug)]
pub(crate) struct Session {
    limits: Limits,
    /// The prompt's length; `None` until it is encoded.
    prompt: Option<usize>,
    /// The prompt and the generated tokens; the latter alone until the prompt is known.
    tokens: Vec<u32>,
    /// Tokens generated so far.
    step: usize,
    /// Tokens that have been through the forward pass.
    read: usize,
    /// The candidates of this step, until they are answered.
    asked: Option<Vec<u32>>,
    /// Whether this step's candidates have come.
    seen: bool,
}

impl Session {
    /// A session behind `generated` tokens, whose prompt is not known yet.
    ///
    /// # Errors
    /// INVALID for ids outside the vocabulary, or more of them than the context holds.
    pub(crate) fn new(limits: Limits, generated: Vec<u32>) -> Result<Self, Failure> {
        if generated.len() >= limits.context {
            return Err(Failure::invalid(
                "generated_tokens",
                format!(
                    "{} tokens leave no room for a prompt in a context of {}",
                    generated.len(),
                    limits.context
                ),
            ));
        }
        check_ids(&generated, limits.vocab, "generated_tokens")?;
        Ok(Self {
            limits,
            prompt: None,
            step: generated.len(),
            tokens: generated,
            read: 0,
            asked: None,
            seen: false,
        })
    }

    /// Puts the prompt in front, so that reading can start.
    ///
    /// # Errors
    /// INVALID for an empty prompt, ids outside the vocabulary, or more than the context holds.
    pub(crate) fn set_prompt(&mut self, prompt: &[u32]) -> Result<(), Failure> {
        if prompt.is_empty() {
            return Err(Failure::invalid("prompt", "the prompt is empty; send at least one token"));
        }
        check_ids(prompt, self.limits.vocab, "prompt")?;
        let (length, context) = (prompt.len() + self.tokens.len(), self.limits.context);
        if length > context {
            return Err(Failure::invalid(
                "prompt",
                format!(
                    "with the preference the prompt and the generated text are {length} tokens; the reward model's context holds {context}"
                ),
            ));
        }
        self.tokens.splice(..0, prompt.iter().copied());
        self.prompt = Some(prompt.len());
        Ok(())
    }

    /// The token chosen at `step`.
    ///
    /// Candidates of that step that are still unanswered are dropped: the generator went on
    /// without them, and catching up is all that helps now.
    ///
    /// # Errors
    /// OUT_OF_ORDER for another step; INVALID for an id outside the vocabulary or a full context.
    pub(crate) fn advance(&mut self, step: u32, token: u32) -> Result<(), Failure> {
        self.check_step("Advance", step)?;
        check_ids(&[token], self.limits.vocab, "token")?;
        if self.tokens.len() >= self.limits.context {
            return Err(Failure::invalid(
                "",
                format!(
                    "the reward model's context of {} tokens is full; end the text here",
                    self.limits.context
                ),
            ));
        }
        self.tokens.push(token);
        self.step += 1;
        self.asked = None;
        self.seen = false;
        Ok(())
    }

    /// The candidates of `step`.
    ///
    /// # Errors
    /// OUT_OF_ORDER for another step or a second time; INVALID for ids outside the vocabulary, none,
    /// or more than 64.
    pub(crate) fn candidates(&mut self, step: u32, ids: Vec<u32>) -> Result<(), Failure> {
        self.check_step("Candidates", step)?;
        if self.seen {
            return Err(Failure::out_of_order(format!(
                "candidates of step {step} came twice; once is allowed"
            )));
        }
        if ids.is_empty() || ids.len() > MAX_CANDIDATES {
            return Err(Failure::invalid(
                "token_ids",
                format!("{} candidates came; 1 to {MAX_CANDIDATES} are allowed", ids.len()),
            ));
        }
        check_ids(&ids, self.limits.vocab, "token_ids")?;
        self.asked = Some(ids);
        self.seen = true;
        Ok(())
    }

    /// Whether the prompt is known.
    pub(crate) fn started(&self) -> bool {
        self.prompt.is_some()
    }

    /// Tokens generated so far.
    pub(crate) fn step(&self) -> usize {
        self.step
    }

    /// Every token known, the prompt first.
    pub(crate) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The position of the first token not read yet.
    pub(crate) fn position(&self) -> usize {
        self.read
    }

    /// Tokens that can be read now.
    pub(crate) fn unread(&self) -> usize {
        if self.started() { self.tokens.len() - self.read } else { 0 }
    }

    /// Notes that `n` more tokens went through the forward pass.
    pub(crate) fn advance_read(&mut self, n: usize) {
        self.read += n.min(self.unread());
    }

    /// Whether candidates wait for an answer.
    pub(crate) fn waiting(&self) -> bool {
        self.asked.is_some()
    }

    /// The candidates to answer, where the hidden state of this step is there.
    pub(crate) fn answerable(&self) -> Option<&[u32]> {
        let ready = self.started() && self.unread() == 0;
        self.asked.as_deref().filter(|_| ready)
    }

    /// Whether this step's candidates have been answered, so that its token is awaited.
    pub(crate) fn is_answered(&self) -> bool {
        self.seen && self.asked.is_none()
    }

    /// Notes that the candidates have been answered.
    pub(crate) fn answered(&mut self) {
        self.asked = None;
    }

    fn check_step(&self, frame: &str, step: u32) -> Result<(), Failure> {
        if step as usize == self.step {
            return Ok(());
        }
        Err(Failure::out_of_order(format!(
            "{frame} for step {step} came where step {} is next; open the session again",
            self.step
        )))
    }
}

/// Refuses ids outside the vocabulary.
fn check_ids(ids: &[u32], vocab: usize, field: &'static str) -> Result<(), Failure> {
    match ids.iter().find(|&&id| id as usize >= vocab) {
        None => Ok(()),
        Some(id) => Err(Failure::invalid(
            field,
            format!("token id {id} lies outside the vocabulary; ids lie below {vocab}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use attune_proto::reward::v1::FailureReason;
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { vocab: 10, context: 6 };

    fn session(prompt: &[u32], generated: &[u32]) -> Session {
        let mut session = Session::new(LIMITS, generated.to_vec()).unwrap();
        session.set_prompt(prompt).unwrap();
        session
    }

    fn reason<T: std::fmt::Debug>(result: Result<T, Failure>) -> FailureReason {
        result.unwrap_err().reason
    }

    #[test]
    fn a_step_is_read_asked_and_answered() {
        let mut s = session(&[1, 2], &[3]);
        assert_eq!((s.tokens(), s.step(), s.unread()), (&[1, 2, 3][..], 1, 3));
        s.candidates(1, vec![4, 4]).unwrap();
        assert_eq!(s.answerable(), None);
        s.advance_read(3);
        assert_eq!(s.answerable(), Some(&[4, 4][..]));
        assert!(!s.is_answered());
        s.answered();
        assert!(!s.waiting() && s.is_answered());
        s.advance(1, 4).unwrap();
        assert_eq!((s.unread(), s.position(), s.is_answered()), (1, 3, false));
    }

    #[test]
    fn frames_may_come_before_the_prompt_is_encoded() {
        let mut s = Session::new(LIMITS, vec![]).unwrap();
        s.advance(0, 5).unwrap();
        s.candidates(1, vec![1]).unwrap();
        assert_eq!((s.unread(), s.answerable()), (0, None));
        s.set_prompt(&[7]).unwrap();
        assert_eq!(s.tokens(), [7, 5]);
        s.advance_read(2);
        assert!(s.answerable().is_some());
    }

    #[test]
    fn candidates_that_are_overtaken_are_dropped() {
        let mut s = session(&[1], &[]);
        s.candidates(0, vec![1]).unwrap();
        s.advance(0, 2).unwrap();
        s.advance_read(2);
        assert_eq!(s.answerable(), None);
        s.candidates(1, vec![3]).unwrap();
        assert_eq!(s.answerable(), Some(&[3][..]));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_reason() {
        use FailureReason::{Invalid, OutOfOrder};
        assert_eq!(reason(Session::new(LIMITS, vec![10])), Invalid);
        assert_eq!(reason(Session::new(LIMITS, vec![1; 6])), Invalid);
        let mut s = Session::new(LIMITS, vec![1, 2]).unwrap();
        assert_eq!(reason(s.set_prompt(&[])), Invalid);
        assert_eq!(reason(s.set_prompt(&[1; 5])), Invalid);
        assert_eq!(reason(s.set_prompt(&[99])), Invalid);
        s.set_prompt(&[1; 4]).unwrap();
        assert_eq!(reason(s.advance(2, 1)), Invalid, "the context is full");
        assert_eq!(reason(s.advance(1, 1)), OutOfOrder);
        assert_eq!(reason(s.advance(2, 10)), Invalid);
        assert_eq!(reason(s.candidates(3, vec![1])), OutOfOrder);
        assert_eq!(reason(s.candidates(2, vec![])), Invalid);
        assert_eq!(reason(s.candidates(2, vec![1; 65])), Invalid);
        assert_eq!(reason(s.candidates(2, vec![10])), Invalid);
        s.candidates(2, vec![1; 64]).unwrap();
        s.answered();
        assert_eq!(reason(s.candidates(2, vec![1])), OutOfOrder, "a second time");
    }

    #[derive(Debug, Clone)]
    enum Event {
        Prompt(Vec<u32>),
        Advance(u32, u32),
        Candidates(u32, Vec<u32>),
        Read(usize),
        Answer,
    }

    fn event() -> impl Strategy<Value = Event> {
        let ids = |n| prop::collection::vec(0u32..11, 0..n);
        prop_oneof![
            ids(4).prop_map(Event::Prompt),
            (0u32..5, 0u32..11).prop_map(|(s, t)| Event::Advance(s, t)),
            (0u32..5, ids(70)).prop_map(|(s, t)| Event::Candidates(s, t)),
            (0usize..4).prop_map(Event::Read),
            Just(Event::Answer),
        ]
    }

    proptest! {
        #[test]
        fn any_frames_give_a_status_and_keep_the_bounds(
            generated in prop::collection::vec(0u32..11, 0..7),
            events in prop::collection::vec(event(), 0..30),
        ) {
            let Ok(mut s) = Session::new(LIMITS, generated) else { return Ok(()) };
            for event in events {
                let (step, answerable) = (s.step(), s.answerable().is_some());
                match event {
                    Event::Prompt(ids) => if !s.started() { let _ = s.set_prompt(&ids); },
                    Event::Advance(at, token) => {
                        let done = s.advance(at, token).is_ok();
                        prop_assert_eq!(s.step(), step + usize::from(done));
                        prop_assert!(!done || at as usize == step);
                    }
                    Event::Candidates(at, ids) => {
                        let asked = s.candidates(at, ids).is_ok();
                        prop_assert!(!asked || (at as usize == step && !answerable));
                    }
                    Event::Read(n) => s.advance_read(n),
                    Event::Answer => if answerable { s.answered() },
                }
                prop_assert!(s.tokens().len() <= LIMITS.context);
                prop_assert!(s.position() + s.unread() <= s.tokens().len());
                prop_assert!(s.tokens().iter().all(|&t| (t as usize) < LIMITS.vocab));
            }
        }
    }
}
