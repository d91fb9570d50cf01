use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;

fn thread(tid: u32, first_seen: u64, ns: &[(usize, u64)]) -> ThreadTime {
    let mut time = ThreadTime { tid, tgid: 1, first_seen, ..ThreadTime::default() };
    for (class, ns) in ns {
        time.ns[*class] = *ns;
    }
    time
}

fn snapshot(at_ns: u64, threads: Vec<ThreadTime>) -> Snapshot {
    Snapshot { at_ns, threads, ..Snapshot::default() }
}

fn exit(time: ThreadTime) -> ThreadExit {
    ThreadExit { kind: agent_common::abi::kind::THREAD_EXIT, pad: 0, at: 0, time }
}

fn name(_tgid: u32, tid: u32) -> Option<String> {
    Some(format!("t{tid}"))
}

fn one(windows: Vec<Window>) -> Window {
    assert_eq!(windows.len(), 1);
    windows.into_iter().next().unwrap()
}

#[test]
fn windows_hold_what_grew() {
    let mut aggregator =
        Aggregator::new(snapshot(SECOND, vec![thread(5, 1, &[(class::CPU, 700)])]));
    let mut later = thread(5, 1, &[(class::CPU, 900), (class::DATABASE, 50)]);
    later.accepts = 3;
    let window = one(aggregator.close(snapshot(2 * SECOND, vec![later]), name));
    assert_eq!((window.from_ns, window.to_ns), (SECOND, 2 * SECOND));
    assert_eq!(window.threads.len(), 1);
    assert_eq!(window.threads[0].comm, "t5");
    assert_eq!(window.threads[0].ns[class::CPU], 200);
    assert_eq!(window.threads[0].ns[class::DATABASE], 50);
    assert_eq!(window.threads[0].accepts, 3);
    let again = one(aggregator.close(snapshot(3 * SECOND, vec![later]), name));
    assert_eq!(again.from_ns, 2 * SECOND);
    assert!(again.threads.is_empty(), "nothing grew");
}

#[test]
fn a_thread_that_ends_keeps_its_time_and_its_id_may_come_again() {
    let mut aggregator = Aggregator::new(snapshot(0, vec![thread(5, 1, &[(class::CPU, 100)])]));
    aggregator.thread_exit(&exit(thread(5, 1, &[(class::CPU, 130)])));
    // Born and ended within the window, never in a snapshot.
    aggregator.thread_exit(&exit(thread(6, 2, &[(class::DISK, 7)])));
    let new = thread(5, 3, &[(class::CPU, 40)]);
    let window = one(aggregator.close(snapshot(SECOND, vec![new]), name));
    let mut times: Vec<_> = window.threads.iter().map(|t| (t.tid, t.ns)).collect();
    times.sort_unstable();
    let expect = |tid, class, ns| (tid, thread(tid, 0, &[(class, ns)]).ns);
    assert_eq!(
        times,
        [expect(5, class::CPU, 30), expect(5, class::CPU, 40), expect(6, class::DISK, 7)]
    );
}

#[test]
fn an_ended_thread_that_is_still_listed_counts_once() {
    let mut aggregator = Aggregator::new(snapshot(0, vec![]));
    let last = thread(5, 1, &[(class::CPU, 130)]);
    aggregator.thread_exit(&exit(last));
    let window = one(aggregator.close(snapshot(SECOND, vec![last]), name));
    assert_eq!(window.threads.len(), 1);
    let again = one(aggregator.close(snapshot(2 * SECOND, vec![last]), name));
    assert!(again.threads.is_empty());
}

#[test]
fn an_interval_that_is_booked_differently_later_is_not_reported_twice() {
    let mut aggregator = Aggregator::new(snapshot(0, vec![]));
    let idle = thread(5, 1, &[(class::IDLE, 100)]);
    one(aggregator.close(snapshot(SECOND, vec![idle]), name));
    let less = thread(5, 1, &[(class::IDLE, 90), (class::RUNQUEUE, 10)]);
    let window = one(aggregator.close(snapshot(2 * SECOND, vec![less]), name));
    assert_eq!(window.threads[0].ns[class::IDLE], 0);
    let more = thread(5, 1, &[(class::IDLE, 150), (class::RUNQUEUE, 10)]);
    let window = one(aggregator.close(snapshot(3 * SECOND, vec![more]), name));
    assert_eq!(window.threads[0].ns[class::IDLE], 50);
}

