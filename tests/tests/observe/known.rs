//! Requests of which the test knows every wait.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::{
    lab::{App, Lab, PostgresSpec, Side, paths, postgres, server},
    observed::{self, now_ns},
};

use crate::support::{self, Observe};

const REQUESTS: usize = 30;
const IN_QUEUE: Duration = Duration::from_millis(50);
const UNREAD: Duration = Duration::from_millis(10);
const SERVICE: Duration = Duration::from_millis(20);
/// Of each of the two statements of a request.
const DATABASE: Duration = Duration::from_millis(3);
const STATEMENT: &[u8] = b"select * from posts where id = 77";
/// Escape sequences, a stray control character and bytes that are no UTF-8.
const HOSTILE: &[u8] = b"select \x1b[2J\x9b31m \"\xff\xfe\x07\"";

/// What the server's own clock says of one request, nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Truth {
    in_queue: u64,
    unread: u64,
    service: u64,
}

/// One statement and its answer, on a connection that speaks like Postgres.
fn ask(database: &mut TcpStream, sql: &[u8]) -> Result<()> {
    let mut message = vec![b'Q'];
    message.extend((sql.len() as u32 + 5).to_be_bytes());
    message.extend(sql);
    message.push(0);
    database.write_all(&message)?;
    database.read_exact(&mut [0; 6])?;
    Ok(())
}

/// Takes one connection after another, each 50 ms after it was established (`established` tells
/// when), and reads 10 ms later.
fn serve(
    listener: &TcpListener,
    mut database: TcpStream,
    established: &mpsc::Receiver<u64>,
) -> Result<Vec<Truth>> {
    let mut truths = Vec::new();
    for since in established {
        std::thread::sleep(IN_QUEUE);
        let (mut stream, _) = listener.accept()?;
        let accepted = now_ns();
        std::thread::sleep(UNREAD);
        ensure!(stream.read(&mut [0; 1024])? > 0, "no request");
        let read = now_ns();
        std::thread::sleep(SERVICE);
        ask(&mut database, STATEMENT)?;
        ask(&mut database, HOSTILE)?;
        stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
        let sent = now_ns();
        truths.push(Truth {
            in_queue: accepted - since,
            unread: read - accepted,
            service: sent - read,
        });
    }
    Ok(truths)
}

fn answer(listener: &TcpListener) -> Result<()> {
    let (mut stream, _) = listener.accept()?;
    while stream.read(&mut [0; 1024])? > 0 {
        std::thread::sleep(DATABASE);
        stream.write_all(b"Z\0\0\0\x05I")?;
    }
    Ok(())
}

/// Within a millisecond or three per cent.
fn agrees(what: &str, told: &Value, truths: &[Truth], of: fn(&Truth) -> u64) -> Result<()> {
    let truth = truths.iter().map(of).sum::<u64>() as f64 / truths.len() as f64 / 1e6;
    let mean = told["mean_ms"].as_f64().with_context(|| format!("no {what}: {told}"))?;
    println!("{what}: mean {mean:.3} ms, by the server's own clock {truth:.3} ms");
    ensure!(told["count"] == truths.len(), "{what}: {told}, not {}", truths.len());
    ensure!((mean - truth).abs() <= (0.03 * truth).max(1.0), "{what}: {mean} ms, not {truth} ms");
    let largest = truths.iter().map(of).max().unwrap_or(0) as f64 / 1e6;
    let max = told["max_ms"].as_f64().context("no largest")?;
    ensure!((max - largest).abs() <= (0.03 * largest).max(1.0), "{what}: {max}, not {largest}");
    Ok(())
}

