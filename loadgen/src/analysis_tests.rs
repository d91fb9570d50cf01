//! From what simulated servers leave behind to what is said of them.

use agent_common::{abi::class, wire::Count};

use crate::{
    Inputs, analyse,
    predict::{Prediction, predict},
    record::{Outcome, RunData},
    report::model::{Cell, Explanation, Model, Verdict},
    simulate::{self, MS, SECOND, Step},
};

fn cell(run: &RunData) -> Cell {
    analyse(run, &Inputs { prediction: None, cpus: 2 })
}

fn with(run: &RunData, prediction: Prediction) -> Cell {
    analyse(run, &Inputs { prediction: Some(prediction), cpus: 2 })
}

fn explanation(cell: &Cell) -> &Explanation {
    cell.explanation.as_ref().unwrap()
}

fn verdict(run: &RunData) -> Verdict {
    explanation(&cell(run)).verdict
}

#[track_caller]
fn near(value: f64, expected: f64, share: f64) {
    assert!((value - expected).abs() <= share * expected.abs(), "{value} is not near {expected}");
}

fn stage(cell: &Cell, name: &str) -> f64 {
    let stages = &cell.ledger.as_ref().unwrap().stages;
    stages.iter().find(|stage| stage.stage == name).unwrap().mean_ms
}

#[test]
fn a_sync_server_behind_a_delay_is_understood_to_the_digit() {
    let load = simulate::io_read("sync/io_read/200ms", "sync", 200);
    let cell = cell(&load.one_at_a_time(1));
    assert!(cell.validity.valid, "{:?}", cell.validity);

    let held_ms = load.held() as f64 / 1e6;
    let kernel = cell.kernel.as_ref().unwrap();
    assert_eq!(kernel.model, Some(Model::OneAtATime));
    assert_eq!(kernel.db_round_trips_per_request, Some(8.0));
    assert_eq!(kernel.worker_threads, 1, "the master is no worker");
    near(kernel.held_ms.as_ref().unwrap().mean, held_ms, 1e-4);
    let by_class = kernel.held_by_class_ms.as_ref().unwrap();
    near(by_class.values().sum::<f64>(), held_ms, 1e-3);
    near(by_class["cpu"], 7.0, 0.01);
    near(kernel.worker_time.values().sum::<f64>(), 1.0, 1e-9);
    assert!(kernel.worker_time["database"] > 0.99, "{:?}", kernel.worker_time);
    near(kernel.accept_queue_depth.as_ref().unwrap().mean, 98.8, 0.01);
    let auth = kernel.db_round_trips.iter().find(|line| line.kind == "auth").unwrap();
    assert_eq!(auth.per_request, 2.0);
    near(auth.mean_ms, 201.475, 1e-6);

    let explanation = explanation(&cell);
    assert_eq!(explanation.verdict, Verdict::WorkersHeldByDatabase);
    near(explanation.bound_rps.unwrap(), 1e3 / held_ms, 1e-3);
    near(explanation.measured_rps.unwrap(), 1e3 / held_ms, 1e-3);
    let achieved = cell.injection.as_ref().unwrap().achieved_ms.as_ref().unwrap();
    near(achieved.p50, 200.06, 1e-4);

    near(stage(&cell, "connect"), 200.09, 1e-4);
    near(stage(&cell, "response_net"), 200.03, 1e-4);
    near(stage(&cell, "service"), held_ms - 0.015, 1e-4);
    let ledger = cell.ledger.as_ref().unwrap();
    assert_eq!((ledger.scope.as_str(), ledger.unmatched), ("hold", 0));
    assert_eq!(ledger.matched_fraction, Some(1.0));
    assert_eq!(ledger.inverted_fraction, Some(0.0));
    near(ledger.stages_mean_ms.unwrap(), ledger.client_mean_ms.unwrap(), 1e-9);
    assert_eq!(ledger.unfinished.by_stage["accept_queue"], 99);
    assert_eq!(ledger.unfinished.count, 100);
}

#[test]
fn the_collapse_is_predicted_from_the_undelayed_run() {
    let base = cell(&simulate::io_read("sync/io_read/0ms", "sync", 0).one_at_a_time(1));
    for (delay_ms, published) in [(100, 1.2), (200, 0.6)] {
        let prediction = predict(&base, delay_ms * MS);
        assert_eq!(prediction.crossings, Some(8.0));
        let run = simulate::io_read("delayed", "sync", delay_ms).one_at_a_time(1);
        let cell = with(&run, prediction);
        let (predicted, measured) =
            (explanation(&cell).predicted_rps.unwrap(), cell.client.hold_srps.unwrap());
        near(measured, predicted, 0.01);
        near(predicted, published, 0.025);
        assert_eq!(explanation(&cell).predicted_from.as_deref(), Some("sync/io_read/0ms"));
    }
}

