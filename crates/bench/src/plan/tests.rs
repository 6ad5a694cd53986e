//! The plan against the floor that the bench measures, and against what must hold of any plan.

use attune_engine::random_checkpoint::{self, Kind, Shape};
use attune_kernels::Format;

use super::*;
use crate::floor::{Role, step_bytes};

const AS_STORED: Storage = Storage { weights: None, cache_number: 4.0 };

/// A machine that reads 36 GB/s, as the figures to reach assume.
fn machine() -> Device {
    Device { name: "machine".into(), memory: 24e9, bandwidth: 36e9, flops: 150e9 }
}

fn model(shape: &Shape) -> Model {
    // Of the shape alone: no weights are written.
    let folder = tempfile::tempdir().unwrap();
    let small = Shape { layers: 1, hidden: 64, intermediate: 96, vocab: 300, ..shape.clone() };
    random_checkpoint::write(folder.path(), &small, 1, Kind::PersRm { value_head: true }).unwrap();
    let mut model = Model::open(folder.path(), "model").unwrap();
    assert_eq!((model.stored, model.value_head), (Some(Format::F32), true));
    let c = &mut model.config;
    (c.layers, c.hidden, c.intermediate, c.vocab) =
        (shape.layers, shape.hidden, shape.intermediate, shape.vocab);
    model
}

fn ask(shape: &Shape, device: &Device) -> Ask {
    let (base, reward) = (model(shape), Model { has_reference: true, ..model(shape) });
    let half =
        |cost: Result<Cost>| Half { model: "model".into(), cost: cost.unwrap(), device: device.clone() };
    Ask {
        generator: half(Cost::of_base(&base, AS_STORED)),
        reward: Some(half(Cost::of_reward(&reward, AS_STORED, 10, false))),
        guidances: 1.0,
        lengths: (128.0, 64.0),
        context: 512.0,
        load: Load::Streams(16.0),
        slots: (64.0, 256.0),
        longest_step: None,
        round_trip: 0.0,
        above_floor: 1.0,
        usable: 0.9,
    }
}

#[test]
fn one_text_costs_the_floor_that_the_bench_measures() {
    // Both models on one machine at 36 GB/s: 7.4 ms ('small') and 63.5 ms ('medium') a step.
    for (shape, floor_ms) in [(Shape::small(), 7.4), (Shape::medium(), 63.5)] {
        let ask = ask(&shape, &machine());
        let halves = [&ask.generator, ask.reward.as_ref().unwrap()];
        let seconds: f64 = halves.iter().map(|half| half.bounds(1.0, 0.0).0).sum();
        assert!((1e3 * seconds / floor_ms - 1.0).abs() < 0.02, "{} ms, not {floor_ms}", 1e3 * seconds);
        // With its 160 tokens of context a step is no more than a twentieth longer.
        let with_context: f64 = halves.iter().map(|half| ask.step(half, 1.0)).sum();
        assert!((1.0..1.05).contains(&(with_context / seconds)), "{}", with_context / seconds);
    }
    let folder = tempfile::tempdir().unwrap();
    let shape = Shape { layers: 2, hidden: 64, intermediate: 96, vocab: 300, ..Shape::small() };
    random_checkpoint::write(folder.path(), &shape, 1, Kind::PersRm { value_head: true }).unwrap();
    let model = Model::open(folder.path(), "model").unwrap();
    for format in [Format::F32, Format::Bf16] {
        let storage = Storage { weights: Some(format), cache_number: 4.0 };
        let bytes = |role| step_bytes(folder.path(), role, format, 10).unwrap();
        assert_eq!(Cost::of_base(&model, storage).unwrap().read, bytes(Role::Base));
        let reward = Cost::of_reward(&Model { stored: Some(format), ..model.clone() }, storage, 10, false);
        let reward = reward.unwrap();
        assert_eq!(reward.read + reward.row_read, bytes(Role::Reward));
    }
}

