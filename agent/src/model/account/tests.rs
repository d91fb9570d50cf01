use agent_common::{
    abi::{ANSWER_LEN, PAYLOAD_LEN, Tuple, class},
    wire::{Count, ThreadWindow},
};
use proptest::prelude::*;

use super::*;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;

fn request(conn: u64, s0: u64) -> Request {
    Request {
        conn,
        tid: 7,
        s0,
        s2: s0 + 50 * MS,
        s1: s0 + MS,
        s3: s0 + 51 * MS,
        s5: s0 + 71 * MS,
        ..Request::default()
    }
}

fn window(to_ns: u64) -> Window {
    let mut ns = [0; class::COUNT];
    ns[class::CPU] = SECOND;
    let thread = ThreadWindow {
        tid: 7,
        tgid: 7,
        comm: "worker".into(),
        ns,
        voluntary: 0,
        involuntary: 0,
        accepts: 2,
        requests: 2,
        db_turns: 1,
    };
    Window {
        from_ns: to_ns - SECOND,
        to_ns,
        threads: vec![thread],
        queue_mean: 0.5,
        queue_max: 3,
        lost: vec![Count { name: "request_record".into(), count: 2 }],
        listen_overflows: 1,
        injector_dropped: 0,
        retransmissions: None,
    }
}

fn query(held_conn: u64, sent_first: u64, ns: u64, sql: &[u8]) -> Turn {
    let mut payload = [0; PAYLOAD_LEN];
    let length = 6 + sql.len();
    payload[0] = b'Q';
    payload[1..5].copy_from_slice(&(length as u32 - 1).to_be_bytes());
    payload[5..5 + sql.len()].copy_from_slice(sql);
    Turn {
        kind: 0,
        flags: 0,
        conn: 5,
        tuple: Tuple::default(),
        ordinal: 4,
        tid: 7,
        held_conn,
        sent_first,
        sent_last: sent_first,
        answered: sent_first + ns,
        received_last: sent_first + ns,
        tx_bytes: length as u64,
        rx_bytes: 10,
        payload_len: length as u32,
        answer_len: 1,
        payload,
        answer: [b'T'; ANSWER_LEN],
    }
}

#[test]
fn windows_and_their_sum() {
    let mut account = Account::new(10 * SECOND).unwrap();
    for at in 0..3 {
        for conn in 0..2 {
            account.request(&request(1 + 2 * at + conn, (10 + at) * SECOND + conn * 100 * MS));
        }
        let sent = (10 + at) * SECOND + 52 * MS;
        account.turn(&query(1 + 2 * at, sent, 4 * MS, b"select * from t where id = 5"));
        account.window(&window((11 + at) * SECOND));
        let figures = account.close();
        assert_eq!((figures.from_s, figures.to_s), (at as f64, at as f64 + 1.0));
        assert_eq!((figures.requests.answered, figures.requests.answered_per_s), (2, 2.0));
        assert_eq!((figures.connections.accepted, figures.requests.read), (2, 2));
        let close = |ms: Option<f64>, to: f64| (ms.unwrap() - to).abs() <= to * 0.001;
        assert!(close(figures.stages.accept_queue.p50_ms, 50.0), "{figures:?}");
        assert!(close(figures.stages.unread.p99_ms, 1.0), "{figures:?}");
        assert!(close(figures.stages.service.p95_ms, 20.0), "{figures:?}");
        assert_eq!(figures.accept_queue_depth, Depth { mean: 0.5, max: 3 });
        assert_eq!((figures.lost_events, figures.listen_drops), (2, 1));
        assert_eq!(figures.database.per_request, Some(0.5));
        assert_eq!(figures.threads[0].time["cpu"], 1.0);
    }
    let mut unfinished = request(90, 13 * SECOND);
    unfinished.flags = flag::UNFINISHED;
    account.request(&unfinished);
    let summary = account.summary(&Counters::default(), Some("/tmp/\u{1b}x".into()));
    assert_eq!((summary.figures.from_s, summary.figures.to_s), (0.0, 3.0));
    assert_eq!(summary.figures.requests.answered, 6);
    assert_eq!(summary.figures.stages.service.count, 6);
    assert_eq!(summary.figures.lost["request_record"], 6);
    assert_eq!(summary.unfinished, Unfinished { service: 1, ..Unfinished::default() });
    let [line] = &summary.figures.database.by_statement[..] else { panic!("{summary:?}") };
    assert_eq!((line.kind, line.count, line.max_ms), ("query", 3, 4.0));
    assert!(!line.statement.as_ref().unwrap().contains('5'), "literals are out: {line:?}");
    assert_eq!(summary.unix_database.as_deref(), Some("/tmp/\\u{1b}x"));
    let slow = summary.slowest.iter().filter(|slow| !slow.database.as_ref().unwrap().is_empty());
    assert_eq!(slow.count(), 3, "each round trip is in its request's waterfall");
}

