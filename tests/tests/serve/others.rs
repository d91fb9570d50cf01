//! An impairment that another command put on the service's network is told, since the run is no
//! undelayed one.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use agent_common::wire::{Other, ToAgent, ToLoadgen};
use anyhow::Result;
use tests::lab::Side;

use crate::{
    inject::{Bench, agent_binary},
    support::Agent,
};

/// Longer than the agent takes to look again.
const LOOK: Duration = Duration::from_millis(1_500);

#[test]
fn impairments_of_others_are_told_as_they_come_and_go() -> Result<()> {
    let bench = Bench::new()?;
    let any = SocketAddr::new(bench.network.server_v4().into(), 0);
    let listener = bench.inside(Side::Server, || TcpListener::bind(any))??;
    let inject = |words: &[&str]| -> Result<()> {
        let place = ["--dev", "eth0", "--netns", &bench.server()];
        let output = std::process::Command::new(agent_binary()?)
            .arg("inject")
            .args(words)
            .args(place)
            .output()?;
        anyhow::ensure!(output.status.success(), "{words:?}: {output:?}");
        Ok(())
    };
    inject(&["add", "--delay", "20ms", "--jitter", "1ms", "--detach"])?;

    let agent = Agent::start("--allow-dev eth0")?;
    let mut client = agent.pair()?;
    client.target(listener.local_addr()?)?;
    client.start()?;
    std::thread::sleep(LOOK);
    inject(&["clear"])?;
    std::thread::sleep(LOOK);
    // The pair's own is none of others.
    client.impair(Duration::from_millis(5), Duration::from_secs(10))?;
    std::thread::sleep(LOOK);
    client.send(&ToAgent::Clear)?;
    assert!(matches!(client.reply()?, Some(ToLoadgen::Cleared { .. })));
    client.stop()?;

    let told = client.in_force();
    let [first, second] = &told[..] else { panic!("told twice, not {told:?}") };
    let [Other { device, direction, engine, words, delay_ns, pid: Some(_) }] = &first[..] else {
        panic!("one of another agent, not {first:?}")
    };
    assert_eq!((device.as_str(), direction.as_str(), *delay_ns), ("eth0", "egress", 20_000_000));
    assert!(["netem", "nfqueue"].contains(&engine.as_str()), "{engine}");
    assert_eq!(words, "delayed by 20ms \u{b1} 1ms");
    assert_eq!(second, &[]);
    Ok(())
}
