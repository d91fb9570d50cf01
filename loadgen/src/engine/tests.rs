use std::collections::HashSet;
use std::io::Write;
use std::sync::Mutex;
use std::time::Instant;

use super::*;
use crate::http::Target;
use crate::record::{self, Failure};

#[path = "tests/server.rs"]
mod server;

use server::{Server, Then, answer};

/// Longer than any of these tests takes.
const LONG_NS: u64 = 30_000_000_000;
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const OK_CLOSE: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";

fn plan(server: &Server, users: u32, hold_ms: u64) -> Plan {
    request_plan(server, users, hold_ms, "GET", &[])
}

fn request_plan(s: &Server, users: u32, hold_ms: u64, method: &str, form: &[&str]) -> Plan {
    let target = Target::parse(&format!("http://{}/path", s.address)).unwrap();
    Plan {
        target: s.address,
        request: RequestSpec::new(method, &target, &[], form).unwrap(),
        schedule: Schedule::new(users, 0.0, hold_ms * 1_000_000),
        threads: 1,
        timeout: None,
        max_records: MAX_RECORDS,
    }
}

fn run(plan: Plan) -> Outcome {
    let outcome = start(plan).unwrap().join().unwrap();
    check(&outcome);
    outcome
}

/// As [`run`], until the server has seen so many requests: however slow the machine is.
fn served(server: &Server, mut plan: Plan, requests: u64) -> Outcome {
    plan.schedule = Schedule::new(plan.schedule.users(), 0.0, LONG_NS);
    let running = start(plan).unwrap();
    while server.requests() < requests && !running.is_finished() {
        std::thread::sleep(Duration::from_millis(1));
    }
    running.stop();
    let outcome = running.join().unwrap();
    check(&outcome);
    outcome
}

/// Requests that the server has read, `sent` in all: the last ones a moment after they were sent.
fn seen(server: &Server, sent: u64) -> u64 {
    let begun = Instant::now();
    while server.requests() < sent && begun.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(1));
    }
    server.requests()
}

/// What holds in every run.
fn check(outcome: &Outcome) {
    assert!(outcome.records.is_sorted_by_key(|r| r.c4));
    for r in &outcome.records {
        assert!(r.c0 >= outcome.start && r.c4 >= r.c0 && r.c4 <= outcome.end + 50_000_000, "{r:?}");
        let mut last = r.c0;
        for mark in [r.c1, r.c2, r.c3, r.c4] {
            if mark != 0 {
                assert!(mark >= last, "{r:?}");
                last = mark;
            }
        }
        if r.outcome == record::Outcome::Success {
            assert!(r.c2 != 0 && r.c3 != 0 && r.local.port() != 0 && r.tx_bytes > 0, "{r:?}");
            assert_eq!(r.c1 != 0, r.ordinal == 0, "{r:?}");
            assert!((200..400).contains(&r.status));
        }
    }
}

fn count(outcome: &Outcome, wanted: record::Outcome) -> u64 {
    outcome.records.iter().filter(|r| r.outcome == wanted).count() as u64
}

fn failed(outcome: &Outcome, failure: Failure) -> u64 {
    count(outcome, record::Outcome::Failed(failure))
}

fn successes(outcome: &Outcome) -> u64 {
    count(outcome, record::Outcome::Success)
}

fn unfinished(outcome: &Outcome) -> u64 {
    count(outcome, record::Outcome::Unfinished)
}

#[test]
fn a_kept_connection_is_used_again_and_offsets_add_up() {
    let server = Server::start(answer(OK, Then::Keep));
    let outcome = served(&server, plan(&server, 3, 0), 50);
    assert_eq!(server.connections(), 3);
    assert!(successes(&outcome) > 30);
    assert_eq!(successes(&outcome) + unfinished(&outcome), outcome.records.len() as u64);
    // Every request that was sent is either answered or was on its way at the end.
    assert!((successes(&outcome)..=outcome.records.len() as u64).contains(&server.requests()));
    for user in 0..3 {
        let mut expected = (0, 0, 0);
        for r in outcome.records.iter().filter(|r| r.user == user) {
            assert_eq!((r.ordinal, r.tx_offset, r.rx_offset), expected);
            assert!(r.connection_start <= r.c0);
            expected = (r.ordinal + 1, r.tx_offset + r.tx_bytes, r.rx_offset + r.rx_bytes);
        }
    }
    let ports: HashSet<_> = outcome.records.iter().map(|r| r.local.port()).collect();
    assert_eq!(ports.len(), 3);
    assert_eq!(outcome.open.len(), 3);
    assert_eq!(outcome.user_starts.len(), 3);
}

