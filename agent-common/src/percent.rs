//! Percentages as people write them on a command line: `1%`, `0.25%`.

/// Why a text is no percentage between 0 % and 100 %.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Nothing was given.
    #[error("a percentage is missing; write one such as 1%")]
    Empty,
    /// It starts with a minus sign.
    #[error("percentage `{0}` is negative; write one from 0% to 100%")]
    Negative(String),
    /// A number without its sign: 0.5 could be half of all or half a percent.
    #[error("percentage `{0}` has no % sign; write one such as 1%")]
    NoSign(String),
    /// The number is malformed.
    #[error("percentage `{0}` is not a decimal number and a % sign; write one such as 0.5%")]
    NotANumber(String),
    /// More than all.
    #[error("percentage `{0}` is above 100%")]
    TooLarge(String),
}

/// Reads a decimal number from 0 to 100 and a `%` sign. A bare `0` needs no sign. Returns a fraction
/// from 0 to 1.
///
/// # Errors
/// [`ParseError`], naming the text and what to write instead.
pub fn parse(text: &str) -> Result<f64, ParseError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(ParseError::Empty);
    }
    if text.starts_with('-') {
        return Err(ParseError::Negative(text.to_owned()));
    }
    let (number, signed) = match text.strip_suffix('%') {
        Some(number) => (number.trim_end(), true),
        None => (text, false),
    };
    let decimal = number.bytes().all(|b| b.is_ascii_digit() || b == b'.')
        && number.starts_with(|c: char| c.is_ascii_digit())
        && number.ends_with(|c: char| c.is_ascii_digit());
    let percent: f64 = match number.parse() {
        Ok(percent) if decimal => percent,
        _ => return Err(ParseError::NotANumber(text.to_owned())),
    };
    if !signed && percent != 0.0 {
        return Err(ParseError::NoSign(text.to_owned()));
    }
    if percent > 100.0 {
        return Err(ParseError::TooLarge(text.to_owned()));
    }
    Ok(percent / 100.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, fraction) in [
            ("1%", 0.01),
            ("0.1%", 0.001),
            (" 25 % ", 0.25),
            ("100%", 1.0),
            ("0", 0.0),
            ("0%", 0.0),
        ] {
            assert_eq!(parse(text), Ok(fraction), "{text}");
        }
    }

    #[test]
    fn refuses_the_rest_by_name() {
        use ParseError as E;
        let s = str::to_owned;
        for (text, error) in [
            ("", E::Empty),
            ("-1%", E::Negative(s("-1%"))),
            ("5", E::NoSign(s("5"))),
            ("0.5", E::NoSign(s("0.5"))),
            ("100.1%", E::TooLarge(s("100.1%"))),
            ("%", E::NotANumber(s("%"))),
            ("1e1%", E::NotANumber(s("1e1%"))),
            (".5%", E::NotANumber(s(".5%"))),
            ("inf%", E::NotANumber(s("inf%"))),
            ("1%%", E::NotANumber(s("1%%"))),
            ("half", E::NotANumber(s("half"))),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_a_fraction(text in "\\PC*") {
            if let Ok(fraction) = parse(&text) {
                prop_assert!((0.0..=1.0).contains(&fraction));
            }
        }
    }
}
