//! The flags that describe a request.

use attune_proto::{
    generator::v1::{BaseContext, OnRewardLoss},
    reward::v1::{Context, Normalization, Reference},
};
use clap::ValueEnum;

/// What the text continues.
#[derive(Debug, Clone, Default, clap::Args)]
#[group(skip)]
pub(crate) struct PromptArgs {
    /// What to ask, as the user's message; `-` reads it from stdin.
    #[arg(value_name = "PROMPT", required_unless_present_any = ["text", "prompt_ids"], conflicts_with_all = ["text", "prompt_ids"])]
    pub(crate) prompt: Option<String>,
    /// A system message before it.
    #[arg(long, value_name = "TEXT", requires = "prompt")]
    pub(crate) system: Option<String>,
    /// Raw text to continue, without the chat template.
    #[arg(long, value_name = "RAW", conflicts_with = "prompt_ids")]
    pub(crate) text: Option<String>,
    /// Token ids to continue, as they are.
    #[arg(long, value_name = "1,2,3", value_delimiter = ',')]
    pub(crate) prompt_ids: Vec<u32>,
}

/// Whose way the text shall have.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Guidance")]
#[group(skip)]
pub(crate) struct GuidanceArgs {
    /// A preference in words; repeatable, all act at once.
    #[arg(long, value_name = "TEXT")]
    pub(crate) prefer: Vec<String>,
    /// How strongly a preference acts, in [-10, 10]; one for all of them, or one for each: of every --prefer
    /// in their order, then of every --profile [default: 1].
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub(crate) strength: Vec<f32>,
    /// Limit each reward, less its mean over the candidates, to [-CLIP, CLIP] [default: no limit].
    #[arg(long, value_name = "CLIP")]
    pub(crate) clip: Option<f32>,
    /// The person's weight vector: numbers, or a JSON file with them.
    #[arg(long, value_name = "FILE.json|1,2,..", allow_hyphen_values = true)]
    pub(crate) weights: Option<String>,
    /// A stored profile; repeatable, all act at once, each a guidance of its own beside those of --prefer.
    #[arg(long, value_name = "NAME")]
    pub(crate) profile: Vec<String>,
    /// Which reward model; one for all preferences, or one for each in their order [default: the only
    /// one, or any].
    #[arg(long, value_name = "ID")]
    pub(crate) reward_model: Vec<String>,
    /// How rewards are made: pad, genarm, linear-alignment or experts, as far as the reward model serves
    /// it [default: pad].
    #[arg(long, value_name = "NAME")]
    pub(crate) method: Option<String>,
    /// What a reward is measured against [default: the reward model's own choice].
    #[arg(long, value_name = "WHICH")]
    pub(crate) reference: Option<ReferenceArg>,
    /// Over what the policy's values are normalised [default: candidates].
    #[arg(long, value_name = "WHICH")]
    pub(crate) normalization: Option<NormalizationArg>,
    /// What the reward model reads: its own template with the preference, or the generator's prompt as
    /// it is [default: template; as-is for --prompt-ids].
    #[arg(long, value_name = "WHICH")]
    pub(crate) guide_context: Option<GuideContextArg>,
    /// Whether the base model sees the preferences too [default: plain].
    #[arg(long, value_name = "WHICH")]
    pub(crate) base_context: Option<BaseContextArg>,
    /// What to do when no reward worker is left in mid-text [default: fail].
    #[arg(long, value_name = "WHAT")]
    pub(crate) on_reward_loss: Option<OnRewardLossArg>,
}

/// How a token is chosen.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Sampling")]
#[group(skip)]
pub(crate) struct SamplingArgs {
    /// 0 is greedy [default: 0].
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub(crate) temperature: Option<f32>,
    /// How many of the highest base logits are considered, 1 to 64 [default: 10].
    #[arg(long, value_name = "K")]
    pub(crate) candidates: Option<u32>,
    /// Keep the smallest set of best candidates with this probability, in (0, 1] [default: 1].
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) top_p: Option<f32>,
    /// Leave out candidates below this share of the best base probability, in [0, 1] [default: 0].
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) min_p: Option<f32>,
    /// The seed of the noise [default: drawn, and told at the end].
    #[arg(long, value_name = "SEED")]
    pub(crate) seed: Option<u64>,
    /// The most tokens to generate [default: what the server allows].
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<u32>,
    /// No end of text before this many tokens [default: 0].
    #[arg(long, value_name = "N")]
    pub(crate) min_tokens: Option<u32>,
    /// A text that ends the generation; repeatable, at most 16.
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// End-of-text is an ordinary token.
    #[arg(long)]
    pub(crate) ignore_eos: bool,
    /// Makes tokens seen before less likely, in (0, 10] [default: 1].
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub(crate) repetition_penalty: Option<f32>,
    /// Added to a token's logit, in [-100, 100]; repeatable.
    #[arg(long, value_name = "ID=VALUE", value_parser = bias)]
    pub(crate) logit_bias: Vec<(u32, f32)>,
    /// Go on behind these generated tokens.
    #[arg(long, value_name = "1,2,3", value_delimiter = ',')]
    pub(crate) resume_ids: Vec<u32>,
}

/// What to tell beside the text.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Output")]
#[group(skip)]
pub(crate) struct DetailArgs {
    /// What each guidance contributed to every token, as a table; with --json, its reward too.
    #[arg(long)]
    pub(crate) token_rewards: bool,
    /// With --json: the whole table of candidates at every step.
    #[arg(long)]
    pub(crate) candidate_tables: bool,
}

macro_rules! choice {
    ($(#[$doc:meta])* $name:ident => $wire:ident { $($(#[$case_doc:meta])* $case:ident => $to:ident,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
        pub(crate) enum $name { $($(#[$case_doc])* $case,)* }

        impl From<$name> for $wire {
            fn from(choice: $name) -> Self {
                match choice { $($name::$case => Self::$to,)* }
            }
        }
    };
}

choice!(
    /// `--reference`.
    ReferenceArg => Reference {
        /// The reward model before its training.
        Model => Model,
        /// The base model itself, as the official code does.
        Generator => Generator,
        /// Nothing: the policy's log-probability is the reward.
        None => None,
    }
);
choice!(
    /// `--normalization`.
    NormalizationArg => Normalization {
        /// Over the candidates of the step.
        Candidates => Candidates,
        /// Over the vocabulary.
        Vocabulary => Vocabulary,
    }
);
choice!(
    /// `--guide-context`.
    GuideContextArg => Context {
        /// The reward model's own template, with the preference in it.
        Template => Template,
        /// The generator's prompt ids.
        AsIs => AsIs,
    }
);
choice!(
    /// `--base-context`.
    BaseContextArg => BaseContext {
        /// The base model never sees the preferences.
        Plain => Plain,
        /// They stand in its prompt as well.
        WithPreference => WithPreference,
    }
);
choice!(
    /// `--on-reward-loss`.
    OnRewardLossArg => OnRewardLoss {
        /// End with an error.
        Fail => Fail,
        /// Go on without guidance; every such token says so.
        ContinueUnguided => ContinueUnguided,
    }
);

/// `ID=VALUE`.
pub(crate) fn bias(text: &str) -> Result<(u32, f32), String> {
    let (id, value) = text.split_once('=').ok_or("write it as ID=VALUE, such as 42=-100")?;
    Ok((id.trim().parse().map_err(|e| format!("{e}"))?, value.trim().parse().map_err(|e| format!("{e}"))?))
}