#[test]
fn counts_are_equal_on_both_sides_over_several_threads() {
    let server = Server::start(answer(OK_CLOSE, Then::Close));
    let mut plan = plan(&server, 7, 0);
    plan.threads = 3;
    let outcome = served(&server, plan, 60);
    let sent = outcome.records.iter().filter(|r| r.c2 != 0).count() as u64;
    assert!(successes(&outcome) > 20);
    assert_eq!(failed(&outcome, Failure::ReadReset), 0);
    drop(outcome.open);
    assert_eq!(seen(&server, sent), sent);
    assert!(outcome.records.iter().all(|r| r.ordinal == 0 && r.c0 == r.connection_start));
    let users: HashSet<_> = outcome.records.iter().map(|r| r.user).collect();
    assert_eq!(users, (0..7).collect());
}

#[test]
fn users_come_at_their_rate_and_the_hold_follows() {
    let server = Server::start(answer(OK, Then::Keep));
    let mut plan = plan(&server, 6, 50);
    plan.schedule = Schedule::new(6, 50.0, 50_000_000);
    let outcome = run(plan);
    for (user, at) in outcome.user_starts.iter().enumerate() {
        let late = at - (outcome.start + user as u64 * 20_000_000);
        assert!(late < 1_000_000_000, "user {user} came {late} ns late");
    }
    assert_eq!(outcome.hold_start, outcome.user_starts[5]);
    assert!(outcome.end - outcome.start >= 150_000_000);
}

#[test]
fn chunked_and_close_delimited_and_informational_responses_end() {
    let chunked = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\
        Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
    let server = Server::start(answer(chunked, Then::Keep));
    let outcome = served(&server, plan(&server, 1, 0), 10);
    assert!(successes(&outcome) > 5);
    assert_eq!(server.connections(), 1);

    let server = Server::start(answer("HTTP/1.0 200 OK\r\n\r\nall of it", Then::Close));
    let outcome = served(&server, plan(&server, 1, 0), 10);
    assert!(successes(&outcome) > 5);
    assert_eq!(outcome.records[0].rx_bytes, 28);
    assert!(outcome.records.iter().all(|r| r.ordinal == 0));
}

#[test]
fn a_large_response_in_pieces_is_read_to_its_end() {
    let server = Server::start(|_, stream| {
        let body = vec![b'x'; 300_000];
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Le");
        std::thread::sleep(Duration::from_millis(2));
        let _ = stream.write_all(b"ngth: 300000\r\n\r\n");
        for piece in body.chunks(70_000) {
            let _ = stream.write_all(piece);
            std::thread::sleep(Duration::from_millis(1));
        }
        Then::Keep
    });
    let outcome = served(&server, plan(&server, 2, 0), 10);
    let first = &outcome.records[0];
    assert_eq!(first.rx_bytes, 300_043);
    assert!(first.c4 - first.c3 > 3_000_000);
    assert!(successes(&outcome) > 4);
}

#[test]
fn a_large_form_is_sent_whole_and_random() {
    let seen = Arc::new(Mutex::new(HashSet::new()));
    let log = Arc::clone(&seen);
    let server = Server::start(move |turn, stream| {
        log.lock().unwrap().insert(turn.text.clone());
        let _ = stream.write_all(OK.as_bytes());
        Then::Keep
    });
    let form = ["title=Post {random:10}", "content={random:200000}"];
    let outcome = served(&server, request_plan(&server, 2, 0, "POST", &form), 6);
    assert!(successes(&outcome) > 1);
    assert_eq!(failed(&outcome, Failure::ReadReset), 0);
    let seen = seen.lock().unwrap();
    assert!(seen.len() as u64 >= successes(&outcome));
    for text in seen.iter() {
        assert!(text.starts_with("POST /path HTTP/1.1\r\n"));
        assert!(text.contains("\r\nContent-Length: 200030\r\n"), "{}", &text[..300]);
        assert!(text.contains("\r\n\r\ntitle=Post+"));
    }
}

#[test]
fn statuses_are_classed() {
    for (status, failure) in [(404, Failure::Http4xx), (503, Failure::Http5xx)] {
        let server = Server::start(answer(
            format!("HTTP/1.1 {status} x\r\nContent-Length: 0\r\n\r\n"),
            Then::Keep,
        ));
        let outcome = served(&server, plan(&server, 1, 0), 8);
        assert!(failed(&outcome, failure) > 3);
        assert_eq!(successes(&outcome), 0);
        assert_eq!(outcome.records[0].status, status);
        assert_eq!(server.connections(), 1, "a kept connection serves failures too");
    }
}

#[test]
fn a_reset_or_an_early_end_is_read_reset() {
    for then in [Then::Reset, Then::Close] {
        let server = Server::start(answer(&OK[..OK.len() - 1], then));
        let outcome = served(&server, plan(&server, 1, 0), 8);
        let resets = failed(&outcome, Failure::ReadReset);
        assert!(resets > 3);
        assert_eq!(resets + unfinished(&outcome), outcome.records.len() as u64);
    }
}

