use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;

use super::*;
use crate::wire::{
    Cleared, DbKind, DbTurn, ErrorCode, ErrorReply, Hello, ImpairRequest, MAX_BATCH,
    Retransmissions, ServerRequest, TargetRequest, ThreadWindow, ToAgent, ToLoadgen, Totals,
    Window,
};

fn address() -> impl Strategy<Value = SocketAddr> {
    (any::<IpAddr>(), any::<u16>()).prop_map(SocketAddr::from)
}

fn to_agent() -> impl Strategy<Value = ToAgent> {
    prop_oneof![
        ("\\PC*", any::<u16>(), "\\PC*", "\\PC*").prop_map(|(tool, version, boot_id, kernel)| {
            ToAgent::Hello(Hello { tool, version, boot_id, kernel })
        }),
        (address(), any::<Vec<u16>>())
            .prop_map(|(address, db_ports)| ToAgent::Target(TargetRequest { address, db_ports })),
        (any::<Option<String>>(), any::<u64>(), any::<u32>()).prop_map(
            |(device, delay_ns, lease_ms)| {
                ToAgent::Impair(ImpairRequest { device, delay_ns, lease_ms })
            }
        ),
        Just(ToAgent::Start),
        Just(ToAgent::Renew),
        Just(ToAgent::Clear),
        Just(ToAgent::Stop),
        Just(ToAgent::Bye),
    ]
}

