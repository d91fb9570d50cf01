//! Boots a kernel, and there compares what our engine and tc leave in it.

use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use agent::inject::impairment_from_args;
use agent::model::impairment::Impairment;
use agent::model::netem::{Memory, NetemOptions, Request};
use agent::sys::netlink::Conn;
use agent::sys::{link, qdisc};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::lab::paths;
use tests::vm;

use crate::cases::{self, Case, Random};
use crate::inject::agent_binary;
use crate::{changes, directions, inject, replaced, retransmissions};

/// Interface that everything is put on.
const DEVICE: &str = "conform0";
const SEED: &str = "DWELL_NETEM_SEED";
const COUNT: &str = "DWELL_NETEM_COUNT";
/// First kernel whose netem takes a seed.
const SEEDED: (u32, u32) = (6, 6);

/// Boots `series` and runs [`conforms`] in it with `count` combinations. A seed in the environment
/// makes the combinations of an earlier run again.
pub(crate) fn boot(series: &str, count: u32) -> Result<()> {
    let seed = match std::env::var(SEED) {
        Ok(seed) => seed.parse().context(SEED)?,
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64,
    };
    println!("{SEED}={seed}");
    let variables = [(SEED, seed.to_string()), (COUNT, count.to_string())];
    vm::run_ignored_tests(series, 900, &["conformance::conforms"], &variables)
}

#[test]
#[ignore = "runs in the virtual machines that the other tests boot"]
fn conforms() -> Result<()> {
    let number = |name: &str| -> Result<u64> {
        std::env::var(name).context(name.to_owned())?.parse().context(name.to_owned())
    };
    let (seed, count) = (number(SEED)?, number(COUNT)?);
    run(&["ip", "link", "add", DEVICE, "type", "dummy"])?;
    run(&["ip", "link", "set", DEVICE, "up"])?;
    let mut bench = Bench::new()?;
    let untouched = bench.shown()?;

    let manual = cases::manual();
    let mut random = Random(seed);
    let generated = (0..count).map(|_| cases::generate(&mut random)).collect::<Result<Vec<_>>>()?;
    let mut failed = Vec::new();
    for case in manual.iter().chain(&generated) {
        if let Err(error) = bench.compare(case) {
            let (ours, tc) = (case.ours.join(" "), case.tc.join(" "));
            println!("FAILED ours: {ours}\n       tc: {tc}\n       {error:#}");
            failed.push(ours);
            // Nothing of it may disturb the next one.
            let _ = run(&["tc", "qdisc", "del", "dev", DEVICE, "root"]);
        }
        ensure!(bench.shown()? == untouched, "{case:?}: the interface is not as it was");
    }
    println!("{} examples of the manual and {count} combinations, seed {seed}", manual.len());
    ensure!(failed.is_empty(), "{} differ (seed {seed}): {failed:#?}", failed.len());

    let all: Vec<&Case> = manual.iter().chain(&generated).collect();
    bench.changes(&all)?;
    bench.by_command(&generated[0])?;
    bench.seeds()?;
    ensure!(bench.shown()? == untouched, "the interface is not as it was");
    drop(bench);
    directions::check()?;
    retransmissions::check(&inject::Bench::new()?, "netem")?;
    changes::check()?;
    replaced::check()
}

/// Each impairment has a handle of its own.
fn without_handles(mut shown: Vec<Value>) -> Vec<Value> {
    for qdisc in shown.iter_mut().filter_map(Value::as_object_mut) {
        qdisc.remove("handle");
    }
    shown
}

struct Bench {
    route: Conn,
    index: i32,
}

impl Bench {
    fn new() -> Result<Self> {
        let mut route = link::open()?;
        let links = link::list(&mut route)?;
        let index = links.iter().find(|link| link.name == DEVICE).context("no interface")?.index;
        Ok(Self { route, index })
    }

