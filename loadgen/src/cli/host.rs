//! The machine, for the report.

use anyhow::{Context as _, Result};

use crate::report::model::{Host, SCHEMA_VERSION, Tool};

/// This machine.
pub(super) fn host() -> Result<Host> {
    let read =
        |path: &str| std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
    let (cpus, cpu_model) = parse_cpuinfo(&read("/proc/cpuinfo")?);
    Ok(Host { kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(), cpus, cpu_model })
}

/// A report of this program on `host`, without cells.
pub(super) fn empty_report(host: Host) -> crate::report::model::Report {
    crate::report::model::Report {
        schema_version: SCHEMA_VERSION,
        tool: Tool {
            name: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        },
        host,
        cells: Vec::new(),
    }
}

/// Processors online, and the first one's model (`unknown` where /proc/cpuinfo has no such line,
/// as on arm64).
fn parse_cpuinfo(text: &str) -> (u32, String) {
    let field = |line: &str, name: &str| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    };
    let cpus = text.lines().filter(|line| field(line, "processor").is_some()).count();
    let model = text.lines().find_map(|line| field(line, "model name"));
    (cpus as u32, model.unwrap_or_else(|| "unknown".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_counted() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n\nprocessor\t: 1\n";
        assert_eq!(parse_cpuinfo(text), (2, "Some CPU @ 2 GHz".to_owned()));
        assert_eq!(parse_cpuinfo("").1, "unknown");
        assert!(host().unwrap().cpus > 0);
    }
}
