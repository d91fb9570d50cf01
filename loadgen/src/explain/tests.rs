use agent_common::{
    abi::class,
    wire::{self, DbKind},
};

use crate::{
    Inputs, analyse,
    predict::predict,
    record::RunData,
    report::model::{Cell, Verdict},
    simulate::{self, Load, MS, SECOND, Step},
};

fn cell(run: &RunData) -> Cell {
    analyse(run, &Inputs { prediction: None, cpus: 2 })
}

fn story(cell: &Cell) -> String {
    cell.explanation.as_ref().unwrap().sentences.join(" ")
}

fn without_delay(cell: &Cell) -> Option<f64> {
    let what_if = &cell.explanation.as_ref().unwrap().what_if;
    what_if.iter().find(|one| one.change.contains("no added delay")).map(|one| one.predicted_rps)
}

/// Says that `device` was delayed, whatever the packets went through.
fn impair(mut run: RunData, device: &str, delay_ms: u64) -> RunData {
    let at_ns = run.start - SECOND / 2;
    run.kernel.as_mut().unwrap().impaired = Some(wire::Impaired {
        engine: "netem".to_owned(),
        device: device.to_owned(),
        delay_ns: delay_ms * MS,
        at_ns,
    });
    run
}

/// The answers of the database are delayed as well.
fn on_loopback(delay_ms: u64) -> Load {
    let mut load = simulate::io_read("loopback", "sync", delay_ms);
    for step in &mut load.steps {
        if let Step::Turn(_, _, ns) = step {
            *ns += delay_ms * MS;
        }
    }
    load
}

#[test]
fn a_delay_that_is_not_in_the_way_is_not_claimed() {
    let load = simulate::io_read("elsewhere", "sync", 0);
    let elsewhere = cell(&impair(load.one_at_a_time(1), "eth0", 100));
    let told = story(&elsewhere);
    assert!(!told.contains("pure delay"), "{told}");
    assert!(told.contains("the database's packets do not cross the delayed interface"), "{told}");
    assert_eq!(without_delay(&elsewhere), None);

    let overlapping = story(&cell(&impair(load.concurrent(), "eth0", 100)));
    assert!(!overlapping.contains("longer while the others go on"), "{overlapping}");
    assert!(overlapping.contains("packets do not cross the delayed interface"), "{overlapping}");
}

#[test]
fn more_delay_than_the_database_took_is_not_claimed() {
    let mut load = simulate::io_read("partly", "sync", 0);
    for step in &mut load.steps {
        if let Step::Turn(DbKind::TcpConnect, _, ns) = step {
            *ns = 100 * MS;
        }
    }
    let partly = cell(&impair(load.one_at_a_time(1), "eth0", 100));
    let told = story(&partly);
    assert!(!told.contains("pure delay"), "{told}");
    assert!(told.contains("not all of the database's packets cross"), "{told}");
    assert_eq!(without_delay(&partly), None);
}

#[test]
fn slow_queries_do_not_show_a_short_delay() {
    let mut load = simulate::io_read("slow", "sync", 0);
    load.steps.retain(|step| matches!(step, Step::Turn(DbKind::Query, Some(2), _)));
    let told = story(&cell(&impair(load.one_at_a_time(1), "eth0", 5)));
    assert!(!told.contains("pure delay") && !told.contains("do not cross"), "{told}");
}

#[test]
fn loopback_delays_both_directions() {
    let twice = cell(&impair(on_loopback(200).one_at_a_time(1), "lo", 200));
    let told = story(&twice);
    assert!(told.contains("there and back") && told.contains("= 3.20 s of pure delay"), "{told}");
    let undelayed = without_delay(&twice).unwrap();
    assert!((undelayed - 1e3 / 43.0).abs() < 0.1, "{undelayed}");

    // One delay per round trip is not what a database on loopback would show.
    let once = simulate::io_read("once", "sync", 200).one_at_a_time(1);
    let once = cell(&impair(once, "lo", 200));
    assert!(!story(&once).contains("pure delay"), "{}", story(&once));
    assert_eq!(without_delay(&once), None);
}

#[test]
fn a_delay_elsewhere_than_predicted_is_told() {
    let load = simulate::io_read("sync/io_read", "sync", 0);
    let prediction = predict(&cell(&load.one_at_a_time(1)), 100 * MS);
    let with =
        |run| story(&analyse(&run, &Inputs { prediction: Some(prediction.clone()), cpus: 2 }));
    let elsewhere = with(impair(load.one_at_a_time(1), "eth0", 100));
    assert!(elsewhere.contains("8 crossings of the delayed interface; here it waited for 0"));
    let there = with(simulate::io_read("there", "sync", 100).one_at_a_time(1));
    assert!(!there.contains("here it waited"), "{there}");
}

/// A service whose executors wait in a lock all the time.
fn locked_executors(users: u32, executors: u32) -> Cell {
    let mut load = simulate::io_read("pool", "async_limited", 200);
    load.users = users;
    let mut run = load.concurrent();
    for window in &mut run.kernel.as_mut().unwrap().windows {
        window.threads.retain(|thread| thread.tid < 10_000);
        for index in 0..executors {
            let mut executor = window.threads[0].clone();
            executor.tid = 20_000 + index;
            executor.ns = [0; class::COUNT];
            executor.ns[class::LOCK] = SECOND;
            (executor.accepts, executor.requests, executor.db_turns) = (0, 0, 1);
            window.threads.push(executor);
        }
    }
    cell(&run)
}

#[test]
fn a_pool_that_waits_for_work_is_not_bound_by_a_lock() {
    let verdict = |cell: Cell| cell.explanation.unwrap().verdict;
    assert_eq!(verdict(locked_executors(2, 8)), Verdict::NotSaturated);
    assert_eq!(verdict(locked_executors(10, 4)), Verdict::WorkersHeldByLock);
}
