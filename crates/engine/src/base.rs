//! The base model: a decoder and its output head.

use std::sync::Arc;

use attune_guidance::{Candidates, RowError};
use attune_kernels::{
    SelectRow, Threads,
    cuda::{Element, Gpu, Matrix},
    select,
};

use crate::{
    Assets, Decoder, ForwardError, LoadError, LoadOptions, ModelPath,
    ops::{Hardware, Linear, Rows, Table},
};

/// The model that decides every token.
pub struct BaseModel {
    /// Configuration, tokenizer and names.
    pub assets: Arc<Assets>,
    /// The layers.
    pub decoder: Decoder,
    head: Head,
    hardware: Hardware,
}

/// The output head: packed for a CPU, or as it is, and the input embedding where both are one.
enum Head {
    Cpu(Linear),
    Card(Arc<Table>),
}

/// Rows of logits, `[rows, V]`, on the hardware that computed them.
pub enum Logits {
    /// Row-major.
    Cpu(Vec<f32>),
    /// On this card.
    Card(Gpu, Matrix),
}

impl BaseModel {
    /// Loads a checkpoint, a folder, a GGUF file, or either with an adapter on it, to compute on a CPU.
    ///
    /// # Errors
    /// Names the file and the tensor at fault.
    pub fn load(path: impl Into<ModelPath>, id: &str, options: &LoadOptions) -> Result<Self, LoadError> {
        Self::load_on(path, id, options, None)
    }

    /// Loads a checkpoint to a card, or, without one, to compute on a CPU.
    ///
    /// # Errors
    /// As `load`; the card's memory is too small, or it takes no such model.
    pub fn load_on(
        path: impl Into<ModelPath>,
        id: &str,
        options: &LoadOptions,
        gpu: Option<&Gpu>,
    ) -> Result<Self, LoadError> {
        let (assets, checkpoint) = Assets::open(path, id, options)?;
        let hardware = Hardware::new(gpu, &assets, options)?;
        let config = &assets.config;
        let shape = [config.vocab, config.hidden];
        let table = |name: &str| {
            Ok::<_, LoadError>(Arc::new(hardware.table(&checkpoint, name, shape, options.format)?))
        };
        let embedding = table("model.embed_tokens.weight")?;
        let head = match &hardware {
            Hardware::Cpu(_) => {
                let parts = [(config.head_tensor().to_owned(), config.vocab)];
                Head::Cpu(hardware.load_linear(&checkpoint, &parts, config.hidden, None, options.format)?)
            }
            Hardware::Card(..) if config.tied => Head::Card(Arc::clone(&embedding)),
            Hardware::Card(..) => Head::Card(table(config.head_tensor())?),
        };
        Ok(Self {
            decoder: Decoder::load(config, &checkpoint, embedding, options, &hardware)?,
            head,
            hardware,
            assets: Arc::new(assets),
        })
    }

    /// Where it computes: "cpu" or "cuda:N".
    pub fn device(&self) -> String {
        self.hardware.name()
    }

    /// The card that it is on.
    pub fn gpu(&self) -> Option<&Gpu> {
        self.hardware.gpu()
    }

    /// The logits of hidden states, `[rows, d]` to `[rows, V]`, where the model is.
    ///
    /// # Errors
    /// The device failed.
    pub fn head(&self, hidden: &Rows) -> Result<Logits, ForwardError> {
        self.head_by(&self.hardware, hidden)
    }

    fn head_by(&self, on: &Hardware, hidden: &Rows) -> Result<Logits, ForwardError> {
        match (&self.head, hidden) {
            (Head::Cpu(_), hidden) if hidden.count() == 0 => Ok(Logits::Cpu(Vec::new())),
            (Head::Cpu(linear), hidden) => Ok(Logits::Cpu(on.linear(hidden, linear)?.to_vec1()?)),
            (Head::Card(table), Rows::Card(gpu, hidden)) => match &**table {
                Table::Card(table) => {
                    Ok(Logits::Card(gpu.clone(), gpu.product(hidden, table, Element::F32)?))
                }
                Table::Cpu(_) => Err(ForwardError::Elsewhere("the output head".into())),
            },
            (Head::Card(_), Rows::Cpu(_)) => Err(ForwardError::Elsewhere("a hidden state".into())),
        }
    }

    /// The logits of hidden states: `[rows, d]` to `[rows, V]`, row-major.
    ///
    /// # Errors
    /// The device failed.
    pub fn logits(&self, hidden: &Rows) -> Result<Vec<f32>, ForwardError> {
        self.logits_by(&self.hardware, hidden)
    }

    /// [`Self::logits`] on threads of the caller's own, where the model is on a CPU.
    ///
    /// # Errors
    /// The device failed.
    pub fn logits_on(&self, hidden: &Rows, threads: &Threads) -> Result<Vec<f32>, ForwardError> {
        self.logits_by(&self.hardware.with(threads), hidden)
    }

    fn logits_by(&self, on: &Hardware, hidden: &Rows) -> Result<Vec<f32>, ForwardError> {
        match self.head_by(on, hidden)? {
            Logits::Cpu(logits) => Ok(logits),
            Logits::Card(gpu, logits) => Ok(gpu.numbers(&logits)?),
        }
    }

    /// Says that a step is computed: threads that look for more leave their cores to those who carry its result
    /// away.
    pub fn rest(&self) {
        self.hardware.rest();
    }

    /// The candidates of rows of logits, a selection each. On a card it waits for the whole step, and only
    /// the candidates leave it.
    ///
    /// # Errors
    /// The device failed. What is wrong with a row stands in that row.
    pub fn select(
        &self,
        logits: &Logits,
        rows: &[SelectRow<'_>],
    ) -> Result<Vec<Result<Candidates, RowError>>, ForwardError> {
        match (logits, &self.hardware) {
            (Logits::Card(gpu, logits), _) => Ok(gpu.select(logits, rows)?),
            (Logits::Cpu(logits), Hardware::Cpu(threads)) => {
                Ok(select(logits, self.assets.config.vocab, rows, threads))
            }
            (Logits::Cpu(_), Hardware::Card(..)) => Err(ForwardError::Elsewhere("a row of logits".into())),
        }
    }
}
