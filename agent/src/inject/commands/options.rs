//! The options of `agent inject add` that say what is injected, made into an impairment.

use std::fmt::Display;
use std::io::Read as _;
use std::time::Duration;

use agent_common::{duration, percent, rate};

use crate::inject::error::InjectError;
use crate::model::distribution::{Distribution, MAX_FILE_BYTES, Table};
use crate::model::impairment::{Impairment, Jitter, Loss, Reorder, Slot, SlotTiming};
use crate::model::netem::Rate;
use crate::model::probability::{Correlated, Probability};
use crate::model::schedule::Schedule;

/// Shown below the options of `agent inject add --help`.
pub(super) const EXAMPLES: &str = "\
Examples:
  agent inject add --dev eth0 --delay 100ms
  agent inject add --dev eth0 --delay 100ms --jitter 10ms --delay-correlation 25%
  agent inject add --dev eth0 --delay 100ms --jitter 20ms --distribution normal
  agent inject add --dev eth0 --loss 0.3% --loss-correlation 25%
  agent inject add --dev eth0 --loss-gemodel 1% 10% 70% 0.1%
  agent inject add --dev eth0 --delay 10ms --reorder 25% --reorder-correlation 50%
  agent inject add --dev eth0 --delay 50ms --rate 20mbit --limit 1000
  agent inject add --dev eth0 --rate 5kbit --packet-overhead 20 --cell-size 100 --cell-overhead 5
  agent inject add --dev eth0 --slot 1ms 5ms --slot-packets 10
  agent inject add --dev eth0 --delay 100ms --port 80 --port 443 --not-peer 10.0.0.0/8
  agent inject add --dev eth0 --delay 100ms --protocol tcp --peer-port 5432 --direction both
  agent inject add --dev eth0 --loss 1% --peer ::/0 --not-protocol icmp
  agent inject add --dev eth0 --schedule '0s:0ms 30s:100ms 60s~0ms'
  agent inject add --dev eth0 --delay 100ms --service-db 8000
  agent inject add --dev eth0 --delay 100ms --service-clients 8000

Times take ns, us, ms, s, min or h; percentages take %; rates take bit, kbit, mbit, gbit, or B/s,
kB/s, MB/s, GB/s, all per second and decimal. What contradicts itself is refused.

Of --peer, --port, --peer-port and --protocol, a packet has to be as each that is given says, by any one
of its values: the first example with ports delays those of port 80 or 443. Any --not-... that fits wins.
On lo, where every packet leaves and arrives, either end may be ours. ARP, neighbour discovery and packets
of VLAN devices are in no such scope.";

