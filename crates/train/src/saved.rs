//! The checkpoint of a run: weights, moments and curve, from which it goes on to the same bits.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor, Var};
use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::curve::Curve;
use crate::optimizer::Moments;
use crate::trainer::Recipe;

/// Where a run keeps itself.
#[derive(Debug, Clone)]
pub struct Place {
    folder: PathBuf,
    /// Steps between checkpoints.
    pub every: usize,
    resume: bool,
    /// What else makes the run what it is: the data, the model, the loss. Another one is not resumed.
    pub of: Value,
}

/// What a run goes on from.
#[derive(Debug, Default)]
pub(crate) struct Saved {
    pub(crate) moments: Moments,
    pub(crate) curve: Curve,
}

const STATE: &str = "training.safetensors";
const LINES: &str = "loss.jsonl";
const PICTURE: &str = "loss.svg";
/// What a run writes of itself.
pub(crate) const FILES: [&str; 3] = [STATE, LINES, PICTURE];

impl Place {
    /// A folder, made when something is written, with a checkpoint every so many steps. `resume`: the run
    /// goes on from the checkpoint there.
    pub fn new(folder: &Path, every: usize, resume: bool) -> Self {
        Self { folder: folder.to_path_buf(), every: every.max(1), resume, of: Value::Null }
    }

    /// What is there to go on from; the weights are put into `vars`.
    ///
    /// # Errors
    /// A checkpoint is there and not asked for, or asked for and not there; it is damaged, or of another run.
    pub(crate) fn open(&self, recipe: &Recipe, vars: &BTreeMap<String, Var>) -> Result<Option<Saved>> {
        let path = self.folder.join(STATE);
        match (self.resume, path.exists()) {
            (false, false) => return Ok(None),
            (false, true) => bail!(
                "{} is the checkpoint of a run that has not ended; --resume goes on with it, or delete it",
                path.display()
            ),
            (true, false) => bail!("{} is not there: there is nothing to resume", path.display()),
            (true, true) => {}
        }
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        self.read(&bytes, recipe, vars).with_context(|| format!("{}", path.display())).map(Some)
    }

    fn read(&self, bytes: &[u8], recipe: &Recipe, vars: &BTreeMap<String, Var>) -> Result<Saved> {
        let (_, header) = SafeTensors::read_metadata(bytes).context("is damaged")?;
        let file = SafeTensors::deserialize(bytes).context("is damaged")?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let field = |name: &str| metadata.get(name).with_context(|| format!("says nothing of `{name}`"));
        let run: Value = serde_json::from_str(field("run")?)?;
        if let Some(difference) = difference(&run, &self.run(recipe)?, "run") {
            bail!("is the checkpoint of another run: {difference}");
        }
        let curve = Curve::parse(field("curve")?)?;
        let step = i32::try_from(curve.points.len()).context("has too many steps")?;
        let floats = |name: &str, count: usize| -> Result<Vec<f32>> {
            let view = file.tensor(name).with_context(|| format!("lacks {name}"))?;
            if view.dtype() != safetensors::Dtype::F32 || view.data().len() != 4 * count {
                bail!("{name} is of another shape than the model's");
            }
            let (words, _) = view.data().as_chunks::<4>();
            Ok(words.iter().map(|word| f32::from_le_bytes(*word)).collect())
        };
        let mut moments = Moments { step, ..Moments::default() };
        for (name, var) in vars {
            let count = var.elem_count();
            let weights = floats(&format!("weights/{name}"), count)?;
            var.set(&Tensor::from_vec(weights, var.shape(), var.device())?)?;
            // A weight that no gradient has reached has no moments.
            if file.tensor(&format!("first/{name}")).is_ok() {
                let pair =
                    (floats(&format!("first/{name}"), count)?, floats(&format!("second/{name}"), count)?);
                moments.by_name.insert(name.clone(), pair);
            }
        }
        Ok(Saved { moments, curve })
    }

    /// Writes checkpoint and curve; a crash in between leaves the checkpoint before it.
    ///
    /// # Errors
    /// A file cannot be written, named.
    pub(crate) fn save(
        &self,
        recipe: &Recipe,
        vars: &BTreeMap<String, Var>,
        moments: &Moments,
        curve: &Curve,
    ) -> Result<()> {
        let mut tensors = BTreeMap::new();
        for (name, var) in vars {
            tensors.insert(format!("weights/{name}"), var.as_detached_tensor());
            if let Some((first, second)) = moments.by_name.get(name) {
                let tensor = |values: &Vec<f32>| Tensor::new(values.as_slice(), &Device::Cpu);
                tensors.insert(format!("first/{name}"), tensor(first)?);
                tensors.insert(format!("second/{name}"), tensor(second)?);
            }
        }
        let lines = curve.lines()?;
        let run = self.run(recipe)?.to_string();
        let metadata = HashMap::from([("run".to_owned(), run), ("curve".to_owned(), lines.clone())]);
        fs::create_dir_all(&self.folder).with_context(|| format!("cannot make {}", self.folder.display()))?;
        self.replace(STATE, &safetensors::serialize(tensors, Some(metadata))?)?;
        self.replace(LINES, lines.as_bytes())?;
        self.replace(PICTURE, curve.svg()?.as_bytes())
    }

    /// Takes the checkpoint away: what it led to is written.
    ///
    /// # Errors
    /// It cannot be deleted.
    pub fn finish(&self) -> Result<()> {
        let path = self.folder.join(STATE);
        fs::remove_file(&path).with_context(|| format!("cannot delete {}", path.display()))
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let (path, new) = (self.folder.join(name), self.folder.join(format!("{name}.new")));
        let write = || {
            let mut file = fs::File::create(&new)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&new, &path)
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    fn run(&self, recipe: &Recipe) -> Result<Value> {
        Ok(json!({"recipe": serde_json::to_value(recipe)?, "of": self.of}))
    }
}

/// The first thing that differs, with both values.
fn difference(then: &Value, now: &Value, key: &str) -> Option<String> {
    match (then, now) {
        (Value::Object(then), Value::Object(now)) => {
            now.iter().find_map(|(key, now)| difference(then.get(key).unwrap_or(&Value::Null), now, key))
        }
        _ if then == now => None,
        _ => Some(format!("`{key}` was {then} and is {now}")),
    }
}
