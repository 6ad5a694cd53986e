//! Text of the operator's that many prompts begin with: its blocks may be shared between owners.

use serde::{Deserialize, Serialize};

use crate::{
    Assets, LoadError, Message, PreferenceTemplate, TextError,
    kv::{BLOCK_SIZE, Sharing},
};

/// The beginning of prompts, as the operator writes it down. What of a prompt's tokens equals its
/// rendering is computed once for all owners.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedPrefix {
    /// The system prompt of a conversation. Absent: the conversation begins with its user.
    #[serde(default)]
    pub system: Option<String>,
    /// A preference, put in by the preference template. Absent: none.
    #[serde(default)]
    pub preference: Option<String>,
    /// The beginning of a raw text, in place of a conversation; may be empty. Excludes `system`.
    #[serde(default)]
    pub text: Option<String>,
}

impl SharedPrefix {
    /// The token ids that such prompts have in common, whatever the user says.
    ///
    /// A chat template may put the system prompt anywhere, and a tokenizer may join its last character
    /// to the next one. So two prompts are rendered that differ from the user's first character on, and
    /// what they share is taken.
    ///
    /// # Errors
    /// A template or the tokenizer refuses it.
    pub fn token_ids(&self, assets: &Assets, template: &PreferenceTemplate) -> Result<Vec<u32>, TextError> {
        let [one, other] = ["Why?", "1 + 1"].map(|said| self.prompt(said, assets, template));
        let (one, other) = (one?, other?);
        Ok(one.into_iter().zip(other).take_while(|(a, b)| a == b).map(|(id, _)| id).collect())
    }

    /// Sharing within each owner, and of these beginnings between all.
    ///
    /// # Errors
    /// The entry that cannot be rendered is named by its place in the list.
    pub fn sharing(
        prefixes: &[Self],
        assets: &Assets,
        template: &PreferenceTemplate,
    ) -> Result<Sharing, LoadError> {
        let mut configured = Vec::with_capacity(prefixes.len());
        for (i, prefix) in prefixes.iter().enumerate() {
            let ids = prefix
                .token_ids(assets, template)
                .map_err(|e| LoadError::Other(format!("shared_prefixes[{i}] cannot be rendered: {e}")))?;
            if ids.len() < BLOCK_SIZE {
                tracing::warn!(
                    entry = i,
                    tokens = ids.len(),
                    "shared_prefixes: nothing is shared of a text shorter than {BLOCK_SIZE} tokens"
                );
            }
            configured.push(ids);
        }
        Ok(Sharing::On(configured))
    }

    /// The ids of a prompt with this beginning.
    fn prompt(
        &self,
        said: &str,
        assets: &Assets,
        template: &PreferenceTemplate,
    ) -> Result<Vec<u32>, TextError> {
        let preference = self.preference.as_deref();
        if let Some(text) = &self.text {
            let text = format!("{text}{said}");
            let text = match preference {
                Some(preference) => template.apply_text(&text, preference)?,
                None => text,
            };
            return assets.tokenizer.encode_raw(&text);
        }
        let system = self.system.iter().map(|text| Message::new("system", text));
        let mut messages: Vec<Message> = system.chain([Message::new("user", said)]).collect();
        if let Some(preference) = preference {
            messages = template.apply(&messages, preference)?;
        }
        assets.tokenizer.encode_rendered(&assets.chat.render(&messages, true)?)
    }

    /// What is wrong with the entry itself, as the allowed values.
    pub fn problem(&self) -> Option<&'static str> {
        let Self { system, preference, text } = self;
        match (system, preference, text) {
            (None, None, None) => Some("a `system`, `preference` or `text`"),
            (Some(_), _, Some(_)) => {
                Some("`system`, of a conversation, or `text`, of a raw prompt, not both")
            }
            _ => None,
        }
    }
}
