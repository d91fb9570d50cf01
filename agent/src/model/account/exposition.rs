//! What happened so far in Prometheus's text format, version 0.0.4. Names end in their unit, what only
//! grows in `_total`; no series goes away while the measurement lasts.

use std::fmt::{Display, Write as _};

use agent_common::abi::{class, counter};

use super::{
    Account,
    stages::PerStage,
    sums::Sums,
    times::{BOUNDS_NS, Times},
    workers::Role,
};

const NS_PER_S: f64 = 1e9;

/// The text in the making.
#[derive(Debug, Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            let _ = write!(self.0, "{}{label}=\"", if at == 0 { '{' } else { ',' });
            self.0.extend(text.chars().flat_map(escaped));
            self.0.push('"');
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    /// A counter, and its samples, each with the value of one label.
    fn counters<'a, V: Display>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        samples: impl IntoIterator<Item = (&'a str, V)>,
    ) {
        self.family(name, "counter", help);
        for (text, value) in samples {
            self.sample(name, &[(label, text)], value);
        }
    }

    fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "counter", help);
        self.sample(name, &[], value);
    }

    fn histogram(&mut self, name: &str, label: (&str, &str), times: &Times) {
        let mut below = 0;
        let bucket = format!("{name}_bucket");
        for (bound, count) in BOUNDS_NS.iter().zip(times.buckets()) {
            below += count;
            let bound = (*bound as f64 / NS_PER_S).to_string();
            self.sample(&bucket, &[label, ("le", &bound)], below);
        }
        self.sample(&bucket, &[label, ("le", "+Inf")], times.count());
        self.sample(&format!("{name}_sum"), &[label], times.sum_ns() as f64 / NS_PER_S);
        self.sample(&format!("{name}_count"), &[label], times.count());
    }
}

/// As the format wants it in the value of a label.
fn escaped(character: char) -> impl Iterator<Item = char> {
    let (escape, character) = match character {
        '\n' => (Some('\\'), 'n'),
        '"' | '\\' => (Some('\\'), character),
        _ => (None, character),
    };
    escape.into_iter().chain([character])
}

impl Account {
    /// What happened so far, for a Prometheus to scrape.
    #[must_use]
    pub fn exposition(&self) -> String {
        let mut text = Text::default();
        let total = &self.total;
        stages(&mut text, &total.stages);
        requests(&mut text, total);
        queue(&mut text, total);
        threads(&mut text, total);
        self.database(&mut text);
        doubts(&mut text, total);
        text.0
    }

    fn database(&self, text: &mut Text) {
        let sums = || {
            let all = self.total.round_trips.sums();
            all.map(|(kind, statement, sum)| {
                let statement = self.statements.text(statement).unwrap_or_default();
                ([("kind", kind.name()), ("statement", statement)], sum)
            })
        };
        let name = "dwell_database_round_trips_total";
        text.family(name, "counter", "Database round trips by kind and statement.");
        sums().for_each(|(labels, sum)| text.sample(name, &labels, sum.count));
        let name = "dwell_database_round_trip_seconds_total";
        text.family(name, "counter", "Time in database round trips by kind and statement.");
        sums().for_each(|(labels, sum)| {
            text.sample(name, &labels, sum.total_ns as f64 / NS_PER_S);
        });
    }
}

fn stages(text: &mut Text, stages: &PerStage<Times>) {
    let name = "dwell_stage_seconds";
    text.family(name, "histogram", "How long requests were in a stage.");
    for (stage, times) in stages.named() {
        text.histogram(name, ("stage", stage), times);
    }
}

fn requests(text: &mut Text, total: &Sums) {
    let (requests, connections) = (&total.rest.requests, &total.rest.connections);
    text.counters(
        "dwell_requests_total",
        "Requests by what became of them.",
        "outcome",
        [
            ("answered", requests.answered),
            ("unanswered", requests.unanswered),
            ("answered_unread", requests.answered_unread),
        ],
    );
    text.counter("dwell_requests_read_total", "Requests first read.", requests.read);
    text.counters(
        "dwell_connections_total",
        "Connections of clients by what became of them in the accept queue.",
        "outcome",
        [("accepted", connections.accepted), ("never_accepted", connections.never_accepted)],
    );
}

fn queue(text: &mut Text, total: &Sums) {
    text.counter(
        "dwell_accept_queue_connection_seconds_total",
        "Time that connections spent in the accept queue, added up; its rate is the mean length.",
        total.rest.queue_ns / NS_PER_S,
    );
    text.counter(
        "dwell_listen_drops_total",
        "Handshakes that a full backlog turned away, in the service's network namespace.",
        total.rest.listen_drops,
    );
}

fn threads(text: &mut Text, total: &Sums) {
    let name = "dwell_thread_seconds_total";
    text.family(name, "counter", "What threads spent their time on, by role and wait class.");
    for role in Role::ALL {
        for (class, ns) in class::NAMES.iter().zip(total.rest.threads.of(role)) {
            let labels = [("role", role.name()), ("class", *class)];
            text.sample(name, &labels, *ns as f64 / NS_PER_S);
        }
    }
}

fn doubts(text: &mut Text, total: &Sums) {
    let (unseen, ambiguous) = (&total.rest.unseen, &total.ambiguous);
    let losses = counter::NAMES.iter().zip(counter::IS_LOSS).filter(|(_, is_loss)| *is_loss);
    text.counters(
        "dwell_lost_events_total",
        "Records that did not fit: the other figures are of a part.",
        "event",
        losses.map(|(name, _)| (*name, total.rest.lost.get(*name).copied().unwrap_or(0))),
    );
    text.counters(
        "dwell_unseen_marks_total",
        "Marks that were not seen, and so are in no stage.",
        "mark",
        [("accept", unseen.accept), ("first_byte", unseen.first_byte), ("answer", unseen.answer)],
    );
    text.counters(
        "dwell_ambiguous_total",
        "What cannot be told for sure.",
        "what",
        [
            ("pipelined", ambiguous.pipelined),
            ("inverted", ambiguous.inverted),
            ("shared_thread", ambiguous.shared_thread),
            ("round_trips", ambiguous.round_trips),
        ],
    );
}
