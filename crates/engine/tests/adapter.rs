//! LoRA adapters made elsewhere: merged at load, off for the reference, and refused by name where they are more.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, fs, path::Path};

use attune_engine::kv::{KvCache, blocks_for};
use attune_engine::random_checkpoint::{self, Family, Kind, Shape};
use attune_engine::{
    BaseModel, DefaultReference, LoadOptions, ModelPath, Output, PersRm, SequenceRows, Side, hub,
};
use attune_kernels::{Format, Threads};
use candle_core::{Device, Tensor};
use serde_json::{Value, json};

const RANK: usize = 3;
const TOKENS: [u32; 9] = [6, 90, 17, 33, 240, 8, 8, 61, 12];

fn options(format: Option<Format>) -> LoadOptions {
    LoadOptions { format, context: None, threads: Threads::new(1).unwrap() }
}

fn config() -> Value {
    // As PEFT 0.17 writes it, in part.
    json!({
        "alpha_pattern": {}, "auto_mapping": null, "base_model_name_or_path": "somebody/base", "bias": "none",
        "corda_config": null, "eva_config": null, "exclude_modules": null, "fan_in_fan_out": false,
        "inference_mode": true, "init_lora_weights": true, "layer_replication": null, "lora_alpha": 6,
        "lora_bias": false, "lora_dropout": 0.05, "megatron_config": null, "modules_to_save": null,
        "peft_type": "LORA", "r": RANK, "rank_pattern": {}, "target_modules": ["q_proj", "down_proj"],
        "task_type": "CAUSAL_LM", "trainable_token_indices": null, "use_dora": false, "use_rslora": false
    })
}

fn matrix(rows: usize, columns: usize, salt: usize) -> Tensor {
    // Small dyadic fractions, so that sums are exact in single precision and in any order.
    let values: Vec<f32> =
        (0..rows * columns).map(|i| ((i * 7 + salt * 5) % 9) as f32 / 64.0 - 0.0625).collect();
    Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
}

/// Writes an adapter of these modules; gives what each adds to its matrix, before scaling.
fn write_adapter(
    folder: &Path,
    config: &Value,
    modules: &[(&str, usize, usize)],
) -> BTreeMap<String, Tensor> {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    let mut tensors = BTreeMap::new();
    let mut deltas = BTreeMap::new();
    for (salt, &(module, n_out, n_in)) in modules.iter().enumerate() {
        let (a, b) = (matrix(RANK, n_in, salt), matrix(n_out, RANK, salt + 40));
        deltas.insert(format!("{module}.weight"), b.matmul(&a).unwrap());
        tensors.insert(format!("base_model.model.{module}.lora_A.weight"), a);
        tensors.insert(format!("base_model.model.{module}.lora_B.weight"), b);
    }
    fs::write(folder.join("adapter_model.safetensors"), safetensors::serialize(&tensors, None).unwrap())
        .unwrap();
    deltas
}

/// The adapted matrices of the tests: some of a packed group, and one alone.
fn modules(shape: &Shape) -> Vec<(&'static str, usize, usize)> {
    let (q, kv) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let mut modules = vec![
        ("model.layers.0.self_attn.q_proj", q, shape.hidden),
        ("model.layers.1.self_attn.v_proj", kv, shape.hidden),
        ("model.layers.1.mlp.down_proj", shape.hidden, shape.intermediate),
    ];
    if !shape.tied {
        modules.push(("lm_head", shape.vocab, shape.hidden));
    }
    modules
}

/// A copy of a base whose matrices have the deltas in them.
fn merge(base: &Path, merged: &Path, deltas: &BTreeMap<String, Tensor>, scale: f64) {
    fs::create_dir_all(merged).unwrap();
    for file in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(base.join(file), merged.join(file)).unwrap();
    }
    let tensors = candle_core::safetensors::load(base.join("model.safetensors"), &Device::Cpu).unwrap();
    let tensors: BTreeMap<String, Tensor> = tensors
        .into_iter()
        .map(|(name, tensor)| match deltas.get(&name) {
            Some(delta) => (name, (tensor + (delta * scale).unwrap()).unwrap()),
            None => (name, tensor),
        })
        .collect();
    fs::write(merged.join("model.safetensors"), safetensors::serialize(&tensors, None).unwrap()).unwrap();
}

