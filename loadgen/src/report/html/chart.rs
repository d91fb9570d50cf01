//! Throughput over time, as an SVG.

use std::fmt::Write as _;

use super::escape;
use crate::report::model::{Cell, SeriesPoint};

const WIDTH: f64 = 380.0;
const HEIGHT: f64 = 116.0;
const LEFT: f64 = 30.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 16.0;
/// Seconds over which the line is a mean, as in the study's tool.
const SMOOTH: usize = 10;

/// Successes per second: each second as an area, the mean of the last ten as a line, and the number
/// of users.
pub(super) fn throughput(out: &mut String, index: usize, cell: &Cell) {
    let series = &cell.client.series;
    let means = trailing_means(series);
    let length = series.last().map_or(1.0, |point| point.t_s).max(1e-9);
    let highest = series.iter().map(|point| point.srps).fold(0.0, f64::max);
    let top = nice(highest.max(cell.client.max_srps));
    let users_top = f64::from(cell.client.users.max(1));
    let x = |t: f64| LEFT + t / length * (WIDTH - LEFT - RIGHT);
    let y = |share: f64| TOP + (1.0 - share.clamp(0.0, 1.0)) * (HEIGHT - TOP - BOTTOM);

    let _ = write!(
        out,
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-labelledby=\"t{index} d{index}\">\
         <title id=\"t{index}\">Throughput of {} over time</title><desc id=\"d{index}\">{}</desc>",
        escape(&cell.name),
        escape(&description(cell, length))
    );
    let _ =
        write!(out, "<path class=\"axis\" d=\"M{LEFT} {TOP}V{0:.1}H{1:.1}\"/>", y(0.0), x(length));
    let hold = length - cell.client.hold_s;
    if hold > 0.0 {
        let _ = write!(
            out,
            "<path class=\"axis\" stroke-dasharray=\"2 3\" d=\"M{0:.1} {TOP}V{1:.1}\"/>",
            x(hold),
            y(0.0)
        );
    }
    out.push_str("<path class=\"each\" d=\"");
    let mut from = 0.0;
    let _ = write!(out, "M{:.1} {:.1}", x(0.0), y(0.0));
    for point in series {
        let _ =
            write!(out, "L{0:.1} {2:.1}L{1:.1} {2:.1}", x(from), x(point.t_s), y(point.srps / top));
        from = point.t_s;
    }
    let _ = write!(out, "L{:.1} {:.1}Z\"/>", x(from), y(0.0));
    line(out, "users", series.iter().map(|one| (x(one.t_s), y(f64::from(one.users) / users_top))));
    line(out, "mean", series.iter().zip(&means).map(|(one, mean)| (x(one.t_s), y(mean / top))));
    let base = y(0.0);
    let _ = writeln!(
        out,
        "<text x=\"{0}\" y=\"{1:.1}\" text-anchor=\"end\">{2}</text>\
         <text x=\"{0}\" y=\"{base:.1}\" text-anchor=\"end\">0</text>\
         <text x=\"{3:.1}\" y=\"{1:.1}\">{4}</text>\
         <text x=\"{5:.1}\" y=\"{6:.1}\" text-anchor=\"end\">{7:.0} s</text>\
         <text x=\"{LEFT}\" y=\"{6:.1}\">requests/s (line: {8}), dashed: users</text></svg>",
        LEFT - 4.0,
        TOP + 6.0,
        short(top),
        x(length) + 4.0,
        cell.client.users,
        x(length),
        HEIGHT - 4.0,
        length,
        if cell.client.is_shorter_than_max() { "mean so far" } else { "10 s mean" },
    );
}

fn line(out: &mut String, class: &str, points: impl Iterator<Item = (f64, f64)>) {
    let _ = write!(out, "<polyline class=\"{class}\" points=\"");
    for (x, y) in points {
        let _ = write!(out, "{x:.1},{y:.1} ");
    }
    out.push_str("\"/>");
}

fn description(cell: &Cell, length: f64) -> String {
    let client = &cell.client;
    format!(
        "{} successes in {length:.0} s with up to {} users; {}{:.1} per second{}.",
        client.successes,
        client.users,
        if client.is_shorter_than_max() { "" } else { "at best " },
        client.max_srps,
        if client.is_shorter_than_max() { "" } else { " over 10 s" },
    )
}

fn trailing_means(series: &[SeriesPoint]) -> Vec<f64> {
    (0..series.len())
        .map(|last| {
            let window = &series[last.saturating_sub(SMOOTH - 1)..=last];
            window.iter().map(|point| point.srps).sum::<f64>() / window.len() as f64
        })
        .collect()
}

/// The next of 1, 2, 5, 10, ... that is not below.
fn nice(value: f64) -> f64 {
    if value <= 0.0 || !value.is_finite() {
        return 1.0;
    }
    let unit = 10f64.powf(value.log10().floor());
    [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0]
        .into_iter()
        .map(|step| step * unit)
        .find(|top| *top >= value * 0.999)
        .unwrap_or(10.0 * unit)
}

fn short(value: f64) -> String {
    if value >= 10.0 || value.fract() == 0.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.1}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_end_at_round_numbers() {
        let tops: Vec<f64> = [0.0, 0.61, 1.0, 23.4, 140.0, 900.0].map(nice).into();
        assert_eq!(tops, [1.0, 0.75, 1.0, 30.0, 150.0, 1000.0]);
    }
}
