use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;
use crate::record::Outcome;

const SERVER: &str = "127.0.0.1:8000";

fn address(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// A completed request on a connection that began at `start`; each takes 50.
fn record(port: u16, start: u64, ordinal: u32) -> RequestRecord {
    let c0 = start + u64::from(ordinal) * 100;
    RequestRecord {
        user: 0,
        local: address(port),
        remote: SERVER.parse().unwrap(),
        connection_start: start,
        ordinal,
        tx_offset: u64::from(ordinal) * 10,
        tx_bytes: 10,
        rx_offset: u64::from(ordinal) * 30,
        rx_bytes: 30,
        c0,
        c1: start + 2,
        c2: c0 + 3,
        c3: c0 + 49,
        c4: c0 + 50,
        syn_retransmits: 0,
        status: 200,
        outcome: Outcome::Success,
    }
}

/// What the service's kernel has for `record`.
fn seen(record: &RequestRecord, conn: u64) -> wire::ServerRequest {
    wire::ServerRequest {
        conn,
        client: record.local,
        server: record.remote,
        ordinal: record.ordinal,
        tid: 1,
        flags: 0,
        s0: record.connection_start + 1,
        s2: record.connection_start + 5,
        s1: record.c0 + 6,
        s3: record.c0 + 7,
        s4: record.c0 + 40,
        s5: record.c0 + 41,
        rx_offset: record.tx_offset,
        rx_bytes: record.tx_bytes,
        tx_offset: record.rx_offset,
        tx_bytes: record.rx_bytes,
    }
}

fn turn(record: &RequestRecord) -> wire::ClientTurn {
    wire::ClientTurn {
        client: record.local,
        server: record.remote,
        ordinal: record.ordinal,
        flags: 0,
        syn: record.connection_start + 1,
        established: record.connection_start + 2,
        c3k: record.c0 + 45,
        c4k: record.c0 + 46,
    }
}

fn kernel(requests: Vec<wire::ServerRequest>) -> KernelData {
    KernelData { requests, ..KernelData::default() }
}

fn why(record: RequestRecord, data: &KernelData) -> Option<Unmatched> {
    join(&[record], data)[0].server.err()
}

#[test]
fn a_reused_tuple_is_told_apart_by_time() {
    let records: Vec<_> = (0..5).map(|n| record(4000, 1_000 + n * 1_000, 0)).collect();
    let mut data = kernel((0..5).map(|n| seen(&records[n], 50 + n as u64)).rev().collect());
    data.client_turns = records.iter().map(turn).rev().collect();
    let matches = join(&records, &data);
    for (n, (one, record)) in matches.iter().zip(&records).enumerate() {
        assert_eq!(one.server.unwrap().conn, 50 + n as u64);
        assert_eq!(one.turn.unwrap().c4k, record.c0 + 46);
    }
    // One of them lost: its request must not take a neighbour's.
    data.requests.retain(|request| request.conn != 52);
    let matches = join(&records, &data);
    assert_eq!(matches[2].server.err(), Some(Unmatched::NoConnectionInTime));
    assert_eq!(matches.iter().filter(|one| one.server.is_ok()).count(), 4);
}

#[test]
fn kept_connections_go_by_ordinal_and_bytes() {
    let records: Vec<_> = (0..4).map(|ordinal| record(4000, 1_000, ordinal)).collect();
    let mut data = kernel(records.iter().map(|record| seen(record, 7)).collect());
    let matches = join(&records, &data);
    assert!(matches.iter().zip(0..).all(|(one, n)| one.server.unwrap().ordinal == n));
    // Ordinals that went wrong by one after a loss.
    data.requests.remove(1);
    for request in &mut data.requests[1..] {
        request.ordinal -= 1;
    }
    let matches = join(&records, &data);
    let errors: Vec<_> = matches.iter().map(|one| one.server.err()).collect();
    assert_eq!(
        errors,
        [
            None,
            Some(Unmatched::BytesDiffer),
            Some(Unmatched::BytesDiffer),
            Some(Unmatched::NoSuchOrdinal)
        ]
    );
}

#[test]
fn mirrored_tuples_on_loopback_are_not_confused() {
    // The service's side as a client would see it: addresses the other way round.
    let one = record(4000, 1_000, 0);
    let mut mirrored = seen(&one, 7);
    (mirrored.client, mirrored.server) = (mirrored.server, mirrored.client);
    assert_eq!(why(one, &kernel(vec![mirrored])), Some(Unmatched::NoConnection));
    assert_eq!(why(one, &kernel(vec![mirrored, seen(&one, 8)])), None);
}

#[test]
fn mapped_addresses_are_the_same_addresses() {
    let mut one = record(4000, 1_000, 0);
    let data = kernel(vec![seen(&one, 7)]);
    let mapped = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
    one.local = SocketAddr::new(IpAddr::V6(mapped), 4000);
    assert_eq!(why(one, &data), None);
}

#[test]
fn each_doubt_has_its_reason() {
    let one = record(4000, 1_000, 0);
    let good = seen(&one, 7);
    let with = |change: fn(&mut wire::ServerRequest)| {
        let mut request = good;
        change(&mut request);
        why(one, &kernel(vec![request]))
    };
    assert_eq!(with(|_| {}), None);
    assert_eq!(with(|request| request.client.set_port(4001)), Some(Unmatched::NoConnection));
    assert_eq!(with(|request| request.server.set_port(8001)), Some(Unmatched::NoConnection));
    assert_eq!(with(|request| request.s0 = 999), Some(Unmatched::NoConnectionInTime));
    assert_eq!(with(|request| request.s0 = 1_051), Some(Unmatched::NoConnectionInTime));
    assert_eq!(with(|request| request.s0 = 0), Some(Unmatched::BeforeProbes));
    assert_eq!(with(|request| request.flags = flag::ADOPTED), Some(Unmatched::BeforeProbes));
    assert_eq!(with(|request| request.flags = flag::PIPELINED), Some(Unmatched::Pipelined));
    assert_eq!(with(|request| request.ordinal = 1), Some(Unmatched::NoSuchOrdinal));
    assert_eq!(with(|request| request.rx_offset = 1), Some(Unmatched::BytesDiffer));
    assert_eq!(with(|request| request.tx_offset = 1), Some(Unmatched::BytesDiffer));
    assert_eq!(with(|request| request.rx_bytes = 11), Some(Unmatched::BytesDiffer));
    assert_eq!(with(|request| request.tx_bytes = 29), Some(Unmatched::BytesDiffer));
    assert_eq!(with(|request| request.s3 = 1_051), Some(Unmatched::TimesDiffer));
    assert_eq!(with(|request| request.s2 = 0), Some(Unmatched::MarksMissing));
    assert_eq!(with(|request| request.s5 = 0), Some(Unmatched::MarksMissing));
    let twice = kernel(vec![good, good]);
    assert_eq!(why(one, &twice), Some(Unmatched::AmbiguousOrdinal));
    let other = wire::ServerRequest { conn: 8, s0: good.s0 + 2, ..good };
    assert_eq!(why(one, &kernel(vec![good, other])), Some(Unmatched::AmbiguousConnection));
    let nowhere = RequestRecord { local: address(0), ..one };
    assert_eq!(why(nowhere, &kernel(vec![good])), Some(Unmatched::NoAddress));
    assert_eq!(why(one, &KernelData::default()), Some(Unmatched::NoConnection));
}

#[test]
fn what_was_not_finished_is_found_by_offsets_alone() {
    let mut one = record(4000, 1_000, 0);
    one.outcome = Outcome::Unfinished;
    one.rx_bytes = 0;
    let mut request = seen(&one, 7);
    (request.s3, request.s5, request.rx_bytes, request.tx_bytes) = (0, 0, 0, 0);
    request.flags = flag::UNFINISHED;
    let data = KernelData { unfinished: vec![request], ..KernelData::default() };
    assert_eq!(why(one, &data), None);
    request.tx_offset = 5;
    let data = KernelData { unfinished: vec![request], ..KernelData::default() };
    assert_eq!(why(one, &data), Some(Unmatched::BytesDiffer));
}

#[test]
fn a_client_turn_in_doubt_is_left_out() {
    let one = record(4000, 1_000, 0);
    let good = turn(&one);
    let found = |turns: Vec<wire::ClientTurn>| {
        let mut data = kernel(vec![seen(&one, 7)]);
        data.client_turns = turns;
        join(&[one], &data)[0].turn.is_some()
    };
    assert!(found(vec![good]));
    assert!(!found(vec![wire::ClientTurn { ordinal: 1, ..good }]));
    assert!(!found(vec![wire::ClientTurn { syn: 900, ..good }]));
    assert!(!found(vec![wire::ClientTurn { c4k: 1_051, ..good }]));
    assert!(!found(vec![good, good]));
    assert!(!found(vec![wire::ClientTurn { server: "127.0.0.2:8000".parse().unwrap(), ..good }]));
}

#[test]
fn reasons_are_counted() {
    let one = record(4000, 1_000, 0);
    let data = kernel(vec![seen(&one, 7)]);
    let matches = join(&[one, record(4001, 1_000, 0)], &data);
    let counted = reasons(matches.iter());
    assert_eq!(counted, BTreeMap::from([("no_connection".to_owned(), 1)]));
}

proptest! {
    /// Whatever is lost and in whatever order it comes: what is matched is matched right, and what
    /// is not lost is matched.
    #[test]
    fn a_match_is_never_wrong(
        connections in prop::collection::vec((0u16..4, 1u32..4, 0u64..300), 1..40),
        lost in prop::collection::vec(any::<bool>(), 160),
        rotate in 0usize..160,
    ) {
        let mut free = [1_000u64; 4];
        let (mut records, mut requests, mut turns) = (Vec::new(), Vec::new(), Vec::new());
        for (conn, (port, count, pause)) in connections.into_iter().enumerate() {
            let start = free[port as usize] + pause;
            for ordinal in 0..count {
                let one = record(4000 + port, start, ordinal);
                free[port as usize] = one.c4 + 1;
                requests.push(seen(&one, conn as u64 + 1));
                turns.push(turn(&one));
                records.push((one, conn as u64 + 1));
            }
        }
        let mut at = 0;
        requests.retain(|_| { at += 1; !lost[at - 1] });
        let kept: Vec<(u64, u32)> =
            requests.iter().map(|request| (request.conn, request.ordinal)).collect();
        if !requests.is_empty() {
            let by = rotate % requests.len();
            requests.rotate_left(by);
        }
        let mut data = kernel(requests);
        data.client_turns = turns;
        let plain: Vec<RequestRecord> = records.iter().map(|(record, _)| *record).collect();
        for (one, (record, conn)) in join(&plain, &data).iter().zip(&records) {
            match one.server {
                Ok(request) => {
                    prop_assert_eq!((request.conn, request.ordinal), (*conn, record.ordinal));
                }
                Err(_) => prop_assert!(!kept.contains(&(*conn, record.ordinal))),
            }
            prop_assert_eq!(one.turn.map(|turn| turn.c4k), Some(record.c0 + 46));
        }
    }
}
