use agent_common::abi::{ANSWER_LEN, PAYLOAD_LEN, Tuple, kind};
use proptest::prelude::*;

use super::*;

fn turn(ordinal: u32, sent: &[u8], answer: &[u8]) -> Turn {
    let mut turn = Turn {
        kind: kind::DB_TURN,
        flags: 0,
        conn: 7,
        tuple: Tuple::default(),
        ordinal,
        tid: 1,
        held_conn: 0,
        sent_first: 10,
        sent_last: 11,
        answered: if answer.is_empty() { 0 } else { 20 },
        received_last: 21,
        tx_bytes: sent.len() as u64,
        rx_bytes: answer.len() as u64,
        payload_len: sent.len().min(PAYLOAD_LEN) as u32,
        answer_len: answer.len().min(ANSWER_LEN) as u32,
        payload: [0; PAYLOAD_LEN],
        answer: [0; ANSWER_LEN],
    };
    let length = turn.payload_len as usize;
    turn.payload[..length].copy_from_slice(&sent[..length]);
    let length = turn.answer_len as usize;
    turn.answer[..length].copy_from_slice(&answer[..length]);
    turn
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    out.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    out.extend_from_slice(body);
    out
}

fn untyped(code: u32, rest: &[u8]) -> Vec<u8> {
    let mut out = (rest.len() as u32 + 8).to_be_bytes().to_vec();
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(rest);
    out
}

fn query(sql: &str) -> Vec<u8> {
    message(b'Q', format!("{sql}\0").as_bytes())
}

fn parse(name: &str, sql: &str) -> Vec<u8> {
    message(b'P', format!("{name}\0{sql}\0\0\0").as_bytes())
}

fn bind(name: &str) -> Vec<u8> {
    message(b'B', format!("\0{name}\0\0\0\0\x01\0\0\0\x06secret\0\0").as_bytes())
}

fn trip(kind: DbKind, statement: Option<&str>) -> Decoded {
    Decoded::RoundTrip { kind, statement: statement.map(str::to_owned) }
}

fn sync() -> Vec<u8> {
    [message(b'D', b"P\0"), message(b'E', b"\0\0\0\0\0"), message(b'S', b"")].concat()
}

#[test]
fn the_life_of_a_psycopg2_connection() {
    let mut decoder = Decoder::default();
    let insert = "INSERT INTO \"posts\" (\"title\") VALUES ('Post abc') RETURNING \"id\"";
    let steps: [(Vec<u8>, &[u8], Decoded); 10] = [
        (vec![], b"", trip(DbKind::TcpConnect, None)),
        (untyped(80_877_103, b""), b"N", trip(DbKind::SslRequest, None)),
        (untyped(196_608, b"user\0dwell\0\0"), b"R", trip(DbKind::Startup, None)),
        (message(b'p', b"SCRAM-SHA-256\0..."), b"R", trip(DbKind::Auth, None)),
        (message(b'p', b"c=biws,r=..."), b"R", trip(DbKind::Auth, None)),
        (query("SET TIME ZONE 'UTC'"), b"C", trip(DbKind::SessionSetup, Some("SET TIME ZONE ?"))),
        (query("BEGIN"), b"C", trip(DbKind::Begin, Some("BEGIN"))),
        (
            query(insert),
            b"T",
            trip(
                DbKind::Query,
                Some("INSERT INTO \"posts\" (\"title\") VALUES (?) RETURNING \"id\""),
            ),
        ),
        (query("COMMIT"), b"C", trip(DbKind::Commit, Some("COMMIT"))),
        (message(b'X', b""), b"", Decoded::Terminate),
    ];
    for (ordinal, (sent, answer, expected)) in (0..).zip(steps) {
        assert_eq!(decoder.turn(&turn(ordinal, &sent, answer)), expected, "turn {ordinal}");
    }
    assert_eq!(decoder.oddities(), Oddities::default());
}

#[test]
fn extended_protocol_in_one_payload_and_in_several() {
    let mut decoder = Decoder::default();
    let select = "SELECT a FROM t WHERE b = $1";
    let expected = trip(DbKind::Query, Some("SELECT a FROM t WHERE b = ?"));

    let all = [parse("", select), bind(""), sync()].concat();
    assert_eq!(decoder.turn(&turn(1, &all, b"1")), expected);
    let prepare = [parse("s1", select), message(b'D', b"Ss1\0"), message(b'S', b"")].concat();
    assert_eq!(decoder.turn(&turn(2, &prepare, b"1")), expected);
    let execute = [bind("s1"), sync()].concat();
    assert_eq!(decoder.turn(&turn(3, &execute, b"2")), expected);

    let mut elsewhere = turn(3, &execute, b"2");
    elsewhere.conn = 8;
    assert_eq!(decoder.turn(&elsewhere), trip(DbKind::Query, None), "another connection");
    assert_eq!(decoder.oddities().unknown_prepared, 1);

    let close = [message(b'C', b"Ss1\0"), message(b'S', b"")].concat();
    assert_eq!(decoder.turn(&turn(4, &close, b"3")), trip(DbKind::Other, None));
    assert_eq!(decoder.turn(&turn(5, &execute, b"E")), trip(DbKind::Query, None));

    let pipeline = [parse("", "BEGIN"), bind(""), parse("", select), bind(""), sync()].concat();
    let both = trip(DbKind::Query, Some("BEGIN; SELECT a FROM t WHERE b = ?"));
    assert_eq!(decoder.turn(&turn(6, &pipeline, b"1")), both);
}