#[test]
fn a_reference_costs_a_second_model_and_a_second_cache() {
    let alone = model(&Shape::small());
    let with = Model { has_reference: true, ..alone.clone() };
    let cost = |model: &Model, compares| Cost::of_reward(model, AS_STORED, 10, compares).unwrap();
    let (alone, held, compared) = (cost(&alone, false), cost(&with, false), cost(&with, true));
    assert_eq!((held.memory, held.cache), (2.0 * alone.memory, 2.0 * alone.cache));
    assert_eq!((held.read, held.flops, held.cache_read), (alone.read, alone.flops, alone.cache_read));
    assert_eq!((compared.read, compared.flops), (2.0 * alone.read, 2.0 * alone.flops));
    // 8 layers, 4 heads of 64, keys and values in f32.
    assert_eq!(alone.cache, (2 * 8 * 4 * 64 * 4) as f64);
    assert!(Cost::of_reward(&model(&Shape::small()), AS_STORED, 10, true).is_err());
}

#[test]
fn a_full_device_is_bound_by_memory_first_and_by_arithmetic_then() {
    let shape = Shape::medium();
    let few = ask(&shape, &machine()).plan().unwrap();
    assert!(few.generator.arithmetic, "16 rows at 36 GB/s and 150 GFLOP/s are arithmetic");
    let fast = Device { flops: 100e12, ..machine() };
    let plan = ask(&shape, &fast).plan().unwrap();
    assert!(!plan.generator.arithmetic && plan.generator.step < few.generator.step);
    assert!(plan.generator.step < 1.3 * plan.generator.step_alone, "weights are read once for all");
    // One text alone is a sixteenth of them, and its device is as large.
    let alone = Ask { load: Load::Streams(1.0), ..ask(&shape, &fast) }.plan().unwrap();
    assert_eq!((alone.generator.at_once, alone.generator.replicas, alone.texts), (1.0, 1.0, 1.0));
    assert!(plan.tokens_per_second > 10.0 * alone.tokens_per_second);
}

/// Tokens a second of each device, generators and workers alike.
fn each(plan: &Plan) -> f64 {
    plan.generator.at_once / plan.step / (1.0 + plan.workers_per_generator)
}

#[test]
fn workers_are_as_full_as_pays() {
    let mut ask = ask(&Shape::medium(), &Device { flops: 100e12, ..machine() });
    ask.load = Load::Streams(640.0);
    let plan = ask.plan().unwrap();
    let reward = plan.reward.as_ref().unwrap();
    assert_eq!((plan.generator.at_once, plan.generator.replicas), (64.0, 10.0));
    assert!((plan.workers_per_generator - 64.0 / reward.at_once).abs() < 1e-9);
    assert_eq!(reward.replicas, (640.0 / reward.at_once).ceil());
    // Fuller workers than these do not pay, nor emptier ones.
    for slots in [8.0, 32.0, reward.at_once - 1.0] {
        let emptier = Ask { slots: (64.0, slots), ..ask.clone() }.plan().unwrap();
        assert_eq!(emptier.reward.as_ref().unwrap().at_once, slots);
        assert!(each(&emptier) < each(&plan), "{slots} sessions");
    }
    let roomy = Ask { slots: (64.0, 4096.0), ..ask.clone() }.plan().unwrap();
    assert!(each(&roomy) >= each(&plan) && roomy.reward.as_ref().unwrap().fit > reward.at_once);
    let twice = Ask { guidances: 2.0, ..ask.clone() }.plan().unwrap();
    assert!(twice.workers_per_generator > 1.3 * plan.workers_per_generator);
    // A slow worker paces the pair.
    if let Some(reward) = &mut ask.reward {
        reward.device.bandwidth /= 10.0;
    }
    let slow = ask.plan().unwrap();
    assert_eq!(slow.paced_by, "reward");
    assert!(slow.step > 3.0 * plan.step && each(&slow) < each(&plan));
}

#[test]
fn requests_become_texts_at_once_by_their_length_in_time() {
    let mut ask = ask(&Shape::small(), &Device { flops: 100e12, ..machine() });
    ask.load = Load::Requests(20.0);
    let plan = ask.plan().unwrap();
    assert!((plan.texts - 20.0 * 64.0 * plan.step).abs() < 1e-9);
    assert!(plan.tokens_per_second >= 20.0 * 64.0);
    // A plain pair needs no worker.
    let plain = Ask { reward: None, ..ask }.plan().unwrap();
    assert_eq!((plain.reward, plain.workers_per_generator), (None, 0.0));
}

