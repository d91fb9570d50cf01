//! The marks, proved against what the test's own client saw, strace and a packet capture.

#[path = "marks/shapes.rs"]
mod shapes;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use agent::{
    inject::{self, By, Direction, EngineChoice, Impairment, Scope},
    model::filter::PacketFilter,
    sys::{netns::Netns, observe::Target},
};
use agent_common::{
    abi::{class, flag},
    wire,
};
use anyhow::{Context as _, Result};
use tests::{
    capture::{self, Capture, Segment},
    lab::{App, Lab, PostgresSpec, Side, paths, postgres, server},
    observed::{self, Exchange},
    strace::{Call, Strace},
};

/// How far a mark may be from its witness. Fixed by what is claimed of them.
const TOLERANCE_NS: i128 = 1_000_000;

fn lab(name: &str) -> Result<Lab> {
    Lab::new(paths::scratch().join("logs").join(name))
}

fn study(name: &str) -> Result<Lab> {
    let mut lab = lab(name)?;
    lab.start_postgres(&PostgresSpec::study(1000))?;
    lab.start_server(&App::StudySync)?;
    Ok(lab)
}

fn server_address(lab: &Lab) -> SocketAddr {
    SocketAddr::new(lab.network().server_v4().into(), server::PORT)
}

/// `count` requests, one after another, with a pause between them.
fn requests(lab: &Lab, path: &str, count: usize) -> Result<Vec<Exchange>> {
    let address = server_address(lab);
    observed::inside(lab, Side::Outside, || {
        (0..count)
            .map(|_| {
                std::thread::sleep(Duration::from_millis(20));
                observed::get(address, path)
            })
            .collect()
    })
}

/// Median and largest of absolute differences, in microseconds, for the test's log; and how many
/// are beyond the tolerance. One in twenty may be: the machine may stop either witness between
/// the event and its stamp.
fn judge(what: &str, mut differences: Vec<i128>) {
    assert!(!differences.is_empty(), "{what}: nothing to compare");
    for difference in &mut differences {
        *difference = difference.abs();
    }
    differences.sort_unstable();
    let beyond = differences.iter().filter(|&&d| d > TOLERANCE_NS).count();
    println!(
        "{what}: median {} us, largest {} us, {beyond} of {} beyond 1 ms",
        differences[differences.len() / 2] / 1000,
        differences[differences.len() - 1] / 1000,
        differences.len()
    );
    assert!(beyond * 20 <= differences.len(), "{what}: {beyond} beyond 1 ms");
}

#[test]
fn every_mark_of_a_sync_request_is_seen_in_order() -> Result<()> {
    let lab = study("marks-order")?;
    let (exchanges, seen) = observed::observe(&lab, || requests(&lab, "/io_read", 20))?;
    seen.assert_nothing_lost();
    for exchange in &exchanges {
        let found = observed::request_of(&seen, exchange.local);
        let [request] = found[..] else { panic!("{} requests for one: {found:?}", found.len()) };
        assert_eq!(request.flags & (flag::ADOPTED | flag::UNFINISHED | flag::S1_AT_READ), 0);
        assert_eq!(request.tx_bytes, exchange.bytes);
        let marks =
            [exchange.c0, request.s0, request.s2, request.s3, request.s4, request.s5, exchange.c4];
        assert!(marks.is_sorted(), "{marks:?}");
        assert!(exchange.c1 <= request.s1 && request.s1 <= request.s3);
        let turn = seen
            .client_turns
            .iter()
            .find(|turn| wire::address(turn.tuple.local, turn.tuple.local_port) == exchange.local)
            .context("the client's kernel saw nothing")?;
        let marks = [exchange.c0, turn.syn, turn.established, turn.c3k, turn.c4k, exchange.c4];
        assert!(marks.is_sorted(), "{marks:?}");
        assert!(request.s4 <= turn.c3k);
        let hold = seen.holds.iter().find(|hold| hold.conn == request.conn).context("no hold")?;
        assert_eq!((hold.start, hold.tid), (request.s2, request.tid));
        assert!(hold.end >= request.s5);
        let spent: u64 = hold.ns.iter().sum();
        assert!(hold.end - hold.start - spent < 20_000, "{hold:?}");
    }
    Ok(())
}

