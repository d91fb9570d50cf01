//! Shapes of service beside the study's: buffers in several parts, connections older than the
//! probes, kernels without an entry hook, drivers that wait through epoll, requests that change
//! hands.

use std::{
    io::{IoSlice, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use agent::{
    model::{
        plan,
        postgres::{Decoded, Decoder},
    },
    sys::{facts, observe::Target},
};
use agent_common::{
    abi::{class, flag},
    wire::DbKind,
};
use anyhow::{Context as _, Result, ensure};
use tests::{
    lab::{Lab, Program, Side, paths, postgres, server},
    observed,
};

use super::{lab, read_some};

/// A service in this process, one client of it and its one database, connected before any probe is.
struct Here {
    lab: Lab,
    to_service: TcpStream,
    at_service: TcpStream,
    to_database: TcpStream,
    at_database: TcpStream,
}

impl Here {
    fn new(name: &str) -> Result<Self> {
        let lab = lab(name)?;
        let service = SocketAddr::new(lab.network().server_v4().into(), server::PORT);
        let database = SocketAddr::new(lab.network().outside_v4().into(), postgres::PORT);
        let listen = |side, at| observed::inside(&lab, side, move || Ok(TcpListener::bind(at)?));
        let connect = |side, to| observed::inside(&lab, side, move || Ok(TcpStream::connect(to)?));
        let (services, databases) =
            (listen(Side::Server, service)?, listen(Side::Outside, database)?);
        let to_service = connect(Side::Outside, service)?;
        let to_database = connect(Side::Server, database)?;
        let (at_service, _) = services.accept()?;
        let (at_database, _) = databases.accept()?;
        Ok(Self { lab, to_service, at_service, to_database, at_database })
    }

    fn target(&self) -> Result<Target> {
        Ok(Target {
            netns_cookie: observed::netns_cookie(&self.lab, Side::Server)?,
            port: server::PORT,
            db_ports: vec![postgres::PORT],
            tgids: vec![std::process::id()],
            client_tgid: None,
        })
    }

    /// One question to the database, which takes 20 ms.
    fn ask(&self, parts: &[&[u8]]) -> Result<()> {
        let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let sent = (&self.to_database).write_vectored(&slices)?;
        ensure!(sent == parts.iter().map(|part| part.len()).sum::<usize>(), "sent {sent}");
        read_some(&self.at_database)?;
        std::thread::sleep(Duration::from_millis(20));
        (&self.at_database).write_all(b"Z\0\0\0\x05I")?;
        read_some(&self.to_database)
    }
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX).to_be_bytes();
    [&[kind][..], &length, body].concat()
}

/// node-postgres writes each message of the extended protocol from a buffer of its own. What lies
/// behind such a buffer in its memory was never sent and must not be seen.
#[test]
fn a_question_in_several_buffers_is_read_to_the_end_of_each() -> Result<()> {
    let here = Here::new("marks-iovec")?;
    let statement = b"named\0SELECT title FROM posts WHERE id = $1\0\0\0";
    let whole = [
        message(b'P', statement),
        message(b'B', b"\0named\0\0\0\0\x01\0\0\0\x0242\0\0"),
        message(b'D', b"P\0"),
        message(b'E', b"\0\0\0\0\0"),
        message(b'S', b""),
    ];
    let secret = b"Q\0\0\0\x20select 'the secret behind it'\0";
    // Each buffer is the front of a larger one.
    let larger: Vec<Vec<u8>> =
        whole.iter().map(|part| [part.as_slice(), secret].concat()).collect();
    let parts: Vec<&[u8]> =
        larger.iter().zip(&whole).map(|(larger, part)| &larger[..part.len()]).collect();
    let bind_only: Vec<&[u8]> = parts[1..].to_vec();
    let one = [&larger[0][..whole[0].len()]];
    let (_, seen) = observed::observe_target(&here.target()?, || {
        here.ask(&parts)?;
        here.ask(&bind_only)?;
        here.ask(&one)
    })?;
    seen.assert_nothing_lost();
    assert_eq!(seen.turns.len(), 3, "{:?}", seen.turns);
    let payload =
        |index: usize| &seen.turns[index].payload[..seen.turns[index].payload_len as usize];
    assert_eq!(payload(0), whole[..4].concat(), "four buffers are looked at");
    assert_eq!(payload(1), whole[1..].concat());
    assert_eq!(payload(2), whole[0]);
    let mut decoder = Decoder::default();
    for turn in &seen.turns {
        let statement = Some("SELECT title FROM posts WHERE id = ?".into());
        assert_eq!(decoder.turn(turn), Decoded::RoundTrip { kind: DbKind::Query, statement });
    }
    assert_eq!(decoder.oddities().undecoded, 0);
    Ok(())
}

/// A connection of which neither the handshake nor the accept was seen has no s0 and no s2, whatever
/// asks for its peer's name later, and its end is no further request.
#[test]
fn a_name_asked_for_late_is_no_accept_and_an_end_no_request() -> Result<()> {
    let mut here = Here::new("marks-late")?;
    let ((), seen) = observed::observe_target(&here.target()?, || {
        for _ in 0..2 {
            (&here.to_service).write_all(b"GET / HTTP/1.1\r\n\r\n")?;
            read_some(&here.at_service)?;
            // This is getpeername().
            here.at_service.peer_addr()?;
            (&here.at_service).write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
            read_some(&here.to_service)?;
        }
        let (one, other) = replaceable()?;
        drop(std::mem::replace(&mut here.at_service, one));
        drop(std::mem::replace(&mut here.to_service, other));
        std::thread::sleep(Duration::from_millis(100));
        Ok(())
    })?;
    seen.assert_nothing_lost();
    let marks: Vec<_> = seen.requests.iter().map(|r| (r.ordinal, r.s0, r.s2, r.s3 != 0)).collect();
    assert_eq!(marks, [(0, 0, 0, true), (1, 0, 0, true)]);
    assert!(seen.holds.is_empty(), "{:?}", seen.holds);
    Ok(())
}

/// Two sockets to stand in the place of those that are closed.
fn replaceable() -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let one = TcpStream::connect(listener.local_addr()?)?;
    Ok((one, listener.accept()?.0))
}

