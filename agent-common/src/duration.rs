//! Durations as people write them on a command line: `100ms`, `1.5s`, `250us`.

use std::time::Duration;

/// Units and their length in nanoseconds.
const UNITS: [(&str, u64); 7] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("min", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Why a text is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Nothing was given.
    #[error("a duration is missing; write one such as 100ms")]
    Empty,
    /// It starts with a minus sign.
    #[error("duration `{0}` is negative; write one such as 100ms")]
    Negative(String),
    /// A number without a unit.
    #[error("duration `{0}` has no unit; add ns, us, ms, s, min or h, such as 100ms")]
    NoUnit(String),
    /// A unit that is not known.
    #[error("duration `{text}` has the unknown unit `{unit}`; use ns, us, ms, s, min or h")]
    UnknownUnit {
        /// The whole text.
        text: String,
        /// What follows the number.
        unit: String,
    },
    /// The number is malformed.
    #[error("duration `{0}` does not start with a decimal number; write one such as 1.5s")]
    NotANumber(String),
    /// Finer than a nanosecond.
    #[error("duration `{0}` is finer than a nanosecond")]
    TooFine(String),
    /// Beyond 2^64 nanoseconds (584 years).
    #[error("duration `{0}` is too long")]
    TooLong(String),
}

/// Reads a decimal number followed by a unit: `ns`, `us` (or `µs`), `ms`, `s`, `min`, `h`. A bare
/// `0` needs no unit. The result is exact: what a nanosecond cannot hold is refused.
///
/// # Errors
/// [`ParseError`], naming the text and what to write instead.
pub fn parse(text: &str) -> Result<Duration, ParseError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(ParseError::Empty);
    }
    if text.starts_with('-') {
        return Err(ParseError::Negative(text.to_owned()));
    }
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.contains('.') || number.ends_with('.') {
        return Err(ParseError::NotANumber(text.to_owned()));
    }
    let unit = unit.trim_start();
    if unit.is_empty() {
        return if number.bytes().all(|b| b == b'0' || b == b'.') {
            Ok(Duration::ZERO)
        } else {
            Err(ParseError::NoUnit(text.to_owned()))
        };
    }
    let unit_ns =
        UNITS.iter().find(|(name, _)| *name == unit).map(|(_, ns)| *ns).ok_or_else(|| {
            ParseError::UnknownUnit { text: text.to_owned(), unit: unit.to_owned() }
        })?;
    let too_long = || ParseError::TooLong(text.to_owned());
    let whole: u64 = whole.parse().map_err(|_| too_long())?;
    let mut ns = whole.checked_mul(unit_ns).ok_or_else(too_long)?;

    // Integers only, so that no fraction is rounded.
    let mut scale: u128 = 1;
    let mut numerator: u128 = 0;
    for digit in fraction.trim_end_matches('0').bytes() {
        scale = scale.saturating_mul(10);
        numerator = numerator.saturating_mul(10).saturating_add(u128::from(digit - b'0'));
    }
    if scale > 1_000_000_000_000_000_000 {
        return Err(ParseError::TooFine(text.to_owned()));
    }
    let scaled = numerator * u128::from(unit_ns);
    if !scaled.is_multiple_of(scale) {
        return Err(ParseError::TooFine(text.to_owned()));
    }
    let part = u64::try_from(scaled / scale).map_err(|_| too_long())?;
    ns = ns.checked_add(part).ok_or_else(too_long)?;
    Ok(Duration::from_nanos(ns))
}

/// Writes a duration exactly, in the largest of `s`, `ms`, `us`, `ns` that is not above it, so that
/// [`parse`] gives it back: `100ms`, `1.5s`, `250us`, `0s`.
#[must_use]
pub fn format(duration: Duration) -> String {
    let ns = duration.as_nanos();
    let (unit, unit_ns) = match ns {
        0 => return "0s".to_owned(),
        1..1_000 => ("ns", 1),
        1_000..1_000_000 => ("us", 1_000),
        1_000_000..1_000_000_000 => ("ms", 1_000_000),
        _ => ("s", 1_000_000_000),
    };
    let (whole, rest) = (ns / unit_ns, ns % unit_ns);
    if rest == 0 {
        return format!("{whole}{unit}");
    }
    let width = unit_ns.ilog10() as usize;
    let fraction = format!("{rest:0width$}");
    format!("{whole}.{}{unit}", fraction.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, ns) in [
            ("100ms", 100_000_000),
            ("1.5s", 1_500_000_000),
            ("250us", 250_000),
            ("250µs", 250_000),
            ("7ns", 7),
            ("80s", 80_000_000_000),
            ("2min", 120_000_000_000),
            ("0.5h", 1_800_000_000_000),
            (" 10 ms ", 10_000_000),
            ("0", 0),
            ("0.000ms", 0),
            ("1.000000001s", 1_000_000_001),
            ("18446744073709551615ns", u64::MAX),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_nanos(ns)), "{text}");
        }
    }

    #[test]
    fn refuses_the_rest_by_name() {
        use ParseError as E;
        let s = str::to_owned;
        for (text, error) in [
            ("", E::Empty),
            ("-5ms", E::Negative(s("-5ms"))),
            ("100", E::NoUnit(s("100"))),
            ("5 parsecs", E::UnknownUnit { text: s("5 parsecs"), unit: s("parsecs") }),
            ("5MS", E::UnknownUnit { text: s("5MS"), unit: s("MS") }),
            ("ms", E::NotANumber(s("ms"))),
            (".5s", E::NotANumber(s(".5s"))),
            ("5.s", E::NotANumber(s("5.s"))),
            ("1.2.3s", E::NotANumber(s("1.2.3s"))),
            ("1.5ns", E::TooFine(s("1.5ns"))),
            ("0.00000000000000000000001s", E::TooFine(s("0.00000000000000000000001s"))),
            ("18446744073709551616ns", E::TooLong(s("18446744073709551616ns"))),
            ("99999999999h", E::TooLong(s("99999999999h"))),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn writes_the_shortest_exact_form() {
        for (ns, text) in [
            (0, "0s"),
            (999, "999ns"),
            (1_500, "1.5us"),
            (100_000_000, "100ms"),
            (1_000_000_001, "1.000000001s"),
            (90_000_000_000, "90s"),
        ] {
            assert_eq!(format(Duration::from_nanos(ns)), text);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(ns: u64) {
            let duration = Duration::from_nanos(ns);
            prop_assert_eq!(parse(&format(duration)), Ok(duration));
        }

        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = parse(&text);
        }
    }
}
