//! Servers that accept while others work and yet have no event loop.

use agent_common::abi::class;

use crate::{
    Inputs, analyse,
    record::RunData,
    report::model::{Cell, Verdict},
    simulate::{self, Load, SECOND},
};

fn cell(run: &RunData) -> Cell {
    analyse(run, &Inputs { prediction: None, cpus: 2 })
}

fn verdict(cell: &Cell) -> Verdict {
    cell.explanation.as_ref().unwrap().verdict
}

fn story(cell: &Cell) -> String {
    cell.explanation.as_ref().unwrap().sentences.join(" ")
}

/// One thread accepts, and begins another for each connection, which ends with it.
fn thread_per_connection(load: &Load) -> RunData {
    const FIRST: u32 = 10_000;
    let mut run = load.concurrent();
    let data = run.kernel.as_mut().unwrap();
    for request in data.requests.iter_mut().chain(&mut data.unfinished) {
        request.tid = FIRST + request.conn as u32 - 1;
    }
    for thread in data.windows.iter_mut().flat_map(|window| &mut window.threads) {
        thread.requests = u64::from(thread.tid >= FIRST);
    }
    run
}

/// A pool of threads that read requests from connections which another accepts.
fn pool(load: &Load, threads: usize) -> RunData {
    let mut run = load.one_at_a_time(threads);
    let data = run.kernel.as_mut().unwrap();
    data.holds.clear();
    for thread in data.windows.iter_mut().flat_map(|window| &mut window.threads) {
        thread.accepts = u64::from(thread.requests == 0);
    }
    run
}

#[test]
fn a_thread_per_connection_is_no_event_loop() {
    let mut load = simulate::control(class::SLEEP, 10);
    load.users = 4;
    let cell = cell(&thread_per_connection(&load));
    let told = story(&cell);
    assert!(!told.contains("event loop") && !told.contains("many requests at once"), "{told}");
    assert!(told.contains(" threads read the requests of the hold, 3."), "{told}");
    assert!(told.contains("of them alive at once on average and none with two in hand"), "{told}");
    assert!(told.contains("100 % sleeping"), "without the thread that accepts: {told}");
    assert_eq!(verdict(&cell), Verdict::NotSaturated);
    assert!(told.contains("Each of 4 users waits"), "{told}");
    let groups = &cell.kernel.as_ref().unwrap().thread_groups;
    assert!(groups.iter().all(|group| group.role != "event_loop"), "{groups:?}");
}

#[test]
fn threads_that_wait_for_one_another_have_no_room() {
    let mut load = simulate::control(class::SLEEP, 10);
    load.users = 4;
    let mut run = thread_per_connection(&load);
    let windows = &mut run.kernel.as_mut().unwrap().windows;
    for thread in windows.iter_mut().flat_map(|window| &mut window.threads) {
        let slept = std::mem::take(&mut thread.ns[class::SLEEP]);
        thread.ns[class::LOCK] += slept / 3;
        thread.ns[class::CLIENT_IO] += slept - slept / 3;
    }
    let cell = cell(&run);
    assert_eq!(verdict(&cell), Verdict::CannotTell, "{}", story(&cell));
    assert!(story(&cell).contains("kept waiting by one another"), "{}", story(&cell));
}

#[test]
fn a_pool_is_bound_by_its_threads() {
    let load = simulate::io_read("pool", "sync", 0);
    let cell = cell(&pool(&load, 2));
    let told = story(&cell);
    assert!(told.contains("2 threads read the requests of the hold, none with two"), "{told}");
    assert!(!told.contains("event loop") && !told.contains("alive at once"), "{told}");
    assert_eq!(verdict(&cell), Verdict::ExecutorHeldByDatabase, "{told}");
    assert!(told.contains("The threads that read requests are waiting for the database"), "{told}");
    let (bound, measured) =
        (cell.explanation.unwrap().bound_rps.unwrap(), cell.client.hold_srps.unwrap());
    assert!(measured <= bound && measured > 0.8 * bound, "{measured} of {bound}");
}

#[test]
fn one_thread_that_never_had_two_in_hand_is_called_just_that() {
    let cell = cell(&pool(&simulate::control(class::CPU, 20), 1));
    let told = story(&cell);
    assert!(told.contains("1 thread read the requests of the hold, and never had two"), "{told}");
    assert!(told.contains("Its time: 100 % computing"), "{told}");
    assert_eq!(verdict(&cell), Verdict::EventLoopCpu, "{told}");
}

#[test]
fn loops_that_come_and_go_are_not_counted_in_fractions() {
    let mut run = simulate::io_read("async", "async_limited", 0).concurrent();
    for window in &mut run.kernel.as_mut().unwrap().windows {
        let extra: Vec<_> =
            window.threads.iter().filter(|thread| thread.accepts > 0).cloned().collect();
        for mut thread in extra {
            thread.tid = 900;
            thread.ns = [0; class::COUNT];
            thread.ns[class::IDLE] = SECOND / 3;
            window.threads.push(thread);
        }
    }
    let told = story(&cell(&run));
    assert!(told.contains("Event loops, 1.") && told.contains("on average, take every"), "{told}");
}
