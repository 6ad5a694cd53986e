//! `Fit` and latents over real sockets, on the embedded pair: what is fitted is kept, and guides.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that fails should say where

use std::{
    path::Path,
    time::{Duration, Instant},
};

use attune_generator::GeneratorConfig;
use attune_proto::{
    generator::v1::{GenerateRequest, GuidanceTerm},
    profile::v1::{
        Feedback, FitMethod, FitRequest, FitResponse, GetRequest, ListRequest, Pair as Two, Profile,
        feedback::Kind, profile_service_client::ProfileServiceClient,
    },
    reward::v1::{
        ChatMessage, ChatMessages, DescribeRequest, Guidance, Latent, Prompt, Reference, prompt,
        reward_service_client::RewardServiceClient,
    },
};
use attune_service::secret::Secret;
use attune_tests::{Generated, Pair, say, workspace_root};
use attune_train::{
    export,
    latent::{self, LatentOptions},
    world::{self, Trait, Traits, judge, pairs},
};
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt as _;

const PATIENCE: Duration = Duration::from_secs(20);

type Profiles = ProfileServiceClient<Channel>;

struct People {
    pair: Pair,
    profiles: Profiles,
    _folder: tempfile::TempDir,
}

impl People {
    /// The embedded base with this PersRM, and a store of its own.
    async fn start(persrm: &Path) -> Self {
        Self::behind(persrm, |_| ()).await
    }

    /// The same behind a generator that is set up so.
    async fn behind(persrm: &Path, generator: impl FnOnce(&mut GeneratorConfig)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("profiles.db").display());
        let base = workspace_root().join("models/demo/base");
        let keep = |config: &mut attune_reward::RewardConfig| config.profiles.url = Some(Secret::new(url));
        let pair = Pair::start_with(&base, persrm, generator, keep).await.unwrap();
        let mut profiles = ProfileServiceClient::connect(pair.endpoint.clone()).await.unwrap();
        let connected = async { while profiles.list(ListRequest::default()).await.is_err() {} };
        tokio::time::timeout(PATIENCE, connected).await.expect("a worker is connected");
        Self { pair, profiles, _folder: folder }
    }

    async fn demo() -> Self {
        Self::start(&workspace_root().join("models/demo/persrm")).await
    }

    /// The whole stream of a fit.
    async fn fit(&mut self, request: FitRequest) -> Result<Vec<FitResponse>, Status> {
        let mut stream = self.profiles.fit(request).await?.into_inner();
        let mut all = Vec::new();
        while let Some(step) = stream.message().await? {
            all.push(step);
        }
        Ok(all)
    }

    async fn fitted(&mut self, request: FitRequest) -> Profile {
        self.fit(request).await.unwrap().pop().and_then(|last| last.profile).expect("a profile at the end")
    }

    async fn get(&mut self, name: &str) -> Result<Profile, Status> {
        let asked = GetRequest { name: name.into(), with_feedback: false };
        Ok(self.profiles.get(asked).await?.into_inner().profile.unwrap())
    }

    /// Greedy answers to some questions, guided so.
    async fn answers(&self, questions: &[world::Prompt], guidance: Option<Guidance>) -> Vec<String> {
        let mut client = self.pair.client().await.unwrap();
        let mut all = Vec::new();
        for question in questions {
            let term = guidance.clone().map(|guidance| GuidanceTerm {
                guidance: Some(Box::new(guidance)),
                strength: Some(1.0),
                clip: None,
            });
            let request =
                GenerateRequest { guidances: term.into_iter().collect(), ..say(&question.text(), 160) };
            all.push(Generated::of(&mut client, request).await.unwrap().text);
        }
        all
    }
}

fn said(one: Trait, count: usize, seed: u64) -> Vec<Feedback> {
    let wanted: Traits = [one].into_iter().collect();
    pairs::pairs_of(wanted, pairs::held_out_halves().0, count, seed)
        .map(|pair| {
            let messages = vec![ChatMessage { role: "user".into(), content: pair.prompt }];
            Feedback {
                prompt: Some(Prompt { kind: Some(prompt::Kind::Messages(ChatMessages { messages })) }),
                kind: Some(Kind::Pair(Two {
                    chosen: pair.chosen,
                    rejected: pair.rejected,
                    ..Two::default()
                })),
            }
        })
        .collect()
}

fn request(name: &str, feedback: Vec<Feedback>) -> FitRequest {
    FitRequest {
        name: name.into(),
        feedback,
        reference: Reference::Generator.into(),
        ..FitRequest::default()
    }
}

