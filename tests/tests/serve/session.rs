//! A real session: a Django server behind Postgres, measured and delayed over the socket.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use agent_common::{
    abi::{class, flag},
    wire::{DbKind, DbTurn, ErrorCode, Hold, ServerRequest, ToAgent, ToLoadgen, Window},
};
use anyhow::Result;
use tests::lab::{App, Lab, PostgresSpec, paths, server};

use crate::support::{Agent, Client};

const LEASE: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct Seen {
    requests: Vec<ServerRequest>,
    unfinished: Vec<ServerRequest>,
    turns: Vec<DbTurn>,
    statements: BTreeMap<u32, String>,
    holds: Vec<Hold>,
    windows: Vec<Window>,
}

impl Seen {
    fn of(client: &mut Client) -> Self {
        let mut seen = Self::default();
        for record in client.records.drain(..) {
            match record {
                ToLoadgen::Requests(batch) => seen.requests.extend(batch),
                ToLoadgen::Unfinished(batch) => seen.unfinished.extend(batch),
                ToLoadgen::DbTurns(batch) => seen.turns.extend(batch),
                ToLoadgen::Statement { id, text } => {
                    assert_eq!(seen.statements.insert(id, text), None);
                }
                ToLoadgen::Holds(batch) => seen.holds.extend(batch),
                ToLoadgen::Window(window) => seen.windows.push(window),
                _ => {}
            }
        }
        seen
    }

    fn kinds(&self) -> BTreeMap<&'static str, usize> {
        let mut kinds = BTreeMap::new();
        for turn in &self.turns {
            *kinds.entry(turn.kind.name()).or_default() += 1;
        }
        kinds
    }
}

