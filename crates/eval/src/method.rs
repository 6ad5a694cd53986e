//! The methods as data: which weights decode, what stands in the prompt, and what guides.

use attune_proto::{
    LINEAR_ALIGNMENT,
    generator::v1::GuidanceTerm,
    reward::v1::{Context, Guidance, Reference},
};
use attune_train::world::Trait;

use crate::asks::Ask;

/// A way to follow a preference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// The base model, which never hears of the preference.
    Unguided,
    /// The preference in the base model's prompt.
    Prompted,
    /// PAD against the PersRM's own reference: the paper's form.
    PadModel,
    /// PAD against the base model: the official code's form.
    PadGenerator,
    /// PAD with `w_p` alone: the preference acts through the weights that the head reads off it, and does
    /// not stand in the PersRM's prompt.
    PadWeights,
    /// An autoregressive reward model, reference NONE.
    Genarm,
    /// The base model's logits with and without the preference.
    LinearAlignment,
    /// One expert for each trait, merged token by token.
    Experts,
    /// One expert for each trait, their weights averaged into one checkpoint that decodes alone.
    Soups,
    /// The PersRM decodes alone, the preference in its prompt.
    PersrmAlone,
    /// The expert of just what is asked for decodes alone: training for each preference.
    Dpo,
}

/// Which weights decode.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Decodes {
    /// The base model.
    Base,
    /// The PersRM.
    Persrm,
    /// The average of these traits' experts.
    Soup(Vec<Trait>),
    /// The expert that was trained for these traits together.
    Expert(Vec<Trait>),
}

/// A worker that a method needs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Worker {
    /// The PersRM.
    Persrm,
    /// The base model itself.
    Base,
    /// The autoregressive reward model.
    Genarm,
    /// The expert of a trait.
    Expert(Trait),
}

impl Worker {
    /// The name that requests call its model by.
    pub fn id(&self) -> String {
        match self {
            Self::Persrm => "persrm".to_owned(),
            Self::Base => "base".to_owned(),
            Self::Genarm => "genarm".to_owned(),
            Self::Expert(one) => format!("expert-{}", one.name()),
        }
    }
}

impl Method {
    /// All, in the table's order.
    pub const ALL: [Self; 11] = [
        Self::Unguided,
        Self::Prompted,
        Self::PadModel,
        Self::PadGenerator,
        Self::PadWeights,
        Self::Genarm,
        Self::LinearAlignment,
        Self::Experts,
        Self::Soups,
        Self::PersrmAlone,
        Self::Dpo,
    ];

    /// Its name in tables and flags.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unguided => "unguided",
            Self::Prompted => "prompted",
            Self::PadModel => "pad-model",
            Self::PadGenerator => "pad-generator",
            Self::PadWeights => "pad-weights",
            Self::Genarm => "genarm",
            Self::LinearAlignment => LINEAR_ALIGNMENT,
            Self::Experts => "experts",
            Self::Soups => "soups",
            Self::PersrmAlone => "persrm-alone",
            Self::Dpo => "dpo",
        }
    }

    /// The strengths that are tried; a single 0 where there is nothing to set. Each list is as wide as the
    /// method needs to pass its best: too little at its one end, and too much at its other.
    pub fn strengths(self) -> &'static [f32] {
        match self {
            Self::Unguided | Self::Prompted | Self::Soups | Self::PersrmAlone | Self::Dpo => &[0.0],
            Self::PadModel | Self::PadGenerator => &[0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0],
            Self::PadWeights => &[0.5, 1.0, 1.5, 2.0, 3.0, 4.0],
            Self::Genarm => &[0.25, 0.5, 1.0, 2.0, 4.0, 6.0, 8.0],
            // One more than the official code's ratio: at 1 it is the preference in the prompt.
            Self::LinearAlignment => &[1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0],
            // At 1 the weights sum to 1, as the paper merges; beyond, the experts are amplified.
            Self::Experts => &[0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0],
        }
    }

    /// Which weights decode for this ask.
    pub fn decodes(self, ask: &Ask) -> Decodes {
        match self {
            Self::PersrmAlone => Decodes::Persrm,
            Self::Soups => Decodes::Soup(ask.traits.clone()),
            Self::Dpo => Decodes::Expert(ask.traits.clone()),
            _ => Decodes::Base,
        }
    }

    /// Whether the preference stands in the prompt of what decodes.
    pub fn prompts(self) -> bool {
        matches!(self, Self::Prompted | Self::PersrmAlone)
    }

    /// The workers that the method needs.
    pub fn workers(self) -> Vec<Worker> {
        match self {
            Self::PadModel | Self::PadGenerator | Self::PadWeights => vec![Worker::Persrm],
            Self::Genarm => vec![Worker::Genarm],
            Self::LinearAlignment => vec![Worker::Base],
            Self::Experts => Trait::ALL.into_iter().map(Worker::Expert).collect(),
            Self::Unguided | Self::Prompted | Self::Soups | Self::PersrmAlone | Self::Dpo => Vec::new(),
        }
    }

    /// What guides the answer to this ask.
    pub fn terms(self, ask: &Ask, strength: f32) -> Vec<GuidanceTerm> {
        let text = Some(ask.preference.clone());
        let pad = |reference: Reference, context: Context| {
            let (reference, context) = (reference.into(), context.into());
            let reward_model = Worker::Persrm.id();
            Guidance { reward_model, text: text.clone(), reference, context, ..Guidance::default() }
        };
        let of = |worker: Worker, method: &str, text: Option<String>| Guidance {
            reward_model: worker.id(),
            method: method.to_owned(),
            text,
            ..Guidance::default()
        };
        let one = |guidance| vec![term(guidance, strength)];
        match self {
            Self::PadModel => one(pad(Reference::Model, Context::Unspecified)),
            Self::PadGenerator => one(pad(Reference::Generator, Context::Unspecified)),
            Self::PadWeights => one(pad(Reference::Generator, Context::AsIs)),
            Self::Genarm => one(of(Worker::Genarm, "genarm", text.clone())),
            Self::LinearAlignment => one(of(Worker::Base, LINEAR_ALIGNMENT, text.clone())),
            Self::Experts => {
                // The weights are those that the preference gives its traits, and sum to the strength.
                let share = strength / ask.traits.len() as f32;
                let experts = ask.traits.iter().map(|&one| of(Worker::Expert(one), "experts", None));
                experts.map(|guidance| term(guidance, share)).collect()
            }
            Self::Unguided | Self::Prompted | Self::Soups | Self::PersrmAlone | Self::Dpo => Vec::new(),
        }
    }

    /// The method of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.name() == name)
    }
}

fn term(guidance: Guidance, strength: f32) -> GuidanceTerm {
    GuidanceTerm { guidance: Some(guidance.into()), strength: Some(strength), clip: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::asks;

    #[test]
    fn every_guided_method_finds_the_workers_that_it_names() {
        for ask in asks::draw(2 * asks::kinds_count(), 1) {
            for method in Method::ALL {
                let workers: Vec<String> = method.workers().iter().map(Worker::id).collect();
                let terms = method.terms(&ask, 2.0);
                for term in &terms {
                    assert!(workers.contains(&term.guidance.as_ref().unwrap().reward_model));
                }
                let sum: f32 = terms.iter().filter_map(|t| t.strength).sum();
                assert!(terms.is_empty() || (sum - 2.0).abs() < 1e-6);
                assert_eq!(Method::parse(method.name()), Some(method));
            }
        }
    }
}