#[test]
fn garbage_is_a_bad_response_and_extra_bytes_end_the_connection() {
    let server = Server::start(answer("SSH-2.0-x\r\n", Then::Keep));
    let outcome = served(&server, plan(&server, 1, 0), 8);
    assert!(failed(&outcome, Failure::BadResponse) > 3);
    assert!(server.connections() > 3);

    let server = Server::start(answer(format!("{OK}more"), Then::Keep));
    let outcome = served(&server, plan(&server, 1, 0), 8);
    assert!(successes(&outcome) > 3);
    assert!(outcome.records.iter().all(|r| r.ordinal == 0));
}

#[test]
fn a_stale_connection_is_replaced_once_and_counted() {
    // Two answers per connection; the third request meets a close without an answer.
    let server = Server::start(|turn, stream| {
        if turn.ordinal == 2 {
            return Then::Close;
        }
        let _ = stream.write_all(OK.as_bytes());
        Then::Keep
    });
    let outcome = served(&server, plan(&server, 1, 0), 15);
    assert!(outcome.stale_retries > 2);
    assert_eq!(failed(&outcome, Failure::ReadReset), 0);
    let again: Vec<_> = outcome.records.iter().filter(|r| r.c0 < r.connection_start).collect();
    let retried = again.iter().filter(|r| r.ordinal == 0).count() as u64;
    assert!(retried == outcome.stale_retries || retried + 1 == outcome.stale_retries);
    assert!(outcome.records.iter().all(|r| r.ordinal < 3));

    // A new connection that is closed unanswered is a failure, not tried again.
    let server = Server::start(|_, _| Then::Close);
    let outcome = served(&server, plan(&server, 1, 0), 8);
    assert_eq!(outcome.stale_retries, 0);
    assert!(failed(&outcome, Failure::ReadReset) > 3);
}

#[test]
fn a_connection_lost_while_the_server_works_is_not_tried_again() {
    let server = Server::start(|turn, stream| {
        if turn.ordinal == 1 {
            std::thread::sleep(Duration::from_millis(60));
            return Then::Close;
        }
        let _ = stream.write_all(OK.as_bytes());
        Then::Keep
    });
    let outcome = served(&server, plan(&server, 1, 0), 8);
    assert_eq!(outcome.stale_retries, 0);
    assert!(failed(&outcome, Failure::ReadReset) >= 2);
    // Each request reached the server once.
    let sent = outcome.records.iter().filter(|record| record.c2 != 0).count() as u64;
    assert_eq!(seen(&server, sent), sent);
}

#[test]
fn beyond_the_records_requests_are_counted() {
    let server = Server::start(answer(OK, Then::Keep));
    let mut plan = plan(&server, 2, 0);
    (plan.threads, plan.max_records) = (2, 10);
    let outcome = served(&server, plan, 60);
    let ended = outcome.records.len() as u64 - unfinished(&outcome);
    // Each of the two threads keeps five; on a busy machine the other may not have had its turn.
    assert!((5..=10).contains(&ended), "{ended}");
    let beyond = &outcome.beyond;
    assert!(beyond.requests > 20 && beyond.successes == beyond.requests, "{beyond:?}");
    assert_eq!(beyond.latency.as_ref().unwrap().len(), beyond.requests);
    assert_eq!(beyond.seconds.iter().map(|(ended, _)| ended).sum::<u64>(), beyond.requests);
    assert!(server.requests() >= ended + beyond.requests);
}

#[test]
fn a_timeout_ends_a_slow_request_and_only_that() {
    let server = Server::start(|turn, stream| {
        if turn.connection == 0 {
            std::thread::sleep(Duration::from_secs(2));
        }
        let _ = stream.write_all(OK.as_bytes());
        Then::Keep
    });
    let mut plan = plan(&server, 1, 0);
    plan.timeout = Some(Duration::from_millis(80));
    let outcome = served(&server, plan, 10);
    assert_eq!(failed(&outcome, Failure::ReadTimeout), 1);
    assert!(successes(&outcome) > 3);
    let slow = &outcome.records[0];
    let took = slow.c4 - slow.c0;
    assert!((80_000_000..2_000_000_000).contains(&took), "{took}");
    assert_eq!(server.connections(), 2);
}

#[test]
fn a_closed_port_is_refused_without_spinning() {
    let server = Server::start(answer(OK, Then::Keep));
    let mut plan = plan(&server, 1, 100);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    plan.target = free;
    let outcome = run(plan);
    let refused = failed(&outcome, Failure::ConnectRefused);
    assert!((2..=11).contains(&refused), "{refused}");
    assert_eq!(refused, outcome.records.len() as u64);
    assert_eq!(outcome.system_errors.values().sum::<u64>(), refused);
    assert!(outcome.records.iter().all(|r| r.local.port() == 0 && r.c1 == 0));
}

