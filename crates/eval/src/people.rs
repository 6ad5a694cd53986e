//! People of the demo world who say nothing but which of two answers they like: profiles fitted to that,
//! against the preference in words that they would have given.
//!
//! [`person`] is who they are, [`fitter`] fits, [`gain`] lets the pair answer them and the world judge,
//! [`rival`] trains an adapter on the same feedback, [`report`] and [`plot`] show what came out.

pub mod fitter;
pub mod gain;
pub mod person;
pub mod plot;
pub mod report;
pub mod rival;

use std::path::PathBuf;

use anyhow::Result;
use attune_bench::report::median;
use attune_profiles::{
    Reference, Vector,
    fit::{FitError, Method},
};
use attune_train::export;

use crate::{
    method::Worker,
    models::Models,
    people::{
        fitter::{Fitter, How},
        gain::{Asking, Guided, Worth, worth},
        person::SimulatedPerson,
        report::{Report, RivalRow, Row},
    },
    run::Running,
};

/// What to run.
#[derive(Debug)]
pub struct Settings {
    /// The folder of `attune-generator` and `attune-reward`.
    pub binaries: PathBuf,
    /// The checkpoints.
    pub models: Models,
    /// Pairs that profiles are fitted to.
    pub sizes: Vec<usize>,
    /// What is fitted, each with what it is measured against.
    pub ways: Vec<How>,
    /// How the pair is asked.
    pub asking: Asking,
    /// People for whom an adapter is trained too.
    pub rivals: usize,
    /// Pairs that such fits and adapters are compared on.
    pub held_out: usize,
}

impl Settings {
    /// Answers in all.
    pub fn answers(&self) -> usize {
        let cells = 2 + self.sizes.len() * self.ways.len();
        cells * SimulatedPerson::all().len() * self.asking.questions
    }
}

/// Runs the comparison; `on_answer` hears of each answer, `on_cell` of what comes next.
///
/// # Errors
/// A service that does not start, a request that fails, a checkpoint that cannot be read.
pub async fn run(
    settings: &Settings,
    on_answer: impl Fn() + Clone + Send + 'static,
    on_cell: impl Fn(String),
) -> Result<Report> {
    let people = SimulatedPerson::all();
    let (base, persrm) = (settings.models.base(), settings.models.worker(&Worker::Persrm));
    let fitter = Fitter::open(&base, &persrm)?;
    let running = Running::start(&settings.binaries, &base, &settings.models, [Worker::Persrm]).await?;
    let mut report = Report::default();
    for (profile, guided) in [("unguided", Guided::Not), ("text", Guided::ByText)] {
        on_cell(profile.to_owned());
        let all: Vec<_> = people.iter().map(|person| (person, guided.clone())).collect();
        let worth = worth(&running, &all, &settings.asking, on_answer.clone()).await?;
        report.rows.push(row(profile, 0, worth, &report.rows, &[]));
    }
    for &how in &settings.ways {
        for &pairs in &settings.sizes {
            on_cell(format!("{} {pairs}", name(how.method)));
            let fits: Vec<Fit> = people
                .iter()
                .map(|person| {
                    tokio::task::block_in_place(|| Fit::of(&fitter, person, pairs, how, settings.asking.seed))
                })
                .collect::<Result<_>>()?;
            let guided = fits.iter().map(|fit| fit.person.clone().map_or(Guided::Not, Guided::By));
            let all: Vec<_> = people.iter().zip(guided).collect();
            let mut asking = settings.asking.clone();
            asking.reference = wire(how.reference);
            let worth = worth(&running, &all, &asking, on_answer.clone()).await?;
            report.rows.push(row(name(how.method), pairs, worth, &report.rows, &fits));
        }
    }
    // The pair is no longer needed, and should not take the cores.
    drop(running);
    let (model, tokenizer) = export::read_checkpoint(&persrm)?;
    let every = people.len().checked_div(settings.rivals).unwrap_or(0).max(1);
    for person in people.iter().step_by(every).take(settings.rivals) {
        on_cell(format!("adapter for {}", person.name()));
        let (said, held_out) = (
            person.feedback(20, settings.asking.seed),
            person.held_out(settings.held_out, settings.asking.seed),
        );
        for &how in &settings.ways {
            let (fitted, seconds) = tokio::task::block_in_place(|| fitter.fit(&said, how))?;
            let accuracy =
                tokio::task::block_in_place(|| fitter.accuracy(&fitted.person, &held_out, how.reference))?;
            let rival = tokio::task::block_in_place(|| {
                rival::train(&model, &tokenizer, &said, &held_out, accuracy, settings.asking.seed)
            })?;
            report.rivals.push(RivalRow {
                person: person.name(),
                profile: name(how.method).to_owned(),
                accuracy,
                seconds,
                rival_accuracy: rival.accuracy,
                rival_seconds: rival.seconds,
                rival_steps: rival.steps,
            });
        }
    }
    Ok(report)
}

/// One person's fit, or that it was refused.
struct Fit {
    person: Option<Vector>,
    accuracy: f64,
    seconds: f64,
}

impl Fit {
    fn of(fitter: &Fitter, person: &SimulatedPerson, pairs: usize, how: How, seed: u64) -> Result<Self> {
        match fitter.fit(&person.feedback(pairs, seed), how) {
            Ok((fitted, seconds)) => {
                Ok(Self { person: Some(fitted.person), accuracy: fitted.measured.accuracy_after, seconds })
            }
            Err(error) if matches!(error.downcast_ref(), Some(FitError::Refused(_))) => {
                Ok(Self { person: None, accuracy: 0.0, seconds: 0.0 })
            }
            Err(error) => Err(error),
        }
    }
}

fn row(profile: &str, pairs: usize, worth: Worth, before: &[Row], fits: &[Fit]) -> Row {
    let of = |name: &str| before.iter().find(|row| row.profile == name).map(|row| row.satisfied.value);
    let gain = match (profile, of("unguided"), of("text")) {
        ("text", ..) => 1.0,
        (_, Some(unguided), Some(text)) => (worth.satisfied.value - unguided) / (text - unguided),
        _ => 0.0,
    };
    let made = || fits.iter().filter(|fit| fit.person.is_some());
    let count = made().count().max(1) as f64;
    Row {
        profile: profile.to_owned(),
        pairs,
        satisfied: worth.satisfied,
        well_formed: worth.well_formed,
        gain,
        seconds: median(made().map(|fit| fit.seconds)).unwrap_or(0.0),
        accuracy: made().map(|fit| fit.accuracy).sum::<f64>() / count,
        refused: fits.iter().filter(|fit| fit.person.is_none()).count(),
    }
}

/// Its name in tables.
fn name(method: Method) -> &'static str {
    match method {
        Method::Weights => "weights",
        Method::Latent => "latent",
    }
}

fn wire(reference: Reference) -> attune_proto::reward::v1::Reference {
    use attune_proto::reward::v1::Reference as Wire;
    match reference {
        Reference::Model => Wire::Model,
        Reference::Generator => Wire::Generator,
        Reference::None => Wire::None,
    }
}
