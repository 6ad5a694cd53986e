//! Training on people's own data: a language model, and the two stages of a PersRM.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail, ensure};
use attune_engine::{DefaultReference, PersRmSettings, PreferenceTemplate, WeightsForm, hub};
use candle_core::Device;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::batch::Encoded;
use crate::data::{self, Encoder, Line, Numbered};
use crate::dpo::Pairs;
use crate::export;
use crate::head::{Against, HeadTask, Shown, WeightHead};
use crate::lm::Texts;
use crate::lora::Adapter;
use crate::model::Llama;
use crate::open::{self, Opened};
use crate::saved::{self, Place};
use crate::trainer::{self, Ended, Recipe, Run, Summary, Task};
use crate::world::pairs::{Pair, Sample};

/// What every training on own data needs to know.
#[derive(Debug, Clone)]
pub struct OwnOptions {
    /// What to start from: a folder, or a hub id.
    pub model: String,
    /// The base, where that is an adapter.
    pub base_model: Option<String>,
    /// JSON lines to learn from.
    pub data: PathBuf,
    /// JSON lines to measure with when it has learned; never trained on.
    pub held_out: Option<PathBuf>,
    /// The folder to write; made if absent.
    pub out: PathBuf,
    /// How to train.
    pub recipe: Recipe,
    /// The longest text in tokens. `None`: as the model holds.
    pub longest: Option<usize>,
    /// Steps between checkpoints.
    pub every: usize,
    /// Goes on from the checkpoint in the folder.
    pub resume: bool,
    /// Where to train.
    pub device: Device,
    /// Shows no progress.
    pub quiet: bool,
}

/// Low-rank adapters in place of full weights.
#[derive(Debug, Clone, Copy)]
pub struct Lora {
    /// The rank of each pair of matrices.
    pub rank: usize,
    /// Their product is multiplied by `alpha / rank`.
    pub alpha: f64,
}

/// What stage one needs besides.
#[derive(Debug, Clone)]
pub struct StageOne {
    /// Adapters in place of full weights.
    pub lora: Option<Lora>,
    /// Where a preference stands in the last user message. `None`: as the model's `attune.json` says, else the
    /// engine's own.
    pub template: Option<String>,
    /// The scale of the log-ratios.
    pub beta: f64,
    /// Weight of the chosen answer's own loss.
    pub anchor: f64,
}

/// What stage two needs besides.
#[derive(Debug, Clone)]
pub struct StageTwo {
    /// What is subtracted. `None`: as the PersRM's `attune.json` says, else its own reference, if it has one.
    pub reference: Option<DefaultReference>,
    /// The base's weights for reference GENERATOR. `None`: those of the PersRM's own reference.
    pub generator: Option<PathBuf>,
    /// Whether the preference stands in the prompt too.
    pub in_prompt: bool,
    /// The scale of the log-ratios. `None`: as in stage one.
    pub beta: Option<f64>,
}

/// What came out.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// How the run ended.
    pub ended: Ended,
    /// Loss and accuracy on the held-out lines, where there are some and the run is over.
    pub held_out: Option<Summary>,
    /// Lines that were learned from.
    pub lines: usize,
}

