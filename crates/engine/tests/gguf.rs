//! GGUF files against safetensors of the same numbers: shapes, tokenizers, every type of number, and
//! what is refused.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "gguf/writer.rs"]
mod writer;

use std::path::{Path, PathBuf};

use attune_engine::kv::{KvCache, blocks_for};
use attune_engine::random_checkpoint::{self, Family, Kind, Layout, Llama3Scaling, Shape, Storage};
use attune_engine::{BaseModel, LoadOptions, Message, Output, PersRm, Rows, SequenceRows, Side};
use attune_kernels::{Format, Threads};
use candle_core::{
    Device,
    quantized::{GgmlDType, gguf_file::Value},
};
use tempfile::TempDir;
use writer::Gguf;

fn options(format: Option<Format>) -> LoadOptions {
    LoadOptions { format, context: Some(64), threads: Threads::new(1).unwrap() }
}

fn base(path: &Path, format: Option<Format>) -> BaseModel {
    BaseModel::load(path, "test", &options(format)).unwrap()
}

/// Why a model is refused.
fn refused(path: &Path) -> String {
    match BaseModel::load(path, "test", &options(None)) {
        Ok(_) => panic!("{} must be refused", path.display()),
        Err(error) => error.to_string(),
    }
}

fn hidden(model: &BaseModel, prompts: &[&[u32]]) -> Vec<Vec<f32>> {
    let mut next = 0;
    let tables: Vec<Vec<u32>> = prompts
        .iter()
        .map(|tokens| {
            let first = next;
            next += blocks_for(tokens.len()) as u32;
            (first..next).collect()
        })
        .collect();
    let cache = KvCache::new(model.decoder.config(), next as usize, &Device::Cpu).unwrap();
    let rows: Vec<_> = prompts
        .iter()
        .zip(&tables)
        .map(|(tokens, blocks)| SequenceRows { tokens, start: 0, blocks, output: Output::All })
        .collect();
    model.decoder.forward(&rows, &cache).unwrap().to_vec2().unwrap()
}

/// Logits of every position, `[tokens, V]`.
fn logits(model: &BaseModel, tokens: &[u32]) -> Vec<f32> {
    let hidden = hidden(model, &[tokens]);
    let rows = hidden.len();
    let hidden = candle_core::Tensor::from_vec(hidden.concat(), (rows, ()), &Device::Cpu).unwrap();
    let logits = model.logits(&Rows::Cpu(hidden)).unwrap();
    assert!(logits.iter().all(|v| v.is_finite()));
    logits
}

#[track_caller]
fn assert_same_bits(ours: &[f32], theirs: &[f32], about: &str) {
    assert_eq!(ours.len(), theirs.len(), "{about}");
    let different = ours.iter().zip(theirs).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    assert_eq!(different, 0, "{about}: of {} numbers", ours.len());
}

fn prompt() -> Vec<u32> {
    (0..40).map(|i| 6 + i * 31 % 500).collect()
}

/// A random checkpoint, and a place for a GGUF file outside of its folder.
fn checkpoint(shape: &Shape, storage: Storage) -> (TempDir, PathBuf, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("hf");
    let layout = Layout { storage, ..Layout::default() };
    random_checkpoint::write_with(&folder, shape, 3, Kind::Base, layout).unwrap();
    std::fs::create_dir(root.path().join("gguf")).unwrap();
    let file = root.path().join("gguf/model.gguf");
    (root, folder, file)
}

/// Rows long enough for the types that keep blocks of 256.
fn wide() -> Shape {
    Shape { hidden: 256, heads: 4, head_dim: 64, intermediate: 512, std: 0.1, ..Shape::tiny(Family::Llama) }
}

#[test]
fn every_architecture_is_the_same_model_bit_for_bit() {
    let shapes = [
        Shape::tiny(Family::Llama),
        Shape { tied: true, ..Shape::tiny(Family::Llama) },
        Shape { sliding_window: Some(7), rope_theta: 500_000.0, ..Shape::tiny(Family::Mistral) },
        Shape { vocab: 700, ..Shape::tiny(Family::Qwen2) },
        Shape { head_dim: 32, kv_heads: 1, ..Shape::tiny(Family::Qwen3) },
    ];
    for shape in shapes {
        let (_root, folder, file) = checkpoint(&shape, Storage::F32);
        Gguf::of(&folder, GgmlDType::F32).write(&file);
        let (ours, theirs) = (base(&file, None), base(&folder, None));
        // GGUF keeps this number in single precision, which is how it is used.
        let mut config = theirs.assets.config.clone();
        config.norm_eps = f64::from(config.norm_eps as f32);
        assert_eq!(ours.assets.config, config);
        assert_same_bits(&logits(&ours, &prompt()), &logits(&theirs, &prompt()), &format!("{shape:?}"));
        assert_eq!(ours.assets.dtype(), "f32");
        assert_eq!(ours.assets.eos, theirs.assets.eos);
        // The folder of a single file means that file.
        let again = base(file.parent().unwrap(), None);
        assert_eq!(again.assets.revision, ours.assets.revision);
    }
}

