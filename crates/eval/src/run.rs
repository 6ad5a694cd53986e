//! The run: services started as they ship, every method over its strengths, one answer an ask.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result};
use attune_bench::{report::median, service::Service};
use attune_proto::generator::v1::{Sampling, generator_service_client::GeneratorServiceClient};
use attune_train::{export, model::Llama, tokenizer::encode_prompt};
use tonic::transport::Channel;

use crate::{
    answers::{Answer, gather, request},
    asks::Ask,
    method::{Decodes, Method, Worker},
    models::Models,
    score::{self, Judged, Scores},
    table::Row,
    told::Told,
};

/// Texts by which the time per token is taken, one at a time.
const TIMED: usize = 6;

/// What to run.
#[derive(Debug)]
pub struct Settings {
    /// The folder of `attune-generator` and `attune-reward`.
    pub binaries: PathBuf,
    /// The checkpoints.
    pub models: Models,
    /// The methods; those that lack their models are left out.
    pub methods: Vec<Method>,
    /// Strengths to try in place of each method's own. Empty: its own.
    pub strengths: Vec<f32>,
    /// What is asked.
    pub asks: Vec<Ask>,
    /// How tokens are chosen, the same for all methods.
    pub sampling: Sampling,
    /// Texts at once.
    pub streams: usize,
    /// All chance comes from it.
    pub seed: u64,
}

impl Settings {
    /// The methods that run, and why others do not.
    pub fn methods(&self) -> (Vec<Method>, Vec<(Method, String)>) {
        let mut left_out = Vec::new();
        let mut run = Vec::new();
        for &method in &self.methods {
            match self.models.lacks(method) {
                None => run.push(method),
                Some(why) => left_out.push((method, why)),
            }
        }
        (run, left_out)
    }

    /// The cells of the table.
    pub fn cells(&self) -> Vec<(Method, f32)> {
        let (methods, _) = self.methods();
        methods
            .into_iter()
            .flat_map(|method| {
                let own = method.strengths();
                let strengths = if own == [0.0] || self.strengths.is_empty() { own } else { &self.strengths };
                strengths.iter().map(move |&strength| (method, strength)).collect::<Vec<_>>()
            })
            .collect()
    }

    /// Answers in all.
    pub fn answers(&self) -> usize {
        let asked = |method: Method| self.asks.iter().filter(|ask| self.models.serves(method, ask)).count();
        self.cells().into_iter().map(|(method, _)| asked(method)).sum()
    }
}

/// Runs every cell, and gives the table's rows and every answer; `on_answer` hears of each answer, `on_cell` of
/// each cell that begins.
///
/// # Errors
/// A service that does not start, a request that fails, a checkpoint that cannot be read.
pub async fn run(
    settings: &Settings,
    on_answer: impl Fn() + Clone + Send + 'static,
    on_cell: impl Fn(Method, f32),
) -> Result<(Vec<Row>, Vec<Told>)> {
    let (methods, _) = settings.methods();
    let workers: BTreeSet<Worker> = methods.iter().flat_map(|method| method.workers()).collect();
    let running =
        Running::start(&settings.binaries, &settings.models.base(), &settings.models, workers).await?;
    let judge = Judge::open(&settings.models.base())?;
    let (mut rows, mut told) = (Vec::new(), Vec::new());
    for (method, strength) in settings.cells() {
        on_cell(method, strength);
        let (row, answers) = cell(settings, &running, &judge, (method, strength), on_answer.clone()).await?;
        rows.push(row);
        told.extend(answers);
    }
    Ok((rows, told))
}

/// A generator with the workers that it may ask.
pub(crate) struct Running {
    /// Its client.
    pub(crate) client: GeneratorServiceClient<Channel>,
    _generator: Service,
    _workers: Vec<Service>,
}

impl Running {
    /// Starts the workers and a generator on `base`, each on half of the cores.
    pub(crate) async fn start(
        binaries: &Path,
        base: &Path,
        models: &Models,
        workers: impl IntoIterator<Item = Worker>,
    ) -> Result<Self> {
        let mut started = Vec::new();
        for worker in workers {
            let mut args = models.serve(&models.worker(&worker));
            args.extend(["--model-id".to_owned(), worker.id()]);
            args.extend(threads());
            started.push(Service::start(binaries, "attune-reward", &args).await?);
        }
        let mut args = models.serve(base);
        args.extend(threads());
        args.extend(started.iter().flat_map(|worker| ["--reward".to_owned(), worker.endpoint.clone()]));
        let generator = Service::start(binaries, "attune-generator", &args).await?;
        Ok(Self { client: generator.client().await?, _generator: generator, _workers: started })
    }
}

/// Half of the cores for each service.
fn threads() -> [String; 2] {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    ["--threads".to_owned(), (cores / 2).max(1).to_string()]
}

/// The base model, to say how likely it finds an answer that others decoded.
struct Judge {
    base: Arc<Llama>,
    tokenizer: tokenizers::Tokenizer,
}

impl Judge {
    fn open(base: &Path) -> Result<Self> {
        let (base, tokenizer) = export::read_checkpoint(base)?;
        Ok(Self { base: Arc::new(base), tokenizer })
    }

