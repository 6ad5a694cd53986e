//! What a profile is worth: the pair answers its person's questions, and the world judges the answers.

use anyhow::Result;
use attune_profiles::Vector;
use attune_proto::{
    generator::v1::{GenerateRequest, GuidanceTerm, Sampling},
    reward::v1::{
        ChatMessage, ChatMessages, Guidance, Latent, Prompt as WirePrompt, Reference, Weights, prompt::Kind,
    },
};
use attune_train::world::{
    Prompt,
    dice::Dice,
    judge,
    preference::{self, Split},
};

use super::person::SimulatedPerson;
use crate::{answers::gather, method::Worker, run::Running, score::Figure};

/// What guides the answers to one person.
#[derive(Debug, Clone, PartialEq)]
pub enum Guided {
    /// Nothing.
    Not,
    /// What they like, in words of the training data, another wording for every question.
    ByText,
    /// A profile that was fitted to their feedback.
    By(Vector),
}

/// How all are answered.
#[derive(Debug, Clone)]
pub struct Asking {
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// The strength of the guidance.
    pub strength: f32,
    /// What the reward is measured against.
    pub reference: Reference,
    /// Questions to each person.
    pub questions: usize,
    /// Texts at once.
    pub streams: usize,
    /// All chance comes from it.
    pub seed: u64,
}

/// The judge's findings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Worth {
    /// Answers with all that their person likes.
    pub satisfied: Figure,
    /// Answers that are well formed.
    pub well_formed: Figure,
}

/// Lets the running pair answer every person's questions, each guided so.
///
/// # Errors
/// A request fails.
pub(crate) async fn worth(
    running: &Running,
    people: &[(&SimulatedPerson, Guided)],
    asking: &Asking,
    on_answer: impl Fn() + Clone + Send + 'static,
) -> Result<Worth> {
    let mut requests = Vec::new();
    let mut asked: Vec<(Prompt, &SimulatedPerson)> = Vec::new();
    let mut dice = Dice::new(asking.seed, 80);
    for (person, guided) in people {
        for (i, prompt) in person.questions(asking.questions, asking.seed).into_iter().enumerate() {
            // The same noise whatever guides.
            let seed = asking.seed.wrapping_mul(7919).wrapping_add((asked.len() + i) as u64);
            requests.push(request(&prompt, person, guided, asking, seed, &mut dice));
            asked.push((prompt, person));
        }
    }
    let answers = gather(&running.client, requests, asking.streams, on_answer).await?;
    let (mut satisfied, mut well_formed) = (0, 0);
    for ((prompt, person), answer) in asked.iter().zip(&answers) {
        let judgement = judge(prompt, answer.text.trim());
        satisfied += usize::from(judgement.traits.has_all(person.wanted()));
        well_formed += usize::from(judgement.form.is_well_formed());
    }
    let all = answers.len();
    Ok(Worth { satisfied: Figure::share(satisfied, all), well_formed: Figure::share(well_formed, all) })
}

fn request(
    prompt: &Prompt,
    person: &SimulatedPerson,
    guided: &Guided,
    asking: &Asking,
    seed: u64,
    dice: &mut Dice,
) -> GenerateRequest {
    let words = preference::phrase(person.wanted(), Split::Train, dice);
    let mut guidance = Guidance {
        reward_model: Worker::Persrm.id(),
        reference: asking.reference.into(),
        ..Guidance::default()
    };
    match guided {
        Guided::Not => {}
        Guided::ByText => guidance.text = Some(words),
        Guided::By(Vector::Weights(values)) => guidance.weights = Some(Weights { values: values.clone() }),
        Guided::By(Vector::Latent(values)) => guidance.latent = Some(Latent { values: values.clone() }),
    }
    let term = GuidanceTerm { guidance: Some(guidance.into()), strength: Some(asking.strength), clip: None };
    let messages = vec![ChatMessage { role: "user".to_owned(), content: prompt.text() }];
    GenerateRequest {
        prompt: Some(WirePrompt { kind: Some(Kind::Messages(ChatMessages { messages })) }),
        guidances: if *guided == Guided::Not { Vec::new() } else { vec![term] },
        sampling: Some(Sampling { seed: Some(seed), ..asking.sampling.clone() }),
        ..GenerateRequest::default()
    }
}
