//! From what a user calls a model (a folder, a GGUF file, a hub id) to where it lies.

use std::{
    collections::HashSet,
    env,
    path::{Path, PathBuf},
};

use hf_hub::{
    Cache, CacheRepo, Repo, RepoType,
    api::{
        Progress,
        sync::{ApiBuilder, ApiError, ApiRepo},
    },
};

use crate::{
    LoadError, ModelPath,
    checkpoint::{self, adapter},
};

/// What a checkpoint folder may hold beside its weights.
const FILES: [&str; 10] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "value_head.safetensors",
    "weight_head.safetensors",
    "latent_adapter.safetensors",
    "weight_prior.safetensors",
    "attune.json",
];
const NEEDED: [&str; 2] = ["config.json", "tokenizer.json"];
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const HUB: &str = "https://huggingface.co";
/// Tries to go on with a broken transfer, with a wait between them.
const RETRIES: usize = 3;

/// The place of a model that may be a LoRA adapter: then also that of the base that it is worn on, which is
/// `base`, else the hub id that the adapter names.
///
/// # Errors
/// As [`resolve`]; an adapter without a base, or a base without an adapter.
pub fn locate(model: &str, revision: Option<&str>, base: Option<&str>) -> Result<ModelPath, LoadError> {
    let path = resolve(model, revision, None)?;
    if !ModelPath::is_adapter(&path) {
        return match base {
            None => Ok(ModelPath::from(&path)),
            Some(base) => Err(LoadError::Other(format!(
                "`base_model` is `{base}`, but `{model}` is a model of its own and no adapter; leave it out"
            ))),
        };
    }
    let settings = path.join(adapter::CONFIG);
    let named = match base {
        Some(base) => base.to_owned(),
        None => match adapter::base_of(&path)? {
            // What a file says must not make this process read a path of its choice.
            Some(name) if is_hub_id(&name) && !Path::new(&name).exists() => name,
            Some(name) => {
                let problem = format!("was trained on `{name}`; give that base by `base_model`");
                return Err(LoadError::file(&settings, problem));
            }
            None => return Err(LoadError::file(&settings, "names no base; give it by `base_model`")),
        },
    };
    Ok(ModelPath::adapted(resolve(&named, None, None)?, path))
}

/// The place of a model: an existing folder or GGUF file as it is, or `org/name` fetched from the hub (or taken
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

/// As [`resolve`], for whoever needs `config.json` (and `attune.json`, where there is one) alone: of a hub id,
/// nothing else is fetched.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_config(
    model: &str,
    revision: Option<&str>,
    endpoint: Option<&str>,
    cache: Option<&Path>,
) -> Result<PathBuf, LoadError> {
    place(model, revision, endpoint, cache, Wanted::Config)
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
    place(model, revision, endpoint, cache, Wanted::Checkpoint)
}

/// What of a model is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Checkpoint,
    Config,
}

fn place(
    model: &str,
    revision: Option<&str>,
    endpoint: Option<&str>,
    cache: Option<&Path>,
    wanted: Wanted,
) -> Result<PathBuf, LoadError> {
    let path = Path::new(model);
    if path.is_dir() || crate::gguf::find(path)?.is_some() {
        return Ok(path.to_path_buf());
    }
    if path.exists() {
        return Err(LoadError::file(path, "is a file, but no .gguf; name the folder that holds it"));
    }
    if !is_hub_id(model) {
        return Err(LoadError::Other(format!(
            "`{model}` is no model: no such folder exists, and it is no hub id of the form `org/name`"
        )));
    }
    let revision = revision.unwrap_or("main");
    if !is_revision(revision) {
        return Err(LoadError::Other(format!(
            "`{revision}` is no revision: name a branch, a tag or a commit"
        )));
    }
    fetch(model, revision, endpoint, cache, wanted).map_err(|problem| {
        LoadError::Other(format!(
            "`{model}` is no model: no such folder exists, and from the hub it cannot be had: {problem}"
        ))
    })
}