#[test]
fn llama_3s_scaling_is_read_off_its_factors() {
    let scaling = Llama3Scaling {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 32,
    };
    let plain = Shape::tiny(Family::Llama);
    let shape = Shape { rope_scaling: Some(scaling), ..plain.clone() };
    let (_root, folder, file) = checkpoint(&shape, Storage::F32);
    Gguf::of(&folder, GgmlDType::F32).write(&file);
    let ours = logits(&base(&file, None), &prompt());
    let away = |other: &[f32]| ours.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let same = away(&logits(&base(&folder, None), &prompt()));
    assert!(same < 1e-3, "{same} away");
    let (_root, unscaled, _) = checkpoint(&plain, Storage::F32);
    let other = away(&logits(&base(&unscaled, None), &prompt()));
    assert!(other > 0.1, "without the scaling it would be another model: {other}");
}

#[test]
fn sixteen_bits_are_kept_as_they_are() {
    for (storage, dtype, name) in
        [(Storage::F16, GgmlDType::F16, "f16"), (Storage::Bf16, GgmlDType::BF16, "bf16")]
    {
        let (_root, folder, file) = checkpoint(&Shape::tiny(Family::Qwen2), storage);
        Gguf::of(&folder, dtype).write(&file);
        let (ours, theirs) = (base(&file, None), base(&folder, None));
        assert_eq!((ours.assets.dtype(), theirs.assets.dtype()), (name, name));
        assert_same_bits(&logits(&ours, &prompt()), &logits(&theirs, &prompt()), name);
    }
}

/// Every quantised type, widened to single precision, is what candle dequantises.
#[test]
fn quantised_types_widen_to_the_numbers_that_candle_gives() {
    use GgmlDType::*;
    for dtype in [Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2K, Q3K, Q4K, Q5K, Q6K] {
        let (_root, folder, file) = checkpoint(&wide(), Storage::F32);
        let gguf = Gguf::of(&folder, dtype);
        gguf.write(&file);
        gguf.dequantised_into(&folder);
        let (ours, theirs) = (base(&file, Some(Format::F32)), base(&folder, None));
        assert_same_bits(&logits(&ours, &prompt()), &logits(&theirs, &prompt()), &format!("{dtype:?}"));
    }
}

/// Without an explicit format, quantised types are kept in blocks of 8 bits: Q8_0 as it is, the others
/// requantised in steps that are fine beside their own.
#[test]
fn quantised_types_are_kept_in_eight_bits() {
    use GgmlDType::*;
    for (dtype, near) in [(Q8_0, 1e-3), (Q4K, 6e-2), (Q6K, 6e-2), (Q4_0, 6e-2)] {
        let (_root, folder, file) = checkpoint(&wide(), Storage::F32);
        let gguf = Gguf::of(&folder, dtype);
        gguf.write(&file);
        let unquantised = logits(&base(&folder, None), &prompt());
        gguf.dequantised_into(&folder);
        let exact = logits(&base(&folder, None), &prompt());
        let model = base(&file, None);
        assert_eq!(model.assets.dtype(), "q8");
        let ours = logits(&model, &prompt());
        let distance = |other: &[f32]| {
            let square = |sum: f64, d: f32| sum + f64::from(d).powi(2);
            let apart = ours.iter().zip(other).map(|(a, b)| a - b).fold(0.0, square);
            (apart / other.iter().copied().fold(0.0, square)).sqrt()
        };
        let (kept, lost) = (distance(&exact), distance(&unquantised));
        println!("{dtype:?}: {kept:.1e} from candle's numbers, {lost:.1e} from the unquantised model");
        assert!(kept < near, "{dtype:?} is {kept} away from the numbers in the file");
        // What is added is little beside what the type itself has lost.
        assert!(dtype == Q8_0 || kept < 0.5 * lost, "{dtype:?} loses {lost}, and {kept} more here");

        // A row does not know its company.
        let (a, b, c) = (prompt(), &prompt()[3..20], &prompt()[9..10]);
        let together = hidden(&model, &[&a, b, c]).concat();
        let alone = [&a[..], b, c].map(|tokens| hidden(&model, &[tokens]).concat()).concat();
        assert_same_bits(&together, &alone, &format!("{dtype:?}"));
    }
}

#[test]
fn packing_at_load_takes_every_source() {
    let (_root, folder, file) = checkpoint(&wide(), Storage::F32);
    Gguf::of(&folder, GgmlDType::F32).write(&file);
    let (ours, theirs) = (base(&file, Some(Format::Q8)), base(&folder, Some(Format::Q8)));
    assert_eq!((ours.assets.dtype(), theirs.assets.dtype()), ("q8", "q8"));
    assert_same_bits(&logits(&ours, &prompt()), &logits(&theirs, &prompt()), "q8");
}

