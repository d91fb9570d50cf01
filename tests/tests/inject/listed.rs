//! What `list` tells of who asked, and until when.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};

use super::support::Bench;

const ON: &str = "--dev eth0 --netns NS --engine nfqueue";

#[test]
fn by_whom_and_until_when() -> Result<()> {
    let bench = Bench::new()?;
    let before = bench.state()?;
    let begun = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let schedule = "0s:1ms,60s~9ms";
    let agent = bench.add(&format!("{ON} --schedule {schedule} --for 90s"))?;
    let [line] = &bench.listed()?[..] else { anyhow::bail!("not one impairment") };
    let by = &line["by"]["command"];
    assert_eq!(line["pid"], agent.child.id(), "{line}");
    ensure!(by["uid"].is_u64(), "{line}");
    let command = by["command"].as_str().context("no command")?;
    ensure!(command.contains("inject add --dev eth0") && command.contains(schedule), "{command}");
    assert_eq!((&line["ends"], &line["schedule"]), (&"at_time".into(), &"0s:1ms 60s~9ms".into()));
    let until = line["until"].as_u64().context("no end")?;
    ensure!((begun + 90..begun + 120).contains(&until), "{begun}, {line}");
    let table = bench.succeed("list")?;
    ensure!(table.contains("for 90s") || table.contains("for 8"), "{table}");
    drop(agent);
    bench.wait_until_clean(&before)?;

    // Another user, as sudo tells of them.
    let mut command = bench.command(&format!("add {ON} --delay 1ms --detach"))?;
    ensure!(command.env("SUDO_UID", "65533").output()?.status.success());
    let [line] = &bench.listed()?[..] else { anyhow::bail!("not one impairment") };
    assert_eq!((&line["ends"], &line["until"]), (&"when_cleared".into(), &().into()), "{line}");
    // Where somebody logged in, it is them whatever sudo says.
    let login = std::fs::read_to_string("/proc/self/loginuid").unwrap_or_default();
    let expected = login.trim().parse().ok().filter(|uid| *uid != u32::MAX).unwrap_or(65_533);
    assert_eq!(line["by"]["command"]["uid"], expected, "{line}");
    bench.succeed("clear --netns NS")?;
    bench.wait_until_clean(&before)?;
    Ok(())
}