fn field(status: &Status) -> String {
    let details = status.get_details_bad_request();
    details.and_then(|d| Some(d.field_violations.first()?.field.clone())).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fitted_profile_is_kept_and_guides() {
    let mut people = People::demo().await;
    let steps = people.fit(request("me", said(Trait::Expert, 12, 3))).await.unwrap();
    assert!(steps.len() > 1 && steps.windows(2).all(|w| w[0].done <= w[1].done), "{steps:?}");
    let (last, before) = steps.split_last().unwrap();
    assert!(before.iter().all(|step| step.profile.is_none()) && last.done == last.total);
    let profile = last.profile.clone().unwrap();
    let fit = profile.fit.unwrap();
    assert_eq!((profile.revision, profile.reference(), profile.kept_feedback), (1, Reference::Generator, 0));
    assert_eq!((fit.feedback, fit.held_out, fit.method()), (12, 12, FitMethod::Weights));
    assert!(fit.accuracy_after > 0.5 && fit.loss_after < fit.loss_before, "{fit:?}");
    assert_eq!(people.get("me").await.unwrap(), last.profile.clone().unwrap());

    let questions = pairs::prompts_about(&pairs::held_out_halves().1, 8, 4);
    let expert = |answers: Vec<String>| {
        let judged = questions.iter().zip(answers);
        judged.filter(|(q, a)| judge(q, a.trim()).traits.has(Trait::Expert)).count()
    };
    let plain = expert(people.answers(&questions, None).await);
    let by = Guidance { profile: Some("me".into()), ..Guidance::default() };
    let guided = expert(people.answers(&questions, Some(by)).await);
    assert!(guided >= 6 && guided > plain, "{plain} before, {guided} with the profile");
    people.pair.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn feedback_is_kept_with_consent_alone_and_fitted_again() {
    let mut people = People::demo().await;
    let keep = |feedback| FitRequest { keep_feedback: true, ..request("me", feedback) };
    let first = people.fitted(keep(said(Trait::Expert, 8, 3))).await;
    assert_eq!(first.kept_feedback, 8);
    // What comes later is fitted together with what is kept.
    let both = people.fitted(keep(said(Trait::Expert, 3, 9))).await;
    assert_eq!((both.kept_feedback, both.fit.unwrap().feedback, both.revision), (11, 11, 2));
    let again = people.fitted(FitRequest { expected_revision: Some(2), ..keep(Vec::new()) }).await;
    assert_eq!((again.fit.unwrap().feedback, again.weights), (11, both.weights));
    // Without consent, what was kept is deleted, and the fit goes on from the weights.
    let last = people.fitted(request("me", said(Trait::Expert, 6, 11))).await;
    assert_eq!((last.kept_feedback, last.fit.unwrap().feedback), (0, 6));
    let status = people.fit(request("me", Vec::new())).await.unwrap_err();
    assert_eq!((status.code(), field(&status)), (Code::InvalidArgument, "feedback".to_owned()));
    // What was fitted as a latent is one again, unless something else is asked for.
    let her = |method: FitMethod, feedback| FitRequest {
        keep_feedback: true,
        method: method.into(),
        ..request("her", feedback)
    };
    people.fitted(her(FitMethod::Latent, said(Trait::Expert, 8, 3))).await;
    let again = people.fitted(her(FitMethod::Unspecified, Vec::new())).await;
    assert_eq!((again.fit.unwrap().method(), again.latent.is_some()), (FitMethod::Latent, true));
    let weights = people.fitted(her(FitMethod::Weights, Vec::new())).await;
    assert!(weights.weights.is_some() && weights.latent.is_none());
    people.pair.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_fitted_says_why_and_keeps_nothing() {
    let folder = tempfile::tempdir().unwrap();
    copy(&workspace_root().join("models/demo/persrm"), folder.path());
    // Without a latent adapter.
    let settings = folder.path().join("attune.json");
    let mut told: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&settings).unwrap()).unwrap();
    told.as_object_mut().unwrap().remove("latent");
    std::fs::write(&settings, told.to_string()).unwrap();
    let mut people = People::start(folder.path()).await;
    let good = said(Trait::Brief, 6, 3);
    let refused = |request: FitRequest| {
        let mut profiles = people.profiles.clone();
        async move {
            match profiles.fit(request).await {
                Err(status) => status,
                Ok(stream) => {
                    let mut stream = stream.into_inner();
                    loop {
                        match stream.message().await {
                            Err(status) => return status,
                            Ok(Some(_)) => {}
                            Ok(None) => panic!("it was fitted"),
                        }
                    }
                }
            }
        }
    };
    let few = refused(request("me", good[..3].to_vec())).await;
    assert_eq!((few.code(), field(&few)), (Code::InvalidArgument, "feedback".to_owned()));
    assert!(few.message().contains("3 pieces"), "{few:?}");

    let mut blank = good.clone();
    blank[2].prompt = None;
    for reference in [Reference::Generator, Reference::Model] {
        let blank = FitRequest { reference: reference.into(), ..request("me", blank.clone()) };
        let blank = refused(blank).await;
        assert_eq!(blank.code(), Code::InvalidArgument, "{blank:?}");
        assert!(field(&blank).starts_with("feedback[2]"), "{blank:?}");
    }
    let latent = FitRequest { method: FitMethod::Latent.into(), ..request("me", good.clone()) };
    assert_eq!(refused(latent).await.code(), Code::FailedPrecondition);
    for text in ["x".repeat(8193), "a\0b".to_owned()] {
        let text = refused(FitRequest { text: Some(text), ..request("me", good.clone()) }).await;
        assert_eq!((text.code(), field(&text)), (Code::InvalidArgument, "text".to_owned()));
    }
    let long = refused(request("me", vec![good[0].clone(); 513])).await;
    assert!(long.message().contains("513 pieces"), "{long:?}");
    let stale = FitRequest { expected_revision: Some(7), ..request("me", good.clone()) };
    assert_eq!(refused(stale).await.code(), Code::Aborted);
    let other = FitRequest { reward_model: "nobody".into(), ..request("me", good) };
    assert_eq!(refused(other).await.code(), Code::NotFound);
    assert_eq!(people.get("me").await.unwrap_err().code(), Code::NotFound);
    people.pair.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fit_that_nobody_waits_for_ends_and_leaves_room() {
    let mut people = People::demo().await;
    for _ in 0..8 {
        let long =
            FitRequest { reference: Reference::None.into(), ..request("gone", said(Trait::Humour, 60, 3)) };
        let mut stream = people.profiles.fit(long).await.unwrap().into_inner();
        assert!(stream.message().await.unwrap().is_some());
    }
    // More than all places were taken, and given back.
    let fitted = async {
        loop {
            match people.fit(request("me", said(Trait::Expert, 12, 3))).await {
                Ok(steps) => return steps,
                Err(status) => assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}"),
            }
        }
    };
    tokio::time::timeout(6 * PATIENCE, fitted).await.expect("the places come free");
    assert_eq!(people.get("gone").await.unwrap_err().code(), Code::NotFound);
    people.pair.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fit_may_take_longer_than_an_answer() {
    let short = Duration::from_millis(50);
    let persrm = workspace_root().join("models/demo/persrm");
    let limit = |g: &mut GeneratorConfig| g.server.limits.request_seconds = short.as_secs_f64();
    let mut people = People::behind(&persrm, limit).await;
    let begun = Instant::now();
    let long = request("me", said(Trait::Expert, 200, 3));
    let mut steps = people.profiles.fit(long).await.unwrap().into_inner();
    // The base model reads two answers of each pair, and the worker's steps come on top.
    let mut total = 0;
    while total <= 400 {
        total = steps.message().await.unwrap().unwrap().total;
    }
    assert!(begun.elapsed() > 2 * short, "it says something of fits that take long alone");
    drop(steps);
    people.pair.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_latent_is_served_by_the_adapter() {
    let folder = tempfile::tempdir().unwrap();
    copy(&workspace_root().join("models/demo/persrm"), folder.path());
    let (model, words) = export::read_checkpoint(folder.path()).unwrap();
    let options = LatentOptions { rate: 0.05, steps: 6, ..LatentOptions::tiny() };
    let (adapter, _) = latent::train(&model, &words, &options, 1, true).unwrap();
    adapter.write(folder.path()).unwrap();
    let people = People::start(folder.path()).await;
    let mut worker = RewardServiceClient::connect(people.pair.workers[0].clone()).await.unwrap();
    let description = worker.describe(DescribeRequest::default()).await.unwrap().into_inner();
    assert_eq!(description.latent_size as usize, options.size);

    let questions = pairs::prompts_about(&pairs::held_out_halves().1, 3, 4);
    let by = |values: Option<Vec<f32>>| {
        Some(Guidance { latent: values.map(|values| Latent { values }), ..Guidance::default() })
    };
    let nobody = people.answers(&questions, by(None)).await;
    assert_eq!(people.answers(&questions, by(Some(vec![0.0; options.size]))).await, nobody);
    let somebody: Vec<f32> = (0..options.size).map(|i| if i % 2 == 0 { 9.0 } else { -9.0 }).collect();
    assert_ne!(people.answers(&questions, by(Some(somebody))).await, nobody);
    let mut client = people.pair.client().await.unwrap();
    let short = GuidanceTerm { guidance: by(Some(vec![1.0])).map(Box::new), strength: None, clip: None };
    let status =
        Generated::of(&mut client, GenerateRequest { guidances: vec![short], ..say("How?", 4) }).await;
    assert_eq!(status.unwrap_err().code(), Code::InvalidArgument);
    people.pair.stop().await.unwrap();
}

fn copy(from: &Path, to: &Path) {
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
