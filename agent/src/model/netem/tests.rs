use std::time::Duration;

use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::model::nlmsg::find;

fn delay_100ms() -> NetemOptions {
    NetemOptions::from(&Impairment::fixed_delay(Duration::from_millis(100)).unwrap())
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

#[test]
fn probabilities_scale_to_the_whole_range() {
    assert_eq!(Probability::from_fraction(1.0).0, u32::MAX);
    assert_eq!(Probability::from_fraction(0.0).0, 0);
    assert_eq!(Probability::from_fraction(-1.0).0, 0);
    assert_eq!(Probability::from_fraction(f64::NAN).0, 0);
    assert!((Probability::from_fraction(0.25).fraction() - 0.25).abs() < 1e-9);
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

    #[test]
    fn garbage_never_panics(bytes: Vec<u8>) {
        let _ = NetemOptions::decode(&bytes);
    }
}
