//! The calls that are open, and what is to be sent on each: one message for all that an iteration
//! of the engine has to say.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use attune_proto::reward::v1::{Load, ResponseFrame, ScoreResponse, response_frame::Frame};
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;

use crate::scheduler::Key;

/// Messages that wait for a slow reader before its call is ended.
pub(crate) const OUTBOUND_MESSAGES: usize = 256;

/// About how many bytes of frames go into one message: below gRPC's usual limit of 4 MiB.
const MESSAGE_BYTES: usize = 1 << 20;

/// One open call.
pub(crate) type StreamId = u64;

/// The engine's end of a call. Dropped, the call ends.
pub(crate) struct Outbound {
    messages: mpsc::Sender<ScoreResponse>,
    verdict: Arc<OnceLock<Status>>,
    /// Stops the task that reads the call's requests.
    _reader: DropGuard,
}

/// The call's end of an [`Outbound`].
pub(crate) struct Responses {
    /// What the engine says.
    pub(crate) messages: mpsc::Receiver<ScoreResponse>,
    /// How the call ends when there is no more; unset: well.
    pub(crate) verdict: Arc<OnceLock<Status>>,
    /// Set when the engine has ended the call.
    pub(crate) ended: CancellationToken,
}

/// Both ends of a new call.
pub(crate) fn call() -> (Outbound, Responses) {
    let (sender, receiver) = mpsc::channel(OUTBOUND_MESSAGES);
    let verdict = Arc::new(OnceLock::new());
    let ended = CancellationToken::new();
    let outbound =
        Outbound { messages: sender, verdict: Arc::clone(&verdict), _reader: ended.clone().drop_guard() };
    (outbound, Responses { messages: receiver, verdict, ended })
}

struct Stream {
    outbound: Outbound,
    sessions: BTreeMap<u64, Key>,
    frames: Vec<ResponseFrame>,
    bytes: usize,
    told: Option<Load>,
    overflowed: bool,
    /// The generator will send no more: the call ends once what it asked for is answered.
    half_closed: bool,
}

/// All open calls.
#[derive(Default)]
pub(crate) struct Streams {
    open: BTreeMap<StreamId, Stream>,
}

impl Streams {
    /// Adds a call.
    pub(crate) fn connect(&mut self, id: StreamId, outbound: Outbound) {
        let stream = Stream {
            outbound,
            sessions: BTreeMap::new(),
            frames: vec![],
            bytes: 0,
            told: None,
            overflowed: false,
            half_closed: false,
        };
        self.open.insert(id, stream);
    }

    /// Ends a call, well or with a status; gives the sessions that end with it.
    pub(crate) fn end(&mut self, id: StreamId, verdict: Option<Status>) -> Vec<Key> {
        let Some(stream) = self.open.remove(&id) else { return vec![] };
        if let Some(status) = verdict {
            // The first verdict stands: it names the cause.
            let _ = stream.outbound.verdict.set(status);
        }
        stream.sessions.into_values().collect()
    }

    /// Whether a call is open.
    pub(crate) fn contains(&self, id: StreamId) -> bool {
        self.open.contains_key(&id)
    }

    /// Notes that the generator will send no more on this call.
    pub(crate) fn half_close(&mut self, id: StreamId) {
        if let Some(stream) = self.open.get_mut(&id) {
            stream.half_closed = true;
        }
    }

    /// The half-closed calls with their sessions.
    pub(crate) fn half_closed(&self) -> Vec<(StreamId, Vec<(u64, Key)>)> {
        let ending = self.open.iter().filter(|(_, s)| s.half_closed);
        ending.map(|(&id, s)| (id, s.sessions.iter().map(|(&s, &k)| (s, k)).collect())).collect()
    }

    /// Calls without a session.
    pub(crate) fn idle(&self) -> Vec<StreamId> {
        self.open.iter().filter(|(_, s)| s.sessions.is_empty()).map(|(&id, _)| id).collect()
    }

    /// Binds a session's id on its call.
    pub(crate) fn bind(&mut self, id: StreamId, session_id: u64, key: Key) {
        if let Some(stream) = self.open.get_mut(&id) {
            stream.sessions.insert(session_id, key);
        }
    }

    /// Forgets a session's id.
    pub(crate) fn unbind(&mut self, id: StreamId, session_id: u64) -> Option<Key> {
        self.open.get_mut(&id)?.sessions.remove(&session_id)
    }

    /// The session of this id.
    pub(crate) fn find(&self, id: StreamId, session_id: u64) -> Option<Key> {
        self.open.get(&id)?.sessions.get(&session_id).copied()
    }

    /// Adds a frame to the call's next message.
    pub(crate) fn push(&mut self, id: StreamId, frame: Frame) {
        let Some(stream) = self.open.get_mut(&id) else { return };
        let bytes = size(&frame);
        if stream.bytes + bytes > MESSAGE_BYTES {
            stream.send();
        }
        stream.bytes += bytes;
        stream.frames.push(ResponseFrame { frame: Some(frame) });
    }

