use std::collections::BTreeSet;
use std::time::Duration;

use proptest::option;
use proptest::prelude::*;

use super::codec::{attr, loss};
use super::*;
use crate::model::distribution::Distribution;
use crate::model::impairment::{Jitter, Reorder};
use crate::model::nlmsg::{attributes, find};

fn delay_100ms() -> NetemOptions {
    NetemOptions::from(&Impairment::fixed_delay(Duration::from_millis(100)).unwrap())
}

#[test]
fn a_table_cannot_be_taken_back() {
    let jitter = |shape| Jitter {
        spread: Duration::from_millis(1),
        correlation: Probability::default(),
        distribution: shape,
    };
    let mut impairment = Impairment::fixed_delay(Duration::from_millis(100)).unwrap();
    let plain = Request::from(&impairment);
    impairment.jitter = Some(jitter(Distribution::Normal));
    let shaped = Request::from(&impairment);
    impairment.jitter = Some(jitter(Distribution::Uniform));
    let uniform = Request::from(&impairment);
    let fresh = Memory::default().with(&plain).with(&uniform);
    assert_eq!((fresh.spoils(&uniform), fresh.spoils(&shaped)), (None, None));
    let told = fresh.with(&shaped).with(&plain);
    assert_eq!((told.spoils(&plain), told.spoils(&shaped)), (None, None));
    assert_eq!(told.spoils(&uniform), Some("uniform jitter"));
}

#[test]
fn a_fixed_delay_byte_by_byte() {
    #[rustfmt::skip]
    let expected = [
        // latency, limit 100,000, loss, gap, duplicate, jitter
        0, 0, 0, 0,  0xa0, 0x86, 1, 0,  0, 0, 0, 0,  0, 0, 0, 0,  0, 0, 0, 0,  0, 0, 0, 0,
        // LATENCY64: 100,000,000
        12, 0, 10, 0,  0x00, 0xe1, 0xf5, 0x05, 0, 0, 0, 0,
        // JITTER64
        12, 0, 11, 0,  0, 0, 0, 0, 0, 0, 0, 0,
    ];
    assert_eq!(delay_100ms().encode().as_bytes(), expected);
}

/// Sizes of the structs in `linux/pkt_sched.h`.
#[test]
fn every_attribute_has_its_structs_size() {
    let one = Correlated { probability: Probability(1), correlation: Probability(1) };
    let options = NetemOptions {
        delay_correlation: Probability(1),
        reorder: one,
        corrupt: one,
        loss_model: Some(LossModel::FourState([Probability(1); 5])),
        rate: Some(Rate { bytes_per_s: u64::MAX, ..Rate::default() }),
        ecn: true,
        slot: Some(Slot::default()),
        prng_seed: Some(1),
        ..delay_100ms()
    };
    let bytes = options.encode();
    assert_eq!(QOPT_LEN, 6 * 4);
    let sizes: Vec<_> = attributes(&bytes.as_bytes()[QOPT_LEN..])
        .map(|(kind, value)| (kind, value.len()))
        .collect();
    let expected = [
        (10, 8),
        (11, 8),
        (1, 12),
        (3, 8),
        (4, 8),
        (5, ATTR_LEN + 20),
        (8, 8),
        (6, 16),
        (7, 4),
        (12, 40),
        (14, 8),
    ];
    assert_eq!(sizes, expected);
    let elliot = NetemOptions {
        loss_model: Some(LossModel::GilbertElliot([Probability(1); 4])),
        ..NetemOptions::default()
    };
    let bytes = elliot.encode();
    let loss = find(&bytes.as_bytes()[QOPT_LEN..], attr::LOSS).unwrap();
    assert_eq!(find(loss, loss::GE).map(<[u8]>::len), Some(16));
}

const ATTR_LEN: usize = crate::model::nlmsg::ATTR_LEN;

/// What a 6.1 kernel dumps for a delay of 100 ms: ticks in the legacy field, every attribute there.
#[test]
fn a_kernels_dump_reads_as_what_was_asked() {
    let asked = delay_100ms();
    let mut qopt = [0u32; 6];
    qopt[0] = 1_562_500;
    qopt[1] = asked.limit_packets;
    let dump = Attrs::new()
        .raw(&u32s(&qopt))
        .put(attr::LATENCY64, &asked.latency_ns.to_ne_bytes())
        .put(attr::JITTER64, &0i64.to_ne_bytes())
        .put(attr::CORR, &u32s(&[0; 3]))
        .put(attr::REORDER, &u32s(&[0; 2]))
        .put(attr::CORRUPT, &u32s(&[0; 2]))
        .put(attr::RATE, &u32s(&[0; 4]))
        .put(attr::PRNG_SEED, &77u64.to_ne_bytes());
    let read = NetemOptions::decode(dump.as_bytes()).unwrap();
    assert_ne!(read, asked);
    assert_eq!(read.seen_through(&asked), asked);
}

