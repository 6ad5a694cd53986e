//! What a client receives: text, tokens and the end, over a channel that never makes the engine wait.

use attune_engine::TextStream;
use attune_proto::generator::v1::{Finish, GenerateResponse, Token};
use tokio::sync::mpsc;
use tonic::Status;

/// What goes over a client's stream.
pub type Message = Result<GenerateResponse, Status>;

/// A client's side of one text.
#[derive(Debug)]
pub(crate) struct Output {
    client: mpsc::Sender<Message>,
    text: TextStream,
    /// What is said next, by [`Output::tell`].
    held: Option<GenerateResponse>,
}

impl Output {
    /// An output and the client's end of it. There is room for `tokens` tokens and the end, all that
    /// the client asked for, so that a slow reader never blocks the engine.
    ///
    /// `seen` are the bytes of each resumed token: their text has been sent before, but a stop string
    /// or a character may begin in it.
    pub(crate) fn new<'a>(
        tokens: usize,
        stop: Vec<String>,
        seen: impl IntoIterator<Item = &'a [u8]>,
    ) -> (Self, mpsc::Receiver<Message>) {
        let (client, receiver) = mpsc::channel(tokens + 2);
        let mut text = TextStream::new(stop);
        for bytes in seen {
            text.push(bytes);
        }
        (Self { client, text, held: None }, receiver)
    }

    /// Takes a token with the text that is certain by it, to be sent by [`Output::tell`] or before the next
    /// thing. True: a stop string came up.
    pub(crate) fn token(&mut self, token: Token, bytes: &[u8]) -> bool {
        self.tell();
        let piece = self.text.push(bytes);
        self.held = Some(GenerateResponse { text: piece.text, tokens: vec![token], finish: None });
        piece.stopped
    }

    /// Sends the token that was taken last.
    pub(crate) fn tell(&mut self) {
        if let Some(held) = self.held.take() {
            self.send(Ok(held));
        }
    }

    /// Sends the text held back, and the end.
    pub(crate) fn finish(mut self, finish: Finish) {
        self.tell();
        let text = self.text.finish();
        self.send(Ok(GenerateResponse { text, tokens: vec![], finish: Some(finish) }));
    }

    /// Ends the stream with an error.
    pub(crate) fn fail(mut self, status: Status) {
        self.tell();
        self.send(Err(status));
    }

    /// Whether nobody listens any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    fn send(&self, message: Message) {
        // It fails only when the client has gone; the engine notices that by `is_closed`.
        let _ = self.client.try_send(message);
    }
}
