//! Where rewards are fused and tokens are chosen: on the host, or on the model's card.

use attune_guidance::RowError;
use attune_kernels::{Chosen, FuseRow, cuda::Gpu, fuse_sample};
use attune_service::config::{ConfigError, choice, invalid};
use serde::{Deserialize, Serialize};

/// The setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub enum FuseOn {
    /// On the host, in double precision.
    Host,
    /// By the kernel on the model's card, in double precision too: the same seeds draw the same tokens.
    Device,
}

impl TryFrom<String> for FuseOn {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        choice(&text)
    }
}

/// What fuses and chooses.
#[derive(Debug)]
pub(crate) enum Fuse {
    Host,
    Card(Gpu),
}

impl Fuse {
    /// As the setting says, for a model on this card; none: on a CPU.
    ///
    /// # Errors
    /// There is no card.
    pub(crate) fn new(on: FuseOn, gpu: Option<&Gpu>) -> Result<Self, ConfigError> {
        match (on, gpu) {
            (FuseOn::Host, _) => Ok(Self::Host),
            (FuseOn::Device, Some(gpu)) => Ok(Self::Card(gpu.clone())),
            (FuseOn::Device, None) => {
                Err(invalid("fuse", "device", "host where the model is on a CPU; give --device cuda:N"))
            }
        }
    }

    /// The choice in each row. A row fails alone, by numbers that are not finite.
    pub(crate) fn choose(&self, rows: &[FuseRow<'_>]) -> Vec<Result<Chosen, RowError>> {
        if let (Self::Card(gpu), false) = (self, rows.is_empty()) {
            match gpu.fuse_sample(rows) {
                Ok(chosen) => return chosen,
                // The host chooses the same tokens, and the next pass meets what is wrong with the card.
                Err(error) => tracing::error!(%error, "tokens could not be chosen on the card"),
            }
        }
        fuse_sample(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_card_fuses_on_the_device() {
        assert!(matches!(Fuse::new(FuseOn::Host, None), Ok(Fuse::Host)));
        let error = Fuse::new(FuseOn::Device, None).unwrap_err().to_string();
        assert!(error.contains("`fuse`") && error.contains("--device"), "{error}");
    }
}
