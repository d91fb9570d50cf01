//! Remembers how each group went, and prints the table at the end.

use std::fmt;
use std::ops::AddAssign;
use std::time::{Duration, Instant};

use anyhow::Result;

/// How many tests ended how, added up over test binaries.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
    pub(crate) filtered_out: u64,
}

impl Counts {
    /// Reads libtest's `test result:` line.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let (_, rest) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let of = |what: &str| {
            rest.split("; ").find_map(|part| part.strip_suffix(what)?.trim().parse::<u64>().ok())
        };
        Some(Self {
            passed: of("passed")?,
            failed: of("failed")?,
            ignored: of("ignored")?,
            filtered_out: of("filtered out")?,
        })
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.filtered_out += other.filtered_out;
    }
}

/// What a group came to, short of an error.
#[derive(Debug)]
pub(crate) enum Ran {
    /// A check without counted tests.
    Check,
    /// Test binaries ran; a failed test is among the counts.
    Tests(Counts),
    /// It was not run, and why.
    Not(String),
}

#[derive(Debug)]
struct Row {
    name: String,
    outcome: Result<Ran>,
    time: Duration,
}

/// All groups so far.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    rows: Vec<Row>,
}

impl Summary {
    /// Runs a group and keeps its outcome.
    pub(crate) fn group(&mut self, name: &str, run: impl FnOnce() -> Result<Ran>) {
        eprintln!("\n--- {name}");
        let begun = Instant::now();
        let outcome = run();
        if let Err(error) = &outcome {
            eprintln!("error: {error:#}");
        }
        self.rows.push(Row { name: name.into(), outcome, time: begun.elapsed() });
    }

    /// Whether every group that ran passed, and at least one did run.
    pub(crate) fn passed(&self) -> bool {
        let failed = |row: &Row| match &row.outcome {
            Ok(Ran::Tests(counts)) => counts.failed > 0,
            Ok(_) => false,
            Err(_) => true,
        };
        !self.rows.is_empty() && !self.rows.iter().any(failed)
    }

    /// Whether any test ran.
    pub(crate) fn ran_tests(&self) -> bool {
        let total = self.total();
        total.passed + total.failed > 0
    }

    fn total(&self) -> Counts {
        let mut total = Counts::default();
        for row in &self.rows {
            if let Ok(Ran::Tests(counts)) = &row.outcome {
                total += *counts;
            }
        }
        total
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{:<26} {:<7} {:>7} {:>7} {:>9}", "group", "", "passed", "failed", "time")?;
        for Row { name, outcome, time } in &self.rows {
            let seconds = format!("{:.1} s", time.as_secs_f64());
            let (word, counts) = match outcome {
                Ok(Ran::Tests(counts)) => {
                    (if counts.failed == 0 { "ok" } else { "FAILED" }, Some(counts))
                }
                Ok(Ran::Check) => ("ok", None),
                Ok(Ran::Not(why)) => {
                    writeln!(f, "{name:<26} not run: {why}")?;
                    continue;
                }
                Err(_) => ("FAILED", None),
            };
            let number = |of: fn(&Counts) -> u64| {
                counts.map_or_else(String::new, |counts| of(counts).to_string())
            };
            let (passed, failed) = (number(|counts| counts.passed), number(|counts| counts.failed));
            writeln!(f, "{name:<26} {word:<7} {passed:>7} {failed:>7} {seconds:>9}")?;
        }
        let Counts { passed, failed, ignored, filtered_out } = self.total();
        let word = if self.passed() { "ok" } else { "FAILED" };
        let seconds: f64 = self.rows.iter().map(|row| row.time.as_secs_f64()).sum();
        writeln!(
            f,
            "\ntest result: {word}. {passed} passed; {failed} failed; {ignored} ignored; \
             0 measured; {filtered_out} filtered out; finished in {seconds:.2}s"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{Counts, Ran, Summary};
    use anyhow::bail;

    const LINE: &str = "test result: FAILED. 12 passed; 1 failed; 3 ignored; 0 measured; \
                        40 filtered out; finished in 1.23s";

    #[test]
    fn reads_libtest_lines_and_nothing_else() {
        let counts = Counts::parse(LINE).unwrap();
        assert_eq!(counts, Counts { passed: 12, failed: 1, ignored: 3, filtered_out: 40 });
        assert_eq!(Counts::parse("test inject::clears ... ok"), None);
        assert_eq!(Counts::parse("test result: ok. some words"), None);
    }

    #[test]
    fn one_bad_group_fails_the_whole() {
        let mut summary = Summary::default();
        assert!(!summary.passed(), "nothing ran");
        summary.group("format", || Ok(Ran::Check));
        summary.group("audit", || Ok(Ran::Not("no network".into())));
        assert!(summary.passed());
        summary.group("unit", || Ok(Ran::Tests(Counts::parse(LINE).unwrap())));
        assert!(!summary.passed(), "a failed test");
        let mut summary = Summary::default();
        summary.group("lints", || bail!("clippy failed"));
        assert!(!summary.passed(), "a failed check");
    }

    #[test]
    fn the_table_ends_with_the_sum_in_libtest_form() {
        let mut summary = Summary::default();
        let counts = Counts { passed: 2, failed: 0, ignored: 1, filtered_out: 0 };
        summary.group("unit", || Ok(Ran::Tests(counts)));
        summary.group("lab", || Ok(Ran::Tests(counts)));
        let table = summary.to_string();
        let last = table.lines().last().unwrap();
        assert!(last.starts_with("test result: ok. 4 passed; 0 failed; 2 ignored"), "{table}");
    }
}
