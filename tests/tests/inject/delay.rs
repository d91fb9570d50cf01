//! What packets get.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use agent::model::impairment::Direction;
use agent::model::netem::NetemOptions;
use agent::sys::nfqueue::Delay;
use anyhow::{Context as _, Result, ensure};
use tests::lab::Side;

use super::support::{Bench, Echo, median, round_trips};

/// What the median of a delayed round trip may differ by.
const TOLERANCE: Duration = Duration::from_millis(1);

/// Measures up to five times. A guest that its host stops for milliseconds measures that once in a
/// while; an engine that is off is off every time.
fn settled(measure: impl Fn() -> Result<()>) -> Result<()> {
    const ROUNDS: usize = 5;
    let mut last = Ok(());
    for round in 0..ROUNDS {
        last = measure();
        match &last {
            Ok(()) => break,
            Err(error) => println!("round {round}: {error:#}"),
        }
    }
    last
}

/// How much later than `sleep` an undelayed server that sleeps so long answers, at the median.
fn sleeping_echo(bench: &Bench, address: IpAddr, sleep: Duration) -> Result<Duration> {
    const TIMES: u32 = 21;
    let socket = bench.inside(Side::Server, || UdpSocket::bind((address, 0)))??;
    let to = socket.local_addr()?;
    let server = thread::spawn(move || -> std::io::Result<()> {
        for _ in 0..TIMES {
            let mut buffer = [0; 64];
            let (length, from) = socket.recv_from(&mut buffer)?;
            thread::sleep(sleep);
            socket.send_to(&buffer[..length], from)?;
        }
        Ok(())
    });
    let times = round_trips(bench, Side::Outside, to, TIMES)?;
    server.join().map_err(|_| anyhow::anyhow!("the sleeping server panicked"))??;
    Ok(median(&times).saturating_sub(sleep))
}

/// Far from none and from two delays: how often something waits, not how exactly.
const ONCE: Duration = Duration::from_millis(15);

#[test]
fn udp_round_trips_over_v4_and_v6_take_the_delay_longer() -> Result<()> {
    settled(udp_round_trips)
}

fn udp_round_trips() -> Result<()> {
    let bench = Bench::new()?;
    let addresses: [IpAddr; 2] =
        [bench.network.server_v4().into(), bench.network.server_v6().into()];
    for address in addresses {
        let echo = Echo::start(&bench, Side::Server, address)?;
        let plain = median(&round_trips(&bench, Side::Outside, echo.address, 200)?);
        let agent = bench.add("--dev eth0 --netns NS --delay 100ms --engine nfqueue")?;
        let times = round_trips(&bench, Side::Outside, echo.address, 41)?;
        let lines = bench.listed()?;
        agent.signal(nix::sys::signal::Signal::SIGINT)?;
        agent.end()?;

        let delayed = median(&times);
        // An echo that sleeps for the same time, right after: what it is late by, the machine is.
        let late = sleeping_echo(&bench, address, Duration::from_millis(100))?;
        println!(
            "{address}: plain {plain:?}, delayed {delayed:?}, longest {:?}, a sleep {late:?} late",
            times[40]
        );
        let error = delayed.abs_diff(Duration::from_millis(100) + late);
        ensure!(error <= TOLERANCE, "median off by {error:?}");
        ensure!(times[0] >= Duration::from_millis(100), "early: {:?}", times[0]);
        let receipt = &lines[0]["receipt"];
        let p50 = Duration::from_nanos(receipt["p50_ns"].as_u64().context("no median")?);
        ensure!(p50.abs_diff(Duration::from_millis(100)) <= TOLERANCE, "{receipt}");
        ensure!(receipt["packets"].as_u64().context("no count")? >= 41, "{receipt}");
        ensure!(lines[0]["dropped"] == 0, "{}", lines[0]);
    }
    Ok(())
}

/// How long a TCP connection to the server's side, and then each of ten answers, took. The server
/// sleeps before each answer.
fn tcp_exchange(bench: &Bench, port: u16, sleep: Duration) -> Result<(Duration, Vec<Duration>)> {
    let address = (bench.network.server_v4(), port);
    let listener = bench.inside(Side::Server, || TcpListener::bind(address))??;
    let server = thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        let mut byte = [0];
        while stream.read(&mut byte)? == 1 {
            thread::sleep(sleep);
            stream.write_all(&byte)?;
        }
        Ok(())
    });
    let start = Instant::now();
    let mut stream = bench.inside(Side::Outside, || TcpStream::connect(address))??;
    let connect = start.elapsed();
    stream.set_nodelay(true)?;
    let mut times = Vec::new();
    for _ in 0..10 {
        let start = Instant::now();
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])?;
        times.push(start.elapsed());
    }
    drop(stream);
    server.join().map_err(|_| anyhow::anyhow!("the server's thread panicked"))??;
    times.sort_unstable();
    Ok((connect, times))
}

