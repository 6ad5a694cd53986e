//! A tiny checkpoint of which one file is whatever the fuzzer says.
//!
//! A library that a loader guards against may panic inside it; only a panic that gets out is a failure.
#![forbid(unsafe_code)]

use std::{fs, path::Path, sync::OnceLock};

use attune_engine::{
    BaseModel, LoadError, LoadOptions,
    random_checkpoint::{self, Family, Kind, Shape},
};
use attune_kernels::Threads;
use candle_core::quantized::GgmlDType;
use tempfile::TempDir;

#[allow(dead_code, clippy::unwrap_used, clippy::expect_used)]
#[path = "../../crates/engine/tests/gguf/writer.rs"]
mod writer;

/// A checkpoint in a folder of its own, of this process alone.
pub struct Victim {
    folder: TempDir,
    options: LoadOptions,
}

impl Victim {
    /// The process's own. Its file `name` as it should be becomes the first entry of the target's corpus.
    pub fn with(target: &str, name: &str) -> &'static Self {
        static VICTIM: OnceLock<Victim> = OnceLock::new();
        VICTIM.get_or_init(|| {
            std::panic::set_hook(Box::new(|_| ()));
            let folder = tempfile::tempdir().expect("a temporary folder");
            let shape = Shape { layers: 1, vocab: 300, ..Shape::tiny(Family::Llama) };
            if name == "model.gguf" {
                let source = tempfile::tempdir().expect("a temporary folder");
                random_checkpoint::write(source.path(), &shape, 3, Kind::Base).expect("a checkpoint");
                writer::Gguf::of(source.path(), GgmlDType::Q8_0).write(&folder.path().join(name));
            } else {
                random_checkpoint::write(folder.path(), &shape, 3, Kind::Base).expect("a checkpoint");
            }
            let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
            fs::create_dir_all(&corpus).expect("a folder for the corpus");
            if let Ok(file) = fs::read(folder.path().join(name)) {
                fs::write(corpus.join("whole"), file).expect("the corpus's first entry");
            }
            let threads = Threads::new(1).expect("a thread");
            Self { folder, options: LoadOptions { format: None, context: Some(64), threads } }
        })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Puts these bytes in the file's place.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        fs::write(self.folder.path().join(name), bytes).expect("a file");
    }

    /// Loads the folder, or a file in it, as a service does.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn load(&self, name: &str) -> Result<BaseModel, LoadError> {
        BaseModel::load(&self.folder.path().join(name), "victim", &self.options)
    }
}