#[test]
fn a_delay_is_taken_out_again_and_more_workers_add_up() {
    let slow = cell(&simulate::io_read("slow", "sync", 200).one_at_a_time(4));
    let fast = cell(&simulate::io_read("fast", "sync", 0).one_at_a_time(4));
    let predicted = predict(&slow, 0).predicted_rps.unwrap();
    near(predicted, fast.client.hold_srps.unwrap(), 0.01);
    near(slow.client.hold_srps.unwrap(), 4.0 / 1.643, 0.02);
}

#[test]
fn what_the_changes_would_give_is_what_they_give() {
    let load = simulate::io_read("sync", "sync", 200);
    let before = cell(&load.one_at_a_time(1));
    let promised = |words: &str| {
        let what_if = &explanation(&before).what_if;
        what_if.iter().find(|one| one.change.contains(words)).unwrap().predicted_rps
    };
    let mut reused = load.clone();
    reused.steps.retain(|step| !matches!(step, Step::Turn(kind, ..) if kind.is_setup()));
    let measured = |run: &RunData| cell(run).client.hold_srps.unwrap();
    near(measured(&reused.one_at_a_time(1)), promised("kept open"), 0.01);
    // Four workers that began together end together: the rate counts one such group too many.
    near(measured(&load.one_at_a_time(4)), promised("4 workers"), 0.02);
    near(measured(&simulate::io_read("0", "sync", 0).one_at_a_time(1)), promised("no added"), 0.01);
    // The simulated database serves both of its queries one after the other, and little else.
    let concurrent = measured(&load.concurrent());
    assert!(concurrent >= promised("at once"), "{concurrent} < {}", promised("at once"));
    near(concurrent, promised("at once"), 0.2);
}

#[test]
fn control_servers_are_not_called_database() {
    let slow_by = |class| verdict(&simulate::control(class, 20).one_at_a_time(1));
    assert_eq!(slow_by(class::CPU), Verdict::WorkersHeldByCpu);
    assert_eq!(slow_by(class::RUNQUEUE), Verdict::WorkersHeldByCpu);
    assert_eq!(slow_by(class::SLEEP), Verdict::WorkersHeldByOther);
    assert_eq!(slow_by(class::LOCK), Verdict::WorkersHeldByLock);
    assert_eq!(slow_by(class::CLIENT_IO), Verdict::WorkersHeldByClients);
    assert_eq!(slow_by(class::DISK), Verdict::WorkersHeldByOther);
}

#[test]
fn without_a_dominant_cause_nothing_is_claimed() {
    let mut load = simulate::control(class::SLEEP, 8);
    load.steps = vec![
        Step::Spend(class::CPU, 8 * MS),
        Step::Spend(class::LOCK, 8 * MS),
        Step::Spend(class::SLEEP, 8 * MS),
    ];
    assert_eq!(verdict(&load.one_at_a_time(1)), Verdict::CannotTell);
}

#[test]
fn idle_workers_are_not_the_bound() {
    let mut load = simulate::control(class::SLEEP, 20);
    load.users = 2;
    let cell = cell(&load.one_at_a_time(8));
    assert_eq!(explanation(&cell).verdict, Verdict::NotSaturated);
    assert!(explanation(&cell).what_if.is_empty());
    let busy = explanation(&cell).bound_rps.unwrap();
    assert!(busy > 3.0 * cell.client.hold_srps.unwrap(), "{busy}");
}

#[test]
fn async_tells_another_story() {
    let load = simulate::io_read("async_limited/io_read/200ms", "async_limited", 200);
    let cell = cell(&load.concurrent());
    assert!(cell.validity.valid, "{:?}", cell.validity);
    let kernel = cell.kernel.as_ref().unwrap();
    assert_eq!(kernel.model, Some(Model::Concurrent));
    assert_eq!(kernel.held_ms, None);
    near(kernel.db_round_trips_per_request.unwrap(), 8.0, 0.02);
    assert_eq!(explanation(&cell).verdict, Verdict::DatabaseCapacity);
    assert_eq!(explanation(&cell).bound_rps, None);
    let story = explanation(&cell).sentences.join(" ");
    assert!(story.contains("out of capacity") && story.contains("overlap"), "{story}");
    assert!(!story.contains("one request at a time"), "{story}");
    assert_eq!(predict(&cell, 0).predicted_rps, None);
}

