//! Bad input: one error that names the thing and the fix, and nothing changed.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::Result;

use super::support::{Bench, agent_binary, difference};

/// Checks that `agent inject ARGUMENTS` is refused with `code` and with an error that holds every
/// one of `words`.
fn refused(bench: &Bench, arguments: &str, code: i32, words: &[&str]) -> Result<()> {
    let before = bench.state()?;
    let output = bench.run(arguments)?;
    let complaint = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(code), "{arguments}: {complaint}");
    for word in words {
        assert!(complaint.contains(word), "{arguments}: `{word}` is not in: {complaint}");
    }
    if !complaint.contains("\nUsage: ") && !complaint.contains("--help") {
        assert!(complaint.starts_with("error: "), "{arguments}: {complaint}");
        assert_eq!(complaint.trim_end().lines().count(), 1, "{arguments}: {complaint}");
    }
    assert_eq!(difference(&before, &bench.state()?), "", "{arguments}");
    assert!(bench.processes().is_empty(), "{arguments}");
    Ok(())
}

#[test]
fn places_that_do_not_exist() -> Result<()> {
    let bench = Bench::new()?;
    let server = bench.server();
    for detach in ["", " --detach"] {
        let add = |rest: &str| format!("add --delay 100ms {rest}{detach}");
        let nodev = ["interface `eth7`", "eth0", "lo"];
        refused(&bench, &add("--dev eth7 --netns NS"), 1, &nodev)?;
        let nons = ["network namespace `nowhere`", server.as_str()];
        refused(&bench, &add("--dev eth0 --netns nowhere"), 1, &nons)?;
        refused(&bench, &add("--dev eth0 --netns ../nowhere"), 1, &["`../nowhere`"])?;
        refused(&bench, &add("--dev eth0 --pid 4194305"), 1, &["process 4194305 not found"])?;
        refused(&bench, &add("--dev eth0 --pid -3"), 2, &["`-3` is not a process id"])?;
    }
    refused(&bench, "clear --netns NS --dev eth0", 1, &["nothing is injected", "`eth0`"])?;
    refused(&bench, "clear --netns nowhere", 1, &["network namespace `nowhere`"])
}

#[test]
fn delays_that_make_no_sense() -> Result<()> {
    let bench = Bench::new()?;
    for (delay, words) in [
        ("-5ms", ["`-5ms` is negative", "100ms"]),
        ("0ms", ["delay is zero", "100ms"]),
        ("0", ["delay is zero", "100ms"]),
        ("61s", ["delay 61s is above", "60s"]),
        ("99999999999h", ["`99999999999h` is too long", ""]),
        ("100", ["`100` has no unit", "100ms"]),
        ("100parsecs", ["unknown unit `parsecs`", "ms"]),
        ("soon", ["`soon` does not start with a decimal number", "1.5s"]),
    ] {
        refused(&bench, &format!("add --dev eth0 --netns NS --delay {delay}"), 2, &words)?;
    }
    Ok(())
}

#[test]
fn impairments_that_contradict_themselves() -> Result<()> {
    let bench = Bench::new()?;
    let mut table = tempfile::NamedTempFile::new()?;
    let path = table.path().display().to_string();
    std::io::Write::write_all(&mut table, b"1 2 three\n")?;
    let malformed = format!("--delay 1ms --jitter 1ms --distribution {path}");
    let malformed_words = [path.as_str(), "line 1: `three`"];
    let table: (&str, &[&str]) = (&malformed, &malformed_words);
    for (what, words) in [
        ("--loss 101%", &["--loss", "`101%` is above 100%"][..]),
        ("--loss 5", &["--loss", "`5` has no % sign"]),
        ("--corrupt 0%", &["corrupt is 0%", "leave it out"]),
        ("--delay 1ms --jitter 3s", &["jitter 3s is above", "2.147483647s"]),
        ("--delay 0ms --reorder 25%", &["reorder", "--delay"]),
        ("--loss-state 1% 60% 60%", &["60% + 60%", "lower one"]),
        ("--rate 10kbps", &["--rate", "`kbps`", "kB/s"]),
        ("--rate 1mbit --cell-overhead 5", &["cell overhead", "--cell-size"]),
        ("--slot 5ms 1ms", &["slot 1ms is shorter than 5ms"]),
        ("--slot 1ms --slot-packets 0", &["slot packets is zero"]),
        ("--delay 1ms --limit 0", &["limit is zero"]),
        ("--delay 1ms --jitter 1ms --distribution nowhere.dist", &["`nowhere.dist`", "normal"]),
        table,
    ] {
        for detach in ["", " --detach"] {
            refused(&bench, &format!("add --dev eth0 --netns NS {what}{detach}"), 2, words)?;
        }
    }
    Ok(())
}

