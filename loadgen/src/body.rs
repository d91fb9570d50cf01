//! Form bodies: `name=value` templates, URL-encoded, with `{random:N}` for N random letters.
//!
//! A random letter needs no escape, so the encoded length never changes: a request is built once
//! and only its random spans are written anew.

use std::ops::Range;

/// Most letters of one `{random:N}`.
pub const MAX_RANDOM: usize = 1 << 20;

const LETTERS: &[u8; 52] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// Why a form field cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BodyError {
    /// No `=`.
    #[error("form field `{0}` has no `=`: write it as NAME=VALUE")]
    NoEquals(String),
    /// `{` that starts nothing known.
    #[error(
        "form field `{field}`: `{placeholder}` is no placeholder: write {{random:N}}, or {{{{ and \
         }}}} for braces"
    )]
    Placeholder {
        /// The whole field.
        field: String,
        /// What stands in braces.
        placeholder: String,
    },
    /// N is no number or out of range.
    #[error("form field `{field}`: the number in `{placeholder}` must be 1 to {MAX_RANDOM}")]
    Length {
        /// The whole field.
        field: String,
        /// What stands in braces.
        placeholder: String,
    },
}

/// Bytes with spans that are random in every use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Template {
    bytes: Vec<u8>,
    random: Vec<Range<usize>>,
}

impl Template {
    /// Encodes fields as `application/x-www-form-urlencoded`.
    ///
    /// # Errors
    /// [`BodyError`] names the field and what is wrong with it.
    pub fn form<S: AsRef<str>>(fields: &[S]) -> Result<Self, BodyError> {
        let mut template = Self::default();
        for (index, field) in fields.iter().map(AsRef::as_ref).enumerate() {
            let (name, value) =
                field.split_once('=').ok_or_else(|| BodyError::NoEquals(field.to_owned()))?;
            if index > 0 {
                template.bytes.push(b'&');
            }
            template.encode(name);
            template.bytes.push(b'=');
            template.value(field, value)?;
        }
        Ok(template)
    }

    /// The bytes; random spans hold what was written last.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Puts `head` before the bytes.
    pub fn prepend(&mut self, head: &[u8]) {
        self.bytes.splice(0..0, head.iter().copied());
        for span in &mut self.random {
            *span = span.start + head.len()..span.end + head.len();
        }
    }

    /// Writes new letters into every random span.
    pub fn shuffle(&mut self, random: &mut fastrand::Rng) {
        for span in &self.random {
            for byte in &mut self.bytes[span.clone()] {
                *byte = LETTERS[random.usize(..LETTERS.len())];
            }
        }
    }

    fn value(&mut self, field: &str, value: &str) -> Result<(), BodyError> {
        let mut rest = value;
        while let Some(at) = rest.find(['{', '}']) {
            self.encode(&rest[..at]);
            let brace = &rest[at..];
            if brace.starts_with("{{") || brace.starts_with("}}") {
                self.encode(&brace[..1]);
                rest = &brace[2..];
                continue;
            }
            let end = brace.find('}').filter(|end| *end > 0);
            let placeholder = end.map_or(brace, |end| &brace[..=end]);
            let count = placeholder
                .strip_prefix("{random:")
                .and_then(|p| p.strip_suffix('}'))
                .ok_or_else(|| BodyError::Placeholder {
                    field: field.to_owned(),
                    placeholder: placeholder.to_owned(),
                })?;
            let count =
                count.parse().ok().filter(|n| (1..=MAX_RANDOM).contains(n)).ok_or_else(|| {
                    BodyError::Length {
                        field: field.to_owned(),
                        placeholder: placeholder.to_owned(),
                    }
                })?;
            let start = self.bytes.len();
            self.bytes.resize(start + count, b'x');
            self.random.push(start..start + count);
            rest = &brace[placeholder.len()..];
        }
        self.encode(rest);
        Ok(())
    }

    fn encode(&mut self, text: &str) {
        for part in url::form_urlencoded::byte_serialize(text.as_bytes()) {
            self.bytes.extend_from_slice(part.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_form_is_encoded_and_its_letters_change() {
        let mut template =
            Template::form(&["title=Post {random:10}", "a&b=x=y {{ }} \u{fc}"]).unwrap();
        let first = template.bytes().to_vec();
        let mut random = fastrand::Rng::with_seed(1);
        template.shuffle(&mut random);
        let text = String::from_utf8(template.bytes().to_vec()).unwrap();
        assert_eq!(text.len(), first.len());
        let letters = &text["title=Post+".len()..][..10];
        assert!(letters.bytes().all(|b| b.is_ascii_alphabetic()), "{text}");
        assert!(text.ends_with("&a%26b=x%3Dy+%7B+%7D+%C3%BC"), "{text}");
        let before = text;
        template.shuffle(&mut random);
        assert_ne!(template.bytes(), before.as_bytes());
    }

    #[test]
    fn prepended_bytes_move_the_spans() {
        let mut template = Template::form(&["a={random:3}"]).unwrap();
        template.prepend(b"HEAD");
        template.shuffle(&mut fastrand::Rng::with_seed(2));
        assert!(template.bytes().starts_with(b"HEADa="));
        assert_eq!(template.bytes().len(), 9);
    }

    #[test]
    fn errors_name_the_field_and_the_fix() {
        let message = |field: &str| Template::form(&[field]).unwrap_err().to_string();
        assert_eq!(message("abc"), "form field `abc` has no `=`: write it as NAME=VALUE");
        assert!(message("a={rnd:3}").contains("`{rnd:3}` is no placeholder: write {random:N}"));
        assert!(message("a={random:3").contains("is no placeholder"));
        assert!(message("a=}x").contains("is no placeholder"));
        assert!(message("a={random:0}").contains("must be 1 to 1048576"));
        assert!(message("a={random:99999999999999999999}").contains("must be 1 to"));
    }

    proptest! {
        #[test]
        fn whatever_stands_in_a_value_is_decoded_to_the_same(value in "[^{}]{0,40}") {
            let template = Template::form(&[format!("k={value}")]).unwrap();
            let pairs: Vec<_> = url::form_urlencoded::parse(template.bytes()).collect();
            prop_assert_eq!(pairs.len(), 1);
            prop_assert_eq!(&pairs[0].1, &value);
        }

        #[test]
        fn no_field_panics(field in ".{0,40}") {
            let _ = Template::form(&[field]);
        }
    }
}
