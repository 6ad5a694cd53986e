//! `attune fetch`.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use attune_engine::hub;

/// Flags of `attune fetch`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "HF_HUB_CACHE (or HF_HOME) says where it is kept, HF_TOKEN who asks, HF_ENDPOINT which hub is asked.

Example:
  HF_HUB_CACHE=/models/hub attune fetch my-org/my-persrm --revision 1a2b3c --link /models/persrm"
)]
pub(crate) struct FetchArgs {
    /// The model's id, as organisation/name. A folder or GGUF file that exists is taken as it is.
    model: String,
    /// A branch, a tag or a commit [default: main]
    #[arg(long, value_name = "REVISION")]
    revision: Option<String>,
    /// Make this path a symbolic link to the model's folder, instead of a link that stands there.
    #[arg(long, value_name = "PATH")]
    link: Option<PathBuf>,
}

/// Fetches what a checkpoint needs, and prints where it lies.
pub(crate) fn run(args: &FetchArgs) -> Result<()> {
    let folder = hub::resolve(&args.model, args.revision.as_deref(), None)?;
    if let Some(link) = &args.link {
        point(link, &folder).with_context(|| format!("--link {}", link.display()))?;
    }
    writeln!(std::io::stdout(), "{}", folder.display())?;
    Ok(())
}

/// Puts a link to `folder` at `link` in one step, so that whoever reads meanwhile finds the old or the new.
fn point(link: &Path, folder: &Path) -> Result<()> {
    match link.symlink_metadata() {
        Ok(there) if !there.is_symlink() => bail!("something that is no link stands there"),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    let folder = folder.canonicalize()?;
    let mut beside = link.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    let beside = PathBuf::from(beside);
    make_link(&folder, &beside)?;
    std::fs::rename(&beside, link).inspect_err(|_| {
        // What could not be put in place is not left lying about.
        let _ = std::fs::remove_file(&beside);
    })?;
    Ok(())
}

#[cfg(unix)]
fn make_link(folder: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(folder, link)
}

#[cfg(windows)]
fn make_link(folder: &Path, link: &Path) -> std::io::Result<()> {
    std::os::windows::fs::symlink_dir(folder, link)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_replaced_and_nothing_else_is() {
        let place = tempfile::tempdir().unwrap();
        let [a, b, link] = ["a", "b", "model"].map(|name| place.path().join(name));
        std::fs::create_dir(&a).unwrap();
        std::fs::create_dir(&b).unwrap();
        for folder in [&a, &b] {
            let model = folder.to_str().unwrap().to_owned();
            run(&FetchArgs { model, revision: None, link: Some(link.clone()) }).unwrap();
            assert_eq!(std::fs::read_link(&link).unwrap(), folder.canonicalize().unwrap());
        }
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 3, "nothing is left beside it");
        let model = a.to_str().unwrap().to_owned();
        let error = run(&FetchArgs { model, revision: None, link: Some(b.clone()) }).unwrap_err();
        assert!(format!("{error:#}").contains("no link stands there"), "{error:#}");
        assert!(b.is_dir());
    }
}
