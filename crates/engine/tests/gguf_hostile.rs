//! GGUF files that are damaged or mean harm: a clear error, or a model; never a panic, and no allocation
//! that the file's own length does not bear out.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "gguf/writer.rs"]
mod writer;

use std::path::Path;

use attune_engine::random_checkpoint::{self, Family, Kind, Shape};
use attune_engine::{BaseModel, LoadError, LoadOptions};
use attune_kernels::Threads;
use candle_core::quantized::{GgmlDType, gguf_file::Value};
use proptest::prelude::*;
use tempfile::TempDir;
use writer::Gguf;

fn load(path: &Path) -> Result<BaseModel, LoadError> {
    let options = LoadOptions { format: None, context: Some(64), threads: Threads::new(1).unwrap() };
    BaseModel::load(path, "test", &options)
}

fn gguf(dtype: GgmlDType) -> (TempDir, Gguf) {
    let folder = tempfile::tempdir().unwrap();
    let shape = Shape { layers: 1, vocab: 300, ..Shape::tiny(Family::Llama) };
    random_checkpoint::write(folder.path(), &shape, 3, Kind::Base).unwrap();
    let gguf = Gguf::of(folder.path(), dtype);
    (folder, gguf)
}

/// A file in a folder of its own, and its bytes.
struct Victim {
    folder: TempDir,
    bytes: Vec<u8>,
}

impl Victim {
    fn new(gguf: &Gguf) -> Self {
        let folder = tempfile::tempdir().unwrap();
        gguf.write(&folder.path().join("model.gguf"));
        let bytes = std::fs::read(folder.path().join("model.gguf")).unwrap();
        Self { folder, bytes }
    }

