//! Lengths as cells of a terminal.

use ratatui::{
    style::{Color, Style},
    text::Span,
};

use crate::model::account::{SlowFigures, stages::PerStage};

/// How a part of a bar looks: by its character too, for terminals and eyes without colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) character: char,
    pub(super) colour: Color,
}

const fn look(character: char, colour: Color) -> Look {
    Look { character, colour }
}

/// The stages'.
pub(super) const STAGES: PerStage<Look> = PerStage {
    accept_queue: look('░', Color::Red),
    request_net: look('-', Color::Blue),
    unread: look('▒', Color::Yellow),
    service: look('▓', Color::Green),
};
/// A database round trip's, within `service`.
pub(super) const DATABASE: Look = look('█', Color::Magenta);
const NOTHING: Look = look(' ', Color::Reset);

/// The looks of a thread's wait classes; of the others, a dot.
pub(super) fn class(name: &str) -> Look {
    match name {
        "database" => DATABASE,
        "cpu" => look('▓', Color::Green),
        "runqueue" => look('▒', Color::Yellow),
        "lock" => look('x', Color::Red),
        "client_io" => look('-', Color::Blue),
        "disk" => look('o', Color::Cyan),
        "idle" => look(' ', Color::Reset),
        _ => look('.', Color::Gray),
    }
}

impl Look {
    /// One cell, for a legend.
    pub(super) fn span(self) -> Span<'static> {
        Span::styled(self.character.to_string(), Style::new().fg(self.colour))
    }
}

/// A bar in the making.
#[derive(Debug)]
pub(super) struct Bar {
    cells: Vec<Look>,
    /// Amount that the whole width stands for.
    scale: f64,
}

impl Bar {
    /// Nothing, in so many cells, which all together stand for `scale`.
    pub(super) fn new(width: usize, scale: f64) -> Self {
        Self { cells: vec![NOTHING; width], scale }
    }

    fn cell(&self, amount: f64) -> usize {
        if self.scale <= 0.0 {
            return 0;
        }
        ((amount / self.scale * self.cells.len() as f64).round().max(0.0) as usize)
            .min(self.cells.len())
    }

    /// Fills what lies between two amounts; `visible`: at least a cell.
    pub(super) fn fill(&mut self, from: f64, to: f64, look: Look, visible: bool) {
        let first = self.cell(from);
        let last = self.cell(to).max(if visible { first + 1 } else { first });
        for cell in self.cells.iter_mut().take(last).skip(first) {
            *cell = look;
        }
    }

    /// Parts one after another.
    pub(super) fn stack(&mut self, parts: impl IntoIterator<Item = (f64, Look)>) {
        let mut from = 0.0;
        for (amount, look) in parts {
            self.fill(from, from + amount, look, false);
            from += amount;
        }
    }

    /// As text: equal cells in one piece.
    pub(super) fn spans(&self) -> Vec<Span<'static>> {
        let mut spans = Vec::new();
        for cells in self.cells.chunk_by(|a, b| a == b) {
            let text = cells.iter().map(|cell| cell.character).collect::<String>();
            spans.push(Span::styled(text, Style::new().fg(cells[0].colour)));
        }
        spans
    }
}

/// A request in time, on a scale of `scale` milliseconds.
pub(super) fn waterfall(slow: &SlowFigures, width: usize, scale: f64) -> Bar {
    let mut bar = Bar::new(width, scale);
    let ms = slow.stages_ms;
    // What lies before the service adds up from the left, the service ends the request: a stage
    // that is not known leaves a gap.
    let before = [ms.accept_queue, ms.request_net, ms.unread];
    let looks = [STAGES.accept_queue, STAGES.request_net, STAGES.unread];
    bar.stack(before.into_iter().flatten().zip(looks_of(&before, looks)));
    let service = ms.service.unwrap_or(0.0);
    bar.fill(slow.total_ms - service, slow.total_ms, STAGES.service, true);
    for trip in slow.database.iter().flatten() {
        bar.fill(trip.from_ms, trip.from_ms + trip.ms, DATABASE, true);
    }
    bar
}

/// The looks of those that are known.
fn looks_of<const N: usize>(
    known: &[Option<f64>; N],
    looks: [Look; N],
) -> impl Iterator<Item = Look> {
    known
        .map(|one| one.is_some())
        .into_iter()
        .zip(looks)
        .filter_map(|(is, look)| is.then_some(look))
}

/// Amounts as a line of blocks, the largest of them the full height; the last `width` of them.
pub(super) fn sparkline(amounts: &[f64], width: usize) -> String {
    const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let last = &amounts[amounts.len().saturating_sub(width)..];
    let most = last.iter().copied().fold(0.0, f64::max);
    last.iter()
        .map(|amount| {
            let level = if most > 0.0 { (amount / most * 8.0).ceil().max(0.0) as usize } else { 0 };
            BLOCKS[level.min(8)]
        })
        .collect()
}
