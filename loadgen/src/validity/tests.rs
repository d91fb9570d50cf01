use super::*;
use crate::record::{AgentError, Failure};
use crate::{
    join::join, kernel_stats::kernel, ledger, report::model::Stage as Line, simulate,
    simulate::SECOND,
};

fn good() -> (RunData, Kernel, Accounts) {
    let run = simulate::io_read("sync", "sync", 0).one_at_a_time(1);
    let data = run.kernel.as_ref().unwrap();
    let accounts = ledger::close(&run, &join(&run.records, data));
    let kernel = kernel(&run, data).kernel;
    (run, kernel, accounts)
}

/// The only reason after one change.
#[track_caller]
fn reason(change: impl Fn(&mut RunData, &mut Kernel, &mut Accounts)) -> String {
    let (mut run, mut kernel, mut accounts) = good();
    assert!(judge(&run, Some(&kernel), Some(&accounts)).valid);
    change(&mut run, &mut kernel, &mut accounts);
    let validity = judge(&run, Some(&kernel), Some(&accounts));
    assert!(!validity.valid);
    assert_eq!(validity.reasons.len(), 1, "{validity:?}");
    validity.reasons[0].clone()
}

fn valid_after(change: impl Fn(&mut RunData, &mut Kernel, &mut Accounts)) -> Validity {
    let (mut run, mut kernel, mut accounts) = good();
    change(&mut run, &mut kernel, &mut accounts);
    let validity = judge(&run, Some(&kernel), Some(&accounts));
    assert!(validity.valid, "{validity:?}");
    validity
}

fn client_wait(accounts: &mut Accounts) -> &mut Line {
    accounts.ledger.stages.iter_mut().find(|line| line.stage == "client_wait").unwrap()
}

#[test]
fn each_threshold_is_told_and_kept() {
    assert!(reason(|run, _, _| run.interrupted = true).contains("interrupted"));
    assert!(reason(|run, _, _| run.engine_runqueue_share = 0.11).contains("11.0 %"));
    assert!(reason(|run, _, _| run.engine_cpu_share = 0.96).contains("96.0 %"));
    assert!(reason(|_, kernel, _| kernel.lost_events = 1).contains("1 kernel events were lost"));
    let matched = |_: &mut RunData, _: &mut Kernel, accounts: &mut Accounts| {
        accounts.ledger.matched_fraction = Some(0.985);
    };
    assert!(reason(matched).contains("98.5 %"));
    assert!(reason(|_, _, a| a.run_matched_fraction = Some(0.5)).contains("50.0 %"));
    assert!(reason(|_, _, a| a.ledger.inverted_fraction = Some(0.021)).contains("causality"));
    assert!(reason(|_, _, a| a.ledger.residual_fraction = Some(-0.021)).contains("-2.1 %"));
    assert!(reason(|_, _, a| client_wait(a).share = 0.03).contains("late to read"));
    let dropped = |run: &mut RunData, _: &mut Kernel, _: &mut Accounts| {
        run.kernel.as_mut().unwrap().injector_dropped = 9;
    };
    assert!(reason(dropped).contains("9 packets"));
    assert!(reason(|run, _, _| run.beyond.requests = 7).contains("7 requests ended after"));
    let no_room = |run: &mut RunData, _: &mut Kernel, _: &mut Accounts| {
        run.kernel.as_mut().unwrap().dropped_records = 6;
    };
    assert!(reason(no_room).contains("6 of the agent's records"));
    let lost = |run: &mut RunData, _: &mut Kernel, _: &mut Accounts| {
        let at = run.start + 12 * SECOND + SECOND / 2;
        run.kernel.as_mut().unwrap().lost_at = Some(at);
    };
    assert!(reason(lost).contains("kernel side lost at 12.5 s"));
    let nothing = |_: &mut RunData, _: &mut Kernel, accounts: &mut Accounts| {
        accounts.ledger.matched_fraction = None;
        accounts.run_matched_fraction = None;
    };
    assert!(reason(nothing).contains("nothing to explain"));
}

#[test]
fn a_service_or_a_delay_that_ends_in_mid_run_is_told() {
    let error = |code, after_end: bool| {
        move |run: &mut RunData, _: &mut Kernel, _: &mut Accounts| {
            let at_ns = if after_end { run.end + 1 } else { run.start + 7 * SECOND };
            let message = "it has ended".to_owned();
            let errors = &mut run.kernel.as_mut().unwrap().errors;
            errors.push(AgentError { at_ns, code, message });
        }
    };
    for code in [ErrorCode::TargetGone, ErrorCode::Kernel] {
        assert!(reason(error(code, false)).contains("at 7.0 s: it has ended"));
        assert!(valid_after(error(code, true)).notes.join(" ").contains("it has ended"));
    }
    assert_eq!(valid_after(error(ErrorCode::Invalid, false)).notes.len(), 1);
}

/// A run with a delay, in which TCP sent something again.
fn delayed(change: impl Fn(&mut RunData)) -> Validity {
    let mut run = simulate::io_read("sync", "sync", 100).one_at_a_time(1);
    change(&mut run);
    let data = run.kernel.as_ref().unwrap();
    let accounts = ledger::close(&run, &join(&run.records, data));
    let kernel = kernel(&run, data).kernel;
    judge(&run, Some(&kernel), Some(&accounts))
}

fn resent(run: &mut RunData) -> &mut agent_common::wire::Retransmissions {
    run.kernel.as_mut().unwrap().retransmissions.as_mut().unwrap()
}

