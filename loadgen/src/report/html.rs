//! The report as one HTML file: no scripts, nothing loaded from elsewhere. The first screen has the
//! table, and for each run its throughput over time and where its requests waited; the stories
//! follow.

mod chart;
mod stack;

use std::fmt::Write as _;

use super::{
    client,
    model::{Cell, Report},
    study, text,
};
use crate::explain::words;

const STYLE: &str = include_str!("html/style.css");

/// The whole page.
#[must_use]
pub fn page(report: &Report) -> String {
    let mut out =
        String::from("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    let _ = write!(
        out,
        "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n",
        escape(&title(report))
    );
    header(&mut out, report);
    table(&mut out, report);
    let _ = writeln!(out, "<main>\n<section class=\"cards\" aria-label=\"Runs\">");
    for (index, cell) in report.cells.iter().enumerate() {
        card(&mut out, index, cell);
    }
    out.push_str("</section>\n");
    stack::legend(&mut out);
    out.push_str("<section class=\"stories\" aria-label=\"Explanations\">\n");
    for cell in &report.cells {
        story(&mut out, cell);
    }
    out.push_str("</section>\n</main>\n</body>\n</html>\n");
    out
}

/// Text as HTML text or attribute value. Control characters become spaces.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

fn title(report: &Report) -> String {
    match report.cells.as_slice() {
        [one] => format!("{}: where requests waited", one.name),
        _ => "Where requests waited".to_owned(),
    }
}

fn header(out: &mut String, report: &Report) {
    let host = &report.host;
    let _ = writeln!(
        out,
        "<header><h1>{}</h1><p>{} {}, kernel {}, {} processors ({})</p></header>",
        escape(&title(report)),
        escape(&report.tool.name),
        escape(&report.tool.version),
        escape(&host.kernel),
        host.cpus,
        escape(&host.cpu_model)
    );
}

fn table(out: &mut String, report: &Report) {
    let with_study = report.cells.iter().any(|cell| study::beside(cell).is_some());
    out.push_str(
        "<table>\n<caption>Successful requests per second</caption>\n<thead><tr>\
         <th scope=\"col\">run</th><th scope=\"col\">best 10 s</th><th scope=\"col\">hold</th>\
         <th scope=\"col\">predicted</th><th scope=\"col\">successes</th>\
         <th scope=\"col\">median latency</th>",
    );
    if with_study {
        out.push_str("<th scope=\"col\">study, best 10 s</th>");
    }
    out.push_str("<th scope=\"col\" class=\"text\">what bounds it</th></tr></thead>\n<tbody>\n");
    for cell in &report.cells {
        let client = &cell.client;
        let predicted = cell.explanation.as_ref().and_then(|one| one.predicted_rps);
        let _ = write!(
            out,
            "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>",
            escape(&cell.name),
            or_dash(text::best(client)),
            or_dash(client.hold_srps.map(words::rate)),
            or_dash(predicted.map(words::rate)),
            client.successes,
            or_dash(client.latency_ms.as_ref().map(|latency| words::ms(latency.p50))),
        );
        if with_study {
            let published = study::beside(cell).map(|one| format!("{:.1}", one.max_srps));
            let _ = write!(out, "<td>{}</td>", or_dash(published));
        }
        let _ = writeln!(out, "<td class=\"text\">{}{}</td></tr>", verdict(cell), invalid(cell));
    }
    out.push_str("</tbody>\n</table>\n");
}

fn card(out: &mut String, index: usize, cell: &Cell) {
    let rate = cell.client.hold_srps.map_or_else(
        || {
            let best = if cell.client.is_shorter_than_max() { "" } else { " at best" };
            format!("{:.1}<small>/s{best}</small>", cell.client.max_srps)
        },
        |rate| format!("{}<small>/s</small>", words::rate(rate)),
    );
    let _ = writeln!(
        out,
        "<article><h2>{}{}</h2><p class=\"rate\">{rate}</p>",
        escape(&cell.name),
        invalid(cell)
    );
    chart::throughput(out, index, cell);
    stack::stages(out, index, cell);
    out.push_str("</article>\n");
}

fn story(out: &mut String, cell: &Cell) {
    let _ = writeln!(out, "<article><h2>{}: {}</h2>", escape(&cell.name), verdict(cell));
    if !cell.validity.valid {
        out.push_str(
            "<p class=\"bad\">Invalid, the numbers prove nothing:</p>\n<ul class=\"bad\">\n",
        );
        for reason in &cell.validity.reasons {
            let _ = writeln!(out, "<li>{}</li>", escape(reason));
        }
        out.push_str("</ul>\n");
    }
    let client = client::lines(&cell.client);
    let lines = text::in_force(cell).into_iter().chain([client.load]);
    for line in lines.chain(client.latency).chain(client.odd) {
        let _ = writeln!(out, "<p class=\"note\">{}</p>", escape(&line));
    }
    if let Some(failed) = client.failed {
        let _ = writeln!(out, "<p class=\"bad\">failed: {}</p>", escape(&failed));
    }
    if let Some(explanation) = &cell.explanation {
        out.push_str("<ul>\n");
        for sentence in &explanation.sentences {
            let _ = writeln!(out, "<li>{}</li>", escape(sentence));
        }
        out.push_str("</ul>\n");
        if !explanation.what_if.is_empty() {
            out.push_str("<dl>\n");
            for one in &explanation.what_if {
                let _ = writeln!(
                    out,
                    "<div><dt>{}</dt><dd>{}/s</dd></div>",
                    escape(&one.change),
                    words::rate(one.predicted_rps)
                );
            }
            out.push_str("</dl>\n");
        }
    }
    for note in &cell.validity.notes {
        let _ = writeln!(out, "<p class=\"note\">{}</p>", escape(note));
    }
    out.push_str("</article>\n");
}

fn verdict(cell: &Cell) -> &'static str {
    cell.explanation.as_ref().map_or("-", |explanation| text::verdict(explanation.verdict))
}

fn invalid(cell: &Cell) -> &'static str {
    if cell.validity.valid { "" } else { " <strong class=\"bad\">invalid</strong>" }
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}
