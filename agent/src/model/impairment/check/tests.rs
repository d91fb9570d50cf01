use super::super::Reorder;
use super::*;
use crate::model::distribution::Table;

const MS: Duration = Duration::from_millis(1);

fn delay(time: Duration) -> Impairment {
    Impairment { delay: time, ..Impairment::default() }
}

fn event(probability: &str) -> Correlated {
    Correlated { probability: probability.parse().unwrap(), ..Correlated::default() }
}

fn jitter(spread: Duration) -> Option<Jitter> {
    let (correlation, distribution) = (Probability(0), Distribution::Uniform);
    Some(Jitter { spread, correlation, distribution })
}

fn slot(min: Duration, max: Duration) -> Option<Slot> {
    Some(Slot { timing: SlotTiming::Between { min, max }, packets: None, bytes: None })
}

fn rate(bytes_per_s: u64) -> Rate {
    Rate { bytes_per_s, ..Rate::default() }
}

#[test]
fn bounds_are_inclusive_above_and_exclusive_at_zero() {
    assert_eq!(Impairment::fixed_delay(Duration::ZERO), Err(ImpairmentError::ZeroDelay));
    assert!(Impairment::fixed_delay(Duration::from_nanos(1)).is_ok());
    assert!(Impairment::fixed_delay(MAX_DELAY).is_ok());
    let above = MAX_DELAY + Duration::from_nanos(1);
    let error = Impairment::fixed_delay(above).unwrap_err();
    assert_eq!(
        error.to_string(),
        "delay 60.000000001s is above the largest that is taken, 60s; is the unit right?"
    );
    let largest = Impairment { jitter: jitter(MAX_JITTER), ..delay(MS) };
    assert_eq!(largest.check(), Ok(()));
}

#[test]
fn every_effect_is_enough_on_its_own() {
    let nothing = Impairment::default();
    for effect in [
        Impairment { loss: Some(Loss::Random(event("1%"))), ..nothing.clone() },
        Impairment { loss: Some(Loss::state(0.01, &[])), ..nothing.clone() },
        Impairment { loss: Some(Loss::gemodel(0.0, &[1.0, 1.0, 0.01])), ..nothing.clone() },
        Impairment { duplicate: Some(event("1%")), ..nothing.clone() },
        Impairment { corrupt: Some(event("100%")), ..nothing.clone() },
        Impairment { rate: Some(rate(1)), ..nothing.clone() },
        Impairment { slot: slot(Duration::ZERO, MS), ..nothing.clone() },
        delay(MS),
    ] {
        assert_eq!(effect.check(), Ok(()), "{effect:?}");
    }
    let seed = Impairment { seed: Some(1), limit_packets: Some(5), ..nothing };
    assert_eq!(seed.check(), Err(ImpairmentError::ZeroDelay), "nothing to draw or to hold");
}