#[test]
fn scopes_that_contradict_themselves() -> Result<()> {
    let bench = Bench::new()?;
    let many: String = (1..=33).map(|port| format!(" --port {port}")).collect();
    for (what, words) in [
        ("--peer 10.0.0.1/8", &["--peer: `10.0.0.1/8`", "write 10.0.0.0/8"][..]),
        ("--peer db.example", &["--peer: `db.example`", "10.0.0.0/8"]),
        ("--not-peer ::/129", &["--not-peer: `::/129`", "0 to 128"]),
        ("--port 0", &["--port 0", "1 to 65535"]),
        ("--port 65536", &["--port: `65536`", "1 to 65535"]),
        ("--peer-port -1", &["--peer-port: `-1`", "1 to 65535"]),
        ("--not-port http", &["--not-port: `http`", "1 to 65535"]),
        ("--port 80 --port 80", &["--port 80 is given twice"]),
        ("--port 80 --protocol icmp", &["icmp has no ports"]),
        ("--peer 10.1.0.0/16 --not-peer 10.0.0.0/8", &["leaves nothing of --peer 10.1.0.0/16"]),
        ("--protocol tcp --not-protocol tcp", &["leaves nothing of --protocol tcp"]),
        ("--not-peer ::/0 --not-peer 0.0.0.0/0", &["leave no packet"]),
        (many.as_str(), &["33 rules", "at most 32"]),
    ] {
        for detach in ["", " --detach"] {
            let add = format!("add --dev eth0 --netns NS --delay 1ms {what}{detach}");
            refused(&bench, &add, 2, words)?;
        }
    }
    let add = "add --dev eth0 --netns NS --delay 1ms";
    for (what, word) in [
        ("--service-db 1 --service-clients 1", "cannot be used with"),
        ("--service-db 1 --peer-port 5432", "cannot be used with"),
        ("--service-clients 1 --protocol tcp", "cannot be used with"),
        ("--db-port 5432", "--service-db"),
    ] {
        refused(&bench, &format!("{add} {what}"), 2, &[word])?;
    }
    refused(&bench, &format!("{add} --service-clients x"), 2, &["--service-clients: `x`"])?;
    refused(&bench, &format!("{add} --service-db 8000"), 1, &["nobody listens on port 8000"])?;
    refused(&bench, &format!("{add} --protocol sctp"), 2, &["sctp", "tcp, udp, icmp"])
}

#[test]
fn what_an_engine_lacks_is_refused() -> Result<()> {
    let bench = Bench::new()?;
    let add = "add --dev eth0 --netns NS --engine nfqueue --delay 1ms";
    for lacking in ["--duplicate 1%", "--corrupt 1%"] {
        let (option, _) = lacking.split_once(' ').unwrap_or_default();
        let words = ["engine nfqueue cannot do", option, "--engine netem"];
        refused(&bench, &format!("{add} {lacking}"), 1, &words)?;
    }
    Ok(())
}

