//! The personalised reward model (PersRM): a decoder whose features, weighted by a person's `w_p`,
//! score candidate tokens.
//!
//! `r(a) = E_theta[a] . (w_p * phi(h_theta)) - E_ref[a] . (w_p * phi(h_ref))`, with `phi` the
//! identity, or the official release's `W_v h + b_v`.

use std::{path::Path, sync::Arc};

use attune_guidance::RowError;
use attune_kernels::{EmbeddingTable, Threads, cuda::Gpu};

use crate::{
    Assets, Checkpoint, Decoder, DecoderConfig, DefaultReference, Feature, ForwardError, LatentAdapter,
    LoadError, LoadOptions, ModelPath, Output, PersRmSettings, PersonWeights, PreferenceTemplate, Question,
    SequenceRows, WeightPrior, WeightsForm,
    features::{self, Heads},
    kv::{BLOCK_SIZE, KvCache, blocks_for},
    ops::{Hardware, Linear, Rows, Table},
};

/// Where the latent adapter lies.
const LATENT_FILE: &str = "latent_adapter.safetensors";

/// Which of the two models of a PersRM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The trained one.
    Policy,
    /// The one before training.
    Reference,
}

/// A decoder with its input embedding and the rows of its output embedding.
struct Scorer {
    decoder: Decoder,
    embedding: Arc<Table>,
    head: Arc<Table>,
}

/// A personalised reward model.
pub struct PersRm {
    /// Configuration, tokenizer and names.
    pub assets: Assets,
    /// Puts a preference into a prompt.
    pub template: PreferenceTemplate,
    /// The reference to use where a guidance names none.
    pub default_reference: DefaultReference,
    /// The scale of the loss it was trained with.
    pub beta: f64,
    policy: Scorer,
    reference: Option<Scorer>,
    /// The official release's full matrix.
    value_head: Option<Linear>,
    /// From the hidden state at the end of a preference text to `w_p`.
    weight_head: Option<Linear>,
    /// The latent form of a person.
    latent: Option<LatentAdapter>,
    /// What is known of people's weights beforehand.
    prior: Option<WeightPrior>,
    weights_form: WeightsForm,
    hardware: Hardware,
}

impl PersRm {
    /// Loads a checkpoint, a folder or a GGUF file, with what stands beside its weights: `attune.json`,
    /// `value_head.safetensors`, `weight_head.safetensors`, and the reference's weights. The reference of an
    /// adapter is the model that it is worn on, unless `attune.json` says otherwise.
    ///
    /// # Errors
    /// Names the file and the tensor at fault.
    pub fn load(path: impl Into<ModelPath>, id: &str, options: &LoadOptions) -> Result<Self, LoadError> {
        Self::load_on(path, id, options, None)
    }

    /// The same to a card, or, without one, to compute on a CPU.
    ///
    /// # Errors
    /// As `load`; the card's memory is too small, or it takes no such model.
    pub fn load_on(
        path: impl Into<ModelPath>,
        id: &str,
        options: &LoadOptions,
        gpu: Option<&Gpu>,
    ) -> Result<Self, LoadError> {
        let (mut assets, checkpoint) = Assets::open(path, id, options)?;
        let hardware = Hardware::new(gpu, &assets, options)?;
        let folder = checkpoint.folder();
        let settings = PersRmSettings::load(folder)?;
        let load = |config: &DecoderConfig, weights: &Checkpoint, embedding| {
            Scorer::load(config, weights, options, &hardware, embedding)
        };
        let policy = load(&assets.config, &checkpoint, None)?;
        let reference = match &settings.reference_model {
            Some(name) => {
                let path = within(folder, name)?;
                let weights = Checkpoint::open(&path)?;
                let mut config = weights.config()?;
                config.context = config.context.min(assets.config.context);
                let same = |c: &DecoderConfig| (c.layers, c.kv_heads * c.head_dim, c.hidden, c.vocab);
                if same(&config) != same(&assets.config) {
                    return Err(LoadError::file(&path, "the reference's shape differs from the model's"));
                }
                Some(load(&config, &weights, None)?)
            }
            None => match checkpoint.without_adapter() {
                Some(base) if settings.reference.is_none_or(|named| named == DefaultReference::Model) => {
                    // An adapter leaves the embedding as it is.
                    let embedding = Arc::clone(&policy.embedding);
                    Some(load(&assets.config, &base, Some(embedding))?)
                }
                _ => None,
            },
        };
        let d = assets.config.hidden;
        let format = assets.format;
        let head = |file: &str, weight: &str, bias: &str| {
            let tensors = Checkpoint::open_file(folder, file)?;
            let (weight, bias) = (tensors.f32(weight, &[d, d])?, tensors.f32(bias, &[d])?);
            hardware.linear_of(&weight, (d, d), &bias, format)
        };
        let value_head = folder
            .join("value_head.safetensors")
            .exists()
            .then(|| head("value_head.safetensors", "v_head.summary.weight", "v_head.summary.bias"))
            .transpose()?;
        let weight_head = (settings.weights != WeightsForm::Ones)
            .then(|| head("weight_head.safetensors", "weight", "bias"))
            .transpose()?;
        let latent = match settings.latent {
            None => None,
            Some(shape) => {
                let tensors = Checkpoint::open_file(folder, LATENT_FILE)?;
                // A latent means nothing under another adapter.
                assets.revision = format!("{}-{}", assets.revision, tensors.fingerprint());
                Some(LatentAdapter::load(&tensors, &shape, d)?)
            }
        };
        let prior = match settings.prior {
            None => None,
            Some(shape) => {
                Some(WeightPrior::load(&Checkpoint::open_file(folder, WeightPrior::FILE)?, shape, d)?)
            }
        };
        let fallback =
            if reference.is_some() { DefaultReference::Model } else { DefaultReference::Generator };
        let default_reference = settings.reference.unwrap_or(fallback);
        if default_reference == DefaultReference::Model && reference.is_none() {
            let problem = "`reference` is \"model\", but `reference_model` names no folder";
            return Err(LoadError::file(&folder.join("attune.json"), problem));
        }
        Ok(Self {
            template: PreferenceTemplate::new(settings.template.as_deref())
                .map_err(|e| LoadError::file(&folder.join("attune.json"), e))?,
            default_reference,
            beta: settings.beta.unwrap_or(0.1),
            policy,
            reference,
            value_head,
            weight_head,
            latent,
            prior,
            weights_form: settings.weights,
            hardware,
            assets,
        })
    }

