//! `attune plan`: how large a pair must be.

use std::io::Write as _;

use anyhow::{Context as _, Result, bail};
use attune_bench::plan::{Ask, Cost, Device, Half, Load, Model, Storage};
use attune_engine::hub;
use attune_kernels::Format;
use attune_service::engine::{Dtype, EngineConfig, Quantize};
use clap::ValueEnum;

/// Flags of `attune plan`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "docs/sizing.md has the formula and what it assumes. Of hub ids the configuration alone is \
    fetched.\n\nExamples:\n  attune plan --base meta-llama/Llama-3.1-8B-Instruct --reward my-org/my-persrm \
    --device h100 --streams 64\n  attune plan --base models/demo/base --reward models/demo/persrm --device cpu \
    --requests 2"
)]
pub(crate) struct PlanArgs {
    /// The base model: a folder, a .gguf file or a hub id.
    #[arg(long, value_name = "FOLDER|FILE|ID")]
    base: String,
    /// The reward model [default: none, plain decoding]
    #[arg(long, value_name = "FOLDER|FILE|ID")]
    reward: Option<String>,
    #[command(flatten)]
    storage: StorageArgs,
    #[command(flatten)]
    devices: DeviceArgs,
    #[command(flatten)]
    load: LoadArgs,
    /// Print one JSON object; bytes and seconds.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Storage")]
struct StorageArgs {
    /// In which floats matrices are kept [default: auto, as in the checkpoint]
    #[arg(long, value_name = "TYPE")]
    dtype: Option<Dtype>,
    /// How matrices are packed; goes before --dtype [default: none]
    #[arg(long, value_name = "FORM")]
    quantize: Option<Quantize>,
    /// The same for the reward model [default: as the base]
    #[arg(long, value_name = "TYPE")]
    reward_dtype: Option<Dtype>,
    /// The same for the reward model [default: as the base]
    #[arg(long, value_name = "FORM")]
    reward_quantize: Option<Quantize>,
    /// Bits of a number in the caches of keys and values [default: 32 on a CPU, as the matrices' on a card]
    #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u32).range(8..=32))]
    cache_bits: Option<u32>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Devices")]
struct DeviceArgs {
    /// h200, h100, a100, l40s, l4, or cpu: this machine, measured. Cards are a forecast
    #[arg(long, value_name = "NAME", default_value = "cpu")]
    device: String,
    /// The workers' device [default: the generators']
    #[arg(long, value_name = "NAME")]
    reward_device: Option<String>,
    /// In place of every device's own: bytes that it reads from memory, in GB/s
    #[arg(long, value_name = "GB/S", value_parser = above_zero)]
    bandwidth: Option<f64>,
    /// In place of every device's own: what it computes, in TFLOP/s
    #[arg(long, value_name = "TFLOP/S", value_parser = above_zero)]
    tflops: Option<f64>,
    /// In place of every device's own: its memory, in GiB
    #[arg(long, value_name = "GIB", value_parser = above_zero)]
    memory: Option<f64>,
    /// The share of the memory that weights and caches may take, in (0, 1]
    #[arg(long, value_name = "SHARE", default_value_t = 0.9, value_parser = share)]
    usable: f64,
    /// How far steps are above their floor
    #[arg(long, value_name = "FACTOR", default_value_t = 1.2, value_parser = above_zero)]
    above_floor: f64,
    /// From candidates sent to rewards received, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0.5, value_parser = at_least_zero)]
    round_trip: f64,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Load")]
struct LoadArgs {
    /// Texts at once [default: as many as one generator takes]
    #[arg(long, value_name = "N", conflicts_with = "requests", value_parser = clap::value_parser!(u32).range(1..))]
    streams: Option<u32>,
    /// Texts a second
    #[arg(long, value_name = "RATE", value_parser = above_zero)]
    requests: Option<f64>,
    /// Tokens of a prompt
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    prompt: u32,
    /// Tokens of a text
    #[arg(long, value_name = "TOKENS", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    output: u32,
    /// Tokens of context that memory is kept for [default: prompt and text]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    context: Option<u32>,
    /// Guidances of a text
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    guidances: u32,
    /// Candidates of a step
    #[arg(long, value_name = "K", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=64))]
    candidates: u32,
    /// What the rewards are measured against [default: the reward model's own]
    #[arg(long, value_name = "KIND")]
    reference: Option<ReferenceArg>,
    /// The most texts of a generator
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    slots: u32,
    /// The most sessions of a worker, which may serve several generators
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    worker_slots: u32,
    /// The longest that a token may take, in milliseconds [default: as long as full devices take]
    #[arg(long, value_name = "MS", value_parser = above_zero)]
    max_step_ms: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ReferenceArg {
    Model,
    Generator,
    None,
}

fn number(text: &str, fits: impl Fn(f64) -> bool, allowed: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|e| format!("{e}"))?;
    if number.is_finite() && fits(number) { Ok(number) } else { Err(format!("must be {allowed}")) }
}

fn above_zero(text: &str) -> Result<f64, String> {
    number(text, |n| n > 0.0, "a number above 0")
}

fn at_least_zero(text: &str) -> Result<f64, String> {
    number(text, |n| n >= 0.0, "a number of at least 0")
}

fn share(text: &str) -> Result<f64, String> {
    number(text, |n| n > 0.0 && n <= 1.0, "in (0, 1]")
}

impl StorageArgs {
    /// How a model is kept on a device of this name.
    fn storage(
        &self,
        flags: (Option<Dtype>, Option<Quantize>),
        model: &Model,
        device: &str,
    ) -> Result<Storage> {
        let engine = EngineConfig {
            dtype: flags.0.unwrap_or(Dtype::Auto),
            quantize: flags.1.unwrap_or(Quantize::None),
            ..EngineConfig::default()
        };
        let weights = engine.format();
        let cache_number = match (device, weights.or(model.stored)) {
            ("cpu", _) => 4.0,
            (_, Some(Format::Q8)) => bail!(
                "{} has 8-bit weights, which compute on a CPU alone: give --dtype bf16 for a card",
                model.name
            ),
            (_, Some(Format::F16 | Format::Bf16)) => 2.0,
            (_, Some(Format::F32) | None) => 4.0,
        };
        let cache_number = self.cache_bits.map_or(cache_number, |bits| f64::from(bits) / 8.0);
        Ok(Storage { weights, cache_number })
    }
}

impl DeviceArgs {
    fn device(&self, name: &str, weights: Format) -> Result<Device> {
        // What is given in full needs no name, and no measurement.
        let mut device = match (self.bandwidth, self.tflops, self.memory) {
            (Some(bandwidth), Some(flops), Some(memory)) => {
                Device { name: "given".to_owned(), memory, bandwidth, flops }
            }
            _ => Device::named(name, weights).with_context(|| format!("--device {name}"))?,
        };
        device.bandwidth = self.bandwidth.map_or(device.bandwidth, |gb| gb * 1e9);
        device.flops = self.tflops.map_or(device.flops, |tera| tera * 1e12);
        device.memory = self.memory.map_or(device.memory, |gib| gib * f64::from(1 << 30));
        Ok(device)
    }
}

/// A model by its name, without its weights where they are not here.
fn open(name: &str) -> Result<Model> {
    let place = hub::resolve_config(name, None, None, None)?;
    Model::open(&place, name).with_context(|| format!("`{name}` cannot be planned for"))
}

/// Plans and prints.
pub(crate) fn run(args: &PlanArgs) -> Result<()> {
    let PlanArgs { storage: s, devices, load, .. } = args;
    let half = |model: &Model, device: &str, storage: Storage, cost: Cost| {
        let weights = storage.weights.or(model.stored).unwrap_or(Format::F32);
        Ok::<_, anyhow::Error>(Half {
            model: model.name.clone(),
            cost,
            device: devices.device(device, weights)?,
        })
    };
    let base = open(&args.base)?;
    let storage = s.storage((s.dtype, s.quantize), &base, &devices.device)?;
    let generator = half(&base, &devices.device, storage, Cost::of_base(&base, storage)?)?;
    let reward = match &args.reward {
        None => None,
        Some(name) => {
            let model = open(name)?;
            let compares = load.reference.map_or(model.compares, |r| r == ReferenceArg::Model);
            let device = devices.reward_device.as_ref().unwrap_or(&devices.device);
            let flags = (s.reward_dtype.or(s.dtype), s.reward_quantize.or(s.quantize));
            let storage = s.storage(flags, &model, device)?;
            let cost = Cost::of_reward(&model, storage, load.candidates as usize, compares)?;
            Some(half(&model, device, storage, cost)?)
        }
    };
    let plan = Ask {
        generator,
        reward,
        guidances: f64::from(load.guidances),
        lengths: (f64::from(load.prompt), f64::from(load.output)),
        context: f64::from(load.context.unwrap_or_default().max(load.prompt + load.output)),
        load: match (load.requests, load.streams) {
            (Some(rate), _) => Load::Requests(rate),
            (None, streams) => Load::Streams(f64::from(streams.unwrap_or(load.slots))),
        },
        slots: (f64::from(load.slots), f64::from(load.worker_slots)),
        longest_step: load.max_step_ms.map(|ms| ms / 1e3),
        round_trip: devices.round_trip / 1e3,
        above_floor: devices.above_floor,
        usable: devices.usable,
    }
    .plan()?;
    let text = if args.json { serde_json::to_string(&plan)? + "\n" } else { plan.table() };
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_their_ranges() {
        assert_eq!(above_zero("0.5"), Ok(0.5));
        assert_eq!(at_least_zero("0"), Ok(0.0));
        for bad in ["0", "-1", "nan", "inf", "x"] {
            assert!(above_zero(bad).is_err(), "{bad}");
        }
        assert!(share("1.01").is_err() && share("1").is_ok());
    }

    #[test]
    fn what_is_given_goes_before_what_a_card_has() {
        let mut args = DeviceArgs {
            device: "h100".into(),
            reward_device: None,
            bandwidth: Some(100.0),
            tflops: None,
            memory: None,
            usable: 0.9,
            above_floor: 1.2,
            round_trip: 0.5,
        };
        let device = args.device("h100", Format::Bf16).unwrap();
        assert_eq!((device.bandwidth, device.flops), (100e9, 989e12));
        (args.tflops, args.memory) = (Some(2.0), Some(4.0));
        let device = args.device("whatever", Format::Bf16).unwrap();
        assert_eq!((device.flops, device.memory), (2e12, 4.0 * f64::from(1 << 30)));
    }
}
