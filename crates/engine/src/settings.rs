//! `attune.json`: how a PersRM wants to be used.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{LatentShape, LoadError, PriorShape};

/// The contents of `attune.json`. Every key may be absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PersRmSettings {
    /// A template of the last user message, over `preference` and `content`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Whether `w_p` is read off the preference text, and when.
    pub weights: WeightsForm,
    /// The default reference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<DefaultReference>,
    /// The folder or GGUF file, within this folder, of the weights before training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference_model: Option<String>,
    /// The scale of the loss it was trained with; the fit of profiles uses it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta: Option<f64>,
    /// The sizes of the latent adapter, where one lies in the folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latent: Option<LatentShape>,
    /// The size of the prior of fitted weights, where one lies in the folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prior: Option<PriorShape>,
}

/// Where `w_p` comes from when a guidance gives a preference text and no vector.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WeightsForm {
    /// It is ones: the preference acts through the prompt alone.
    #[default]
    Ones,
    /// `weight_head.safetensors` reads it off the text, which stands in the prompt too.
    Head,
    /// The head reads it off the text where that does not stand in the prompt (context AS_IS): the preference
    /// acts through the prompt, or through `w_p` alone.
    HeadAsIs,
}

/// The reference that a PersRM was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DefaultReference {
    /// Its own weights before training.
    Model,
    /// The base model.
    Generator,
    /// None.
    None,
}

impl PersRmSettings {
    /// The name of the file.
    pub const FILE: &str = "attune.json";

    /// Those of a folder; the defaults where it has none.
    ///
    /// # Errors
    /// The file is damaged, or has a key that is not known.
    pub fn load(folder: &Path) -> Result<Self, LoadError> {
        let path = folder.join(Self::FILE);
        if !path.exists() {
            return Ok(Self::default());
        }
        let text = crate::files::read_text(&path).map_err(|e| LoadError::file(&path, e))?;
        serde_json::from_str(&text).map_err(|e| LoadError::file(&path, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_unknown_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(PersRmSettings::load(folder.path()).unwrap(), PersRmSettings::default());
        let path = folder.path().join(PersRmSettings::FILE);
        let settings = PersRmSettings {
            weights: WeightsForm::HeadAsIs,
            reference: Some(DefaultReference::Generator),
            beta: Some(0.3),
            ..PersRmSettings::default()
        };
        let text = serde_json::to_string(&settings).unwrap();
        assert!(text.contains("\"head-as-is\"") && !text.contains("template"), "{text}");
        std::fs::write(&path, text).unwrap();
        assert_eq!(PersRmSettings::load(folder.path()).unwrap(), settings);
        std::fs::write(&path, "{\"wieghts\": \"head\"}").unwrap();
        let error = PersRmSettings::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("attune.json") && error.contains("wieghts"), "{error}");
    }
}
