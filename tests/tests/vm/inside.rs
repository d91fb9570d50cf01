//! What runs in the virtual machine.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use agent_common::abi::flag;
use agent_common::wire::{Cleared, ClientTurn, DbTurn, Other, ServerRequest, ToAgent, ToLoadgen};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::lab::{App, Lab, PostgresSpec, Side, paths, server};
use tests::observed::{self, Exchange};

use crate::inject::agent_binary;
use crate::state;
use crate::support::{Agent, Client};

const DELAY: Duration = Duration::from_millis(100);
const DELAY_NS: u64 = 100_000_000;

#[test]
#[ignore = "runs in the virtual machine that the other test boots"]
fn the_whole_job() -> Result<()> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    ensure!(release.starts_with("6.1."), "this is {release}: start it by the test that boots 6.1");
    state::show_programs()?;
    let machine = state::tree(None)?;

    step("doctor");
    doctor_finds_a_hook_for_every_mark()?;

    step("laboratory");
    let mut lab = Lab::new(paths::scratch().join("logs/vm"))?;
    lab.start_postgres(&PostgresSpec::study(crate::ROWS))?;
    lab.start_server(&App::StudySync)?;
    // The first request makes Django load its code.
    lab.get("/io_read")?;
    let before = state::tree(Some(&lab))?;

    step("a request without delay");
    let plain = measure(&lab)?;
    plain.is_complete();
    assert_eq!(plain.in_force, [[]]);
    step("a request with delay");
    inject_100_ms(&lab)?;
    let delayed = measure(&lab)?;
    delayed.is_complete();
    let [told] = &delayed.in_force[..] else { panic!("told once: {:?}", delayed.in_force) };
    assert_eq!(words(told), [("eth0", "netem", "delayed by 100ms", true)]);
    the_receipt_tells_the_delay()?;
    step("clearing");
    agent(&["inject", "clear", "--netns", &lab.network().name(Side::Server)])?;
    state::assert_unchanged(&before, Some(&lab))?;
    step("a session that impairs");
    a_session_impairs(&lab)?;
    state::assert_unchanged(&before, Some(&lab))?;
    step("netem of tc's");
    told_of_tcs_netem(&lab)?;

    delayed.waited_for_the_delay(&plain);
    drop(lab);
    state::assert_unchanged(&machine, None)
}

/// With the capabilities that a serving agent keeps, its guardian included.
fn a_session_impairs(lab: &Lab) -> Result<()> {
    let address = SocketAddr::new(lab.network().server_v4().into(), server::PORT);
    let agent = Agent::start("--allow-dev eth0")?;
    let mut pair = agent.pair()?;
    pair.target(address)?;
    let impaired = pair.impair(DELAY, Duration::from_secs(60))?;
    assert_eq!((impaired.engine.as_str(), impaired.delay_ns), ("netem", DELAY_NS));
    let exchange = observed::inside(lab, Side::Outside, || observed::get(address, "/io_read"))?;
    // Ten packets at least leave one after the other.
    ensure!(exchange.c4 - exchange.c0 >= 10 * DELAY_NS, "{exchange:?}");
    pair.send(&ToAgent::Clear)?;
    let reply = pair.reply()?;
    let Some(ToLoadgen::Cleared(Cleared { held: Some(held), dropped: 0, .. })) = &reply else {
        panic!("not cleared with a receipt: {reply:?}")
    };
    println!("{held:?}");
    ensure!(held.packets >= 10 && held.p50_ns >= DELAY_NS - DELAY_NS / 256, "{held:?}");
    Ok(())
}

/// Somebody else's netem is told as well, also below another qdisc.
fn told_of_tcs_netem(lab: &Lab) -> Result<()> {
    let server = lab.network().name(Side::Server);
    let tc = |words: &str| -> Result<()> {
        let output = Command::new(paths::system("tc")?)
            .args(["-n", &server, "qdisc"])
            .args(words.split(' '))
            .output()?;
        ensure!(output.status.success(), "tc qdisc {words}: {output:?}");
        Ok(())
    };
    tc("add dev eth0 root handle 1: prio")?;
    tc("add dev eth0 parent 1:3 netem delay 30ms loss 1%")?;
    let agent = Agent::start("")?;
    let mut pair = agent.pair()?;
    pair.target(SocketAddr::new(lab.network().server_v4().into(), server::PORT))?;
    pair.start()?;
    pair.stop()?;
    let told = pair.in_force();
    let [told] = &told[..] else { panic!("told once: {told:?}") };
    let asked = "delayed by 30ms and impaired in other ways";
    assert_eq!(words(told), [("eth0", "netem", asked, false)]);
    tc("del dev eth0 root")
}

