use agent_common::{
    abi::{class, flag},
    wire::{Count, DbKind, ServerRequest},
};

use super::*;
use crate::simulate::{self, Load, MS, SECOND, Step};

fn stats(run: &RunData) -> KernelStats {
    kernel(run, run.kernel.as_ref().unwrap())
}

fn small() -> Load {
    simulate::control(class::SLEEP, 20)
}

#[test]
fn edges_of_the_hold_do_not_cut_round_trips_off() {
    // Holds of 1.6 s in a hold of 20 s: the edges would be a tenth.
    let mut load = simulate::io_read("sync", "sync", 200);
    load.hold_s = 20;
    for shift in 0..5 {
        let mut run = load.one_at_a_time(1);
        run.hold_start += shift * 300 * MS;
        let stats = stats(&run);
        assert_eq!(stats.kernel.db_round_trips_per_request, Some(8.0));
        assert!(stats.kernel.db_round_trips.iter().all(|line| line.per_request.fract() == 0.0));
    }
}

#[test]
fn a_worker_that_one_long_request_keeps_busy_is_still_a_worker() {
    let mut run = small().one_at_a_time(1);
    let data = run.kernel.as_mut().unwrap();
    let hold_start = run.hold_start;
    for window in data.windows.iter_mut().filter(|window| window.from_ns >= hold_start) {
        for thread in &mut window.threads {
            (thread.accepts, thread.requests) = (0, 0);
        }
    }
    let stats = stats(&run);
    assert_eq!((stats.acceptors, stats.kernel.worker_threads), (1, 1));
}

#[test]
fn sleep_is_part_of_other_and_shown_apart() {
    let stats = stats(&small().one_at_a_time(1));
    let worker_time = &stats.kernel.worker_time;
    assert!(!worker_time.contains_key("sleep"));
    assert!(worker_time["other"] > 0.9, "{worker_time:?}");
    assert!((worker_time.values().sum::<f64>() - 1.0).abs() < 1e-9);
    assert!(stats.kernel.held_by_class_ms.unwrap()["sleep"] > 19.0);
    assert_eq!(stats.kernel.thread_groups.len(), 1);
    assert_eq!(stats.kernel.thread_groups[0].role, "worker");
    assert!(stats.kernel.thread_groups[0].time["sleep"] > 0.9);
}

#[test]
fn further_windows_of_one_span_add_threads_and_no_queue() {
    let mut run = small().one_at_a_time(2);
    let before = stats(&run);
    let data = run.kernel.as_mut().unwrap();
    let mut split = Vec::new();
    for window in data.windows.drain(..) {
        let (first, rest) = window.threads.split_at(1);
        let more = wire_window(&window, rest.to_vec());
        split.push(agent_common::wire::Window { threads: first.to_vec(), ..window });
        split.push(more);
    }
    data.windows = split;
    let after = stats(&run);
    assert!(before.kernel.accept_queue_depth.as_ref().unwrap().mean > 10.0);
    assert_eq!(after.kernel.accept_queue_depth, before.kernel.accept_queue_depth);
    assert_eq!(after.kernel.worker_time, before.kernel.worker_time);
}

fn wire_window(
    of: &agent_common::wire::Window,
    threads: Vec<agent_common::wire::ThreadWindow>,
) -> agent_common::wire::Window {
    agent_common::wire::Window {
        from_ns: of.from_ns,
        to_ns: of.to_ns,
        threads,
        queue_mean: 0.0,
        queue_max: 0,
        lost: Vec::new(),
        listen_overflows: 0,
        injector_dropped: 0,
        retransmissions: None,
    }
}

#[test]
fn the_queue_is_the_littles_law_of_the_waits() {
    let load = small();
    let run = load.one_at_a_time(1);
    let depth = stats(&run).kernel.accept_queue_depth;
    // All users but the one that is served, give or take what is on the wire.
    let depth = depth.unwrap();
    assert!((depth.mean - f64::from(load.users - 1)).abs() < 0.2, "{depth:?}");
    assert_eq!(depth.max, u64::from(load.users - 1));
}

#[test]
fn turns_without_an_answer_are_no_round_trips() {
    let mut load = small();
    load.steps.push(Step::Turn(DbKind::Query, Some(1), 5 * MS));
    let mut run = load.one_at_a_time(1);
    assert_eq!(stats(&run).kernel.db_round_trips_per_request, Some(1.0));
    for turn in &mut run.kernel.as_mut().unwrap().db_turns {
        turn.answered = 0;
    }
    assert_eq!(stats(&run).kernel.db_round_trips_per_request, Some(0.0));
    let mut failed = load.one_at_a_time(1);
    for turn in &mut failed.kernel.as_mut().unwrap().db_turns {
        turn.flags |= flag::CONNECT_FAILED;
    }
    assert_eq!(stats(&failed).kernel.db_round_trips_per_request, Some(0.0));
}

