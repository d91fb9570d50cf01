use serde_json::Value;

use super::{
    html, json,
    model::{Cell, Host, Report, SCHEMA_VERSION, Tool},
    study, text,
};
use crate::{Inputs, analyse, predict::predict, record::RunData, simulate, simulate::MS};

const SCHEMA: &str = include_str!("../../../docs/report.schema.json");

fn report(cells: Vec<Cell>) -> Report {
    Report {
        schema_version: SCHEMA_VERSION,
        tool: Tool { name: "loadgen".to_owned(), version: "0.0.0".to_owned() },
        host: Host { kernel: "6.1.0".to_owned(), cpus: 2, cpu_model: "A <fast> one".to_owned() },
        cells,
    }
}

fn run(setup: &'static str, name: &'static str, delay_ms: u64) -> RunData {
    let load = simulate::io_read(name, setup, delay_ms);
    if setup == "sync" {
        load.one_at_a_time(1)
    } else {
        simulate::Load { hold_s: 20, ..load }.concurrent()
    }
}

/// The demo's six cells, simulated.
fn matrix() -> Report {
    let names = [
        ["sync/io_read/0ms", "sync/io_read/100ms", "sync/io_read/200ms"],
        ["async_limited/io_read/0ms", "async_limited/io_read/100ms", "async_limited/io_read/200ms"],
    ];
    let mut cells: Vec<Cell> = Vec::new();
    for (setup, names) in ["sync", "async_limited"].into_iter().zip(names) {
        let mut base: Option<Cell> = None;
        for (name, delay) in names.into_iter().zip([0, 100, 200]) {
            let prediction = base.as_ref().map(|base| predict(base, delay * MS));
            let cell = analyse(&run(setup, name, delay), &Inputs { prediction, cpus: 2 });
            if delay == 0 {
                base = Some(cell.clone());
            }
            cells.push(cell);
        }
    }
    report(cells)
}

/// A cell of every shape: with and without an agent, valid or not, nothing completed.
fn odd() -> Vec<Cell> {
    let plain = RunData { kernel: None, ..run("sync", "plain", 0) };
    let mut empty = run("sync", "empty", 0);
    empty.records.clear();
    let mut broken = run("sync", "broken \u{1b}[31m<script>alert('x')</script>", 200);
    broken.interrupted = true;
    let data = broken.kernel.as_mut().unwrap();
    data.lost_at = Some(broken.end - 30 * simulate::SECOND);
    data.totals = None;
    data.client_turns.clear();
    data.injector_dropped = 3;
    data.in_force[0].1.push(agent_common::wire::Other {
        device: "eth1".to_owned(),
        direction: "ingress".to_owned(),
        engine: "nfqueue".to_owned(),
        words: "1% of packets lost <b>".to_owned(),
        delay_ns: 0,
        pid: None,
    });
    data.statements[1] = "SELECT '<b>' & \u{7}".to_owned();
    [plain, empty, broken].iter().map(|run| analyse(run, &Inputs::default())).collect()
}

fn validator() -> jsonschema::Validator {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    jsonschema::meta::validate(&schema).unwrap();
    jsonschema::validator_for(&schema).unwrap()
}

fn problems(report: &Value) -> Vec<String> {
    validator()
        .iter_errors(report)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect()
}

#[test]
fn reports_fit_the_schema_and_come_back_as_they_were() {
    for report in [matrix(), report(odd()), report(Vec::new())] {
        let text = json::write(&report).unwrap();
        assert_eq!(problems(&serde_json::from_str(&text).unwrap()), Vec::<String>::new());
        assert_eq!(json::read(&text).unwrap(), report);
    }
}

#[test]
fn what_is_not_in_the_contract_fails() {
    let good = serde_json::to_value(report(odd())).unwrap();
    let fails = |pointer: &str, value: Value| {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer).unwrap() = value;
        !problems(&bad).is_empty()
    };
    assert!(fails("/cells/2/explanation/verdict", "bad_luck".into()));
    assert!(fails("/cells/2/kernel/db_round_trips/0/kind", "telepathy".into()));
    assert!(fails("/cells/2/ledger/stages/0/stage", "purgatory".into()));
    assert!(fails("/cells/2/injection/engine", "magic".into()));
    assert!(fails("/cells/2/kernel/model", "sometimes".into()));
    assert!(fails("/cells/0/client/successes", (-1).into()));
    assert!(fails("/cells/0/client/hold_srps", "fast".into()));
    assert!(fails("/schema_version", 2.into()));
    assert!(fails("/cells/2/validity/reasons", Value::Array(Vec::new())));
    let mut bad = good.clone();
    bad["cells"][0].as_object_mut().unwrap().remove("ledger");
    assert!(!problems(&bad).is_empty(), "absent parts are null, not missing");
    let mut bad = good;
    bad["cells"][2]["kernel"]["worker_time"]["daydreaming"] = 0.1.into();
    assert!(!problems(&bad).is_empty());
}

