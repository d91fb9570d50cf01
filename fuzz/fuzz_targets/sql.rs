//! Statements, whole or cut. A statement is the input with a string literal put into it, of which the
//! content must not survive wherever the rest of the input lets a literal start.
#![no_main]

use agent::model::sql::normalise;
use libfuzzer_sys::fuzz_target;

/// Content of the literal.
const SECRET: &str = "zqsecretqz";

fuzz_target!(|data: &[u8]| {
    let Some((&first, bytes)) = data.split_first() else { return };
    let cut = first & 1 == 1;
    let text = String::from_utf8_lossy(bytes);
    let once = normalise(&text, cut);
    let twice = normalise(&once.text, false);
    assert_eq!(once.text, twice.text, "of {text:?}");

    // A literal after what cannot have opened anything: letters, digits, commas, brackets, spaces.
    let head: String = text
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, ',' | '(' | ')' | ' ' | '=' | '.'))
        .collect();
    // The fuzzer learns it, and may use it as a name.
    if head.contains(SECRET) || text.contains(SECRET) {
        return;
    }
    let sql = format!("{head} '{SECRET}' {text}");
    let named = normalise(&sql, cut).text;
    assert!(!named.contains(SECRET), "{sql:?} became {named:?}");
});
