use agent_common::{
    abi::class,
    wire::{self, DbKind},
};

use crate::{
    Inputs, analyse,
    predict::predict,
    record::{AgentError, RunData},
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
fn of_a_service_that_ended_meanwhile_nothing_is_concluded() {
    let mut run = simulate::io_read("ended", "sync", 0).one_at_a_time(1);
    let error = AgentError {
        at_ns: run.end - SECOND,
        code: wire::ErrorCode::TargetGone,
        message: "the service's processes have ended".to_owned(),
    };
    run.kernel.as_mut().unwrap().errors.push(error);
    let ended = cell(&run);
    assert_eq!(ended.explanation.as_ref().unwrap().verdict, Verdict::CannotTell);
    assert!(story(&ended).contains("the service ended during the run"), "{}", story(&ended));
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

#[test]
fn a_statement_as_long_as_the_delay_does_not_show_a_crossing() {
    let mut load = simulate::io_read("slow", "sync", 0);
    load.steps = vec![Step::Turn(DbKind::Query, Some(2), 150 * MS)];
    let slow = cell(&impair(load.one_at_a_time(1), "eth0", 100));
    assert!(!story(&slow).contains("pure delay"), "{}", story(&slow));
    assert_eq!(without_delay(&slow), None);

    // With connections kept nothing but an undelayed run can tell.
    let reused = |delay_ms| {
        let mut load = simulate::io_read("reused", "sync", delay_ms);
        load.steps.retain(|step| !matches!(step, Step::Turn(kind, ..) if kind.is_setup()));
        load.one_at_a_time(1)
    };
    assert_eq!(without_delay(&cell(&reused(200))), None);
    let base = cell(&reused(0));
    let prediction = Some(predict(&base, 200 * MS));
    let told = analyse(&reused(200), &Inputs { prediction, cpus: 2 });
    assert!(story(&told).contains("2 x 200 ms = 400 ms of pure delay"), "{}", story(&told));
    let (promised, before) = (without_delay(&told).unwrap(), base.client.hold_srps.unwrap());
    assert!((promised / before - 1.0).abs() < 0.01, "{promised} for {before}");
}

#[test]
fn without_the_delay_few_users_do_not_wait_for_it_either() {
    let load = |delay_ms| Load { users: 2, ..simulate::io_read("few", "sync", delay_ms) };
    let promised = without_delay(&cell(&load(200).one_at_a_time(1))).unwrap();
    let measured = cell(&load(0).one_at_a_time(1)).client.hold_srps.unwrap();
    assert!((promised / measured - 1.0).abs() < 0.01, "{promised} for {measured}");
}

fn verdict(cell: &Cell) -> Verdict {
    cell.explanation.as_ref().unwrap().verdict
}

/// An event loop with one statement of 30 ms, which the database works on for all at once.
fn unhurried(users: u32) -> Load {
    let mut load = simulate::io_read("few", "async_limited", 0);
    (load.users, load.hold_s) = (users, 20);
    load.steps = vec![Step::Spend(class::CPU, MS), Step::Turn(DbKind::Commit, None, 30 * MS)];
    load
}

#[test]
fn times_that_scatter_are_no_sign_of_a_database_out_of_capacity() {
    for seed in 1..20 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut run = unhurried(5).concurrent();
        for turn in &mut run.kernel.as_mut().unwrap().db_turns {
            // Exponential: the shortest of ten is a tenth of the mean.
            turn.answered = turn.sent_first + (30e6 * -(1.0 - random.f64()).ln()) as u64;
            turn.received_last = turn.answered;
            turn.flags = 0;
        }
        let cell = cell(&run);
        assert_eq!(verdict(&cell), Verdict::NotSaturated, "{seed}: {}", story(&cell));
    }
}

#[test]
fn a_delay_does_not_hide_a_database_out_of_capacity() {
    // It works on a request for 31 ms, and 76 users want more than that allows, by a little.
    let mut load = simulate::io_read("async", "async_limited", 200);
    load.users = 76;
    let delayed = cell(&load.concurrent());
    assert_eq!(verdict(&delayed), Verdict::DatabaseCapacity, "{}", story(&delayed));
    load.users = 40;
    let room = cell(&load.concurrent());
    assert_eq!(verdict(&room), Verdict::NotSaturated, "{}", story(&room));
}

#[test]
fn a_loop_that_waits_for_a_processor_is_not_idle() {
    // As where the database of the same host has the processors, and answers the sooner for it.
    let mut run = unhurried(5).concurrent();
    for window in &mut run.kernel.as_mut().unwrap().windows {
        for thread in window.threads.iter_mut().filter(|thread| thread.requests > 0) {
            thread.ns = [0; class::COUNT];
            thread.ns[class::RUNQUEUE] = 600 * MS;
            thread.ns[class::IDLE] = 350 * MS;
            thread.ns[class::CPU] = 50 * MS;
        }
    }
    let cell = cell(&run);
    assert_eq!(verdict(&cell), Verdict::EventLoopCpu, "{}", story(&cell));
    assert!(story(&cell).contains("by others on this host as well"), "{}", story(&cell));
}

#[test]
fn where_a_queue_stands_room_is_not_claimed() {
    let queue = |mut run: RunData| {
        for window in &mut run.kernel.as_mut().unwrap().windows {
            window.queue_mean = 3.0;
        }
        cell(&run)
    };
    let mut few = simulate::control(class::SLEEP, 20);
    few.users = 2;
    assert_eq!(verdict(&cell(&few.one_at_a_time(8))), Verdict::NotSaturated);
    let standing = queue(few.one_at_a_time(8));
    assert_eq!(verdict(&standing), Verdict::CannotTell);
    assert!(story(&standing).contains("3 connections stand in the accept queue"));
    assert_eq!(standing.explanation.unwrap().bound_rps, None);
    assert_eq!(verdict(&cell(&unhurried(5).concurrent())), Verdict::NotSaturated);
    assert_eq!(verdict(&queue(unhurried(5).concurrent())), Verdict::CannotTell);
}

#[test]
fn a_pool_that_reads_is_judged_by_its_busiest_thread() {
    let pool = |busy_ns: u64| {
        let mut run = unhurried(5).concurrent();
        for window in &mut run.kernel.as_mut().unwrap().windows {
            window.threads.retain(|thread| thread.accepts > 0);
            let main = window.threads[0].clone();
            for thread in &mut window.threads {
                thread.requests = 0;
            }
            for tid in [501, 502] {
                let mut thread = main.clone();
                (thread.tid, thread.accepts, thread.requests) = (tid, 0, 50);
                thread.ns = [0; class::COUNT];
                thread.ns[class::DATABASE] = busy_ns;
                thread.ns[class::IDLE] = SECOND - busy_ns;
                window.threads.push(thread);
            }
        }
        cell(&run)
    };
    assert_eq!(verdict(&pool(SECOND / 2)), Verdict::NotSaturated);
    let held = pool(SECOND);
    assert_ne!(verdict(&held), Verdict::NotSaturated, "{}", story(&held));
}

#[test]
fn async_changes_promise_no_more_than_loop_and_processors_have() {
    let promised = |cell: &Cell, words: &str| {
        let what_if = &cell.explanation.as_ref().unwrap().what_if;
        what_if.iter().find(|one| one.change.contains(words)).map(|one| one.predicted_rps)
    };
    let mut load = unhurried(10);
    load.steps = vec![Step::Spend(class::CPU, 7 * MS), Step::Turn(DbKind::Auth, None, 100 * MS)];
    let before = cell(&load.concurrent());
    assert_eq!(verdict(&before), Verdict::NotSaturated, "{}", story(&before));
    load.steps.pop();
    let measured = cell(&load.concurrent()).client.hold_srps.unwrap();
    let kept = promised(&before, "kept open").unwrap();
    assert!((kept / measured - 1.0).abs() < 0.03, "{kept} for {measured}");

    // A second loop finds the other processor free, or the database at work on it.
    load.steps = vec![Step::Spend(class::CPU, 20 * MS)];
    let alone = cell(&load.concurrent());
    assert_eq!(verdict(&alone), Verdict::EventLoopCpu);
    assert!((promised(&alone, "twice").unwrap() / 100.0 - 1.0).abs() < 0.02);
    load.steps.push(Step::Turn(DbKind::Commit, None, 20 * MS));
    let shared = cell(&load.concurrent());
    assert_eq!(verdict(&shared), Verdict::EventLoopCpu);
    assert_eq!(promised(&shared, "twice"), None, "{:?}", shared.explanation);
}

/// A run with 20 ms of delay whose agent, and with it the delay, was gone after half of it.
fn lost_in_mid_run() -> RunData {
    let mut load = simulate::io_read("lost", "async_limited", 20);
    (load.users, load.hold_s, load.keep_alive) = (2, 30, true);
    load.steps = vec![Step::Spend(class::CPU, MS)];
    let mut run = load.concurrent();
    let lost = run.start + 15 * SECOND;
    for record in run.records.iter_mut().filter(|record| record.c4 > lost) {
        record.c0 = record.c4 - MS;
    }
    let data = run.kernel.as_mut().unwrap();
    data.requests.retain(|request| request.s5 <= lost);
    data.unfinished.clear();
    data.client_turns.retain(|turn| turn.c4k <= lost);
    data.windows.retain(|window| window.to_ns <= lost);
    (data.lost_at, data.totals) = (Some(lost), None);
    run
}

#[test]
fn after_the_agent_was_lost_sentences_are_of_the_joined_requests_and_say_so() {
    let run = lost_in_mid_run();
    let prediction =
        predict(&cell(&simulate::io_read("base", "sync", 0).one_at_a_time(1)), 20 * MS);
    let lost = analyse(&run, &Inputs { prediction: Some(prediction), cpus: 2 });
    let ledger = lost.ledger.as_ref().unwrap();
    let joined = ledger.stages_mean_ms.unwrap();
    assert!(ledger.client_mean_ms.unwrap() < 0.6 * joined, "two populations: {ledger:?}");
    let told = story(&lost);
    let whole = crate::explain::words::ms(joined);
    assert!(told.contains(&format!("kernel's timeline ({} were not) one takes", ledger.unmatched)));
    assert!(told.contains(&format!("one takes {whole}, of which 20.")), "{told}");
    assert!(told.contains("while the delay was in force"), "{told}");
    assert!(told.contains("in force until 15.0 s only") && !told.contains("Measured:"), "{told}");
    assert_eq!(lost.injection.as_ref().unwrap().until_s, Some(15.0));
    let text = crate::report::text::cell(&lost, crate::report::text::Colour::Never);
    assert!(text.contains("20.0 ms added on eth0 by nfqueue until 15.0 s"), "{text}");

    // A loss after the users had stopped takes nothing away from the delay.
    let mut late = simulate::io_read("late", "sync", 20).one_at_a_time(1);
    late.kernel.as_mut().unwrap().lost_at = Some(late.end + 1);
    assert_eq!(cell(&late).injection.unwrap().until_s, None);
}

#[test]
fn a_delay_that_ended_by_itself_leaves_the_verdict_open() {
    let mut run = simulate::io_read("ended", "sync", 100).one_at_a_time(1);
    let at_ns = run.start + 30 * SECOND;
    let message = "the impairment has ended: somebody removed it".to_owned();
    let code = wire::ErrorCode::Kernel;
    run.kernel.as_mut().unwrap().errors.push(AgentError { at_ns, code, message });
    let ended = cell(&run);
    assert_eq!(verdict(&ended), Verdict::CannotTell);
    assert!(story(&ended).contains("the delay ended during the run"), "{}", story(&ended));
    assert_eq!(ended.injection.unwrap().until_s, Some(30.0));
}
