//! Only some packets with netem: those in scope wait, the others do not, and nothing is left, however
//! it ends. Runs in the virtual machines.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use crate::inject::{Bench, Echo, Foreground, difference, median, round_trips};
use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::lab::{Side, paths};

/// Long beside everything else in an emulated machine.
const DELAY: Duration = Duration::from_millis(300);
const ADD: &str = "--netns NS --engine netem --delay 300ms";
const ROUNDS: u32 = 5;

#[test]
#[ignore = "runs in the virtual machines that the other tests boot"]
fn only_what_is_in_scope_waits() -> Result<()> {
    let place = Place::new()?;
    place.eth0()?;
    place.lo()?;
    place.killed()
}

/// Two servers over IPv4, one over IPv6, and one at the outside.
struct Place {
    bench: Bench,
    v4: [Echo; 2],
    v6: Echo,
    away: Echo,
    local: [Echo; 2],
    before: String,
}

impl Place {
    fn new() -> Result<Self> {
        let bench = Bench::new()?;
        let (v4, v6): (IpAddr, IpAddr) =
            (bench.network.server_v4().into(), bench.network.server_v6().into());
        let away = bench.network.outside_v4().into();
        let local = IpAddr::from(Ipv4Addr::LOCALHOST);
        let server = |address| Echo::start(&bench, Side::Server, address);
        let (one, two, six) = (server(v4)?, server(v4)?, server(v6)?);
        let (first, second) = (server(local)?, server(local)?);
        let away = Echo::start(&bench, Side::Outside, away)?;
        let before = state(&bench)?;
        Ok(Self { v4: [one, two], v6: six, away, local: [first, second], before, bench })
    }

    /// How many delays a datagram's round trip takes at the median.
    fn delays(&self, side: Side, to: SocketAddr) -> Result<u32> {
        let time = median(&round_trips(&self.bench, side, to, ROUNDS)?);
        Ok((time.as_secs_f64() / DELAY.as_secs_f64()) as u32)
    }

    /// To the first and second server of IPv4, that of IPv6, and from the server to the outside.
    fn all(&self) -> Result<[u32; 4]> {
        Ok([
            self.delays(Side::Outside, self.v4[0].address)?,
            self.delays(Side::Outside, self.v4[1].address)?,
            self.delays(Side::Outside, self.v6.address)?,
            self.delays(Side::Server, self.away.address)?,
        ])
    }

    fn eth0(&self) -> Result<()> {
        let port = self.v4[0].address.port();
        let peer = self.bench.network.outside_v4();
        let away = self.away.address.port();
        assert_eq!(self.all()?, [0; 4]);
        for (options, expected, held) in [
            (format!("--port {port}"), [1, 0, 0, 0], 1),
            (format!("--port {port} --direction ingress"), [1, 0, 0, 0], 1),
            (format!("--port {port} --direction both"), [2, 0, 0, 0], 2),
            (format!("--peer-port {away} --direction both"), [0, 0, 0, 2], 2),
            (format!("--peer {peer} --not-port {port}"), [0, 1, 0, 1], 2),
            ("--peer ::/0 --protocol udp".to_owned(), [0, 0, 1, 0], 1),
            ("--not-protocol udp --direction both".to_owned(), [0; 4], 0),
            // All packets, by the same redirect and without one.
            ("--direction both".to_owned(), [2; 4], 8),
        ] {
            let agent = self.bench.add(&format!("{ADD} --dev eth0 {options}"))?;
            let delays = self.all()?;
            println!("{options}: {delays:?}\n{}", agent.told);
            assert_eq!(delays, expected, "{options}");
            let listed = self.bench.listed()?;
            assert_eq!(listed[0]["engine"], "netem", "{listed:?}");
            let receipt = &listed[0]["receipt"];
            let packets = receipt["packets"].as_u64().context("no receipt")?;
            // Nothing else speaks UDP in there; those without a port or peer count whatever comes.
            if options.contains("--not") || held == 8 {
                ensure!(packets >= u64::from(held * ROUNDS), "{options}: {receipt}");
            } else {
                assert_eq!(packets, u64::from(held * ROUNDS), "{options}: {receipt}");
            }
            self.end(agent, &options)?;
        }
        Ok(())
    }

    /// Either end is ours.
    fn lo(&self) -> Result<()> {
        let port = self.local[0].address.port();
        for options in [format!("--port {port}"), format!("--peer-port {port} --direction both")] {
            let agent = self.bench.add(&format!("{ADD} --dev lo {options}"))?;
            let delays = [
                self.delays(Side::Server, self.local[0].address)?,
                self.delays(Side::Server, self.local[1].address)?,
            ];
            assert_eq!(delays, [2, 0], "{options}");
            self.end(agent, &options)?;
        }
        Ok(())
    }

    fn end(&self, agent: Foreground, options: &str) -> Result<()> {
        agent.signal(Signal::SIGINT)?;
        let (code, said, complaint) = agent.end()?;
        assert_eq!((code, complaint.as_str()), (Some(0), ""), "{options}: {said}");
        assert_eq!(difference(&self.before, &state(&self.bench)?), "", "{options}");
        Ok(())
    }

    /// The guardian clears behind its agent; behind both, the next `clear`, with and without an entry
    /// that tells of what is left.
    fn killed(&self) -> Result<()> {
        let bench = &self.bench;
        let add = format!("{ADD} --dev eth0 --port 1 --direction both");
        let agent = bench.add(&add)?;
        ensure!(state(bench)?.contains("dwell-out"), "nothing is in force");
        agent.signal(Signal::SIGKILL)?;
        // In an emulated machine a second is not a promise.
        let cleared = (0..50).any(|_| {
            std::thread::sleep(Duration::from_millis(100));
            state(bench).is_ok_and(|state| state == self.before)
        });
        ensure!(cleared, "the guardian left: {}", difference(&self.before, &state(bench)?));
        drop(agent);
        for forget in [false, true] {
            let agent = bench.add(&add)?;
            // The guardian first, or it would do its work.
            let mut processes = bench.processes();
            processes.sort_by_key(|pid| *pid == agent.child.id());
            ensure!(processes.len() == 2, "an agent and its guardian, not {processes:?}");
            for pid in processes {
                kill(Pid::from_raw(pid as i32), Signal::SIGKILL)?;
            }
            drop(agent);
            let left = difference(&self.before, &state(bench)?);
            ensure!(left.contains("dwell-in") && left.contains("dwell-out"), "left: {left}");
            if forget {
                for file in std::fs::read_dir("/run/dwell")? {
                    std::fs::remove_file(file?.path())?;
                }
            }
            println!("{}", bench.succeed("clear --netns NS")?);
            assert_eq!(difference(&self.before, &state(bench)?), "", "forgotten: {forget}");
        }
        Ok(())
    }
}

/// As the bench tells it, and the filters of both interfaces.
fn state(bench: &Bench) -> Result<String> {
    let mut state = bench.state()?;
    for place in ["eth0 ingress", "eth0 egress", "lo ingress", "lo egress"] {
        let mut tc = Command::new(paths::system("tc")?);
        tc.args(["-n", &bench.server(), "filter", "show", "dev"]).args(place.split(' '));
        state += &format!("== filters of {place}\n");
        state += &String::from_utf8(tc.output()?.stdout)?;
    }
    Ok(state)
}
