//! Which engine, and how each treats what is on the interface already. What holds differs with the
//! kernel: with netem in it, and without.

use std::process::Command;
use std::time::{Duration, Instant};

use agent::inject::{
    By, Direction, EngineChoice, Impairment, InjectError, Scope, apply, engines_available,
};
use agent::model::filter::PacketFilter;
use agent::model::impairment::Engine;
use agent::sys::link;
use agent::sys::netlink::Refusal;
use agent::sys::netns::Netns;
use agent::sys::qdisc::{self, Before, QdiscError};
use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::lab::net::DEVICE;
use tests::lab::{Side, paths};

use super::support::{Bench, Echo, difference, median, round_trips};

fn tc(bench: &Bench, arguments: &str) -> Result<String> {
    let output = Command::new(paths::system("tc")?)
        .args(["-n", &bench.server()])
        .args(arguments.split_whitespace())
        .output()?;
    ensure!(output.status.success(), "tc {arguments}: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn auto_takes_netem_where_the_kernel_has_it_and_says_why() -> Result<()> {
    let bench = Bench::new()?;
    let before = bench.state()?;
    let has = engines_available()?;
    println!("{has:?}");
    let echo = Echo::start(&bench, Side::Server, bench.network.server_v4().into())?;
    let plain = median(&round_trips(&bench, Side::Outside, echo.address, 101)?);
    let agent = bench.add("--dev eth0 --netns NS --delay 100ms")?;
    let qdisc = tc(&bench, "qdisc show dev eth0 root")?;
    match &has.netem {
        Ok(()) => {
            assert!(agent.told.contains("engine netem (this kernel has it)"), "{}", agent.told);
            let shown = "qdisc netem 5d";
            assert!(qdisc.starts_with(shown) && qdisc.contains(" delay 100ms"), "{qdisc}");
        }
        Err(reason) => {
            let told = format!("engine nfqueue (netem does not work here: {reason})");
            assert!(agent.told.contains(&told), "{}", agent.told);
            assert_eq!(qdisc, "qdisc noqueue 0: root refcnt 2 \n");
        }
    }
    let delayed = median(&round_trips(&bench, Side::Outside, echo.address, 11)?);
    println!("plain {plain:?}, delayed {delayed:?}");
    assert!(delayed >= Duration::from_millis(100), "{delayed:?}");
    // An emulated machine is slow with any packet: as slow as it was without a delay.
    let slack = Duration::from_millis(5) + 20 * plain;
    assert!(delayed <= Duration::from_millis(100) + slack, "{delayed:?}");
    agent.signal(Signal::SIGINT)?;
    agent.end()?;
    bench.wait_until_clean(&before)?;
    Ok(())
}

#[test]
fn netem_is_refused_where_the_kernel_lacks_it() -> Result<()> {
    let bench = Bench::new()?;
    let before = bench.state()?;
    let output = bench.run("add --dev eth0 --netns NS --delay 100ms --engine netem --detach")?;
    let complaint = String::from_utf8(output.stderr)?;
    if engines_available()?.netem.is_ok() {
        assert!(output.status.success(), "{complaint}");
        bench.succeed("clear --netns NS")?;
    } else {
        assert_eq!(output.status.code(), Some(1));
        assert!(complaint.contains("engine netem does not work"), "{complaint}");
        assert!(complaint.contains("--engine nfqueue"), "{complaint}");
    }
    bench.wait_until_clean(&before)?;
    Ok(())
}

/// netem would have to replace it: refused. nfqueue goes before it: both stay in force.
#[test]
fn somebody_elses_root_qdisc_is_left_alone() -> Result<()> {
    let bench = Bench::new()?;
    tc(&bench, "qdisc add dev eth0 root handle 7: tbf rate 1gbit burst 1m latency 50ms")?;
    let before = bench.state()?;
    if engines_available()?.netem.is_ok() {
        let output = bench.run("add --dev eth0 --netns NS --delay 100ms")?;
        let complaint = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(1));
        assert!(complaint.contains("`tbf` (7:)"), "{complaint}");
        assert_eq!(difference(&before, &bench.state()?), "");
    }
    let agent = bench.add("--dev eth0 --netns NS --delay 20ms --engine nfqueue")?;
    assert!(tc(&bench, "qdisc show dev eth0 root")?.starts_with("qdisc tbf 7: root"));
    let echo = Echo::start(&bench, Side::Server, bench.network.server_v4().into())?;
    let times = round_trips(&bench, Side::Outside, echo.address, 25)?;
    assert!(times[0] >= Duration::from_millis(20), "{:?}", times[0]);
    agent.signal(Signal::SIGINT)?;
    agent.end()?;
    bench.wait_until_clean(&before)?;
    Ok(())
}

