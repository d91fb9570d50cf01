use super::*;
use crate::{Inputs, analyse, simulate, simulate::MS};

/// A simulated undelayed run, its held time and rate replaced by given ones.
fn base(held_ms: f64, users: u32) -> Cell {
    let run = simulate::io_read("base", "sync", 0).one_at_a_time(1);
    let mut cell = analyse(&run, &Inputs::default());
    cell.kernel.as_mut().unwrap().held_ms.as_mut().unwrap().mean = held_ms;
    cell.client.users = users;
    cell
}

#[test]
fn the_published_figures_come_out() {
    // 23.0 requests per second are 43.5 ms each.
    for (delay_ms, published) in [(100, "1.2"), (200, "0.6")] {
        let prediction = predict(&base(43.5, 500), delay_ms * MS);
        assert_eq!(format!("{:.1}", prediction.predicted_rps.unwrap()), published);
        assert_eq!(prediction.upper_bound_rps, prediction.predicted_rps);
    }
    assert!((predict(&base(43.5, 500), 200 * MS).held_ms.unwrap() - 1_643.5).abs() < 1e-9);
}

#[test]
fn few_users_are_a_bound_of_their_own() {
    let mut cell = base(43.5, 2);
    cell.kernel.as_mut().unwrap().thread_groups[0].threads = 8.0;
    let prediction = predict(&cell, 100 * MS);
    // 0.12 ms of network without the delay.
    assert!((prediction.predicted_rps.unwrap() - 2e3 / 1_043.62).abs() < 1e-6);
    let told = prediction.assumptions.join(" ");
    assert!(told.contains("The users are the limit: 2 users / (844 ms held + 200 ms"), "{told}");
    assert!(told.contains("The workers would do 8 workers / 844 ms = 9.48"), "{told}");
    assert!(!told.contains("workers are the limit") && !told.contains("are close"), "{told}");

    let told = predict(&base(43.5, 100), 100 * MS).assumptions.join(" ");
    assert!(told.contains("The workers are the limit: 1 worker / 844 ms = 1.19"), "{told}");
    assert!(!told.contains("users are the limit"), "{told}");
}

#[test]
fn limits_that_meet_are_told() {
    // One user who waits for 200 ms beside the 844 ms that the one worker is held.
    let told = predict(&base(43.5, 1), 100 * MS).assumptions.join(" ");
    assert!(told.contains("The two limits are close"), "{told}");
}

#[test]
fn the_network_without_the_delay_is_part_of_what_users_wait_for() {
    let mut cell = base(43.5, 1);
    let stages = &mut cell.ledger.as_mut().unwrap().stages;
    stages.iter_mut().find(|line| line.stage == "connect").unwrap().mean_ms = 30.0;
    let rate = predict(&cell, 100 * MS).predicted_rps.unwrap();
    assert!((rate - 1e3 / (843.5 + 30.03 + 200.0)).abs() < 1e-6, "{rate}");
    // Of a delayed run the delay itself is no part of it.
    let mut load = simulate::io_read("delayed", "sync", 200);
    load.users = 1;
    let slow = analyse(&load.one_at_a_time(1), &Inputs::default());
    let fast = analyse(&simulate::Load { delay: 0, ..load }.one_at_a_time(1), &Inputs::default());
    let (predicted, measured) =
        (predict(&slow, 1).predicted_rps.unwrap(), fast.client.hold_srps.unwrap());
    assert!((predicted / measured - 1.0).abs() < 1e-3, "{predicted} {measured}");
}

#[test]
fn without_round_trips_none_are_talked_of() {
    let run = simulate::control(agent_common::abi::class::SLEEP, 20).one_at_a_time(1);
    let prediction = predict(&analyse(&run, &Inputs::default()), 100 * MS);
    assert_eq!(prediction.crossings, Some(0.0));
    let told = prediction.assumptions.join(" ");
    assert!(told.contains("without a database round trip"), "{told}");
    assert!(!told.contains("0 times") && !told.contains("0.00"), "{told}");
    assert!(!told.contains("every database round trip leaves"), "{told}");
}

#[test]
fn what_is_not_known_is_not_predicted() {
    let reason = |change: fn(&mut Cell)| {
        let mut cell = base(43.5, 100);
        change(&mut cell);
        let prediction = predict(&cell, 100 * MS);
        assert_eq!((prediction.predicted_rps, prediction.upper_bound_rps), (None, None));
        prediction.no_prediction.unwrap()
    };
    assert!(reason(|cell| cell.kernel = None).contains("without the agent"));
    assert!(reason(|cell| cell.validity.valid = false).contains("invalid"));
    assert!(reason(|cell| cell.kernel.as_mut().unwrap().model = None).contains("not known how"));
    let uncounted = |cell: &mut Cell| {
        cell.kernel.as_mut().unwrap().db_round_trips_per_request = None;
    };
    assert!(reason(uncounted).contains("round trips per request"));
}