#[derive(Debug, clap::Args)]
#[group(skip)]
pub(super) struct Options {
    /// Time added to each packet, such as 100ms, 1.5s or 250us; at most 60s.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    delay: Option<String>,
    /// Random part of the delay: half its width if uniform, else its standard deviation.
    #[arg(long, value_name = "TIME", requires = "delay", allow_hyphen_values = true)]
    jitter: Option<String>,
    /// How much each delay resembles the one before.
    #[arg(long, value_name = "PERCENT", requires = "jitter", allow_hyphen_values = true)]
    delay_correlation: Option<String>,
    /// Shape of the jitter: uniform, normal, pareto, paretonormal, or a table file in the format of
    /// tc's .dist files.
    #[arg(long, value_name = "NAME|FILE", requires = "jitter")]
    distribution: Option<String>,
    /// Packets lost, each by itself.
    #[arg(long, value_name = "PERCENT", group = "losses", allow_hyphen_values = true)]
    loss: Option<String>,
    /// How much each loss resembles the one before.
    #[arg(long, value_name = "PERCENT", requires = "loss", allow_hyphen_values = true)]
    loss_correlation: Option<String>,
    /// Packets lost by a Markov chain (1 good, 2 good in a burst, 3 lost in a burst, 4 lost alone):
    /// P13 [P31 [P32 [P23 [P14]]]].
    #[arg(long, value_name = "PERCENT", num_args = 1..=5, group = "losses")]
    loss_state: Option<Vec<String>>,
    /// Packets lost by Gilbert and Elliott's model: good to bad, bad to good, loss when bad, loss when
    /// good: P [R [1-H [1-K]]].
    #[arg(long, value_name = "PERCENT", num_args = 1..=4, group = "losses")]
    loss_gemodel: Option<Vec<String>>,
    /// Mark packets instead of losing them, where ECN allows.
    #[arg(long, requires = "losses")]
    ecn: bool,
    /// Packets sent twice.
    #[arg(long, value_name = "PERCENT", allow_hyphen_values = true)]
    duplicate: Option<String>,
    /// How much each duplication resembles the one before.
    #[arg(long, value_name = "PERCENT", requires = "duplicate", allow_hyphen_values = true)]
    duplicate_correlation: Option<String>,
    /// Packets in which one bit is flipped.
    #[arg(long, value_name = "PERCENT", allow_hyphen_values = true)]
    corrupt: Option<String>,
    /// How much each corruption resembles the one before.
    #[arg(long, value_name = "PERCENT", requires = "corrupt", allow_hyphen_values = true)]
    corrupt_correlation: Option<String>,
    /// Packets sent at once, ahead of those that are delayed.
    #[arg(long, value_name = "PERCENT", requires = "delay", allow_hyphen_values = true)]
    reorder: Option<String>,
    /// How much each reordering resembles the one before.
    #[arg(long, value_name = "PERCENT", requires = "reorder", allow_hyphen_values = true)]
    reorder_correlation: Option<String>,
    /// Only every N-th packet may be reordered; with --reorder 100% each N-th is.
    #[arg(long, value_name = "N", requires = "reorder", default_value_t = 1)]
    reorder_gap: u32,
    /// Rate limit, such as 20mbit.
    #[arg(long, value_name = "RATE", allow_hyphen_values = true)]
    rate: Option<String>,
    /// Bytes that each packet counts more; -14 leaves out the Ethernet header.
    #[arg(
        long,
        value_name = "BYTES",
        requires = "rate",
        default_value_t = 0,
        allow_hyphen_values = true
    )]
    packet_overhead: i32,
    /// Size of a link-layer cell, such as 48 with ATM.
    #[arg(long, value_name = "BYTES", requires = "rate", default_value_t = 0)]
    cell_size: u32,
    /// Bytes that each cell counts more, such as 5 with ATM.
    #[arg(
        long,
        value_name = "BYTES",
        requires = "rate",
        default_value_t = 0,
        allow_hyphen_values = true
    )]
    cell_overhead: i32,
    /// Packets leave only in slots that come every MIN to MAX.
    #[arg(long, value_names = ["MIN", "MAX"], num_args = 1..=2, group = "slots")]
    slot: Option<Vec<String>>,
    /// Packets leave only in slots, whose distance is distributed: normal, pareto, paretonormal or a
    /// table file, its mean, and its standard deviation.
    #[arg(long, value_names = ["NAME|FILE", "MEAN", "JITTER"], num_args = 3, group = "slots")]
    slot_distribution: Option<Vec<String>>,
    /// Packets per slot at most.
    #[arg(long, value_name = "N", requires = "slots")]
    slot_packets: Option<u32>,
    /// Bytes per slot at most.
    #[arg(long, value_name = "BYTES", requires = "slots")]
    slot_bytes: Option<u32>,
    /// Packets held at most; more are dropped [default: 100000].
    #[arg(long, value_name = "PACKETS")]
    limit: Option<u32>,
    /// Seed of the random numbers: the same one makes the same decisions (netem: Linux 6.6).
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
}

impl Options {
    /// Whether anything was given that acts by itself: the other options only say how.
    fn has_effect(&self) -> bool {
        let times = [&self.delay, &self.loss, &self.duplicate, &self.corrupt, &self.rate];
        let lists = [&self.loss_state, &self.loss_gemodel, &self.slot, &self.slot_distribution];
        times.iter().any(|given| given.is_some()) || lists.iter().any(|given| given.is_some())
    }

    /// Reads what was given, table files included, and checks that it makes sense.
    pub(super) fn impairment(&self) -> Result<Impairment, InjectError> {
        if !self.has_effect() {
            let effects = "give --delay, --loss, --loss-state, --loss-gemodel, --duplicate, --corrupt, \
                           --rate, --slot, --slot-distribution or --schedule";
            return Err(InjectError::NothingAsked(effects));
        }
        let all = self.read()?;
        all.check()?;
        Ok(all)
    }

    /// The same with a schedule instead of a delay: the impairment at its longest.
    pub(super) fn scheduled(&self, schedule: &Schedule) -> Result<Impairment, InjectError> {
        let all = Impairment { delay: schedule.longest(), ..self.read()? };
        if all.jitter.is_some() || all.reorder.is_some() {
            return Err(InjectError::Unreadable {
                option: "--schedule",
                reason:
                    "jitter and reorder are meant relative to one delay; leave them out, or give \
                         --delay instead of a schedule"
                        .to_owned(),
            });
        }
        all.check()?;
        Ok(all)
    }

