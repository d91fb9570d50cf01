//! Report files: found writable before a run, written whole or not at all. `-` is standard output.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::reports::{Stream, print};

/// Whether `path` means standard output. A file of that name is `./-`.
pub(super) fn is_stdout(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Finds out whether `path` can be written, and leaves nothing behind.
pub(super) fn check_writable(path: &Path) -> Result<()> {
    if is_stdout(path) {
        return Ok(());
    }
    match Place::of(path)? {
        Place::Direct(path) => {
            open_existing(&path)?;
        }
        Place::Beside { part, .. } => {
            create(&part)?;
            fs::remove_file(&part).with_context(|| format!("cannot remove {}", part.display()))?;
        }
    }
    Ok(())
}

/// Writes `text` to `path`: to a file beside it which then takes its place, so that a reader never
/// sees half a report and a full disk does not cost the old one.
pub(super) fn write(path: &Path, text: &str) -> Result<()> {
    if is_stdout(path) {
        return print(text, Stream::Out);
    }
    let failed = || format!("cannot write {}", path.display());
    match Place::of(path)? {
        Place::Direct(path) => {
            let mut file = open_existing(&path)?;
            file.write_all(text.as_bytes()).and_then(|()| file.flush()).with_context(failed)
        }
        Place::Beside { path: target, part } => {
            let result = fill(&part, text)
                .and_then(|()| fs::rename(&part, &target).map_err(Into::into))
                .with_context(failed);
            if result.is_err() {
                // The first error is the one to tell.
                let _ = fs::remove_file(&part);
            }
            result
        }
    }
}

/// Where the bytes go first.
enum Place {
    /// A device or a pipe, which cannot be replaced by a file.
    Direct(PathBuf),
    /// A new file in the same directory.
    Beside { path: PathBuf, part: PathBuf },
}

impl Place {
    fn of(path: &Path) -> Result<Self> {
        let path = match fs::metadata(path) {
            Ok(meta) if meta.is_dir() => {
                bail!("cannot write {}: it is a directory; name a file in it", path.display())
            }
            Ok(meta) if !meta.is_file() => return Ok(Self::Direct(path.to_owned())),
            // A link stays a link: what it points to is replaced.
            Ok(_) => {
                path.canonicalize().with_context(|| format!("cannot write {}", path.display()))?
            }
            Err(_) => path.to_owned(),
        };
        let Some(name) = path.file_name() else {
            bail!("cannot write `{}`: name a file", path.display());
        };
        let mut part = std::ffi::OsString::from(".");
        part.push(name);
        part.push(format!(".{}.part", std::process::id()));
        Ok(Self::Beside { part: path.with_file_name(part), path })
    }
}

fn open_existing(path: &Path) -> Result<File> {
    OpenOptions::new()
        .write(true)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))
}

fn create(part: &Path) -> Result<File> {
    let directory = part.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(part)
        .with_context(|| format!("cannot write in {}", directory.display()))
}

fn fill(part: &Path, text: &str) -> Result<()> {
    let mut file = create(part)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_else_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("r.json");
        check_writable(&path).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        write(&path, "one").unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        write(&link, "two").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        assert!(link.is_symlink());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_cannot_be_written_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let error = |path: &Path| format!("{:#}", check_writable(path).unwrap_err());
        assert!(error(directory.path()).contains("it is a directory"));
        let missing = directory.path().join("no/r.json");
        let text = error(&missing);
        assert!(text.contains("cannot write in") && text.contains("No such file"), "{text}");
    }

    #[test]
    fn a_full_device_is_an_error_and_stays_a_device() {
        let path = Path::new("/dev/full");
        check_writable(path).unwrap();
        let text = format!("{:#}", write(path, "x").unwrap_err());
        assert!(text.contains("cannot write /dev/full: No space left on device"), "{text}");
        assert!(!fs::metadata(path).unwrap().is_file());
    }
}
