//! Agents that end badly while netem works for them: the kernel keeps a qdisc, so that their guardians
//! have to see to it.

use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use agent::inject::Impairment;
use agent::sys::{link, qdisc};
use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::lab::net::DEVICE;
use tests::lab::{Side, paths};

use crate::inject::kills::{Dice, add_and_clear, kill_once};
use crate::inject::{Bench, Foreground, difference};

const KILLS: usize = 20;
const PLACE: &str = "--dev eth0 --netns NS --delay 50ms";
const SECOND: Duration = Duration::from_secs(1);

/// What an impairment changes on an interface: root qdisc and length of the transmit queue. Looked at
/// without starting a program, which takes an emulated machine a second.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Look {
    kind: String,
    handle: u32,
    tx_queue_len: u32,
}

fn look(bench: &Bench) -> Result<Look> {
    bench.inside(Side::Server, || {
        let mut route = link::open()?;
        let link = device(&mut route)?;
        let root = qdisc::root(&mut route, link.index)?;
        Ok(Look { kind: root.kind, handle: root.handle, tx_queue_len: link.tx_queue_len })
    })?
}

fn device(route: &mut agent::sys::netlink::Conn) -> Result<link::Link> {
    link::list(route)?.into_iter().find(|link| link.name == DEVICE).context("no eth0")
}