/// Trains a language model on prompts and answers, from full weights or by an adapter.
///
/// # Errors
/// The model, a line of the data or the checkpoint is at fault: named.
pub fn lm(options: &OwnOptions, lora: Option<Lora>, stop: &AtomicBool) -> Result<Outcome> {
    let opened = open(options, lora)?;
    let settings = PersRmSettings::load(&opened.assets.folder)?;
    let template = PreferenceTemplate::new(settings.template.as_deref())?;
    let encoder = Encoder::new(&opened, &template, options.longest)?;
    let model = trained(&opened.model, lora, options.recipe.seed)?;
    let read = |path: &Path| {
        encoded(path, |line: &Sample| encoder.text(&line.prompt, line.preference.as_deref(), &line.answer))
    };
    let texts = read(&options.data)?;
    let held_out = options.held_out.as_deref().map(read).transpose()?;
    let place = place(options, &opened, texts.iter(), json!({"loss": "lm", "lora": rank(lora)}));
    let lines = texts.len();
    let run = Run { name: "lm", quiet: options.quiet, place: Some(place.clone()), stop: Some(stop) };
    let ended = trainer::train(&Texts::new(&model, texts), &options.recipe, &run)?;
    let mut held_out_summary = None;
    if let Ended::Done(_) = ended {
        held_out_summary = held_out.map(|texts| evaluate(&Texts::new(&model, texts), options)).transpose()?;
        write(options, &opened, &model)?;
        place.finish()?;
    }
    Ok(Outcome { ended, held_out: held_out_summary, lines })
}

/// Stage one: `w_p` is ones, the preference stands in the prompt, DPO-form loss against the model as it was.
///
/// # Errors
/// As [`lm`].
pub fn stage_one(options: &OwnOptions, stage: &StageOne, stop: &AtomicBool) -> Result<Outcome> {
    let opened = open(options, stage.lora)?;
    let mut settings = PersRmSettings::load(&opened.assets.folder)?;
    settings.template = stage.template.clone().or(settings.template);
    let template = PreferenceTemplate::new(settings.template.as_deref())?;
    let encoder = Encoder::new(&opened, &template, options.longest)?;
    let model = trained(&opened.model, stage.lora, options.recipe.seed)?;
    let read = |path: &Path| encoded(path, |line: &Pair| pair(&encoder, line, true));
    let data = read(&options.data)?;
    let held_out = options.held_out.as_deref().map(read).transpose()?;
    let (beta, anchor) = (stage.beta, stage.anchor);
    let of = json!({"loss": "dpo", "beta": beta, "anchor": anchor, "lora": rank(stage.lora)});
    let place = place(options, &opened, data.iter().flat_map(|(a, b)| [a, b]), of);
    let lines = data.len();
    let reference = Some(&opened.model);
    let task = |data| Pairs { model: &model, reference, data, beta, anchor };
    let run = Run { name: "stage one", quiet: options.quiet, place: Some(place.clone()), stop: Some(stop) };
    let ended = trainer::train(&task(data), &options.recipe, &run)?;
    let mut held_out_summary = None;
    if let Ended::Done(_) = ended {
        held_out_summary = held_out.map(|data| evaluate(&task(data), options)).transpose()?;
        write(options, &opened, &model)?;
        // The reference of an adapter is its base; full weights need those from before training beside them.
        let reference_model = match stage.lora {
            Some(_) => None,
            None => {
                export::write_like(
                    &options.out.join(REFERENCE),
                    &opened.weights,
                    &opened.model,
                    opened.dtype,
                )?;
                Some(REFERENCE.to_owned())
            }
        };
        let settings = PersRmSettings {
            template: settings.template,
            weights: WeightsForm::Ones,
            reference: Some(DefaultReference::Model),
            reference_model,
            beta: Some(beta),
            latent: None,
            prior: None,
        };
        write_settings(&options.out, &settings)?;
        place.finish()?;
    }
    Ok(Outcome { ended, held_out: held_out_summary, lines })
}