/// `org/name`, in the characters that the hub allows.
fn is_hub_id(model: &str) -> bool {
    let legal = |part: &str| {
        part.len() <= 96
            && part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    model.split_once('/').is_some_and(|(owner, name)| legal(owner) && legal(name))
}

/// Revisions become part of paths and addresses.
fn is_revision(revision: &str) -> bool {
    let legal = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.+".contains(c))
    };
    revision.len() <= 200 && revision.split('/').all(legal)
}

fn fetch(
    id: &str,
    revision: &str,
    endpoint: Option<&str>,
    cache: Option<&Path>,
    wanted: Wanted,
) -> Result<PathBuf, Problem> {
    let cache = Cache::new(cache.map_or_else(cache_folder, |path| Ok(path.to_path_buf()))?);
    let variable = |name| env::var(name).ok().filter(|value| !value.is_empty());
    let hub =
        endpoint.map(str::to_owned).or_else(|| variable("HF_ENDPOINT")).unwrap_or_else(|| HUB.to_owned());
    let hub = hub.trim_end_matches('/').to_owned();
    let mut builder = ApiBuilder::from_cache(cache.clone()).with_endpoint(hub.clone()).with_retries(RETRIES);
    if let Some(token) = variable("HF_TOKEN") {
        builder = builder.with_token(Some(token));
    }
    let api = builder.build()?;
    let repo = |revision: &str| Repo::with_revision(id.to_owned(), RepoType::Model, revision.to_owned());

    let info = match api.repo(repo(revision)).info() {
        Ok(info) => info,
        // An answer such as "gone" or "forbidden" is one; only where nobody answers may the cache step in.
        Err(ApiError::RequestError(error)) if !matches!(*error, ureq::Error::StatusCode(_)) => {
            let cached =
                cache.repo(repo(revision)).get("config.json").and_then(|p| p.parent().map(Path::to_path_buf));
            let Some(folder) =
                cached.filter(|folder| wanted == Wanted::Config || missing_file(folder).is_none())
            else {
                return Err(Problem::Other(format!(
                    "{hub} cannot be reached ({error}), and the cache has no copy"
                )));
            };
            tracing::warn!(%hub, folder = %folder.display(), "the hub cannot be reached; using the cached copy");
            return Ok(folder);
        }
        Err(ApiError::RequestError(error)) => {
            let hint = "check the name and the revision; a private or gated model needs HF_TOKEN";
            return Err(Problem::Other(format!("{hub} answers for revision `{revision}`: {error} ({hint})")));
        }
        Err(error) => return Err(error.into()),
    };
    if info.sha.len() != 40 || !info.sha.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Problem::Other(format!("{hub} names no commit for revision `{revision}`")));
    }
    // All files of one commit, even if the branch moves on meanwhile.
    let there = info.siblings.into_iter().map(|file| file.rfilename).collect();
    let pinned = Pinned { remote: api.repo(repo(&info.sha)), cached: cache.repo(repo(&info.sha)) };
    let folder = match wanted {
        Wanted::Checkpoint => download(&pinned, &there)?,
        Wanted::Config => download_config(&pinned, &there)?,
    };
    cache.repo(repo(revision)).create_ref(&info.sha)?;
    Ok(folder)
}

