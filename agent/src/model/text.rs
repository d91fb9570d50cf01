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

#[cfg(test)]
mod tests {
    use super::*;

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
}
