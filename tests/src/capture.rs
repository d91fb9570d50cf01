//! A packet capture by tcpdump, read back: the independent witness of what crossed the network.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::lab::{Lab, Process, Program, Side, net::DEVICE, user};

/// One TCP segment over IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// When the device passed it, CLOCK_REALTIME nanoseconds.
    pub at_ns: i128,
    /// Sender.
    pub from: SocketAddr,
    /// Receiver.
    pub to: SocketAddr,
    /// TCP flags byte.
    pub flags: u8,
    /// Bytes of payload.
    pub payload: u32,
    /// First payload byte, if there is one.
    pub first_byte: Option<u8>,
    /// Sequence number.
    pub sequence: u32,
}

/// TCP flags.
pub mod flags {
    /// FIN
    pub const FIN: u8 = 1;
    /// SYN
    pub const SYN: u8 = 2;
    /// ACK
    pub const ACK: u8 = 16;
}

/// A capture in progress on one end of the laboratory's wire.
#[derive(Debug)]
pub struct Capture {
    process: Process,
    file: PathBuf,
}

impl Capture {
    /// Starts tcpdump on one side and waits until it listens.
    ///
    /// # Errors
    /// When tcpdump is missing or does not start.
    pub fn start(lab: &Lab, side: Side, file: &Path) -> Result<Self> {
        let _ = std::fs::remove_file(file);
        let log = file.with_extension("log");
        let mut process = Program::new(crate::lab::paths::system("tcpdump")?)
            .within(lab.network(), side)
            .identity(user::root())
            .args(["-i", DEVICE, "-n", "-s", "128", "-U", "--immediate-mode", "-Z", "root"])
            .args(["--time-stamp-precision", "nano", "-w"])
            .arg(file)
            .arg("tcp")
            .spawn(&log)?;
        process.wait_until(Duration::from_secs(20), || {
            std::fs::read_to_string(&log).is_ok_and(|text| text.contains("listening on"))
        })?;
        Ok(Self { process, file: file.to_path_buf() })
    }

    /// Ends it and reads what it saw, in order.
    ///
    /// # Errors
    /// When packets were dropped, or the file is no capture.
    pub fn stop(mut self) -> Result<Vec<Segment>> {
        // What is on its way through the tap needs a moment.
        std::thread::sleep(Duration::from_millis(300));
        let log = self.process.log().to_path_buf();
        self.process.stop()?;
        let text = std::fs::read_to_string(&log)?;
        if !text.contains("0 packets dropped by kernel") {
            bail!("tcpdump dropped packets: {text}");
        }
        read(&std::fs::read(&self.file).with_context(|| format!("{}", self.file.display()))?)
    }
}

/// Reads a capture file: nanosecond stamps, Ethernet (the format is in pcap-savefile(5)).
fn read(bytes: &[u8]) -> Result<Vec<Segment>> {
    const NANOSECONDS: u32 = 0xa1b2_3c4d;
    const ETHERNET: u32 = 1;
    let word =
        |at: usize| -> Option<u32> { Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?)) };
    if word(0) != Some(NANOSECONDS) || word(20) != Some(ETHERNET) {
        bail!("not a little-endian Ethernet capture with nanoseconds");
    }
    let mut found = Vec::new();
    let mut at = 24;
    while let (Some(seconds), Some(nanos), Some(length)) = (word(at), word(at + 4), word(at + 8)) {
        let start = at + 16;
        let end = start + length as usize;
        let Some(frame) = bytes.get(start..end) else { break };
        let at_ns = i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        found.extend(segment(at_ns, frame));
        at = end;
    }
    Ok(found)
}

fn segment(at_ns: i128, frame: &[u8]) -> Option<Segment> {
    let (ethernet, packet) = frame.split_at_checked(14)?;
    if ethernet.get(12..14)? != [8, 0] || *packet.get(9)? != 6 {
        return None;
    }
    let header = usize::from(packet.first()? & 0xf) * 4;
    let total = usize::from(u16::from_be_bytes(*packet.get(2..)?.first_chunk()?));
    let address = |at: usize| -> Option<Ipv4Addr> {
        Some(Ipv4Addr::from(*packet.get(at..)?.first_chunk::<4>()?))
    };
    let tcp = packet.get(header..)?;
    let port =
        |at: usize| -> Option<u16> { Some(u16::from_be_bytes(*tcp.get(at..)?.first_chunk()?)) };
    let offset = usize::from(tcp.get(12)? >> 4) * 4;
    let payload = total.checked_sub(header + offset)?;
    Some(Segment {
        at_ns,
        from: SocketAddr::new(address(12)?.into(), port(0)?),
        to: SocketAddr::new(address(16)?.into(), port(2)?),
        flags: *tcp.get(13)?,
        payload: payload as u32,
        first_byte: if payload > 0 { tcp.get(offset).copied() } else { None },
        sequence: u32::from_be_bytes(*tcp.get(4..)?.first_chunk()?),
    })
}

/// Segments of one connection, by its client's address, in order.
#[must_use]
pub fn of_client(segments: &[Segment], client: SocketAddr) -> Vec<Segment> {
    segments.iter().copied().filter(|s| s.from == client || s.to == client).collect()
}

/// Turns of one connection: runs of payload from `client` that are followed by payload from the
/// other side. What the kernel half calls round trips, counted from packets alone. The handshake
/// counts as one; a run without an answer does not.
#[must_use]
pub fn turns(connection: &[Segment], client: SocketAddr) -> usize {
    let mut count =
        usize::from(connection.iter().any(|s| s.to == client && s.flags & flags::SYN != 0));
    let mut asked = false;
    for segment in connection.iter().filter(|s| s.payload > 0) {
        if segment.from == client {
            asked = true;
        } else if asked {
            asked = false;
            count += 1;
        }
    }
    count
}
