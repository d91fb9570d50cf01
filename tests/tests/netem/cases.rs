//! Combinations of options, each in our words and in tc's.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

/// The examples of tc-netem's manual page (iproute2 of 2026), in our words and in tc's. Of the one with
/// classes, the netem in it. `gap 5` alone is refused by tc itself: reordering all of every fifth is
/// what the page says it means.
const MANUAL: [(&str, &str); 13] = [
    ("--delay 100ms", "delay 100ms"),
    ("--delay 100ms --jitter 10ms", "delay 100ms 10ms"),
    ("--delay 100ms --jitter 10ms --delay-correlation 25%", "delay 100ms 10ms 25%"),
    ("--delay 100ms --jitter 20ms --distribution normal", "delay 100ms 20ms distribution normal"),
    ("--loss 0.1%", "loss 0.1%"),
    ("--duplicate 1%", "duplicate 1%"),
    ("--loss 0.3% --loss-correlation 25%", "loss 0.3% 25%"),
    ("--delay 10ms --reorder 100% --reorder-gap 5", "gap 5 delay 10ms reorder 100%"),
    ("--delay 10ms --reorder 25% --reorder-correlation 50%", "delay 10ms reorder 25% 50%"),
    ("--delay 100ms --jitter 75ms", "delay 100ms 75ms"),
    ("--delay 10ms --jitter 100ms", "delay 10ms 100ms"),
    ("--rate 5kbit --packet-overhead 20 --cell-size 100 --cell-overhead 5", "rate 5kbit 20 100 5"),
    ("--delay 200ms --jitter 10ms --distribution normal", "delay 200ms 10ms distribution normal"),
];

/// One combination.
#[derive(Clone, Debug, Default)]
pub(crate) struct Case {
    /// Options of `agent inject add`.
    pub(crate) ours: Vec<String>,
    /// What follows `netem` in a tc command.
    pub(crate) tc: Vec<String>,
}

impl Case {
    fn add(&mut self, ours: &str, tc: &str) {
        self.ours.extend(ours.split_whitespace().map(str::to_owned));
        self.tc.extend(tc.split_whitespace().map(str::to_owned));
    }
}

/// The manual page's.
pub(crate) fn manual() -> Vec<Case> {
    let case = |(ours, tc): &(&str, &str)| {
        let mut case = Case::default();
        case.add(ours, tc);
        // Ours is another than tc's where none is given.
        case.add("", "limit 100000");
        case
    };
    MANUAL.iter().map(case).collect()
}

/// A file of a distribution that iproute2 installs.
pub(crate) fn dist_file(name: &str) -> Result<PathBuf> {
    let arch = format!("/usr/lib/{}-linux-gnu/tc", std::env::consts::ARCH);
    [arch.as_str(), "/usr/lib/tc", "/usr/share/tc", "/usr/lib64/tc"]
        .iter()
        .map(|directory| PathBuf::from(directory).join(format!("{name}.dist")))
        .find(|path| path.is_file())
        .with_context(|| format!("no {name}.dist found; install iproute2"))
}

/// Random numbers (splitmix64): the same seed makes the same combinations everywhere.
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn within(&mut self, least: u64, most: u64) -> u64 {
        least + self.next() % (most - least + 1)
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.within(1, 100) <= percent
    }

    fn one_of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.within(0, all.len() as u64 - 1) as usize]
    }

    /// A multiple of 8 us, at most this many ms: older tc counts in ticks of 64 ns by way of
    /// microseconds, and every other time would be rounded.
    fn time(&mut self, most_ms: u64) -> String {
        format!("{}us", self.within(1, most_ms * 125) * 8)
    }

    /// A percentage up to `most`, in steps of a thousandth.
    fn percent(&mut self, most: u64) -> String {
        let thousandths = self.within(1, most * 1000);
        format!("{}.{:03}%", thousandths / 1000, thousandths % 1000)
    }
}

/// A combination, from one option to all of them.
pub(crate) fn generate(random: &mut Random) -> Result<Case> {
    let mut case = Case::default();
    // tc passes the correlation of duplicates on only together with another one.
    let mut correlated = false;
    let delayed = random.chance(80);
    if delayed {
        correlated |= delay(&mut case, random)?;
    }
    let mut busy = delayed;
    if random.chance(50) {
        correlated |= loss(&mut case, random);
        busy = true;
        if random.chance(30) {
            case.add("--ecn", "ecn");
        }
    }
    for (chance, name) in [(40, "corrupt"), (if delayed { 40 } else { 0 }, "reorder")] {
        if !random.chance(chance) {
            continue;
        }
        busy = true;
        let percent = random.percent(100);
        case.add(&format!("--{name} {percent}"), &format!("{name} {percent}"));
        if random.chance(50) {
            let correlation = random.percent(100);
            case.add(&format!("--{name}-correlation {correlation}"), &correlation);
            correlated = true;
        }
        if name == "reorder" && random.chance(50) {
            let gap = random.within(2, 1000);
            case.add(&format!("--reorder-gap {gap}"), &format!("gap {gap}"));
        }
    }
    if random.chance(40) || !busy {
        let percent = random.percent(100);
        case.add(&format!("--duplicate {percent}"), &format!("duplicate {percent}"));
        if correlated {
            let correlation = random.percent(100);
            case.add(&format!("--duplicate-correlation {correlation}"), &correlation);
        }
    }
    if random.chance(40) {
        rate(&mut case, random);
    }
    if random.chance(40) {
        slot(&mut case, random)?;
    }
    if random.chance(50) {
        let limit = random.within(1, 10_000_000);
        case.add(&format!("--limit {limit}"), &format!("limit {limit}"));
    } else {
        case.add("", "limit 100000");
    }
    Ok(case)
}