#[test]
fn async_with_few_users_waits_for_nothing_but_the_delay() {
    let mut load = simulate::io_read("async", "async_limited", 200);
    load.users = 10;
    let cell = cell(&load.concurrent());
    assert_eq!(explanation(&cell).verdict, Verdict::NotSaturated);
    // Ten users who wait 2.04 s each: a service that had a bound would give less.
    assert_eq!(explanation(&cell).bound_rps, None);
    let steps: f64 = load.held() as f64 / 1e9 + 0.4;
    near(cell.client.hold_srps.unwrap(), 10.0 / steps, 0.03);
    let story = explanation(&cell).sentences.join(" ");
    assert!(story.contains("each of 10 users waits"), "{story}");
}

#[test]
fn users_over_latency_is_told_of_a_steady_state_only() {
    let mut load = simulate::io_read("async", "async_limited", 200);
    load.users = 10;
    let mut run = load.concurrent();
    // As if the unfinished ones had been under way for a minute.
    for record in &mut run.records {
        if record.outcome == Outcome::Unfinished {
            record.c0 -= 60 * SECOND;
            record.connection_start -= 60 * SECOND;
        }
    }
    let cell = cell(&run);
    assert_eq!(explanation(&cell).verdict, Verdict::NotSaturated);
    let story = explanation(&cell).sentences.join(" ");
    assert!(story.contains("Nothing is used up: the event loop is idle"), "{story}");
    assert!(!story.contains("asks again"), "{story}");
}

/// Another service, say, of which nothing is known: it may be used up.
#[test]
fn async_that_waits_for_what_is_not_followed_cannot_be_told() {
    let mut load = simulate::control(class::SLEEP, 20);
    load.setup = "async_limited";
    load.users = 5;
    let cell = cell(&load.concurrent());
    let story = explanation(&cell).sentences.join(" ");
    assert_eq!(explanation(&cell).verdict, Verdict::CannotTell, "{story}");
    assert!(story.contains("or another service, which may be used up"), "{story}");
    assert!(!story.contains("More users"), "{story}");
}

#[test]
fn async_that_computes_is_out_of_processor_time() {
    let mut load = simulate::control(class::CPU, 20);
    load.setup = "async_limited";
    let cell = cell(&load.concurrent());
    assert_eq!(explanation(&cell).verdict, Verdict::EventLoopCpu);
    // It computes all the time: that it could do what it did says nothing.
    assert_eq!(explanation(&cell).bound_rps, None);
    near(cell.client.hold_srps.unwrap(), 1e3 / 21.0, 0.02);
    assert!(stage(&cell, "service") > 10.0 * stage(&cell, "unread"));
}

#[test]
fn lost_events_leave_the_verdict_open_and_the_run_invalid() {
    let mut run = simulate::io_read("sync", "sync", 0).one_at_a_time(1);
    let totals = run.kernel.as_mut().unwrap().totals.as_mut().unwrap();
    totals.lost_events = 7;
    totals.counters = vec![Count { name: "request_record".to_owned(), count: 7 }];
    let cell = cell(&run);
    assert_eq!(explanation(&cell).verdict, Verdict::CannotTell);
    assert_eq!(explanation(&cell).bound_rps, None);
    assert!(!cell.validity.valid);
    assert_eq!(cell.kernel.as_ref().unwrap().counters["request_record"], 7);
    assert_eq!(predict(&cell, 100 * MS).predicted_rps, None, "an invalid run predicts nothing");
}