/// Without the entry hook of send a round trip begins late, but is still one.
#[test]
fn round_trips_are_told_apart_without_the_entry_of_send() -> Result<()> {
    let here = Here::new("marks-no-entry")?;
    let mut plan = plan::plan(&facts::gather()?);
    let entries = ["tcp_sendmsg_locked", "tcp_sendmsg_entry"];
    let all = plan.hooks.len();
    plan.hooks.retain(|hook| !entries.contains(&hook.program));
    assert_eq!(plan.hooks.len(), all - 1);
    let question = message(b'Q', b"select 1\0");
    let ((), seen) = observed::observe_plan(&here.target()?, &plan, || {
        (0..3).try_for_each(|_| here.ask(&[&question]))
    })?;
    seen.assert_nothing_lost();
    assert_eq!(seen.turns.len(), 3, "{:?}", seen.turns);
    for turn in &seen.turns {
        assert_ne!(turn.flags & flag::S4_AT_RETURN, 0);
        let took = turn.answered - turn.sent_first;
        assert!((19_000_000..200_000_000).contains(&took), "{took} ns");
        assert_eq!(&turn.payload[..turn.payload_len as usize], question);
    }
    Ok(())
}

/// A service in Python's own words, for which this process is client and database.
fn scripted(name: &str, script: &str, count: usize) -> Result<observed::Seen> {
    let lab = lab(name)?;
    let network = lab.network();
    let address = SocketAddr::new(network.server_v4().into(), server::PORT);
    let database = SocketAddr::new(network.outside_v4().into(), postgres::PORT);
    let databases =
        observed::inside(&lab, Side::Outside, move || Ok(TcpListener::bind(database)?))?;
    // Every question is answered after 40 ms.
    std::thread::spawn(move || {
        for stream in databases.incoming().flatten() {
            std::thread::spawn(move || {
                while read_some(&stream).is_ok() {
                    std::thread::sleep(Duration::from_millis(40));
                    if (&stream).write_all(b"Z\0\0\0\x05I").is_err() {
                        break;
                    }
                }
            });
        }
    });
    let log = lab.logs().join("service.log");
    let mut process = Program::new(paths::python("python3")?)
        .args(["-I", "-S", "-u", "-c", script])
        .args([address.ip().to_string(), address.port().to_string()])
        .args([database.ip().to_string(), database.port().to_string()])
        .within(network, Side::Server)
        .spawn(&log)?;
    process.wait_until(Duration::from_secs(20), || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.contains("ready"))
    })?;
    let target = Target {
        netns_cookie: observed::netns_cookie(&lab, Side::Server)?,
        port: server::PORT,
        db_ports: vec![postgres::PORT],
        tgids: observed::family(process.pid())?,
        client_tgid: None,
    };
    let ((), seen) = observed::observe_target(&target, || {
        observed::inside(&lab, Side::Outside, || {
            for _ in 0..count {
                observed::get(address, "/").context("the scripted service")?;
                std::thread::sleep(Duration::from_millis(150));
            }
            Ok(())
        })
    })?;
    seen.assert_nothing_lost();
    Ok(seen)
}

