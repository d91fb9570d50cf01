//! Data rates as people write them on a command line: `100mbit`, `1.5gbit`, `250kB/s`.

/// Units and their size in bits per second. Decimal, as network rates are.
const UNITS: [(&str, u128); 8] = [
    ("bit", 1),
    ("kbit", 1_000),
    ("mbit", 1_000_000),
    ("gbit", 1_000_000_000),
    ("b/s", 8),
    ("kb/s", 8_000),
    ("mb/s", 8_000_000),
    ("gb/s", 8_000_000_000),
];

/// Why a text is no rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Nothing was given.
    #[error("a rate is missing; write one such as 100mbit")]
    Empty,
    /// It starts with a minus sign.
    #[error("rate `{0}` is negative; write one such as 100mbit")]
    Negative(String),
    /// A number without a unit.
    #[error(
        "rate `{0}` has no unit; add bit, kbit, mbit, gbit (per second) or B/s, kB/s, MB/s, GB/s"
    )]
    NoUnit(String),
    /// A unit that is not known. Not `bps` either: it means bits to most and bytes to tc.
    #[error(
        "rate `{text}` has the unknown unit `{unit}`; use bit, kbit, mbit, gbit (per second) or B/s, \
         kB/s, MB/s, GB/s"
    )]
    UnknownUnit {
        /// The whole text.
        text: String,
        /// What follows the number.
        unit: String,
    },
    /// The number is malformed.
    #[error("rate `{0}` does not start with a decimal number; write one such as 1.5mbit")]
    NotANumber(String),
    /// Not a whole number of bytes per second.
    #[error("rate `{0}` is not a whole number of bytes per second; 8bit is one")]
    TooFine(String),
    /// Beyond 2^64 bytes per second.
    #[error("rate `{0}` is too high")]
    TooHigh(String),
}

/// Reads a decimal number followed by a unit: `bit`, `kbit`, `mbit`, `gbit` (each per second, with
/// or without `/s`, in either case) or `B/s`, `kB/s`, `MB/s`, `GB/s`. Returns bytes per second,
/// exactly: what is not whole is refused.
///
/// # Errors
/// [`ParseError`], naming the text and what to write instead.
pub fn parse(text: &str) -> Result<u64, ParseError> {
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
        return Err(ParseError::NoUnit(text.to_owned()));
    }
    let bits = unit_bits(unit)
        .ok_or_else(|| ParseError::UnknownUnit { text: text.to_owned(), unit: unit.to_owned() })?;
    let too_high = || ParseError::TooHigh(text.to_owned());
    let fraction = fraction.trim_end_matches('0');
    if fraction.len() > 12 {
        return Err(ParseError::TooFine(text.to_owned()));
    }
    // Integers only, so that no fraction is rounded.
    let scale = 10u128.pow(fraction.len() as u32);
    let whole: u64 = whole.parse().map_err(|_| too_high())?;
    let part: u128 = if fraction.is_empty() { 0 } else { fraction.parse().unwrap_or(0) };
    let scaled = (u128::from(whole) * scale + part).checked_mul(bits).ok_or_else(too_high)?;
    if !scaled.is_multiple_of(scale * 8) {
        return Err(ParseError::TooFine(text.to_owned()));
    }
    u64::try_from(scaled / (scale * 8)).map_err(|_| too_high())
}

/// Bits are told from bytes by the letter's case in `B/s`; otherwise case does not matter.
fn unit_bits(unit: &str) -> Option<u128> {
    let lower = unit.to_ascii_lowercase();
    let name = match lower.strip_suffix("/s") {
        Some(bits) if bits.ends_with("bit") => bits,
        Some(_) if !unit.contains('B') => return None,
        _ => &lower,
    };
    UNITS.iter().find(|(known, _)| *known == name).map(|(_, bits)| *bits)
}

/// Writes bytes per second exactly, in the largest of `gbit`, `mbit`, `kbit`, `bit` that is not above
/// it, so that [`parse`] gives it back: `100mbit`, `1.5gbit`.
#[must_use]
pub fn format(bytes_per_s: u64) -> String {
    let bits = u128::from(bytes_per_s) * 8;
    let (unit, size) = match bits {
        0..1_000 => ("bit", 1),
        1_000..1_000_000 => ("kbit", 1_000),
        1_000_000..1_000_000_000 => ("mbit", 1_000_000),
        _ => ("gbit", 1_000_000_000u128),
    };
    let (whole, rest) = (bits / size, bits % size);
    if rest == 0 {
        return format!("{whole}{unit}");
    }
    let width = size.ilog10() as usize;
    let fraction = format!("{rest:0width$}");
    format!("{whole}.{}{unit}", fraction.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, bytes_per_s) in [
            ("5kbit", 625),
            ("100mbit", 12_500_000),
            ("100Mbit/s", 12_500_000),
            ("1.5 gbit", 187_500_000),
            ("8bit", 1),
            ("250kB/s", 250_000),
            ("1.5MB/s", 1_500_000),
            ("40GB/s", 40_000_000_000),
        ] {
            assert_eq!(parse(text), Ok(bytes_per_s), "{text}");
        }
    }

    #[test]
    fn refuses_the_rest_by_name() {
        use ParseError as E;
        let s = str::to_owned;
        let unknown = |text: &str, unit: &str| E::UnknownUnit { text: s(text), unit: s(unit) };
        for (text, error) in [
            ("", E::Empty),
            ("-5kbit", E::Negative(s("-5kbit"))),
            ("100", E::NoUnit(s("100"))),
            ("0", E::NoUnit(s("0"))),
            ("10kbps", unknown("10kbps", "kbps")),
            ("10mb/s", unknown("10mb/s", "mb/s")),
            ("10Mb", unknown("10Mb", "Mb")),
            ("mbit", E::NotANumber(s("mbit"))),
            ("1.2.3mbit", E::NotANumber(s("1.2.3mbit"))),
            ("5bit", E::TooFine(s("5bit"))),
            ("0.0000000000001gbit", E::TooFine(s("0.0000000000001gbit"))),
            ("18446744073709551615GB/s", E::TooHigh(s("18446744073709551615GB/s"))),
            ("99999999999999999999bit", E::TooHigh(s("99999999999999999999bit"))),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(bytes_per_s: u64) {
            prop_assert_eq!(parse(&format(bytes_per_s)), Ok(bytes_per_s));
        }

        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = parse(&text);
        }
    }
}
