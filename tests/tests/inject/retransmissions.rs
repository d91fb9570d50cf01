//! What TCP sends again through an impaired interface, against the kernel's own statistics of the
//! namespace (those that nstat prints).

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use agent::inject::Retransmissions;
use anyhow::{Context as _, Result, ensure};
use tests::lab::{Side, paths};

use super::support::{Bench, Foreground};

const ADD: &str = "--dev eth0 --netns NS --delay 20ms";
const PATIENCE: Duration = Duration::from_secs(8);

/// RetransSegs and TCPTimeouts of the server's namespace.
fn statistics(bench: &Bench) -> Result<(u64, u64)> {
    let counter = |file: &str, group: &str, name: &str| -> Result<u64> {
        let text = bench.inside(Side::Server, || {
            std::fs::read_to_string(format!("/proc/thread-self/net/{file}"))
        })??;
        let mut lines = text.lines().filter(|line| line.starts_with(group));
        let (names, values) = (lines.next().context("names")?, lines.next().context("values")?);
        let place = names.split(' ').position(|one| one == name).context(name.to_owned())?;
        Ok(values.split(' ').nth(place).context("value")?.parse()?)
    };
    Ok((counter("snmp", "Tcp:", "RetransSegs")?, counter("netstat", "TcpExt:", "TCPTimeouts")?))
}

fn counted(bench: &Bench) -> Result<Retransmissions> {
    let lines = bench.listed()?;
    let line = lines.first().context("nothing is injected")?;
    Ok(serde_json::from_value(line["retransmissions"].clone())?)
}

fn nft(bench: &Bench, side: Side, words: &str) -> Result<()> {
    let status = Command::new(paths::system("ip")?)
        .args(["netns", "exec", &bench.network.name(side)])
        .arg(paths::system("nft")?)
        .args(words.split(' '))
        .status()?;
    ensure!(status.success(), "nft {words}: {status}");
    Ok(())
}

/// Drops what arrives and matches, until [`pass`].
fn drop_arriving(bench: &Bench, side: Side, what: &str) -> Result<()> {
    nft(bench, side, "add table ip hole")?;
    nft(bench, side, "add chain ip hole in { type filter hook input priority 0 ; }")?;
    nft(bench, side, &format!("add rule ip hole in {what} drop"))
}

fn pass(bench: &Bench, side: Side) -> Result<()> {
    nft(bench, side, "delete table ip hole")
}

/// A connection made from the server's side to the outside: both ends.
fn connection(bench: &Bench, to: SocketAddr, listener: &TcpListener) -> Result<[TcpStream; 2]> {
    let ours = bench.inside(Side::Server, || TcpStream::connect_timeout(&to, PATIENCE))??;
    Ok([ours, listener.accept()?.0])
}

fn exchange([ours, theirs]: &mut [TcpStream; 2]) -> Result<()> {
    for _ in 0..5 {
        ours.write_all(b"question")?;
        theirs.read_exact(&mut [0; 8])?;
        theirs.write_all(b"answer")?;
        ours.read_exact(&mut [0; 6])?;
    }
    Ok(())
}

