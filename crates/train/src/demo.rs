//! Makes the embedded pair: corpus, tokenizer, base, PersRM, measurement, files.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use candle_core::Device;
use tokenizers::Tokenizer;

use crate::batch::Encoded;
use crate::dpo::{self, DpoOptions, DpoOutcome};
use crate::head::{self, Against, HeadTask, WeightHead};
use crate::latent::{self, LatentOptions, LatentOutcome};
use crate::lm::{self, LmOptions};
use crate::measure::{self, HeldOut, Measurement, Models, measure, show};
use crate::model::{Llama, ModelConfig, Variant};
use crate::prior::{self, PriorOptions, PriorOutcome};
use crate::tokenizer::END;
use crate::trainer::{self, Recipe, Run, Summary};
use crate::world::pairs;
use crate::{card, export, tokenizer};

/// What to make.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// Folder for `base/`, `persrm/`, `prompts.json` and `README.md`; made if missing.
    pub out: PathBuf,
    /// All chance comes from it.
    pub seed: u64,
    /// Largest vocabulary; the tokenizer may need less.
    pub vocabulary: usize,
    /// Shape; its vocabulary is replaced by the tokenizer's.
    pub model: ModelConfig,
    /// The base's training.
    pub lm: LmOptions,
    /// The PersRM's first stage.
    pub dpo: DpoOptions,
    /// Its second stage: the weight head.
    pub head: HeadOptions,
    /// The latent form of a person, on the PersRM that both stages made.
    pub latent: LatentOptions,
    /// The prior of fitted weights, on the same.
    pub prior: PriorOptions,
    /// Questions of the measurement.
    pub prompts: usize,
    /// Strengths of the measurement.
    pub strengths: Vec<f64>,
    /// Longest answer of the measurement, in tokens; the world's longest has about 110.
    pub max_tokens: usize,
    /// Takes the base from this folder instead of training one: for trying other ways to train the PersRM.
    pub base: Option<PathBuf>,
    /// Where to train. Other devices than the CPU give other bits.
    pub device: Device,
    /// Shows no progress.
    pub quiet: bool,
}

/// How to train the weight head.
#[derive(Debug, Clone)]
pub struct HeadOptions {
    /// Pairs that are drawn; those without a preference teach it nothing.
    pub pairs: usize,
    /// Pairs a step.
    pub batch: usize,
    /// Highest learning rate.
    pub rate: f64,
    /// Share of the steps that warm up.
    pub warm_up: f64,
    /// The scale of the log-ratios.
    pub beta: f64,
}

impl DemoOptions {
    /// The shipped recipe.
    pub fn new(out: impl Into<PathBuf>, seed: u64) -> Self {
        Self {
            out: out.into(),
            seed,
            vocabulary: 1536,
            model: ModelConfig {
                vocab_size: 0,
                hidden_size: 128,
                intermediate_size: 352,
                num_hidden_layers: 4,
                num_attention_heads: 4,
                num_key_value_heads: 2,
                max_position_embeddings: 512,
                rms_norm_eps: 1e-5,
                rope_theta: 10_000.0,
                variant: Variant::default(),
            },
            lm: LmOptions { texts: 32_000, batch: 32, rate: 4e-3, warm_up: 0.04 },
            dpo: DpoOptions { pairs: 28_800, batch: 16, rate: 7e-4, warm_up: 0.1, beta: 0.3, anchor: 8.0 },
            head: HeadOptions { pairs: 2_400, batch: 16, rate: 1e-2, warm_up: 0.1, beta: 0.3 },
            latent: LatentOptions::default(),
            prior: PriorOptions::default(),
            prompts: 100,
            strengths: vec![1.0, 2.0, 3.0],
            max_tokens: 160,
            base: None,
            device: Device::Cpu,
            quiet: false,
        }
    }

    /// A pair that is made in seconds and knows nothing, for tests.
    pub fn tiny(out: impl Into<PathBuf>, seed: u64) -> Self {
        let mut options = Self::new(out, seed);
        options.vocabulary = 700;
        options.model.hidden_size = 16;
        options.model.intermediate_size = 24;
        options.model.num_hidden_layers = 2;
        options.lm.texts = 64;
        options.lm.batch = 16;
        options.dpo.pairs = 16;
        options.dpo.batch = 8;
        options.head.pairs = 16;
        options.head.batch = 8;
        options.latent = LatentOptions::tiny();
        options.prior = PriorOptions::tiny();
        options.prompts = 4;
        options.strengths = vec![1.0];
        options.max_tokens = 8;
        options.quiet = true;
        options
    }
}

/// What was made, and how well it does.
#[derive(Debug, Clone)]
pub struct DemoReport {
    /// What was asked for.
    pub options: DemoOptions,
    /// Size of the vocabulary.
    pub vocabulary: usize,
    /// Weights of the base, and of the PersRM.
    pub parameters: usize,
    /// The base's loss over the last tenth of its training, nats a token; absent when it was not trained here.
    pub lm_loss: Option<f64>,
    /// How the PersRM's first stage ended.
    pub dpo: DpoOutcome,
    /// How its second stage ended.
    pub head: Summary,
    /// How the latents' training ended.
    pub latent: LatentOutcome,
    /// How the prior's learning ended.
    pub prior: PriorOutcome,
    /// One question and its greedy answers: unguided, then guided by one preference after another.
    pub shown: measure::Shown,
    /// The figures of the model card.
    pub measurement: Measurement,
}