/// The library, as the pairing session uses it: in a process with other threads, and dropped
/// without a word.
#[test]
fn the_library_tells_what_is_in_force_and_clears_when_dropped() -> Result<()> {
    let bench = Bench::new()?;
    let before = bench.state()?;
    let netns = Netns::named(&bench.server())?;
    let scope = Scope {
        netns,
        device: "eth0".to_owned(),
        direction: Direction::Egress,
        filter: PacketFilter::default(),
        replace: false,
        by: By::this_command(),
    };
    let impairment = Impairment::fixed_delay(Duration::from_millis(20))?;
    let nfqueue = EngineChoice::Nfqueue;
    let active = apply(&impairment, &scope, nfqueue)?;
    assert_eq!((active.engine(), active.delay()), (Engine::Nfqueue, Duration::from_millis(20)));
    assert!(matches!(
        apply(&impairment, &scope, nfqueue),
        Err(InjectError::AlreadyImpaired { .. })
    ));
    let echo = Echo::start(&bench, Side::Server, bench.network.server_v4().into())?;
    round_trips(&bench, Side::Outside, echo.address, 25)?;
    assert_eq!(active.ended(), None);
    let so_far = active.outcome();
    assert!(so_far.receipt.is_some_and(|receipt| receipt.packets >= 25), "{so_far:?}");
    assert_eq!((so_far.dropped, so_far.reordered), (0, Some(0)));
    let outcome = active.clear()?;
    assert!(outcome.receipt.is_some_and(|receipt| receipt.packets >= 25));
    bench.wait_until_clean(&before)?;

    drop(apply(&impairment, &scope, nfqueue)?);
    assert_eq!(difference(&before, &bench.state()?), "");
    assert!(bench.listed()?.is_empty());
    Ok(())
}

/// The worst case: agent and guardian killed at once. Where the kernel keeps what they made, the
/// next clear finds it by their file; and by its handle, where there is no file.
#[test]
fn what_nobody_is_left_to_remove_is_removed_by_the_next_clear() -> Result<()> {
    let bench = Bench::new()?;
    let before = bench.state()?;
    let netem = engines_available()?.netem.is_ok();
    bench.succeed("add --dev eth0 --netns NS --delay 100ms --detach")?;
    let processes = bench.processes();
    assert_eq!(processes.len(), if netem { 2 } else { 1 }, "{processes:?}");
    // Stopped first: the guardian must not see the agent's end.
    for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
        for pid in &processes {
            kill(Pid::from_raw(i32::try_from(*pid)?), signal)?;
        }
    }
    bench.wait_until_stale()?;
    assert!(bench.processes().is_empty());
    assert_eq!(tc(&bench, "qdisc show dev eth0 root")?.contains("netem"), netem);
    let said = bench.succeed("clear --netns NS")?;
    assert!(said.contains("cleaned up behind process"), "{said}");
    assert_eq!(difference(&before, &bench.state()?), "");

    if netem {
        tc(&bench, "qdisc add dev eth0 root handle 5d01: netem delay 7ms")?;
        let said = bench.succeed("clear --netns NS --dev eth0")?;
        assert!(said.contains("removed a qdisc that no agent answers for"), "{said}");
        assert_eq!(difference(&before, &bench.state()?), "");
    }
    Ok(())
}