/// Waits until the interface is as `before` and no process is left.
fn wait_for(bench: &Bench, before: &Look) -> Result<Duration> {
    let start = Instant::now();
    loop {
        let (now, processes) = (look(bench)?, bench.processes());
        if now == *before && processes.is_empty() {
            return Ok(start.elapsed());
        }
        ensure!(start.elapsed() < SECOND, "after a second: {now:?}, processes {processes:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn run(bench: &Bench, line: &str) -> Result<()> {
    let (program, arguments) = line.split_once(' ').context("no arguments")?;
    let status = Command::new(paths::system(program)?)
        .args(["-n", &bench.server()])
        .args(arguments.split_whitespace())
        .status()?;
    ensure!(status.success(), "{line}: {status}");
    Ok(())
}

/// A veth without a transmit queue, as container engines make them: adding a qdisc gives it one.
fn bench() -> Result<(Bench, Look)> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    ensure!(release.starts_with("6.1."), "this is {release}: start it by the test that boots 6.1");
    let bench = Bench::new()?;
    run(&bench, "ip link set eth0 txqueuelen 0")?;
    let before = look(&bench)?;
    assert_eq!((before.kind.as_str(), before.tx_queue_len), ("noqueue", 0));
    Ok((bench, before))
}

#[test]
#[ignore = "runs in the virtual machine that another test boots"]
fn a_killed_agent_leaves_nothing_within_a_second() -> Result<()> {
    let started = Instant::now();
    let (bench, before) = bench()?;
    let state = bench.state()?;
    let agent = bench.add(PLACE)?;
    let in_force = look(&bench)?;
    assert_eq!((in_force.kind.as_str(), in_force.tx_queue_len), ("netem", 1000));
    drop(agent);
    wait_for(&bench, &before)?;

    let (adding, clearing) = add_and_clear(&bench)?;
    wait_for(&bench, &before)?;
    let (mut dice, mut slowest) = (Dice::new()?, Duration::ZERO);
    for number in 0..KILLS {
        let moment = match number % 4 {
            3 => kill_between_the_steps(&bench)?,
            _ => kill_once(&bench, number, &mut dice, adding, clearing)?,
        };
        let took = wait_for(&bench, &before).with_context(|| moment.clone())?;
        println!("{moment}: clean after {took:?}");
        slowest = slowest.max(took);
    }
    bench.succeed("clear --netns NS")?;
    assert!(bench.listed()?.is_empty());
    assert_eq!(difference(&state, &bench.state()?), "");
    println!("{KILLS} kills in {:?}, slowest clean-up {slowest:?}", started.elapsed());
    Ok(())
}

/// Kills it when netem is gone and the transmit queue's length may not be put right yet.
fn kill_between_the_steps(bench: &Bench) -> Result<String> {
    let agent = bench.add(PLACE)?;
    let pid = Pid::from_raw(i32::try_from(agent.child.id())?);
    bench.inside(Side::Server, || {
        let mut route = link::open()?;
        let index = device(&mut route)?.index;
        kill(pid, Signal::SIGINT)?;
        while qdisc::root(&mut route, index)?.is_ours() {}
        kill(pid, Signal::SIGKILL)?;
        anyhow::Ok(())
    })??;
    agent.end()?;
    Ok("between the steps of clearing".to_owned())
}

#[test]
#[ignore = "runs in the virtual machine that another test boots"]
fn what_is_another_agents_is_left_alone() -> Result<()> {
    let started = Instant::now();
    let (bench, before) = bench()?;
    a_late_guardian_leaves_the_next_agents_qdisc(&bench)?;
    assert_eq!(look(&bench)?, before);
    somebody_removes_netem(&bench)?;
    wait_for(&bench, &before)?;
    what_netem_held_is_told(&bench)?;
    a_guardian_that_dies_is_replaced(&bench)?;
    wait_for(&bench, &before)?;
    // Its entry outlives it.
    bench.succeed("clear --netns NS")?;
    an_agent_with_other_files_is_left_alone(&bench)?;
    wait_for(&bench, &before)?;
    println!("took {:?}", started.elapsed());
    Ok(())
}

fn a_late_guardian_leaves_the_next_agents_qdisc(bench: &Bench) -> Result<()> {
    let impairment = Impairment::fixed_delay(Duration::from_millis(50))?;
    bench.inside(Side::Server, || {
        let mut route = link::open()?;
        let index = device(&mut route)?.index;
        let dead = qdisc::look(&mut route, index, qdisc::own_handle(1))?;
        let next = qdisc::look(&mut route, index, qdisc::own_handle(2))?;
        qdisc::add(&mut route, index, &impairment, &next)?;
        assert!(!qdisc::restore(&mut route, index, &dead)?.removed);
        assert!(qdisc::root(&mut route, index)?.is_own(next.own));
        assert!(qdisc::restore(&mut route, index, &next)?.removed);
        anyhow::Ok(())
    })?
}

/// The transmit queue's length is put right all the same.
fn somebody_removes_netem(bench: &Bench) -> Result<()> {
    let agent = bench.add(PLACE)?;
    run(bench, "tc qdisc del dev eth0 root")?;
    let (code, _, complaint) = agent.end()?;
    assert_eq!(code, Some(1));
    assert!(complaint.contains("somebody replaced netem"), "{complaint}");
    Ok(())
}

fn what_netem_held_is_told(bench: &Bench) -> Result<()> {
    let agent = bench.add("--dev lo --netns NS --delay 50s")?;
    let (sender, receiver) = bench.inside(Side::Server, || {
        let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        anyhow::Ok((UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?, receiver))
    })??;
    for _ in 0..5 {
        sender.send_to(b"x", receiver.local_addr()?)?;
    }
    agent.signal(Signal::SIGINT)?;
    let (code, said, _) = agent.end()?;
    assert_eq!(code, Some(0));
    assert!(said.contains("5 packets in it were lost when it was taken away"), "{said}");
    assert!(said.contains("none was dropped"), "{said}");
    Ok(())
}

/// Its guardian, waiting for one that is not `but`.
fn guardian(bench: &Bench, agent: &Foreground, but: Option<u32>) -> Result<u32> {
    let start = Instant::now();
    loop {
        let other = |pid: &u32| *pid != agent.child.id() && Some(*pid) != but;
        if let Some(pid) = bench.processes().into_iter().find(other) {
            return Ok(pid);
        }
        ensure!(start.elapsed() < 10 * SECOND, "no guardian");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn a_guardian_that_dies_is_replaced(bench: &Bench) -> Result<()> {
    let mut agent = bench.add(PLACE)?;
    let in_force = look(bench)?;
    let first = guardian(bench, &agent, None)?;
    kill(Pid::from_raw(i32::try_from(first)?), Signal::SIGKILL)?;
    let second = guardian(bench, &agent, Some(first))?;
    let watched = || {
        bench.inside(Side::Server, || {
            let index = device(&mut link::open()?)?.index;
            anyhow::Ok(agent::sys::guardian::watches(index, in_force.handle))
        })?
    };
    let start = Instant::now();
    while !watched()? {
        ensure!(start.elapsed() < 10 * SECOND, "nobody watches");
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("guardian {first} was killed, {second} took its place");
    agent.child.kill()?;
    agent.end()?;
    Ok(())
}

/// Its entry is where this agent's are not, as in a container.
fn an_agent_with_other_files_is_left_alone(bench: &Bench) -> Result<()> {
    let inner = bench.command(&format!("add {PLACE} --detach"))?;
    let output = Command::new(paths::system("unshare")?)
        .args([
            "--mount",
            "sh",
            "-c",
            "mount -t tmpfs -o mode=700 none /run/dwell && exec \"$0\" \"$@\"",
        ])
        .arg(inner.get_program())
        .args(inner.get_args())
        .envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .output()?;
    ensure!(output.status.success(), "{output:?}");
    assert!(bench.listed()?.is_empty());
    let in_force = look(bench)?;
    assert_eq!(in_force.kind, "netem");
    let output = bench.run("clear --netns NS")?;
    let complaint = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint.contains("was left alone"), "{complaint}");
    assert_eq!(look(bench)?, in_force);

    // The guardian last: without an agent it ends by itself.
    for pid in bench.processes() {
        if !agent::sys::guardian::is_one(pid) {
            kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL)?;
        }
    }
    Ok(())
}