    /// The log-probability of each answer under the base, which reads the bare question.
    async fn log_probs(&self, asks: &[&Ask], answers: &[Answer]) -> Result<Vec<f64>> {
        let texts = asks
            .iter()
            .zip(answers)
            .map(|(ask, answer)| {
                Ok((encode_prompt(&self.tokenizer, &ask.question, None)?, answer.ids.clone()))
            })
            .collect::<Result<Vec<_>>>()?;
        let base = Arc::clone(&self.base);
        tokio::task::spawn_blocking(move || score::log_probs(&base, &texts))
            .await
            .context("the perplexity broke off")?
    }
}

async fn cell(
    settings: &Settings,
    running: &Running,
    judge: &Judge,
    (method, strength): (Method, f32),
    on_answer: impl Fn() + Clone + Send + 'static,
) -> Result<(Row, Vec<Told>)> {
    let Settings { sampling, streams, seed, .. } = settings;
    let mut groups: BTreeMap<Decodes, Vec<(usize, &Ask)>> = BTreeMap::new();
    let served = |ask: &Ask| settings.models.serves(method, ask);
    for (i, ask) in settings.asks.iter().enumerate().filter(|(_, ask)| served(ask)) {
        groups.entry(method.decodes(ask)).or_default().push((i, ask));
    }
    let mut asks: Vec<&Ask> = Vec::new();
    let mut judged: Vec<Judged> = Vec::new();
    let (mut told, mut times) = (Vec::new(), Vec::new());
    for (decodes, group) in groups {
        let own = match decodes {
            Decodes::Base => None,
            _ => {
                let folder = settings.models.decodes(&decodes)?;
                Some(Running::start(&settings.binaries, &folder, &settings.models, []).await?)
            }
        };
        let client = &own.as_ref().unwrap_or(running).client;
        let seeded = |i: usize| seed.wrapping_add(i as u64);
        let requests =
            group.iter().map(|(i, ask)| request(ask, method, strength, sampling, seeded(*i))).collect();
        let answers = gather(client, requests, *streams, on_answer.clone()).await?;
        let of_group: Vec<&Ask> = group.iter().map(|(_, ask)| *ask).collect();
        // What the base itself decoded without a preference came with the base's own numbers.
        let log_probs = if own.is_none() && !method.prompts() {
            answers.iter().map(|a| a.log_probs.iter().map(|&p| f64::from(p)).sum()).collect()
        } else {
            judge.log_probs(&of_group, &answers).await?
        };
        for ((ask, answer), log_prob) in of_group.iter().zip(&answers).zip(log_probs) {
            let found = score::judged(ask, answer, log_prob);
            told.push(Told::new((method, strength), ask, answer, &found));
            judged.push(found);
        }
        asks.extend(of_group);
        if times.is_empty() {
            times = timed(settings, client, &running.client, &group, (method, strength)).await?;
        }
    }
    let milliseconds = |which: fn(&(f64, f64)) -> f64| median(times.iter().map(which)).unwrap_or(0.0) * 1e3;
    let (ms_per_token, unguided) = (milliseconds(|t| t.0), milliseconds(|t| t.1));
    let relative = if unguided > 0.0 { ms_per_token / unguided } else { 1.0 };
    let train_seconds = settings.models.train_seconds(method);
    let scores = Scores::of(&asks, &judged);
    let row = Row::new(method.name(), f64::from(strength), &scores, (ms_per_token, relative), train_seconds);
    Ok((row, told))
}

/// Seconds a token of single texts, and of the base's unguided ones; they take turns, so that both see the
/// same machine.
async fn timed(
    settings: &Settings,
    client: &GeneratorServiceClient<Channel>,
    base: &GeneratorServiceClient<Channel>,
    group: &[(usize, &Ask)],
    (method, strength): (Method, f32),
) -> Result<Vec<(f64, f64)>> {
    let mut times = Vec::new();
    for (i, ask) in group.iter().take(TIMED) {
        let seed = settings.seed.wrapping_add(*i as u64);
        let one = async |client, method| {
            let request = request(ask, method, strength, &settings.sampling, seed);
            let answers = gather(client, vec![request], 1, || ()).await?;
            let answer = answers.into_iter().next().unwrap_or_default();
            Ok::<_, anyhow::Error>(answer.seconds / (answer.ids.len().max(2) - 1) as f64)
        };
        times.push((one(client, method).await?, one(base, Method::Unguided).await?));
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use attune_train::model::ModelConfig;

    use super::*;

    #[test]
    fn the_log_probability_of_a_text_is_the_sum_of_its_tokens() {
        let config: ModelConfig = serde_json::from_value(serde_json::json!({
            "vocab_size": 11, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32,
            "rms_norm_eps": 1e-5, "rope_theta": 100.0,
        }))
        .unwrap();
        let model = Llama::fresh(config, 3).unwrap();
        let texts = vec![(vec![1, 2, 3], vec![4, 5, 6]), (vec![1], vec![7, 2]), (vec![1, 9], vec![2])];
        let together = score::log_probs(&model, &texts).unwrap();
        for ((prompt, answer), sum) in texts.iter().zip(together) {
            // One token after another, each with all before it as its prompt.
            let mut before = prompt.clone();
            let mut alone = 0.0;
            for &token in answer {
                alone += score::log_probs(&model, &[(before.clone(), vec![token])]).unwrap()[0];
                before.push(token);
            }
            assert!((alone - sum).abs() < 1e-4, "{alone} {sum}");
        }
    }
}