#[test]
fn accept_and_service_agree_with_strace() -> Result<()> {
    let lab = study("marks-strace")?;
    let worker = worker(&lab)?;
    let offset = observed::realtime_offset_ns();
    let trace = Strace::start(worker, &paths::scratch().join("logs/marks-strace/trace"))?;
    let (exchanges, seen) = observed::observe(&lab, || requests(&lab, "/io_read", 40))?;
    let calls = trace.stop()?;
    let served = served(&calls);
    assert_eq!(served.len(), exchanges.len(), "strace saw other requests");
    let mut accept = Vec::new();
    let mut read = Vec::new();
    let mut sent = Vec::new();
    for (exchange, truth) in exchanges.iter().zip(&served) {
        let found = observed::request_of(&seen, exchange.local);
        let request = found.first().context("a request is missing")?;
        accept.push(i128::from(request.s2) - (truth.accepted - offset));
        read.push(i128::from(request.s3) - (truth.read - offset));
        sent.push(i128::from(request.s5) - (truth.sent - offset));
    }
    judge("s2 against accept4 in strace", accept);
    judge("s3 against recvfrom in strace", read);
    judge("s5 against the last sendto in strace", sent);
    Ok(())
}

/// One request as strace saw it, CLOCK_REALTIME.
struct Served {
    accepted: i128,
    read: i128,
    sent: i128,
}

/// Groups a synchronous worker's calls by accepted connection.
fn served(calls: &[Call]) -> Vec<Served> {
    let mut found = Vec::new();
    let mut current: Option<(String, Served)> = None;
    for call in calls.iter().filter(|call| call.result >= 0) {
        match (call.name.as_str(), &mut current) {
            ("accept4", _) => {
                let served = Served { accepted: call.end_ns, read: 0, sent: 0 };
                current = Some((call.result.to_string(), served));
            }
            ("recvfrom", Some((fd, served))) if *fd == call.first && served.read == 0 => {
                served.read = call.end_ns;
            }
            ("sendto", Some((fd, served))) if *fd == call.first => served.sent = call.end_ns,
            ("close", Some((fd, _))) if *fd == call.first => {
                found.extend(current.take().map(|(_, served)| served));
            }
            _ => {}
        }
    }
    found
}

/// The only worker of the laboratory's gunicorn.
fn worker(lab: &Lab) -> Result<u32> {
    let arbiter = lab.server().context("no server")?.process().pid();
    let path = format!("/proc/{arbiter}/task/{arbiter}/children");
    let children = std::fs::read_to_string(path)?;
    Ok(children.split_whitespace().next().context("gunicorn has no worker")?.parse()?)
}

#[test]
fn network_marks_and_round_trips_agree_with_a_packet_capture() -> Result<()> {
    marks_against_captures("marks-capture", None, 40)
}

/// As above, with everything that leaves the server 100 ms late.
#[test]
fn under_delay_network_marks_agree_with_a_packet_capture() -> Result<()> {
    marks_against_captures("marks-delayed", Some(Duration::from_millis(100)), 10)
}

fn marks_against_captures(name: &str, delay: Option<Duration>, count: usize) -> Result<()> {
    let lab = study(name)?;
    let logs = paths::scratch().join("logs").join(name);
    let offset = observed::realtime_offset_ns();
    let impaired = delay
        .map(|delay| {
            let netns = Netns::named(&lab.network().name(Side::Server))?;
            let direction = Direction::Egress;
            let scope = Scope {
                netns,
                device: "eth0".to_owned(),
                direction,
                filter: PacketFilter::default(),
                replace: false,
                by: By::this_command(),
            };
            anyhow::Ok(inject::apply(&Impairment::fixed_delay(delay)?, &scope, EngineChoice::Auto)?)
        })
        .transpose()?;
    let at_server = Capture::start(&lab, Side::Server, &logs.join("server.pcap"))?;
    let at_client = Capture::start(&lab, Side::Outside, &logs.join("client.pcap"))?;
    let (exchanges, seen) = observed::observe(&lab, || requests(&lab, "/io_read", count))?;
    let at_server = at_server.stop()?;
    let at_client = at_client.stop()?;
    seen.assert_nothing_lost();

    let address = server_address(&lab);
    let (mut s0, mut s1, mut c4k, mut connect) = (vec![], vec![], vec![], vec![]);
    for exchange in &exchanges {
        let client = exchange.local;
        let found = observed::request_of(&seen, client);
        let request = found.first().context("a request is missing")?;
        let inbound: Vec<Segment> = capture::of_client(&at_server, client)
            .into_iter()
            .filter(|s| s.from == client)
            .collect();
        // The handshake ends with the client's first segment that is no SYN.
        let ack = inbound.iter().find(|s| s.flags & capture::flags::SYN == 0);
        let data = inbound.iter().find(|s| s.payload > 0);
        let last = capture::of_client(&at_client, client)
            .into_iter()
            .rfind(|s| s.from == address && s.payload > 0);
        let turn = seen
            .client_turns
            .iter()
            .find(|turn| wire::address(turn.tuple.local, turn.tuple.local_port) == client)
            .context("the client's kernel saw nothing")?;
        let syn = capture::of_client(&at_client, client)
            .into_iter()
            .find(|s| s.from == client && s.flags & capture::flags::SYN != 0)
            .context("no SYN")?;
        let ack = ack.context("no ACK")?;
        s0.push(i128::from(request.s0) - (ack.at_ns - offset));
        connect.push(i128::from(request.s0 - exchange.c0) - (ack.at_ns - syn.at_ns));
        s1.push(i128::from(request.s1) - (data.context("no data")?.at_ns - offset));
        c4k.push(i128::from(turn.c4k) - (last.context("no answer")?.at_ns - offset));
    }
    judge("s0 against the final ACK in a capture", s0);
    judge("connect against SYN to final ACK in captures", connect);
    judge("s1 against the first data in a capture", s1);
    judge("c4k against the last answer in a capture", c4k);

    // Database round trips, connection by connection.
    let answered = |turn: &&agent_common::abi::Turn| turn.answered != 0;
    for first in seen.turns.iter().filter(|turn| turn.ordinal == 0) {
        let client = wire::address(first.tuple.local, first.tuple.local_port);
        let connection = capture::of_client(&at_server, client);
        let counted =
            seen.turns.iter().filter(|turn| turn.conn == first.conn).filter(answered).count();
        assert_eq!(counted, capture::turns(&connection, client), "turns of {client}");
        assert!(
            connection
                .iter()
                .all(|s| s.from.port() == postgres::PORT || s.to.port() == postgres::PORT)
        );
    }
    let connections = seen.turns.iter().filter(|turn| turn.ordinal == 0).count();
    assert_eq!(connections, exchanges.len(), "a connection per request");
    if let Some(impaired) = impaired {
        let outcome = impaired.clear()?;
        assert_eq!(outcome.dropped, 0, "{outcome:?}");
    }
    Ok(())
}

