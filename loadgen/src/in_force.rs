//! Impairments of the service's network that were there beside what this run asked for: of other
//! commands, other agents, `tc`. A run on an interface that somebody else delays is not undelayed.

use agent_common::wire::Other;

use crate::{
    record::{KernelData, RunData},
    report::model::InForce,
};

/// What was in force at some time between the first user and the last, in the order in which it came;
/// None where the agent did not tell.
#[must_use]
pub fn in_force(run: &RunData, data: &KernelData) -> Option<Vec<InForce>> {
    let seen = &data.in_force;
    let before = seen.iter().rposition(|(at, _)| *at <= run.start);
    let first = before.unwrap_or(0);
    let within: Vec<_> = seen.iter().skip(first).filter(|(at, _)| *at <= run.end).collect();
    let seconds = |at: u64| at.saturating_sub(run.start) as f64 / 1e9;
    let mut all: Vec<(&Other, InForce)> = Vec::new();
    for (at, others) in &within {
        for (_, gone) in
            all.iter_mut().filter(|(one, told)| told.until_s.is_none() && !others.contains(one))
        {
            gone.until_s = Some(seconds(*at));
        }
        for other in others {
            if all.iter().any(|(one, told)| *one == other && told.until_s.is_none()) {
                continue;
            }
            let told = InForce {
                device: other.device.clone(),
                direction: other.direction.clone(),
                engine: other.engine.clone(),
                words: other.words.clone(),
                delay_ms: other.delay_ns as f64 / 1e6,
                pid: other.pid,
                from_s: seconds(*at),
                until_s: None,
            };
            all.push((other, told));
        }
    }
    (!within.is_empty()).then(|| all.into_iter().map(|(_, told)| told).collect())
}

impl InForce {
    /// What, where and whose: `delayed by 50ms on eth0 (egress, netem, agent 4711)`.
    #[must_use]
    pub fn sentence(&self) -> String {
        let whose = self.pid.map_or_else(|| "of no agent".to_owned(), |pid| format!("agent {pid}"));
        format!("{} on {} ({}, {}, {whose})", self.words, self.device, self.direction, self.engine)
    }

    /// When it came or went, if it was not there throughout.
    #[must_use]
    pub fn change(&self) -> Option<String> {
        match (self.from_s > 0.0, self.until_s) {
            (false, None) => None,
            (true, None) => Some(format!("from {:.1} s on", self.from_s)),
            (false, Some(until)) => Some(format!("until {until:.1} s")),
            (true, Some(until)) => Some(format!("from {:.1} s to {until:.1} s", self.from_s)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Inputs, analyse,
        predict::predict,
        report::text,
        simulate::{self, MS, SECOND},
    };

    fn other(device: &str) -> Other {
        Other {
            device: device.to_owned(),
            direction: "egress".to_owned(),
            engine: "netem".to_owned(),
            words: "delayed by 50ms".to_owned(),
            delay_ns: 50 * MS,
            pid: Some(4711),
        }
    }

    /// A run in which the agent told this, at seconds from its start.
    fn run(told: &[(i64, Vec<Other>)]) -> RunData {
        let mut run = simulate::io_read("run", "sync", 0).one_at_a_time(1);
        let start = run.start as i64;
        let at = |seconds: i64| (start + seconds * SECOND as i64) as u64;
        let told = told.iter().map(|(seconds, others)| (at(*seconds), others.clone()));
        run.kernel.as_mut().unwrap().in_force = told.collect();
        run
    }

    fn spans(told: &[(i64, Vec<Other>)]) -> Option<Vec<(String, f64, Option<f64>)>> {
        let run = run(told);
        let all = in_force(&run, run.kernel.as_ref().unwrap())?;
        Some(all.into_iter().map(|one| (one.device, one.from_s, one.until_s)).collect())
    }

    #[test]
    fn what_came_and_went_has_its_time() {
        assert_eq!(spans(&[]), None, "nobody told");
        assert_eq!(spans(&[(-1, vec![])]), Some(vec![]));
        let eth0 = || "eth0".to_owned();
        let all = |from, until| Some(vec![(eth0(), from, until)]);
        assert_eq!(spans(&[(-1, vec![other("eth0")])]), all(0.0, None));
        assert_eq!(spans(&[(-1, vec![]), (5, vec![other("eth0")])]), all(5.0, None));
        assert_eq!(spans(&[(-1, vec![other("eth0")]), (5, vec![])]), all(0.0, Some(5.0)));
        // Before the first user, and after the last.
        assert_eq!(spans(&[(-9, vec![other("eth0")]), (-1, vec![])]), Some(vec![]));
        assert_eq!(spans(&[(-9, vec![]), (9_999, vec![other("eth0")])]), Some(vec![]));
        let twice = [(-1, vec![other("eth0")]), (5, vec![other("eth1")]), (9, vec![other("eth0")])];
        let expected = vec![
            (eth0(), 0.0, Some(5.0)),
            ("eth1".to_owned(), 5.0, Some(9.0)),
            (eth0(), 9.0, None),
        ];
        assert_eq!(spans(&twice), Some(expected));
    }

    #[test]
    fn a_run_that_others_delay_is_not_shown_as_undelayed_and_predicts_nothing() {
        let cell = analyse(&run(&[(-1, vec![other("eth0")])]), &Inputs::default());
        assert!(cell.validity.valid, "it is what was measured: {:?}", cell.validity);
        let whole = "delayed by 50ms on eth0 (egress, netem, agent 4711)";
        let shown = text::cell(&cell, text::Colour::Never);
        assert!(shown.lines().next().unwrap().contains("delayed by 50ms on eth0"), "{shown}");
        let story = &cell.explanation.as_ref().unwrap().sentences;
        assert!(story[0].contains(whole), "{story:?}");
        let prediction = predict(&cell, 100 * MS);
        assert_eq!(prediction.predicted_rps, None);
        assert!(prediction.no_prediction.as_ref().unwrap().contains(whole), "{prediction:?}");
        assert_eq!(crate::report::study::beside(&cell), None);
    }

    #[test]
    fn a_change_of_what_others_do_makes_the_run_invalid() {
        let came = analyse(&run(&[(-1, vec![]), (20, vec![other("eth0")])]), &Inputs::default());
        let reasons = came.validity.reasons.join("; ");
        assert!(!came.validity.valid && reasons.contains("from 20.0 s on"), "{reasons}");
        let story = came.explanation.unwrap();
        assert!(story.sentences[0].contains("agent 4711) from 20.0 s on"), "{story:?}");
        assert_eq!(story.verdict, crate::report::model::Verdict::CannotTell, "{story:?}");
    }

    #[test]
    fn where_nobody_told_a_prediction_says_so() {
        let told =
            |told| predict(&analyse(&run(told), &Inputs::default()), MS).assumptions.join(" ");
        assert!(told(&[]).contains("not told"));
        assert!(!told(&[(-1, vec![])]).contains("not told"));
    }
}
