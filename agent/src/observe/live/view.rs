//! What is on the screen, as lines: no terminal is needed to tell.

use agent_common::abi::class;
use ratatui::{
    style::{Modifier, Style},
    text::{Line, Span},
};

use super::bars::{self, Bar, sparkline, waterfall};
use crate::{
    model::account::{Depth, Figures, SlowFigures, stages::PerStage, times::TimesFigures},
    observe::text::{fit, ms},
};

/// Lines beside the statements and the slow requests: title, stages with their bars, queue, two
/// roles, footer, and the headings.
const FIXED: usize = 16;
/// From so many columns on there is room for whole names.
const WIDE: usize = 120;
/// Columns before a bar.
const BEFORE_BAR: usize = 14;

const IDLE: &str = class::NAMES[class::IDLE];

/// Everything that is shown.
pub(super) struct View<'a> {
    pub(super) service: &'a str,
    pub(super) port: u16,
    pub(super) window: &'a Figures,
    pub(super) total: &'a Figures,
    pub(super) slowest: &'a [SlowFigures],
    pub(super) depths: &'a [Depth],
    pub(super) notice: Option<&'a str>,
}

impl View<'_> {
    /// At most `height` lines of at most `width` columns.
    pub(super) fn lines(&self, width: usize, height: usize) -> Vec<Line<'static>> {
        // Two fifths of what is left for statements, the rest for slow requests.
        let rest = height.saturating_sub(FIXED);
        let statements = (rest * 2 / 5).max(1);
        let mut lines = vec![self.title(width)];
        self.stages(&mut lines, width);
        self.queue(&mut lines, width);
        self.threads(&mut lines, width);
        self.database(&mut lines, width, statements);
        let left = height.saturating_sub(lines.len() + 1);
        self.slow(&mut lines, width, left);
        lines.truncate(height.saturating_sub(1));
        lines.resize(height.saturating_sub(1), Line::default());
        lines.push(self.footer(width));
        lines
    }

    fn title(&self, width: usize) -> Line<'static> {
        let text = format!(
            "port {} {}  {:.0} s  {:.1} requests/s  {:.1} connections/s  q quits",
            self.port,
            self.service,
            self.window.to_s,
            self.window.requests.answered_per_s,
            self.window.connections.accepted_per_s,
        );
        let style = Style::new().add_modifier(Modifier::REVERSED);
        Line::styled(format!("{:<width$}", fit(&text, width)), style)
    }

    fn stages(&self, lines: &mut Vec<Line<'static>>, width: usize) {
        lines.push(heading(
            &format!(
                "{:<BEFORE_BAR$}{:>8}{:>8}{:>8}{:>8}  {:>8}{:>8}{:>8}",
                "stage, ms", "last s", "p50", "p99", "max", "all", "p50", "p99"
            ),
            width,
        ));
        let (now, all) = (self.window.stages.named(), self.total.stages.named());
        for ((name, now), (_, all)) in now.into_iter().zip(all) {
            let TimesFigures { count, p50_ms, p99_ms, max_ms, .. } = *now;
            lines.push(Line::raw(format!(
                "{name:<BEFORE_BAR$}{count:>8}{:>8}{:>8}{:>8}  {:>8}{:>8}{:>8}",
                ms(p50_ms),
                ms(p99_ms),
                ms(max_ms),
                all.count,
                ms(all.p50_ms),
                ms(all.p99_ms),
            )));
        }
        // On one scale, so that the two can be compared.
        let means = [&self.window.stages, &self.total.stages]
            .map(|stages| stages.map(|times| times.mean_ms.unwrap_or(0.0)));
        let sum = |means: &PerStage<f64>| means.named().iter().map(|(_, ms)| **ms).sum::<f64>();
        let scale = means.iter().map(sum).fold(0.0, f64::max);
        for (name, means) in ["mean, last s", "mean, all"].into_iter().zip(&means) {
            let mut line = vec![Span::raw(format!("{name:<BEFORE_BAR$}"))];
            let label = format!(" {}", ms(Some(sum(means))));
            let mut bar = Bar::new(width.saturating_sub(BEFORE_BAR + 8), scale);
            let looks = bars::STAGES.named();
            bar.stack(
                means.named().into_iter().zip(looks).map(|((_, ms), (_, look))| (*ms, *look)),
            );
            line.extend(bar.spans());
            line.push(Span::raw(label));
            lines.push(Line::from(line));
        }
    }

    fn queue(&self, lines: &mut Vec<Line<'static>>, width: usize) {
        let Depth { mean, max } = self.window.accept_queue_depth;
        let mut text =
            format!("accept queue: {mean:.1} connections, {max} at most in the last second");
        if self.total.listen_drops > 0 {
            text.push_str(&format!("; {} handshakes turned away", self.total.listen_drops));
        }
        lines.push(heading(&text, width));
        let means: Vec<f64> = self.depths.iter().map(|depth| depth.mean).collect();
        let most = self.depths.iter().map(|depth| depth.max).max().unwrap_or(0);
        let label = format!("{:<BEFORE_BAR$}", format!("most {most}"));
        let spark = sparkline(&means, width.saturating_sub(BEFORE_BAR));
        lines.push(Line::raw(label + &spark));
    }

    fn threads(&self, lines: &mut Vec<Line<'static>>, width: usize) {
        lines.push(heading("what threads do, last second", width));
        if self.window.threads.is_empty() {
            lines.push(Line::raw("no thread has taken a request yet"));
        }
        for role in &self.window.threads {
            let mut shares: Vec<(&str, f64)> =
                role.time.iter().map(|(name, share)| (*name, *share)).collect();
            // What it does, most of it first; then that it does nothing.
            shares.sort_by(|a, b| (a.0 == IDLE).cmp(&(b.0 == IDLE)).then(b.1.total_cmp(&a.1)));
            let name = format!("{} {:.1}", role.role, role.threads);
            let mut line = vec![Span::raw(format!("{name:<BEFORE_BAR$}"))];
            let mut bar = Bar::new(width.saturating_sub(BEFORE_BAR + 40).clamp(8, 100), 1.0);
            bar.stack(shares.iter().map(|(name, share)| (*share, bars::class(name))));
            line.extend(bar.spans());
            for (name, share) in shares.iter().filter(|(_, share)| *share >= 0.005).take(3) {
                line.push(Span::raw(" "));
                line.push(bars::class(name).span());
                line.push(Span::raw(format!("{name} {:.0}%", share * 100.0)));
            }
            lines.push(Line::from(line));
        }
    }

    fn database(&self, lines: &mut Vec<Line<'static>>, width: usize, most: usize) {
        let database = &self.total.database;
        let per = database.per_request.map_or_else(|| "-".to_owned(), |per| format!("{per:.1}"));
        lines.push(heading(
            &format!(
                "database, all: {per} round trips and {} ms per request; mean and largest, ms",
                ms(database.ms_per_request)
            ),
            width,
        ));
        if database.round_trips == 0 {
            lines.push(Line::raw("none seen yet"));
        }
        for line in database.by_statement.iter().take(most) {
            let per = line.per_request.map_or_else(|| "-".to_owned(), |per| format!("{per:.2}"));
            let text = format!(
                "{per:>7} x {:>7} {:>7}  {:<14}{}",
                ms(Some(line.mean_ms)),
                ms(Some(line.max_ms)),
                line.kind,
                line.statement.as_deref().unwrap_or_default()
            );
            lines.push(Line::raw(fit(&text, width)));
        }
    }

    fn slow(&self, lines: &mut Vec<Line<'static>>, width: usize, height: usize) {
        let mut legend = vec![Span::styled("slowest: ms, at s ", bold())];
        for (name, look) in bars::STAGES.named() {
            legend.extend([look.span(), Span::styled(format!("{name} "), bold())]);
        }
        legend.extend([bars::DATABASE.span(), Span::styled("database", bold())]);
        lines.push(Line::from(legend));
        let Some(first) = self.slowest.first() else {
            lines.push(Line::raw("none yet"));
            return;
        };
        let before = if width >= WIDE { BEFORE_BAR + 8 } else { BEFORE_BAR };
        let bar_width = width.saturating_sub(before + 10);
        // One line each, and what is left for the round trips of the slowest.
        for slow in self.slowest.iter().take(height.saturating_sub(1)) {
            let label = format!("{:>7} {:>6.0}", ms(Some(slow.total_ms)), slow.at_s);
            let mut line = vec![Span::raw(format!("{label:<before$} "))];
            line.extend(waterfall(slow, bar_width, first.total_ms).spans());
            if slow.database.is_none() {
                line.push(Span::raw(" shared"));
            }
            lines.push(Line::from(line));
        }
        let used = self.slowest.len() + 1;
        let trips = first.database.iter().flatten();
        for trip in trips.take(height.saturating_sub(used + 1)) {
            let mut bar = Bar::new(bar_width, first.total_ms);
            bar.fill(trip.from_ms, trip.from_ms + trip.ms, bars::DATABASE, true);
            let label = format!("{:>7} {}", ms(Some(trip.ms)), fit(trip.kind, before - 8));
            let mut line = vec![Span::raw(format!("{label:<before$} "))];
            line.extend(bar.spans());
            lines.push(Line::from(line));
        }
    }

    /// What is in doubt; it must not go unseen.
    fn footer(&self, width: usize) -> Line<'static> {
        let (unseen, ambiguous) = (&self.total.unseen, &self.total.ambiguous);
        let text = format!(
            "lost {}  unseen {}  ambiguous {}{}",
            self.total.lost_events,
            unseen.accept + unseen.first_byte + unseen.answer,
            ambiguous.pipelined + ambiguous.inverted + ambiguous.shared_thread,
            self.notice.map_or_else(String::new, |notice| format!("  {notice}")),
        );
        let style = if self.total.lost_events > 0 {
            Style::new().add_modifier(Modifier::REVERSED | Modifier::BOLD)
        } else {
            Style::new().add_modifier(Modifier::REVERSED)
        };
        Line::styled(format!("{:<width$}", fit(&text, width)), style)
    }
}

const fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

fn heading(text: &str, width: usize) -> Line<'static> {
    Line::styled(fit(text, width), bold())
}