fn ip(bench: &Bench, arguments: &str) -> Result<()> {
    let status = Command::new(paths::system("ip")?)
        .args(["-n", &bench.server()])
        .args(arguments.split_whitespace())
        .status()?;
    ensure!(status.success(), "ip {arguments}: {status}");
    Ok(())
}

#[test]
fn a_root_qdisc_is_asked_for_by_itself() -> Result<()> {
    let bench = Bench::new()?;
    ip(&bench, "link add idle type bridge")?;
    tc(&bench, "qdisc add dev eth0 root handle 7: tbf rate 1gbit burst 1m latency 50ms")?;
    bench.inside(Side::Server, || {
        let mut route = link::open()?;
        let links = link::list(&mut route)?;
        let index = |name: &str| links.iter().find(|link| link.name == name).map(|link| link.index);
        let eth0 = qdisc::root(&mut route, index("eth0").context("no eth0")?)?;
        assert_eq!((eth0.kind.as_str(), eth0.handle), ("tbf", 0x0007_0000));
        // One that is down has one that is not shown.
        let idle = qdisc::root(&mut route, index("idle").context("no idle")?)?;
        assert_eq!((idle.kind.as_str(), idle.handle), ("noop", 0));
        assert!(matches!(qdisc::root(&mut route, 4242), Err(QdiscError::NoDevice)));
        assert!(matches!(
            link::get(&mut route, 4242),
            Err(Refusal { errno: nix::errno::Errno::ENODEV, .. })
        ));
        anyhow::Ok(())
    })?
}

/// What the kernel does to an empty transmit queue is undone wherever there is no qdisc of ours any
/// more, by whoever it was removed. Every other length is somebody's wish.
#[test]
fn the_length_of_the_transmit_queue_is_put_right() -> Result<()> {
    let bench = Bench::new()?;
    let after = |before: u32, now: u32| {
        ip(&bench, &format!("link set eth0 txqueuelen {now}"))?;
        bench.inside(Side::Server, || {
            let mut route = link::open()?;
            let links = link::list(&mut route)?;
            let index = links.iter().find(|link| link.name == DEVICE).context("no eth0")?.index;
            let own = qdisc::own_handle(1);
            let before =
                Before { kind: "noqueue".to_owned(), tx_queue_len: before, own, tree: None };
            let done = qdisc::restore(&mut route, index, &before)?;
            assert!(!done.removed);
            anyhow::Ok(link::get(&mut route, index)?.tx_queue_len)
        })?
    };
    assert_eq!(after(0, 1000)?, 0);
    assert_eq!(after(0, 700)?, 700);
    assert_eq!(after(500, 1000)?, 1000);
    tc(&bench, "qdisc add dev eth0 root handle 7: tbf rate 1gbit burst 1m latency 50ms")?;
    assert_eq!(after(0, 1000)?, 1000);
    Ok(())
}

/// With netem the guardian does it; without, the kernel. Looked at without starting a program: an
/// emulated machine needs seconds for those.
#[test]
fn a_killed_agents_delay_is_taken_away_within_a_second() -> Result<()> {
    let bench = Bench::new()?;
    let before = bench.state()?;
    for _ in 0..3 {
        let mut agent = bench.add("--dev eth0 --netns NS --delay 100ms")?;
        assert!(in_force(&bench)?);
        let start = Instant::now();
        agent.child.kill()?;
        while in_force(&bench)? {
            assert!(start.elapsed() < Duration::from_secs(1), "still in force");
            std::thread::sleep(Duration::from_millis(1));
        }
        println!("gone after {:?}", start.elapsed());
        agent.end()?;
        bench.wait_until_clean(&before)?;
    }
    Ok(())
}

/// Whether a qdisc of ours or the way to the queue is in the server's namespace.
fn in_force(bench: &Bench) -> Result<bool> {
    bench.inside(Side::Server, || {
        let mut route = link::open()?;
        let links = link::list(&mut route)?;
        let eth0 = links.iter().find(|link| link.name == DEVICE).context("no eth0")?;
        let led_away = links.iter().any(|link| link.name.starts_with("dwell"));
        Ok(led_away || qdisc::root(&mut route, eth0.index)?.is_ours())
    })?
}