/// Where the worker's time goes, for servers whose waits are known.
#[test]
fn control_servers_wait_where_they_say() -> Result<()> {
    for (steps, expected) in
        [("cpu:50", class::CPU), ("sleep:50", class::SLEEP), ("lock:50", class::LOCK)]
    {
        let mut lab = lab(&format!("marks-{}", &steps[..3]))?;
        lab.start_server(&App::Control { steps: steps.to_owned() })?;
        let (_, seen) = observed::observe(&lab, || requests(&lab, "/", 20))?;
        seen.assert_nothing_lost();
        assert_eq!(seen.holds.len(), 20, "{steps}");
        let mut sums = [0u64; class::COUNT];
        for hold in &seen.holds {
            for (sum, ns) in sums.iter_mut().zip(hold.ns) {
                *sum += ns;
            }
        }
        let milliseconds = |index: usize| sums[index] as f64 / 20.0 / 1e6;
        println!("{steps}: {:?}", (0..class::COUNT).map(milliseconds).collect::<Vec<_>>());
        // Computing may wait for a processor on top; it is then no longer on it.
        let runs = if expected == class::CPU { milliseconds(class::RUNQUEUE) } else { 0.0 };
        let measured = milliseconds(expected) + runs;
        assert!(measured > 49.0, "{steps}: {measured} ms of {}", class::NAMES[expected]);
        assert_eq!(sums[class::DATABASE], 0, "{steps}");
        if expected == class::CPU {
            sums[class::CPU] += std::mem::take(&mut sums[class::RUNQUEUE]);
        }
        let largest = (0..class::COUNT).max_by_key(|&index| sums[index]);
        assert_eq!(largest, Some(expected), "{steps}");
    }
    Ok(())
}

/// A server in this process whose only client and database connections are older than the probes.
#[test]
fn connections_older_than_the_probes_are_followed() -> Result<()> {
    let lab = lab("marks-adopted")?;
    let service = SocketAddr::new(lab.network().server_v4().into(), server::PORT);
    let database = SocketAddr::new(lab.network().outside_v4().into(), postgres::PORT);
    let service_listener =
        observed::inside(&lab, Side::Server, || Ok(TcpListener::bind(service)?))?;
    let database_listener =
        observed::inside(&lab, Side::Outside, || Ok(TcpListener::bind(database)?))?;
    let to_service = observed::inside(&lab, Side::Outside, || Ok(TcpStream::connect(service)?))?;
    let to_database = observed::inside(&lab, Side::Server, || Ok(TcpStream::connect(database)?))?;
    let (at_service, _) = service_listener.accept()?;
    let (at_database, _) = database_listener.accept()?;
    let target = Target {
        netns_cookie: observed::netns_cookie(&lab, Side::Server)?,
        port: server::PORT,
        db_ports: vec![postgres::PORT],
        tgids: vec![std::process::id()],
        client_tgid: None,
    };
    let ((), seen) = observed::observe_target(&target, || {
        for _ in 0..3 {
            (&to_service).write_all(b"GET / HTTP/1.1\r\n\r\n")?;
            read_some(&at_service)?;
            (&to_database).write_all(b"Q\0\0\0\x0dselect 1\0")?;
            read_some(&at_database)?;
            std::thread::sleep(Duration::from_millis(30));
            (&at_database).write_all(b"Z\0\0\0\x05I")?;
            read_some(&to_database)?;
            (&at_service).write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
            read_some(&to_service)?;
        }
        Ok(())
    })?;
    seen.assert_nothing_lost();
    assert_eq!(seen.requests.len(), 3, "{:?}", seen.requests);
    for (ordinal, request) in (0..).zip(&seen.requests) {
        assert_eq!(request.ordinal, ordinal);
        assert_eq!((request.s0, request.s2), (0, 0));
        assert_ne!(request.flags & flag::ADOPTED, 0);
        assert_eq!((request.rx_bytes, request.tx_bytes), (18, 19));
        assert!(request.s1 <= request.s3 && request.s5 - request.s3 >= 30_000_000);
    }
    assert_eq!(seen.turns.len(), 3, "{:?}", seen.turns);
    for turn in &seen.turns {
        assert_ne!(turn.flags & flag::ADOPTED, 0);
        assert!(turn.answered - turn.sent_first >= 30_000_000);
        assert_eq!(&turn.payload[..turn.payload_len as usize], b"Q\0\0\0\x0dselect 1\0");
        assert_eq!(turn.answer[0], b'Z');
    }
    Ok(())
}

