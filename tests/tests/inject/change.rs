//! Changing an impairment in place.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::lab::Side;

use super::held_over;
use super::support::{Bench, Echo, median, round_trips};

const ON: &str = "--dev eth0 --netns NS";

/// What the file tells that another agent would read.
fn on_disk(bench: &Bench) -> Result<Value> {
    let wanted = bench.server();
    for file in std::fs::read_dir("/run/dwell")?.flatten() {
        if file.path().extension().is_some_and(|ending| ending == "json") {
            // Those of other tests' agents may end meanwhile.
            let entry: Value =
                serde_json::from_slice(&std::fs::read(file.path()).unwrap_or_default())
                    .unwrap_or_default();
            if entry["netns"] == wanted.as_str() {
                return Ok(entry);
            }
        }
    }
    anyhow::bail!("no file tells of {wanted}")
}

#[test]
fn what_is_held_stays_as_long_as_it_was_to() -> Result<()> {
    let bench = Bench::new()?;
    let before = bench.state()?;
    bench.succeed(&format!("add {ON} --delay 2s --detach"))?;
    let mut told = String::new();
    held_over::all_come(&bench.network, Duration::from_secs(2), || {
        told = bench.succeed(&format!("change {ON} --delay 20ms"))?;
        Ok(())
    })?;
    assert!(told.contains("delayed by 20ms") && told.contains(" held over"), "{told}");
    // IPv6 says a word of its own now and then.
    let held = told.rsplit("; ").next().and_then(|end| end.split(' ').next());
    let held: u64 = held.context("no number")?.parse()?;
    ensure!((200..220).contains(&held), "{told}");

    let [line] = &bench.listed()?[..] else { anyhow::bail!("not one impairment") };
    assert_eq!(line["impairment"]["delay_ns"], 20_000_000, "{line}");
    assert_eq!(on_disk(&bench)?["impairment"]["delay_ns"], 20_000_000);
    // The 200 of before, which had 2 s, are not in it.
    let receipt = &line["receipt"];
    let packets = receipt["packets"].as_u64().context("no receipt")?;
    assert!((200..300).contains(&packets), "{line}");
    assert!(receipt["max_ns"].as_u64() < Some(1_000_000_000), "{line}");
    assert_eq!(line["dropped"], 0, "{line}");
    bench.succeed("clear --netns NS")?;
    bench.wait_until_clean(&before)?;
    Ok(())
}

#[test]
fn each_impairment_in_turn_is_what_packets_get() -> Result<()> {
    let bench = Bench::new()?;
    let before = bench.state()?;
    let echo = Echo::start(&bench, Side::Outside, bench.network.outside_v4().into())?;
    let trip = |count| round_trips(&bench, Side::Server, echo.address, count);
    let agent = bench.add(&format!("{ON} --engine nfqueue --delay 100ms"))?;
    ensure!(median(&trip(5)?) >= Duration::from_millis(100));

    bench.succeed(&format!("change {ON} --delay 10ms --jitter 5ms --distribution normal"))?;
    let some = trip(20)?;
    ensure!(median(&some) < Duration::from_millis(60), "{some:?}");
    // Back from a table, which netem could not.
    bench.succeed(&format!("change {ON} --delay 40ms --jitter 5ms"))?;
    let some = trip(20)?;
    ensure!(some[0] >= Duration::from_millis(35), "{some:?}");

    // A datagram of 4 bytes is one of 46 here; the queue was bound without lengths.
    bench.succeed(&format!("change {ON} --rate 8kbit"))?;
    let start = Instant::now();
    trip(5)?;
    let took = start.elapsed();
    ensure!(took >= Duration::from_millis(5 * 46), "5 datagrams of 46 ms: {took:?}");

    bench.succeed(&format!("change {ON} --delay 1ms"))?;
    ensure!(median(&trip(20)?) < Duration::from_millis(30));
    drop(agent);
    bench.wait_until_clean(&before)?;
    Ok(())
}

#[test]
fn what_cannot_be_changed_stays_as_it_is() -> Result<()> {
    let bench = Bench::new()?;
    let refused = |arguments: &str, why: &str| -> Result<()> {
        let output = bench.run(&format!("change {ON} {arguments}"))?;
        let said = String::from_utf8(output.stderr)?;
        ensure!(!output.status.success() && said.contains(why), "{arguments}: {said}");
        ensure!(said.lines().count() == 1, "one error, not {said}");
        Ok(())
    };
    refused("--delay 10ms", "nothing is injected on interface `eth0`")?;
    let agent = bench.add(&format!("{ON} --engine nfqueue --delay 30ms"))?;
    let as_before = bench.state()?;
    refused("--corrupt 1%", "cannot do --corrupt")?;
    refused("--delay 0ms", "nothing would be injected")?;
    refused("--delay 61s", "above the largest")?;
    assert_eq!(bench.state()?, as_before);
    assert_eq!(on_disk(&bench)?["impairment"]["delay_ns"], 30_000_000);
    let listed = bench.listed()?;
    assert_eq!(listed[0]["impairment"]["delay_ns"], 30_000_000);
    drop(agent);
    Ok(())
}
