//! `--json`: one line for every window, one for all.

use std::io::Write;

use serde::Serialize;

use super::{session::Output, text::SHORTEST_S};
use crate::model::account::{Account, Figures, Summary};

/// Fields may be added, never renamed.
const SCHEMA_VERSION: u32 = 1;

/// Lines to a stream.
#[derive(Debug)]
pub(super) struct Lines<W> {
    out: W,
}

#[derive(Serialize)]
struct WindowLine<'a> {
    r#type: &'static str,
    schema_version: u32,
    #[serde(flatten)]
    figures: &'a Figures,
}

#[derive(Serialize)]
struct SummaryLine<'a> {
    r#type: &'static str,
    schema_version: u32,
    /// `duration`, `interrupted` or `service_gone`.
    ended: &'static str,
    #[serde(flatten)]
    summary: &'a Summary,
}

impl<W: Write> Lines<W> {
    /// To `out`.
    pub(super) fn new(out: W) -> Self {
        Self { out }
    }

    fn line(&mut self, line: &impl Serialize) -> anyhow::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        // In one piece, and out at once: whoever reads may read along.
        self.out.write_all(&text)?;
        Ok(self.out.flush()?)
    }
}

impl<W: Write> Output for Lines<W> {
    fn window(&mut self, figures: &Figures, _account: &Account) -> anyhow::Result<()> {
        let mut figures = figures.clone();
        if figures.to_s - figures.from_s < SHORTEST_S {
            // The last one may be some milliseconds long, and hold what was in hand: no rate. JSON has
            // no NaN, and writes null.
            figures.requests.answered_per_s = f64::NAN;
            figures.connections.accepted_per_s = f64::NAN;
        }
        let figures = &figures;
        self.line(&WindowLine { r#type: "window", schema_version: SCHEMA_VERSION, figures })
    }

    fn notice(&mut self, notice: &str) {
        eprintln!("agent: {notice}");
    }

    fn end(&mut self, summary: &Summary, ended: &'static str) -> anyhow::Result<()> {
        self.line(&SummaryLine {
            r#type: "summary",
            schema_version: SCHEMA_VERSION,
            ended,
            summary,
        })
    }
}