#[test]
fn waits_and_counts_are_as_the_test_made_them() -> Result<()> {
    let lab = Lab::new(paths::scratch().join("logs/observe-known"))?;
    let service = SocketAddr::new(lab.network().server_v4().into(), server::PORT);
    let database = SocketAddr::new(lab.network().outside_v4().into(), postgres::PORT);
    let listener = observed::inside(&lab, Side::Server, || Ok(TcpListener::bind(service)?))?;
    let at_database = observed::inside(&lab, Side::Outside, || Ok(TcpListener::bind(database)?))?;
    let me = std::process::id();
    let observe = Observe::start(&format!("--pid {me} --port {} --json", server::PORT))?;

    let truths = std::thread::scope(|scope| -> Result<Vec<Truth>> {
        let (tell, established) = mpsc::channel();
        scope.spawn(|| answer(&at_database));
        let to_database =
            observed::inside(&lab, Side::Server, || Ok(TcpStream::connect(database)?))?;
        let listener = &listener;
        let serving = scope.spawn(move || serve(listener, to_database, &established));
        observed::inside(&lab, Side::Outside, move || {
            for _ in 0..REQUESTS {
                let mut stream = TcpStream::connect(service)?;
                let since = now_ns();
                stream.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
                tell.send(since)?;
                ensure!(stream.read_to_end(&mut Vec::new())? > 0, "no answer");
            }
            Ok(())
        })?;
        serving.join().map_err(|_| anyhow::anyhow!("the server panicked"))?
    })?;
    observe.signal(Signal::SIGINT)?;
    let (code, out, log) = observe.end()?;
    assert_eq!(code, Some(0), "{log}");
    assert!(!out.chars().any(|c| c.is_control() && c != '\n'), "{out:?}");
    let (windows, summary) = support::parse(&out)?;
    assert_eq!(summary["ended"], "interrupted");

    let stages = &summary["stages"];
    agrees("accept_queue", &stages["accept_queue"], &truths, |truth| truth.in_queue)?;
    agrees("unread", &stages["unread"], &truths, |truth| truth.unread)?;
    agrees("service", &stages["service"], &truths, |truth| truth.service)?;
    for count in ["answered", "read"] {
        assert_eq!(summary["requests"][count], REQUESTS, "{summary:#}");
    }
    assert_eq!(summary["connections"]["accepted"], REQUESTS);
    assert_eq!(summary["lost_events"], 0, "{summary:#}");
    assert_eq!(summary["unseen"], serde_json::json!({ "accept": 0, "first_byte": 0, "answer": 0 }));
    assert_eq!(summary["ambiguous"]["shared_thread"], 0);
    assert_eq!(summary["accept_queue_depth"]["max"], 1);

    let lines = summary["database"]["by_statement"].as_array().context("no statements")?;
    let statements: Vec<(&str, u64, f64)> = lines
        .iter()
        .filter(|line| line["kind"] == "query")
        .map(|line| {
            assert_eq!(line["per_request"], 1.0, "{line}");
            let text = line["statement"].as_str().unwrap_or_default();
            let (count, mean) = (line["count"].as_u64(), line["mean_ms"].as_f64());
            (text, count.unwrap_or(0), mean.unwrap_or(0.0))
        })
        .collect();
    assert_eq!(statements.len(), 2, "{lines:#?}");
    for (text, count, mean) in &statements {
        assert_eq!(*count, REQUESTS as u64, "{text}");
        assert!(*mean >= DATABASE.as_secs_f64() * 1e3, "{text}: {mean}");
        assert!(!text.contains("77"), "a literal is left: {text}");
    }

    // Every window's counts sum to the whole.
    let sum = |pointer: &str| -> u64 {
        windows.iter().filter_map(|window| window.pointer(pointer)?.as_u64()).sum()
    };
    assert!(windows.len() >= 2, "a window for every second");
    for pointer in ["/requests/answered", "/connections/accepted", "/database/round_trips"] {
        assert_eq!(
            Some(sum(pointer)),
            summary.pointer(pointer).and_then(Value::as_u64),
            "{pointer}"
        );
    }

    let slowest = &summary["slowest"][0];
    let slowest_truth = truths.iter().map(|t| t.in_queue + t.unread + t.service).max().unwrap_or(0);
    let total = slowest["total_ms"].as_f64().context("no slowest request")?;
    assert!((total - slowest_truth as f64 / 1e6).abs() <= 3.0, "{total}, not {slowest_truth} ns");
    assert_eq!(slowest["database"].as_array().map(Vec::len), Some(2), "{slowest:#}");
    Ok(())
}

#[test]
fn a_django_servers_round_trips_are_named() -> Result<()> {
    const GETS: u64 = 5;
    let mut lab = Lab::new(paths::scratch().join("logs/observe-django"))?;
    lab.start_postgres(&PostgresSpec::study(1_000))?;
    lab.start_server(&App::StudySync)?;
    lab.get("/io_read")?;
    let pid = lab.server().context("no server runs")?.process().pid();
    let observe = Observe::start(&format!("--pid {pid} --json"))?;
    assert!(observe.told.contains("(gunicorn)"), "{}", observe.told);
    for _ in 0..GETS {
        lab.get("/io_read")?;
    }
    std::thread::sleep(Duration::from_millis(300));
    observe.signal(Signal::SIGTERM)?;
    let (code, out, log) = observe.end()?;
    assert_eq!(code, Some(0), "{log}");
    let (_, summary) = support::parse(&out)?;
    assert_eq!(summary["requests"]["answered"], GETS, "{summary:#}");
    assert_eq!(summary["lost_events"], 0, "{summary:#}");
    assert_eq!(summary["database"]["per_request"], 8.0, "{summary:#}");
    let kinds = summary["database"]["by_statement"].as_array().context("no statements")?;
    for kind in ["tcp_connect", "ssl_request", "startup", "auth", "session_setup", "query"] {
        assert!(kinds.iter().any(|line| line["kind"] == kind), "no {kind}: {kinds:#?}");
    }
    let worker = &summary["threads"][0];
    assert_eq!(worker["role"], "worker", "{summary:#}");
    assert!(worker["time"]["database"].as_f64().is_some_and(|share| share > 0.0), "{worker}");
    let slowest = &summary["slowest"][0];
    assert_eq!(slowest["database"].as_array().map(Vec::len), Some(8), "{slowest:#}");
    Ok(())
}
