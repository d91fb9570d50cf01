//! The Python environment under `target/`, with the servers that tests and the demo measure.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::workspace;

/// Exits with 0 where a virtual environment can be made that the pinned Django runs in and
/// wheels of psycopg2 exist.
const FITS: &str =
    "import sys, venv, ensurepip; sys.exit(not (3, 8) <= sys.version_info < (3, 14))";

/// The directory of the environment.
pub(crate) fn venv() -> PathBuf {
    workspace::target().join("venv")
}

/// The interpreter that the environment is made from: the system's, which every user can run, then
/// the one in `PATH`.
pub(crate) fn interpreter() -> Option<PathBuf> {
    let system = Some(PathBuf::from("/usr/bin/python3")).filter(|path| path.is_file());
    system
        .into_iter()
        .chain(workspace::find_program("python3"))
        .find(|path| workspace::output(workspace::command(path).args(["-c", FITS])).is_ok())
}

/// Whether the environment holds what the requirements ask for today.
pub(crate) fn venv_is_current() -> bool {
    let wanted = std::fs::read(requirements());
    let installed = std::fs::read(stamp());
    matches!((wanted, installed), (Ok(wanted), Ok(installed)) if wanted == installed)
        && venv().join("bin/python").exists()
}

/// Makes the environment anew.
///
/// # Errors
/// When there is no fitting Python or a package cannot be installed.
pub(crate) fn make_venv() -> Result<()> {
    let python = interpreter().context("no Python from 3.8 to 3.13 with venv was found")?;
    workspace::run(workspace::command(python).args(["-m", "venv", "--clear"]).arg(venv()))?;
    let mut pip = workspace::command(venv().join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"]);
    workspace::run(pip.arg(requirements()))?;
    // Written last: an interrupted installation is done again.
    std::fs::copy(requirements(), stamp())
        .with_context(|| format!("cannot write {}", stamp().display()))?;
    Ok(())
}

fn requirements() -> PathBuf {
    workspace::root().join("tests/apps/requirements.txt")
}

fn stamp() -> PathBuf {
    venv().join("installed-requirements.txt")
}
