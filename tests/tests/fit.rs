//! Fits on the embedded PersRM, in this process: what they learn, what they refuse, and that what the trainer
//! wrote is what the engine reads.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that fails should say where

use std::{collections::HashMap, ops::ControlFlow, path::PathBuf};

use attune_engine::{LoadOptions, PersRm, PersRmSettings, PriorShape, WeightPrior};
use attune_kernels::Threads;
use attune_profiles::{
    Reference, Vector,
    fit::{Answer, FitError, Fitted, Item, Job, Method, Progress, Refusal, Said, fit, margins},
};
use attune_train::{
    export,
    latent::{self, LatentOptions},
    prior::{self, PriorOptions},
    tokenizer::{END, encode, encode_prompt},
    world::{Pair, Trait, Traits, pairs},
};
use candle_core::Device;

fn demo(part: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/demo").join(part)
}

fn load(folder: &std::path::Path) -> PersRm {
    let options = LoadOptions { format: None, context: None, threads: Threads::new(1).unwrap() };
    PersRm::load(folder, "persrm", &options).unwrap()
}

fn said(one: Trait, count: usize, seed: u64) -> Vec<Pair> {
    let wanted: Traits = [one].into_iter().collect();
    pairs::pairs_of(wanted, pairs::held_out_halves().0, count, seed).collect()
}

fn item(pair: &Pair) -> Item {
    let (_, words) = export::read_checkpoint(&demo("base")).unwrap();
    let answer = |text: &str| {
        let mut ids = encode(&words, text).unwrap();
        ids.push(END);
        Answer { ids, base_log_prob: Some(-40.0) }
    };
    let prompt = encode_prompt(&words, &pair.prompt, None).unwrap();
    Item { prompt, said: Said::Pair { chosen: answer(&pair.chosen), rejected: answer(&pair.rejected) } }
}

fn items(one: Trait, count: usize) -> Vec<Item> {
    said(one, count, 3).iter().map(item).collect()
}

fn job(items: Vec<Item>, reference: Reference) -> Job {
    Job { items, reference, method: Method::Weights, start: None, spread: None }
}

fn run(persrm: &PersRm, job: &Job) -> Result<Fitted, FitError> {
    fit(persrm, &Threads::new(1).unwrap(), job, |_| ControlFlow::Continue(()))
}

fn ones(persrm: &PersRm) -> Vec<f32> {
    vec![1.0; persrm.assets.config.hidden]
}

#[test]
fn a_fit_learns_what_a_person_likes_and_says_how_well() {
    let persrm = load(&demo("persrm"));
    for (reference, count) in [(Reference::Model, 24), (Reference::Generator, 12), (Reference::None, 12)] {
        let mut told: Vec<Progress> = Vec::new();
        let job = job(items(Trait::Expert, count), reference);
        let fitted = fit(&persrm, &Threads::new(1).unwrap(), &job, |step| {
            told.push(step);
            ControlFlow::Continue(())
        })
        .unwrap();
        let measured = fitted.measured;
        assert_eq!((measured.feedback, measured.held_out), (count, count));
        assert!(measured.loss_after < measured.loss_before, "{reference:?}: {measured:?}");
        assert!(measured.accuracy_after > 0.5, "{reference:?}: {measured:?}");
        let Vector::Weights(weights) = &fitted.person else { panic!("{:?}", fitted.person) };
        assert!(weights.iter().all(|w| w.is_finite()) && *weights != ones(&persrm));
        assert!(told.windows(2).all(|w| w[0].done < w[1].done));
        assert_eq!(told.last().map(|last| last.done), Some(fitted.steps));
        // The report's exact loss is that of the exact margins.
        let exact =
            margins(&persrm, &Threads::new(1).unwrap(), &job.items, reference, &fitted.person).unwrap();
        let loss = exact.iter().map(|m| (1.0 + (-persrm.beta * m).exp()).ln()).sum::<f64>() / count as f64;
        assert!((loss - measured.loss_after).abs() < 1e-6, "{loss} {measured:?}");
    }
}