proptest! {
    #[test]
    fn messages_survive_any_cut_of_the_stream(
        messages in proptest::collection::vec(to_agent(), 0..8),
        reads in proptest::collection::vec(1..50_usize, 1..20),
    ) {
        let mut bytes = Vec::new();
        for message in &messages {
            encode(message, &mut bytes).unwrap();
        }
        let mut frames = Frames::default();
        let mut got = Vec::new();
        let mut rest = bytes.as_slice();
        for read in reads.iter().cycle() {
            let (now, later) = rest.split_at((*read).min(rest.len()));
            rest = later;
            frames.push(now);
            while let Some(body) = frames.next_frame().unwrap() {
                got.push(decode::<ToAgent>(body).unwrap());
            }
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(got, messages);
        prop_assert!(frames.is_between());
    }

    #[test]
    fn no_bytes_panic(bytes: Vec<u8>) {
        let mut frames = Frames::default();
        frames.push(&bytes);
        while let Ok(Some(body)) = frames.next_frame() {
            let _ = decode::<ToAgent>(body).map(|message| message.check());
            let _ = decode::<ToLoadgen>(body).map(|message| message.check());
        }
        let _ = decode::<ToAgent>(&bytes).map(|message| message.check());
        let _ = decode::<ToLoadgen>(&bytes).map(|message| message.check());
    }

    #[test]
    fn only_our_preamble_is_taken(bytes: [u8; 8], version: u16) {
        let [v0, v1] = version.to_le_bytes();
        let other = [b'D', b'W', b'E', b'L', v0, v1, bytes[6], bytes[7]];
        prop_assert_eq!(read_preamble(other).is_ok(), version == VERSION);
        if bytes[..4] != *b"DWEL" {
            let refused = matches!(read_preamble(bytes), Err(FrameError::NotDwell(_)));
            prop_assert!(refused);
        }
    }
}

#[test]
fn the_preamble_is_what_the_document_says() {
    assert_eq!(preamble(), [0x44, 0x57, 0x45, 0x4c, 1, 0, 0, 0]);
}

/// The examples of docs/protocol.md.
#[test]
fn bytes_are_what_the_document_says() {
    let encoded = |message: &ToAgent| {
        let mut bytes = Vec::new();
        encode(message, &mut bytes).unwrap();
        bytes
    };
    assert_eq!(encoded(&ToAgent::Start), [1, 0, 0, 0, 2]);
    let impair = ImpairRequest { device: None, delay_ns: 100_000_000, lease_ms: 2_000 };
    assert_eq!(
        encoded(&ToAgent::Impair(impair)),
        [8, 0, 0, 0, 3, 0, 0x80, 0xc2, 0xd7, 0x2f, 0xd0, 0x0f]
    );
}

/// The table of docs/protocol.md: what is inserted or moved in the enumerations fails here.
#[test]
fn numbers_of_messages_are_what_the_document_says() {
    let document = include_str!("../../../../docs/protocol.md");
    let number = |body: Vec<u8>| body[4];
    let bytes = |message: &ToLoadgen| {
        let mut bytes = Vec::new();
        encode(message, &mut bytes).unwrap();
        bytes
    };
    let totals =
        Totals { requests: 0, counters: vec![], lost_events: 0, peer_slow: 0, unix_database: None };
    let error = ErrorReply { code: ErrorCode::TargetGone, message: String::new() };
    for (message, name) in [
        (ToLoadgen::Started { at_ns: 0 }, "Started"),
        (ToLoadgen::Cleared(Cleared::default()), "Cleared"),
        (ToLoadgen::Requests(vec![]), "Requests"),
        (ToLoadgen::ClientTurns(vec![]), "ClientTurns"),
        (ToLoadgen::Statement { id: 0, text: String::new() }, "Statement"),
        (ToLoadgen::DbTurns(vec![]), "DbTurns"),
        (ToLoadgen::Holds(vec![]), "Holds"),
        (ToLoadgen::Unfinished(vec![]), "Unfinished"),
        (ToLoadgen::Stopped(totals), "Stopped"),
        (ToLoadgen::Error(error.clone()), "Error"),
        (ToLoadgen::Notice(String::new()), "Notice"),
        (ToLoadgen::Bye, "Bye"),
        (ToLoadgen::InForce { at_ns: 0, others: vec![] }, "InForce"),
    ] {
        let line = format!("| {} | `{name}` |", number(bytes(&message)));
        assert!(document.contains(&line), "no line {line}");
    }
    assert_eq!(bytes(&ToLoadgen::Error(error))[4..], [13, 5, 0]);
    let kinds: Vec<_> = DbKind::ALL.iter().map(|kind| format!("`{}`", kind.name())).collect();
    assert!(document.replace('\n', " ").contains(&kinds.join(", ")));
    let classes: Vec<_> = crate::abi::class::NAMES.map(|name| format!("`{name}`")).to_vec();
    assert!(document.replace('\n', " ").contains(&classes.join(", ")));
}

#[test]
fn a_long_frame_is_refused_before_its_bytes_come() {
    let mut frames = Frames::default();
    let length = (MAX_FRAME as u32 + 1).to_le_bytes();
    frames.push(&length[..3]);
    assert_eq!(frames.next_frame(), Ok(None));
    frames.push(&length[3..]);
    assert_eq!(frames.next_frame(), Err(FrameError::TooLong(MAX_FRAME + 1)));
    let mut out = vec![7];
    let long = ToLoadgen::Notice("x".repeat(MAX_FRAME));
    assert!(matches!(encode(&long, &mut out), Err(FrameError::TooLong(_))));
    assert_eq!(out, [7], "nothing of it is left");
}

#[test]
fn trailing_bytes_are_refused() {
    assert_eq!(decode::<ToAgent>(&[2]), Ok(ToAgent::Start));
    assert_eq!(decode::<ToAgent>(&[2, 0]), Err(FrameError::Malformed(2)));
    assert_eq!(decode::<ToAgent>(&[]), Err(FrameError::Malformed(0)));
    assert_eq!(decode::<ToAgent>(&[200]), Err(FrameError::Malformed(1)));
}

/// The largest numbers that can be: whatever fits MAX_BATCH fits a frame.
#[test]
fn full_batches_fit_a_frame() {
    let client = SocketAddr::new(IpAddr::from([0xff; 16]), u16::MAX);
    let request = ServerRequest {
        conn: u64::MAX,
        client,
        server: client,
        ordinal: u32::MAX,
        tid: u32::MAX,
        flags: u32::MAX,
        s0: u64::MAX,
        s2: u64::MAX,
        s1: u64::MAX,
        s3: u64::MAX,
        s4: u64::MAX,
        s5: u64::MAX,
        rx_offset: u64::MAX,
        rx_bytes: u64::MAX,
        tx_offset: u64::MAX,
        tx_bytes: u64::MAX,
    };
    let turn = DbTurn {
        conn: u64::MAX,
        ordinal: u32::MAX,
        tid: u32::MAX,
        held_conn: u64::MAX,
        kind: DbKind::Other,
        statement: Some(u32::MAX),
        flags: u32::MAX,
        sent_first: u64::MAX,
        answered: u64::MAX,
        received_last: u64::MAX,
        tx_bytes: u64::MAX,
        rx_bytes: u64::MAX,
    };
    let thread = ThreadWindow {
        tid: u32::MAX,
        tgid: u32::MAX,
        comm: "x".repeat(64),
        ns: [u64::MAX; crate::abi::class::COUNT],
        voluntary: u64::MAX,
        involuntary: u64::MAX,
        accepts: u64::MAX,
        requests: u64::MAX,
        db_turns: u64::MAX,
    };
    let window = Window {
        from_ns: u64::MAX,
        to_ns: u64::MAX,
        threads: vec![thread; MAX_BATCH],
        queue_mean: f64::MAX,
        queue_max: u64::MAX,
        lost: Vec::new(),
        listen_overflows: u64::MAX,
        injector_dropped: u64::MAX,
        retransmissions: Some(Retransmissions {
            segments: u64::MAX,
            synacks: u64::MAX,
            probes: u64::MAX,
            timeouts: u64::MAX,
        }),
    };
    for message in [
        ToLoadgen::Requests(vec![request; MAX_BATCH]),
        ToLoadgen::DbTurns(vec![turn; MAX_BATCH]),
        ToLoadgen::Window(window),
    ] {
        message.check().unwrap();
        encode(&message, &mut Vec::new()).unwrap();
    }
    assert!(ToLoadgen::Requests(vec![request; MAX_BATCH + 1]).check().is_err());
}
