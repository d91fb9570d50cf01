//! Somebody else's queueing disciplines: left alone, or put aside and back, parameters included.

use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::lab::paths;

use crate::inject::{Bench, difference};

const ADD: &str = "add --dev eth0 --netns NS --engine netem --delay 50ms";
/// Trees that are put back, each the commands that make it.
const TREES: [&[&str]; 6] = [
    &["root handle 1: fq_codel limit 2000 target 7ms interval 120ms quantum 900 noecn"],
    &["root handle 8: tbf rate 20mbit burst 32kb latency 40ms"],
    &["root handle 5: sfq perturb 10 limit 100"],
    &["root handle 9: fq limit 5000 flow_limit 50"],
    &["root handle 1: prio bands 4", "parent 1:2 handle 20: tbf rate 5mbit burst 16kb limit 40kb"],
    &[
        "root handle 1: htb default 20 r2q 20",
        "class 1: 1:1 rate 90mbit ceil 100mbit burst 20k cburst 21k",
        "class 1:1 1:10 rate 40mbit ceil 80mbit prio 1 quantum 3000",
        "class 1:1 1:20 rate 10gbit ceil 50gbit prio 2",
        "parent 1:10 handle 10: fq_codel limit 512",
        "parent 1:20 handle 20: sfq perturb 7",
    ],
];

/// Runs inside a virtual machine.
pub(crate) fn check() -> Result<()> {
    let bench = Bench::new()?;
    let plain = bench.state()?;
    for tree in TREES {
        for line in tree {
            make(&bench, line)?;
        }
        let theirs = shown(&bench)?;
        refused(&bench, ADD, "somebody else configured")?;
        ensure!(shown(&bench)? == theirs, "it was touched in spite of a refusal: {tree:?}");

        let agent = bench.add(&format!("{} --replace", &ADD[4..])).context(tree[0])?;
        ensure!(shown(&bench)?.contains("netem"), "netem is not in force");
        agent.signal(Signal::SIGINT)?;
        let (code, said, complaint) = agent.end()?;
        assert_eq!((code, complaint.as_str()), (Some(0), ""), "{tree:?}: {said}");
        assert_eq!(difference(&theirs, &shown(&bench)?), "", "{tree:?}");

        killed(&bench, &theirs)?;
        tc(&bench, "qdisc del dev eth0 root")?;
        assert_eq!(difference(&plain, &bench.state()?), "", "{tree:?}");
    }
    what_cannot_be_put_back(&bench)?;
    assert_eq!(difference(&plain, &bench.state()?), "");
    Ok(())
}

/// Agent and guardian at once: `clear` puts the tree back from the entry.
fn killed(bench: &Bench, theirs: &str) -> Result<()> {
    let agent = bench.add(&format!("{} --replace", &ADD[4..]))?;
    let mut processes = bench.processes();
    processes.sort_by_key(|pid| *pid == agent.child.id());
    for pid in processes {
        kill(Pid::from_raw(pid as i32), Signal::SIGKILL)?;
    }
    drop(agent);
    ensure!(shown(bench)?.contains("netem"), "nothing was left");
    bench.succeed("clear --netns NS")?;
    assert_eq!(difference(theirs, &shown(bench)?), "");
    Ok(())
}

fn what_cannot_be_put_back(bench: &Bench) -> Result<()> {
    let replace = format!("{ADD} --replace");
    make(bench, "root handle 1: prio")?;
    tc(
        bench,
        "filter add dev eth0 parent 1: protocol ip prio 5 u32 match ip dport 80 0xffff flowid 1:1",
    )?;
    refused(bench, &replace, "it has filters")?;
    tc(bench, "qdisc del dev eth0 root")?;
    make(bench, "root handle 1: netem delay 10ms")?;
    refused(bench, &replace, "does not tell all of its netem")?;
    tc(bench, "qdisc del dev eth0 root")?;
    // Its table of shifts is not dumped.
    make(
        bench,
        "root handle 1: red limit 400000 min 30000 max 90000 avpkt 1000 burst 55 probability 0.02",
    )?;
    refused(bench, &replace, "qdisc red 1:0 cannot be made again")?;
    tc(bench, "qdisc del dev eth0 root").map(drop)
}

fn refused(bench: &Bench, arguments: &str, words: &str) -> Result<()> {
    let before = shown(bench)?;
    let output = bench.run(arguments)?;
    let complaint = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(1), "{complaint}");
    assert!(complaint.contains("`eth0`") && complaint.contains(words), "{words}: {complaint}");
    assert_eq!(difference(&before, &shown(bench)?), "");
    Ok(())
}

fn make(bench: &Bench, line: &str) -> Result<()> {
    match line.strip_prefix("class ").and_then(|rest| rest.split_once(' ')) {
        None => tc(bench, &format!("qdisc add dev eth0 {line}"))?,
        Some((parent, rest)) => {
            let (class, options) = rest.split_once(' ').context("a class without options")?;
            tc(bench, &format!("class add dev eth0 parent {parent} classid {class} htb {options}"))?
        }
    };
    Ok(())
}

/// All of it, sorted: the kernel's order is that of a hash table. Without the packets that htb counts
/// among its parameters.
fn shown(bench: &Bench) -> Result<String> {
    let mut lines = Vec::new();
    for what in ["qdisc", "class"] {
        let output = tc(bench, &format!("-d {what} show dev eth0"))?;
        for line in String::from_utf8(output.stdout)?.lines() {
            let counter = line.split_once(" direct_packets_stat ");
            let rest =
                counter.map(|(_, rest)| rest.trim_start_matches(|c: char| c.is_ascii_digit()));
            let start = counter.map_or(line, |(start, _)| start);
            lines.push(format!("{start}{}", rest.unwrap_or_default()));
        }
    }
    lines.sort();
    Ok(lines.join("\n"))
}

fn tc(bench: &Bench, words: &str) -> Result<Output> {
    let mut tc = Command::new(paths::system("tc")?);
    let output = tc.args(["-n", &bench.server()]).args(words.split_whitespace()).output()?;
    ensure!(output.status.success(), "tc {words}: {output:?}");
    Ok(output)
}