#[test]
fn the_models_own_margins_move_with_the_weights_as_the_fit_believes() {
    let persrm = load(&demo("persrm"));
    let threads = Threads::new(1).unwrap();
    let items = items(Trait::Expert, 12);
    let fitted = run(&persrm, &job(items.clone(), Reference::Model)).unwrap();
    let Vector::Weights(weights) = &fitted.person else { panic!("weights were asked for") };
    let at = |share: f32| -> Vec<f64> {
        let moved = weights.iter().map(|w| 1.0 + share * (w - 1.0)).collect();
        margins(&persrm, &threads, &items, Reference::Model, &Vector::Weights(moved)).unwrap()
    };
    let (back, start, ahead) = (at(-0.02), at(0.0), at(0.02));
    for ((back, start), ahead) in back.iter().zip(&start).zip(&ahead) {
        // As straight as a line around ones.
        let bend = (ahead + back - 2.0 * start).abs();
        assert!(bend < 0.2 * (ahead - back).abs() + 1e-3, "{back} {start} {ahead}");
    }
    let moved: f64 = ahead.iter().zip(&start).map(|(a, s)| a - s).sum();
    assert!(moved > 0.0, "{start:?} {ahead:?}");
}

#[test]
fn more_feedback_goes_on_from_what_is_there() {
    let persrm = load(&demo("persrm"));
    let first = job(items(Trait::Expert, 12), Reference::Generator);
    let Vector::Weights(start) = run(&persrm, &first).unwrap().person else { panic!("weights") };
    // The same once more: most of it is known already.
    let going_on = Job { start: Some(start.clone()), ..first };
    let again = run(&persrm, &going_on).unwrap();
    let Vector::Weights(both) = again.person else { panic!("weights") };
    let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
    let (moved, first) = (distance(&both, &start), distance(&start, &ones(&persrm)));
    assert!(0.0 < moved && moved < 0.5 * first, "{moved} {first}");
}