#[test]
fn a_window_of_many_threads_lasts_once() {
    let mut account = Account::new(0).unwrap();
    let mut more = window(SECOND);
    (more.queue_mean, more.lost, more.listen_overflows) = (0.0, vec![], 0);
    account.window(&window(SECOND));
    account.window(&more);
    let figures = account.close();
    assert_eq!(figures.connections.accepted_per_s, 4.0);
    assert_eq!(figures.accept_queue_depth.mean, 0.5);
    assert_eq!(figures.threads[0].threads, 2.0);
}

#[test]
fn the_unfinished_are_told_by_stage() {
    let mut unfinished = Unfinished::default();
    let fresh = Request { s0: 5, ..Request::default() };
    unfinished.add(&fresh);
    unfinished.add(&Request { s2: 6, ..fresh });
    unfinished.add(&Request { s2: 6, s1: 5, ..fresh });
    unfinished.add(&Request { s2: 6, s1: 5, s3: 7, ..fresh });
    unfinished.add(&Request { s1: 9, ordinal: 3, ..fresh });
    let expected = Unfinished { accept_queue: 1, request_net: 1, unread: 2, service: 1 };
    assert_eq!(unfinished, expected);
}

#[test]
fn round_trips_that_belong_to_nobody_are_counted() {
    let mut account = Account::new(0).unwrap();
    account.turn(&query(0, SECOND, MS, b"select 1"));
    let figures = account.close();
    assert_eq!((figures.database.round_trips, figures.ambiguous.round_trips), (1, 1));
}

#[test]
fn what_a_prometheus_scrapes() {
    let mut account = Account::new(10 * SECOND).unwrap();
    account.request(&request(1, 10 * SECOND));
    account.turn(&query(1, 10 * SECOND + 52 * MS, 4 * MS, b"select \"a\\b\x1b\""));
    account.window(&window(11 * SECOND));
    account.close();
    insta::assert_snapshot!(account.exposition());
}

proptest! {
    /// Whatever the records hold, every one is counted, in the window and in all.
    #[test]
    fn nothing_is_lost_and_nothing_panics(
        records in proptest::collection::vec(
            (any::<[u64; 5]>(), any::<u32>(), any::<u32>(), 0..3_u64, 0..3_u32), 0..60),
        turns in proptest::collection::vec(
            (any::<[u64; 4]>(), any::<u32>(), proptest::collection::vec(any::<u8>(), 0..80)), 0..30),
    ) {
        let mut account = Account::new(5).unwrap();
        let mut over = 0;
        for (marks, ordinal, flags, conn, tid) in records {
            let [s0, s2, s1, s3, s5] = marks;
            over += u64::from(flags & flag::UNFINISHED == 0);
            account.request(
                &Request { s0, s2, s1, s3, s5, ordinal, flags, conn, tid, ..Request::default() },
            );
        }
        for ([held, sent, answered, conn], flags, sql) in turns {
            let turn = query(held, sent, 0, &sql);
            account.turn(&Turn { answered, conn, flags, ..turn });
        }
        let total = account.total();
        let counted = total.requests.answered
            + total.requests.unanswered
            + total.requests.answered_unread
            + total.unseen.answer
            + total.connections.never_accepted;
        prop_assert_eq!(counted, over);
        prop_assert_eq!(account.close().requests, total.requests);
        let json = serde_json::to_string(&account.summary(&Counters::default(), None)).unwrap();
        prop_assert!(!json.chars().any(char::is_control));
        let exposition = account.exposition();
        prop_assert!(exposition.lines().all(|line| line.starts_with("# ") || line.starts_with("dwell_")));
    }
}
