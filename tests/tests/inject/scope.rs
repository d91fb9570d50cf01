//! Only some packets: those in scope wait, and the others do not.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use tests::lab::Side;

use super::support::{Bench, difference};

const DELAY: Duration = Duration::from_millis(50);
const ADD: &str = "--netns NS --engine nfqueue --delay 50ms";
/// Rounds of a measurement, of which the fastest counts: a machine that is busy for a moment makes
/// some late, and an engine that delays what it should not makes all late.
const ROUNDS: usize = 5;

/// What returns every datagram and every byte on one port. Ends when dropped.
struct Echo {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Echo {
    fn start(bench: &Bench, side: Side, address: IpAddr, port: u16) -> Result<Self> {
        let (udp, tcp) = bench.inside(side, || {
            anyhow::Ok((UdpSocket::bind((address, port))?, TcpListener::bind((address, port))?))
        })??;
        let stop = Arc::new(AtomicBool::new(false));
        udp.set_read_timeout(Some(Duration::from_millis(50)))?;
        tcp.set_nonblocking(true)?;
        let stopped = [Arc::clone(&stop), Arc::clone(&stop)];
        let [first, second] = stopped;
        let datagrams = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !first.load(Ordering::Relaxed) {
                if let Ok((len, from)) = udp.recv_from(&mut buffer) {
                    let _ = udp.send_to(&buffer[..len], from);
                }
            }
        });
        let streams = std::thread::spawn(move || {
            while !second.load(Ordering::Relaxed) {
                let Ok((mut stream, _)) = tcp.accept() else {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                };
                let _ = stream.set_nonblocking(false);
                let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
                let mut byte = [0];
                while matches!(stream.read(&mut byte), Ok(1)) && stream.write_all(&byte).is_ok() {}
            }
        });
        Ok(Self { stop, threads: vec![datagrams, streams] })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The fastest exchange of a datagram of this many bytes.
fn udp(bench: &Bench, side: Side, to: SocketAddr, bytes: usize) -> Result<Duration> {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    let socket = bench.inside(side, || UdpSocket::bind((any, 0)))??;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    fastest(|| {
        socket.send(&vec![7; bytes])?;
        let len = socket.recv(&mut [0; 4096]).context("no answer within 5 s")?;
        ensure!(len == bytes, "{len} bytes of {bytes}");
        Ok(())
    })
}

/// The fastest exchange of a byte on a connection.
fn tcp(bench: &Bench, side: Side, to: SocketAddr) -> Result<Duration> {
    let mut stream = bench.inside(side, || TcpStream::connect(to))??;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    fastest(|| {
        stream.write_all(b"x")?;
        Ok(stream.read_exact(&mut [0])?)
    })
}

/// The fastest echo of a ping. The kernel fills in what is left out of it.
fn ping(bench: &Bench, side: Side, to: IpAddr) -> Result<Duration> {
    let (family, protocol, request) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128),
    };
    let socket = bench.inside(side, || {
        std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0")?;
        anyhow::Ok(socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol)?)
    })??;
    let socket = UdpSocket::from(socket);
    socket.connect((to, 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    fastest(|| {
        socket.send(&[request, 0, 0, 0, 0, 0, 0, 0])?;
        socket.recv(&mut [0; 64]).context("no echo within 5 s")?;
        Ok(())
    })
}

fn fastest(mut exchange: impl FnMut() -> Result<()>) -> Result<Duration> {
    let mut all = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        exchange()?;
        all.push(start.elapsed());
    }
    all.into_iter().min().context("no round")
}

/// How many delays a time is: 0 where it is well below one.
fn delays(time: Duration) -> u32 {
    (time.as_secs_f64() / DELAY.as_secs_f64()) as u32
}

/// A place with ports 7001 and 7002 at the server, over IPv4 and IPv6, and at the outside.
struct Place {
    bench: Bench,
    _echoes: Vec<Echo>,
}