/// Held-out wordings of each preference.
const WORDINGS: usize = 6;

/// Makes the pair and writes it. Everything is decided by the options: one seed gives the same files on
/// one machine.
///
/// # Errors
/// A folder that cannot be written; a loss that is not finite; what the libraries report.
pub fn make(options: &DemoOptions) -> Result<DemoReport> {
    let seed = options.seed;
    fs::create_dir_all(&options.out).with_context(|| format!("cannot make {}", options.out.display()))?;
    let (base, words, lm_loss) = match &options.base {
        Some(folder) => {
            let (base, words) = export::read_checkpoint(folder)?;
            (base, words, None)
        }
        None => train_base(options)?,
    };
    let (vocabulary, parameters) = (base.config().vocab_size, base.config().parameters());
    export::write_checkpoint(&options.out.join("base"), &base, &words)?;
    let there = base.on(&options.device)?;
    let (persrm, outcome) = dpo::train(&there, &words, &options.dpo, seed, options.quiet)?;
    let persrm = persrm.rounded()?;
    let (head, head_outcome) = train_head(&persrm, &there, &words, options)?;
    let folder = options.out.join("persrm");
    export::write_persrm(&folder, &persrm, &base, &words, options.dpo.beta)?;
    head.write(&folder)?;
    let (latents, latent_outcome) = latent::train(&persrm, &words, &options.latent, seed, options.quiet)?;
    latents.write(&folder)?;
    let of_prior = PriorOptions { beta: options.dpo.beta, ..options.prior.clone() };
    let (prior, prior_outcome) = prior::train(&persrm, &there, &words, &of_prior, seed, options.quiet)?;
    prior.write(&folder)?;
    let persrm = persrm.on(&Device::Cpu)?;

    let held_out = HeldOut::draw(options.prompts, WORDINGS, seed);
    export::write_json(&options.out.join("prompts.json"), &serde_json::to_value(&held_out)?)?;
    let models = Models { base: &base, persrm: &persrm, reference: &base, tokenizer: &words };
    let measurement =
        measure(&models, &held_out, &options.strengths, options.max_tokens, seed, options.quiet)?;
    let shown = show(&models, &held_out, options.max_tokens)?;
    let report = DemoReport {
        shown,
        options: options.clone(),
        vocabulary,
        parameters,
        lm_loss,
        dpo: outcome,
        head: head_outcome,
        latent: latent_outcome,
        prior: prior_outcome,
        measurement,
    };
    let path = options.out.join("README.md");
    fs::write(&path, card::render(&report)).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(report)
}

/// Stage two: the head reads `w_p` off preferences that do not stand in the prompt. Its pairs are others than
/// the first stage's.
fn train_head(
    persrm: &Llama,
    base: &Llama,
    words: &Tokenizer,
    options: &DemoOptions,
) -> Result<(WeightHead, Summary)> {
    let HeadOptions { pairs, batch, rate, warm_up, beta } = options.head;
    let mut shown = Vec::new();
    for pair in pairs::pairs(pairs, options.seed + 1) {
        let Some(preference) = pair.preference.as_deref() else { continue };
        let prompt = tokenizer::encode_prompt(words, &pair.prompt, None)?;
        let text = |answer: &str| {
            Ok::<_, anyhow::Error>(Encoded::new(&prompt, &tokenizer::encode(words, answer)?, END))
        };
        let pair = (text(&pair.chosen)?, text(&pair.rejected)?);
        shown.push(head::Shown { text: tokenizer::encode(words, preference)?, pair });
    }
    let head = WeightHead::fresh(persrm.config().hidden_size)?;
    let task = HeadTask::new(&head, persrm, Against::Plain(base), shown, beta)?;
    let recipe = Recipe::once(batch, rate, warm_up, (options.seed, 32));
    let run = Run { name: "head", quiet: options.quiet, ..Run::default() };
    let summary = trainer::train(&task, &recipe, &run)?.done()?;
    Ok((head, summary))
}

/// Tokenizer and base; the base's weights are what the files will hold, so that reference and base are the
/// same to the bit.
fn train_base(options: &DemoOptions) -> Result<(Llama, Tokenizer, Option<f64>)> {
    let seed = options.seed;
    let corpus: Vec<String> = pairs::samples(4000.min(options.lm.texts), seed)
        .flat_map(|sample| {
            [tokenizer::with_preference(&sample.prompt, sample.preference.as_deref()), sample.answer]
        })
        .collect();
    let words = tokenizer::learn(&corpus, options.vocabulary)?;
    let mut config = options.model.clone();
    config.vocab_size = words.get_vocab_size(true);
    let (base, loss) = lm::train(config, &words, &options.lm, seed, options.quiet, &options.device)?;
    Ok((base.rounded()?, words, Some(loss)))
}
