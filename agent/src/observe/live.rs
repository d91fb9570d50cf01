//! The live view of a terminal. The terminal is given back however the view ends.

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::time::Duration;

use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
    widgets::Paragraph,
};

use super::{session::Output, text};
use crate::model::account::{Account, Depth, Figures, SlowFigures, Summary};

mod bars;
mod view;

use view::View;

/// Lengths of the accept queue that are remembered, one a second: more than a line has columns.
const DEPTHS: usize = 512;

/// The terminal while the view is on it.
pub(super) struct Live {
    // None once it was given back.
    terminal: Option<DefaultTerminal>,
    service: String,
    port: u16,
    shown: Option<Shown>,
    depths: VecDeque<Depth>,
    notice: Option<String>,
}

/// What was told last.
struct Shown {
    window: Figures,
    total: Figures,
    slowest: Vec<SlowFigures>,
}

impl Live {
    /// Takes the terminal. A panic gives it back before it is reported.
    ///
    /// # Errors
    /// It cannot be had.
    pub(super) fn new(service: String, port: u16) -> io::Result<Self> {
        let terminal = ratatui::try_init().inspect_err(|_| ratatui::restore())?;
        let mut live = Self {
            terminal: Some(terminal),
            service,
            port,
            shown: None,
            depths: VecDeque::new(),
            notice: None,
        };
        live.draw()?;
        Ok(live)
    }

    fn draw(&mut self) -> io::Result<()> {
        let Some(terminal) = &mut self.terminal else { return Ok(()) };
        let depths = self.depths.make_contiguous();
        let shown = self.shown.as_ref();
        let (service, port, notice) = (&self.service, self.port, self.notice.as_deref());
        terminal.draw(|frame| {
            let area = frame.area();
            let lines = match shown {
                Some(Shown { window, total, slowest }) => {
                    View { service, port, window, total, slowest, depths, notice }
                        .lines(area.width.into(), area.height.into())
                }
                None => vec![format!("port {port}: the first second is not over yet").into()],
            };
            frame.render_widget(Paragraph::new(lines), area);
        })?;
        Ok(())
    }

    fn give_back(&mut self) {
        if self.terminal.take().is_some() {
            ratatui::restore();
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl Output for Live {
    fn window(&mut self, figures: &Figures, account: &Account) -> anyhow::Result<()> {
        if figures.to_s - figures.from_s < text::SHORTEST_S {
            return Ok(());
        }
        if self.depths.len() == DEPTHS {
            self.depths.pop_front();
        }
        self.depths.push_back(figures.accept_queue_depth);
        self.shown = Some(Shown {
            window: figures.clone(),
            total: account.total(),
            slowest: account.slowest(),
        });
        Ok(self.draw()?)
    }

    fn notice(&mut self, notice: &str) {
        self.notice = Some(notice.to_owned());
    }

    fn wait(&mut self, time: Duration) -> anyhow::Result<bool> {
        if !event::poll(time)? {
            return Ok(false);
        }
        match event::read()? {
            Event::Key(key) => Ok(quits(key)),
            Event::Resize(..) => self.draw().map(|()| false).map_err(Into::into),
            _ => Ok(false),
        }
    }

    /// The sums stay on the terminal's own screen.
    fn end(&mut self, summary: &Summary, _ended: &'static str) -> anyhow::Result<()> {
        self.give_back();
        let mut out = io::stdout();
        out.write_all(text::whole(summary, self.port).as_bytes())?;
        Ok(out.flush()?)
    }
}

/// q, Esc, and Ctrl-C, which is a key here and no signal.
fn quits(key: KeyEvent) -> bool {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press
        && match key.code {
            KeyCode::Char('c') => control,
            KeyCode::Char('q') | KeyCode::Esc => true,
            _ => false,
        }
}

#[cfg(test)]
mod tests;