/// Stage two: the PersRM frozen, the head learns to read `w_p` off the preference. Lines without one teach it
/// nothing and are passed over.
///
/// # Errors
/// As [`lm`]; the folder holds no PersRM that a head can be trained for.
pub fn stage_two(options: &OwnOptions, stage: &StageTwo, stop: &AtomicBool) -> Result<Outcome> {
    let mut opened = Opened::new(&options.model, options.base_model.as_deref())?;
    opened.model = opened.model.on(&options.device)?;
    let own = opened.assets.folder.clone();
    if own.join("value_head.safetensors").exists() {
        bail!("{} has a value head, for whose features no weight head can be trained yet", own.display());
    }
    let mut settings = PersRmSettings::load(&own)?;
    let reference = match &settings.reference_model {
        Some(name) => Some(open::weights(&beside(&own, name)?)?),
        None => opened.without_adapter()?,
    };
    let there = |model: Llama| model.on(&options.device);
    let reference = reference.map(there).transpose()?;
    let generator = stage.generator.as_deref().map(open::weights).transpose()?.map(there).transpose()?;
    let has = if reference.is_some() { DefaultReference::Model } else { DefaultReference::None };
    let against = stage.reference.or(settings.reference).unwrap_or(has);
    let against = match (against, &reference, &generator) {
        (DefaultReference::None, ..) => Against::Nothing,
        (DefaultReference::Model, Some(reference), _) => Against::Weighted(reference),
        (DefaultReference::Generator, _, Some(base)) | (DefaultReference::Generator, Some(base), None) => {
            Against::Plain(base)
        }
        (DefaultReference::Model, None, _) => bail!("{} has no reference of its own", own.display()),
        (DefaultReference::Generator, None, None) => bail!("name the base model's folder by --generator"),
    };
    let template = PreferenceTemplate::new(settings.template.as_deref())?;
    let encoder = Encoder::new(&opened, &template, options.longest)?;
    let read = |path: &Path| {
        let mut lines: Vec<Numbered<Pair>> = data::lines(path)?;
        lines.retain(|(_, line)| line.preference.as_deref().is_some_and(|text| !text.trim().is_empty()));
        encode(path, lines, |line: &Pair| {
            let text = encoder.preference(line.preference.as_deref().unwrap_or_default())?;
            Ok(Shown { text, pair: pair(&encoder, line, stage.in_prompt)? })
        })
    };
    let data = read(&options.data)?;
    let held_out = options.held_out.as_deref().map(read).transpose()?;
    let beta = stage.beta.or(settings.beta).unwrap_or(0.1);
    let of = json!({"loss": "head", "beta": beta, "against": against.name()});
    let texts = data.iter().flat_map(|one| [&one.pair.0, &one.pair.1]);
    let place = place(options, &opened, texts, of);
    let (lines, head) = (data.len(), WeightHead::fresh(opened.model.config().hidden_size)?);
    let task = |data| HeadTask::new(&head, &opened.model, against, data, beta);
    let run = Run { name: "stage two", quiet: options.quiet, place: Some(place.clone()), stop: Some(stop) };
    let ended = trainer::train(&task(data)?, &options.recipe, &run)?;
    let mut held_out_summary = None;
    if let Ended::Done(_) = ended {
        held_out_summary = held_out.map(|data| evaluate(&task(data)?, options)).transpose()?;
        export::copy_files(&own, &options.out, &saved::FILES)?;
        if let Some(name) = &settings.reference_model {
            export::copy_files(&own.join(name), &options.out.join(name), &[])?;
        }
        head.write(&options.out)?;
        settings.weights = if stage.in_prompt { WeightsForm::Head } else { WeightsForm::HeadAsIs };
        write_settings(&options.out, &settings)?;
        place.finish()?;
    }
    Ok(Outcome { ended, held_out: held_out_summary, lines })
}

/// The folder of the weights before training, within a PersRM's.
const REFERENCE: &str = "reference";

fn open(options: &OwnOptions, lora: Option<Lora>) -> Result<Opened> {
    let path = hub::locate(&options.model, None, options.base_model.as_deref())?;
    if lora.is_some() && path.adapter.is_some() {
        bail!("{} is an adapter already; a new one needs a model with full weights", options.model);
    }
    let mut opened = Opened::at(path)?;
    opened.model = opened.model.on(&options.device)?;
    Ok(opened)
}

/// What is trained: a copy of the weights, or an adapter on them.
fn trained(start: &Llama, lora: Option<Lora>, seed: u64) -> Result<Llama> {
    Ok(match lora {
        Some(Lora { rank, alpha }) => {
            start.with_adapter(&Adapter::fresh(start.config(), rank, alpha, seed)?)?
        }
        None => Llama::from_tensors(start.config().clone(), &start.tensors())?,
    })
}

