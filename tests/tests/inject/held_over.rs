//! Packets that are held while an impairment is changed, whatever the engine.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use agent::sys::netns::Netns;
use anyhow::{Context as _, Result, ensure};
use tests::lab::{Network, Side};

/// Datagrams before the change, and as many after it.
const DATAGRAMS: u32 = 200;
/// Longest that a datagram may take beyond its delay.
const SLOW: Duration = Duration::from_secs(30);

/// With a delay of `old` in force on the server's interface, sends datagrams, changes it by running
/// `change`, and sends more. All must come; those of before not before `old`, and those of after
/// before them, since a shorter delay overtakes.
pub(crate) fn all_come(
    network: &Network,
    old: Duration,
    change: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let bind = |side, address: Ipv4Addr| -> Result<UdpSocket> {
        let netns = Netns::named(&network.name(side))?;
        Ok(netns.run(|| UdpSocket::bind((address, 0)))??)
    };
    let sink = bind(Side::Outside, network.outside_v4())?;
    sink.set_read_timeout(Some(SLOW))?;
    let to = sink.local_addr()?;
    let source = bind(Side::Server, network.server_v4())?;
    let mut sent = Vec::new();
    let mut send = |numbers: std::ops::Range<u32>| -> Result<()> {
        for number in numbers {
            sent.push(Instant::now());
            source.send_to(&number.to_ne_bytes(), to)?;
            // Not faster than an emulated machine takes them in.
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    };
    send(0..DATAGRAMS)?;
    change()?;
    send(DATAGRAMS..2 * DATAGRAMS)?;
    let mut order = Vec::new();
    for _ in 0..2 * DATAGRAMS {
        let mut number = [0; 4];
        sink.recv(&mut number)
            .with_context(|| format!("only {} of {} came", order.len(), sent.len()))?;
        order.push((u32::from_ne_bytes(number), Instant::now()));
    }
    for (number, came) in &order {
        let took = *came - sent[*number as usize];
        ensure!(*number >= DATAGRAMS || took >= old, "{number} came after {took:?}");
    }
    // Several processors may swap neighbours on their way, in any kernel.
    let mut numbers: Vec<u32> = order.iter().map(|(number, _)| *number).collect();
    let early = numbers.iter().take(DATAGRAMS as usize).filter(|number| **number < DATAGRAMS);
    ensure!(early.count() == 0, "some of before were hurried: {numbers:?}");
    numbers.sort_unstable();
    ensure!(numbers == (0..2 * DATAGRAMS).collect::<Vec<_>>(), "not each once: {numbers:?}");
    Ok(())
}