#[test]
fn an_event_loop_gets_a_bound_only() {
    let run = simulate::io_read("async", "async_limited", 0).concurrent();
    let cell = analyse(&run, &Inputs::default());
    let prediction = predict(&cell, 200 * MS);
    assert_eq!((prediction.predicted_rps, prediction.held_ms), (None, None));
    let bound = prediction.upper_bound_rps.unwrap();
    assert!((bound - 100.0 / (10.0 * 0.2)).abs() < 0.5, "{bound}");
    let slow = simulate::io_read("async", "async_limited", 200).concurrent();
    let measured = analyse(&slow, &Inputs::default()).client.hold_srps.unwrap();
    assert!(measured <= bound, "{measured} > {bound}");
    let nothing = predict(&cell, 0);
    assert_eq!(nothing.upper_bound_rps, None, "no delay bounds nothing");
    assert!(nothing.no_prediction.unwrap().contains("no bound follows"));
    assert_eq!(prediction.no_prediction, None);
}

#[test]
fn a_kept_connection_waits_for_no_handshake() {
    // Each request makes one round trip: the client's own waits are much of it.
    let load = |delay_ms, keep_alive| {
        let mut load = simulate::io_read("async", "async_limited", delay_ms);
        load.steps = vec![simulate::Step::Turn(agent_common::wire::DbKind::Query, Some(1), MS)];
        simulate::Load { users: 10, hold_s: 20, keep_alive, ..load }
    };
    for (keep_alive, waits) in [(true, 2.0), (false, 3.0)] {
        let base = analyse(&load(0, keep_alive).concurrent(), &Inputs::default());
        assert!(base.validity.valid, "{:?}", base.validity);
        let bound = predict(&base, 200 * MS).upper_bound_rps.unwrap();
        assert!((bound - 10.0 / (waits * 0.2)).abs() < 0.05, "{bound}");
        let slow = analyse(&load(200, keep_alive).concurrent(), &Inputs::default());
        let measured = slow.client.hold_srps.unwrap();
        assert!(measured <= bound * 1.001 && measured > 0.98 * bound, "{measured} of {bound}");

        // Without a ledger it is still a bound.
        let unknown = Cell { ledger: None, ..base };
        let bound = predict(&unknown, 200 * MS).upper_bound_rps.unwrap();
        assert!(measured <= bound, "{measured} > {bound}");
    }
}

#[test]
fn predictions_are_files() {
    let prediction = predict(&base(43.5, 100), 100 * MS);
    let text = serde_json::to_string(&prediction).unwrap();
    assert_eq!(serde_json::from_str::<Prediction>(&text).unwrap(), prediction);
    assert!(serde_json::from_str::<Prediction>(&text.replace("held_ms", "hold_ms")).is_err());
}

#[test]
fn that_the_database_is_behind_the_delay_is_assumed_and_said() {
    let assumed = "every database round trip leaves through the delayed interface, once";
    for run in [
        simulate::io_read("sync", "sync", 0).one_at_a_time(1),
        simulate::io_read("async", "async_limited", 0).concurrent(),
    ] {
        let prediction = predict(&analyse(&run, &Inputs::default()), 100 * MS);
        assert!(prediction.assumptions.join(" ").contains(assumed), "{prediction:?}");
    }
}

/// A run with 200 ms on `device`, of which each round trip shows `times`.
fn delayed(device: &str, times: u64) -> Cell {
    let delay_ms = 200;
    let mut load = simulate::io_read("delayed", "sync", delay_ms);
    for step in &mut load.steps {
        if let simulate::Step::Turn(_, _, ns) = step {
            *ns += (times - 1) * delay_ms * MS;
        }
    }
    let mut run = load.one_at_a_time(1);
    run.kernel.as_mut().unwrap().impaired.as_mut().unwrap().device = device.to_owned();
    analyse(&run, &Inputs::default())
}

#[test]
fn both_directions_of_loopback_are_delayed() {
    let twice = predict(&delayed("lo", 2), 100 * MS);
    assert_eq!(twice.crossings, Some(16.0));
    let held = twice.held_ms.unwrap();
    assert!((held - 1_643.0).abs() < 1.0, "{held}");
    let mut few = delayed("lo", 2);
    few.client.users = 1;
    let rate = predict(&few, 100 * MS).predicted_rps.unwrap();
    assert!((rate - 1e3 / (held + 400.0)).abs() < 1e-6, "{rate}");

    let unclear = predict(&delayed("lo", 1), 100 * MS);
    assert_eq!((unclear.predicted_rps, unclear.upper_bound_rps), (None, None));
    assert!(unclear.no_prediction.as_ref().unwrap().contains("not clear"), "{unclear:?}");

    // Without a delay nothing shows whether the database is on loopback.
    let mut zero = base(43.5, 100);
    zero.injection = delayed("lo", 1).injection;
    zero.injection.as_mut().unwrap().requested_ms = 0.0;
    let unknown = predict(&zero, 100 * MS);
    assert_eq!((unknown.predicted_rps, unknown.upper_bound_rps), (None, None));
    assert!(unknown.no_prediction.as_ref().unwrap().contains("both directions"), "{unknown:?}");
}