/// Every field that we write is described: a new one that is forgotten in the schema fails here.
#[test]
fn the_schema_describes_every_field() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    for report in [matrix(), report(odd())] {
        described(&schema, &schema, &serde_json::to_value(report).unwrap(), "");
    }
}

fn described(root: &Value, schema: &Value, value: &Value, path: &str) {
    if let Some(to) = schema.get("$ref").and_then(Value::as_str) {
        return described(root, root.pointer(to.trim_start_matches('#')).unwrap(), value, path);
    }
    if let Some(choices) = schema.get("oneOf").and_then(Value::as_array) {
        if !value.is_null() {
            described(root, &choices[0], value, path);
        }
        return;
    }
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                let path = format!("{path}/{name}");
                let known = &schema["properties"][name];
                let schema = if known.is_null() { &schema["additionalProperties"] } else { known };
                assert!(!schema.is_null(), "{path} is not in docs/report.schema.json");
                described(root, schema, field, &path);
            }
        }
        Value::Array(items) => {
            for item in items {
                described(root, &schema["items"], item, path);
            }
        }
        _ => {}
    }
}

#[test]
fn other_versions_and_other_files_are_refused_with_what_is_wrong() {
    let mut other = serde_json::to_value(report(Vec::new())).unwrap();
    other["schema_version"] = 2.into();
    let error = json::read(&other.to_string()).unwrap_err().to_string();
    assert!(error.contains("schema version 2, this loadgen reads 1"), "{error}");
    assert!(json::read("{}").unwrap_err().to_string().contains("not a report"));
    assert!(json::read("").is_err());
}

#[test]
fn text_of_the_demo() {
    let report = matrix();
    let mut out = text::table(&report, text::Colour::Never);
    for cell in &report.cells {
        out.push_str("\n=====\n\n");
        out.push_str(&text::cell(cell, text::Colour::Never));
    }
    insta::assert_snapshot!("demo_text", out);
}

#[test]
fn text_of_odd_cells() {
    let cells: Vec<String> =
        odd().iter().map(|cell| text::cell(cell, text::Colour::Never)).collect();
    insta::assert_snapshot!("odd_text", cells.join("\n=====\n\n"));
}

#[test]
fn page_of_the_demo() {
    insta::assert_snapshot!("demo_page", html::page(&matrix()));
}

#[test]
fn colour_is_only_there_when_asked_for_and_control_characters_never() {
    let cells = odd();
    let plain = text::cell(&cells[2], text::Colour::Never);
    assert!(!plain.contains('\u{1b}') && !plain.contains('\u{7}'), "{plain}");
    let coloured = text::cell(&cells[2], text::Colour::Always);
    assert!(coloured.contains("\u{1b}[31mINVALID"), "{coloured}");
    assert!(!coloured.contains("\u{1b}[31m<script"), "{coloured}");
}

#[test]
fn the_page_escapes_what_came_from_elsewhere_and_loads_nothing() {
    let page = html::page(&report(odd()));
    assert!(!page.contains("<script"), "no scripts, and none by injection");
    assert!(page.contains("&lt;script&gt;alert(&#39;x&#39;)"), "the name is still told");
    assert!(page.contains("A &lt;fast&gt; one"));
    for forbidden in ["http://", "https://", "url(", "@import", "<link", "src="] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    let balanced = |tag: &str| {
        page.matches(&format!("<{tag}")).count() == page.matches(&format!("</{tag}>")).count()
    };
    for tag in ["svg", "article", "section", "table", "tr", "ul", "li", "dl", "title"] {
        assert!(balanced(tag), "{tag}");
    }
    assert_eq!(page.matches("role=\"img\"").count(), page.matches("<desc").count());
}

#[test]
fn the_studys_numbers_stand_beside_its_own_cells_only() {
    let report = matrix();
    let published: Vec<f64> =
        report.cells.iter().map(|cell| study::beside(cell).unwrap().max_srps).collect();
    assert_eq!(published, [23.0, 1.2, 0.6, 28.3, 28.6, 28.4]);
    let mut other = report.cells[0].clone();
    other.delay_ms = Some(50.0);
    assert_eq!(study::beside(&other), None);
    other.delay_ms = None;
    assert!(study::beside(&other).is_some(), "no agent, no delay");
    other.route = None;
    assert_eq!(study::beside(&other), None);
}
