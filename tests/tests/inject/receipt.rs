//! What the kernel half says packets got of a queueing discipline, against when they arrived.

use std::net::UdpSocket;
use std::process::Command;
use std::time::{Duration, Instant};

use agent::sys::btf::KernelTypes;
use agent::sys::receipt::{Got, Stays};
use anyhow::{Context as _, Result, ensure};
use tests::lab::{Side, paths};

use super::support::Bench;

/// A token bucket lets a burst through at its rate: the n-th packet waits for n - 1 others. Every
/// kernel has it, netem or not.
#[test]
fn stays_in_a_queueing_discipline_are_those_that_the_receiver_sees() -> Result<()> {
    const PACKETS: usize = 41;
    let bench = Bench::new()?;
    let status = Command::new(paths::system("tc")?)
        .args(["-n", &bench.server(), "qdisc", "add", "dev", "eth0", "root", "tbf"])
        .args(["rate", "800kbit", "burst", "1100", "latency", "10s"])
        .status()?;
    ensure!(status.success(), "tc: {status}");
    // The kernel's own packets of IPv6 go through the discipline as well.
    bench.inside(Side::Server, || {
        std::fs::write("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "1")
    })??;
    let receiver =
        bench.inside(Side::Outside, || UdpSocket::bind((bench.network.outside_v4(), 7000)))??;
    receiver.set_read_timeout(Some(Duration::from_secs(5)))?;
    let (stays, sender) = bench.inside(Side::Server, || -> Result<_> {
        let sender = UdpSocket::bind((bench.network.server_v4(), 0))?;
        sender.connect(receiver.local_addr()?)?;
        // Neighbour discovery goes through the discipline as well: before the count begins.
        sender.send(&[0])?;
        receiver.recv(&mut [0; 1])?;
        let index = nix::net::if_::if_nametoindex("eth0")?;
        let mut stays = Stays::attach(&KernelTypes::load()?)?;
        stays.watch(index.cast_signed())?;
        Ok((stays, sender))
    })??;

    let (mut sent, mut took) = (Vec::new(), Vec::new());
    for _ in 0..PACKETS {
        sent.push(Instant::now());
        sender.send(&[0; 958])?;
    }
    for sent in sent {
        receiver.recv(&mut [0; 1000]).context("a packet was lost")?;
        took.push(sent.elapsed());
    }
    let Got { receipt, reordered, largest_backlog } = stays.got()?;
    println!("{receipt:?}, at most {largest_backlog}, receiver {:?}", took[PACKETS / 2]);
    took.sort_unstable();
    ensure!(receipt.packets == PACKETS as u64, "{receipt:?}");
    ensure!(reordered == 0, "{reordered} out of order");
    // The first one goes at once; while the others are sent, one may go every 10 ms.
    ensure!((PACKETS as u64 / 2..PACKETS as u64).contains(&largest_backlog), "{largest_backlog}");
    // 1,000 bytes each, 10 ms: the middle one waits for 20 others.
    ensure!(took[PACKETS / 2] > Duration::from_millis(150), "not held: {took:?}");
    for (what, ns, seen) in [
        ("median", receipt.p50_ns, took[PACKETS / 2]),
        ("longest", receipt.max_ns, took[PACKETS - 1]),
    ] {
        // The receiver's thread may be late, never early.
        let early = Duration::from_nanos(ns).saturating_sub(seen);
        let late = seen.saturating_sub(Duration::from_nanos(ns));
        ensure!(early < Duration::from_millis(2), "{what}: {ns} ns, received after {seen:?}");
        ensure!(late < Duration::from_millis(20), "{what}: {ns} ns, received after {seen:?}");
    }
    Ok(())
}

/// With the kernel's own engine the same is shown in virtual machines.
#[test]
fn what_tcp_sends_again_is_what_the_kernel_counts() -> Result<()> {
    crate::retransmissions::check(&Bench::new()?, "nfqueue")
}