#[test]
fn a_tcp_handshake_and_each_answer_wait_once() -> Result<()> {
    settled(tcp_waits)
}

fn tcp_waits() -> Result<()> {
    const DELAY: Duration = Duration::from_millis(100);
    let bench = Bench::new()?;
    let agent = bench.add("--dev eth0 --netns NS --delay 100ms --engine nfqueue")?;
    let (connect, times) = tcp_exchange(&bench, 7000, Duration::ZERO)?;
    agent.signal(nix::sys::signal::Signal::SIGINT)?;
    agent.end()?;
    // A server that sleeps for the same time, right after: what it is late by, the machine is.
    let (_, control) = tcp_exchange(&bench, 7001, DELAY)?;
    let late = median(&control).saturating_sub(DELAY);
    println!("connect {connect:?}, then {times:?}; asleep {control:?}, {late:?} late");
    ensure!(connect >= DELAY && times[0] >= DELAY, "early: {connect:?}, {times:?}");
    ensure!(connect.abs_diff(DELAY + late) <= ONCE, "connect took {connect:?}");
    let error = median(&times).abs_diff(DELAY + late);
    ensure!(error <= TOLERANCE, "median off by {error:?}");
    Ok(())
}

#[test]
fn on_loopback_each_direction_waits() -> Result<()> {
    let bench = Bench::new()?;
    let echo = Echo::start(&bench, Side::Server, Ipv4Addr::LOCALHOST.into())?;
    let _agent = bench.add("--dev lo --netns NS --delay 20ms --engine nfqueue")?;
    let times = round_trips(&bench, Side::Server, echo.address, 25)?;
    let error = median(&times).abs_diff(Duration::from_millis(40));
    ensure!(error <= ONCE, "median off by {error:?}");
    ensure!(times[0] >= Duration::from_millis(40), "early: {:?}", times[0]);
    ensure!(times[0] <= Duration::from_millis(40) + 2 * TOLERANCE, "late: {:?}", times[0]);
    Ok(())
}

#[test]
fn only_the_interface_that_is_named_is_delayed() -> Result<()> {
    let bench = Bench::new()?;
    let echo = Echo::start(&bench, Side::Server, bench.network.server_v4().into())?;
    let _agent = bench.add("--dev lo --netns NS --delay 500ms --engine nfqueue")?;
    let times = round_trips(&bench, Side::Outside, echo.address, 50)?;
    assert!(median(&times) < Duration::from_millis(50), "{:?}", median(&times));
    Ok(())
}

/// A burst at a queue of 16: those are held, and every other one passes at once and is counted.
#[test]
fn what_a_full_queue_lets_through_is_counted() -> Result<()> {
    const QUEUE: u32 = 16;
    const BURST: u32 = 100;
    let bench = Bench::new()?;
    // Of lo, nothing but this burst ever leaves: no neighbour discovery.
    let (receipt, dropped, early, late) = bench.inside(Side::Server, || {
        let options = NetemOptions {
            latency_ns: 300_000_000,
            limit_packets: BURST,
            ..NetemOptions::default()
        };
        let mut delay = Delay::start_with_room(1, &options, None, Direction::Egress, QUEUE)?;
        let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        receiver.set_nonblocking(true)?;
        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        sender.connect(receiver.local_addr()?)?;
        for _ in 0..BURST {
            sender.send(b"x")?;
        }
        thread::sleep(Duration::from_millis(100));
        let count = || (0..).take_while(|_| receiver.recv(&mut [0; 8]).is_ok()).count();
        let early = count();
        thread::sleep(Duration::from_millis(400));
        let late = count();
        let seen = delay.dropped();
        let account = delay.clear()?;
        assert_eq!(seen, account.dropped);
        anyhow::Ok((account.receipt, account.dropped, early, late))
    })??;
    assert_eq!((early, late), ((BURST - QUEUE) as usize, QUEUE as usize));
    assert_eq!((receipt.packets, dropped), (u64::from(QUEUE), u64::from(BURST - QUEUE)));
    Ok(())
}

/// Packets that are held when the delay is cleared are let go, not dropped.
#[test]
fn clearing_lets_held_packets_go() -> Result<()> {
    let bench = Bench::new()?;
    let agent = bench.add("--dev lo --netns NS --delay 30s --engine nfqueue")?;
    let (sender, receiver) = bench.inside(Side::Server, || {
        let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        sender.connect(receiver.local_addr()?)?;
        anyhow::Ok((sender, receiver))
    })??;
    for _ in 0..50 {
        sender.send(b"x")?;
    }
    receiver.set_read_timeout(Some(Duration::from_millis(200)))?;
    assert!(receiver.recv(&mut [0; 8]).is_err(), "not held");
    agent.signal(nix::sys::signal::Signal::SIGTERM)?;
    let (code, ..) = agent.end()?;
    assert_eq!(code, Some(0));
    for number in 0..50 {
        receiver.recv(&mut [0; 8]).with_context(|| format!("packet {number} was lost"))?;
    }
    Ok(())
}
