use agent_common::wire::ServerRequest;
use proptest::prelude::*;

use super::*;
use crate::{
    join::{Unmatched, join},
    record::{KernelData, Outcome},
    simulate,
};

/// Marks 10, 20, ... apart, in the order of causality.
const ORDERLY: Timeline =
    Timeline { c0: 100, s0: 110, s2: 130, s1: 160, s3: 200, s4: 240, s5: 250, c4k: 310, c4: 380 };

fn stages(split: &Split) -> Vec<u64> {
    Stage::ALL.iter().map(|&stage| split.get(stage)).collect()
}

#[test]
fn a_known_timeline_gives_known_stages() {
    let one = split(&ORDERLY);
    assert_eq!(stages(&one), [10, 0, 20, 30, 40, 50, 60, 70]);
    assert_eq!((one.inverted_ns, one.client_wait_known), (0, true));
}

#[test]
fn bytes_that_came_before_accept_spent_no_time_on_the_wire_after_it() {
    let one = split(&Timeline { s1: 115, ..ORDERLY });
    assert_eq!(stages(&one), [10, 0, 20, 0, 70, 50, 60, 70]);
    assert_eq!(one.inverted_ns, 0);
    // But none come before the connection is there.
    assert_eq!(split(&Timeline { s1: 105, ..ORDERLY }).inverted_ns, 5);
}

#[test]
fn a_kept_connection_has_neither_handshake_nor_queue() {
    let one = split(&Timeline { s0: 100, s2: 100, s1: 120, ..ORDERLY });
    assert_eq!(stages(&one), [0, 0, 0, 20, 80, 50, 60, 70]);
}

#[test]
fn early_and_late_marks_are_counted_not_hidden() {
    let early = split(&Timeline { s3: 150, s1: 160, ..ORDERLY });
    assert_eq!((stages(&early)[4], early.inverted_ns), (0, 10));
    let late = split(&Timeline { s5: 400, s4: 390, ..ORDERLY });
    assert_eq!(late.total(), 280);
    // 20 past the end, and the arrival 70 before the running maximum.
    assert_eq!(late.inverted_ns, 20 + 70);
    let never = split(&Timeline { s2: 0, ..ORDERLY });
    assert_eq!(never.inverted_ns, 110);
}

#[test]
fn a_response_may_arrive_before_the_sending_call_returns() {
    let one = split(&Timeline { s4: 240, s5: 320, ..ORDERLY });
    assert_eq!(stages(&one)[5..], [110, 0, 70]);
    assert_eq!(one.inverted_ns, 0);
    // Before the call was made it cannot.
    assert_eq!(split(&Timeline { s4: 315, s5: 320, ..ORDERLY }).inverted_ns, 10);
}

#[test]
fn without_the_clients_kernel_the_last_two_stages_are_one() {
    let one = split(&Timeline { c4k: 0, ..ORDERLY });
    assert_eq!(stages(&one)[6..], [130, 0]);
    assert!(!one.client_wait_known);
}

proptest! {
    #[test]
    fn stages_are_never_negative_and_always_sum_up(marks in prop::array::uniform9(0u64..2_000)) {
        let [c0, s0, s2, s1, s3, s4, s5, c4k, c4] = marks;
        let (c0, c4) = (c0.min(c4), c0.max(c4));
        let one = split(&Timeline { c0, s0, s2, s1, s3, s4, s5, c4k, c4 });
        prop_assert_eq!(one.total(), u128::from(c4 - c0));
        // Orderly marks come out as they went in.
        let mut sorted = marks;
        sorted.sort_unstable();
        let [c0, s0, s2, s1, s3, s4, s5, c4k, c4] = sorted;
        let one = split(&Timeline { c0, s0, s2, s1, s3, s4, s5, c4k, c4 });
        prop_assert_eq!(one.inverted_ns, 0);
        if c4k > 0 {
            let expected = [s0 - c0, 0, s2 - s0, s1 - s2, s3 - s1, s5 - s3, c4k - s5, c4 - c4k];
            prop_assert_eq!(stages(&one), expected);
        }
    }
}

/// A sync run in which every seventh handshake took a second longer.
fn overflowing(windows_say_so: bool) -> RunData {
    let mut run = simulate::control(agent_common::abi::class::SLEEP, 20).one_at_a_time(1);
    let data = run.kernel.as_mut().unwrap();
    for window in &mut data.windows {
        window.listen_overflows = u64::from(windows_say_so);
    }
    let mut at = 0;
    for record in &mut run.records {
        at += 1;
        if at % 7 == 0 {
            record.c0 -= simulate::SECOND;
            record.connection_start -= simulate::SECOND;
            record.syn_retransmits = 1;
        }
    }
    run
}

