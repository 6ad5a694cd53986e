//! The text of a sequence, piece by piece, from the bytes of its tokens.

/// What can go wrong between text and tokens.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// The tokenizer refused a text.
    #[error("the text cannot be tokenized: {0}")]
    Encode(String),
    /// Messages were given to a model that has no chat template.
    #[error("the model has no chat template: send `text` or `token_ids` in place of messages")]
    NoChatTemplate,
    /// The model's chat template is damaged, or uses what is not supported.
    #[error("the model's chat template is unusable: {0}")]
    ChatTemplate(String),
    /// The model's chat template refused these messages.
    #[error("the chat template refuses these messages: {0}")]
    Refused(String),
    /// A preference has to stand before the last user message, and there is none.
    #[error("a preference needs at least one message of the role `user`")]
    NoUserMessage,
    /// The template that puts a preference into a prompt is damaged.
    #[error("the preference template is unusable: {0}")]
    PreferenceTemplate(String),
}

/// What a token added to the text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Piece {
    /// Text that is certain; may be empty.
    pub text: String,
    /// A stop string has been met: the text ends before it, and nothing follows.
    pub stopped: bool,
}

/// Turns the bytes of tokens into text, and ends it at a stop string.
///
/// The pieces together are `String::from_utf8_lossy` of all bytes, cut before the occurrence of a stop
/// string that begins first, however the bytes are split into tokens.
#[derive(Debug, Clone)]
pub struct TextStream {
    stop: Vec<String>,
    /// Bytes of a character that is not complete; at most 3.
    tail: Vec<u8>,
    /// Text that may turn out to begin a stop string.
    held: String,
    stopped: bool,
    finished: bool,
}

impl TextStream {
    /// A stream that ends at any of these strings; empty ones are ignored.
    pub fn new(stop: Vec<String>) -> Self {
        let stop = stop.into_iter().filter(|s| !s.is_empty()).collect();
        Self { stop, tail: Vec::new(), held: String::new(), stopped: false, finished: false }
    }

    /// Takes the bytes of the next token (none for a special one) and gives the text that is certain now.
    ///
    /// Where stop strings overlap, a match may wait for later bytes that would complete an earlier one.
    pub fn push(&mut self, bytes: &[u8]) -> Piece {
        if self.stopped || self.finished {
            return Piece { text: String::new(), stopped: self.stopped };
        }
        self.decode(bytes);
        let matched = self.first_match();
        let pending = self.first_pending();
        let text = match (matched, pending) {
            (Some(at), pending) if pending.is_none_or(|p| at < p) => self.cut(at),
            (_, Some(at)) => self.take(at),
            (_, None) => std::mem::take(&mut self.held),
        };
        Piece { text, stopped: self.stopped }
    }

    /// Ends the text: what was held back comes out, and an incomplete character becomes U+FFFD.
    ///
    /// A stop string met only here sets [`stopped`](Self::stopped).
    pub fn finish(&mut self) -> String {
        if self.stopped || self.finished {
            return String::new();
        }
        self.finished = true;
        if !self.tail.is_empty() {
            self.tail.clear();
            self.held.push(char::REPLACEMENT_CHARACTER);
        }
        match self.first_match() {
            Some(at) => self.cut(at),
            None => std::mem::take(&mut self.held),
        }
    }

    /// Whether a stop string has ended the text.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Appends the whole characters of the bytes to the held text.
    fn decode(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        let mut done = 0;
        while let Err(error) = std::str::from_utf8(&self.tail[done..]) {
            let valid = done + error.valid_up_to();
            self.held.push_str(&String::from_utf8_lossy(&self.tail[done..valid]));
            let Some(length) = error.error_len() else {
                self.tail.drain(..valid);
                return;
            };
            self.held.push(char::REPLACEMENT_CHARACTER);
            done = valid + length;
        }
        self.held.push_str(&String::from_utf8_lossy(&self.tail[done..]));
        self.tail.clear();
    }

    /// Where the first whole stop string begins in the held text.
    fn first_match(&self) -> Option<usize> {
        self.stop.iter().filter_map(|stop| self.held.find(stop.as_str())).min()
    }

    /// Where the first stop string begins that the end of the held text leaves incomplete.
    fn first_pending(&self) -> Option<usize> {
        let held = self.held.as_bytes();
        let longest = self.stop.iter().map(String::len).max()?;
        (held.len().saturating_sub(longest - 1)..held.len()).find(|&at| {
            let end = &held[at..];
            self.stop.iter().any(|stop| stop.len() > end.len() && stop.as_bytes().starts_with(end))
        })
    }

    /// Ends the text at a stop string.
    fn cut(&mut self, at: usize) -> String {
        self.stopped = true;
        self.tail.clear();
        let text = self.take(at);
        self.held.clear();
        text
    }

    fn take(&mut self, end: usize) -> String {
        let rest = self.held.split_off(end);
        std::mem::replace(&mut self.held, rest)
    }
}