#[test]
fn truncated_options_are_refused() {
    assert_eq!(NetemOptions::decode(&[0; 23]), Err(DecodeError::Short(23)));
    let bytes = Attrs::new().raw(&[0; QOPT_LEN]).put(attr::LATENCY64, &[0; 4]);
    assert_eq!(
        NetemOptions::decode(bytes.as_bytes()),
        Err(DecodeError::ShortAttribute { kind: attr::LATENCY64, len: 4 })
    );
}

fn u32s(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

/// Everything at once, each with a number of its own.
#[test]
fn an_impairment_in_the_kernels_numbers() {
    let ms = Duration::from_millis;
    let percent = |text: &str| text.parse::<Probability>().unwrap();
    let event = |text: &str| Correlated { probability: percent(text), correlation: percent("5%") };
    let mut impairment = Impairment::fixed_delay(ms(100)).unwrap();
    impairment.jitter = Some(Jitter {
        spread: ms(10),
        correlation: percent("25%"),
        distribution: Distribution::Pareto,
    });
    impairment.loss = Some(Loss::gemodel(0.01, &[0.1, 0.7, 0.001]));
    impairment.ecn = true;
    impairment.duplicate = Some(event("2%"));
    impairment.corrupt = Some(event("3%"));
    impairment.reorder = Some(Reorder { which: event("4%"), gap: 7 });
    let rate = Rate { bytes_per_s: 1, packet_overhead: 2, cell_bytes: 3, cell_overhead: 4 };
    impairment.rate = Some(rate);
    impairment.slot = Some(impairment::Slot {
        timing: SlotTiming::Between { min: ms(1), max: ms(2) },
        packets: Some(3),
        bytes: Some(4),
    });
    impairment.limit_packets = Some(50);
    impairment.seed = Some(9);
    assert_eq!(impairment.check(), Ok(()));
    let request = Request::from(&impairment);
    let expected = NetemOptions {
        latency_ns: 100_000_000,
        jitter_ns: 10_000_000,
        delay_correlation: percent("25%"),
        limit_packets: 50,
        loss: Correlated::default(),
        loss_model: Some(LossModel::GilbertElliot([
            percent("1%"),
            percent("10%"),
            Probability(u32::MAX - percent("70%").0),
            percent("0.1%"),
        ])),
        duplicate: event("2%"),
        reorder_gap: 7,
        reorder: event("4%"),
        corrupt: event("3%"),
        rate: Some(rate),
        ecn: true,
        slot: Some(Slot {
            min_delay_ns: 1_000_000,
            max_delay_ns: 2_000_000,
            max_packets: 3,
            max_bytes: 4,
            ..Slot::default()
        }),
        prng_seed: Some(9),
    };
    assert_eq!(request.options, expected);
    let table = Distribution::Pareto.table().unwrap();
    let bytes = request.encode();
    let sent = find(&bytes.as_bytes()[QOPT_LEN..], attr::DELAY_DIST).unwrap();
    assert_eq!(sent.len(), 2 * 4096);
    assert_eq!(sent[..2], table[0].to_ne_bytes());
    assert_eq!(find(&bytes.as_bytes()[QOPT_LEN..], attr::SLOT_DIST), None);
    assert_eq!(NetemOptions::decode(bytes.as_bytes()), Ok(expected));
}

#[test]
fn four_states_are_in_the_kernels_order() {
    let mut impairment = Impairment::fixed_delay(Duration::from_millis(1)).unwrap();
    // p13, p31, p32, p23, p14 as people write them; the kernel's struct has p14 before p23.
    impairment.loss = Some(Loss::state(0.01, &[0.02, 0.03, 0.04, 0.05]));
    let percents = ["1%", "2%", "3%", "5%", "4%"].map(|text| text.parse().unwrap());
    let model = NetemOptions::from(&impairment).loss_model;
    assert_eq!(model, Some(LossModel::FourState(percents)));
}

#[test]
fn what_an_old_kernel_passes_over_is_named() {
    let options = NetemOptions {
        rate: Some(Rate { bytes_per_s: 1, ..Rate::default() }),
        slot: Some(Slot::default()),
        prng_seed: Some(1),
        ..delay_100ms()
    };
    assert_eq!(options.unknown_to(&options), Vec::<&str>::new());
    let dump = NetemOptions { prng_seed: None, ..options };
    assert_eq!(options.unknown_to(&dump), ["--seed"]);
    assert_eq!(options.unknown_to(&delay_100ms()), ["--rate", "--slot", "--seed"]);
    assert_eq!(delay_100ms().unknown_to(&options), Vec::<&str>::new());
}

fn probability() -> impl Strategy<Value = Probability> {
    any::<u32>().prop_map(Probability)
}

fn correlated() -> impl Strategy<Value = Correlated> {
    (probability(), probability())
        .prop_map(|(probability, correlation)| Correlated { probability, correlation })
}

fn loss_model() -> impl Strategy<Value = LossModel> {
    prop_oneof![
        any::<[u32; 5]>().prop_map(|p| LossModel::FourState(p.map(Probability))),
        any::<[u32; 4]>().prop_map(|p| LossModel::GilbertElliot(p.map(Probability))),
    ]
}

fn rate() -> impl Strategy<Value = Rate> {
    (any::<u64>(), any::<i32>(), any::<u32>(), any::<i32>()).prop_map(
        |(bytes_per_s, packet_overhead, cell_bytes, cell_overhead)| Rate {
            bytes_per_s,
            packet_overhead,
            cell_bytes,
            cell_overhead,
        },
    )
}

fn slot() -> impl Strategy<Value = Slot> {
    (any::<[i64; 4]>(), any::<[i32; 2]>()).prop_map(|(times, most)| Slot {
        min_delay_ns: times[0],
        max_delay_ns: times[1],
        max_packets: most[0],
        max_bytes: most[1],
        dist_delay_ns: times[2],
        dist_jitter_ns: times[3],
    })
}

fn options() -> impl Strategy<Value = NetemOptions> {
    let times = (any::<i64>(), any::<i64>(), probability(), any::<u32>(), any::<u32>());
    let events = (correlated(), option::of(loss_model()), correlated(), correlated(), correlated());
    let rest = (option::of(rate()), any::<bool>(), option::of(slot()), option::of(any::<u64>()));
    (times, events, rest).prop_map(
        |(
            (latency_ns, jitter_ns, delay_correlation, limit_packets, reorder_gap),
            (loss, loss_model, duplicate, reorder, corrupt),
            (rate, ecn, slot, prng_seed),
        )| NetemOptions {
            latency_ns,
            jitter_ns,
            delay_correlation,
            limit_packets,
            loss,
            loss_model,
            duplicate,
            reorder_gap,
            reorder,
            corrupt,
            rate,
            ecn,
            slot,
            prng_seed,
        },
    )
}

proptest! {
    #[test]
    fn what_is_encoded_decodes(options in options()) {
        prop_assert_eq!(NetemOptions::decode(options.encode().as_bytes()), Ok(options));
    }

    /// The kernel keeps what it is not told of, but for these: they are reset by every change, and the
    /// larger of both rates counts.
    #[test]
    fn a_change_leaves_nothing_of_what_was(old in options(), new in options()) {
        let kinds = |bytes: &[u8]| -> BTreeSet<u16> {
            attributes(&bytes[QOPT_LEN..]).map(|(kind, _)| kind).collect()
        };
        let change = new.encode_change();
        let told = kinds(change.as_bytes());
        for kind in kinds(old.encode().as_bytes()) {
            let reset = [attr::LOSS, attr::PRNG_SEED, attr::RATE64].contains(&kind);
            let by_gap = kind == attr::REORDER && new.reorder_gap > 0;
            prop_assert!(reset || by_gap || told.contains(&kind), "{} stays", kind);
        }
        let mut got = NetemOptions::decode(change.as_bytes()).unwrap().seen_through(&new);
        // The kernel dumps no slots where there are none.
        got.slot = got.slot.filter(|slot| new.slot.is_some() || *slot != Slot::default());
        prop_assert_eq!(got, new);
    }

    #[test]
    fn garbage_never_panics(bytes: Vec<u8>) {
        let _ = NetemOptions::decode(&bytes);
    }
}
