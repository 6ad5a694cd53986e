//! Which traits of the demo world a profile moves: held-out questions, answered with and without it.

use std::io::Write as _;

use anyhow::{Result, ensure};
use attune_proto::{
    generator::v1::{
        GenerateRequest, GuidanceTerm, Sampling, generator_service_client::GeneratorServiceClient,
    },
    profile::v1::Profile,
    reward::v1::{ChatMessage, ChatMessages, Guidance, Prompt, prompt::Kind},
};
use attune_train::world::{self, Trait, Traits, judge, pairs};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tonic::transport::Channel;

use crate::client::EndpointArgs;

/// Questions; each is answered twice, with the same noise.
const QUESTIONS: usize = 48;
/// Texts at once.
const STREAMS: usize = 16;

/// Asks, judges, and prints a table: of each trait the share of answers that have it.
pub(crate) async fn show(endpoint: &EndpointArgs, profile: &Profile) -> Result<()> {
    let client = endpoint.generator().await?;
    let questions = pairs::held_out_prompts(QUESTIONS, 5);
    let plain = answers(endpoint, &client, &questions, None).await?;
    let guided = answers(endpoint, &client, &questions, Some(&profile.name)).await?;
    let share = |all: &[Traits], one: Trait| {
        100.0 * all.iter().filter(|traits| traits.has(one)).count() as f64 / all.len().max(1) as f64
    };
    let mut out = format!("\ntraits of the demo world, % of {QUESTIONS} held-out answers that have them\n");
    out += &format!("{:<10} {:>9} {:>13} {:>7}\n", "trait", "unguided", "with profile", "moved");
    for one in Trait::ALL {
        let (before, after) = (share(&plain, one), share(&guided, one));
        out += &format!("{:<10} {before:>9.0} {after:>13.0} {:>+7.0}\n", one.name(), after - before);
    }
    Ok(std::io::stdout().write_all(out.as_bytes())?)
}

async fn answers(
    endpoint: &EndpointArgs,
    client: &GeneratorServiceClient<Channel>,
    questions: &[world::Prompt],
    profile: Option<&str>,
) -> Result<Vec<Traits>> {
    let of_question = |(i, question): (usize, &world::Prompt)| {
        let (client, question, profile) = (client.clone(), *question, profile.map(str::to_owned));
        async move {
            let text = answer(endpoint, client, question.text(), profile, i as u64).await?;
            Ok::<_, anyhow::Error>(judge(&question, text.trim()).traits)
        }
    };
    stream::iter(questions.iter().enumerate().map(of_question)).buffered(STREAMS).try_collect().await
}

async fn answer(
    endpoint: &EndpointArgs,
    mut client: GeneratorServiceClient<Channel>,
    question: String,
    profile: Option<String>,
    seed: u64,
) -> Result<String> {
    let messages = vec![ChatMessage { role: "user".to_owned(), content: question }];
    let term = profile.map(|profile| GuidanceTerm {
        guidance: Some(Box::new(Guidance { profile: Some(profile), ..Guidance::default() })),
        strength: Some(2.0),
        clip: None,
    });
    let request = GenerateRequest {
        prompt: Some(Prompt { kind: Some(Kind::Messages(ChatMessages { messages })) }),
        guidances: term.into_iter().collect(),
        sampling: Some(Sampling {
            seed: Some(seed),
            temperature: Some(1.0),
            min_p: Some(0.05),
            max_tokens: Some(160),
            ..Sampling::default()
        }),
        ..GenerateRequest::default()
    };
    let mut stream = client.generate(endpoint.request(request)?).await?.into_inner();
    let (mut text, mut finished) = (String::new(), false);
    while let Some(message) = stream.message().await? {
        text.push_str(&message.text);
        finished |= message.finish.is_some();
    }
    ensure!(finished, "a stream ended before its text did");
    Ok(text)
}