#[test]
fn contradictions_are_named() {
    let nothing = Impairment::default();
    let long = Duration::from_secs(3);
    let reorder = |gap| Some(Reorder { which: event("25%"), gap });
    let distributed = |distribution| {
        let timing = SlotTiming::Distributed { distribution, mean: MS, spread: MS };
        Some(Slot { timing, packets: None, bytes: None })
    };
    let slots = |packets| Some(Slot { packets: Some(packets), ..slot(MS, MS).unwrap() });
    let (overhead, cells) = (
        |packet_overhead| Some(Rate { packet_overhead, ..rate(1) }),
        |cell_bytes, cell_overhead| Some(Rate { cell_bytes, cell_overhead, ..rate(1) }),
    );
    for (impairment, words) in [
        (Impairment { jitter: jitter(MS), ..nothing.clone() }, "give --delay as well"),
        (Impairment { jitter: jitter(Duration::ZERO), ..delay(MS) }, "jitter is zero"),
        (Impairment { jitter: jitter(long), ..delay(MS) }, "jitter 3s is above the largest"),
        (Impairment { loss: Some(Loss::Random(event("0"))), ..delay(MS) }, "loss is 0%"),
        (Impairment { loss: Some(Loss::state(0.0, &[])), ..delay(MS) }, "P13 is 0%"),
        (Impairment { loss: Some(Loss::state(0.01, &[0.6, 0.6])), ..delay(MS) }, "60% + 60%"),
        (Impairment { loss: Some(Loss::state(0.01, &[0.5, 0.5])), ..delay(MS) }, "50% + 50%"),
        (
            Impairment { loss: Some(Loss::state(0.6, &[0.1, 0.1, 0.1, 0.6])), ..delay(MS) },
            "state 1",
        ),
        (Impairment { loss: Some(Loss::gemodel(0.0, &[])), ..delay(MS) }, "gemodel is 0%"),
        (Impairment { ecn: true, ..delay(MS) }, "ecn marks packets instead"),
        (Impairment { duplicate: Some(event("0")), ..delay(MS) }, "duplicate is 0%"),
        (Impairment { corrupt: Some(event("0")), ..delay(MS) }, "corrupt is 0%"),
        (Impairment { reorder: reorder(1), ..nothing.clone() }, "reorder sends some packets"),
        (Impairment { reorder: reorder(0), ..delay(MS) }, "reorder gap is zero"),
        (Impairment { rate: Some(rate(0)), ..delay(MS) }, "rate is zero"),
        (Impairment { rate: overhead(-21), ..delay(MS) }, "packet overhead -21"),
        (Impairment { rate: cells(0, 5), ..delay(MS) }, "--cell-size"),
        (Impairment { rate: cells(48, -48), ..delay(MS) }, "leaves nothing of a cell of 48"),
        (Impairment { slot: slot(MS, Duration::ZERO), ..delay(MS) }, "slot is zero"),
        (Impairment { slot: slot(2 * MS, MS), ..delay(MS) }, "slot 1ms is shorter than 2ms"),
        (Impairment { slot: slot(MS, long), ..delay(MS) }, "difference of slot times"),
        (Impairment { slot: distributed(Distribution::Uniform), ..delay(MS) }, "--slot MIN MAX"),
        (Impairment { slot: slots(0), ..delay(MS) }, "slot packets is zero"),
        (Impairment { slot: slots(i32::MAX as u32), ..delay(MS) }, "slot packets 2147483647"),
        (Impairment { limit_packets: Some(0), ..delay(MS) }, "limit is zero"),
    ] {
        let error = impairment.check().expect_err(words).to_string();
        assert!(error.contains(words), "`{words}` is not in: {error}");
    }
}

#[test]
fn tables_have_to_fit_one_message() {
    let table =
        |entries: usize| Distribution::Table(Table::parse("t", &"7 ".repeat(entries)).unwrap());
    let with = |entries| Impairment {
        jitter: Some(Jitter {
            spread: MS,
            correlation: Probability(0),
            distribution: table(entries),
        }),
        slot: Some(Slot {
            timing: SlotTiming::Distributed { distribution: table(16_000), mean: MS, spread: MS },
            packets: None,
            bytes: None,
        }),
        ..delay(MS)
    };
    assert_eq!(with(16_000).check(), Ok(()));
    assert_eq!(with(16_001).check(), Err(ImpairmentError::TablesTooLong(32_001)));
}

#[test]
fn a_limit_that_drops_is_told_with_the_arithmetic() {
    let slow = Impairment { limit_packets: Some(800), ..delay(100 * MS) };
    let with_rate = Impairment { rate: Some(rate(12_500_000)), ..slow.clone() };
    assert_eq!(
        with_rate.warnings(),
        ["a limit of 800 packets drops at the asked rate: 100mbit for 100ms are 1250000 bytes on \
          their way, 834 packets of 1500 bytes; give --limit 1668 or more"]
    );
    let enough = Impairment { limit_packets: Some(834), ..with_rate };
    assert!(enough.warnings().is_empty());
    assert_eq!(
        slow.warnings(),
        ["more than 8000 packets per second are dropped: the limit of 800 packets divided by \
          100ms; give a higher --limit if more may come"]
    );
    assert!(delay(100 * MS).warnings().is_empty());
    assert!(Impairment { limit_packets: Some(1), ..Impairment::default() }.warnings().is_empty());
}

#[test]
fn a_jitter_above_the_delay_is_told() {
    let told = Impairment { jitter: jitter(100 * MS), ..delay(10 * MS) }.warnings();
    assert!(
        told.len() == 1 && told[0].contains("jitter 100ms is above the delay 10ms"),
        "{told:?}"
    );
    assert!(Impairment { jitter: jitter(MS), ..delay(MS) }.warnings().is_empty());
}
