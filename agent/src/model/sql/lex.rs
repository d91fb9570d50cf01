//! Cuts SQL into tokens, literals already replaced. See "Lexical Structure" in Postgres's manual.

/// What stands for every literal and parameter.
pub(super) const LITERAL: &str = "?";
/// Runs of digits in names from this length on are numbers that a program put there.
const LONG_DIGIT_RUN: usize = 5;

/// A piece of a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    /// Its text as it will be printed.
    pub(super) text: String,
    /// Whether whitespace or a comment stood before it.
    pub(super) spaced: bool,
}

/// The tokens of `sql`, and whether its rest was dropped because a literal, name or comment did not
/// end or could not be told to end. In a `cut` text a last word goes too: it may be the start of
/// something else, such as the E of E'...'.
pub(super) fn tokens(sql: &str, cut: bool) -> (Vec<Token>, bool) {
    let mut lexer = Lexer { rest: sql, out: Vec::new() };
    let dropped = lexer.run().is_none();
    if cut && !dropped && sql.ends_with(is_name_part) {
        lexer.out.pop_if(|token| token.text != LITERAL);
    }
    (lexer.out, dropped)
}

struct Lexer<'a> {
    rest: &'a str,
    out: Vec<Token>,
}

impl<'a> Lexer<'a> {
    /// Runs to the end; None where the rest had to be dropped.
    fn run(&mut self) -> Option<()> {
        let mut spaced = false;
        while let Some(c) = self.rest.chars().next() {
            // Neither control characters nor what UTF-8 decoding could not read mean anything.
            if c.is_whitespace() || c.is_control() || c == char::REPLACEMENT_CHARACTER {
                self.take(c.len_utf8());
            } else if self.rest.starts_with("--") {
                let end = self.rest.find('\n').unwrap_or(self.rest.len());
                self.take(end);
            } else if self.rest.starts_with("/*") {
                self.block_comment()?;
            } else {
                self.token(c, spaced)?;
                spaced = false;
                continue;
            }
            spaced = true;
        }
        Some(())
    }

    fn token(&mut self, c: char, spaced: bool) -> Option<()> {
        let after = &self.rest[c.len_utf8()..];
        match c {
            '\'' => self.string(c.len_utf8(), false, spaced),
            '"' => self.quoted_name(spaced),
            '$' => self.dollar(spaced),
            '0'..='9' => self.number(spaced),
            '.' if after.starts_with(|d: char| d.is_ascii_digit()) => self.number(spaced),
            _ if is_name_start(c) => self.name(spaced),
            _ => {
                let text = self.take(c.len_utf8()).to_owned();
                self.push(text, spaced)
            }
        }
    }

    fn push(&mut self, text: String, spaced: bool) -> Option<()> {
        self.out.push(Token { text, spaced });
        Some(())
    }

    fn take(&mut self, bytes: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(bytes);
        self.rest = rest;
        taken
    }

    /// Takes while `wanted`.
    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !wanted(c)).unwrap_or(self.rest.len());
        self.take(end)
    }

    /// Comments nest.
    fn block_comment(&mut self) -> Option<()> {
        let mut depth = 0_usize;
        loop {
            if self.rest.starts_with("/*") {
                depth += 1;
                self.take(2);
            } else if self.rest.starts_with("*/") {
                depth -= 1;
                self.take(2);
                if depth == 0 {
                    return Some(());
                }
            } else {
                let c = self.rest.chars().next()?;
                self.take(c.len_utf8());
            }
        }
    }

    /// A string of which the prefix and opening quote are `opening` bytes.
    fn string(&mut self, opening: usize, escapes: bool, spaced: bool) -> Option<()> {
        // Pushed first: it stands there whether or not its end is found.
        self.push(LITERAL.to_owned(), spaced);
        self.take(opening);
        loop {
            let at = self.rest.find(['\'', '\\'])?;
            self.take(at);
            let quote = self.rest.starts_with('\'');
            self.take(1);
            if quote {
                if !self.rest.starts_with('\'') {
                    return Some(());
                }
                self.take(1);
            } else if escapes {
                let escaped = self.rest.chars().next()?;
                self.take(escaped.len_utf8());
            } else if self.rest.starts_with('\'') {
                // Where this string ends depends on standard_conforming_strings, which is not
                // known here. Better to lose the rest than to print half a literal.
                return None;
            }
        }
    }

    /// A name in double quotes; two of them inside are one.
    fn quoted_name(&mut self, spaced: bool) -> Option<()> {
        let whole = self.rest;
        self.take(1);
        loop {
            let at = self.rest.find('"')?;
            self.take(at + 1);
            if !self.rest.starts_with('"') {
                break;
            }
            self.take(1);
        }
        let text = &whole[..whole.len() - self.rest.len()];
        self.push(without_long_numbers(text), spaced)
    }

    /// `$1`, `$$...$$` or `$tag$...$tag$`.
    fn dollar(&mut self, spaced: bool) -> Option<()> {
        self.push(LITERAL.to_owned(), spaced);
        self.take(1);
        if self.rest.starts_with(|c: char| c.is_ascii_digit()) {
            self.take_while(is_name_part);
            return Some(());
        }
        let tag = self.take_while(|c| is_name_part(c) && c != '$');
        if !self.rest.starts_with('$') {
            // No string, so no valid SQL, or the tag is cut.
            return None;
        }
        self.take(1);
        let end = format!("${tag}$");
        let at = self.rest.find(&end)?;
        self.take(at + end.len());
        Some(())
    }

    /// Digits with whatever clings to them: 1_000, 1.5e-7, 0xFF, 1and.
    fn number(&mut self, spaced: bool) -> Option<()> {
        loop {
            let part = self.take_while(|c| is_name_part(c) || c == '.');
            let exponent = part.ends_with(['e', 'E']) && self.rest.starts_with(['+', '-']);
            if !exponent {
                break;
            }
            self.take(1);
        }
        self.push(LITERAL.to_owned(), spaced)
    }

    /// A name or keyword, or the prefix of a string.
    fn name(&mut self, spaced: bool) -> Option<()> {
        for (prefix, escapes) in [("e'", true), ("b'", false), ("x'", false), ("n'", false)] {
            if self.rest.get(..2).is_some_and(|head| head.eq_ignore_ascii_case(prefix)) {
                return self.string(2, escapes, spaced);
            }
        }
        if self.rest.get(..3).is_some_and(|head| head.eq_ignore_ascii_case("u&'")) {
            return self.string(3, false, spaced);
        }
        let text = self.take_while(is_name_part);
        self.push(without_long_numbers(text), spaced)
    }
}

fn is_name_start(c: char) -> bool {
    c.is_alphabetic() || c == '_'
}

fn is_name_part(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$'
}

/// Django's savepoints and named cursors carry thread ids: each would be a statement of its own.
fn without_long_numbers(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut digits = String::new();
    let flush = |digits: &mut String, out: &mut String| {
        out.push_str(if digits.len() < LONG_DIGIT_RUN { digits } else { "N" });
        digits.clear();
    };
    for c in name.chars() {
        if c.is_ascii_digit() {
            digits.push(c);
        } else {
            flush(&mut digits, &mut out);
            out.push(c);
        }
    }
    flush(&mut digits, &mut out);
    out
}