#[test]
fn a_lost_agent_a_short_hold_and_a_busy_generator_are_told() {
    let run = simulate::io_read("sync", "sync", 0).one_at_a_time(1);
    let mut lost = run.clone();
    let data = lost.kernel.as_mut().unwrap();
    data.lost_at = Some(lost.start + 15 * SECOND);
    data.totals = None;
    data.requests.truncate(40);
    let lost = cell(&lost);
    assert_eq!(explanation(&lost).verdict, Verdict::CannotTell);
    let reasons = lost.validity.reasons.join("; ");
    assert!(reasons.contains("kernel side lost at 15.0 s"), "{reasons}");

    let mut short = simulate::io_read("sync", "sync", 200);
    short.hold_s = 10;
    let short = cell(&short.one_at_a_time(1));
    assert_eq!(explanation(&short).verdict, Verdict::CannotTell, "six requests decide nothing");
    assert_eq!(short.client.hold_srps, None);
    assert_eq!(short.ledger.as_ref().unwrap().scope, "run");

    let mut busy = run;
    busy.engine_cpu_share = 0.99;
    let busy = cell(&busy);
    assert_eq!(explanation(&busy).verdict, Verdict::LoadGenerator);
    assert!(!busy.validity.valid);
}

#[test]
fn without_an_agent_there_is_only_the_client() {
    let mut run = simulate::io_read("plain", "sync", 0).one_at_a_time(1);
    run.kernel = None;
    let cell = cell(&run);
    assert!(cell.validity.valid && cell.client.successes > 1000);
    assert!(cell.kernel.is_none() && cell.ledger.is_none() && cell.explanation.is_none());
    let prediction = predict(&cell, 100 * MS);
    let reason = prediction.no_prediction.clone().unwrap();
    assert!(reason.contains("without the agent"), "{reason}");

    // A run that is compared with it says so.
    let delayed = simulate::io_read("delayed", "sync", 100).one_at_a_time(1);
    let compared = with(&delayed, prediction);
    let story = explanation(&compared).sentences.join(" ");
    assert!(
        story.contains("No prediction was made from plain: the run was made without"),
        "{story}"
    );
    assert_eq!(explanation(&compared).predicted_rps, None);
}

#[test]
fn lost_request_records_are_unmatched_and_make_the_run_invalid() {
    let mut run = simulate::io_read("sync", "sync", 0).one_at_a_time(1);
    let requests = &mut run.kernel.as_mut().unwrap().requests;
    let mut at = 0;
    requests.retain(|_| {
        at += 1;
        at % 20 != 0
    });
    let cell = cell(&run);
    let ledger = cell.ledger.as_ref().unwrap();
    near(ledger.matched_fraction.unwrap(), 0.95, 0.01);
    near(ledger.residual_fraction.unwrap(), 0.05, 0.2);
    let reasons: u64 = ledger.unmatched_reasons.values().sum();
    assert_eq!(reasons, ledger.unmatched);
    assert!(!cell.validity.valid);
    near(stage(&cell, "service"), 43.0, 0.05);
}

#[test]
fn failures_are_told() {
    let mut run = simulate::io_read("async", "async_limited", 0).concurrent();
    for record in run.records.iter_mut().step_by(10) {
        if record.outcome == Outcome::Success {
            record.outcome = Outcome::Failed(crate::record::Failure::Http5xx);
        }
    }
    let cell = cell(&run);
    let story = explanation(&cell).sentences.join(" ");
    assert!(story.contains("http 5xx"), "{story}");
    assert!(cell.validity.valid, "a request that failed was joined all the same");
}

#[test]
fn one_thread_in_front_of_the_database_is_the_bound() {
    let mut run = simulate::io_read("async", "async_limited", 200).concurrent();
    // As if all round trips had gone through one thread, which was busy with them all the time.
    let data = run.kernel.as_mut().unwrap();
    let mut at = run.start;
    for turn in &mut data.db_turns {
        turn.tid = 10_000;
        (turn.sent_first, turn.answered) = (at, at + 200 * MS);
        at += 200 * MS;
    }
    data.db_turns.retain(|turn| turn.answered <= run.end);
    for window in &mut data.windows {
        window.threads.retain(|thread| thread.tid < 10_000);
        let mut executor = window.threads[0].clone();
        executor.tid = 10_000;
        executor.ns = [0; class::COUNT];
        executor.ns[class::DATABASE] = SECOND;
        (executor.accepts, executor.requests, executor.db_turns) = (0, 0, 5);
        window.threads.push(executor);
    }
    let cell = cell(&run);
    assert_eq!(explanation(&cell).verdict, Verdict::ExecutorHeldByDatabase);
    let words = crate::report::text::verdict(Verdict::ExecutorHeldByDatabase);
    assert!(words.contains("threads that talk to the database"), "the database itself is not busy");
    let story = explanation(&cell).sentences.join(" ");
    assert!(story.contains("1 thread stands between the event loop and the database"), "{story}");
}