    /// Whether anything has been collected.
    pub(crate) fn any(&self) -> bool {
        self.open.values().any(|s| !s.frames.is_empty())
    }

    /// Sends what has been collected, with the load where it has changed; gives the calls whose
    /// readers are gone or far behind.
    ///
    /// Cache blocks change all the time, so they alone are no reason for a message.
    pub(crate) fn flush(&mut self, load: Load) -> Vec<StreamId> {
        let mut broken = Vec::new();
        for (&id, stream) in &mut self.open {
            let telling = |l: &Load| (l.sessions, l.slots, l.draining);
            let news = stream.told.as_ref().is_none_or(|told| telling(told) != telling(&load));
            if (news || !stream.frames.is_empty()) && stream.told != Some(load) {
                stream.told = Some(load);
                stream.frames.push(ResponseFrame { frame: Some(Frame::Load(load)) });
            }
            stream.send();
            if stream.overflowed {
                broken.push(id);
            }
        }
        broken
    }
}

impl Stream {
    /// Sends the frames as one message; never waits.
    fn send(&mut self) {
        self.bytes = 0;
        if self.frames.is_empty() || self.overflowed {
            self.frames.clear();
            return;
        }
        let message = ScoreResponse { frames: std::mem::take(&mut self.frames) };
        match self.outbound.messages.try_send(message) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                let status = Status::resource_exhausted(format!(
                    "{OUTBOUND_MESSAGES} messages wait to be read; read the responses as they come"
                ));
                let _ = self.outbound.verdict.set(status);
                self.overflowed = true;
            }
            Err(TrySendError::Closed(_)) => self.overflowed = true,
        }
    }
}

/// About the bytes of a frame on the wire.
fn size(frame: &Frame) -> usize {
    match frame {
        Frame::Opened(opened) => opened.guidance.as_ref().map_or(0, |g| {
            let weights = g.weights.as_ref().map_or(0, |w| w.values.len() * 4)
                + g.latent.as_ref().map_or(0, |z| z.values.len() * 4);
            256 + g.prompt_token_ids.len() * 5 + weights + g.text.as_ref().map_or(0, String::len)
        }),
        Frame::Rewards(rewards) => 32 + rewards.values.len() * 4,
        Frame::Failed(failed) => 32 + failed.message.len() + failed.field.len(),
        Frame::Load(_) => 32,
    }
}

#[cfg(test)]
mod tests {
    use attune_proto::reward::v1::{Failed, Opened, ResolvedGuidance};

    use super::*;

    fn load(sessions: u32, blocks_used: u32) -> Load {
        Load { sessions, slots: 4, blocks_used, blocks_total: 9, draining: false }
    }

    fn failed(session_id: u64) -> Frame {
        Frame::Failed(Failed { session_id, ..Default::default() })
    }

    #[test]
    fn an_iterations_frames_are_one_message_and_load_rides_along() {
        let mut streams = Streams::default();
        let (outbound, mut responses) = call();
        streams.connect(1, outbound);
        streams.flush(load(0, 0));
        streams.push(1, failed(1));
        streams.push(1, failed(2));
        streams.flush(load(0, 3));
        streams.flush(load(0, 4));
        streams.flush(load(1, 4));
        let mut sizes = vec![];
        while let Ok(message) = responses.messages.try_recv() {
            sizes.push(message.frames.len());
        }
        assert_eq!(sizes, [1, 3, 1], "blocks alone are no reason for a message");
    }

    #[test]
    fn a_message_stays_below_the_usual_limit() {
        let mut streams = Streams::default();
        let (outbound, mut responses) = call();
        streams.connect(1, outbound);
        for session_id in 0..10 {
            let guidance = ResolvedGuidance { prompt_token_ids: vec![7; 100_000], ..Default::default() };
            streams.push(1, Frame::Opened(Opened { session_id, guidance: Some(guidance) }));
        }
        streams.flush(load(10, 0));
        let mut messages = 0;
        while responses.messages.try_recv().is_ok() {
            messages += 1;
        }
        assert_eq!(messages, 5);
    }

    #[test]
    fn a_reader_far_behind_is_told_why_its_call_ends() {
        let mut streams = Streams::default();
        let (outbound, responses) = call();
        streams.connect(7, outbound);
        streams.bind(7, 1, 42);
        let mut broken = vec![];
        for i in 0..=OUTBOUND_MESSAGES {
            streams.push(7, failed(i as u64));
            broken = streams.flush(load(0, 0));
        }
        assert_eq!(broken, [7]);
        assert_eq!(streams.end(7, None), [42]);
        assert!(responses.ended.is_cancelled());
        assert_eq!(responses.verdict.get().unwrap().code(), tonic::Code::ResourceExhausted);
    }
}