    /// What tc shows of the interface's qdiscs, without the seed that newer ones show: a kernel that
    /// is given none draws one.
    fn shown(&self) -> Result<Vec<Value>> {
        let text = run(&["tc", "-d", "-j", "qdisc", "show", "dev", DEVICE])?;
        let mut shown: Vec<Value> = serde_json::from_str(&text).context("tc -j")?;
        for options in shown.iter_mut().filter_map(|qdisc| qdisc["options"].as_object_mut()) {
            options.remove("seed");
        }
        Ok(shown)
    }

    /// What the kernel tells our decoder.
    fn read(&mut self) -> Result<NetemOptions> {
        let root = qdisc::root(&mut self.route, self.index)?;
        Ok(root.netem().with_context(|| format!("no netem: {root:?}"))??)
    }

    fn compare(&mut self, case: &Case) -> Result<()> {
        let impairment = impairment_from_args(&case.ours)?;
        let request = Request::from(&impairment);
        let asked = request.options;

        let before = qdisc::look(&mut self.route, self.index, qdisc::own_handle(0), false)?;
        qdisc::add(&mut self.route, self.index, &request, &before)?;
        let (ours, ours_read) = (self.shown()?, self.read()?);
        qdisc::restore(&mut self.route, self.index, &before)?;

        let handle = format!("{:x}:", before.own >> 16);
        let add = ["tc", "qdisc", "add", "dev", DEVICE, "root", "handle", &handle, "netem"];
        run(&[&add[..], &case.tc.iter().map(String::as_str).collect::<Vec<_>>()].concat())?;
        let (theirs, theirs_read) = (self.shown()?, self.read()?);
        run(&["tc", "qdisc", "del", "dev", DEVICE, "root"])?;

        ensure!(ours.len() == 1 && ours[0]["kind"] == "netem", "tc shows {ours:?}");
        ensure!(ours == theirs, "tc shows ours as {ours:?}\nits own as {theirs:?}");
        let ours_read = ours_read.seen_through(&asked);
        ensure!(ours_read == asked, "read back: {ours_read:?}\nasked: {asked:?}");
        let theirs_read = theirs_read.seen_through(&asked);
        ensure!(theirs_read == asked, "after tc: {theirs_read:?}\nasked: {asked:?}");
        Ok(())
    }

    /// A change to each case, from the one before it and from a plain delay, leaves what adding it
    /// leaves; and from a plain delay what tc's own change leaves, which keeps what it is not told of.
    fn changes(&mut self, cases: &[&Case]) -> Result<()> {
        let plain = impairment_from_args(["--delay", "10ms"])?;
        let (mut last, mut compared) = (plain.clone(), 0);
        for case in cases {
            let wanted = impairment_from_args(&case.ours)?;
            let request = Request::from(&wanted);
            let before = qdisc::look(&mut self.route, self.index, qdisc::own_handle(0), false)?;
            qdisc::add(&mut self.route, self.index, &request, &before)?;
            let added = self.shown()?;
            qdisc::restore(&mut self.route, self.index, &before)?;
            for first in [&plain, &last].map(Request::from) {
                if Memory::default().with(&first).spoils(&request).is_some() {
                    continue;
                }
                qdisc::add(&mut self.route, self.index, &first, &before)?;
                let changed = qdisc::change(&mut self.route, self.index, &request, before.own)
                    .map_err(anyhow::Error::from)
                    .and_then(|_| self.shown());
                qdisc::restore(&mut self.route, self.index, &before)?;
                let changed = changed.with_context(|| format!("{first:?} to {case:?}"))?;
                ensure!(changed == added, "{first:?} to {case:?}: {changed:?}\nnot {added:?}");
                compared += 1;
            }
            let handle = format!("{:x}:", before.own >> 16);
            let theirs: Vec<&str> = case.tc.iter().map(String::as_str).collect();
            for (verb, words) in [("add", &["delay", "10ms"][..]), ("change", &theirs)] {
                let tc = ["tc", "qdisc", verb, "dev", DEVICE, "root", "handle", &handle, "netem"];
                run(&[&tc[..], words].concat())?;
            }
            let theirs = self.shown();
            run(&["tc", "qdisc", "del", "dev", DEVICE, "root"])?;
            let theirs = theirs?;
            ensure!(theirs == added, "{case:?}: tc's change makes {theirs:?}\nnot {added:?}");
            last = wanted;
        }
        println!("{compared} changes in place");
        ensure!(compared > cases.len(), "only {compared} changes were possible");
        Ok(())
    }

