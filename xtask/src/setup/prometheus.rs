//! A Prometheus, for the test that has it scrape the agent.

use std::path::PathBuf;

use anyhow::Result;

use super::package;
use crate::workspace;

/// Where [`fetch`] puts `prometheus` and `promtool`.
#[must_use]
pub(crate) fn programs() -> PathBuf {
    directory().join("usr/bin")
}

fn directory() -> PathBuf {
    workspace::target().join("tools/prometheus")
}

/// Brings Debian's Prometheus, unless that has been done. It is not installed: that would start it.
///
/// # Errors
/// When apt knows no such package, or a step fails.
pub(crate) fn fetch() -> Result<()> {
    if directory().is_dir() {
        return Ok(());
    }
    let unpacking = workspace::target().join("tools/prometheus.unpacking");
    package::with_fresh_lists(|| package::unpack("prometheus", &unpacking))?;
    // Renamed last: a directory of this name is complete.
    Ok(std::fs::rename(&unpacking, directory())?)
}