    fn read(&self) -> Result<Impairment, InjectError> {
        let delay = optional("--delay", &self.delay, time)?.unwrap_or_default();
        let mut all = Impairment { delay, ..Impairment::default() };
        if let Some(spread) = optional("--jitter", &self.jitter, time)? {
            let correlation =
                optional("--delay-correlation", &self.delay_correlation, probability)?;
            let distribution = optional("--distribution", &self.distribution, distribution)?;
            all.jitter = Some(Jitter {
                spread,
                correlation: correlation.unwrap_or_default(),
                distribution: distribution.unwrap_or_default(),
            });
        }
        all.loss = self.loss()?;
        all.ecn = self.ecn;
        all.duplicate = event(
            ("--duplicate", &self.duplicate),
            ("--duplicate-correlation", &self.duplicate_correlation),
        )?;
        all.corrupt = event(
            ("--corrupt", &self.corrupt),
            ("--corrupt-correlation", &self.corrupt_correlation),
        )?;
        let gap = self.reorder_gap;
        all.reorder = event(
            ("--reorder", &self.reorder),
            ("--reorder-correlation", &self.reorder_correlation),
        )?
        .map(|which| Reorder { which, gap });
        all.rate = optional("--rate", &self.rate, rate::parse)?.map(|bytes_per_s| Rate {
            bytes_per_s,
            packet_overhead: self.packet_overhead,
            cell_bytes: self.cell_size,
            cell_overhead: self.cell_overhead,
        });
        all.slot = self.slot()?;
        all.limit_packets = self.limit;
        all.seed = self.seed;
        Ok(all)
    }

    fn loss(&self) -> Result<Option<Loss>, InjectError> {
        if let Some(given) = &self.loss_state {
            let all = percents("--loss-state", given)?;
            return Ok(all.split_first().map(|(p13, rest)| Loss::state(*p13, rest)));
        }
        if let Some(given) = &self.loss_gemodel {
            let all = percents("--loss-gemodel", given)?;
            return Ok(all.split_first().map(|(p, rest)| Loss::gemodel(*p, rest)));
        }
        let random = event(("--loss", &self.loss), ("--loss-correlation", &self.loss_correlation))?;
        Ok(random.map(Loss::Random))
    }

    fn slot(&self) -> Result<Option<Slot>, InjectError> {
        let slot = |text: &String| read("--slot", text, time);
        let shaped = |text: &String| read("--slot-distribution", text, time);
        let timing = match (self.slot.as_deref(), self.slot_distribution.as_deref()) {
            (Some([both]), _) => SlotTiming::Between { min: slot(both)?, max: slot(both)? },
            (Some([min, max]), _) => SlotTiming::Between { min: slot(min)?, max: slot(max)? },
            (_, Some([shape, mean, spread])) => SlotTiming::Distributed {
                distribution: read("--slot-distribution", shape, distribution)?,
                mean: shaped(mean)?,
                spread: shaped(spread)?,
            },
            _ => return Ok(None),
        };
        Ok(Some(Slot { timing, packets: self.slot_packets, bytes: self.slot_bytes }))
    }
}

/// Reads one value; what is wrong with it is told with the option's name.
pub(super) fn read<T, E: Display>(
    option: &'static str,
    text: &str,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<T, InjectError> {
    parse(text).map_err(|error| InjectError::Unreadable { option, reason: error.to_string() })
}

fn optional<T, E: Display>(
    option: &'static str,
    text: &Option<String>,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<Option<T>, InjectError> {
    text.as_deref().map(|text| read(option, text, parse)).transpose()
}

fn time(text: &str) -> Result<Duration, duration::ParseError> {
    duration::parse(text)
}

fn probability(text: &str) -> Result<Probability, percent::ParseError> {
    text.parse()
}

fn percents(option: &'static str, texts: &[String]) -> Result<Vec<f64>, InjectError> {
    texts.iter().map(|text| read(option, text, percent::parse)).collect()
}

type Given<'a> = (&'static str, &'a Option<String>);

fn event(how_often: Given<'_>, alike: Given<'_>) -> Result<Option<Correlated>, InjectError> {
    let correlation = optional(alike.0, alike.1, probability)?.unwrap_or_default();
    let how_often = optional(how_often.0, how_often.1, probability)?;
    Ok(how_often.map(|probability| Correlated { probability, correlation }))
}

/// A distribution by name, or the table in a file.
fn distribution(text: &str) -> Result<Distribution, String> {
    if let Some(named) = Distribution::named(text) {
        return Ok(named);
    }
    let names = "neither uniform, normal, pareto or paretonormal, nor a table file";
    let unreadable = |error: std::io::Error| format!("`{text}` is {names} ({error})");
    let file = std::fs::File::open(text).map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err(format!("`{text}` is {names} (it is no plain file)"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(format!(
            "distribution table `{text}` is larger than {MAX_FILE_BYTES} bytes; a table holds at \
             most 16384 numbers"
        ));
    }
    let content = String::from_utf8_lossy(&bytes);
    Table::parse(text, &content).map(Distribution::Table).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