/// Interface, engine, words, and whether an agent answers for it.
fn words(told: &[Other]) -> Vec<(&str, &str, &str, bool)> {
    told.iter()
        .map(|other| {
            let Other { device, engine, words, pid, .. } = other;
            (device.as_str(), engine.as_str(), words.as_str(), pid.is_some())
        })
        .collect()
}

/// Says how far it has come, since emulation takes minutes.
fn step(name: &str) {
    let up = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    println!("--- {name} ({} s after boot)", up.split(' ').next().unwrap_or_default());
}

fn agent(arguments: &[&str]) -> Result<String> {
    let output = Command::new(agent_binary()?).args(arguments).output()?;
    ensure!(output.status.success(), "agent {arguments:?}: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

fn doctor_finds_a_hook_for_every_mark() -> Result<()> {
    let said: Value = serde_json::from_str(&agent(&["doctor", "--json"])?)?;
    assert_eq!(said["ready"], true, "{said:#}");
    let checks = said["checks"].as_array().context("no checks")?;
    let engine = checks.iter().find(|check| check["name"] == "injection engine");
    assert_eq!(engine.map(|check| &check["detail"]), Some(&"netem".into()), "{said:#}");
    let plan = said["plan"].as_array().context("no plan")?;
    assert!(!plan.is_empty());
    for line in plan {
        println!("{}: {}", line["mark"], line["hook"]);
        assert!(line["hook"].is_string(), "{line}");
    }
    Ok(())
}

/// Injects, and holds the agent's account of it against tc's.
fn inject_100_ms(lab: &Lab) -> Result<()> {
    let server = lab.network().name(Side::Server);
    let place = ["--netns", &server, "--dev", "eth0"];
    agent(&[&["inject", "add", "--delay", "100ms", "--detach"], &place[..]].concat())?;

    let listed: Vec<Value> = serde_json::from_str(&agent(&["inject", "list", "--json"])?)?;
    let [ours] = &listed[..] else { panic!("one impairment, not {listed:?}") };
    assert_eq!((&ours["netns"], &ours["device"]), (&server.as_str().into(), &"eth0".into()));
    assert_eq!((&ours["engine"], &ours["state"]), (&"netem".into(), &"in_force".into()));

    let output = Command::new(paths::system("tc")?)
        .args(["-n", &server, "-j", "qdisc", "show", "dev", "eth0", "root"])
        .output()?;
    let shown: Vec<Value> = serde_json::from_slice(&output.stdout).context("tc -j")?;
    let [qdisc] = &shown[..] else { panic!("one root qdisc, not {shown:?}") };
    println!("{qdisc}\n{ours}");
    assert_eq!(qdisc["kind"], "netem");
    // tc prints seconds.
    let seconds = qdisc["options"]["delay"]["delay"].as_f64().context("tc shows no delay")?;
    let listed = ours["delay_ns"].as_f64().context("list shows no delay")?;
    assert!((seconds * 1e9 - listed).abs() < 1.0, "tc: {seconds} s, list: {listed} ns");
    assert_eq!(listed, DELAY_NS as f64);
    Ok(())
}

/// What packets got of netem, as the kernel half counted it.
fn the_receipt_tells_the_delay() -> Result<()> {
    let listed: Vec<Value> = serde_json::from_str(&agent(&["inject", "list", "--json"])?)?;
    let receipt = &listed[0]["receipt"];
    println!("{receipt}");
    let p50 = receipt["p50_ns"].as_u64().context("no median")?;
    // A cell of the histogram is 1/256 wide; an emulated timer may be late.
    assert!((DELAY_NS - DELAY_NS / 256..DELAY_NS * 3 / 2).contains(&p50), "{receipt}");
    assert!(receipt["packets"].as_u64().is_some_and(|packets| packets >= 20), "{receipt}");
    Ok(())
}

/// One request, as its client and the agent saw it.
#[derive(Debug)]
struct Measured {
    exchange: Exchange,
    request: ServerRequest,
    turn: ClientTurn,
    turns: Vec<DbTurn>,
    /// Each time that the agent told of others' impairments.
    in_force: Vec<Vec<Other>>,
}

/// Makes one request while a real agent serves this process as its load generator.
fn measure(lab: &Lab) -> Result<Measured> {
    let idle = state::programs()?.len();
    let address = SocketAddr::new(lab.network().server_v4().into(), server::PORT);
    let agent = Agent::start("")?;
    let mut pair = agent.pair()?;
    pair.target(address)?;
    pair.start()?;
    assert!(state::programs()?.len() > idle, "the probes do not show among the programs");
    let exchange = observed::inside(lab, Side::Outside, || observed::get(address, "/io_read"))?;
    // The server closes after the client has its answer.
    std::thread::sleep(Duration::from_millis(700));
    let totals = pair.stop()?;
    assert_eq!((totals.lost_events, totals.peer_slow), (0, 0));

    let in_force = pair.in_force();
    let (requests, turns, mut exchanges) = records(&mut pair);
    exchanges.retain(|turn| turn.client == exchange.local);
    let [request] = requests[..] else { panic!("one request, not {requests:?}") };
    let [turn] = exchanges[..] else { panic!("one exchange, not {exchanges:?}") };
    assert_eq!(request.client, exchange.local);
    Ok(Measured { exchange, request, turn, turns, in_force })
}

fn records(pair: &mut Client) -> (Vec<ServerRequest>, Vec<DbTurn>, Vec<ClientTurn>) {
    let (mut requests, mut turns, mut exchanges) = (Vec::new(), Vec::new(), Vec::new());
    for record in pair.records.drain(..) {
        match record {
            ToLoadgen::Requests(batch) | ToLoadgen::Unfinished(batch) => requests.extend(batch),
            ToLoadgen::DbTurns(batch) => turns.extend(batch),
            ToLoadgen::ClientTurns(batch) => exchanges.extend(batch),
            _ => {}
        }
    }
    (requests, turns, exchanges)
}

impl Measured {
    /// Every mark was taken by its own hook, in an order that causality allows.
    fn is_complete(&self) {
        let Self { exchange, request, turn, turns, .. } = self;
        println!("{exchange:?}\n{request:?}\n{turn:?}");
        assert_eq!(request.flags & (flag::ADOPTED | flag::UNFINISHED | flag::S1_AT_READ), 0);
        let server = [exchange.c0, request.s0, request.s2, request.s3, request.s4, request.s5];
        assert!(server.is_sorted() && server.iter().all(|mark| *mark > 0), "{server:?}");
        // Not against s5, the return of the call: undelayed, the bytes arrive before that.
        assert!(request.s4 <= turn.c3k, "{request:?} {turn:?}");
        assert!((request.s0..=request.s3).contains(&request.s1), "{request:?}");
        let client = [exchange.c0, turn.syn, turn.established, turn.c3k, turn.c4k, exchange.c4];
        assert!(client.is_sorted() && client.iter().all(|mark| *mark > 0), "{client:?}");
        assert_eq!(request.tx_bytes, exchange.bytes);

        let kinds = self.kinds();
        println!("{kinds:?}");
        assert_eq!((kinds["tcp_connect"], kinds["startup"]), (1, 1), "{kinds:?}");
        assert!(kinds["auth"] >= 1 && kinds["query"] >= 2, "{kinds:?}");
        assert!(!kinds.contains_key("other"), "{kinds:?}");
        assert!(turns.iter().all(|turn| turn.answered > turn.sent_first), "{turns:?}");
    }

    fn kinds(&self) -> BTreeMap<&'static str, usize> {
        let mut kinds = BTreeMap::new();
        for turn in &self.turns {
            *kinds.entry(turn.kind.name()).or_default() += 1;
        }
        kinds
    }

    /// Each crossing of the delayed interface took the delay, and nothing else appeared.
    fn waited_for_the_delay(&self, plain: &Self) {
        assert_eq!(self.kinds(), plain.kinds(), "the same round trips");
        let crossings = [
            // The handshake's answer leaves the server's namespace, and so does the response.
            ("connect", self.request.s0 - self.exchange.c0),
            ("response_net", self.turn.c4k.saturating_sub(self.request.s5)),
        ];
        for (what, took) in crossings {
            assert!(took >= DELAY_NS, "{what}: {took} ns");
        }
        for turn in &self.turns {
            let took = turn.answered - turn.sent_first;
            assert!(took >= DELAY_NS, "{turn:?}");
        }
        let total = |measured: &Self| measured.exchange.c4 - measured.exchange.c0;
        let (fast, slow) = (total(plain), total(self));
        let crossings = self.turns.len() as u64 + 2;
        println!("plain {fast} ns, delayed {slow} ns, {crossings} crossings");
        assert!(slow >= crossings * DELAY_NS, "{slow}");
        // Emulated, everything else may take as long again; another delay may not hide in it.
        let slack = fast + DELAY.as_nanos() as u64;
        assert!(slow <= crossings * DELAY_NS + 2 * slack, "{slow}");
    }
}