impl Place {
    fn new() -> Result<Self> {
        let bench = Bench::new()?;
        let network = &bench.network;
        let server: [IpAddr; 3] =
            [network.server_v4().into(), network.server_v6().into(), Ipv4Addr::LOCALHOST.into()];
        let outside: IpAddr = network.outside_v4().into();
        let mut echoes = Vec::new();
        for port in [7001, 7002] {
            for address in server {
                echoes.push(Echo::start(&bench, Side::Server, address, port)?);
            }
            echoes.push(Echo::start(&bench, Side::Outside, outside, port)?);
        }
        Ok(Self { bench, _echoes: echoes })
    }

    /// How many delays the exchanges take with these options in force: UDP to ports 7001 and 7002 of
    /// the server over IPv4 and IPv6, TCP to 7001, and UDP from the server to 7001 outside.
    fn delays(&self, options: &str) -> Result<[u32; 6]> {
        let before = self.bench.state()?;
        let agent = self.bench.add(&format!("{ADD} --dev eth0 {options}"))?;
        let network = &self.bench.network;
        let (v4, v6): (IpAddr, IpAddr) = (network.server_v4().into(), network.server_v6().into());
        let from_outside = |ip: IpAddr, port| udp(&self.bench, Side::Outside, (ip, port).into(), 1);
        let away = SocketAddr::from((network.outside_v4(), 7001));
        let times = [
            from_outside(v4, 7001)?,
            from_outside(v4, 7002)?,
            from_outside(v6, 7001)?,
            from_outside(v6, 7002)?,
            tcp(&self.bench, Side::Outside, (v4, 7001).into())?,
            udp(&self.bench, Side::Server, away, 1)?,
        ];
        println!("{options}: {times:?}\n{}", agent.told);
        agent.signal(Signal::SIGINT)?;
        let (code, said, complaint) = agent.end()?;
        ensure!((code, complaint.as_str()) == (Some(0), ""), "{options}: {said}{complaint}");
        ensure!(self.bench.state()? == before, "{}", difference(&before, &self.bench.state()?));
        Ok(times.map(delays))
    }
}

#[test]
fn what_leaves_is_picked_by_port_peer_and_protocol() -> Result<()> {
    let place = Place::new()?;
    let peer = place.bench.network.outside_v4();
    let own = place.bench.network.server_v4();
    for (options, expected) in [
        // To v4 7001, v4 7002, v6 7001, v6 7002, TCP v4 7001, and from the server.
        ("--port 7001".to_owned(), [1, 0, 1, 0, 1, 0]),
        ("--port 7001 --port 7002".to_owned(), [1, 1, 1, 1, 1, 0]),
        ("--peer-port 7001".to_owned(), [0, 0, 0, 0, 0, 1]),
        ("--port 7001 --protocol udp".to_owned(), [1, 0, 1, 0, 0, 0]),
        ("--protocol tcp".to_owned(), [0, 0, 0, 0, 1, 0]),
        ("--protocol icmp".to_owned(), [0; 6]),
        ("--peer 0.0.0.0/0".to_owned(), [1, 1, 0, 0, 1, 1]),
        ("--peer ::/0".to_owned(), [0, 0, 1, 1, 0, 0]),
        (format!("--peer {peer}"), [1, 1, 0, 0, 1, 1]),
        (format!("--peer {own}"), [0; 6]),
        (format!("--peer {peer} --peer ::/0 --port 7002"), [0, 1, 0, 1, 0, 0]),
        ("--not-port 7001".to_owned(), [0, 1, 0, 1, 0, 1]),
        ("--not-peer ::/0 --not-protocol tcp".to_owned(), [1, 1, 0, 0, 0, 1]),
        ("--port 7001 --not-peer ::/0".to_owned(), [1, 0, 0, 0, 1, 0]),
        ("--not-peer-port 7001".to_owned(), [1, 1, 1, 1, 1, 0]),
    ] {
        let delays = place.delays(&options)?;
        assert_eq!(delays, expected, "{options}");
    }
    Ok(())
}

