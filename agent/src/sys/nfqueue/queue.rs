//! One netfilter queue: binding it, reading from it, letting packets go. Layouts:
//! `linux/netfilter/nfnetlink_queue.h`.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};

use crate::model::nlmsg::{self, Attrs, Message, flag};
use crate::model::packet;
use crate::sys::netlink::{Conn, NETLINK_NETFILTER, Refusal};

const SUBSYSTEM: u16 = 3;
pub(super) const MSG_PACKET: u16 = SUBSYSTEM << 8;
const MSG_CONFIG: u16 = SUBSYSTEM << 8 | 2;
const MSG_VERDICT: u16 = SUBSYSTEM << 8 | 1;
const MSG_VERDICT_BATCH: u16 = SUBSYSTEM << 8 | 3;

const CFG_CMD: u16 = 1;
const CFG_PARAMS: u16 = 2;
const CFG_QUEUE_MAXLEN: u16 = 3;
const CFG_MASK: u16 = 4;
const CFG_FLAGS: u16 = 5;
const CMD_BIND: u8 = 1;
const COPY_META: u8 = 1;
const COPY_PACKET: u8 = 2;
/// Enough for the headers of IP and TCP, options included.
const COPY_BYTES: u32 = 128;
/// Let packets through when the queue is full.
const F_FAIL_OPEN: u32 = 1;
/// Queue large segments whole.
const F_GSO: u32 = 4;
const PACKET_HDR: u16 = 1;
const VERDICT_HDR: u16 = 2;
const PAYLOAD: u16 = 10;
const CAP_LEN: u16 = 13;
const SKB_INFO: u16 = 14;
const SKB_GSO: u32 = 1 << 1;
const DROP: u32 = 0;
const ACCEPT: u32 = 1;

/// Room for news of packets that the reader has not read yet. A packet's news takes about 1 KiB of
/// it, so a burst of 16,000 packets fits.
const RECEIVE_BUFFER: usize = 16 << 20;
const STATS: &str = "/proc/thread-self/net/netfilter/nfnetlink_queue";

/// A bound queue. It vanishes when this is dropped, and what it holds is dropped with it.
#[derive(Debug)]
pub(super) struct Queue {
    conn: Conn,
    number: u16,
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.conn.as_fd()
    }
}

impl Queue {
    /// Binds queue `number` of the calling thread's namespace, to hold `len` packets at most. Only
    /// with `lengths` do packets come with theirs.
    pub(super) fn bind(number: u16, len: u32, lengths: bool) -> Result<Self, Refusal> {
        let mut conn = Conn::open(NETLINK_NETFILTER)?;
        // A full receive buffer must show as skipped numbers, not as an error of the next read.
        conn.socket().set_no_enobufs(true)?;
        setsockopt(&conn, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
        let command = header(number).put(CFG_CMD, &[CMD_BIND, 0, 0, 0]);
        conn.request(MSG_CONFIG, 0, &command)?;
        conn.request(MSG_CONFIG, 0, &settings(number, len, lengths))?;
        Ok(Self { conn, number })
    }

    /// Gives it another length, and packets that come from now on their lengths or none. The answer
    /// comes to whoever reads the queue: with number 0, as that to a refusal of packets.
    pub(super) fn change(&self, len: u32, lengths: bool) -> Result<(), Refusal> {
        let settings = settings(self.number, len, lengths);
        self.conn.send(&settings.message(MSG_CONFIG, flag::REQUEST, 0))
    }

    /// Its number.
    pub(super) fn number(&self) -> u16 {
        self.number
    }

    /// Receives one datagram; `EAGAIN` if there is none.
    pub(super) fn try_receive(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        self.conn.try_receive(buffer)
    }

    /// Lets go every packet up to number `last_id`. An error comes back as a message with the number
    /// `sequence`.
    pub(super) fn accept_up_to(&self, last_id: u32, sequence: u32) -> Result<(), Refusal> {
        self.conn.send(&self.verdict(MSG_VERDICT_BATCH, ACCEPT, last_id, sequence))
    }

    /// Lets these packets go, in this order. Errors come back as messages, numbered from `sequence`.
    pub(super) fn accept(&self, ids: &[u32], sequence: u32) -> Result<(), Refusal> {
        let numbered = ids.iter().zip(sequence..);
        let verdicts = numbered.map(|(id, sequence)| (*id, sequence));
        self.verdicts(ACCEPT, verdicts)
    }

    /// Drops these packets.
    pub(super) fn refuse(&self, ids: &[u32]) -> Result<(), Refusal> {
        self.verdicts(DROP, ids.iter().map(|id| (*id, 0)))
    }

    fn verdicts(&self, verdict: u32, ids: impl Iterator<Item = (u32, u32)>) -> Result<(), Refusal> {
        let datagram: Vec<u8> =
            ids.flat_map(|(id, number)| self.verdict(MSG_VERDICT, verdict, id, number)).collect();
        if datagram.is_empty() { Ok(()) } else { self.conn.send(&datagram) }
    }

    fn verdict(&self, kind: u16, verdict: u32, id: u32, sequence: u32) -> Vec<u8> {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&verdict.to_be_bytes());
        bytes[4..].copy_from_slice(&id.to_be_bytes());
        header(self.number).put(VERDICT_HDR, &bytes).message(kind, flag::REQUEST, sequence)
    }
}