fn read_some(mut from: &TcpStream) -> Result<()> {
    let mut bytes = [0; 1024];
    anyhow::ensure!(from.read(&mut bytes)? > 0, "closed");
    Ok(())
}

#[test]
fn a_unix_socket_database_is_noticed() -> Result<()> {
    let mut lab = lab("marks-unix")?;
    let mut spec = PostgresSpec::study(1000);
    spec.unix_socket = true;
    lab.start_postgres(&spec)?;
    lab.start_server(&App::StudySyncUnixSocket)?;
    let (_, seen) = observed::observe(&lab, || requests(&lab, "/io_read", 20))?;
    let path = seen.unix_database.context("the Unix socket went unnoticed")?;
    assert!(path.contains("/.s.PGSQL."), "{path}");
    let database: u64 = seen.holds.iter().skip(5).map(|hold| hold.ns[class::DATABASE]).sum();
    assert!(database > 0, "waits on it are the database's");
    assert!(seen.turns.is_empty());
    Ok(())
}

/// Threads and processes that end are reported once and stop counting, whoever ends first.
#[test]
fn threads_that_ended_take_no_more_time() -> Result<()> {
    /// 40 short threads one after another; then a child whose main thread ends while others run.
    const SCRIPT: &str = "
import os, sys, threading, time
while not os.path.exists(sys.argv[1]):
    time.sleep(0.02)
for _ in range(40):
    t = threading.Thread(target=time.sleep, args=(0.005,)); t.start(); t.join()
if os.fork() == 0:
    for _ in range(5):
        threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
    time.sleep(0.2)
    os._exit(0)
os.wait()
print('done', flush=True)
time.sleep(30)
";
    let lab = lab("marks-threads")?;
    let log = lab.logs().join("threads.log");
    let go = lab.logs().join("go");
    let _ = std::fs::remove_file(&go);
    let mut process = tests::lab::Program::new(paths::python("python3")?)
        .args(["-I", "-S", "-c", SCRIPT])
        .arg(&go)
        .spawn(&log)?;
    let tgids = observed::family(process.pid())?;
    let target = Target { port: 9, tgids, ..Target::default() };
    let started = observed::now_ns();
    let ((), seen) = observed::observe_target(&target, || {
        std::fs::write(&go, "")?;
        process.wait_until(Duration::from_secs(20), || {
            std::fs::read_to_string(&log).is_ok_and(|text| text.contains("done"))
        })?;
        std::thread::sleep(Duration::from_millis(500));
        Ok(())
    })?;
    let lasted = observed::now_ns() - started;
    seen.assert_nothing_lost();
    let ended = |thread: &&agent_common::abi::ThreadTime| {
        !std::path::Path::new(&format!("/proc/{}/task/{}", thread.tgid, thread.tid)).exists()
    };
    assert!(seen.threads.len() >= 46, "{} threads", seen.threads.len());
    // The main thread, and nobody else, lives.
    assert_eq!(seen.threads.iter().filter(|thread| !ended(thread)).count(), 1);
    let mut tids: Vec<u32> = seen.threads.iter().map(|thread| thread.tid).collect();
    tids.sort_unstable();
    tids.dedup();
    assert_eq!(tids.len(), seen.threads.len(), "a thread was reported twice");
    for thread in seen.threads.iter().filter(ended) {
        let spent: u64 = thread.ns.iter().sum();
        assert!(spent < 1_500_000_000 && spent < lasted, "{thread:?}");
    }
    Ok(())
}
