//! Models so small that a step costs nothing, for tests that run thousands of them.

use std::sync::{Arc, OnceLock};

use attune_engine::{
    BaseModel, LoadOptions, PersRm,
    random_checkpoint::{self, Family, Kind, Shape},
};
use attune_kernels::Threads;

/// A base model and a PersRM, made once.
///
/// # Panics
/// They cannot be written to a temporary folder.
#[allow(clippy::expect_used)] // nothing goes on without them
pub fn micro_models() -> &'static (Arc<BaseModel>, Arc<PersRm>) {
    static MODELS: OnceLock<(Arc<BaseModel>, Arc<PersRm>)> = OnceLock::new();
    MODELS.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let shape = Shape {
            hidden: 16,
            layers: 1,
            heads: 2,
            kv_heads: 1,
            head_dim: 8,
            intermediate: 32,
            vocab: 272,
            max_position: 128,
            std: 0.4,
            ..Shape::tiny(Family::Llama)
        };
        let (base, persrm) = (folder.path().join("base"), folder.path().join("persrm"));
        random_checkpoint::write(&base, &shape, 1, Kind::Base).expect("a checkpoint");
        random_checkpoint::write(&persrm, &shape, 2, Kind::PersRm { value_head: false })
            .expect("a checkpoint");
        let threads = Threads::new(1).expect("no thread is started for one");
        let options = LoadOptions { format: None, context: None, threads };
        let base = BaseModel::load(&base, "base", &options).expect("a base model");
        let persrm = PersRm::load(&persrm, "taste", &options).expect("a PersRM");
        (Arc::new(base), Arc::new(persrm))
    })
}