fn logits(model: &BaseModel) -> Vec<f32> {
    let blocks: Vec<u32> = (0..blocks_for(TOKENS.len()) as u32).collect();
    let rows = SequenceRows { tokens: &TOKENS, start: 0, blocks: &blocks, output: Output::All };
    let cache = KvCache::new(model.decoder.config(), blocks.len(), &Device::Cpu).unwrap();
    model.logits(&model.decoder.forward(&[rows], &cache).unwrap()).unwrap()
}

fn features(model: &PersRm, side: Side) -> Vec<Vec<f32>> {
    let blocks: Vec<u32> = (0..blocks_for(TOKENS.len()) as u32).collect();
    let rows = SequenceRows { tokens: &TOKENS, start: 0, blocks: &blocks, output: Output::All };
    model.features(side, &[rows], &model.cache(blocks.len()).unwrap()).unwrap()
}

fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn an_adapter_is_its_merged_model() {
    for (family, tied, stable) in [(Family::Llama, true, false), (Family::Qwen2, false, true)] {
        let shape = Shape { tied, ..Shape::tiny(family) };
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        random_checkpoint::write(&path("base"), &shape, 4, Kind::Base).unwrap();
        let mut settings = config();
        settings["use_rslora"] = stable.into();
        let scale = if stable { 6.0 / (RANK as f64).sqrt() } else { 6.0 / RANK as f64 };
        let deltas = write_adapter(&path("adapter"), &settings, &modules(&shape));
        merge(&path("base"), &path("merged"), &deltas, scale);

        let worn = ModelPath::adapted(path("base"), path("adapter"));
        // A weight between two of the 256 steps may be rounded to either.
        for (format, near) in [(None, 1e-4), (Some(Format::Q8), 2e-2)] {
            let load = |path: ModelPath| BaseModel::load(path, "m", &options(format)).unwrap();
            let (base, merged) = (load((&path("base")).into()), load((&path("merged")).into()));
            let adapted = load(worn.clone());
            let (to_merged, to_base) =
                (apart(&logits(&adapted), &logits(&merged)), apart(&logits(&adapted), &logits(&base)));
            assert!(to_merged < near && to_base > 5.0 * near, "{family:?}: {to_merged}, {to_base}");
            assert_ne!(adapted.assets.revision, base.assets.revision);
        }
        // The scale is no part of the weights' file, but of what the model is.
        let before = BaseModel::load(worn.clone(), "m", &options(None)).unwrap().assets.revision.clone();
        settings["lora_alpha"] = 7.into();
        fs::write(path("adapter/adapter_config.json"), settings.to_string()).unwrap();
        assert_ne!(BaseModel::load(worn, "m", &options(None)).unwrap().assets.revision, before);
    }
}

#[test]
fn the_reference_of_an_adapter_is_the_base_and_heads_lie_beside_it() {
    let shape = Shape::tiny(Family::Llama);
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    // As the official release has it: the base apart, and a value head beside the adapter.
    random_checkpoint::write(&path("base"), &shape, 4, Kind::Base).unwrap();
    random_checkpoint::write(&path("other"), &shape, 4, Kind::PersRm { value_head: true }).unwrap();
    write_adapter(&path("adapter"), &config(), &modules(&shape));
    let worn = ModelPath::adapted(path("base"), path("adapter"));
    let load = |path: ModelPath| PersRm::load(path, "m", &options(None)).unwrap();
    let (adapted, base) = (load(worn.clone()), load((&path("base")).into()));
    assert_eq!(adapted.default_reference, DefaultReference::Model);
    assert_eq!(features(&adapted, Side::Reference), features(&base, Side::Policy));
    assert_ne!(features(&adapted, Side::Policy), features(&base, Side::Policy));

    fs::copy(path("other/value_head.safetensors"), path("adapter/value_head.safetensors")).unwrap();
    let settings = json!({"template": "{{ preference }}: {{ content }}", "reference": "generator"});
    fs::write(path("adapter/attune.json"), settings.to_string()).unwrap();
    let official = load(worn);
    assert!(official.has_value_head() && !official.has_reference());
    assert_eq!(official.default_reference, DefaultReference::Generator);
    assert_ne!(features(&official, Side::Policy), features(&adapted, Side::Policy));
}