    /// The same through the program: what it lists is what was asked for, and tc shows no other.
    fn by_command(&mut self, case: &Case) -> Result<()> {
        let agent = agent_binary()?;
        let agent = agent.to_str().context("the agent's path")?;
        let asked = impairment_from_args(&case.ours)?;
        let before = qdisc::look(&mut self.route, self.index, qdisc::own_handle(0), false)?;
        qdisc::add(&mut self.route, self.index, &Request::from(&asked), &before)?;
        let by_library = self.shown()?;
        qdisc::restore(&mut self.route, self.index, &before)?;

        let ours: Vec<&str> = case.ours.iter().map(String::as_str).collect();
        let add = [agent, "inject", "add", "--dev", DEVICE, "--engine", "netem", "--detach"];
        println!("{}", run(&[&add[..], &ours].concat())?);
        let by_program = self.shown()?;
        let alike = without_handles(by_program.clone()) == without_handles(by_library);
        ensure!(alike, "the program: {by_program:?}");
        let listed: Vec<Value> = serde_json::from_str(&run(&[agent, "inject", "list", "--json"])?)?;
        let [line] = &listed[..] else { panic!("one impairment, not {listed:?}") };
        let told: Impairment = serde_json::from_value(line["impairment"].clone())?;
        assert_eq!(told, asked);
        assert_eq!(line["description"], asked.to_string().as_str());
        let table = run(&[agent, "inject", "list"])?;
        assert!(table.contains(&asked.to_string()), "{table}");
        run(&[agent, "inject", "clear", "--dev", DEVICE])?;
        Ok(())
    }

    /// A kernel that knows no seed must not pass over it in silence.
    fn seeds(&mut self) -> Result<()> {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let release = release.trim();
        let mut numbers = release.split(['.', '-']).map(str::parse::<u32>);
        let version = match (numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
            _ => panic!("no version: {release}"),
        };
        let request = Request::from(&impairment_from_args(["--loss", "1%", "--seed", "77"])?);
        let before = qdisc::look(&mut self.route, self.index, qdisc::own_handle(0), false)?;
        let added = qdisc::add(&mut self.route, self.index, &request, &before);
        if version >= SEEDED {
            added?;
            assert_eq!(self.read()?.prng_seed, Some(77));
            qdisc::restore(&mut self.route, self.index, &before)?;
            return Ok(());
        }
        let Err(error) = added else { panic!("{release} took a seed, or passed over it") };
        let error = error.to_string();
        assert!(error.contains(release) && error.contains("--seed"), "{error}");
        let agent = agent_binary()?;
        let output = Command::new(agent)
            .args(["inject", "add", "--dev", DEVICE, "--loss", "1%", "--seed", "77"])
            .output()?;
        let said = String::from_utf8(output.stderr)?;
        println!("{said}");
        assert!(!output.status.success() && said.contains(release), "{said}");
        assert!(said.contains("does not know --seed"), "{said}");
        Ok(())
    }
}

/// Runs a program of the system's to a good end; returns what it printed.
fn run(words: &[&str]) -> Result<String> {
    let (program, arguments) = words.split_first().context("no program")?;
    let output = Command::new(paths::system(program)?).args(arguments).output()?;
    ensure!(output.status.success(), "{words:?}: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}
