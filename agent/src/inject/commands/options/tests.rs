use std::io::Write as _;

use clap::{Args as _, FromArgMatches as _};
use proptest::prelude::*;

use super::super::add::Args;
use super::super::impairment_from_args;
use super::super::packets::Packets;
use super::*;

fn read(line: &str) -> Impairment {
    impairment_from_args(line.split_whitespace()).unwrap_or_else(|error| panic!("{line}: {error}"))
}

fn complaint(line: &str) -> String {
    match impairment_from_args(line.split_whitespace()) {
        Ok(impairment) => panic!("{line} was taken: {impairment:?}"),
        Err(error) => format!("{error:#}"),
    }
}

#[test]
fn the_examples_of_the_help_are_taken() {
    let lines: Vec<&str> = EXAMPLES.lines().filter(|line| line.contains("inject add")).collect();
    assert_eq!(lines.len(), 15);
    let command = Args::augment_args(clap::Command::new("add").no_binary_name(true));
    for line in lines {
        let (_, options) = line.split_once("inject add ").unwrap();
        // As a shell does it: what is quoted is one word.
        let words = options.split('\'').enumerate().flat_map(|(at, part)| match at % 2 {
            0 => part.split_whitespace().collect(),
            _ => vec![part],
        });
        let given = command.clone().try_get_matches_from(words);
        let given = given.unwrap_or_else(|error| panic!("{line}: {error}"));
        let impairment = Args::from_arg_matches(&given).unwrap().impairment().unwrap();
        assert!(!impairment.features().is_empty(), "{line}");
        let filter = Packets::from_arg_matches(&given).unwrap().filter().unwrap();
        let asks = ["--port", "peer", "--protocol", "--service"]
            .iter()
            .any(|option| line.contains(option));
        assert_eq!(filter.is_all(), !asks, "{line}");
    }
}

#[test]
fn every_option_arrives_in_its_place() {
    let told = read(
        "--delay 100ms --jitter 10ms --delay-correlation 25% --distribution normal \
         --loss 1% --loss-correlation 2% --ecn --duplicate 3% --duplicate-correlation 4% \
         --corrupt 5% --corrupt-correlation 6% --reorder 7% --reorder-correlation 8% \
         --reorder-gap 9 --rate 5kbit --packet-overhead -14 --cell-size 48 --cell-overhead 5 \
         --slot 1ms 5ms --slot-packets 10 --slot-bytes 20000 --limit 1234 --seed 42",
    );
    assert_eq!(
        told.to_string(),
        "delayed by 100ms ± 10ms (normal distribution) (each 25% like the one before); sent at \
         5kbit, -14 bytes per packet, in cells of 48 bytes, +5 bytes per cell; sent in slots every \
         1ms to 5ms, 10 packets each, 20000 bytes each; lost: 1% (each 2% like the one before), \
         marked instead where ECN allows; sent twice: 3% (each 4% like the one before); changed by \
         one bit: 5% (each 6% like the one before); sent ahead of others: 7% (each 8% like the one \
         before) of every 9th; dropped when 1234 are held; chosen by seed 42"
    );
    assert_eq!(
        read("--loss-state 1% 2% 3% 4% 5%").loss,
        Some(Loss::state(0.01, &[0.02, 0.03, 0.04, 0.05]))
    );
    assert_eq!(read("--loss-gemodel 1% 2%").loss, Some(Loss::gemodel(0.01, &[0.02])));
    let together = read("--loss-state 1% 2% --slot 1ms --delay 1ms");
    assert_eq!(together.features().len(), 3, "a list of values ends at the next option");
    let slot = read("--slot-distribution pareto 10ms 1ms").slot.unwrap();
    let ms = Duration::from_millis;
    let distribution = Distribution::Pareto;
    assert_eq!(slot.timing, SlotTiming::Distributed { distribution, mean: ms(10), spread: ms(1) });
}

#[test]
fn nonsense_is_named_with_its_option() {
    for (line, words) in [
        ("--delay 1ms --jitter 5", "--jitter: duration `5` has no unit"),
        (
            "--delay 1ms --jitter 1ms --delay-correlation 5",
            "--delay-correlation: percentage `5` has",
        ),
        ("--loss 101%", "--loss: percentage `101%` is above 100%"),
        ("--loss -1%", "--loss: percentage `-1%` is negative"),
        ("--loss-state 1% 2", "--loss-state: percentage `2` has no % sign"),
        ("--rate 10kbps", "--rate: rate `10kbps` has the unknown unit"),
        (
            "--delay 1ms --jitter 1ms --distribution gauss",
            "--distribution: `gauss` is neither uniform",
        ),
        ("--delay 1ms --jitter 1ms --distribution /dev/zero", "no plain file"),
        ("--slot-distribution uniform 1ms 1ms", "--slot MIN MAX"),
        ("--slot 5ms 1ms", "slot 1ms is shorter than 5ms"),
        ("--delay 0ms", "delay is zero"),
        ("--delay 1ms --reorder 25% --reorder-gap 0", "reorder gap is zero"),
        // What clap says.
        ("--reorder 25%", "--delay"),
        ("--jitter 1ms", "--delay"),
        ("--delay 1ms --distribution normal", "--jitter"),
        ("--delay 1ms --loss-correlation 1%", "--loss"),
        ("--loss 1% --loss-state 1%", "cannot be used with"),
        ("--delay 1ms --ecn", "--loss"),
        ("--delay 1ms --cell-size 48", "--rate"),
        ("--delay 1ms --slot-packets 1", "--slot"),
        ("--slot 1ms --slot-distribution normal 1ms 1ms", "cannot be used with"),
        ("--limit 5", "--delay"),
        ("--delay 1ms --limit -5", "-5"),
        ("--delay 1ms --seed x", "--seed"),
    ] {
        let complaint = complaint(line);
        assert!(complaint.contains(words), "{line}: `{words}` is not in: {complaint}");
    }
}

#[test]
fn table_files() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    let line = format!("--delay 1ms --jitter 1ms --distribution {path}");
    assert!(complaint(&line).contains("holds no numbers"));
    file.write_all(b"# mine\n-8192 0\n8192\n").unwrap();
    let shape = read(&line).jitter.unwrap().distribution;
    assert_eq!(shape.table().unwrap()[..], [-8192, 0, 8192]);
    assert_eq!(shape.name(), path);
    file.write_all(b"boo\n").unwrap();
    assert!(complaint(&line).contains("line 4: `boo`"));
    file.write_all(&vec![b' '; MAX_FILE_BYTES as usize]).unwrap();
    assert!(complaint(&line).contains("is larger than"));
    file.as_file().set_len(0).unwrap();
    let mut file = file.reopen().unwrap();
    file.write_all("1 ".repeat(16_385).as_bytes()).unwrap();
    assert!(complaint(&line).contains("more than 16384 numbers"));
}

proptest! {
    #[test]
    fn no_value_panics(option in 0..6usize, value in "[ -~]{1,12}") {
        let option = ["--delay", "--loss", "--rate", "--duplicate", "--slot", "--limit"][option];
        let _ = impairment_from_args([option, value.as_str(), "--corrupt", "1%"]);
    }
}