#[test]
fn a_limit_that_drops_is_told_and_taken() -> Result<()> {
    let bench = Bench::new()?;
    let before = bench.state()?;
    let add = "add --dev eth0 --netns NS --delay 100ms --limit 100 --detach";
    let output = bench.run(add)?;
    let complaint = String::from_utf8(output.stderr)?;
    assert!(output.status.success(), "{complaint}");
    let warning = "warning: more than 1000 packets per second are dropped: the limit of 100 packets \
                   divided by 100ms";
    assert!(complaint.starts_with(warning), "{complaint}");
    let lines = bench.listed()?;
    assert_eq!(lines[0]["impairment"]["limit_packets"], 100);
    assert_eq!(lines[0]["description"], "delayed by 100ms; dropped when 100 are held");
    bench.succeed("clear --netns NS")?;
    bench.wait_until_clean(&before)?;
    Ok(())
}

#[test]
fn command_lines_that_cannot_be_read() -> Result<()> {
    let bench = Bench::new()?;
    refused(&bench, "add --delay 100ms", 2, &["--dev"])?;
    refused(&bench, "add --dev eth0", 2, &["nothing to inject", "--delay"])?;
    refused(&bench, "add --dev eth0 --limit 5", 2, &["nothing to inject", "--delay"])?;
    refused(&bench, "add --dev eth0 --jitter 5ms", 2, &["not provided:\n  --delay <TIME>\n"])?;
    refused(&bench, "add --dev eth0 --delay 1ms --netns NS --pid 1", 2, &["--pid"])?;
    refused(&bench, "add --dev eth0 --delay 1ms --engine magic", 2, &["magic", "nfqueue"])
}

#[test]
fn a_second_one_on_the_same_interface() -> Result<()> {
    let bench = Bench::new()?;
    let _agent = bench.add("--dev eth0 --netns NS --delay 100ms")?;
    let in_force = bench.state()?;
    for arguments in [
        "add --dev eth0 --netns NS --delay 50ms",
        "add --dev eth0 --netns NS --delay 50ms --detach",
        "add --dev eth0 --netns NS --delay 50ms --engine nfqueue",
    ] {
        let output = bench.run(arguments)?;
        let complaint = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(1), "{arguments}: {complaint}");
        assert!(complaint.contains("interface `eth0`"), "{complaint}");
        assert!(complaint.contains("is impaired already by process"), "{complaint}");
        let hint = format!("`agent inject clear --dev eth0 --netns {}`", bench.server());
        assert!(complaint.contains(&hint), "{complaint}");
        let now = mask_counters(&bench.state()?);
        assert_eq!(difference(&mask_counters(&in_force), &now), "", "{arguments}");
    }
    // Another interface of the namespace is another matter.
    let other = bench.add("--dev lo --netns NS --delay 50ms")?;
    assert_eq!(bench.listed()?.len(), 2);
    drop(other);
    Ok(())
}

/// What packets count up while an impairment is in force.
fn mask_counters(state: &str) -> String {
    let rule = |line: &&str| !line.contains("counter packets");
    let queue = |line: &&str| !line.trim_start().starts_with(|c: char| c.is_ascii_digit());
    state.lines().filter(rule).filter(queue).collect::<Vec<_>>().join("\n")
}

#[test]
fn without_root() -> Result<()> {
    let bench = Bench::new()?;
    let directory = tempfile::tempdir()?;
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755))?;
    let agent = directory.path().join("agent");
    std::fs::copy(agent_binary()?, &agent)?;
    let before = bench.state()?;
    for arguments in ["add --dev lo --delay 100ms", "list", "clear"] {
        let output = Command::new(&agent)
            .arg("inject")
            .args(arguments.split_whitespace())
            .uid(65_534)
            .gid(65_534)
            .current_dir("/")
            .output()?;
        let complaint = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(1), "{arguments}: {complaint}");
        assert_eq!(complaint, "error: injecting needs root: run it with sudo\n", "{arguments}");
    }
    assert_eq!(difference(&before, &bench.state()?), "");
    Ok(())
}
