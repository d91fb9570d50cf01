//! However a session ends, what it made is gone within a second.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use agent_common::wire::ToAgent;
use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use tests::{lab::Side, programs};

use crate::{
    inject::{Bench, difference},
    support::{Agent, Client},
};

const DELAY: Duration = Duration::from_millis(50);
/// Longer than any of this takes on a busy machine.
const LONG_LEASE: Duration = Duration::from_secs(30);
const LEASE: Duration = Duration::from_secs(2);
const SECOND: Duration = Duration::from_secs(1);

/// An agent that measures and delays a listener in the bench's server namespace.
struct Busy {
    bench: Bench,
    before: String,
    agent: Agent,
    client: Client,
    programs: BTreeSet<u32>,
    _listener: TcpListener,
}

fn busy(lease: Duration) -> Result<Busy> {
    let bench = Bench::new()?;
    let any = SocketAddr::new(bench.network.server_v4().into(), 0);
    let listener = bench.inside(Side::Server, || TcpListener::bind(any))??;
    let before = bench.state()?;
    let agent = Agent::start_in(tempfile::tempdir()?, "--allow-dev eth0", &bench.server())?;
    let mut client = agent.pair()?;
    client.target(listener.local_addr()?)?;
    client.start()?;
    client.impair(DELAY, lease)?;
    let programs = programs::of_process(agent.pid())?;
    ensure!(!programs.is_empty(), "no probe is loaded");
    ensure!(bench.state()? != before, "nothing is impaired");
    Ok(Busy { bench, before, agent, client, programs, _listener: listener })
}

impl Busy {
    /// Waits until the namespaces are as before and no probe is loaded.
    fn clean(&self) -> Result<Duration> {
        let start = Instant::now();
        loop {
            let looked = start.elapsed();
            let state = self.bench.state()?;
            let left: Vec<_> = self.programs.intersection(&programs::loaded()?).copied().collect();
            if state == self.before && left.is_empty() {
                return Ok(start.elapsed());
            }
            ensure!(
                looked < SECOND,
                "left after a second: programs {left:?}{}",
                difference(&self.before, &state)
            );
        }
    }
}

#[test]
fn sigterm_and_ctrl_c_end_in_order() -> Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let mut busy = busy(LONG_LEASE)?;
        busy.agent.signal(signal)?;
        busy.client.ends().with_context(|| signal.to_string())?;
        let took = busy.clean()?;
        println!("{signal}: clean {took:?} after the farewell");
        let Busy { bench, agent, client, .. } = busy;
        let (code, log, directory) = agent.end()?;
        assert_eq!(code, Some(0), "{log}");
        assert_eq!(std::fs::read_dir(directory.path())?.count(), 0, "the socket is left");
        assert!(bench.processes().is_empty());
        drop(client);
    }
    Ok(())
}

#[test]
fn sigkill_leaves_nothing_but_a_dead_socket_that_the_next_agent_replaces() -> Result<()> {
    let mut busy = busy(LONG_LEASE)?;
    busy.agent.signal(Signal::SIGKILL)?;
    // The kernel closes the socket: the peer sees the end at once.
    while busy.client.receive()?.is_some() {}
    let took = busy.clean()?;
    println!("SIGKILL: clean after {took:?}");
    busy.bench.wait_until_clean(&busy.before)?;
    let (_, _, directory) = busy.agent.end()?;
    assert!(directory.path().join("agent.sock").exists());
    let next = Agent::start_in(directory, "", "")?;
    next.pair()?;
    Ok(())
}

#[test]
fn a_silent_peer_loses_the_impairment_with_its_lease() -> Result<()> {
    let mut busy = busy(LEASE)?;
    let start = Instant::now();
    while start.elapsed() < 2 * LEASE {
        busy.client.send(&ToAgent::Renew)?;
        std::thread::sleep(LEASE / 4);
    }
    ensure!(busy.bench.state()? != busy.before, "cleared in spite of the lease");
    let silent = Instant::now();
    let reply = busy.client.error()?;
    let told = silent.elapsed();
    assert!(reply.message.contains("the lease"), "{}", reply.message);
    assert!(told < LEASE + SECOND, "{told:?}");
    busy.client.ends()?;
    busy.clean()?;
    busy.agent.pair()?;
    Ok(())
}

#[test]
fn a_peer_that_is_gone_takes_everything_along() -> Result<()> {
    for say_bye in [true, false] {
        let mut busy = busy(LONG_LEASE)?;
        if say_bye {
            busy.client.send(&ToAgent::Bye)?;
        }
        busy.client.stream.shutdown(std::net::Shutdown::Both)?;
        let took = busy.clean()?;
        println!("bye {say_bye}: clean after {took:?}");
        busy.agent.pair()?;
    }
    Ok(())
}
