//! Netlink messages as bytes: writing and taking apart. Layouts: `linux/netlink.h`.

/// Length of `struct nlmsghdr`.
pub const HEADER_LEN: usize = 16;
/// Length of `struct nlattr`.
pub const ATTR_LEN: usize = 4;

/// `NLM_F_*`, those in use.
pub mod flag {
    /// It is a request.
    pub const REQUEST: u16 = 0x1;
    /// Answer even when all went well.
    pub const ACK: u16 = 0x4;
    /// Send the news of what was done or asked to the asker too.
    pub const ECHO: u16 = 0x8;
    /// On an answer: what is dumped changed meanwhile, so that something may be missing.
    pub const DUMP_INTR: u16 = 0x10;
    /// Return every match (`NLM_F_ROOT | NLM_F_MATCH`).
    pub const DUMP: u16 = 0x300;
    /// Refuse if it exists.
    pub const EXCL: u16 = 0x200;
    /// Make it if it does not exist.
    pub const CREATE: u16 = 0x400;
    /// Put it behind those there are.
    pub const APPEND: u16 = 0x800;
    /// On an answer: extended error attributes follow.
    pub const ACK_TLVS: u16 = 0x200;
    /// On an answer: the request is not repeated whole.
    pub const CAPPED: u16 = 0x100;
}

/// `NLMSG_ERROR`: an error, or with code 0 an acknowledgement.
pub const MSG_ERROR: u16 = 2;
/// `NLMSG_DONE`: end of a dump.
pub const MSG_DONE: u16 = 3;

/// Low bits of an attribute's type; the rest are `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`.
const TYPE_MASK: u16 = 0x3fff;
const NESTED: u16 = 0x8000;

const fn align4(len: usize) -> usize {
    (len + 3) & !3
}

/// Attributes being written, each padded to four bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attrs {
    bytes: Vec<u8>,
}

impl Attrs {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends bytes as they are (a fixed struct in front of attributes), padded.
    #[must_use]
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(align4(self.bytes.len()), 0);
        self
    }

    /// Appends one attribute.
    #[must_use]
    pub fn put(mut self, kind: u16, value: &[u8]) -> Self {
        let len = ATTR_LEN + value.len();
        debug_assert!(u16::try_from(len).is_ok(), "attribute of {len} bytes");
        self.bytes.extend_from_slice(&(len as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.raw(value)
    }

    /// Appends a text, terminated by zero.
    #[must_use]
    pub fn put_text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes)
    }

    /// Appends a number in network byte order, as netfilter wants them.
    #[must_use]
    pub fn put_be32(self, kind: u16, value: u32) -> Self {
        self.put(kind, &value.to_be_bytes())
    }

    /// Appends a number in the host's byte order, as rtnetlink wants them.
    #[must_use]
    pub fn put_u32(self, kind: u16, value: u32) -> Self {
        self.put(kind, &value.to_ne_bytes())
    }

    /// Appends attributes within an attribute.
    #[must_use]
    pub fn put_nested(self, kind: u16, inner: Self) -> Self {
        self.put(kind | NESTED, &inner.bytes)
    }

    /// The bytes so far.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Puts a `struct nlmsghdr` in front.
    #[must_use]
    pub fn message(&self, kind: u16, flags: u16, sequence: u32) -> Vec<u8> {
        let len = (HEADER_LEN + self.bytes.len()) as u32;
        let mut message = Vec::with_capacity(len as usize);
        message.extend_from_slice(&len.to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&flags.to_ne_bytes());
        message.extend_from_slice(&sequence.to_ne_bytes());
        message.extend_from_slice(&0u32.to_ne_bytes());
        message.extend_from_slice(&self.bytes);
        message
    }
}

/// One received message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// `nlmsg_seq`: that of the request it answers.
    pub sequence: u32,
    /// What follows the header.
    pub body: &'a [u8],
}

/// The messages of one datagram. Stops at the first that does not fit.
pub fn messages(datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let len = read_u32(rest, 0)? as usize;
        let body = rest.get(HEADER_LEN..len)?;
        let message = Message {
            kind: read_u16(rest, 4)?,
            flags: read_u16(rest, 6)?,
            sequence: read_u32(rest, 8)?,
            body,
        };
        rest = rest.get(align4(len)..).unwrap_or(&[]);
        Some(message)
    })
}

/// The code that the end of a dump carries: negative where it broke off (`netlink_dump_done` in
/// `net/netlink/af_netlink.c`).
#[must_use]
pub fn done_code(done: &Message<'_>) -> i32 {
    array(done.body, 0).map_or(0, i32::from_ne_bytes)
}

/// The attributes in `bytes` as (type without flag bits, value). Stops at the first that does not
/// fit.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let len = usize::from(read_u16(rest, 0)?);
        let value = rest.get(ATTR_LEN..len)?;
        let kind = read_u16(rest, 2)? & TYPE_MASK;
        rest = rest.get(align4(len)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// The value of the first attribute of type `kind`.
#[must_use]
pub fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

/// A text, without its terminating zero.
#[must_use]
pub fn text(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// The `N` bytes at `at`.
#[must_use]
pub fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// A u32 in the host's byte order.
#[must_use]
pub fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_ne_bytes)
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn layout_is_the_kernels() {
        let bytes = Attrs::new()
            .raw(&[9, 9, 9, 9])
            .put_text(1, "lo")
            .put_nested(2, Attrs::new().put_be32(3, 0x0102_0304))
            .message(36, flag::REQUEST | flag::ACK, 7);
        #[rustfmt::skip]
        let expected = [
            40, 0, 0, 0,  36, 0,  5, 0,  7, 0, 0, 0,  0, 0, 0, 0,
            9, 9, 9, 9,
            7, 0, 1, 0,  b'l', b'o', 0, 0,
            12, 0, 2, 0x80,  8, 0, 3, 0,  1, 2, 3, 4,
        ];
        assert_eq!(bytes, expected);
        let message = messages(&bytes).next().unwrap();
        assert_eq!((message.kind, message.flags, message.sequence), (36, 5, 7));
        let inner = &message.body[4..];
        assert_eq!(text(find(inner, 1).unwrap()), "lo");
        assert_eq!(find(find(inner, 2).unwrap(), 3).unwrap(), [1, 2, 3, 4]);
        assert_eq!(find(inner, 9), None);
    }

    proptest! {
        #[test]
        fn attributes_read_back(values: Vec<(u8, Vec<u8>)>) {
            let written = values.iter()
                .fold(Attrs::new(), |attrs, (kind, value)| attrs.put(u16::from(*kind), value));
            let read: Vec<_> = attributes(written.as_bytes())
                .map(|(kind, value)| (kind as u8, value.to_vec())).collect();
            prop_assert_eq!(read, values);
        }

        #[test]
        fn garbage_neither_panics_nor_loops(bytes: Vec<u8>) {
            for message in messages(&bytes) {
                let _ = attributes(message.body).count();
            }
            prop_assert!(attributes(&bytes).count() <= bytes.len() / ATTR_LEN);
        }
    }
}