    /// Whether the weights before training are here, for reference MODEL.
    pub fn has_reference(&self) -> bool {
        self.reference.is_some()
    }

    /// Whether the features pass through the official release's full matrix.
    pub fn has_value_head(&self) -> bool {
        self.value_head.is_some()
    }

    /// Whether `w_p` is read off a preference text, and when.
    pub fn weights_form(&self) -> WeightsForm {
        self.weights_form
    }

    /// The latent form of a person, where the folder has one.
    pub fn latent(&self) -> Option<&LatentAdapter> {
        self.latent.as_ref()
    }

    /// What is known of people's weights before they are fitted, where the folder has it.
    pub fn prior(&self) -> Option<&WeightPrior> {
        self.prior.as_ref()
    }

    /// Where it computes: "cpu" or "cuda:N".
    pub fn device(&self) -> String {
        self.hardware.name()
    }

    /// The card that it is on, so that its output embedding cannot be read here.
    pub fn gpu(&self) -> Option<&Gpu> {
        self.hardware.gpu()
    }

    /// A cache of `blocks` blocks for one side, where the model is. Both sides use the same block ids.
    ///
    /// # Errors
    /// The device has too little memory.
    pub fn cache(&self, blocks: usize) -> Result<KvCache, ForwardError> {
        self.hardware.cache(&self.assets.config, blocks)
    }

    /// Bytes that one block of one side's cache takes, over all layers.
    pub fn block_bytes(&self) -> usize {
        self.hardware.block_bytes(&self.assets.config)
    }