/// Waits until the namespace has counted so many timeouts more.
fn await_timeouts(bench: &Bench, more_than: u64) -> Result<()> {
    let start = Instant::now();
    while statistics(bench)?.1 <= more_than {
        ensure!(start.elapsed() < PATIENCE, "no timeout");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn listener(bench: &Bench, side: Side) -> Result<(SocketAddr, TcpListener)> {
    let address = match side {
        Side::Server => bench.network.server_v4(),
        Side::Outside => bench.network.outside_v4(),
    };
    let listener = bench.inside(side, || TcpListener::bind((address, 0)))??;
    Ok((listener.local_addr()?, listener))
}

/// The same as the kernel's statistics, which nothing else changes in this namespace.
fn agrees(bench: &Bench, before: (u64, u64)) -> Result<Retransmissions> {
    // The kernel counts and the programs run in one softirq, but not at one moment.
    let mut looks = (0..50).map(|_| -> Result<_> {
        std::thread::sleep(Duration::from_millis(10));
        let first = statistics(bench)?;
        let ours = counted(bench)?;
        ensure!(first == statistics(bench)?, "something was sent again meanwhile");
        Ok((ours, (first.0 - before.0, first.1 - before.1)))
    });
    let (ours, theirs) = looks.find_map(Result::ok).context("never at rest")?;
    println!("{ours:?}, the kernel: {theirs:?}");
    ensure!((ours.segments, ours.timeouts + ours.synacks) == theirs, "{ours:?}, not {theirs:?}");
    Ok(ours)
}

/// With either engine; the namespace's counters tell the same.
pub(crate) fn check(bench: &Bench, engine: &str) -> Result<()> {
    let agent = bench.add(&format!("{ADD} --engine {engine}"))?;
    let before = statistics(bench)?;
    let (outside, listening) = listener(bench, Side::Outside)?;

    let mut ends = connection(bench, outside, &listening)?;
    exchange(&mut ends)?;
    assert_eq!(agrees(bench, before)?, Retransmissions::default(), "a clean exchange");

    a_lost_tail(bench, before, &mut ends)?;
    a_lost_syn(bench, before, outside)?;
    a_lost_synack(bench, before)?;
    another_interface(bench)?;
    ended(agent)
}

/// Data that does not arrive: a probe, then the timeout.
fn a_lost_tail(bench: &Bench, before: (u64, u64), ends: &mut [TcpStream; 2]) -> Result<()> {
    let port = ends[1].local_addr()?.port();
    drop_arriving(bench, Side::Outside, &format!("tcp dport {port}"))?;
    ends[0].write_all(b"lost")?;
    await_timeouts(bench, before.1)?;
    pass(bench, Side::Outside)?;
    let mut arrived = [0; 4];
    ends[1].set_read_timeout(Some(PATIENCE))?;
    ends[1].read_exact(&mut arrived)?;
    assert_eq!(&arrived, b"lost");
    let sent = agrees(bench, before)?;
    assert!(sent.timeouts >= 1 && sent.probes >= 1 && sent.synacks == 0, "{sent:?}");
    Ok(())
}

fn a_lost_syn(bench: &Bench, before: (u64, u64), to: SocketAddr) -> Result<()> {
    let sent_before = agrees(bench, before)?;
    drop_arriving(bench, Side::Outside, "tcp flags syn / syn,ack")?;
    let lost = Duration::from_millis(1500);
    let connected = bench.inside(Side::Server, || TcpStream::connect_timeout(&to, lost))?;
    ensure!(connected.is_err(), "the SYN was not lost");
    pass(bench, Side::Outside)?;
    let sent = agrees(bench, before)?.since(sent_before);
    assert_eq!(sent, Retransmissions { segments: 1, timeouts: 1, ..Retransmissions::default() });
    Ok(())
}

fn a_lost_synack(bench: &Bench, before: (u64, u64)) -> Result<()> {
    let sent_before = agrees(bench, before)?;
    let (server, _listening) = listener(bench, Side::Server)?;
    drop_arriving(bench, Side::Outside, &format!("tcp sport {}", server.port()))?;
    let client = std::thread::scope(|scope| -> Result<_> {
        let client = scope.spawn(|| {
            bench.inside(Side::Outside, || TcpStream::connect_timeout(&server, PATIENCE))
        });
        std::thread::sleep(Duration::from_millis(1300));
        pass(bench, Side::Outside)?;
        client.join().map_err(|_| anyhow::anyhow!("the client panicked"))?
    })?;
    client.context("the SYN/ACK never came")?;
    let now = statistics(bench)?;
    let sent = counted(bench)?.since(sent_before);
    // The client's own SYN comes again as well, and is answered without a timer.
    assert!(sent.synacks >= 1 && sent.segments == sent.synacks, "{sent:?}");
    assert_eq!(counted(bench)?.segments, now.0 - before.0);
    Ok(())
}

/// The same loss on loopback is no concern of `eth0`.
fn another_interface(bench: &Bench) -> Result<()> {
    let (sent_before, before) = (counted(bench)?, statistics(bench)?);
    let listening = bench.inside(Side::Server, || TcpListener::bind(("127.0.0.1", 0)))??;
    let to = listening.local_addr()?;
    let mut ours = bench.inside(Side::Server, || TcpStream::connect(to))??;
    let mut theirs = listening.accept()?.0;
    drop_arriving(bench, Side::Server, &format!("tcp dport {}", to.port()))?;
    ours.write_all(b"lost")?;
    await_timeouts(bench, before.1)?;
    let other = Duration::from_millis(1500);
    let connected = bench.inside(Side::Server, || TcpStream::connect_timeout(&to, other))?;
    ensure!(connected.is_err(), "the SYN was not lost");
    pass(bench, Side::Server)?;
    theirs.read_exact(&mut [0; 4])?;
    ensure!(statistics(bench)? > before, "nothing was sent again");
    assert_eq!(counted(bench)?, sent_before);
    Ok(())
}

fn ended(agent: Foreground) -> Result<()> {
    agent.signal(nix::sys::signal::Signal::SIGINT)?;
    let (code, said, complaint) = agent.end()?;
    println!("{said}");
    ensure!(code == Some(0), "{complaint}");
    ensure!(said.contains("segments again") && said.contains("retransmission timeout"), "{said}");
    Ok(())
}
