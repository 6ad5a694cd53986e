//! The embedded pair, as it ships, through the real services: does guidance pull where it is asked to?
//!
//! The judge is the demo world's own: a program that decides exactly which traits an answer has.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that fails should say where

use std::{path::PathBuf, process::Command};

use attune_proto::{
    generator::v1::{GenerateRequest, GuidanceTerm},
    reward::v1::{Context, Guidance, Reference},
};
use attune_tests::{Generated, Pair, Process, binary, say, workspace_root};
use attune_train::{
    measure::HeldOut,
    world::{Prompt, Trait, judge},
};
use tokio::task::JoinSet;

const STRENGTH: f32 = 1.0;

fn models() -> PathBuf {
    workspace_root().join("models/demo")
}

fn ask(question: &str, preferences: &[(&str, f32)]) -> GenerateRequest {
    let term = |&(text, strength): &(&str, f32)| GuidanceTerm {
        guidance: Some(Box::new(Guidance { text: Some(text.to_owned()), ..Guidance::default() })),
        strength: Some(strength),
        clip: None,
    };
    GenerateRequest { guidances: preferences.iter().map(term).collect(), ..say(question, 160) }
}

/// The shares of answers that have `wanted`, and that are well-formed, guided by these traits, each as one
/// guidance with its strength.
async fn shares(pair: &Pair, held_out: &HeldOut, wanted: Trait, by: &[(Trait, f32)]) -> (f64, f64) {
    let client = pair.client().await.unwrap();
    let mut running = JoinSet::new();
    for (i, question) in held_out.prompts.iter().enumerate() {
        let words = |&(one, strength): &(Trait, f32)| Some((held_out.preference(one, i)?, strength));
        let preferences: Vec<_> = by.iter().filter_map(words).collect();
        let request = ask(&question.prompt, &preferences);
        let (mut client, question) = (client.clone(), question.prompt.clone());
        running.spawn(async move { (question, Generated::of(&mut client, request).await.unwrap().text) });
    }
    let (mut satisfied, mut well_formed, mut all) = (0.0, 0.0, 0.0);
    while let Some(answered) = running.join_next().await {
        let (question, answer) = answered.unwrap();
        let judgement = judge(&Prompt::parse(&question).unwrap(), answer.trim());
        satisfied += f64::from(u8::from(judgement.traits.has(wanted)));
        well_formed += f64::from(u8::from(judgement.form.is_well_formed()));
        all += 1.0;
    }
    (satisfied / all, well_formed / all)
}

fn held_out() -> HeldOut {
    let held_out = std::fs::read_to_string(models().join("prompts.json")).unwrap();
    serde_json::from_str(&held_out).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn several_preferences_act_at_once_and_negative_ones_steer_away() {
    let held_out = held_out();
    let pair = Pair::start(&models().join("base"), &models().join("persrm")).await.unwrap();
    let (towards, away) = (Trait::Formal, Trait::Plain);
    let both = [(towards, STRENGTH), (away, -STRENGTH)];
    for (wanted, least, most) in [(towards, 0.2, 1.0), (away, -1.0, -0.15)] {
        let (before, _) = shares(&pair, &held_out, wanted, &[]).await;
        let (after, form) = shares(&pair, &held_out, wanted, &both).await;
        let gain = after - before;
        assert!((least..=most).contains(&gain), "{}: {before} to {after}", wanted.name());
        assert!(form >= 0.9, "well-formed in {form}");
    }
    pair.stop().await.unwrap();
}

/// The preference acts through `w_p` alone, read off its words by the shipped head: the PersRM's prompt does
/// not have it.
#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_head_pulls_where_the_prompt_says_nothing() {
    let held_out = held_out();
    let pair = Pair::start(&models().join("base"), &models().join("persrm")).await.unwrap();
    let client = pair.client().await.unwrap();
    let wanted = Trait::Formal;
    let mut satisfied = [0, 0];
    for (i, question) in held_out.prompts.iter().take(60).enumerate() {
        let words = held_out.preference(wanted, i).unwrap();
        for (guided, satisfied) in satisfied.iter_mut().enumerate() {
            let mut request = ask(&question.prompt, &[(words, STRENGTH)][..guided]);
            for term in &mut request.guidances {
                let guidance = term.guidance.as_mut().unwrap();
                guidance.context = Context::AsIs.into();
                guidance.reference = Reference::Generator.into();
            }
            let answer = Generated::of(&mut client.clone(), request).await.unwrap().text;
            let judgement = judge(&Prompt::parse(&question.prompt).unwrap(), answer.trim());
            *satisfied += u32::from(judgement.traits.has(wanted));
        }
    }
    let [before, after] = satisfied;
    assert!(after >= before + 10, "{before} of 60 without, {after} with it");
    pair.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn guidance_pulls_in_the_asked_direction() {
    let held_out = held_out();
    assert!(held_out.prompts.len() >= 100);
    let pair = Pair::start(&models().join("base"), &models().join("persrm")).await.unwrap();
    for wanted in Trait::ALL {
        let (before, form_before) = shares(&pair, &held_out, wanted, &[]).await;
        let (after, form_after) = shares(&pair, &held_out, wanted, &[(wanted, STRENGTH)]).await;
        println!(
            "{:<10} {:>4.0} % -> {:>4.0} %   well-formed {:>4.0} % -> {:>4.0} %",
            wanted.name(),
            100.0 * before,
            100.0 * after,
            100.0 * form_before,
            100.0 * form_after
        );
        assert!(form_before >= 0.9, "{}: the base is well-formed in {form_before}", wanted.name());
        assert!(
            form_after >= form_before - 0.05,
            "{}: guided answers are well-formed in {form_after}",
            wanted.name()
        );
        assert!(after >= before + 0.2, "{}: {before} without guidance, {after} with it", wanted.name());
    }
    pair.stop().await.unwrap();
}

#[test]
fn the_comparison_of_the_demo_shows_every_column() {
    let path = |name: &str| models().join(name).to_string_lossy().into_owned();
    let worker = Process::start("attune-reward", ["--model", &path("persrm"), "--threads", "1"]).unwrap();
    let args = ["--model", &path("base"), "--threads", "1", "--reward", &worker.endpoint];
    let generator = Process::start("attune-generator", args).unwrap();
    let output = Command::new(binary("attune").unwrap())
        .args(["generate", "--endpoint", &generator.endpoint, "--compare", "--strength", "2"])
        .args(["--prefer", "please keep it brief", "--prefer", "be formal", "How do I bake bread?"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let shown = String::from_utf8(output.stdout).unwrap();
    for column in ["unguided", "please keep it brief", "be formal", "changed"] {
        assert!(shown.contains(column), "{shown}");
    }
    assert!(!shown.contains('\u{1b}'), "no colour where nobody looks");
}
