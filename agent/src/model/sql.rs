//! SQL without its literals: what a statement is, never whom it was about.
//!
//! This is no parser. It knows where literals start and end in Postgres's lexical rules, and where
//! it cannot know (a cut text, a backslash before a quote) it drops the rest of the statement.

use agent_common::wire::DbKind;

mod fold;
mod lex;

/// Mark of a text of which the end was not seen.
pub const CUT: &str = "…";

/// A statement with its literals removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Normalised {
    /// The text: literals and parameters are `?`, comments are gone, whitespace is single, lists of
    /// literals are one literal, long digit runs in names are `N`.
    pub text: String,
    /// What the statement does.
    pub kind: DbKind,
}

/// Removes the literals of `sql` and says what it does. `cut` tells that the end of the text is
/// missing; [`CUT`] then ends the result.
#[must_use]
pub fn normalise(sql: &str, cut: bool) -> Normalised {
    let (mut tokens, dropped) = lex::tokens(sql, cut);
    let kind = classify(&tokens);
    if (cut || dropped) && tokens.last().is_none_or(|last| last.text != CUT) {
        tokens.push(lex::Token { text: CUT.to_owned(), spaced: false });
    }
    fold::lists(&mut tokens);
    Normalised { text: fold::render(&tokens), kind }
}

/// The kind of a text of several statements: that of the most telling one.
fn classify(tokens: &[lex::Token]) -> DbKind {
    tokens
        .split(|token| token.text == ";")
        .filter(|statement| !statement.is_empty())
        .map(classify_one)
        .max_by_key(|kind| weight(*kind))
        .unwrap_or(DbKind::Other)
}

/// Which kind names a turn of several statements: the heaviest.
pub(super) fn weight(kind: DbKind) -> u8 {
    match kind {
        DbKind::Query => 5,
        DbKind::Commit => 4,
        DbKind::Rollback => 3,
        DbKind::Begin => 2,
        DbKind::SessionSetup => 1,
        _ => 0,
    }
}

fn classify_one(statement: &[lex::Token]) -> DbKind {
    let word = |index: usize| {
        statement.get(index).map(|token| token.text.to_ascii_lowercase()).unwrap_or_default()
    };
    match word(0).as_str() {
        "begin" => DbKind::Begin,
        "start" if word(1) == "transaction" => DbKind::Begin,
        "commit" | "end" => DbKind::Commit,
        // ROLLBACK TO [SAVEPOINT] s goes on with the transaction.
        "rollback" if (1..=2).any(|index| word(index) == "to") => DbKind::Query,
        "rollback" | "abort" => DbKind::Rollback,
        "set" | "show" | "reset" | "discard" | "deallocate" => DbKind::SessionSetup,
        "select" if word(1) == "set_config" && word(2) == "(" => DbKind::SessionSetup,
        "select" if word(1) == "pg_catalog" && word(2) == "." && word(3) == "set_config" => {
            DbKind::SessionSetup
        }
        "" => DbKind::Other,
        _ => DbKind::Query,
    }
}

#[cfg(test)]
mod tests;
