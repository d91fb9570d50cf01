//! What is going on and how long it will take, on one line of the terminal.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// Time that starting a fresh database and a fresh server takes beside a run, as estimated.
const OVERHEAD: Duration = Duration::from_secs(6);
/// How often the line is written anew.
const REFRESH: Duration = Duration::from_secs(1);

/// Progress through runs of known length.
#[derive(Debug)]
pub(super) struct Progress {
    lengths: Vec<Duration>,
    /// Runs begun.
    number: usize,
    name: String,
    begun: Instant,
    written: Option<Instant>,
    terminal: bool,
}

impl Progress {
    pub(super) fn new(lengths: Vec<Duration>) -> Self {
        Self {
            lengths,
            number: 0,
            name: String::new(),
            begun: Instant::now(),
            written: None,
            terminal: std::io::stderr().is_terminal(),
        }
    }

    /// Says something beside the runs.
    pub(super) fn note(&self, text: &str) {
        eprintln!("{text}");
    }

    /// A run begins, with its preparations.
    pub(super) fn begin(&mut self, name: &str) {
        self.number += 1;
        name.clone_into(&mut self.name);
        self.begun = Instant::now();
        self.written = None;
        if !self.terminal {
            eprintln!("{}", self.line());
        }
        self.tick();
    }

    /// Time passes. Cheap: call it often.
    pub(super) fn tick(&mut self) {
        let due = self.written.is_none_or(|last| last.elapsed() >= REFRESH);
        if self.terminal && due {
            self.written = Some(Instant::now());
            eprint!("\r\x1b[K{}", self.line());
            std::io::stderr().flush().ok();
        }
    }

    /// The run ended.
    pub(super) fn end(&mut self, outcome: &str) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
        eprintln!("[{}/{}] {}: {outcome}", self.number, self.lengths.len(), self.name);
    }

    fn line(&self) -> String {
        let now = self.begun.elapsed();
        let left: Duration = self
            .lengths
            .iter()
            .skip(self.number.saturating_sub(1))
            .map(|length| *length + OVERHEAD)
            .sum::<Duration>()
            .saturating_sub(now);
        format!(
            "[{}/{}] {}: {} s, about {} left in all",
            self.number,
            self.lengths.len(),
            self.name,
            now.as_secs(),
            minutes(left)
        )
    }
}

/// `4 min 05 s`.
pub(super) fn minutes(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{} min {:02} s", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_like_a_clock() {
        assert_eq!(minutes(Duration::from_secs(245)), "4 min 05 s");
        assert_eq!(minutes(Duration::from_millis(59_900)), "0 min 59 s");
    }
}
