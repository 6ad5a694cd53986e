//! Writes a checkpoint folder as a GGUF file, as llama.cpp's converter does, by candle's own writer: the
//! reader under test shares no code with it.
#![allow(dead_code)] // each test uses a part of it

use std::{collections::HashMap, fs::File, path::Path};

use candle_core::{
    Device, Tensor,
    quantized::{
        GgmlDType, QTensor,
        gguf_file::{self, Value},
    },
};
use serde_json::Value as Json;

/// What is written.
pub(crate) struct Gguf {
    pub(crate) metadata: Vec<(String, Value)>,
    pub(crate) tensors: Vec<(String, QTensor)>,
}

fn json(folder: &Path, file: &str) -> Json {
    serde_json::from_str(&std::fs::read_to_string(folder.join(file)).unwrap()).unwrap()
}

fn number(config: &Json, key: &str) -> usize {
    config[key].as_u64().unwrap() as usize
}

impl Gguf {
    /// A folder's checkpoint, its matrices quantised to `dtype`.
    pub(crate) fn of(folder: &Path, dtype: GgmlDType) -> Self {
        let config = json(folder, "config.json");
        let mut all = Self { metadata: metadata(&config), tensors: Vec::new() };
        all.metadata.extend(tokenizer(folder, &config));
        let mut tensors: Vec<_> =
            candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu)
                .unwrap()
                .into_iter()
                .collect();
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        for (name, tensor) in tensors {
            let dtype = if tensor.rank() == 2 { dtype } else { GgmlDType::F32 };
            let tensor = tensor.to_dtype(candle_core::DType::F32).unwrap();
            let tensor = if is_llama(&config) { in_pairs(&name, tensor, &config) } else { tensor };
            all.tensors.push((gguf_name(&name), QTensor::quantize(&tensor, dtype).unwrap()));
        }
        if let Some(factors) = llama3_factors(&config) {
            let tensor = Tensor::new(factors, &Device::Cpu).unwrap();
            all.tensors
                .push(("rope_freqs.weight".into(), QTensor::quantize(&tensor, GgmlDType::F32).unwrap()));
        }
        all
    }

    /// Writes the file.
    pub(crate) fn write(&self, path: &Path) {
        let metadata: Vec<_> = self.metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
        let tensors: Vec<_> = self.tensors.iter().map(|(n, t)| (n.as_str(), t)).collect();
        gguf_file::write(&mut File::create(path).unwrap(), &metadata, &tensors).unwrap();
    }

    /// Sets a metadata value, or takes it out.
    pub(crate) fn set(&mut self, key: &str, value: Option<Value>) {
        self.metadata.retain(|(k, _)| k != key);
        self.metadata.extend(value.map(|v| (key.to_owned(), v)));
    }

    /// The tensors as a folder's `model.safetensors`, dequantised by candle, in place of what it has.
    pub(crate) fn dequantised_into(&self, folder: &Path) {
        let config = json(folder, "config.json");
        let old = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap();
        let own: HashMap<_, _> = self.tensors.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let new: HashMap<String, Tensor> = old
            .keys()
            .map(|name| {
                let tensor = own[gguf_name(name).as_str()].dequantize(&Device::Cpu).unwrap();
                let tensor = if is_llama(&config) { in_halves(name, tensor, &config) } else { tensor };
                (name.clone(), tensor)
            })
            .collect();
        candle_core::safetensors::save(&new, folder.join("model.safetensors")).unwrap();
    }
}

fn is_llama(config: &Json) -> bool {
    ["llama", "mistral"].contains(&config["model_type"].as_str().unwrap())
}

fn heads_of(name: &str, config: &Json) -> Option<usize> {
    if name.contains("q_proj") {
        return Some(number(config, "num_attention_heads"));
    }
    name.contains("k_proj").then(|| number(config, "num_key_value_heads"))
}

/// llama.cpp's permutation: `reshape(heads, 2, half, ..).swapaxes(1, 2)`.
fn in_pairs(name: &str, tensor: Tensor, config: &Json) -> Tensor {
    swap(name, tensor, config, |heads, half| [heads, 2, half])
}

fn in_halves(name: &str, tensor: Tensor, config: &Json) -> Tensor {
    swap(name, tensor, config, |heads, half| [heads, half, 2])
}

fn swap(name: &str, tensor: Tensor, config: &Json, by: impl Fn(usize, usize) -> [usize; 3]) -> Tensor {
    let Some(heads) = heads_of(name, config) else { return tensor };
    let shape = tensor.dims().to_vec();
    let half = shape[0] / heads / 2;
    let mut split = by(heads, half).to_vec();
    split.extend(&shape[1..]);
    tensor.reshape(split).unwrap().transpose(1, 2).unwrap().contiguous().unwrap().reshape(shape).unwrap()
}