#[test]
fn what_arrives_is_picked_by_the_same_words() -> Result<()> {
    let place = Place::new()?;
    let peer = place.bench.network.outside_v4();
    for (direction, times) in [("ingress", 1), ("both", 2)] {
        for (options, expected) in [
            ("--port 7001".to_owned(), [1, 0, 1, 0, 1, 0]),
            ("--peer-port 7001".to_owned(), [0, 0, 0, 0, 0, 1]),
            (format!("--peer {peer} --protocol tcp"), [0, 0, 0, 0, 1, 0]),
            ("--peer ::/0 --not-port 7002".to_owned(), [0, 0, 1, 0, 0, 0]),
        ] {
            let delays = place.delays(&format!("{options} --direction {direction}"))?;
            assert_eq!(delays, expected.map(|count| count * times), "{options} {direction}");
        }
    }
    Ok(())
}

#[test]
fn pings_and_pings_of_ipv6_are_icmp() -> Result<()> {
    let place = Place::new()?;
    let network = &place.bench.network;
    let all: [IpAddr; 2] = [network.server_v4().into(), network.server_v6().into()];
    for (options, expected) in
        [("--protocol icmp", 1), ("--not-protocol icmp", 0), ("--protocol tcp", 0), ("--port 1", 0)]
    {
        let _agent = place.bench.add(&format!("{ADD} --dev eth0 {options}"))?;
        for address in all {
            let time = ping(&place.bench, Side::Outside, address)?;
            assert_eq!(delays(time), expected, "{options} {address}: {time:?}");
        }
    }
    Ok(())
}

/// On loopback each packet leaves and arrives, and either end may be ours.
#[test]
fn on_loopback_either_end_is_ours() -> Result<()> {
    let place = Place::new()?;
    for (options, expected) in [
        ("--port 7001", [2, 0, 2]),
        ("--peer-port 7001", [2, 0, 2]),
        ("--not-port 7001", [0, 2, 0]),
        ("--protocol tcp", [0, 0, 2]),
        ("--peer 127.0.0.0/8 --not-protocol tcp", [2, 2, 0]),
    ] {
        let _agent = place.bench.add(&format!("{ADD} --dev lo {options}"))?;
        let to = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let times = [
            udp(&place.bench, Side::Server, to(7001), 1)?,
            udp(&place.bench, Side::Server, to(7002), 1)?,
            tcp(&place.bench, Side::Server, to(7001))?,
        ];
        assert_eq!(times.map(delays), expected, "{options}: {times:?}");
    }
    Ok(())
}

/// Only the first fragment of a datagram has ports. It waits, and so does the datagram; where the
/// ports are left alone, all of it is.
#[test]
fn a_datagram_in_fragments_waits_as_a_whole() -> Result<()> {
    let place = Place::new()?;
    let network = &place.bench.network;
    let all: [IpAddr; 2] = [network.server_v4().into(), network.server_v6().into()];
    for (options, expected) in [
        ("--port 7001", 1),
        ("--port 7001 --direction both", 2),
        ("--port 7002", 0),
        ("--not-port 7001", 0),
        ("--not-port 7001 --direction both", 0),
        ("--not-port 7002", 1),
        ("--protocol udp --direction ingress", 1),
        ("--protocol tcp --direction both", 0),
    ] {
        let _agent = place.bench.add(&format!("{ADD} --dev eth0 {options}"))?;
        for address in all {
            let time = udp(&place.bench, Side::Outside, (address, 7001).into(), 4000)?;
            assert_eq!(delays(time), expected, "{options} {address}: {time:?}");
        }
    }
    Ok(())
}

/// Held packets and their count are those of the filter, and nobody else's.
#[test]
fn the_receipt_counts_what_is_in_scope() -> Result<()> {
    let place = Place::new()?;
    let to = |port| SocketAddr::from((place.bench.network.server_v4(), port));
    let _agent = place.bench.add(&format!("{ADD} --dev eth0 --port 7001"))?;
    udp(&place.bench, Side::Outside, to(7001), 1)?;
    udp(&place.bench, Side::Outside, to(7002), 1)?;
    let listed = place.bench.listed()?;
    let line = listed.first().context("nothing is listed")?;
    assert_eq!(line["receipt"]["packets"], ROUNDS as u64, "{line}");
    assert_eq!(line["dropped"], 0, "{line}");
    assert_eq!(line["filter"], serde_json::json!({ "only": { "ports": [7001] }, "not": {} }));
    assert_eq!(line["description"], "delayed by 50ms (packets with our port 7001)");
    Ok(())
}

