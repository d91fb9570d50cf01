//! Texts that must fit a message.

use agent_common::wire::MAX_TEXT;

use super::sql::CUT;

/// `text`, its end replaced by [`CUT`] where it is longer than `most` bytes.
#[must_use]
pub fn within(mut text: String, most: usize) -> String {
    if text.len() > most {
        text.truncate(text.floor_char_boundary(most.saturating_sub(CUT.len())));
        text.push_str(CUT);
    }
    text
}

/// `text`, cut to what a message may hold.
#[must_use]
pub fn for_message(text: impl Into<String>) -> String {
    within(text.into(), MAX_TEXT)
}

/// `text` as a terminal may be given it: control characters, and those that only change how others
/// are shown, are written as `\u{1b}`.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if is_harmless(character) {
            out.push(character);
        } else {
            out.extend(character.escape_unicode());
        }
    }
    out
}

/// Neither a control character (C0, DEL, C1), nor a line or paragraph separator, nor one that hides
/// or reorders what is near it.
const fn is_harmless(character: char) -> bool {
    !matches!(character,
        '\u{0}'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e007f}')
}

/// An error with its causes, each told once: some errors repeat their cause themselves.
#[must_use]
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !message.contains(&cause_text) {
            message = format!("{message}: {cause_text}");
        }
        next = cause.source();
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_steers_a_terminal_is_printed() {
        assert_eq!(printable("select 'naïve' \u{1b}[2J"), "select 'naïve' \\u{1b}[2J");
        assert_eq!(printable("a\u{9b}31m\r\nb\u{202e}c"), "a\\u{9b}31m\\u{d}\\u{a}b\\u{202e}c");
    }

    proptest::proptest! {
        #[test]
        fn what_is_printed_holds_no_control_character(bytes: Vec<u8>) {
            let text = printable(&String::from_utf8_lossy(&bytes));
            proptest::prop_assert!(!text.chars().any(char::is_control));
        }
    }

    #[test]
    fn what_fits_stays_and_the_rest_is_cut_between_characters() {
        assert_eq!(within("naïve".into(), 6), "naïve");
        assert_eq!(within("naïve".into(), 5), "na…");
        for most in 3..40 {
            let cut = within("日本語のとても長い文".into(), most);
            assert!(cut.len() <= most, "{cut}");
        }
        let long = for_message("é".repeat(MAX_TEXT));
        assert!(long.len() <= MAX_TEXT && long.ends_with('…'));
    }

    #[test]
    fn a_cause_is_told_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot open x: {0}")]
        struct Open(#[source] std::io::Error);
        #[derive(Debug, thiserror::Error)]
        #[error("no table")]
        struct Table(#[source] Open);
        let error = || Open(std::io::Error::other("no such file"));
        assert_eq!(with_causes(&error()), "cannot open x: no such file");
        assert_eq!(with_causes(&Table(error())), "no table: cannot open x: no such file");
    }
}