    /// Where a text stands in the file.
    fn find(&self, text: &str) -> usize {
        self.bytes.windows(text.len()).position(|w| w == text.as_bytes()).unwrap()
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn load(&self) -> Result<BaseModel, LoadError> {
        let path = self.folder.path().join("model.gguf");
        std::fs::write(&path, &self.bytes).unwrap();
        load(&path)
    }

    fn refused(&self) -> String {
        match self.load() {
            Ok(_) => panic!("the file must be refused"),
            Err(error) => error.to_string(),
        }
    }
}

#[test]
fn every_cut_is_refused() {
    let (_folder, gguf) = gguf(GgmlDType::Q8_0);
    let whole = Victim::new(&gguf);
    whole.load().unwrap();
    let header = whole.find("token_embd.weight") + 64;
    // The last tensor's padding may be missing, nothing before it.
    for len in (0..header).step_by(header / 60).chain([whole.bytes.len() / 2, whole.bytes.len() - 40]) {
        let cut = Victim { bytes: whole.bytes[..len].to_vec(), folder: tempfile::tempdir().unwrap() };
        let error = cut.refused();
        assert!(error.contains("model.gguf"), "{error}");
    }
}

#[test]
fn absurd_counts_and_lengths_are_refused_before_they_are_believed() {
    let (_folder, gguf) = gguf(GgmlDType::F32);
    let most = u64::MAX.to_le_bytes();
    let far = (u64::MAX - 7).to_le_bytes();
    let mut named = Vec::new();
    let mut case = |name: &str, edit: &dyn Fn(&mut Victim)| {
        let mut victim = Victim::new(&gguf);
        edit(&mut victim);
        named.push((name.to_owned(), victim.refused()));
    };
    case("does not begin with `GGUF`", &|v| v.put(0, b"GGML"));
    case("version 1", &|v| v.put(4, &1u32.to_le_bytes()));
    case("big-endian", &|v| v.put(4, &3u32.to_be_bytes()));
    case("tensors", &|v| v.put(8, &most));
    case("metadata entries", &|v| v.put(16, &most));
    case("cut off or damaged", &|v| v.put(24, &most));
    case("`general.architecture`", &|v| {
        let at = v.find("general.architecture") + 20;
        v.put(at + 4, &most);
    });
    case("type 77", &|v| {
        let at = v.find("general.architecture") + 20;
        v.put(at, &77u32.to_le_bytes());
    });
    case("tokenizer.ggml.tokens", &|v| {
        let at = v.find("tokenizer.ggml.tokens") + 21;
        v.put(at + 8, &most);
    });
    case("tokenizer.ggml.token_type", &|v| {
        let at = v.find("tokenizer.ggml.token_type") + 25;
        v.put(at + 8, &(u64::MAX / 2).to_le_bytes());
    });
    // A tensor's header: name, rank, two dimensions, type, offset.
    let embedding = |v: &Victim| v.find("token_embd.weight") + 17;
    case("dimensions", &|v| v.put(embedding(v), &9u32.to_le_bytes()));
    case("impossible shape", &|v| v.put(embedding(v) + 12, &most));
    case("impossible shape", &|v| v.put(embedding(v) + 4, &0u64.to_le_bytes()));
    case("token_embd.weight", &|v| v.put(embedding(v) + 12, &(1u64 << 40).to_le_bytes()));
    case("ggml's type 23", &|v| v.put(embedding(v) + 20, &23u32.to_le_bytes()));
    case("the file ends before", &|v| v.put(embedding(v) + 24, &(1u64 << 50).to_le_bytes()));
    case("the file ends before", &|v| v.put(embedding(v) + 24, &(u64::MAX - 31).to_le_bytes()));
    case("no multiple of 32", &|v| v.put(embedding(v) + 24, &far));
    case("stands twice", &|v| {
        let at = v.find("blk.0.attn_k.weight");
        v.put(at, b"blk.0.attn_q.weight");
    });
    for (name, error) in named {
        assert!(error.contains("model.gguf") && error.contains(&name), "{name}: {error}");
    }
}

#[test]
fn what_the_metadata_have_wrong_is_named() {
    let (_folder, mut gguf) = gguf(GgmlDType::F32);
    let text = |text: &str| Some(Value::String(text.into()));
    let list = |values: &[u32]| Some(Value::Array(values.iter().map(|&v| Value::U32(v)).collect()));
    for (key, value, named) in [
        ("general.architecture", None, "general.architecture"),
        ("general.architecture", text("mamba"), "mamba"),
        ("general.architecture", Some(Value::U32(1)), "is not a text"),
        ("general.alignment", Some(Value::U32(0)), "general.alignment"),
        ("general.alignment", Some(Value::U32(24)), "general.alignment"),
        ("split.count", Some(Value::U16(3)), "several parts"),
        ("llama.block_count", None, "llama.block_count"),
        ("llama.block_count", text("one"), "not a whole number"),
        ("llama.block_count", Some(Value::I32(-1)), "not a whole number"),
        ("llama.block_count", Some(Value::U32(2)), "blk.1."),
        ("llama.block_count", Some(Value::U32(u32::MAX)), "`llama.block_count` is 4294967295"),
        ("llama.embedding_length", Some(Value::U64(u64::MAX)), "embedding_length"),
        ("llama.embedding_length", Some(Value::U32(128)), "the metadata ask for"),
        ("llama.attention.head_count", Some(Value::U32(0)), "`llama.attention.head_count` is 0"),
        ("llama.attention.head_count_kv", Some(Value::U32(3)), "`llama.attention.head_count_kv`"),
        ("llama.attention.head_count_kv", list(&[1, 2]), "from layer to layer"),
        ("llama.attention.key_length", Some(Value::U32(7)), "attention.key_length"),
        ("llama.attention.value_length", Some(Value::U32(8)), "attention.value_length"),
        ("llama.rope.dimension_count", Some(Value::U32(8)), "rope.dimension_count"),
        ("llama.rope.scaling.type", text("yarn"), "yarn"),
        ("llama.rope.freq_base", Some(Value::F32(f32::NAN)), "freq_base"),
        ("llama.expert_count", Some(Value::U32(8)), "experts"),
        ("tokenizer.ggml.model", None, "no tokenizer"),
        ("tokenizer.ggml.model", text("bert"), "bert"),
        ("tokenizer.ggml.pre", None, "tokenizer.ggml.pre"),
        ("tokenizer.ggml.tokens", list(&[1, 2]), "a list of texts"),
        ("tokenizer.ggml.tokens", text("a"), "a list of texts"),
        ("tokenizer.ggml.tokens", Some(Value::Array(vec![])), "a list of texts"),
        ("tokenizer.ggml.token_type", list(&[1, 2]), "token_type"),
        ("tokenizer.ggml.merges", None, "tokenizer.ggml.merges"),
        ("tokenizer.ggml.merges", Some(Value::Array(vec![Value::String("alone".into())])), "alone"),
        ("tokenizer.ggml.bos_token_id", Some(Value::U32(400)), "bos_token_id"),
        ("tokenizer.ggml.eos_token_id", Some(Value::U32(u32::MAX)), "eos_token_id"),
        ("tokenizer.chat_template", Some(Value::F32(1.0)), "chat_template"),
    ] {
        let before = gguf.metadata.clone();
        gguf.set(key, value);
        println!("{key}, for `{named}`");
        let error = Victim::new(&gguf).refused();
        gguf.metadata = before;
        assert!(error.contains("model.gguf") && error.contains(named), "{key}: {error}");
    }
    let norm = gguf.tensors.iter().position(|(name, _)| name == "output_norm.weight").unwrap();
    gguf.tensors[norm].0 = "blk.0.ffn_gate_inp.weight".into();
    let error = Victim::new(&gguf).refused();
    assert!(error.contains("blk.0.ffn_gate_inp.weight"), "{error}");
    gguf.tensors.remove(norm);
    let error = Victim::new(&gguf).refused();
    assert!(error.contains("output_norm.weight") && error.contains("missing"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, max_shrink_iters: 40, ..ProptestConfig::default() })]

    /// Bytes changed anywhere, most of them in the header: an error that names the file, or a model.
    #[test]
    fn changed_bytes_never_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4u8), 1..6)) {
        use std::sync::OnceLock;
        static WHOLE: OnceLock<Vec<u8>> = OnceLock::new();
        let whole = WHOLE.get_or_init(|| Victim::new(&gguf(GgmlDType::Q4_0).1).bytes);
        let mut victim = Victim { folder: tempfile::tempdir().unwrap(), bytes: whole.clone() };
        let tensors = victim.find("general.architecture").max(victim.find("token_embd.weight")) + 64;
        for (index, byte, region) in changes {
            // The counts, the settings, the tensors' headers, anything.
            let (from, to) = match region {
                0 => (0, 64),
                1 => (0, tensors),
                2 => (tensors - 800, tensors),
                _ => (0, whole.len()),
            };
            victim.bytes[from + index.index(to - from)] = byte;
        }
        if let Err(error) = victim.load() {
            prop_assert!(error.to_string().contains("model.gguf"), "{}", error);
        }
    }
}