#[test]
fn a_handshake_that_gets_no_answer_times_out_as_connect() {
    // A full backlog drops the SYN: nobody accepts here, and the queue holds a connection or two.
    let listener =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    listener.bind(&any.into()).unwrap();
    listener.listen(0).unwrap();
    let target = listener.local_addr().unwrap().as_socket().unwrap();
    let server = Server::start(answer(OK, Then::Keep));
    let mut plan = plan(&server, 5, 300);
    plan.target = target;
    plan.timeout = Some(Duration::from_millis(100));
    let outcome = run(plan);
    assert!(failed(&outcome, Failure::ConnectTimeout) >= 3);
    assert!(failed(&outcome, Failure::ReadTimeout) >= 1);
    assert_eq!(successes(&outcome), 0);
}

#[test]
fn a_lost_syn_is_counted() {
    let listener =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    listener.bind(&any.into()).unwrap();
    listener.listen(0).unwrap();
    let target = listener.local_addr().unwrap().as_socket().unwrap();
    let filler = std::net::TcpStream::connect(target).unwrap();
    let server = Server::start(answer(OK, Then::Keep));
    let mut plan = plan(&server, 1, 2500);
    plan.target = target;
    let running = start(plan).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    // The queue has room again: the retransmitted SYN, a second after the first, gets through.
    let taken = listener.accept().unwrap();
    let outcome = running.join().unwrap();
    drop((filler, taken));
    assert_eq!(outcome.records.len(), 1);
    let record = &outcome.records[0];
    assert_eq!(record.outcome, record::Outcome::Unfinished);
    assert!(record.c1 - record.c0 > 900_000_000, "{record:?}");
    assert_eq!(record.syn_retransmits, 1);
}

#[test]
fn stop_ends_the_run_at_once_and_leaves_sockets_open() {
    let server = Server::start(|_, _| {
        std::thread::sleep(Duration::from_secs(2));
        Then::Close
    });
    let begun = Instant::now();
    let running = start(plan(&server, 4, 60_000)).unwrap();
    while running.live().users() < 4 && begun.elapsed() < Duration::from_secs(1) {
        std::thread::sleep(Duration::from_millis(1));
    }
    // Sent, and no answer yet.
    while server.requests() < 4 && begun.elapsed() < Duration::from_secs(1) {
        std::thread::sleep(Duration::from_millis(1));
    }
    running.stop();
    let outcome = running.join().unwrap();
    // The server answers after two seconds.
    assert!(begun.elapsed() < Duration::from_millis(1900));
    assert_eq!(unfinished(&outcome), 4);
    assert_eq!(outcome.open.len(), 4);
    for record in &outcome.records {
        assert_eq!(record.c4, outcome.end);
        assert!(record.c2 != 0 && record.c3 == 0);
    }
}

#[test]
fn stopped_in_the_ramp_there_is_no_hold() {
    let server = Server::start(answer(OK, Then::Keep));
    let mut plan = plan(&server, 100, 1000);
    plan.schedule = Schedule::new(100, 20.0, 1_000_000_000);
    let running = start(plan).unwrap();
    std::thread::sleep(Duration::from_millis(120));
    running.stop();
    let outcome = running.join().unwrap();
    assert_eq!(outcome.hold_start, outcome.end);
    assert!((1..100).contains(&outcome.user_starts.len()));
}

#[test]
fn ipv6_works_and_numbers_reach_the_watcher() {
    let server = Server::start_on("[::1]:0", answer(OK, Then::Keep));
    let running = start(plan(&server, 1, 30_000)).unwrap();
    let mut span = running.live().take();
    while span.requests <= 5 && !running.is_finished() {
        std::thread::sleep(Duration::from_millis(100));
        span = running.live().take();
    }
    running.stop();
    let outcome = running.join().unwrap();
    assert!(successes(&outcome) > 5);
    assert!(outcome.records[0].local.is_ipv6());
    assert!(span.requests > 5 && span.requests <= successes(&outcome));
    assert!(span.quantile_ms(0.5).unwrap() > 0.0);
    assert!(outcome.cpu_share > 0.0 && outcome.cpu_share < 1.01);
    assert!(outcome.loop_busy_max > 0);
}

#[test]
fn more_users_than_descriptors_is_one_clear_error() {
    let server = Server::start(answer(OK, Then::Keep));
    let error = start(plan(&server, 3_000_000_000, 1)).unwrap_err().to_string();
    assert!(error.contains("3000000000 users need 3000000068 open files"), "{error}");
}