#[test]
fn a_closed_connection_is_forgotten() {
    let mut decoder = Decoder::default();
    decoder.turn(&turn(1, &parse("s", "SELECT 1"), b"1"));
    let mut last = turn(2, &message(b'X', b""), b"");
    last.flags = flag::CLOSED;
    assert_eq!(decoder.turn(&last), Decoded::Terminate);
    assert!(decoder.connections.is_empty());
}

#[test]
fn tls_hides_what_follows() {
    let mut decoder = Decoder::default();
    decoder.turn(&turn(1, &untyped(80_877_103, b""), b"S"));
    assert_eq!(decoder.turn(&turn(2, &[0x16, 3, 1, 2, 0], b"\x16")), trip(DbKind::Tls, None));
    assert_eq!(decoder.turn(&turn(3, b"anything", b"\x17")), trip(DbKind::Tls, None));
    let mut alert = turn(4, &[0x17, 3, 3, 0, 19], b"");
    alert.flags = flag::CLOSED;
    assert_eq!(decoder.turn(&alert), Decoded::Terminate);
    // Without a request first (Postgres 17's direct TLS).
    let mut direct = turn(1, &[0x16, 3, 1, 2, 0], b"\x16");
    direct.conn = 9;
    assert_eq!(decoder.turn(&direct), trip(DbKind::Tls, None));
}

#[test]
fn a_long_statement_is_cut() {
    let mut decoder = Decoder::default();
    let sql = format!("SELECT a FROM t WHERE b IN ({})", "'secret', ".repeat(100));
    let Decoded::RoundTrip { kind, statement } = decoder.turn(&turn(1, &query(&sql), b"T")) else {
        panic!("no round trip");
    };
    let statement = statement.unwrap();
    assert_eq!(kind, DbKind::Query);
    assert!(statement.starts_with("SELECT a FROM t WHERE b IN (?"), "{statement}");
    assert!(statement.ends_with('…') && !statement.contains("secret"), "{statement}");
}

#[test]
fn other_traffic_is_other() {
    let mut decoder = Decoder::default();
    let other = trip(DbKind::Other, None);
    assert_eq!(decoder.turn(&turn(1, &message(b'd', b"1\tsecret\n"), b"C")), other);
    assert_eq!(decoder.turn(&turn(2, &untyped(80_877_102, b"pidkey__"), b"")), other);
    assert_eq!(decoder.oddities().undecoded, 0);
    assert_eq!(decoder.turn(&turn(3, b"GET / HTTP/1.1\r\n", b"H")), other);
    assert_eq!(decoder.oddities().undecoded, 1);
}

proptest! {
    #[test]
    fn no_bytes_panic(
        turns in proptest::collection::vec(
            (0..4_u64, 0..3_u32, any::<u8>(), proptest::collection::vec(any::<u8>(), 0..600)),
            0..20,
        ),
    ) {
        let mut decoder = Decoder::default();
        for (conn, ordinal, flags, bytes) in turns {
            let mut turn = turn(ordinal, &bytes, &bytes);
            turn.conn = conn;
            turn.flags = flags.into();
            decoder.turn(&turn);
        }
    }

    #[test]
    fn no_lengths_panic(
        kinds in proptest::collection::vec(
            (
                proptest::sample::select(b"BCDEFHPQSXcdfp".as_slice()),
                prop_oneof![0..20_u32, any::<u32>()],
                proptest::collection::vec(proptest::sample::select(b"\0S'a$1".as_slice()), 0..12),
            ),
            0..20,
        ),
        length: u32,
    ) {
        let mut bytes = Vec::new();
        for (kind, length, body) in kinds {
            bytes.push(kind);
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(&body);
        }
        let mut turn = turn(1, &bytes, b"");
        turn.payload_len = length;
        Decoder::default().turn(&turn);
    }

    #[test]
    fn bound_values_never_show(name in "[a-z]{0,5}", cut in 0..200_usize) {
        let bytes = [parse(&name, "SELECT $1"), bind(&name), sync()].concat();
        let decoded = Decoder::default().turn(&turn(1, &bytes[..cut.min(bytes.len())], b"1"));
        let Decoded::RoundTrip { statement, .. } = decoded else { panic!("terminated") };
        prop_assert!(!statement.unwrap_or_default().contains("secret"));
    }
}

