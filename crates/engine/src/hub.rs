//! From what a user calls a model, a folder or a hub id, to a folder.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use hf_hub::{
    HFClientBuilder, HFClientSync, HFError, HFRepositorySync,
    progress::{DownloadEvent, Progress, ProgressEvent, ProgressHandler},
    repository::{RepoTreeEntry, RepoTypeModel},
};

use crate::{LoadError, checkpoint};

/// What a checkpoint folder may hold beside its weights.
const FILES: [&str; 7] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "value_head.safetensors",
    "attune.json",
];
const NEEDED: [&str; 2] = ["config.json", "tokenizer.json"];
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// The wait between tries doubles from 0.2 s, so that an unreachable hub is reported within 3 s.
const RETRIES: usize = 3;

/// The folder of a model: an existing folder as it is, or `org/name` fetched from the hub (or taken
/// from its cache) at a branch, tag or commit.
///
/// `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN` and, unless `endpoint` is given, `HF_ENDPOINT` are honoured.
/// Blocks while it downloads, and logs the progress. Only files that a checkpoint needs are fetched. If
/// the hub cannot be reached, a complete copy in the cache is used.
///
/// # Errors
/// The name is neither, or the hub does not give a whole checkpoint: the error says what was tried.
pub fn resolve(model: &str, revision: Option<&str>, endpoint: Option<&str>) -> Result<PathBuf, LoadError> {
    resolve_into(model, revision, endpoint, None)
}

/// As [`resolve`], with the folder of the cache given.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_into(
    model: &str,
    revision: Option<&str>,
    endpoint: Option<&str>,
    cache: Option<&Path>,
) -> Result<PathBuf, LoadError> {
    let path = Path::new(model);
    if path.is_dir() {
        return Ok(path.to_path_buf());
    }
    if path.exists() {
        return Err(LoadError::file(path, "is a file; name the folder that holds it"));
    }
    let Some((owner, name)) = hub_id(model) else {
        return Err(LoadError::Other(format!(
            "`{model}` is no model: no such folder exists, and it is no hub id of the form `org/name`"
        )));
    };
    fetch(owner, name, revision, endpoint, cache).map_err(|problem| {
        LoadError::Other(format!(
            "`{model}` is no model: no such folder exists, and from the hub it cannot be had: {problem}"
        ))
    })
}