#[test]
fn what_cannot_be_is_said() {
    let mut ask = ask(&Shape::medium(), &machine());
    ask.longest_step = Some(0.001);
    let error = ask.plan().unwrap_err().to_string();
    assert!(error.contains("a token takes at least") && error.contains("--max-step-ms"), "{error}");
    ask.longest_step = Some(0.2);
    let plan = ask.plan().unwrap();
    assert!(plan.step <= 0.2 && plan.generator.at_once >= 1.0);
    ask.generator.device.memory = 1e9;
    let error = ask.plan().unwrap_err().to_string();
    assert!(error.contains("does not fit on machine") && error.contains("GiB"), "{error}");
}

#[test]
fn the_table_has_both_sides() {
    let plan = ask(&Shape::small(), &machine()).plan().unwrap();
    let table = plan.table();
    for said in ["generator", "reward worker", "weights in memory", "workers for a generator", "paced by"] {
        assert!(table.contains(said), "{table}");
    }
    let json = serde_json::to_value(&plan).unwrap();
    assert_eq!(json["generator"]["at_once"], plan.generator.at_once);
}

/// `config.json` of a Llama of 16-bit floats, as its makers publish it.
fn llama(hidden: usize, layers: usize, heads: usize, intermediate: usize, tied: bool) -> Model {
    let folder = tempfile::tempdir().unwrap();
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": 8, "intermediate_size": intermediate,
        "vocab_size": 128_256, "max_position_embeddings": 131_072, "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16"
    });
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    Model::open(folder.path(), "llama").unwrap()
}

#[test]
fn the_table_of_the_docs_is_what_the_formula_gives() {
    let docs = include_str!("../../../../docs/sizing.md");
    let one = ("1B", llama(2048, 16, 32, 8192, true));
    let eight = ("8B", llama(4096, 32, 32, 14_336, false));
    let thirty = ("32B", llama(5120, 64, 40, 27_648, false));
    let storage = Storage { cache_number: 2.0, ..AS_STORED };
    let mut rows = Vec::new();
    for (base, reward, compares, card) in [
        (&eight, &eight, true, "h100"),
        (&eight, &eight, false, "h100"),
        (&eight, &one, true, "h100"),
        (&eight, &one, true, "a100"),
        (&eight, &one, true, "l40s"),
        (&one, &one, true, "l4"),
        (&thirty, &eight, false, "h200"),
    ] {
        let device = Device::named(card, Format::Bf16).unwrap();
        let persrm = Model { has_reference: compares, ..reward.1.clone() };
        let half = |model: &str, cost: Result<Cost>| Half {
            model: model.to_owned(),
            cost: cost.unwrap(),
            device: device.clone(),
        };
        let ask = Ask {
            generator: half(base.0, Cost::of_base(&base.1, storage)),
            reward: Some(half(reward.0, Cost::of_reward(&persrm, storage, 10, compares))),
            lengths: (512.0, 256.0),
            context: 768.0,
            load: Load::Requests(100.0),
            slots: (64.0, 500.0),
            round_trip: 0.5e-3,
            above_floor: 1.2,
            ..ask(&Shape::small(), &device)
        };
        let plan = ask.plan().unwrap();
        let (own, theirs) = (&plan.generator, plan.reward.as_ref().unwrap());
        let row = format!(
            "| {} | {}, {} | {card} | {} | {} | {}, {} | {:.1}, {:.1} | {:.0} | {:.2} |",
            base.0,
            reward.0,
            if compares { "MODEL" } else { "GENERATOR" },
            own.at_once,
            theirs.at_once,
            table::bytes(own.sequence),
            table::bytes(theirs.sequence),
            1e3 * own.step_alone.max(theirs.step_alone),
            1e3 * plan.step,
            own.at_once / plan.step,
            plan.workers_per_generator,
        );
        rows.push(row);
    }
    let missing: Vec<String> = rows.into_iter().filter(|row| !docs.contains(row)).collect();
    assert!(missing.is_empty(), "docs/sizing.md lacks:\n{}", missing.join("\n"));
}
