//! Files that are read again when they change: certificates, keys, tokens.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

/// None of these files is larger; what is, is not one of them.
const MAX_BYTES: u64 = 4 << 20;

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", file.display())]
pub struct FileError {
    file: PathBuf,
    reason: String,
}

impl FileError {
    /// This file, for this reason.
    pub(crate) fn new(file: &Path, reason: impl ToString) -> Self {
        Self { file: file.to_owned(), reason: reason.to_string() }
    }
}

/// The contents of some files at one moment.
pub(crate) struct Files(Vec<(PathBuf, Vec<u8>)>);

impl Files {
    fn read(paths: &[PathBuf]) -> Result<Self, FileError> {
        paths.iter().map(|path| Ok((path.clone(), read(path)?))).collect::<Result<_, _>>().map(Self)
    }

    /// What stands in one of them.
    pub(crate) fn bytes(&self, path: &Path) -> &[u8] {
        self.0.iter().find(|(known, _)| known == path).map_or(&[], |(_, bytes)| bytes)
    }

    /// Tells contents apart without keeping keys around.
    fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for (_, bytes) in &self.0 {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        }
        hash.finalize().into()
    }
}

/// One file of at most 4 MiB.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes));
    read.map_err(|e| FileError::new(path, format!("cannot be read: {e}")))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(FileError::new(path, format!("is larger than {MAX_BYTES} bytes")));
    }
    Ok(bytes)
}

/// Reads and parses files now, and again whenever their contents have changed. The contents count, not
/// the time of change: a mounted secret is exchanged by a link. What cannot be parsed (a certificate
/// whose key is yet to come) is logged, and what was before stays.
///
/// It ends when nobody holds the receiver any more. Must be called within a tokio runtime.
///
/// # Errors
/// What is wrong with the files as they are now.
pub(crate) fn watch<T: Send + Sync + 'static>(
    paths: Vec<PathBuf>,
    every: Duration,
    parse: impl Fn(&Files) -> Result<T, FileError> + Send + 'static,
) -> Result<watch::Receiver<Arc<T>>, FileError> {
    let files = Files::read(&paths)?;
    let (sender, receiver) = watch::channel(Arc::new(parse(&files)?));
    let mut seen = files.digest();
    let mut complained = None;
    let mut look = move || {
        let files = Files::read(&paths)?;
        let now = files.digest();
        if now == seen {
            return Ok(None);
        }
        let parsed = parse(&files)?;
        seen = now;
        Ok(Some(parsed))
    };
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = sender.closed() => return,
                () = tokio::time::sleep(every) => {}
            }
            // A file system may hang; the threads that carry the streams must not.
            let looked = tokio::task::spawn_blocking(move || {
                let found: Result<Option<T>, FileError> = look();
                (look, found)
            });
            let Ok((back, found)) = looked.await else { return };
            look = back;
            match found {
                Ok(None) => complained = None,
                Ok(Some(new)) => {
                    complained = None;
                    tracing::info!("changed files are in use");
                    sender.send_replace(Arc::new(new));
                }
                Err(error) => {
                    let text = error.to_string();
                    if complained.as_ref() != Some(&text) {
                        tracing::warn!(error = text, "a changed file cannot be used; what was before stays");
                        complained = Some(text);
                    }
                }
            }
        }
    });
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn changes_are_seen_and_what_cannot_be_used_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("number");
        let parse = {
            let path = path.clone();
            move |files: &Files| {
                let text = std::str::from_utf8(files.bytes(&path)).unwrap();
                text.parse::<u32>().map_err(|e| FileError::new(&path, e))
            }
        };
        let every = Duration::from_millis(5);
        let error = watch(vec![path.clone()], every, parse.clone()).unwrap_err().to_string();
        assert!(error.contains("number") && error.contains("cannot be read"), "{error}");
        std::fs::write(&path, "1").unwrap();
        let mut number = watch(vec![path.clone()], every, parse).unwrap();
        assert_eq!(**number.borrow_and_update(), 1);
        std::fs::write(&path, "x").unwrap();
        std::fs::write(folder.path().join("new"), "2").unwrap();
        std::fs::rename(folder.path().join("new"), &path).unwrap();
        number.changed().await.unwrap();
        assert_eq!(**number.borrow_and_update(), 2);
    }

    #[test]
    fn a_file_that_is_too_large_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("large");
        File::create(&path).unwrap().set_len(MAX_BYTES + 1).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("larger"));
    }
}
