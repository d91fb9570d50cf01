//! Lists of literals become one literal, so that a statement is the same however many values it
//! was given: `IN (1, 2, 3)` is `IN (?)`, `VALUES (1, 2), (3, 4)` is `VALUES (?)`.

use super::{
    CUT,
    lex::{LITERAL, Token},
};

/// Folds until nothing changes: a fold can bring two equal things side by side.
pub(super) fn lists(tokens: &mut Vec<Token>) {
    while once(tokens) {}
}

/// One pass over the tokens; whether it changed anything.
fn once(tokens: &mut Vec<Token>) -> bool {
    let mut out: Vec<Token> = Vec::with_capacity(tokens.len());
    let mut at = 0;
    while at < tokens.len() {
        let here = &tokens[at..];
        // A sign after an opening bracket or a comma belongs to the literal.
        if is(here, 0, "-") && is(here, 1, LITERAL) && out.last().is_some_and(opens) {
            at += 1;
            continue;
        }
        let length = element(here);
        if length > 0 && repeats(&out, &here[..length]) {
            out.pop(); // the comma
            at += length;
            continue;
        }
        out.push(tokens[at].clone());
        at += 1;
    }
    let changed = out.len() != tokens.len();
    *tokens = out;
    changed
}

/// Whether `out` ends in `element` and a comma.
fn repeats(out: &[Token], element: &[Token]) -> bool {
    let Some((comma, before)) = out.split_last() else { return false };
    comma.text == ","
        && before.len() >= element.len()
        && before[before.len() - element.len()..].iter().map(text).eq(element.iter().map(text))
        && starts_an_element(&before[..before.len() - element.len()])
}

/// `a + ?, ?` is no list of two equal elements.
fn starts_an_element(before: &[Token]) -> bool {
    before.last().is_none_or(|token| opens(token) || token.text.chars().all(char::is_alphabetic))
}

/// How many tokens the element at the start of `here` has: `?`, `?::type` or `(?)`; else 0. It must
/// end where a list's element ends.
fn element(here: &[Token]) -> usize {
    let length = if is(here, 0, "(") && is(here, 1, LITERAL) && is(here, 2, ")") {
        3
    } else if is(here, 0, LITERAL) {
        1 + cast(&here[1..])
    } else {
        return 0;
    };
    let ends =
        here.get(length).is_none_or(|next| matches!(next.text.as_str(), "," | ")" | "]" | ";"))
            || is(here, 0, "(");
    if ends { length } else { 0 }
}

/// How many tokens a cast `:: name . name` at the start has.
fn cast(here: &[Token]) -> usize {
    let name = |at: usize| {
        here.get(at).is_some_and(|t| t.text.starts_with(|c: char| c.is_alphabetic() || c == '_'))
    };
    if !(is(here, 0, ":") && is(here, 1, ":") && name(2)) {
        return 0;
    }
    let mut length = 3;
    while is(here, length, ".") && name(length + 1) {
        length += 2;
    }
    if is(here, length, "[") && is(here, length + 1, "]") {
        length += 2;
    }
    length
}

fn is(tokens: &[Token], at: usize, text: &str) -> bool {
    tokens.get(at).is_some_and(|token| token.text == text)
}

fn opens(token: &Token) -> bool {
    matches!(token.text.as_str(), "(" | "[" | ",")
}

fn text(token: &Token) -> &str {
    &token.text
}

/// One text with canonical spaces about brackets and commas; elsewhere a space where there was any.
pub(super) fn render(tokens: &[Token]) -> String {
    let mut out = String::new();
    let mut previous: Option<&str> = None;
    for token in tokens {
        let space = match (previous, token.text.as_str()) {
            (None, _) | (Some("(" | "["), _) | (_, "," | ")" | "]" | ";" | CUT) => false,
            (Some("," | ";"), _) => true,
            _ => token.spaced,
        };
        if space {
            out.push(' ');
        }
        out.push_str(&token.text);
        previous = Some(&token.text);
    }
    out
}