#[test]
fn without_the_closing_sums_the_windows_tell_what_was_lost() {
    let mut run = small().one_at_a_time(1);
    let data = run.kernel.as_mut().unwrap();
    data.totals = None;
    for window in data.windows.iter_mut().take(3) {
        window.lost = vec![Count { name: "hold_record".to_owned(), count: 2 }];
    }
    let stats = stats(&run);
    assert_eq!(stats.kernel.lost_events, 6);
    assert_eq!(stats.kernel.counters["hold_record"], 6);
}

#[test]
fn records_dropped_for_a_slow_peer_are_lost_too() {
    let mut run = small().one_at_a_time(1);
    run.kernel.as_mut().unwrap().totals.as_mut().unwrap().peer_slow = 4;
    let stats = stats(&run);
    assert_eq!((stats.kernel.lost_events, stats.kernel.counters["peer_slow"]), (4, 4));
}

#[test]
fn what_holds_do_not_decide_stays_open() {
    let mut run = small().one_at_a_time(1);
    let data = run.kernel.as_mut().unwrap();
    let mut at = 0;
    data.holds.retain(|_| {
        at += 1;
        at % 3 != 0
    });
    let some = stats(&run).kernel;
    assert_eq!((some.model, some.held_ms), (None, None), "two thirds are neither most nor few");
    run.kernel.as_mut().unwrap().holds.clear();
    assert_eq!(stats(&run).kernel.model, Some(Model::Concurrent));
    run.hold_start = run.end - SECOND / 100;
    assert_eq!(stats(&run).kernel.model, None, "too few requests");
}

#[test]
fn a_worker_that_is_stuck_is_held() {
    let mut run = small().one_at_a_time(2);
    run.kernel.as_mut().unwrap().windows.iter_mut().for_each(|window| window.queue_mean = 0.0);
    assert!(stats(&run).held_share > 0.98);
    // One of the two takes a request just before the hold begins, and never comes back.
    let (hold_start, data) = (run.hold_start, run.kernel.as_mut().unwrap());
    let tid = data.holds.iter().map(|hold| hold.tid).max().unwrap();
    let stuck = *data
        .requests
        .iter()
        .rfind(|request| request.tid == tid && request.s2 < hold_start)
        .unwrap();
    data.holds.retain(|hold| hold.tid != tid || hold.end < stuck.s2);
    data.requests.retain(|request| request.tid != tid || request.s5 < stuck.s2);
    data.unfinished.retain(|request| request.tid != tid);
    data.unfinished.push(ServerRequest { s4: 0, s5: 0, flags: flag::UNFINISHED, ..stuck });
    let held = stats(&run).held_share;
    assert!(held > 0.98 && held < 1.01, "{held}");
    run.kernel.as_mut().unwrap().unfinished.retain(|request| request.tid != tid);
    let unknown = stats(&run).held_share;
    assert!(unknown < 0.6, "without it nothing tells: {unknown}");
}

#[test]
fn without_a_window_the_accept_queue_was_not_seen() {
    let mut run = small().one_at_a_time(1);
    run.kernel.as_mut().unwrap().windows.clear();
    assert_eq!(stats(&run).kernel.accept_queue_depth, None);
}

#[test]
fn a_recycled_worker_is_one_worker() {
    let mut run = small().one_at_a_time(1);
    let before = stats(&run);
    // Another process every two seconds, as after so many requests.
    let start = run.start;
    let number = |at: u64| 500 + ((at - start) / (2 * SECOND)) as u32;
    let data = run.kernel.as_mut().unwrap();
    for window in &mut data.windows {
        for thread in window.threads.iter_mut().filter(|thread| thread.requests > 0) {
            thread.tid = number(window.from_ns);
        }
    }
    for hold in &mut data.holds {
        hold.tid = number(hold.start);
    }
    for request in &mut data.requests {
        request.tid = number(request.s2);
    }
    let after = stats(&run);
    assert_eq!((before.acceptors, after.acceptors), (1, 1));
    assert!(after.held_share > 0.98 && after.held_share < 1.01, "{}", after.held_share);
    assert!((after.held_share - before.held_share).abs() < 0.01, "{}", before.held_share);
}

#[test]
fn a_request_closed_without_an_answer_is_no_longer_in_progress() {
    let mut run = small().one_at_a_time(1);
    let before = stats(&run).in_service_mean;
    let hold_start = run.hold_start;
    let data = run.kernel.as_mut().unwrap();
    let mut closed = *data.requests.iter().find(|request| request.s3 > hold_start).unwrap();
    (closed.s4, closed.s5, closed.flags) = (0, 0, flag::CLOSED);
    data.requests.extend([closed; 5]);
    assert!((stats(&run).in_service_mean - before).abs() < 1e-9);
    for request in run.kernel.as_mut().unwrap().requests.iter_mut().rev().take(5) {
        request.flags = flag::UNFINISHED;
    }
    assert!(stats(&run).in_service_mean > before + 4.0);
}