#[test]
fn what_is_more_than_a_lora_is_refused_by_name() {
    let shape = Shape { tied: true, ..Shape::tiny(Family::Llama) };
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    random_checkpoint::write(&path("base"), &shape, 4, Kind::Base).unwrap();
    let refused = |config: &Value, modules: &[(&str, usize, usize)]| {
        write_adapter(&path("adapter"), config, modules);
        let worn = ModelPath::adapted(path("base"), path("adapter"));
        BaseModel::load(worn, "m", &options(None)).err().unwrap().to_string()
    };
    let fitting = modules(&shape);
    for (key, value) in [
        ("peft_type", json!("IA3")),
        ("bias", json!("lora_only")),
        ("use_dora", json!(true)),
        ("modules_to_save", json!(["embed_tokens"])),
        ("rank_pattern", json!({"q_proj": 4})),
        ("alpha_pattern", json!({"q_proj": 4})),
        ("init_lora_weights", json!("pissa")),
        ("layer_replication", json!([[0, 2]])),
        ("r", json!(0)),
        ("r", json!(1_u64 << 40)),
        ("r", json!(RANK + 1)),
        ("lora_alpha", json!(1e300)),
    ] {
        let mut config = config();
        config[key] = value;
        let error = refused(&config, &fitting);
        let named = if config["r"] == json!(RANK + 1) { "rank" } else { key };
        assert!(error.contains(named), "{key}: {error}");
    }
    let d = shape.hidden;
    for (module, n_out, n_in) in [
        ("model.layers.9.self_attn.q_proj", d, d),
        ("model.layers.0.self_attn.q_proj", d, d + 1),
        ("model.embed_tokens", shape.vocab, d),
        ("lm_head", shape.vocab, d),
    ] {
        let error = refused(&config(), &[(module, n_out, n_in)]);
        assert!(error.contains(module), "{error}");
    }
    fs::write(path("adapter/adapter_model.safetensors"), "no weights").unwrap();
    let worn = ModelPath::adapted(path("base"), path("adapter"));
    let error = BaseModel::load(worn, "m", &options(None)).err().unwrap().to_string();
    assert!(error.contains("adapter_model.safetensors"), "{error}");
}

#[test]
fn a_base_is_named_by_whoever_serves_it() {
    let shape = Shape::tiny(Family::Llama);
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    let text = |name: &str| path(name).to_string_lossy().into_owned();
    random_checkpoint::write(&path("base"), &shape, 4, Kind::Base).unwrap();
    let mut settings = config();
    settings["base_model_name_or_path"] = text("base").into();
    write_adapter(&path("adapter"), &settings, &modules(&shape));

    let found = hub::locate(&text("adapter"), None, Some(&text("base"))).unwrap();
    assert_eq!(found, ModelPath::adapted(path("base"), path("adapter")));
    assert_eq!(hub::locate(&text("base"), None, None).unwrap(), ModelPath::from(&path("base")));
    // A path that a file names is not followed.
    for (model, base) in [("adapter", None), ("base", Some("base"))] {
        let base = base.map(&text);
        let error = hub::locate(&text(model), None, base.as_deref()).unwrap_err().to_string();
        assert!(error.contains("base_model"), "{error}");
    }
    let error = BaseModel::load(&path("adapter"), "m", &options(None)).err().unwrap().to_string();
    assert!(error.contains("adapter") && error.contains("base_model"), "{error}");
}