    /// The features `phi(h)` of the wanted rows, where the model is.
    ///
    /// # Errors
    /// The device failed.
    ///
    /// # Panics
    /// Without a reference, for `Side::Reference`; `has_reference` tells.
    pub fn read(
        &self,
        side: Side,
        sequences: &[SequenceRows<'_>],
        cache: &KvCache,
    ) -> Result<Vec<Feature>, ForwardError> {
        Feature::all(self.phi(&self.hardware, side, sequences, cache)?)
    }

    /// The features `phi(h)` of the wanted rows, one `[d]` each.
    ///
    /// # Errors
    /// The device failed.
    ///
    /// # Panics
    /// As `read`.
    pub fn features(
        &self,
        side: Side,
        sequences: &[SequenceRows<'_>],
        cache: &KvCache,
    ) -> Result<Vec<Vec<f32>>, ForwardError> {
        self.phi(&self.hardware, side, sequences, cache)?.to_vec2()
    }

    /// [`Self::features`] on threads of the caller's own, where the model is on a CPU: for work beside the
    /// running batch.
    ///
    /// # Errors
    /// As `features`.
    ///
    /// # Panics
    /// As `features`.
    pub fn features_on(
        &self,
        side: Side,
        sequences: &[SequenceRows<'_>],
        cache: &KvCache,
        threads: &Threads,
    ) -> Result<Vec<Vec<f32>>, ForwardError> {
        self.phi(&self.hardware.with(threads), side, sequences, cache)?.to_vec2()
    }

    fn phi(
        &self,
        on: &Hardware,
        side: Side,
        sequences: &[SequenceRows<'_>],
        cache: &KvCache,
    ) -> Result<Rows, ForwardError> {
        let hidden = self.scorer(side).decoder.forward_by(on, sequences, cache)?;
        match &self.value_head {
            Some(head) if hidden.count() > 0 => on.linear_narrow(&hidden, head),
            _ => Ok(hidden),
        }
    }

    /// A person's `w_p`, `[d]`, where the model is.
    ///
    /// # Errors
    /// The card's memory is full.
    pub fn weights(&self, weights: Vec<f32>) -> Result<PersonWeights, ForwardError> {
        PersonWeights::new(&self.hardware, weights)
    }

    /// Says that a step is computed: threads that look for more leave their cores to those who carry its result
    /// away.
    pub fn rest(&self) {
        self.hardware.rest();
    }

    /// The rewards of each question, in the candidates' order. A question fails alone.
    ///
    /// # Errors
    /// The device failed.
    pub fn score(&self, questions: &[Question<'_>]) -> Result<Vec<Result<Vec<f32>, RowError>>, ForwardError> {
        let reference = self.reference.as_ref().unwrap_or(&self.policy);
        let heads = Heads { policy: &self.policy.head, reference: &reference.head };
        features::score(&self.hardware, &heads, questions)
    }

    /// `w_p` read off a preference text by the head, `[d]`; `None` where the model has no head.
    ///
    /// # Errors
    /// The device failed.
    pub fn preference_weights(&self, text: &[u32]) -> Result<Option<Vec<f32>>, ForwardError> {
        let Some(head) = &self.weight_head else { return Ok(None) };
        // Short and seldom, so it has a cache of its own rather than a place in the running batch.
        let blocks: Vec<u32> = (0..blocks_for(text.len()) as u32).collect();
        debug_assert!(blocks.len() * BLOCK_SIZE >= text.len());
        let cache = self.cache(blocks.len())?;
        let rows = SequenceRows { tokens: text, start: 0, blocks: &blocks, output: Output::Last };
        let hidden = self.policy.decoder.forward(&[rows], &cache)?;
        Ok(Some(self.hardware.linear(&hidden, head)?.to_vec1()?))
    }

    /// The rows of a side's output embedding, `[V, d]`, of a model on a CPU. Only those asked about are ever
    /// multiplied.
    ///
    /// # Panics
    /// As `read`; and for a model on a card, which [`PersRm::score`] serves.
    #[allow(clippy::panic)]
    pub fn head(&self, side: Side) -> &EmbeddingTable {
        match &*self.scorer(side).head {
            Table::Cpu(table) => table,
            Table::Card(_) => panic!("the output embedding is on a card"),
        }
    }

    #[allow(clippy::expect_used)]
    fn scorer(&self, side: Side) -> &Scorer {
        match side {
            Side::Policy => &self.policy,
            Side::Reference => self.reference.as_ref().expect("callers ask has_reference first"),
        }
    }
}

impl Scorer {
    /// `embedding`: the input embedding, where another model has the same one already.
    fn load(
        config: &DecoderConfig,
        checkpoint: &Checkpoint,
        options: &LoadOptions,
        hardware: &Hardware,
        embedding: Option<Arc<Table>>,
    ) -> Result<Self, LoadError> {
        let shape = [config.vocab, config.hidden];
        let table = |name: &str| {
            Ok::<_, LoadError>(Arc::new(hardware.table(checkpoint, name, shape, options.format)?))
        };
        let embedding = embedding.map_or_else(|| table("model.embed_tokens.weight"), Ok)?;
        let head = if config.tied { Arc::clone(&embedding) } else { table(config.head_tensor())? };
        let decoder = Decoder::load(config, checkpoint, Arc::clone(&embedding), options, hardware)?;
        Ok(Self { decoder, embedding, head })
    }
}

/// A folder or GGUF file beside the model.
fn within(folder: &Path, name: &str) -> Result<std::path::PathBuf, LoadError> {
    let path = folder.join(name);
    if Path::new(name).file_name().is_none_or(|f| f != name) || !path.exists() {
        let problem =
            format!("`reference_model` is `{name}`, which is no folder or .gguf file within this one");
        return Err(LoadError::file(&folder.join("attune.json"), problem));
    }
    Ok(path)
}
