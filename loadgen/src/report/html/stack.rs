//! The stages of a run as one bar, as an SVG.

use std::fmt::Write as _;

use super::escape;
use crate::{explain::words, ledger::Stage, report::model::Cell};

const WIDTH: f64 = 380.0;
const BAR: f64 = 14.0;
const HEIGHT: f64 = 30.0;
/// Stages that are named below the bar: the largest.
const NAMED: usize = 2;

/// One bar, as long as the mean time of a request.
pub(super) fn stages(out: &mut String, index: usize, cell: &Cell) {
    let Some(ledger) = cell.ledger.as_ref().filter(|ledger| !ledger.stages.is_empty()) else {
        return;
    };
    let told: Vec<String> = ledger
        .stages
        .iter()
        .map(|one| format!("{} {}", one.stage.replace('_', " "), words::ms(one.mean_ms)))
        .collect();
    let _ = write!(
        out,
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-labelledby=\"st{index} sd{index}\">\
         <title id=\"st{index}\">Where a request of {} waited: {} on average</title>\
         <desc id=\"sd{index}\">{}</desc>",
        escape(&cell.name),
        words::ms(ledger.stages_mean_ms.unwrap_or(0.0)),
        escape(&words::list(&told))
    );
    let mut x = 0.0;
    for stage in &ledger.stages {
        let width = stage.share * WIDTH;
        // The name becomes part of a style: only one of the vocabulary does.
        let known = Stage::ALL.iter().find(|known| known.name() == stage.stage);
        if let Some(known) = known.filter(|_| width >= 0.05) {
            let _ = write!(
                out,
                "<rect x=\"{x:.2}\" y=\"0\" width=\"{width:.2}\" height=\"{BAR}\" \
                 style=\"fill:var(--{})\"/>",
                known.name()
            );
        }
        x += width;
    }
    let mut largest: Vec<_> = ledger.stages.iter().collect();
    largest.sort_by(|a, b| b.mean_ms.total_cmp(&a.mean_ms));
    let named: Vec<String> = largest
        .iter()
        .take(NAMED)
        .filter(|stage| stage.share >= 0.01)
        .map(|one| {
            let share = words::percent(one.share);
            format!("{} {} ({share})", one.stage.replace('_', " "), words::ms(one.mean_ms))
        })
        .collect();
    let _ = writeln!(
        out,
        "<text x=\"0\" y=\"{0:.1}\">{1}</text>\
         <text x=\"{WIDTH}\" y=\"{0:.1}\" text-anchor=\"end\">{2} per request</text></svg>",
        HEIGHT - 4.0,
        escape(&named.join(", ")),
        words::ms(ledger.stages_mean_ms.unwrap_or(0.0))
    );
}

/// What the colours mean.
pub(super) fn legend(out: &mut String) {
    out.push_str("<ul class=\"legend\" aria-label=\"Stages\">\n");
    for stage in Stage::ALL {
        let _ = writeln!(
            out,
            "<li><i style=\"background:var(--{})\"></i>{}</li>",
            stage.name(),
            meaning(stage)
        );
    }
    out.push_str("</ul>\n");
}

const fn meaning(stage: Stage) -> &'static str {
    match stage {
        Stage::Connect => "connect: network handshake",
        Stage::BacklogOverflow => "backlog overflow: handshake lost to a full backlog",
        Stage::AcceptQueue => "accept queue: waiting for a free worker",
        Stage::RequestNet => "request net: request on the wire",
        Stage::Unread => "unread: request in the socket, nobody reading",
        Stage::Service => "service: being handled",
        Stage::ResponseNet => "response net: response on the wire",
        Stage::ClientWait => "client wait: load generator late",
    }
}
