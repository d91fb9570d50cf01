//! What leaves, what arrives, and both; and that nothing of it is left, however it ends.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::lab::{Side, paths};

use crate::inject::{Bench, Echo, difference, median, round_trips};

/// Long beside everything else in an emulated machine.
const DELAY: Duration = Duration::from_millis(300);
const ADD: &str = "--dev eth0 --netns NS --engine netem --delay 300ms";

/// Runs inside a virtual machine.
pub(crate) fn check() -> Result<()> {
    let bench = Bench::new()?;
    let before = bench.state()?;
    let echo = Echo::start(&bench, Side::Server, bench.network.server_v4().into())?;
    let trips =
        || Ok::<_, anyhow::Error>(median(&round_trips(&bench, Side::Outside, echo.address, 5)?));
    let plain = trips()?;
    for (direction, delays) in [("egress", 1), ("ingress", 1), ("both", 2)] {
        let agent = bench.add(&format!("{ADD} --direction {direction}"))?;
        let delayed = trips()?;
        println!("{direction}: {delayed:?}, plain {plain:?}\n{}", agent.told);
        let listed = bench.listed()?;
        assert_eq!(listed[0]["direction"], direction, "{listed:?}");
        assert_eq!(listed[0]["state"], "in_force", "{listed:?}");
        received(&listed[0], delays)?;
        ensure!(delayed >= delays * DELAY, "{direction}: {delayed:?}");
        ensure!(delayed < (delays + 1) * DELAY, "{direction}: {delayed:?}");
        agent.signal(Signal::SIGINT)?;
        let (code, said, complaint) = agent.end()?;
        assert_eq!((code, complaint.as_str()), (Some(0), ""), "{said}");
        assert_eq!(difference(&before, &bench.state()?), "", "{direction}");
    }
    ensure!(trips()? < DELAY, "something is still delayed");
    killed_in_force(&bench, &before)?;
    filters_of_others_are_left_alone(&bench, &before)?;
    a_vanished_interface_takes_its_ifb_along(bench)
}

/// What the kernel half counted, in whatever direction: 5 round trips, and with them some of the
/// kernel's own packets (neighbour discovery).
fn received(line: &serde_json::Value, delays: u32) -> Result<()> {
    let receipt = &line["receipt"];
    let number = |value: &serde_json::Value| value.as_u64().with_context(|| line.to_string());
    let (asked, p50) = (DELAY.as_nanos() as u64, number(&receipt["p50_ns"])?);
    // A cell of the histogram is 1/256 wide; an emulated timer may be late.
    ensure!((asked - asked / 256..asked * 3 / 2).contains(&p50), "{line}");
    let packets = number(&receipt["packets"])?;
    ensure!((u64::from(5 * delays)..30).contains(&packets), "{line}");
    ensure!((1..=5).contains(&number(&line["largest_backlog"])?), "{line}");
    ensure!((number(&line["reordered"])?, number(&line["dropped"])?) == (0, 0), "{line}");
    Ok(())
}

/// The guardian clears behind its agent; where both are killed, `clear` finds what is left, with and
/// without an entry that tells of it.
fn killed_in_force(bench: &Bench, before: &str) -> Result<()> {
    let agent = bench.add(&format!("{ADD} --direction both"))?;
    agent.signal(Signal::SIGKILL)?;
    // In an emulated machine a second is not a promise.
    let cleared = (0..50).any(|_| {
        std::thread::sleep(Duration::from_millis(100));
        bench.state().is_ok_and(|state| state == before)
    });
    ensure!(cleared, "the guardian left: {}", difference(before, &bench.state()?));
    drop(agent);

    let ways = [
        (false, "clear --netns NS"),
        (true, "clear --netns NS"),
        (false, "recover"),
        (true, "recover"),
    ];
    for (forget, how) in ways {
        let agent = bench.add(&format!("{ADD} --direction ingress"))?;
        // The guardian first, or it would do its work.
        let mut processes = bench.processes();
        processes.sort_by_key(|pid| *pid == agent.child.id());
        ensure!(processes.len() == 2, "an agent and its guardian, not {processes:?}");
        for pid in processes {
            kill(Pid::from_raw(pid as i32), Signal::SIGKILL)?;
        }
        drop(agent);
        ensure!(difference(before, &bench.state()?).contains("dwell-in"), "nothing was left");
        if forget {
            for file in std::fs::read_dir("/run/dwell")? {
                std::fs::remove_file(file?.path())?;
            }
        }
        println!("{}", bench.succeed(how)?);
        assert_eq!(difference(before, &bench.state()?), "", "forgotten: {forget}, {how}");
        assert_eq!(bench.succeed("recover")?, "nothing was left\n");
    }
    Ok(())
}

fn filters_of_others_are_left_alone(bench: &Bench, before: &str) -> Result<()> {
    let server = bench.server();
    let tc = |words: &str| -> Result<()> {
        let mut tc = Command::new(paths::system("tc")?);
        let output = tc.args(["-n", &server]).args(words.split_whitespace()).output()?;
        ensure!(output.status.success(), "tc {words}: {output:?}");
        Ok(())
    };
    for kind in ["clsact", "ingress"] {
        tc(&format!("qdisc add dev eth0 {kind}"))?;
        let theirs = bench.state()?;
        for direction in ["ingress", "both"] {
            let refused = bench.run(&format!("add {ADD} --direction {direction}"))?;
            let complaint = String::from_utf8(refused.stderr)?;
            assert_eq!(refused.status.code(), Some(1), "{complaint}");
            assert!(complaint.contains("`eth0`") && complaint.contains(kind), "{complaint}");
            assert_eq!(difference(&theirs, &bench.state()?), "", "{direction}");
        }
        tc(&format!("qdisc del dev eth0 {kind}"))?;
    }
    assert_eq!(difference(before, &bench.state()?), "");
    Ok(())
}

fn a_vanished_interface_takes_its_ifb_along(bench: Bench) -> Result<()> {
    let agent = bench.add(&format!("{ADD} --direction both"))?;
    let mut ip = Command::new(paths::system("ip")?);
    let output = ip.args(["-n", &bench.server(), "link", "delete", "eth0"]).output()?;
    ensure!(output.status.success(), "{output:?}");
    let (code, _, complaint) = agent.end()?;
    assert_eq!(code, Some(1), "{complaint}");
    assert!(complaint.contains("interface `eth0` vanished"), "{complaint}");
    assert!(!bench.state()?.contains("dwell-in"), "the ifb is left");
    Ok(())
}