/// `org/name`, in the characters that the hub allows.
fn hub_id(model: &str) -> Option<(&str, &str)> {
    let (owner, name) = model.split_once('/')?;
    let legal = |part: &str| {
        part.len() <= 96
            && part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    (legal(owner) && legal(name)).then_some((owner, name))
}

fn fetch(
    owner: &str,
    name: &str,
    revision: Option<&str>,
    endpoint: Option<&str>,
    cache: Option<&Path>,
) -> Result<PathBuf, Problem> {
    let mut builder = HFClientBuilder::new().retry_max_attempts(RETRIES);
    if let Some(endpoint) = endpoint {
        builder = builder.endpoint(endpoint);
    }
    if let Some(cache) = cache {
        builder = builder.cache_dir(cache);
    }
    let async_client = builder.build()?;
    let hub = async_client.endpoint().to_owned();
    let repository = HFClientSync::from_inner(async_client)?.model(owner, name);
    match download(&repository, revision) {
        // Only where nobody answers: an answer such as "gone" or "forbidden" must not be overridden.
        Err(Problem::Hub(HFError::Request { source, .. })) => {
            let unreachable = || Problem::Other(format!("{hub} cannot be reached ({source}), and the cache has no copy"));
            let folder = snapshot(&repository, revision, None, true).map_err(|_| unreachable())?;
            missing_file(&folder).map_or(Ok(()), |_| Err(unreachable()))?;
            tracing::warn!(%hub, folder = %folder.display(), "the hub cannot be reached; using the cached copy");
            Ok(folder)
        }
        other => other,
    }
}

fn download(repository: &HFRepositorySync<RepoTypeModel>, revision: Option<&str>) -> Result<PathBuf, Problem> {
    let entries = repository.list_tree().maybe_revision(revision).send()?;
    let sizes: HashMap<String, u64> = entries
        .into_iter()
        .filter_map(|entry| match entry {
            RepoTreeEntry::File { path, size, .. } => Some((path, size)),
            _ => None,
        })
        .collect();
    if let Some(file) = NEEDED.iter().find(|file| !sizes.contains_key(**file)) {
        return Err(Problem::Other(format!("the repository has no {file}")));
    }
    let weights = [SINGLE, INDEX].into_iter().find(|file| sizes.contains_key(*file)).ok_or_else(|| {
        Problem::Other(format!("the repository has neither {SINGLE} nor {INDEX} (other formats are not read)"))
    })?;
    let mut wanted: Vec<String> =
        FILES.iter().filter(|file| sizes.contains_key(**file)).map(ToString::to_string).collect();
    wanted.push(weights.to_owned());
    let folder = snapshot(repository, revision, Some(wanted.clone()), false)?;

    if weights == INDEX {
        let shards = shards(&folder)?;
        if let Some(name) = shards.iter().find(|name| !sizes.contains_key(*name)) {
            return Err(Problem::Other(format!("{INDEX} names `{name}`, which the repository does not have")));
        }
        // The folder is named by the commit: its shards, even if the branch has moved on meanwhile.
        let commit = folder.file_name().and_then(|name| name.to_str());
        snapshot(repository, commit, Some(shards.clone()), false)?;
        wanted.extend(shards);
    }
    for file in wanted {
        let path = folder.join(&file);
        let there = std::fs::metadata(&path).map(|meta| meta.len()).ok();
        if there != sizes.get(&file).copied() {
            // Out of the way, so that the next start fetches it anew.
            let _ = std::fs::canonicalize(&path).and_then(std::fs::remove_file);
            let _ = std::fs::remove_file(&path);
            return Err(Problem::Other(format!("{file} did not arrive whole; try again")));
        }
    }
    Ok(folder)
}

fn snapshot(
    repository: &HFRepositorySync<RepoTypeModel>,
    revision: Option<&str>,
    files: Option<Vec<String>>,
    cached: bool,
) -> Result<PathBuf, HFError> {
    repository
        .snapshot_download()
        .maybe_revision(revision)
        .maybe_allow_patterns(files.map(|files| files.iter().map(|file| literal(file)).collect()))
        .local_files_only(cached)
        .progress(Progress::from(std::sync::Arc::new(Log::default())))
        .send()
}

/// A glob that matches this file name alone.
fn literal(name: &str) -> String {
    name.chars().map(|c| if "*?[]{}!\\".contains(c) { format!("[{c}]") } else { c.to_string() }).collect()
}

/// The shards that the folder's index names.
fn shards(folder: &Path) -> Result<Vec<String>, Problem> {
    let paths = checkpoint::shards(folder, &folder.join(INDEX)).map_err(|e| Problem::Other(e.to_string()))?;
    Ok(paths.iter().filter_map(|path| path.file_name()?.to_str().map(str::to_owned)).collect())
}

/// The first file that a cached checkpoint lacks.
fn missing_file(folder: &Path) -> Option<String> {
    let mut needed: Vec<String> = NEEDED.map(str::to_owned).to_vec();
    if folder.join(SINGLE).exists() {
        needed.push(SINGLE.to_owned());
    } else {
        match shards(folder) {
            Ok(shards) => needed.extend(shards),
            Err(_) => return Some(INDEX.to_owned()),
        }
    }
    needed.into_iter().find(|file| !folder.join(file).exists())
}

/// Why the hub gave no checkpoint.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error(transparent)]
    Hub(#[from] HFError),
    #[error("{0}")]
    Other(String),
}

/// Logs a download: its start, every tenth of it, and its end.
#[derive(Default)]
struct Log(Mutex<Transfer>);

#[derive(Default)]
struct Transfer {
    total: u64,
    /// Bytes there, by file.
    files: HashMap<String, u64>,
    tenths: u64,
}

impl ProgressHandler for Log {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Download(event) = event else { return };
        let mut transfer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            // Single files of a snapshot announce themselves too; the first announcement is the whole.
            DownloadEvent::Start { total_files, total_bytes } if transfer.total == 0 && *total_bytes > 0 => {
                transfer.total = *total_bytes;
                tracing::info!(files = total_files, bytes = total_bytes, "downloading the model");
            }
            DownloadEvent::Progress { files } => {
                for file in files {
                    transfer.files.insert(file.filename.clone(), file.bytes_completed);
                }
                let done = transfer.files.values().sum();
                transfer.report(done);
            }
            DownloadEvent::AggregateProgress { bytes_completed, .. } => transfer.report(*bytes_completed),
            _ => {}
        }
    }
}

impl Transfer {
    fn report(&mut self, done: u64) {
        let tenths = (done.saturating_mul(10)).checked_div(self.total).unwrap_or(0).min(10);
        if tenths > self.tenths {
            self.tenths = tenths;
            tracing::info!(percent = tenths * 10, bytes = done, "downloading the model");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_two_legal_parts_are_a_hub_id() {
        assert_eq!(hub_id("org/name-1.5_b"), Some(("org", "name-1.5_b")));
        for other in ["name", "a/b/c", "../b", "a/..", "/a", "a/", "a/b c", "a/b?c", "https://a/b", ""] {
            assert_eq!(hub_id(other), None, "{other}");
        }
    }
}