#[test]
fn timers_of_tcp_make_a_run_with_a_delay_invalid() {
    assert_eq!(delayed(|_| {}).reasons, [""; 0]);
    let timeouts = delayed(|run| resent(run).timeouts = 3);
    assert_eq!(timeouts.reasons.len(), 1, "{timeouts:?}");
    assert!(timeouts.reasons[0].starts_with("3 retransmission timeouts fired"), "{timeouts:?}");
    // A probe waits for less than the timeout, and a delay alone brings them about.
    assert!(delayed(|run| resent(run).probes = 3).valid);

    let synacks = |run: &mut RunData| resent(run).synacks = 2;
    let own = |run: &mut RunData| run.records[0].syn_retransmits = 1;
    for (change, told) in [
        (&synacks as &dyn Fn(&mut RunData), "0 SYN and 2 SYN/ACK were sent again"),
        (&own, "1 SYN and 0 SYN/ACK were sent again"),
    ] {
        let repeated = delayed(change);
        assert!(repeated.reasons.iter().any(|reason| reason.starts_with(told)), "{repeated:?}");
        // A full backlog is no fault of the delay's.
        let overflowed = delayed(|run| {
            change(run);
            run.kernel.as_mut().unwrap().windows[0].listen_overflows = 4;
        });
        assert!(overflowed.valid, "{overflowed:?}");
        assert!(overflowed.notes.iter().any(|note| note.starts_with(told)), "{overflowed:?}");
    }
    let unknown = delayed(|run| run.kernel.as_mut().unwrap().retransmissions = None);
    assert!(unknown.valid, "{unknown:?}");
    assert!(unknown.notes.iter().any(|note| note.contains("was not counted")), "{unknown:?}");
}

#[test]
fn without_a_success_a_run_proves_nothing() {
    let (mut run, ..) = good();
    run.kernel = None;
    assert!(judge(&run, None, None).valid);
    for record in &mut run.records {
        record.outcome = Outcome::Unfinished;
    }
    let validity = judge(&run, None, None);
    assert!(validity.reasons[0].contains("no request succeeded: 0 failed"), "{validity:?}");
    run.records[0].outcome = Outcome::Failed(crate::record::Failure::ConnectRefused);
    let validity = judge(&run, None, None);
    assert!(validity.reasons[0].contains("no request succeeded: 1 failed"), "{validity:?}");
}

#[test]
fn at_a_threshold_a_run_is_valid() {
    valid_after(|run, _, accounts| {
        run.engine_runqueue_share = ENGINE_RUNQUEUE_MAX;
        run.engine_cpu_share = ENGINE_CPU_MAX;
        accounts.ledger.matched_fraction = Some(MATCHED_MIN);
        accounts.ledger.inverted_fraction = Some(INVERTED_MAX);
        accounts.ledger.residual_fraction = Some(RESIDUAL_MAX);
        client_wait(accounts).share = CLIENT_WAIT_MAX;
    });
}

#[test]
fn notes_do_not_make_a_run_invalid() {
    let validity = valid_after(|run, kernel, accounts| {
        kernel.counters.insert("probe_missed".to_owned(), 7);
        accounts.ledger.client_wait_known = Some(0.0);
        accounts.ledger.scope = "run".to_owned();
        let data = run.kernel.as_mut().unwrap();
        data.notices.push("a notice".to_owned());
        let path = "/run/postgresql/.s.PGSQL.5432".to_owned();
        data.totals.as_mut().unwrap().unix_database = Some(path);
    });
    let notes = validity.notes.join("\n");
    for part in [
        "skipped a probe 7 times",
        "a notice",
        "Unix socket /run/postgresql",
        "client_wait was",
        "the whole run",
    ] {
        assert!(notes.contains(part), "{notes}");
    }
}

/// Nothing fails where nobody gives up waiting.
#[test]
fn a_service_that_hangs_is_not_valid() {
    let hung = |silent_ns: u64| {
        let (mut run, ..) = good();
        let end = run.end;
        for record in &mut run.records {
            if record.c4 + silent_ns > end {
                record.outcome = Outcome::Unfinished;
            }
        }
        let done = run.records.iter().filter(|one| one.outcome == Outcome::Success);
        let longest = done.map(|one| one.c4 - one.c0).max().unwrap();
        (stopped_answering(&run), longest)
    };
    let (told, longest) = hung(30 * SECOND);
    assert!(30 * SECOND > 5 * longest, "{longest}");
    assert!(told.is_some_and(|told| told.contains("does the service hang?")));
    // No longer than some have taken before.
    let (told, longest) = hung(SECOND / 4);
    assert_eq!((told, longest > 0), (None, true));
}

#[test]
fn a_service_that_fails_everybody_at_the_end_has_stopped() {
    let refused = |wanted: fn(usize, u64, u64) -> bool| {
        let (mut run, ..) = good();
        let end = run.end;
        for (index, record) in run.records.iter_mut().enumerate() {
            if record.outcome == Outcome::Success && wanted(index, record.c4, end) {
                record.outcome = Outcome::Failed(Failure::ConnectRefused);
            }
        }
        stopped_answering(&run)
    };
    let told = refused(|_, at, end| at + 3 * SECOND > end).unwrap();
    assert!(told.contains("in the last 3."), "{told}");
    // Few get through all the time; or a stumble in the middle.
    assert_eq!(refused(|index, _, _| index % 20 != 0), None);
    assert_eq!(refused(|_, at, end| at + 9 * SECOND > end && at + 3 * SECOND < end), None);
    assert_eq!(refused(|_, _, _| false), None);
}
