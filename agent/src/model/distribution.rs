//! Tables of delay distributions: made from formulae, or read from a file in tc's format.
//!
//! Entry i of n is the value at quantile i / n, less the mean, in standard deviations times
//! [`SCALE`]. netem draws an entry and multiplies it by the jitter (`net/sched/sch_netem.c`,
//! tabledist). The curves, their cutting off at 16 bits and their rounding are those of the
//! generators in iproute2's `netem` directory, so that a name means here what it means to tc.

use std::sync::{Arc, LazyLock};

use serde::{Deserialize, Serialize};

/// `NETEM_DIST_SCALE`: what one standard deviation is in a table.
pub const SCALE: f64 = 8192.0;
/// `NETEM_DIST_MAX`: entries that the kernel takes at most.
pub const MAX_ENTRIES: usize = 16_384;
/// Entries of a table that is made here, as in tc's.
const ENTRIES: usize = 4096;
/// Longest table file that is read, bytes: [`MAX_ENTRIES`] of seven characters, and comments.
pub const MAX_FILE_BYTES: u64 = 1 << 20;

/// How a random delay is spread around its mean.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Distribution {
    /// Evenly between mean - jitter and mean + jitter; needs no table.
    #[default]
    Uniform,
    /// Bell curve; jitter is the standard deviation.
    Normal,
    /// Pareto with shape 3: a sharp lower end and a long tail.
    Pareto,
    /// A quarter normal, three quarters Pareto: closest to what is seen in networks.
    Paretonormal,
    /// A table of the user's.
    Table(Table),
}

impl Distribution {
    /// The one of that name; None for any other text.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "uniform" => Some(Self::Uniform),
            "normal" => Some(Self::Normal),
            "pareto" => Some(Self::Pareto),
            "paretonormal" => Some(Self::Paretonormal),
            _ => None,
        }
    }

    /// Its name, or that of the table's file.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Uniform => "uniform",
            Self::Normal => "normal",
            Self::Pareto => "pareto",
            Self::Paretonormal => "paretonormal",
            Self::Table(table) => &table.name,
        }
    }

    /// The table to draw from; None for uniform, which is drawn without.
    #[must_use]
    pub fn table(&self) -> Option<Arc<[i16]>> {
        match self {
            Self::Uniform => None,
            Self::Normal => Some(Arc::clone(&NORMAL)),
            Self::Pareto => Some(Arc::clone(&PARETO)),
            Self::Paretonormal => Some(Arc::clone(&PARETONORMAL)),
            Self::Table(table) => Some(Arc::clone(&table.values)),
        }
    }
}

/// Made once: the normal one takes some milliseconds.
static NORMAL: LazyLock<Arc<[i16]>> = LazyLock::new(|| normal().map(cut).collect());
static PARETO: LazyLock<Arc<[i16]>> = LazyLock::new(|| pareto().map(cut).collect());
/// Mixed of whole numbers and divided towards zero, as the generators do.
static PARETONORMAL: LazyLock<Arc<[i16]>> =
    LazyLock::new(|| normal().zip(pareto()).map(|(n, p)| cut((n + 3 * p) / 4)).collect());

fn cut(value: i32) -> i16 {
    value.clamp(i16::MIN.into(), i16::MAX.into()) as i16
}

/// The normal distribution's quantiles. Walks along the curve in small steps, adding up the area
/// below it, and keeps the last point at which the area rounds to the entry's number.
fn normal() -> impl Iterator<Item = i32> {
    const STEP: f64 = 0.000_05;
    /// Steps of the area; every fourth is an entry.
    const FINE: usize = ENTRIES * 4;
    let density = |x: f64| (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let mut points = vec![0.0; FINE + 1];
    let (mut x, mut area) = (-10.0f64, 0.0f64);
    let mut here = density(x);
    while x < 10.05 {
        let entry = (area * FINE as f64).round_ties_even() as usize;
        points[entry.min(FINE)] = x;
        let next = x + STEP;
        let there = density(next);
        // Simpson's rule.
        area += STEP / 6.0 * (here + 4.0 * density(x + STEP / 2.0) + there);
        (x, here) = (next, there);
    }
    let entries = points.into_iter().take(FINE).step_by(4);
    entries.map(|x| (x * SCALE).round_ties_even() as i32)
}

/// Quantiles of the Pareto distribution of shape 3, less its mean of 3/2 and divided by 3/4. That is
/// its variance, not its deviation, but so do the generators.
fn pareto() -> impl Iterator<Item = i32> {
    (0..ENTRIES).map(|entry| {
        let above = 1.0 - entry as f64 / ENTRIES as f64;
        let value = (above.powf(1.0 / 3.0).recip() - 1.5) * (4.0 / 3.0) * SCALE;
        value.min(f64::from(i16::MAX)).round_ties_even() as i32
    })
}

/// A table that came from a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    name: String,
    #[serde(with = "values")]
    values: Arc<[i16]>,
}

/// Why a file holds no table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// Not one number.
    #[error(
        "distribution table `{0}` holds no numbers; it is to hold lines of whole numbers, \
         8192 to the standard deviation, as tc's .dist files do"
    )]
    Empty(String),
    /// More than [`MAX_ENTRIES`].
    #[error("distribution table `{0}` holds more than {MAX_ENTRIES} numbers, the kernel's limit")]
    TooLong(String),
    /// Something that is no 16-bit number.
    #[error(
        "distribution table `{name}`, line {line}: `{word}` is not a whole number from -32768 to \
         32767"
    )]
    BadNumber {
        /// The file.
        name: String,
        /// Counted from 1.
        line: usize,
        /// What is there.
        word: String,
    },
}

