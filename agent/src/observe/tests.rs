//! What is printed, of an account that is filled here.

use agent_common::{
    abi::{ANSWER_LEN, PAYLOAD_LEN, Request, Tuple, Turn, class, flag},
    wire::{Count, ThreadWindow, Window},
};

use super::{
    json::Lines,
    session::Output as _,
    text::{self, Table},
};
use crate::model::{account::Account, aggregate::Counters};

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;

fn tuple() -> Tuple {
    let mut remote = [0; 16];
    remote[10..].copy_from_slice(&[0xff, 0xff, 10, 0, 0, 9]);
    Tuple { remote, remote_port: 51_000, ..Tuple::default() }
}

fn request(conn: u64, s0: u64, service: u64) -> Request {
    Request {
        conn,
        tid: 7,
        tuple: tuple(),
        s0,
        s2: s0 + 350 * MS,
        s1: s0 + MS,
        s3: s0 + 350 * MS + 40_000,
        s5: s0 + 350 * MS + service,
        ..Request::default()
    }
}

/// A statement that took 8 ms.
fn turn(held_conn: u64, sent_first: u64, sql: &str) -> Turn {
    let mut payload = [0; PAYLOAD_LEN];
    let length = 6 + sql.len();
    payload[0] = b'Q';
    payload[1..5].copy_from_slice(&(length as u32 - 1).to_be_bytes());
    payload[5..5 + sql.len()].copy_from_slice(sql.as_bytes());
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
        answered: sent_first + 8 * MS,
        received_last: sent_first + 8 * MS,
        tx_bytes: length as u64,
        rx_bytes: 10,
        payload_len: length as u32,
        answer_len: 1,
        payload,
        answer: [b'T'; ANSWER_LEN],
    }
}

fn thread(tid: u32, idle: u64, database: u64, read: u64) -> ThreadWindow {
    let mut ns = [0; class::COUNT];
    (ns[class::IDLE], ns[class::DATABASE]) = (idle, database);
    ns[class::CPU] = SECOND - idle - database;
    ThreadWindow {
        tid,
        tgid: 7,
        comm: "gunicorn".into(),
        ns,
        voluntary: 0,
        involuntary: 0,
        accepts: read,
        requests: read,
        db_turns: 2,
    }
}

fn window(to_ns: u64) -> Window {
    Window {
        from_ns: to_ns - SECOND,
        to_ns,
        threads: vec![thread(7, 0, 900 * MS, 2), thread(8, 700 * MS, 300 * MS, 0)],
        queue_mean: 4.25,
        queue_max: 9,
        lost: vec![],
        listen_overflows: 0,
        injector_dropped: 0,
        retransmissions: None,
    }
}

/// Two seconds of a slow synchronous service.
pub(super) fn filled() -> Account {
    let mut account = Account::new(SECOND).unwrap();
    for at in 1..=2 {
        let conn = 2 * at;
        account.request(&request(conn, at * SECOND, (20 + 5 * at) * MS));
        account.turn(&turn(conn, at * SECOND + 352 * MS, "select * from posts where id = 5"));
        account.turn(&turn(conn, at * SECOND + 362 * MS, "select '\u{1b}[2J' as \"\u{1b}[2J\""));
        account.request(&request(conn + 1, at * SECOND + 500 * MS, 2 * MS));
        account.window(&window((at + 1) * SECOND));
        if at == 1 {
            account.close();
        }
    }
    account
}

pub(super) fn doubtful() -> Account {
    let mut account = filled();
    let pipelined = Request { flags: flag::PIPELINED, ..request(20, SECOND, MS) };
    account.request(&pipelined);
    account.request(&Request { s5: 0, ..request(21, SECOND, MS) });
    account.request(&Request { flags: flag::UNFINISHED, ..request(22, SECOND, MS) });
    let lost = vec![Count { name: "request_record".into(), count: 3 }];
    account.window(&Window { lost, listen_overflows: 12, ..window(4 * SECOND) });
    account
}

fn table(mut account: Account) -> String {
    let mut out = Vec::new();
    let mut table = Table::new(&mut out, 8000);
    let figures = account.close();
    table.window(&figures, &account).unwrap();
    table.end(&account.summary(&Counters::default(), None), "duration").unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn a_table_and_what_happened_in_all() {
    insta::assert_snapshot!(table(filled()));
}

#[test]
fn what_is_in_doubt_is_said() {
    insta::assert_snapshot!(table(doubtful()));
}

#[test]
fn a_line_of_json_is_one_line() {
    let mut account = doubtful();
    let mut out = Vec::new();
    let figures = account.close();
    Lines::new(&mut out).window(&figures, &account).unwrap();
    Lines::new(&mut out).end(&account.summary(&Counters::default(), None), "duration").unwrap();
    let out = String::from_utf8(out).unwrap();
    let lines: Vec<serde_json::Value> =
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    insta::assert_json_snapshot!(lines[1]);
}

#[test]
fn numbers_have_about_three_digits() {
    let told = [None, Some(0.0), Some(9.994), Some(9.996), Some(99.96), Some(12_345.6)];
    assert_eq!(told.map(text::ms), ["-", "0.00", "9.99", "10.0", "100", "12346"]);
    assert_eq!((text::fit("naïve", 5).as_str(), text::fit("naïve", 4).as_str()), ("naïve", "naï…"));
}

#[test]
fn the_databases_ports() {
    let ports = |given: &[u16], port| super::db_ports(given, port).ok();
    assert_eq!(ports(&[], 8000), Some(vec![5432]));
    assert_eq!(ports(&[9, 8, 9], 8000), Some(vec![8, 9]));
    assert_eq!(ports(&[], 5432), Some(vec![]), "a Postgres is no database of its own");
    assert_eq!(ports(&[8000], 8000), None);
}
