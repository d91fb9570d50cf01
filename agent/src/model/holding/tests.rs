//! Tests of the queue.

use proptest::prelude::*;

use super::*;
use crate::model::netem::{NetemOptions, Probability};

fn holding(options: &NetemOptions) -> Holding {
    Holding::new(Scheduler::new(options, None, 1).unwrap())
}

fn fixed(delay_ns: i64) -> NetemOptions {
    NetemOptions { latency_ns: delay_ns, limit_packets: 1000, ..NetemOptions::default() }
}

fn arrivals<const N: usize>(ns: [u64; N]) -> Vec<Arrival> {
    ns.map(|ns| Arrival { ns, changes: 0 }).into()
}

#[test]
fn a_change_is_for_those_that_come_after_it() {
    let mut holding = holding(&fixed(100));
    assert!(holding.take_in(1, 0, 0) && holding.take_in(2, 10, 0));
    holding.change(Scheduler::new(&fixed(20), None, 1).unwrap());
    assert_eq!((holding.start_over(), holding.changes()), (2, 1));
    assert!(holding.take_in(3, 20, 0));
    // Overtakes both.
    let due = holding.take_due(40, 9).unwrap();
    let after = Arrival { ns: 20, changes: 1 };
    assert_eq!((due.ids, due.all_up_to_last, due.arrivals), (vec![3], false, vec![after]));
    assert_eq!(holding.take_due(99, 9), None);
    let due = holding.take_due(110, 9).unwrap();
    assert_eq!((due.ids, due.arrivals), (vec![1, 2], arrivals([0, 10])));
    assert_eq!((holding.tally().reordered, holding.len()), (2, 0));
}

#[test]
fn packets_leave_when_due_and_in_order_by_one_word() {
    let mut holding = holding(&fixed(100));
    for (id, arrival) in [(1, 1_000), (2, 1_010), (3, 1_200)] {
        assert!(holding.take_in(id, arrival, 0));
    }
    assert_eq!(holding.next_due(), Some(1_100));
    assert_eq!(holding.take_due(1_099, 9), None);
    let due = Due { ids: vec![1, 2], all_up_to_last: true, arrivals: arrivals([1_000, 1_010]) };
    assert_eq!(holding.take_due(1_110, 9), Some(due));
    assert_eq!(holding.next_due(), Some(1_300));
    let rest = Due { ids: vec![3], all_up_to_last: true, arrivals: vec![] };
    assert_eq!(holding.let_all_pass(), Some(rest));
    assert!(holding.is_empty());
    assert_eq!(holding.let_all_pass(), None);
    // From now on nothing waits.
    assert!(holding.take_in(4, 2_000, 0));
    assert_eq!(holding.next_due(), Some(2_000));
    assert_eq!(holding.tally(), Tally { largest_backlog: 3, ..Tally::default() });
}

#[test]
fn no_more_leave_at_once_than_asked() {
    let mut holding = holding(&fixed(0));
    assert!((1..=5).all(|id| holding.take_in(id, 0, 0)));
    let last = |due: Option<Due>| due.and_then(|due| due.ids.last().copied());
    assert_eq!(last(holding.take_due(1, 2)), Some(2));
    assert_eq!(last(holding.take_due(1, 2)), Some(4));
}

#[test]
fn what_goes_ahead_takes_a_word_of_its_own() {
    let mut holding = holding(&NetemOptions { reorder_gap: 3, ..fixed(100) });
    assert!((1..=4).all(|id| holding.take_in(id, 0, 0)));
    let ahead = holding.take_due(0, 9).unwrap();
    assert_eq!((ahead.ids, ahead.all_up_to_last), (vec![3], false));
    let others = holding.take_due(100, 9).unwrap();
    assert_eq!((others.ids, others.all_up_to_last), (vec![1, 2, 4], true));
    assert_eq!(holding.tally().reordered, 2);
}

#[test]
fn what_is_lost_or_too_much_is_told_apart() {
    let mut options = NetemOptions { limit_packets: 2, ..fixed(100) };
    let mut full = holding(&options);
    let kept: Vec<bool> = (1..=4).map(|id| full.take_in(id, 0, 0)).collect();
    assert_eq!(kept, [true, true, false, false]);
    assert_eq!(full.tally(), Tally { full: 2, largest_backlog: 2, ..Tally::default() });
    options.loss.probability = Probability(u32::MAX);
    let mut lossy = holding(&options);
    assert!(!lossy.take_in(1, 0, 0));
    assert_eq!(lossy.tally(), Tally { lost: 1, ..Tally::default() });
}

#[test]
fn numbers_wrap() {
    let mut holding = holding(&fixed(0));
    assert!([u32::MAX - 1, u32::MAX, 0, 1].into_iter().all(|id| holding.take_in(id, 0, 0)));
    assert_eq!(holding.take_due(0, 9).map(|due| due.ids.len()), Some(4));
    assert_eq!(holding.tally().reordered, 0);
}

proptest! {
    /// Whatever the jitter and the order: each packet leaves once, in the order of their times, and
    /// one word for all is given only where it lets none go that is still held.
    #[test]
    fn none_is_lost_doubled_or_let_go_early(
        gaps in prop::collection::vec(0u64..50, 1..100),
        jitter in 0i64..150,
        gap in 0u32..4,
        steps in prop::collection::vec(1u64..100, 1..200),
    ) {
        let options = NetemOptions { jitter_ns: jitter, reorder_gap: gap, ..fixed(150) };
        let mut holding = holding(&options);
        let mut held: Vec<(u32, u64)> = Vec::new();
        let (mut now, mut arrivals, mut id) = (1_000, gaps.into_iter().peekable(), 0);
        let mut next_arrival = 1_000;
        for step in steps {
            now += step;
            if step % 16 == 0 {
                // Never to less than the least that is asserted below.
                let longer = NetemOptions { latency_ns: 150 + step as i64, ..options };
                holding.change(Scheduler::new(&longer, None, step).unwrap());
            }
            while let Some(gap) = arrivals.next_if(|gap| next_arrival + gap <= now) {
                next_arrival += gap;
                id += 1;
                prop_assert!(holding.take_in(id, next_arrival, 0));
                held.push((id, next_arrival));
            }
            while let Some(due) = holding.take_due(now, 3) {
                for (id, arrival) in due.ids.iter().zip(&due.arrivals) {
                    let at = held.iter().position(|one| one == &(*id, arrival.ns));
                    prop_assert!(at.is_some(), "{} is not held", id);
                    held.remove(at.unwrap());
                    let least = if gap > 0 { 0 } else { 150 - jitter as u64 };
                    prop_assert!(now >= arrival.ns + least);
                }
                let last = due.ids[due.ids.len() - 1];
                if due.all_up_to_last {
                    prop_assert!(due.ids.is_sorted());
                    prop_assert!(held.iter().all(|(id, _)| *id > last));
                }
            }
            prop_assert!(holding.next_due().is_none_or(|due| due > now));
            prop_assert_eq!(holding.len(), held.len());
        }
    }
}
