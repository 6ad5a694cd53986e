//! What the worker answers, against an independent computation in double precision.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use attune_engine::{LoadOptions, Message, Output, PersRm, SequenceRows, Side, kv::blocks_for};
use attune_kernels::Threads;
use attune_proto::reward::v1::{
    ChatMessage, ChatMessages, Context, Guidance, Normalization, Prompt, Reference, ResolvedGuidance, prompt,
    response_frame::Frame,
};
use common::*;
use tempfile::TempDir;

fn model(folder: &TempDir) -> PersRm {
    let options = LoadOptions { format: None, context: None, threads: Threads::new(1).unwrap() };
    PersRm::load(folder.path(), "taste", &options).unwrap()
}

/// The features behind all of `tokens`, read in one piece.
fn features(model: &PersRm, side: Side, tokens: &[u32]) -> Vec<f32> {
    let blocks: Vec<u32> = (0..blocks_for(tokens.len()) as u32).collect();
    let cache = model.cache(blocks.len()).unwrap();
    let rows = SequenceRows { tokens, start: 0, blocks: &blocks, output: Output::Last };
    model.features(side, &[rows], &cache).unwrap().remove(0)
}

/// `log softmax` of `E[a] . (w * phi)` over the candidates or the vocabulary, for one side.
fn values(model: &PersRm, side: Side, tokens: &[u32], w: &[f64], ids: &[u32], vocabulary: bool) -> Vec<f64> {
    let phi = features(model, side, tokens);
    let head = model.head(side);
    let mut row = vec![0.0; head.d()];
    let mut dot = |id: u32| -> f64 {
        head.row_into(id, &mut row);
        row.iter().zip(&phi).zip(w).map(|((&e, &f), w)| f64::from(e) * f64::from(f) * w).sum()
    };
    let dots: Vec<f64> = ids.iter().map(|&id| dot(id)).collect();
    let all: Vec<f64> = if vocabulary { (0..head.vocab() as u32).map(dot).collect() } else { dots.clone() };
    let max = all.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let lse = max + all.iter().map(|x| (x - max).exp()).sum::<f64>().ln();
    dots.iter().map(|x| x - lse).collect()
}

fn assert_close(got: &[f32], want: &[f64], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (g, w) in got.iter().zip(want) {
        assert!((f64::from(*g) - w).abs() < 2e-4, "{what}: {got:?} for {want:?}");
    }
}

const PROMPT: [u32; 7] = [0, 17, 300, 45, 45, 511, 8];
const CANDIDATES: [u32; 10] = [3, 99, 511, 0, 42, 43, 44, 270, 100, 7];

#[tokio::test]
async fn rewards_are_those_of_the_formula() {
    let w: Vec<f32> = (0..D).map(|i| 0.25 + (i % 7) as f32 * 0.3).collect();
    for (value_head, reference) in [(false, false), (true, false), (false, true), (true, true)] {
        let folder = write(Checkpoint { value_head, reference, weight_head: false });
        let model = model(&folder);
        let running = start(config(&folder)).await;
        let mut call = running.call().await;
        let mut session = 0;
        for weighted in [false, true] {
            for normalization in [Normalization::Candidates, Normalization::Vocabulary] {
                for asked in [Reference::Unspecified, Reference::Model, Reference::Generator, Reference::None]
                {
                    if asked == Reference::Model && !reference {
                        continue;
                    }
                    session += 1;
                    let mut guidance = if weighted { weights(w.clone()) } else { Guidance::default() };
                    guidance.reference = asked.into();
                    guidance.normalization = normalization.into();
                    let resolved = call.open(session, ids(&PROMPT), guidance).await;
                    let default = if reference { Reference::Model } else { Reference::Generator };
                    let want = if asked == Reference::Unspecified { default } else { asked };
                    assert_eq!(resolved.reference(), want);
                    let mut tokens = PROMPT.to_vec();
                    let ones = vec![1.0; D];
                    let given: Vec<f64> = w.iter().map(|&x| f64::from(x)).collect();
                    let weights = if weighted { &given } else { &ones };
                    for step in 0..3 {
                        let got = call.ask(session, step, &CANDIDATES).await;
                        let vocabulary = normalization == Normalization::Vocabulary;
                        let mut wanted =
                            values(&model, Side::Policy, &tokens, weights, &CANDIDATES, vocabulary);
                        if want == Reference::Model {
                            let theirs =
                                values(&model, Side::Reference, &tokens, weights, &CANDIDATES, vocabulary);
                            wanted.iter_mut().zip(theirs).for_each(|(r, t)| *r -= t);
                        }
                        assert_close(&got, &wanted, &format!("{resolved:?} step {step}"));
                        let token = CANDIDATES[step as usize];
                        call.send([advance(session, step, token)]).await;
                        tokens.push(token);
                    }
                    call.send([close(session)]).await;
                }
            }
        }
    }
}