impl Table {
    /// Reads the text of a .dist file: whole numbers, with comments in lines that start with `#`.
    ///
    /// # Errors
    /// [`TableError`], naming `name`.
    pub fn parse(name: &str, text: &str) -> Result<Self, TableError> {
        let mut values = Vec::new();
        let lines = text.lines().zip(1..).filter(|(line, _)| !line.starts_with('#'));
        for (content, line) in lines {
            for word in content.split_whitespace() {
                let value = word.parse::<i16>().map_err(|_| TableError::BadNumber {
                    name: name.to_owned(),
                    line,
                    // A binary file's `word` may be as long as the file.
                    word: word.chars().take(20).collect::<String>().escape_default().to_string(),
                })?;
                if values.len() == MAX_ENTRIES {
                    return Err(TableError::TooLong(name.to_owned()));
                }
                values.push(value);
            }
        }
        if values.is_empty() {
            return Err(TableError::Empty(name.to_owned()));
        }
        Ok(Self { name: name.to_owned(), values: values.into() })
    }

    /// How many numbers it holds.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.values.len()
    }
}

mod values {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(values: &Arc<[i16]>, to: S) -> Result<S::Ok, S::Error> {
        values.as_ref().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Arc<[i16]>, D::Error> {
        Vec::deserialize(from).map(Into::into)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn moments(table: &[i16]) -> (f64, f64) {
        let n = table.len() as f64;
        let mean = table.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
        let square = table.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n;
        (mean / SCALE, square.sqrt() / SCALE)
    }

    #[test]
    fn a_normal_table_is_the_normal_distribution() {
        let table = Distribution::Normal.table().unwrap();
        assert_eq!(table.len(), ENTRIES);
        let (mean, deviation) = moments(&table);
        assert!(mean.abs() < 1e-3 && (deviation - 1.0).abs() < 5e-3, "{mean} {deviation}");
        // Known quantiles: 2.5 %, a quarter, a half, 97.5 %.
        for (quantile, expected) in [(0.025, -1.96), (0.25, -0.674), (0.5, 0.0), (0.975, 1.96)] {
            let got = f64::from(table[(quantile * ENTRIES as f64) as usize]) / SCALE;
            assert!((got - expected).abs() < 0.005, "{quantile}: {got}");
        }
    }

    #[test]
    fn a_pareto_table_is_the_pareto_distribution() {
        let table = Distribution::Pareto.table().unwrap();
        assert_eq!(table.len(), ENTRIES);
        // The smallest value of all is 1, that is (1 - 1.5) / 0.75 below the mean.
        assert_eq!(f64::from(table[0]), (-2.0 / 3.0 * SCALE).round());
        // Half of all are below the cube root of 2.
        let half = (2f64.cbrt() - 1.5) / 0.75;
        assert!((f64::from(table[ENTRIES / 2]) / SCALE - half).abs() < 1e-3);
        assert_eq!(table[ENTRIES - 1], i16::MAX, "the tail is cut off");
    }

    #[test]
    fn every_table_rises() {
        for name in ["normal", "pareto", "paretonormal"] {
            let distribution = Distribution::named(name).unwrap();
            assert_eq!(distribution.name(), name);
            let table = distribution.table().unwrap();
            assert!(table.is_sorted(), "{name}");
            assert!(moments(&table).0.abs() < 0.05, "{name}: the mean delay is the one asked for");
        }
        assert_eq!(Distribution::named("uniform").unwrap().table(), None);
        assert_eq!(Distribution::named("gauss"), None);
    }

    #[test]
    fn a_file_in_tcs_format() {
        let table = Table::parse("x.dist", "# a comment 7\n -32768 0\n\n\t12\t32767\n").unwrap();
        assert_eq!(table.entries(), 4);
        let text = serde_json::to_string(&Distribution::Table(table.clone())).unwrap();
        assert_eq!(text, r#"{"table":{"name":"x.dist","values":[-32768,0,12,32767]}}"#);
        let read: Distribution = serde_json::from_str(&text).unwrap();
        assert_eq!(read.table().unwrap()[..], [-32768, 0, 12, 32767]);
        assert_eq!(read, Distribution::Table(table));
    }

    #[test]
    fn files_that_are_none() {
        let complaint = |text: &str| Table::parse("x", text).unwrap_err().to_string();
        assert!(complaint("").contains("`x` holds no numbers"));
        assert!(complaint("# 1 2 3\n").contains("holds no numbers"));
        assert!(complaint("1\n\n2 32768").contains("line 3: `32768` is not"));
        assert!(complaint("0.5").contains("line 1: `0.5` is not"));
        assert!(complaint("\u{7f}ELF").contains("`\\u{7f}ELF`"));
        assert!(Table::parse("x", &"1 ".repeat(MAX_ENTRIES)).is_ok());
        assert!(complaint(&"1 ".repeat(MAX_ENTRIES + 1)).contains("more than 16384"));
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(values in proptest::collection::vec(any::<i16>(), 1..200)) {
            let text: String = values.iter().map(|value| format!("{value}\n")).collect();
            prop_assert_eq!(&Table::parse("x", &text).unwrap().values[..], &values[..]);
        }

        #[test]
        fn garbage_never_panics(text in "\\PC*") {
            let _ = Table::parse("x", &text);
        }
    }
}
