//! Where training computes.

use anyhow::{Context as _, Result, bail};
use attune_service::engine::Device;

/// The flag of every training.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct DeviceArgs {
    /// Where to train: cpu, cuda:N (a card's number, from 0), or auto: the first card where this program was
    /// built with `--features cuda` and there is one, else the CPU.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: Device,
}

impl DeviceArgs {
    /// The device, ready to be used.
    ///
    /// # Errors
    /// A card that cannot be used, or none that this program could use: with what to do.
    pub(super) fn open(self) -> Result<candle_core::Device> {
        let built_in = candle_core::utils::cuda_is_available();
        match self.device {
            Device::Cpu => Ok(candle_core::Device::Cpu),
            // Built for cards, it may yet run where there is none.
            Device::Auto => Ok(candle_core::Device::new_cuda(0).unwrap_or(candle_core::Device::Cpu)),
            Device::Cuda(_) if !built_in => bail!(
                "this attune was built without CUDA for training; build it on a machine with CUDA's nvcc by \
                 `cargo build --release -p attune-cli --features cuda`, or train with --device cpu"
            ),
            Device::Cuda(card) => candle_core::Device::new_cuda(card)
                .with_context(|| format!("cannot use card {card}; `nvidia-smi` lists those that there are")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_used_is_refused_with_what_to_do() {
        assert!(DeviceArgs { device: Device::Cpu }.open().unwrap().is_cpu());
        if !candle_core::utils::cuda_is_available() {
            assert!(DeviceArgs { device: Device::Auto }.open().unwrap().is_cpu());
            let error = DeviceArgs { device: Device::Cuda(0) }.open().unwrap_err().to_string();
            assert!(error.contains("--features cuda") && error.contains("--device cpu"), "{error}");
        }
    }
}