fn rank(lora: Option<Lora>) -> Value {
    lora.map_or(Value::Null, |Lora { rank, alpha }| json!([rank, alpha]))
}

/// A line's two answers.
fn pair(encoder: &Encoder<'_>, line: &Pair, in_prompt: bool) -> Result<(Encoded, Encoded)> {
    let preference = line.preference.as_deref().filter(|_| in_prompt);
    let text = |answer: &str| encoder.text(&line.prompt, preference, answer);
    Ok((text(&line.chosen).context("`chosen`")?, text(&line.rejected).context("`rejected`")?))
}

fn encoded<T: Line, E>(path: &Path, one: impl Fn(&T) -> Result<E>) -> Result<Vec<E>> {
    encode(path, data::lines(path)?, one)
}

/// Each line by `one`; the first that fails is named by its number.
fn encode<T, E>(path: &Path, lines: Vec<Numbered<T>>, one: impl Fn(&T) -> Result<E>) -> Result<Vec<E>> {
    let encode = |(number, line): &Numbered<T>| {
        one(line).with_context(|| format!("{}, line {number}", path.display()))
    };
    lines.iter().map(encode).collect()
}

/// Where the run keeps itself; what it is told by the texts' ids, the model and the loss.
fn place<'a>(
    options: &OwnOptions,
    opened: &Opened,
    texts: impl Iterator<Item = &'a Encoded>,
    loss: Value,
) -> Place {
    let mut hash = Sha256::new();
    for text in texts {
        hash.update((text.ids.len() as u64).to_le_bytes());
        hash.update((text.answer as u64).to_le_bytes());
        text.ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
    }
    let data: String = hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let mut place = Place::new(&options.out, options.every, options.resume);
    place.of = json!({"data": data, "model": opened.assets.revision, "training": loss});
    place
}

/// Mean loss and accuracy without training.
fn evaluate(task: &dyn Task, options: &OwnOptions) -> Result<Summary> {
    let examples: Vec<usize> = (0..task.lengths().len()).collect();
    let all = task.weight(&examples).max(1) as f64;
    let mut summary = Summary { loss: 0.0, accuracy: 0.0 };
    for batch in examples.chunks(options.recipe.batch.max(1)) {
        let (loss, share) = (task.loss(batch)?, task.weight(batch) as f64 / all);
        summary.loss += share * loss.shown;
        summary.accuracy += share * loss.accuracy.unwrap_or(0.0);
    }
    Ok(summary)
}

/// Writes the adapter, or the weights with all that lay beside them.
fn write(options: &OwnOptions, opened: &Opened, model: &Llama) -> Result<()> {
    match model.adapter() {
        Some(adapter) => adapter.write(&options.out, &options.model),
        None => {
            export::write_like(&options.out, &opened.weights, model, opened.dtype)?;
            export::copy_text_files(&opened.weights, &options.out)?;
            let own = &opened.assets.folder;
            if own != &opened.weights { export::copy_text_files(own, &options.out) } else { Ok(()) }
        }
    }
}

fn write_settings(folder: &Path, settings: &PersRmSettings) -> Result<()> {
    export::write_json(&folder.join(PersRmSettings::FILE), &serde_json::to_value(settings)?)
}

/// A folder within the PersRM's own.
fn beside(folder: &Path, name: &str) -> Result<PathBuf> {
    let plain = Path::new(name).file_name().is_some_and(|file| file == name);
    ensure!(plain, "`reference_model` is `{name}`, which is no plain name of a folder within this one");
    Ok(folder.join(name))
}

impl Lora {
    /// The usual scale for a rank: twice it.
    pub fn of(rank: usize, alpha: Option<f64>) -> Self {
        Self { rank, alpha: alpha.unwrap_or(2.0 * rank as f64) }
    }
}