fn gguf_name(name: &str) -> String {
    let mut name = name.to_owned();
    for (own, gguf) in [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers", "blk"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ] {
        name = name.replace(own, gguf);
    }
    name
}

fn metadata(config: &Json) -> Vec<(String, Value)> {
    let family = config["model_type"].as_str().unwrap();
    let arch = if family == "mistral" { "llama" } else { family };
    let mut all = vec![("general.architecture".to_owned(), Value::String(arch.to_owned()))];
    let mut put = |key: &str, value: Value| all.push((format!("{arch}.{key}"), value));
    for (key, own) in [
        ("block_count", "num_hidden_layers"),
        ("embedding_length", "hidden_size"),
        ("feed_forward_length", "intermediate_size"),
        ("attention.head_count", "num_attention_heads"),
        ("attention.head_count_kv", "num_key_value_heads"),
        ("attention.key_length", "head_dim"),
        ("attention.value_length", "head_dim"),
        ("context_length", "max_position_embeddings"),
        ("rope.dimension_count", "head_dim"),
    ] {
        put(key, Value::U32(number(config, own) as u32));
    }
    let float = |key: &str| Value::F32(config[key].as_f64().unwrap() as f32);
    put("rope.freq_base", float("rope_theta"));
    put("attention.layer_norm_rms_epsilon", float("rms_norm_eps"));
    if let (Some(window), "mistral") = (config["sliding_window"].as_u64(), family) {
        put("attention.sliding_window", Value::U32(window as u32));
    }
    all
}

/// What each rotary frequency is divided by under Llama 3's scaling.
fn llama3_factors(config: &Json) -> Option<Vec<f32>> {
    let scaling = config["rope_scaling"].as_object()?;
    let get = |key: &str| scaling[key].as_f64().unwrap();
    let (factor, low, high) = (get("factor"), get("low_freq_factor"), get("high_freq_factor"));
    let original = get("original_max_position_embeddings");
    let (theta, d) = (config["rope_theta"].as_f64().unwrap(), number(config, "head_dim"));
    let factors = (0..d / 2).map(|i| {
        let wavelength = 2.0 * std::f64::consts::PI * theta.powf((2 * i) as f64 / d as f64);
        let by = if wavelength < original / high {
            1.0
        } else if wavelength > original / low {
            factor
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        };
        by as f32
    });
    Some(factors.collect())
}

/// The tokenizer and chat template of a folder.
fn tokenizer(folder: &Path, config: &Json) -> Vec<(String, Value)> {
    let tokenizer = json(folder, "tokenizer.json");
    let settings = json(folder, "tokenizer_config.json");
    let size = number(config, "vocab_size");
    let mut tokens: Vec<String> = (0..size).map(|id| format!("[PAD{id}]")).collect();
    let mut types = vec![5; size];
    for (token, id) in tokenizer["model"]["vocab"].as_object().unwrap() {
        let id = id.as_u64().unwrap() as usize;
        (tokens[id], types[id]) = (token.clone(), 1);
    }
    for token in tokenizer["added_tokens"].as_array().unwrap() {
        let id = number(token, "id");
        tokens[id] = token["content"].as_str().unwrap().to_owned();
        types[id] = if token["special"] == true { 3 } else { 4 };
    }
    let merges = tokenizer["model"]["merges"].as_array().unwrap().iter().map(|merge| match merge {
        Json::String(both) => both.clone(),
        pair => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
    });
    let texts = |all: Vec<String>| Value::Array(all.into_iter().map(Value::String).collect());
    let token = |name: &str| {
        let text = &settings[name];
        let text = text.as_str().or_else(|| text["content"].as_str())?;
        tokens.iter().position(|t| t == text)
    };
    let mut all = vec![
        ("model".to_owned(), Value::String("gpt2".into())),
        ("pre".to_owned(), Value::String("gpt-2".into())),
        ("merges".to_owned(), texts(merges.collect())),
        ("token_type".to_owned(), Value::Array(types.into_iter().map(Value::I32).collect())),
        ("add_bos_token".to_owned(), Value::Bool(!tokenizer["post_processor"].is_null())),
    ];
    for (key, name) in
        [("bos", "bos_token"), ("eos", "eos_token"), ("unknown", "unk_token"), ("padding", "pad_token")]
    {
        all.extend(token(name).map(|id| (format!("{key}_token_id"), Value::U32(id as u32))));
    }
    all.push(("tokens".to_owned(), texts(tokens)));
    let mut all: Vec<_> = all.into_iter().map(|(key, v)| (format!("tokenizer.ggml.{key}"), v)).collect();
    if let Some(template) = settings["chat_template"].as_str() {
        all.push(("tokenizer.chat_template".to_owned(), Value::String(template.to_owned())));
    }
    all
}