fn line<'a>(ledger: &'a model::Ledger, name: &str) -> &'a model::Stage {
    ledger.stages.iter().find(|stage| stage.stage == name).unwrap()
}

fn ledger(run: &RunData) -> model::Ledger {
    let matches = join(&run.records, run.kernel.as_ref().unwrap());
    close(run, &matches).ledger
}

#[test]
fn a_full_backlog_is_told_from_a_slow_handshake() {
    let full = ledger(&overflowing(true));
    assert!((line(&full, "backlog_overflow").mean_ms - 1_000.0 / 7.0).abs() < 5.0);
    assert!((line(&full, "connect").mean_ms - 0.09).abs() < 1e-6);
    let slow = ledger(&overflowing(false));
    assert_eq!(line(&slow, "backlog_overflow").mean_ms, 0.0);
    assert!(line(&slow, "connect").mean_ms > 100.0);
}

#[test]
fn a_request_sent_again_is_accounted_for_from_its_new_connection_on() {
    let run = simulate::control(agent_common::abi::class::SLEEP, 20).one_at_a_time(1);
    let before = ledger(&run);
    let mut again = run;
    for record in &mut again.records {
        record.c0 -= simulate::SECOND;
    }
    assert_eq!(ledger(&again).stages, before.stages);
    assert_eq!(ledger(&again).client_mean_ms, before.client_mean_ms);
    assert_eq!(before.new_connections, Some(1.0));
}

#[test]
fn unfinished_requests_are_placed_by_the_marks_they_reached_before_the_end() {
    let run = simulate::control(agent_common::abi::class::SLEEP, 20).one_at_a_time(1);
    let template = *run.records.iter().find(|one| one.outcome == Outcome::Unfinished).unwrap();
    let end = run.end;
    let stage_of = |change: &dyn Fn(&mut ServerRequest)| {
        let mut server = run.kernel.as_ref().unwrap().requests[0];
        (server.s0, server.s2, server.s1) = (end - 90, 0, end - 80);
        (server.s3, server.s4, server.s5) = (0, 0, 0);
        change(&mut server);
        let one = RunData { records: vec![template], ..run.clone() };
        let matches = [Match { server: Ok(&server), turn: None }];
        close(&one, &matches).ledger.unfinished.by_stage.into_keys().next().unwrap()
    };
    assert_eq!(stage_of(&|_| {}), "accept_queue");
    assert_eq!(stage_of(&|server| server.s2 = end + 1), "accept_queue");
    assert_eq!(stage_of(&|server| server.s2 = end - 70), "unread");
    assert_eq!(stage_of(&|server| (server.s2, server.s1) = (end - 70, 0)), "request_net");
    assert_eq!(stage_of(&|server| (server.s2, server.s3) = (end - 70, end - 60)), "service");
    assert_eq!(
        stage_of(&|server| (server.s2, server.s3, server.s5) = (end - 70, end - 60, end - 50)),
        "response_net"
    );
    let without = |reason, c1| {
        let record = crate::record::RequestRecord { c1, ..template };
        let one = RunData { records: vec![record], ..run.clone() };
        let matches = [Match { server: Err(reason), turn: None }];
        close(&one, &matches).ledger.unfinished.by_stage.into_keys().next().unwrap()
    };
    assert_eq!(without(Unmatched::NoConnection, 0), "connect");
    assert_eq!(without(Unmatched::NoConnection, end - 10), "unknown");
    assert_eq!(without(Unmatched::BytesDiffer, 0), "unknown");
}

#[test]
fn nothing_completed_is_an_empty_ledger() {
    let mut run = simulate::control(agent_common::abi::class::SLEEP, 20).one_at_a_time(1);
    run.records.clear();
    run.kernel = Some(KernelData::default());
    let ledger = ledger(&run);
    assert_eq!((ledger.matched, ledger.matched_fraction), (0, None));
    assert!(ledger.stages.is_empty());
    let absent = [
        ledger.inverted_fraction,
        ledger.residual_fraction,
        ledger.client_mean_ms,
        ledger.stages_mean_ms,
        ledger.new_connections,
    ];
    assert_eq!(absent, [None; 5], "what there is nothing of is not 0");
}