fn delay(case: &mut Case, random: &mut Random) -> Result<bool> {
    let delay = random.time(5000);
    case.add(&format!("--delay {delay}"), &format!("delay {delay}"));
    if random.chance(40) {
        return Ok(false);
    }
    let jitter = random.time(2000);
    case.add(&format!("--jitter {jitter}"), &jitter);
    let correlated = random.chance(50);
    if correlated {
        let correlation = random.percent(100);
        case.add(&format!("--delay-correlation {correlation}"), &correlation);
    }
    match random.one_of(&["", "uniform", "normal", "pareto", "paretonormal", "experimental"]) {
        "" => {}
        // tc has no table of that name: it is what comes without one.
        "uniform" => case.add("--distribution uniform", ""),
        name => {
            let file = shape(name)?;
            case.add(&format!("--distribution {file}"), &format!("distribution {name}"));
        }
    }
    Ok(correlated)
}

/// A distribution in our words: tc's name, or its file where we have no such name.
fn shape(name: &str) -> Result<String> {
    if name == "experimental" {
        return Ok(dist_file(name)?.display().to_string());
    }
    Ok(name.to_owned())
}

fn loss(case: &mut Case, random: &mut Random) -> bool {
    let model = random.one_of(&["random", "state", "gemodel"]);
    if model == "random" {
        let percent = random.percent(100);
        case.add(&format!("--loss {percent}"), &format!("loss random {percent}"));
        let correlated = random.chance(50);
        if correlated {
            let correlation = random.percent(100);
            case.add(&format!("--loss-correlation {correlation}"), &correlation);
        }
        return correlated;
    }
    let (count, most) = if model == "state" { (5, 45) } else { (4, 100) };
    let percents: Vec<String> =
        (0..random.within(1, count)).map(|_| random.percent(most)).collect();
    let percents = percents.join(" ");
    case.add(&format!("--loss-{model} {percents}"), &format!("loss {model} {percents}"));
    false
}

fn rate(case: &mut Case, random: &mut Random) {
    // Above 34 gbit, bytes per second take more than 32 bits.
    let rate = match random.within(1, 3) {
        1 => format!("{}kbit", random.within(1, 1_000_000)),
        2 => format!("{}mbit", random.within(1, 10_000)),
        _ => format!("{}gbit", random.within(1, 100)),
    };
    case.add(&format!("--rate {rate}"), &format!("rate {rate}"));
    if random.chance(40) {
        return;
    }
    let overhead = random.within(0, 120) as i64 - 20;
    case.add(&format!("--packet-overhead {overhead}"), &overhead.to_string());
    if random.chance(40) {
        return;
    }
    let cell = random.within(20, 5000);
    case.add(&format!("--cell-size {cell}"), &cell.to_string());
    if random.chance(60) {
        let overhead = random.within(0, 60) as i64 - 19;
        case.add(&format!("--cell-overhead {overhead}"), &overhead.to_string());
    }
}

fn slot(case: &mut Case, random: &mut Random) -> Result<()> {
    match random.within(1, 3) {
        1 => {
            let time = random.time(3000);
            case.add(&format!("--slot {time}"), &format!("slot {time}"));
        }
        2 => {
            let least = random.within(1, 100_000);
            let most = least + random.within(0, 2_000_000);
            case.add(&format!("--slot {least}us {most}us"), &format!("slot {least}us {most}us"));
        }
        _ => {
            let name = random.one_of(&["normal", "pareto", "paretonormal", "experimental"]);
            let (mean, jitter) = (random.time(3000), random.time(1000));
            case.add(
                &format!("--slot-distribution {} {mean} {jitter}", shape(name)?),
                &format!("slot distribution {name} {mean} {jitter}"),
            );
        }
    }
    if random.chance(50) {
        let packets = random.within(1, 100_000);
        case.add(&format!("--slot-packets {packets}"), &format!("packets {packets}"));
    }
    if random.chance(50) {
        let bytes = random.within(1, 100_000_000);
        case.add(&format!("--slot-bytes {bytes}"), &format!("bytes {bytes}"));
    }
    Ok(())
}