#[test]
fn what_cannot_be_fitted_is_refused_with_the_number_said() {
    let persrm = load(&demo("persrm"));
    let refusal = |job: &Job| match run(&persrm, job) {
        Err(FitError::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    };
    let few = job(items(Trait::Brief, 4), Reference::None);
    assert_eq!(refusal(&few), Refusal::TooFew { got: 4 });
    // A person who likes the very opposite half of the time.
    let mut torn = items(Trait::Casual, 12);
    for item in torn.iter_mut().skip(1).step_by(2) {
        if let Said::Pair { chosen, rejected } = &mut item.said {
            std::mem::swap(chosen, rejected);
        }
    }
    let torn = refusal(&job(torn, Reference::None));
    assert!(matches!(torn, Refusal::Chance { held_out: 12, .. }), "{torn:?}");
    assert!(torn.to_string().contains("12"), "{torn}");

    let mut without = job(items(Trait::Brief, 5), Reference::Generator);
    if let Said::Pair { chosen, .. } = &mut without.items[3].said {
        chosen.base_log_prob = None;
    }
    assert!(matches!(run(&persrm, &without), Err(FitError::Unfit(_))));
    let stopped =
        fit(&persrm, &Threads::new(1).unwrap(), &job(items(Trait::Brief, 5), Reference::None), |step| {
            if step.done < 4 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
    assert!(matches!(stopped, Err(FitError::Cancelled)));
}

#[test]
fn the_adapter_that_the_trainer_writes_is_the_one_that_the_engine_reads() {
    let folder = tempfile::tempdir().unwrap();
    copy(&demo("persrm"), folder.path());
    let (model, words) = export::read_checkpoint(folder.path()).unwrap();
    let options = LatentOptions { rate: 0.05, steps: 6, ..LatentOptions::tiny() };
    let (latents, _) = latent::train(&model, &words, &options, 1, true).unwrap();
    latents.write(folder.path()).unwrap();
    let persrm = load(folder.path());
    assert!(persrm.latent().is_some());
    assert_ne!(persrm.assets.revision, load(&demo("persrm")).assets.revision);

    let pairs = said(Trait::Brief, 6, 3);
    let items: Vec<Item> = pairs.iter().map(item).collect();
    let job = Job { method: Method::Latent, ..job(items.clone(), Reference::None) };
    let z: Vec<f32> = match run(&persrm, &job) {
        Ok(Fitted { person: Vector::Latent(z), .. }) => z,
        // An adapter that has learned so little may be no better than chance: any latent will do here.
        Err(FitError::Refused(_)) => (0..options.size).map(|i| (i as f32).sin()).collect(),
        other => panic!("{other:?}"),
    };
    let threads = Threads::new(1).unwrap();
    let engine = margins(&persrm, &threads, &items, Reference::None, &Vector::Latent(z.clone())).unwrap();
    let trainer = latents.margins(&model, &words, &pairs, &z).unwrap();
    for (engine, trainer) in engine.iter().zip(trainer) {
        // The file holds bf16.
        assert!((engine - trainer).abs() < 0.05 * trainer.abs() + 0.3, "{engine} {trainer}");
    }
}

#[test]
fn a_fit_takes_the_directions_that_the_prior_knows() {
    let (items, reference) = (items(Trait::Expert, 12), Reference::Generator);
    let weights = |directions: Option<Vec<f32>>| -> Vec<f64> {
        let folder = tempfile::tempdir().unwrap();
        copy(&demo("persrm"), folder.path());
        let mut settings = PersRmSettings::load(folder.path()).unwrap();
        settings.prior = directions.as_ref().map(|all| PriorShape { rank: all.len() / D });
        let told = serde_json::to_string(&settings).unwrap();
        std::fs::write(folder.path().join(PersRmSettings::FILE), told).unwrap();
        if let Some(all) = directions {
            let tensor =
                candle_core::Tensor::from_vec(all.clone(), (all.len() / D, D), &Device::Cpu).unwrap();
            let tensors = HashMap::from([(WeightPrior::TENSOR, tensor)]);
            candle_core::safetensors::save(&tensors, folder.path().join(WeightPrior::FILE)).unwrap();
        }
        let persrm = load(folder.path());
        // What is served does not depend on it.
        assert_eq!(persrm.assets.revision, load(&demo("persrm")).assets.revision);
        match run(&persrm, &job(items.clone(), reference)).unwrap().person {
            Vector::Weights(weights) => weights.iter().map(|w| f64::from(*w) - 1.0).collect(),
            Vector::Latent(_) => panic!("weights were asked for"),
        }
    };
    // All directions alike are as good as none known, in whatever units they are.
    let all: Vec<f32> = (0..D * D).map(|i| if i % (D + 1) == 0 { 0.25 } else { 0.0 }).collect();
    let free = weights(None);
    for (free, known) in free.iter().zip(weights(Some(all))) {
        assert!((free - known).abs() < 1e-5 * (1.0 + free.abs()), "{free} {known}");
    }
    // Of one direction, a fit takes that one; any other than a useful one would be refused.
    let one: Vec<f32> = free.iter().map(|step| *step as f32).collect();
    let step = weights(Some(one.clone()));
    let share = step[0] / f64::from(one[0]);
    assert!(share > 0.0, "{share}");
    for (step, along) in step.iter().zip(one) {
        assert!((step - share * f64::from(along)).abs() < 1e-5 * (1.0 + share), "{step} {along}");
    }
}

#[test]
fn the_prior_that_the_trainer_writes_is_the_one_that_the_engine_reads() {
    let folder = tempfile::tempdir().unwrap();
    copy(&demo("persrm"), folder.path());
    let (model, words) = export::read_checkpoint(folder.path()).unwrap();
    let (base, _) = export::read_checkpoint(&demo("base")).unwrap();
    let (learned, _) = prior::train(&model, &base, &words, &PriorOptions::tiny(), 1, true).unwrap();
    learned.write(folder.path()).unwrap();
    let persrm = load(folder.path());
    let (read, told) = (persrm.prior().unwrap(), learned.prior().unwrap());
    assert_eq!(read.rank(), told.rank());
    let y: Vec<f64> = (0..told.rank()).map(|i| (i as f64).cos()).collect();
    for (read, told) in read.step(&y).iter().zip(told.step(&y)) {
        // The file holds bf16.
        assert!((read - told).abs() < 0.01 * told.abs() + 0.02, "{read} {told}");
    }
}

/// The width of the embedded models.
const D: usize = 128;

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
