//! Debian packages that are unpacked and not installed: a kernel that is booted elsewhere, a daemon
//! that the machine itself shall not run.

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::workspace;

/// Downloads a package and unpacks it into `directory`, which is emptied first.
///
/// # Errors
/// When apt knows no such package, or a step fails.
pub(crate) fn unpack(package: &str, directory: &Path) -> Result<()> {
    eprintln!("fetching {package}");
    let _ = std::fs::remove_dir_all(directory);
    std::fs::create_dir_all(directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    // As root, apt would rather download as its own user, which may not write here.
    workspace::run(
        workspace::command("apt-get")
            .args(["download", "-qq", "-o", "APT::Sandbox::User=", package])
            .current_dir(directory),
    )?;
    let archive = std::fs::read_dir(directory)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get download left no package")?;
    workspace::run(workspace::command("dpkg-deb").arg("-x").arg(&archive).arg(directory))?;
    Ok(std::fs::remove_file(&archive)?)
}

/// As `try_it`, and once more with new package lists: fresh images come without, and old ones name
/// versions that are gone.
///
/// # Errors
/// As there.
pub(crate) fn with_fresh_lists<T>(try_it: impl Fn() -> Result<T>) -> Result<T> {
    match try_it() {
        Err(error) if super::update_package_lists().is_ok() => {
            eprintln!("{error:#}; trying again with new package lists");
            try_it()
        }
        outcome => outcome,
    }
}
