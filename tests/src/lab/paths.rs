//! Where things are.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// The workspace's root directory.
#[must_use]
pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// The directory for everything that is built: `CARGO_TARGET_DIR`, else `target`.
#[must_use]
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => root().join(directory),
        None => root().join("target"),
    }
}

/// The laboratory's cache and scratch space.
#[must_use]
pub fn scratch() -> PathBuf {
    target().join("lab")
}

/// A directory of `tests/apps`.
#[must_use]
pub fn app(name: &str) -> PathBuf {
    root().join("tests/apps").join(name)
}

/// A program of the Python environment: in `DWELL_VENV`, else `target/venv`.
///
/// # Errors
/// When it is not there; the message says how to make it.
pub fn python(program: &str) -> Result<PathBuf> {
    let venv = std::env::var_os("DWELL_VENV").map_or_else(|| target().join("venv"), PathBuf::from);
    let path = venv.join("bin").join(program);
    if !path.exists() {
        bail!("{} not found; `cargo xtask setup` makes the Python environment", path.display());
    }
    Ok(path)
}

/// Finds a program in `PATH`, then where system administration programs live.
///
/// # Errors
/// When it is in none of them; the message names it.
pub fn system(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let admin = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let found = std::env::split_paths(&path)
        .chain(admin)
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file());
    match found {
        Some(path) => Ok(path),
        None => bail!("`{name}` not found; `cargo xtask setup` says which package holds it"),
    }
}