/// As the hub's own tools choose it.
fn cache_folder() -> Result<PathBuf, Problem> {
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("HF_HUB_CACHE")
        .or_else(|| variable("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| env::home_dir().map(|home| home.join(".cache/huggingface/hub")))
        .ok_or_else(|| Problem::Other("there is no home folder to keep it in: set HF_HOME".to_owned()))
}

/// One commit of a repository, at the hub and in the cache.
struct Pinned {
    remote: ApiRepo,
    cached: CacheRepo,
}

/// Fetches what a checkpoint needs of the files that are there.
fn download(repo: &Pinned, there: &HashSet<String>) -> Result<PathBuf, Problem> {
    if let Some(file) = NEEDED.iter().find(|file| !there.contains(**file)) {
        return Err(Problem::Other(format!("the repository has no {file}")));
    }
    let weights = [SINGLE, INDEX].into_iter().find(|file| there.contains(*file)).ok_or_else(|| {
        Problem::Other(format!(
            "the repository has neither {SINGLE} nor {INDEX} (other formats are not read)"
        ))
    })?;
    for file in FILES.iter().filter(|file| there.contains(**file)) {
        get(repo, file)?;
    }
    let path = get(repo, weights)?;
    let folder = path.parent().map(Path::to_path_buf).unwrap_or_default();
    if weights == INDEX {
        for shard in shards(&folder)? {
            if !there.contains(&shard) {
                return Err(Problem::Other(format!(
                    "{INDEX} names `{shard}`, which the repository does not have"
                )));
            }
            get(repo, &shard)?;
        }
    }
    Ok(folder)
}

/// Fetches what says how large a model is.
fn download_config(repo: &Pinned, there: &HashSet<String>) -> Result<PathBuf, Problem> {
    if !there.contains("config.json") {
        return Err(Problem::Other("the repository has no config.json".to_owned()));
    }
    let config = get(repo, "config.json")?;
    if there.contains("attune.json") {
        get(repo, "attune.json")?;
    }
    Ok(config.parent().map(Path::to_path_buf).unwrap_or_default())
}

/// One file, from the cache or the hub.
fn get(repo: &Pinned, file: &str) -> Result<PathBuf, Problem> {
    if let Some(path) = repo.cached.get(file) {
        return Ok(path);
    }
    let mut transfer = Transfer::default();
    let path = repo
        .remote
        .download_with_progress(file, &mut transfer)
        .map_err(|e| Problem::Other(format!("{file}: {e}")))?;
    if std::fs::metadata(&path)?.len() != transfer.size as u64 {
        // Out of the way, so that the next start fetches it anew.
        std::fs::canonicalize(&path).and_then(std::fs::remove_file)?;
        std::fs::remove_file(&path)?;
        return Err(Problem::Other(format!("{file} did not arrive whole; try again")));
    }
    Ok(path)
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
    Hub(#[from] ApiError),
    #[error("the cache cannot be written: {0}")]
    Cache(#[from] std::io::Error),
    #[error("{0}")]
    Other(String),
}

/// Logs the download of one file: its start, and every tenth of a large one.
#[derive(Default)]
struct Transfer {
    file: String,
    size: usize,
    done: usize,
    tenths: usize,
}

/// Files below this, in bytes, arrive too soon to be talked about.
const LARGE: usize = 64 << 20;

impl Progress for &mut Transfer {
    fn init(&mut self, size: usize, filename: &str) {
        // Called again for each try.
        if self.file.is_empty() {
            tracing::info!(file = filename, bytes = size, "downloading");
        }
        **self = Transfer { file: filename.to_owned(), size, done: 0, tenths: self.tenths };
    }

    fn update(&mut self, size: usize) {
        self.done += size;
        let tenths = self.done.saturating_mul(10).checked_div(self.size).unwrap_or(0);
        if tenths > self.tenths && self.size >= LARGE {
            self.tenths = tenths;
            tracing::info!(file = self.file, percent = tenths * 10, "downloading");
        }
    }

    fn finish(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_two_legal_parts_are_a_hub_id() {
        assert!(is_hub_id("org/name-1.5_b"));
        for other in ["name", "a/b/c", "../b", "a/..", "/a", "a/", "a/b c", "a/b?c", "https://a/b", ""] {
            assert!(!is_hub_id(other), "{other}");
        }
    }

    #[test]
    fn a_revision_stays_in_its_folder() {
        for good in ["main", "v1.0", "refs/pr/3", "0123456789abcdef"] {
            assert!(is_revision(good), "{good}");
        }
        for other in ["", "../x", "a/../b", "/a", "a//b", "a b", "a?b", "a%2f"] {
            assert!(!is_revision(other), "{other}");
        }
    }
}