#[tokio::test]
async fn a_reopened_session_goes_on_with_the_same_bits_in_any_company_and_chunks() {
    let folder = write(Checkpoint { reference: true, ..Default::default() });
    let long: Vec<u32> = (0..100).map(|i| (i * 31) % 512).collect();
    let guidance = || weights((0..D).map(|i| (i as f32).sin()).collect());

    let running = start(config(&folder)).await;
    let mut call = running.call().await;
    let resolved = call.open(1, ids(&long), guidance()).await;
    let mut alone = vec![];
    let mut tokens = vec![];
    for step in 0..20 {
        alone.push(call.ask(1, step, &CANDIDATES).await);
        let token = (step * 97) % 512;
        tokens.push(token);
        call.send([advance(1, step, token)]).await;
    }

    let mut other = config(&folder);
    other.engine.prefill_chunk = Some(7);
    other.engine.threads = 2;
    let running = start(other).await;
    let mut call = running.call().await;
    for company in 10..14u64 {
        let prompt: Vec<u32> = (0..company as u32 * 3).map(|i| (i * 13 + 5) % 512).collect();
        call.send([open(company, ids(&prompt), Guidance::default())]).await;
    }
    for step in (0..alone.len()).step_by(3) {
        let session = 100 + step as u64;
        call.send([
            reopen(session, &tokens[..step], resolved.clone()),
            candidates(session, step as u32, &CANDIDATES),
        ])
        .await;
    }
    let mut seen = 0;
    while seen < alone.len().div_ceil(3) {
        match call.next().await {
            Frame::Rewards(r) => {
                assert_eq!(r.values, alone[r.step as usize], "step {}", r.step);
                seen += 1;
            }
            Frame::Opened(o) if o.session_id >= 100 => {
                assert_eq!(o.guidance.unwrap(), resolved);
            }
            Frame::Failed(f) => panic!("{f:?}"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_preference_is_put_into_the_prompt_by_the_models_template() {
    let folder = write(Checkpoint::default());
    let model = model(&folder);
    let running = start(config(&folder)).await;
    let mut call = running.call().await;
    let messages = [Message::new("system", "Be kind."), Message::new("user", "How are you?")];
    let chat = || {
        let messages = messages
            .iter()
            .map(|m| ChatMessage { role: m.role.clone(), content: m.content.clone() })
            .collect();
        Prompt { kind: Some(prompt::Kind::Messages(ChatMessages { messages })) }
    };
    let encode = |messages: &[Message]| {
        let text = model.assets.chat.render(messages, true).unwrap();
        model.assets.tokenizer.encode_rendered(&text).unwrap()
    };
    let prefer = |context: Context| Guidance {
        text: Some("be brief".to_owned()),
        context: context.into(),
        ..Default::default()
    };
    let resolved = call.open(1, chat(), prefer(Context::Unspecified)).await;
    assert_eq!(resolved.context(), Context::Template);
    let with = model.template.apply(&messages, "be brief").unwrap();
    assert_eq!(resolved.prompt_token_ids, encode(&with));

    let resolved = call.open(2, chat(), prefer(Context::AsIs)).await;
    assert_eq!(resolved.prompt_token_ids, encode(&messages));
    assert_ne!(encode(&with), encode(&messages));

    let resolved = call.open(3, text("Tell me"), prefer(Context::Template)).await;
    let want = model.template.apply_text("Tell me", "be brief").unwrap();
    assert_eq!(resolved.prompt_token_ids, model.assets.tokenizer.encode_raw(&want).unwrap());

    let resolved = call.open(4, ids(&PROMPT), prefer(Context::AsIs)).await;
    assert_eq!((resolved.prompt_token_ids.as_slice(), resolved.context()), (&PROMPT[..], Context::AsIs));
    let resolved = call.open(5, ids(&PROMPT), Guidance::default()).await;
    assert_eq!(resolved.context(), Context::AsIs);
}

#[tokio::test]
async fn the_weight_head_reads_the_weights_off_the_preference() {
    let folder = write(Checkpoint { weight_head: true, ..Default::default() });
    let model = model(&folder);
    let running = start(config(&folder)).await;
    let mut call = running.call().await;
    let prefer = |text: &str| Guidance { text: Some(text.to_owned()), ..Default::default() };
    let resolved = call.open(1, text("Hello"), prefer("short words")).await;
    let ids = model.assets.tokenizer.encode_raw("short words").unwrap();
    let want = model.preference_weights(&ids).unwrap().unwrap();
    assert_eq!(resolved.weights.as_ref().unwrap().values, want);
    let w: Vec<f64> = want.iter().map(|&w| f64::from(w)).collect();
    let wanted = values(&model, Side::Policy, &resolved.prompt_token_ids, &w, &CANDIDATES, false);
    assert_close(&call.ask(1, 0, &CANDIDATES).await, &wanted, "head");
    // Vectors that are given go before the head; a blank preference is none.
    let given = Guidance { text: Some("x".to_owned()), ..weights(vec![2.0; D]) };
    assert_eq!(call.open(2, text("Hello"), given).await.weights.unwrap().values, vec![2.0; D]);
    let blank = call.open(3, text("Hello"), prefer(" ")).await;
    assert_eq!((blank.weights, blank.text), (None, None));
}

#[tokio::test]
async fn a_head_for_bare_prompts_reads_only_what_does_not_stand_in_them() {
    let folder = write(Checkpoint { weight_head: true, ..Default::default() });
    std::fs::write(folder.path().join("attune.json"), r#"{"weights": "head-as-is"}"#).unwrap();
    let model = model(&folder);
    let running = start(config(&folder)).await;
    let mut call = running.call().await;
    let prefer = |context: Context| Guidance {
        text: Some("short words".to_owned()),
        context: context.into(),
        ..Default::default()
    };
    let inside = call.open(1, text("Hello"), prefer(Context::Unspecified)).await;
    assert_eq!((inside.context(), &inside.weights), (Context::Template, &None));
    let bare = call.open(2, text("Hello"), prefer(Context::AsIs)).await;
    let ids_of = |text: &str| model.assets.tokenizer.encode_raw(text).unwrap();
    assert_eq!(bare.prompt_token_ids, ids_of("Hello"));
    assert_ne!(bare.prompt_token_ids, inside.prompt_token_ids);
    let want = model.preference_weights(&ids_of("short words")).unwrap();
    let values = |resolved: ResolvedGuidance| resolved.weights.map(|weights| weights.values);
    assert_eq!(values(bare), want);
    // Nothing can be put into ids, so that the weights are all there is.
    let ids = call.open(3, ids(&PROMPT), prefer(Context::Unspecified)).await;
    assert_eq!(ids.context(), Context::AsIs);
    assert_eq!(values(ids), want);
}

#[tokio::test]
async fn one_iterations_answers_are_one_message() {
    let folder = write(Checkpoint::default());
    let running = start(config(&folder)).await;
    let mut call = running.call().await;
    for session in 1..=8 {
        call.open(session, ids(&PROMPT), Guidance::default()).await;
        call.ask(session, 0, &CANDIDATES).await;
    }
    call.send((1..=8).map(|s| advance(s, 0, 5))).await;
    // The states are ready some time later; the questions come in one message either way.
    call.send((1..=8).map(|s| candidates(s, 1, &CANDIDATES))).await;
    let message = call.message().await.unwrap().unwrap();
    let rewards = message.frames.iter().filter(|f| matches!(f.frame, Some(Frame::Rewards(_)))).count();
    assert_eq!(rewards, 8);
}

#[tokio::test]
async fn candidates_that_the_generator_no_longer_waits_for_are_dropped() {
    let folder = write(Checkpoint::default());
    let running = start(config(&folder)).await;
    let mut call = running.call().await;
    // All at once: the first candidates are overtaken before the prompt is read.
    call.send([
        open(1, ids(&PROMPT), Guidance::default()),
        candidates(1, 0, &[1]),
        advance(1, 0, 9),
        candidates(1, 1, &CANDIDATES),
    ])
    .await;
    call.opened().await;
    assert_eq!(call.rewards().await.step, 1);
}