/// Listens, and asks its database for every request: `python3 -c SERVER PORT DATABASE DATABASE_PORT`.
const SERVER: &str = "
import socket, sys
listener = socket.create_server(('0.0.0.0', int(sys.argv[1])))
while True:
    client, _ = listener.accept()
    with client, socket.create_connection((sys.argv[2], int(sys.argv[3]))) as database:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        database.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while request := client.recv(1):
            if request == b'q':
                database.sendall(request)
                request = database.recv(1)
            client.sendall(request)
";

/// The two halves of a delay: a request that asks the database waits where its connection is
/// impaired, one that does not waits only where the client's is.
#[test]
fn a_servers_clients_and_its_database_are_told_apart() -> Result<()> {
    let place = Place::new()?;
    let bench = &place.bench;
    let database = bench.network.outside_v4();
    let mut server = std::process::Command::new(tests::lab::paths::system("ip")?)
        .args(["netns", "exec", &bench.server()])
        .arg(tests::lab::paths::system("python3")?)
        .args(["-I", "-c", SERVER, "8000", &database.to_string(), "7001"])
        .spawn()?;
    let result = told_apart(bench);
    server.kill()?;
    server.wait()?;
    result
}

fn told_apart(bench: &Bench) -> Result<()> {
    let to = SocketAddr::from((bench.network.server_v4(), 8000));
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut stream = loop {
        match bench.inside(Side::Outside, || TcpStream::connect(to))? {
            Ok(stream) => break stream,
            Err(error) => ensure!(Instant::now() < deadline, "no server: {error}"),
        }
    };
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut ask = |what: &[u8; 1]| {
        fastest(|| {
            stream.write_all(what)?;
            Ok(stream.read_exact(&mut [0])?)
        })
    };
    let before = bench.state()?;
    // So that its connection to the database is there to be seen.
    assert_eq!([ask(b"q")?, ask(b"n")?].map(delays), [0, 0]);
    for (options, query, no_query, told) in [
        ("--service-db 8000 --db-port 7001", 1, 0, "python3) (1 open now, to"),
        ("--service-clients 8000", 1, 1, "clients of 0.0.0.0:8000 (python3)"),
        ("--service-db 8000", 0, 0, "(none is open now)"),
        ("--service-db 8000 --db-port 7001 --not-peer ::/0 --direction both", 2, 0, "(1 open now"),
        ("--service-clients 8000 --not-peer 0.0.0.0/0", 0, 0, "clients of"),
        ("--not-port 1", 2, 1, "all packets but"),
    ] {
        let agent = bench.add(&format!("{ADD} --dev eth0 {options}"))?;
        let times = [ask(b"q")?, ask(b"n")?];
        println!("{options}: {times:?}\n{}", agent.told);
        assert_eq!(times.map(delays), [query, no_query], "{options}: {times:?}");
        ensure!(agent.told.contains(told), "{options}: {}", agent.told);
    }
    for (options, words) in [
        ("--dev lo --service-db 8000 --db-port 7001", "go through `eth0`, not `lo`"),
        ("--dev eth0 --service-clients 7999", "nobody listens on port 7999"),
        ("--dev eth0 --service-db 7999", "0.0.0.0:8000 (python3)"),
    ] {
        bench.wait_until_clean(&before)?;
        let output = bench.run(&format!("add {ADD} {options}"))?;
        let complaint = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(1), "{options}: {complaint}");
        ensure!(complaint.contains(words), "{options}: {complaint}");
        assert_eq!(difference(&before, &bench.state()?), "", "{options}");
    }
    Ok(())
}
