//! Cuts what a Postgres client sent into messages. Never trusts a length.

/// Codes that stand where a startup message has its version.
const CANCEL: u32 = 80_877_102;
const SSL: u32 = 80_877_103;
const GSS: u32 = 80_877_104;

/// A message without a type byte; only the first ones of a connection are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum First {
    /// SSLRequest or GSSENCRequest.
    EncryptionRequest,
    /// StartupMessage.
    Startup,
    /// CancelRequest.
    Cancel,
}

/// A message with a type byte, as far as it is needed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message<'a> {
    /// Password or SASL response.
    Auth,
    /// Simple query.
    Query { text: &'a [u8], cut: bool },
    /// Prepares a statement under a name.
    Parse { name: &'a [u8], text: &'a [u8], cut: bool },
    /// Gives a prepared statement its values.
    Bind { name: &'a [u8] },
    /// Forgets a prepared statement.
    Close { name: &'a [u8] },
    /// The end.
    Terminate,
    /// Another one, or one that is cut before it says anything.
    Other,
    /// No message of the protocol; nothing after it can be found.
    Unknown,
}

/// Whether the bytes start with a TLS record (RFC 8446, 5.1).
pub(super) fn is_tls_record(sent: &[u8]) -> bool {
    matches!(sent, [0x14..=0x17, 3, 0..=4, ..])
}

/// The message at the start if it has no type byte. A typed one starts with a letter, this one with
/// the high byte of a small length.
pub(super) fn first(sent: &[u8]) -> Option<First> {
    let (length, rest) = sent.split_first_chunk::<4>()?;
    let (code, _) = rest.split_first_chunk::<4>()?;
    if u32::from_be_bytes(*length) >= 1 << 24 {
        return None;
    }
    match u32::from_be_bytes(*code) {
        SSL | GSS => Some(First::EncryptionRequest),
        CANCEL => Some(First::Cancel),
        // The major version; 1 is what pre-release protocols claim.
        version if version >> 16 == 3 => Some(First::Startup),
        _ => None,
    }
}

/// The typed messages from the start of `sent` to its end; the last may be cut.
pub(super) fn typed(sent: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = sent;
    std::iter::from_fn(move || {
        let (&kind, after) = rest.split_first()?;
        let Some((length, after)) = after.split_first_chunk::<4>() else {
            rest = &[];
            return Some(if is_type(kind) { Message::Other } else { Message::Unknown });
        };
        let length = u32::from_be_bytes(*length) as usize;
        if !is_type(kind) || length < 4 {
            rest = &[];
            return Some(Message::Unknown);
        }
        let (body, next, cut) = match after.split_at_checked(length - 4) {
            Some((body, next)) => (body, next, false),
            None => (after, &[][..], true),
        };
        rest = next;
        Some(message(kind, body, cut))
    })
}

/// Types that a client sends.
fn is_type(kind: u8) -> bool {
    matches!(kind, b'B' | b'C' | b'D' | b'E' | b'F' | b'H' | b'P' | b'Q' | b'S' | b'X')
        || matches!(kind, b'c' | b'd' | b'f' | b'p')
}

fn message(kind: u8, body: &[u8], cut: bool) -> Message<'_> {
    match kind {
        b'p' => Message::Auth,
        b'X' => Message::Terminate,
        b'Q' => {
            let (text, ended) = text(body).map_or((body, false), |(text, _)| (text, true));
            Message::Query { text, cut: cut && !ended }
        }
        b'P' => match text(body) {
            Some((name, rest)) => {
                let (text, ended) = text(rest).map_or((rest, false), |(text, _)| (text, true));
                Message::Parse { name, text, cut: cut && !ended }
            }
            None => Message::Other,
        },
        b'B' => match text(body).and_then(|(_portal, rest)| text(rest)) {
            Some((name, _)) => Message::Bind { name },
            None => Message::Other,
        },
        b'C' => match body.split_first() {
            Some((b'S', rest)) => {
                text(rest).map_or(Message::Other, |(name, _)| Message::Close { name })
            }
            _ => Message::Other,
        },
        _ => Message::Other,
    }
}

/// A text that ends with a zero byte, and what follows.
fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|&byte| byte == 0)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}
