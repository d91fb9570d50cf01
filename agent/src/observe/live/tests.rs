//! What is on screens of several sizes.

use proptest::prelude::*;
use ratatui::{Terminal, backend::TestBackend, widgets::Paragraph};

use super::{
    bars::{Bar, STAGES, sparkline},
    view::View,
    *,
};
use crate::observe::tests::{doubtful, filled};

fn screen(mut account: Account, width: u16, height: u16, notice: Option<&str>) -> String {
    let window = account.close();
    let (total, slowest) = (account.total(), account.slowest());
    let depths: Vec<Depth> = (0..60).map(|at| Depth { mean: f64::from(at % 9), max: 9 }).collect();
    let view = View {
        service: "gunicorn",
        port: 8000,
        window: &window,
        total: &total,
        slowest: &slowest,
        depths: &depths,
        notice,
    };
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    let lines = view.lines(width.into(), height.into());
    assert_eq!(lines.len(), usize::from(height));
    // A narrower one loses the ends of lines.
    for line in lines.iter().filter(|_| width >= 80) {
        assert!(line.width() <= usize::from(width), "{} columns: {line}", line.width());
    }
    terminal.draw(|frame| frame.render_widget(Paragraph::new(lines), frame.area())).unwrap();
    terminal.backend().to_string()
}

#[test]
fn small() {
    insta::assert_snapshot!(screen(filled(), 80, 24, None));
}

#[test]
fn large() {
    insta::assert_snapshot!(screen(doubtful(), 200, 50, Some("other processes have taken over")));
}

#[test]
fn before_anything_came() {
    insta::assert_snapshot!(screen(Account::new(0).unwrap(), 80, 24, None));
}

#[test]
fn keys_that_end_it() {
    let key = |code, modifiers| KeyEvent::new(code, modifiers);
    assert!(quits(key(KeyCode::Char('q'), KeyModifiers::NONE)));
    assert!(quits(key(KeyCode::Char('c'), KeyModifiers::CONTROL)));
    assert!(!quits(key(KeyCode::Char('c'), KeyModifiers::NONE)));
    assert!(!quits(key(KeyCode::Char('x'), KeyModifiers::CONTROL)));
}

#[test]
fn a_sparkline_is_as_high_as_its_largest() {
    assert_eq!(sparkline(&[0.0, 1.0, 4.0, 8.0], 3), "▁▄█");
    assert_eq!(sparkline(&[0.0, 0.0], 9), "  ");
    assert_eq!(sparkline(&[], 9), "");
}

proptest! {
    /// No size of terminal is too small or too large.
    #[test]
    fn any_size_is_drawn(width in 1..240_u16, height in 1..90_u16) {
        screen(doubtful(), width, height, Some("a notice"));
    }

    /// A bar has the cells that it was given, and parts that fill its scale fill it.
    #[test]
    fn bars_are_full(parts in proptest::collection::vec(0.0..1e6_f64, 1..6), width in 1..200_usize) {
        let mut bar = Bar::new(width, parts.iter().sum());
        bar.stack(parts.iter().map(|part| (*part, STAGES.service)));
        let text: String = bar.spans().iter().map(|span| span.content.to_string()).collect();
        prop_assert_eq!(text.chars().count(), width);
        if parts.iter().sum::<f64>() > 0.0 {
            prop_assert!(!text.contains(' '), "{text:?}");
        }
    }
}