#[test]
fn what_is_found_before_a_tail_that_is_none_keeps_its_name() {
    let mut decoder = Decoder::default();
    let sent = [parse("", "SELECT 1"), b"\xff\xfe heap".to_vec()].concat();
    assert_eq!(decoder.turn(&turn(1, &sent, b"1")), trip(DbKind::Query, Some("SELECT ?")));
    assert_eq!(decoder.oddities().undecoded, 1);
    // Nothing before it: nothing is known, a good-bye included.
    assert_eq!(decoder.turn(&turn(2, b"\xff\xfe heap", b"1")), trip(DbKind::Other, None));
    let sent = [message(b'X', b""), b"\xff\xfe heap".to_vec()].concat();
    assert_eq!(decoder.turn(&turn(3, &sent, b"")), trip(DbKind::Other, None));
}

#[test]
fn texts_of_a_turn_are_told_once_and_fit_a_message() {
    let mut decoder = Decoder::default();
    let sent = [parse("a", "SELECT 1"), parse("b", "COMMIT"), sync()].concat();
    decoder.turn(&turn(1, &sent, b"1"));
    let sent = [bind("a"), bind("b"), bind("a"), bind("b")].concat();
    let expected = trip(DbKind::Query, Some("SELECT ?; COMMIT"));
    assert_eq!(decoder.turn(&turn(2, &sent, b"2")), expected);

    // As many long ones as fit what is seen of a turn.
    for index in 0..30u8 {
        let name = char::from(b'A' + index).to_string();
        let columns = format!("{name}{}", "é".repeat(220));
        decoder.turn(&turn(3, &parse(&name, &format!("SELECT {columns}")), b"1"));
    }
    let execute = |name: u8| message(b'B', &[0, name, 0, 0, 0, 0, 0]);
    let sent: Vec<u8> = (0..30).flat_map(|index| execute(b'A' + index)).collect();
    match decoder.turn(&turn(4, &sent, b"2")) {
        Decoded::RoundTrip { statement: Some(text), .. } => {
            assert!(text.len() <= agent_common::wire::MAX_TEXT && text.ends_with('…'), "{text}");
            assert!(text.len() > 4_000, "{text}");
        }
        other => panic!("{other:?}"),
    }
}

fn on(conn: u64, turn: Turn) -> Turn {
    Turn { conn, ..turn }
}

#[test]
fn only_what_can_be_asked_for_again_is_remembered_and_never_too_much() {
    let mut decoder = Decoder::default();
    // Connections that failed, or use no prepared statement: nothing to remember.
    for conn in 0..2 * u64::from(MAX_TURNS) {
        decoder.turn(&on(conn, turn(0, b"", b"")));
        decoder.turn(&on(conn, turn(1, &query("SELECT 1"), b"T")));
    }
    assert!(decoder.connections.is_empty());

    // Many statements on each of many connections: one limit for all.
    for conn in 0..60 {
        for index in 0..1_000 {
            decoder.turn(&on(conn, turn(1, &parse(&format!("s{index}"), "SELECT 1"), b"1")));
        }
    }
    assert_eq!(decoder.all.kept.statements, MAX_KEPT.statements);
    assert_eq!(decoder.oddities().unkept_prepared, 10_000);
    // What is prepared anew, closed or ends makes room again.
    decoder.turn(&on(3, turn(1, &parse("s5", "SELECT 2"), b"1")));
    assert_eq!(decoder.all.kept.statements, MAX_KEPT.statements);
    decoder.turn(&on(3, turn(1, &message(b'C', b"Ss5\0"), b"3")));
    assert_eq!(decoder.all.kept.statements, MAX_KEPT.statements - 1);
    for conn in 0..60 {
        let end = turn(2, &message(b'X', b""), b"");
        decoder.turn(&on(conn, Turn { flags: flag::CLOSED, ..end }));
    }
    assert_eq!(decoder.all.kept, Kept::default());
    assert!(decoder.connections.is_empty());

    // Connections whose end went unseen make room for those that live.
    for conn in 0..=u64::from(MAX_TURNS) {
        decoder.turn(&on(conn, turn(1, &parse("s", "SELECT 1"), b"1")));
        // The first is in use all the time.
        assert_eq!(
            decoder.turn(&on(0, turn(2, &bind("s"), b"2"))),
            trip(DbKind::Query, Some("SELECT ?"))
        );
    }
    assert_eq!(decoder.connections.len(), MAX_TURNS as usize);
    assert!(!decoder.connections.contains_key(&1));
}