#[test]
fn the_tokenizer_and_the_chat_template_are_the_checkpoints_own() {
    let shape = Shape { vocab: 700, ..Shape::tiny(Family::Llama) };
    let (_root, folder, file) = checkpoint(&shape, Storage::F32);
    let mut gguf = Gguf::of(&folder, GgmlDType::F32);
    gguf.write(&file);
    let (ours, theirs) = (base(&file, None).assets, base(&folder, None).assets);
    let size = theirs.tokenizer.size() as u32;
    assert_eq!(ours.tokenizer.size() as u32, size);
    assert_eq!(ours.tokenizer.fingerprint(size), theirs.tokenizer.fingerprint(size));
    for text in ["thaiko baster", "  two  spaces\n\nand 1234 \u{e9}\u{1f600}", "<|eot_id|>x", ""] {
        assert_eq!(ours.tokenizer.encode_raw(text), theirs.tokenizer.encode_raw(text), "{text}");
        assert_eq!(ours.tokenizer.encode_rendered(text), theirs.tokenizer.encode_rendered(text), "{text}");
    }
    let messages = [Message::new("user", "ko ba"), Message::new("assistant", "ster")];
    assert_eq!(ours.chat.render(&messages, true).unwrap(), theirs.chat.render(&messages, true).unwrap());

    // Without a tokenizer of its own, one beside the file serves; and it goes before the file's.
    gguf.set("tokenizer.ggml.pre", Some(Value::String("unheard-of".into())));
    gguf.write(&file);
    let error = refused(&file);
    assert!(error.contains("unheard-of") && error.contains("tokenizer.json"), "{error}");
    std::fs::copy(folder.join("tokenizer.json"), file.with_file_name("tokenizer.json")).unwrap();
    let beside = base(&file, None).assets;
    assert_eq!(beside.tokenizer.fingerprint(size), theirs.tokenizer.fingerprint(size));
    assert_eq!(beside.chat.render(&messages, true).unwrap(), theirs.chat.render(&messages, true).unwrap());
}

#[test]
fn a_reward_model_loads_with_what_stands_beside_it() {
    let root = tempfile::tempdir().unwrap();
    let shape = Shape::tiny(Family::Llama);
    let (folder, reference) = (root.path().join("hf"), root.path().join("hf/reference"));
    random_checkpoint::write(&folder, &shape, 5, Kind::PersRm { value_head: true }).unwrap();
    random_checkpoint::write(&reference, &shape, 6, Kind::Base).unwrap();
    let settings = r#"{"reference": "model", "reference_model": "reference"}"#;
    std::fs::write(folder.join("attune.json"), settings).unwrap();

    let beside = root.path().join("gguf");
    std::fs::create_dir(&beside).unwrap();
    Gguf::of(&folder, GgmlDType::F32).write(&beside.join("persrm.gguf"));
    Gguf::of(&reference, GgmlDType::F32).write(&beside.join("before.gguf"));
    std::fs::copy(folder.join("value_head.safetensors"), beside.join("value_head.safetensors")).unwrap();
    std::fs::write(beside.join("attune.json"), settings.replace("\"reference\"}", "\"before.gguf\"}"))
        .unwrap();

    let ours = PersRm::load(&beside.join("persrm.gguf"), "test", &options(None)).unwrap();
    let theirs = PersRm::load(&folder, "test", &options(None)).unwrap();
    assert!(ours.has_reference());
    let tokens = prompt();
    for side in [Side::Policy, Side::Reference] {
        let features = |model: &PersRm| {
            let rows = SequenceRows { tokens: &tokens, start: 0, blocks: &[0, 1, 2], output: Output::All };
            model.features(side, &[rows], &model.cache(3).unwrap()).unwrap().concat()
        };
        assert_same_bits(&features(&ours), &features(&theirs), &format!("{side:?}"));
        let mut scores = [[0.0; 3]; 2];
        for (model, out) in [&ours, &theirs].into_iter().zip(&mut scores) {
            model.head(side).dot_rows(&[1, 77, 511], &features(&theirs)[..64], out);
        }
        assert_eq!(scores[0], scores[1]);
    }
}

#[test]
fn a_folder_with_several_files_asks_which() {
    let (_root, folder, file) = checkpoint(&Shape::tiny(Family::Llama), Storage::F32);
    let gguf = Gguf::of(&folder, GgmlDType::F32);
    gguf.write(&file);
    gguf.write(&file.with_file_name("other.gguf"));
    let error = refused(file.parent().unwrap());
    assert!(error.contains("2 .gguf files"), "{error}");
    // Safetensors in the folder go before it.
    gguf.write(&folder.join("beside.gguf"));
    assert!(base(&folder, None).assets.folder.ends_with("hf"));
}