const PRELUDE: &str = "
import select, socket, sys, threading, time, queue
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
database = (sys.argv[3], int(sys.argv[4]))
ask, answer = b'Q\\0\\0\\0\\x0dselect 1\\0', b'HTTP/1.1 200 OK\\r\\n\\r\\n'
print('ready', flush=True)
";

/// As psycopg 3 does: an epoll set for the one connection, in a worker that does nothing else.
#[test]
fn a_worker_that_waits_for_its_database_through_epoll_is_held() -> Result<()> {
    let script = format!(
        "{PRELUDE}
db = socket.create_connection(database)
while True:
    conn, _ = listener.accept()
    conn.recv(4096)
    for _ in range(2):
        db.sendall(ask)
        ready = select.epoll()
        ready.register(db.fileno(), select.EPOLLIN | select.EPOLLONESHOT)
        ready.poll(5)
        ready.close()
        db.recv(4096)
    conn.sendall(answer)
    conn.close()
"
    );
    let seen = scripted("marks-epoll", &script, 5)?;
    // Where fexit serves s2, an accept that was waiting when the probes came is not seen to return.
    assert!(seen.holds.len() >= 4, "{:?}", seen.holds);
    for hold in &seen.holds {
        let ms = hold.ns.map(|ns| ns / 1_000_000);
        assert!(ms[class::DATABASE] >= 79 && ms[class::IDLE] == 0, "{ms:?}");
    }
    Ok(())
}

/// A loop that accepts, reads and asks the database without having slept in between, and then
/// waits on the set that holds everything: it waits for work.
#[test]
fn a_loop_that_waits_for_its_database_among_others_is_idle() -> Result<()> {
    let script = format!(
        "{PRELUDE}
db = socket.create_connection(database)
loop = select.epoll()
loop.register(listener.fileno(), select.EPOLLIN)
loop.register(db.fileno(), select.EPOLLIN)
conn = None
while True:
    for fd, _ in loop.poll():
        if fd == listener.fileno():
            conn, _ = listener.accept()
            conn.recv(4096)
            db.sendall(ask)
        else:
            db.recv(4096)
            conn.sendall(answer)
            conn.close()
"
    );
    let seen = scripted("marks-loop", &script, 5)?;
    assert_eq!(seen.turns.iter().filter(|turn| turn.answered != 0).count(), 5);
    let ns: u64 = seen.threads.iter().map(|thread| thread.ns[class::DATABASE]).sum();
    assert_eq!(ns, 0, "{:?}", seen.threads);
    let idle: u64 = seen.threads.iter().map(|thread| thread.ns[class::IDLE]).sum();
    assert!(idle > 5 * 150_000_000, "{:?}", seen.threads);
    Ok(())
}

/// The thread that read a request waits for its next one while another thread answers: from then on
/// its wait is no lock's. One that is still being answered elsewhere holds it.
#[test]
fn a_request_that_changed_hands_is_not_in_hand_any_more() -> Result<()> {
    let script = format!(
        "{PRELUDE}
jobs, done = queue.SimpleQueue(), queue.SimpleQueue()
def answering():
    while True:
        conn = jobs.get()
        conn.sendall(answer)
        conn.close()
        time.sleep(0.1)
        done.put(None)
threading.Thread(target=answering, daemon=True).start()
while True:
    conn, _ = listener.accept()
    conn.recv(4096)
    jobs.put(conn)
    del conn
    time.sleep(0.03)
    done.get()
"
    );
    let seen = scripted("marks-hands", &script, 5)?;
    let reader = seen.threads.iter().find(|thread| thread.requests == 5).context("no reader")?;
    let ms = reader.ns.map(|ns| ns / 1_000_000);
    assert!(ms[class::LOCK] < 20 && ms[class::IDLE] > 5 * 60, "{ms:?}");
    Ok(())
}