#[test]
fn a_django_server_is_measured_and_delayed() -> Result<()> {
    const REQUESTS: usize = 5;
    let mut lab = Lab::new(paths::scratch().join("logs/serve"))?;
    lab.start_postgres(&PostgresSpec::study(1_000))?;
    lab.start_server(&App::StudySync)?;
    lab.get("/io_read")?;
    let address = SocketAddr::new(lab.network().server_v4().into(), server::PORT);
    let agent = Agent::start("--allow-dev eth0")?;
    let mut client = agent.pair()?;

    let targeted = client.target(address)?;
    assert_eq!(targeted.device, "eth0");
    assert!(targeted.backlog >= 128, "{}", targeted.backlog);
    assert!(targeted.processes.len() >= 2, "master and worker: {:?}", targeted.processes);
    assert!(targeted.plan.iter().any(|line| line.mark == "s0" && line.hook.is_some()));

    client.start()?;
    for _ in 0..REQUESTS {
        lab.get("/io_read")?;
    }
    // A whole window.
    std::thread::sleep(Duration::from_millis(1_200));
    let totals = client.stop()?;
    let seen = Seen::of(&mut client);
    println!("{totals:?}\n{:?}\n{:?}", seen.kinds(), seen.statements);
    assert_eq!((totals.lost_events, totals.peer_slow), (0, 0));
    assert_eq!(seen.requests.len(), REQUESTS);
    assert_eq!(totals.requests as usize, REQUESTS);
    assert!(seen.unfinished.is_empty());
    for request in &seen.requests {
        assert_eq!(request.server, address);
        let marks =
            [request.s0, request.s2, request.s3, request.s4, request.s5].map(|mark| mark as i128);
        assert!(marks[0] > 0 && marks.is_sorted(), "{request:?}");
        assert!(request.rx_bytes > 0 && request.tx_bytes > 0);
    }
    let kinds = seen.kinds();
    for kind in [DbKind::TcpConnect, DbKind::Startup] {
        assert_eq!(kinds.get(kind.name()), Some(&REQUESTS), "{kinds:?}");
    }
    assert!(kinds.get("query").is_some_and(|count| *count >= 2 * REQUESTS), "{kinds:?}");
    assert!(kinds.get("session_setup").is_some_and(|count| *count >= REQUESTS), "{kinds:?}");
    assert!(!kinds.contains_key("other"), "{kinds:?}");
    let posts =
        seen.statements.values().find(|text| text.contains("ORDER BY") || text.contains("LIMIT"));
    assert!(
        posts.is_some_and(|text| text.contains("LIMIT ?") && !text.contains("25")),
        "{posts:?}"
    );
    let sync_worker_holds = seen.turns.iter().all(|turn| turn.held_conn != 0);
    assert!(sync_worker_holds, "a synchronous worker holds a connection while it asks");
    assert!(seen.holds.len() >= REQUESTS - 1, "{} holds", seen.holds.len());
    let spent = |class: usize| -> u64 {
        seen.windows.iter().flat_map(|w| &w.threads).map(|thread| thread.ns[class]).sum()
    };
    assert!(spent(class::CPU) > 0 && spent(class::DATABASE) > 0 && spent(class::IDLE) > 0);
    assert!(
        seen.windows
            .iter()
            .flat_map(|w| &w.threads)
            .any(|thread| thread.comm.contains("gunicorn") || thread.comm.contains("python"))
    );

    // The same session again, delayed.
    let fast = time(|| lab.get("/io_read"))?;
    client.start()?;
    let delay = Duration::from_millis(20);
    let impaired = client.impair(delay, LEASE)?;
    assert_eq!((impaired.device.as_str(), impaired.delay_ns), ("eth0", 20_000_000));
    let slow = time(|| lab.get("/io_read"))?;
    client.send(&ToAgent::Clear)?;
    let Some(ToLoadgen::Cleared(cleared)) = client.reply()? else { panic!("not cleared") };
    assert_eq!(cleared.dropped, 0);
    assert_eq!(cleared.retransmissions.map(|sent| sent.timeouts), Some(0), "{cleared:?}");
    let after = time(|| lab.get("/io_read"))?;
    client.stop()?;
    let delayed = Seen::of(&mut client);
    let request = delayed.requests.iter().min_by_key(|request| request.s0).expect("a request");
    let turns = delayed.turns.iter().filter(|turn| turn.held_conn == request.conn).count() as u32;
    let service = Duration::from_nanos(request.s5 - request.s3);
    println!("{fast:?}, delayed {slow:?} ({turns} turns, service {service:?}), after {after:?}");
    assert!(service > delay * (turns - 1), "each turn waits for the delay: {service:?}");
    assert!(after < slow / 2 && fast < slow / 2);
    client.send(&ToAgent::Bye)?;
    assert_eq!(client.receive()?, None);
    Ok(())
}

fn time<T>(work: impl FnOnce() -> Result<T>) -> Result<Duration> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}

#[test]
fn a_service_that_ends_mid_run_is_told_of() -> Result<()> {
    let mut lab = Lab::new(paths::scratch().join("logs/serve_gone"))?;
    lab.start_server(&App::Control { steps: "sleep:5000".to_owned() })?;
    let address = SocketAddr::new(lab.network().server_v4().into(), server::PORT);
    let agent = Agent::start("")?;
    let mut client = agent.pair()?;
    let processes = client.target(address)?.processes;
    client.start()?;
    let hanging = std::thread::scope(|scope| {
        let get = scope.spawn(|| lab.get("/"));
        std::thread::sleep(Duration::from_millis(1_000));
        for process in &processes {
            let pid = nix::unistd::Pid::from_raw(process.pid as i32);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        get.join()
    });
    assert!(hanging.is_ok_and(|got| got.is_err()), "the request cannot have been answered");
    let reply = client.error()?;
    assert_eq!(reply.code, ErrorCode::TargetGone);
    let totals = client.stop()?;
    assert_eq!(totals.lost_events, 0);
    let seen = Seen::of(&mut client);
    // The request that was in hand is told as it stood: closed, never answered.
    let all: Vec<_> = seen.requests.iter().chain(&seen.unfinished).collect();
    assert_eq!(all.len(), 1, "{all:?}");
    assert!(all[0].s3 != 0 && all[0].s5 == 0, "{all:?}");
    assert!(all[0].flags & (flag::CLOSED | flag::UNFINISHED) != 0, "{all:?}");
    drop(lab);
    Ok(())
}
