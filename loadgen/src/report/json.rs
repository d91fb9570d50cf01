//! The report as JSON, `docs/report.schema.json`.

use super::model::{Report, SCHEMA_VERSION};

/// Why a report could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// A number that JSON cannot hold, or the like.
    #[error("the report cannot be written as JSON")]
    Write(#[source] serde_json::Error),
    /// Not JSON, or of another shape.
    #[error("not a report that `loadgen --json` wrote")]
    Read(#[source] serde_json::Error),
    /// Written by another version.
    #[error(
        "the report has schema version {found}, this loadgen reads {SCHEMA_VERSION}: use the \
         loadgen that wrote it"
    )]
    Version {
        /// What it says.
        found: u32,
    },
}

/// The report as indented JSON with a final newline.
///
/// # Errors
/// Only where serde_json fails on a number.
pub fn write(report: &Report) -> Result<String, JsonError> {
    serde_json::to_string_pretty(report).map(|text| text + "\n").map_err(JsonError::Write)
}

/// Reads what [`write`] wrote.
///
/// # Errors
/// When it is not a report, or one of another schema version.
pub fn read(text: &str) -> Result<Report, JsonError> {
    #[derive(serde::Deserialize)]
    struct Version {
        schema_version: u32,
    }
    // The version first: another version's report has another shape.
    let Version { schema_version } = serde_json::from_str(text).map_err(JsonError::Read)?;
    if schema_version != SCHEMA_VERSION {
        return Err(JsonError::Version { found: schema_version });
    }
    serde_json::from_str(text).map_err(JsonError::Read)
}
