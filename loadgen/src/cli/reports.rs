//! `loadgen report` and `loadgen predict`: reports of earlier runs in, text and files out.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use agent_common::duration;
use anyhow::{Context as _, Result, anyhow};

use super::{EXIT_INVALID, EXIT_OK, Output, PredictArgs, ReportArgs, Stop, files, tell};
use crate::predict;
use crate::report::model::Report;
use crate::report::text::Colour;
use crate::report::{html, json, text};

/// `loadgen report`.
pub(super) fn report(args: &ReportArgs) -> Result<u8, Stop> {
    check_output(&args.output)?;
    let mut runs = args.runs.iter();
    let first = runs.next().ok_or_else(|| Stop::Usage(anyhow!("name at least one report")))?;
    let mut whole = read(first)?;
    for path in runs {
        let other = read(path)?;
        if other.host != whole.host {
            tell(format_args!(
                "warning: {} comes from another host or kernel than {}: compare with care",
                path.display(),
                first.display()
            ));
        }
        whole.cells.extend(other.cells);
    }
    let written = write_files(&whole, &args.output);
    written.and(show(&whole, &args.output))?;
    Ok(EXIT_OK)
}

/// `loadgen predict`.
pub(super) fn predict(args: &PredictArgs) -> Result<u8, Stop> {
    if let Some(path) = &args.json {
        files::check_writable(path)?;
    }
    let report = read(&args.from)?;
    let cell = match (&args.name, report.cells.as_slice()) {
        (None, [cell]) => cell,
        (None, cells) => {
            let names: Vec<_> = cells.iter().map(|cell| cell.name.as_str()).collect();
            return Err(Stop::Usage(anyhow!(
                "{} holds {} runs: choose one with --name ({})",
                args.from.display(),
                cells.len(),
                names.join(", ")
            )));
        }
        (Some(name), cells) => cells.iter().find(|cell| cell.name == *name).ok_or_else(|| {
            let names: Vec<_> = cells.iter().map(|cell| cell.name.as_str()).collect();
            Stop::Usage(anyhow!(
                "{} holds no run named `{name}`, but {}",
                args.from.display(),
                names.join(", ")
            ))
        })?,
    };
    let delay_ns = u64::try_from(args.delay.as_nanos()).context("the delay is out of range")?;
    let prediction = predict::predict(cell, delay_ns);
    let mut out = format!(
        "Prediction for a delay of {}, from `{}`\n",
        duration::format(args.delay),
        prediction.from
    );
    if let Some(reason) = &prediction.no_prediction {
        out.push_str(&format!("  no prediction: {reason}\n"));
    }
    let number = |value: Option<f64>, unit: &str| {
        value.map_or_else(|| "cannot tell".to_owned(), |value| format!("{value:.2} {unit}"))
    };
    let lines = [
        ("throughput", number(prediction.predicted_rps, "requests/s")),
        ("upper bound", number(prediction.upper_bound_rps, "requests/s")),
        ("worker held", number(prediction.held_ms, "ms per request")),
        ("delays in a row", number(prediction.crossings, "per request")),
    ];
    for (name, value) in lines.iter().filter(|_| prediction.no_prediction.is_none()) {
        out.push_str(&format!("  {name:<16} {value}\n"));
    }
    for assumption in &prediction.assumptions {
        out.push_str(&format!("  - {assumption}\n"));
    }
    let written = args.json.as_ref().map_or(Ok(()), |path| {
        let text = serde_json::to_string_pretty(&prediction).context("cannot write JSON")?;
        files::write(path, &(text + "\n"))
    });
    let shown = print(&out, Stream::for_text([&args.json]));
    written.and(shown)?;
    Ok(if prediction.no_prediction.is_some() { EXIT_INVALID } else { EXIT_OK })
}

/// Reads a prediction that [`predict`] wrote.
pub(super) fn read_prediction(path: &Path) -> Result<predict::Prediction> {
    let text = read_text(path)?;
    serde_json::from_str(&text).with_context(|| {
        format!("{} is no prediction that `loadgen predict --json` wrote", path.display())
    })
}

/// Whether every file of `output` can be written.
pub(super) fn check_output(output: &Output) -> Result<(), Stop> {
    if output.json.is_some() && output.json == output.html {
        return Err(Stop::Usage(anyhow!("--json and --html name the same file")));
    }
    output.json.iter().chain(&output.html).try_for_each(|path| files::check_writable(path))?;
    Ok(())
}

/// Where output goes that is no file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

impl Stream {
    /// Where the text for people goes, given the files that were asked for: not where a program
    /// reads one of them.
    pub(super) fn for_text<'a>(files: impl IntoIterator<Item = &'a Option<PathBuf>>) -> Self {
        let taken = files.into_iter().flatten().any(|path| files::is_stdout(path));
        if taken { Self::Err } else { Self::Out }
    }
}

impl Output {
    /// Where the text for people goes.
    pub(super) fn text(&self) -> Stream {
        Stream::for_text([&self.json, &self.html])
    }
}

/// Prints a report: one run in full, several as a table.
pub(super) fn show(report: &Report, output: &Output) -> Result<()> {
    let stream = output.text();
    let terminal = match stream {
        Stream::Out => std::io::stdout().is_terminal(),
        Stream::Err => std::io::stderr().is_terminal(),
    };
    let colour = if colour_wanted(terminal) { Colour::Always } else { Colour::Never };
    let text = match report.cells.as_slice() {
        [cell] => text::cell(cell, colour),
        _ => text::table(report, colour),
    };
    print(&text, stream)
}

/// Writes the files that were asked for, each whether or not the other can be written.
pub(super) fn write_files(report: &Report, output: &Output) -> Result<()> {
    let json = output.json.as_ref().map_or(Ok(()), |path| {
        json::write(report).map_err(Into::into).and_then(|text| files::write(path, &text))
    });
    let html = output.html.as_ref().map_or(Ok(()), |path| files::write(path, &html::page(report)));
    json.and(html)
}

/// Colour only where a person looks who did not ask for none (<https://no-color.org>).
pub(super) fn colour_wanted(terminal: bool) -> bool {
    terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Prints. On standard error nobody needs to listen.
pub(super) fn print(text: &str, stream: Stream) -> Result<()> {
    if stream == Stream::Err {
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
        return Ok(());
    }
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    match written {
        // The reader has seen enough, as `head` does.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to standard output"),
    }
}

fn read(path: &Path) -> Result<Report> {
    let text = read_text(path)?;
    json::read(&text).with_context(|| path.display().to_string())
}

fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