fn settings(number: u16, len: u32, lengths: bool) -> Attrs {
    let (range, mode) = if lengths { (COPY_BYTES, COPY_PACKET) } else { (0, COPY_META) };
    let [a, b, c, d] = range.to_be_bytes();
    header(number)
        .put(CFG_PARAMS, &[a, b, c, d, mode])
        .put_be32(CFG_QUEUE_MAXLEN, len)
        .put_be32(CFG_MASK, F_FAIL_OPEN | F_GSO)
        .put_be32(CFG_FLAGS, F_FAIL_OPEN | F_GSO)
}

fn header(queue: u16) -> Attrs {
    let queue = queue.to_be_bytes();
    Attrs::new().raw(&[0, 0, queue[0], queue[1]])
}

/// A packet, as the kernel tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct News {
    pub(super) id: u32,
    /// Bytes from the IP header on; 0 if the queue was bound without lengths.
    pub(super) ip_bytes: u32,
    /// Bytes of the headers of IP and TCP, if several segments travel behind one.
    pub(super) segment_header_bytes: Option<u32>,
}

/// The packet that a [`MSG_PACKET`] tells of.
pub(super) fn news(message: &Message<'_>) -> Option<News> {
    let attributes = message.body.get(4..)?;
    let be32 = |value: &[u8]| nlmsg::array(value, 0).map(u32::from_be_bytes);
    let id = be32(nlmsg::find(attributes, PACKET_HDR)?)?;
    let Some(payload) = nlmsg::find(attributes, PAYLOAD) else {
        return Some(News { id, ip_bytes: 0, segment_header_bytes: None });
    };
    let ip_bytes = nlmsg::find(attributes, CAP_LEN).and_then(be32).unwrap_or(payload.len() as u32);
    let info = nlmsg::find(attributes, SKB_INFO).and_then(be32).unwrap_or(0);
    let segments = info & SKB_GSO != 0;
    let segment_header_bytes = segments.then(|| packet::headers_bytes(payload)).flatten();
    Some(News { id, ip_bytes, segment_header_bytes })
}

/// One queue's line of `/proc/net/netfilter/nfnetlink_queue`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stats {
    pub(super) number: u16,
    /// Packets in it.
    pub(super) waiting: u64,
    /// Packets dropped, for want of room in the queue or in the socket.
    pub(super) dropped: u64,
    /// Packets that were given a number, modulo 2^32.
    pub(super) numbered: u32,
}

/// Opens the statistics of the calling thread's namespace; they stay those of that namespace. They
/// are not there before the kernel has loaded its module, which the first bind makes it do.
pub(super) fn open_stats() -> io::Result<File> {
    File::open(STATS)
}

pub(super) fn read_stats(file: &File) -> io::Result<Vec<Stats>> {
    let (mut text, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        let len = file.read_at(&mut chunk, text.len() as u64)?;
        if len == 0 {
            break;
        }
        text.extend_from_slice(&chunk[..len]);
    }
    Ok(String::from_utf8_lossy(&text).lines().filter_map(parse_stats).collect())
}

fn parse_stats(line: &str) -> Option<Stats> {
    let fields: Vec<u64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
    let [number, _peer, waiting, _mode, _range, dropped, user_dropped, numbered, ..] = fields[..]
    else {
        return None;
    };
    Some(Stats {
        number: u16::try_from(number).ok()?,
        waiting,
        dropped: dropped + user_dropped,
        numbered: numbered as u32,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_statistics() {
        let line = "53249  31338     7 1     0     2     3       42  1";
        let expected = Stats { number: 53_249, waiting: 7, dropped: 5, numbered: 42 };
        assert_eq!(parse_stats(line), Some(expected));
        assert_eq!(parse_stats(""), None);
        assert_eq!(parse_stats("1 2 3"), None);
    }

    #[test]
    fn a_packets_number_and_length_are_found() {
        let read = |body: &Attrs| news(&nlmsg::messages(&body.message(MSG_PACKET, 0, 0)).next()?);
        let body = header(1).put(PACKET_HDR, &[0, 0, 1, 2, 8, 0, 4]);
        let expected = News { id: 258, ip_bytes: 0, segment_header_bytes: None };
        assert_eq!(read(&body), Some(expected));
        let short = body.clone().put(PAYLOAD, &[0x45; 40]);
        assert_eq!(read(&short), Some(News { ip_bytes: 40, ..expected }));
        let long = short.put_be32(CAP_LEN, 3000).put_be32(SKB_INFO, SKB_GSO);
        assert_eq!(read(&long).map(|news| news.ip_bytes), Some(3000));
        assert_eq!(read(&header(1)), None);
    }
}