#[test]
fn many_threads_come_in_several_windows() {
    let mut aggregator = Aggregator::new(snapshot(0, vec![]));
    let threads = (0..1_200).map(|tid| thread(tid, 1, &[(class::CPU, 5)])).collect();
    let windows =
        aggregator.close(Snapshot { injector_dropped: 3, ..snapshot(SECOND, threads) }, name);
    assert_eq!(windows.iter().map(|w| w.threads.len()).collect::<Vec<_>>(), [512, 512, 176]);
    assert_eq!(windows.iter().map(|w| w.injector_dropped).sum::<u64>(), 3);
    assert!(windows.iter().all(|w| w.from_ns == 0 && w.to_ns == SECOND));
}

#[test]
fn losses_and_drops_are_differences() {
    let mut first = snapshot(0, vec![]);
    first.counters[counter::LOST_REQUEST as usize] = 5;
    first.listen_drops = Some(100);
    let mut aggregator = Aggregator::new(first.clone());
    let mut now = Snapshot { at_ns: SECOND, listen_drops: None, ..first };
    now.counters[counter::LOST_REQUEST as usize] = 7;
    now.counters[counter::UNRESOLVED_WAIT as usize] = 9;
    let window = one(aggregator.close(now.clone(), name));
    assert_eq!(window.lost, [Count { name: "request_record".into(), count: 2 }]);
    assert_eq!(window.listen_overflows, 0);
    let next = Snapshot { at_ns: 2 * SECOND, listen_drops: Some(104), ..now.clone() };
    assert_eq!(one(aggregator.close(next, name)).listen_overflows, 4);
    assert_eq!(lost(&now.counters), 7);
    assert_eq!(nonzero(&now.counters).len(), 2);
}

/// The gauge that `stays` (arrival, departure) leave behind at `at`.
fn gauge(stays: &[(u64, u64)], at: u64) -> QueueGauge {
    let mut queue = QueueGauge::default();
    for &(arrival, departure) in stays {
        if arrival <= at {
            queue.n_in += 1;
            queue.sum_in = queue.sum_in.wrapping_add(arrival);
        }
        if departure <= at {
            queue.n_out += 1;
            queue.sum_out = queue.sum_out.wrapping_add(departure);
        }
    }
    queue
}

proptest! {
    /// The mean of the gauge against the same mean counted stay by stay.
    #[test]
    fn the_queue_mean_is_exact(
        stays in proptest::collection::vec((0..4_000_u64, 0..4_000_u64), 0..50),
        from in 0..2_000_u64, span in 1..2_000_u64, boot in 0..u64::MAX / 2,
    ) {
        let (from, to) = (boot + from, boot + from + span);
        let stays: Vec<_> =
            stays.into_iter().map(|(a, stay)| (boot + a, boot + a + stay)).collect();
        let first = Snapshot { queue: gauge(&stays, from), ..snapshot(from, vec![]) };
        let mut aggregator = Aggregator::new(first);
        let now = Snapshot { queue: gauge(&stays, to), ..snapshot(to, vec![]) };
        let window = one(aggregator.close(now, name));
        let area: u64 =
            stays.iter().map(|&(a, d)| d.min(to).saturating_sub(a.max(from))).sum();
        prop_assert_eq!(window.queue_mean, area as f64 / span as f64);
    }

    /// However a thread's time is cut into windows, the windows sum to it.
    #[test]
    fn no_time_is_lost(
        steps in proptest::collection::vec((0..class::COUNT, 0..1_000_u64), 1..30),
        ends: bool,
    ) {
        let mut aggregator = Aggregator::new(snapshot(0, vec![]));
        let mut time = thread(5, 1, &[]);
        let mut sum = [0; class::COUNT];
        let last = steps.len();
        for (at, (class, ns)) in (1..).zip(steps) {
            time.ns[class] += ns;
            let live = if ends && at == last {
                aggregator.thread_exit(&exit(time));
                vec![]
            } else {
                vec![time]
            };
            for window in aggregator.close(snapshot(at as u64, live), name) {
                for thread in window.threads {
                    for (sum, ns) in sum.iter_mut().zip(thread.ns) {
                        *sum += ns;
                    }
                }
            }
        }
        prop_assert_eq!(sum, time.ns);
    }
}
