//! Emulates users, pairs with the agent, joins every request with its kernel timeline and explains
//! the throughput. The modules in the order in which data flows:
//!
//! - [`cli`]: arguments, and the verbs that connect what follows.
//! - [`schedule`]: which user starts when.
//! - [`body`], [`http`]: the bytes of requests and responses.
//! - [`clock`]: the clocks of every stamp.
//! - [`engine`]: the users on their sockets.
//! - [`pair`]: the session with the agent meanwhile.
//! - [`progress`]: what a person sees of it.
//! - [`record`]: what a run leaves behind, the input of everything below.
//! - [`client_stats`]: throughput and latency as the client saw them.
//! - [`kernel_stats`]: round trips, worker time, holds and the accept queue as the kernel saw them.
//! - [`join`]: each request's kernel timeline.
//! - [`ledger`]: where requests waited, stage by stage.
//! - [`in_force`]: what others did to the service's network meanwhile.
//! - [`validity`]: whether the run can be believed.
//! - [`explain`], [`predict`]: what bounds the throughput, and what another delay would give.
//! - [`report`]: the report contract and its renderings.

pub mod body;
pub mod cli;
pub mod client_stats;
pub mod clock;
pub mod engine;
pub mod explain;
pub mod http;
pub mod in_force;
pub mod join;
pub mod kernel_stats;
pub mod ledger;
pub mod pair;
pub mod predict;
pub mod progress;
pub mod record;
pub mod report;
pub mod schedule;
pub mod validity;

#[cfg(test)]
mod analysis_tests;
#[cfg(test)]
mod simulate;

use agent_common::wire;
use record::{KernelData, RunData};
use report::model::{Achieved, Cell, Injection, Receipt, Retransmissions};

/// What the analysis has to know beside the run itself.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// Made before this run, from another one.
    pub prediction: Option<predict::Prediction>,
    /// Processors online; 0 if unknown.
    pub cpus: u32,
}

/// Turns what a run left behind into its part of the report. Pure.
#[must_use]
pub fn analyse(run: &RunData, inputs: &Inputs) -> Cell {
    let spec = &run.spec;
    let client = client_stats::client(run);
    let mut cell = Cell {
        name: spec.name.clone(),
        setup: spec.setup.clone(),
        route: spec.route.clone(),
        delay_ms: spec.delay_ns.or(run.kernel.as_ref().map(|_| 0)).map(|ns| ns as f64 / 1e6),
        injection: None,
        in_force: None,
        client,
        kernel: None,
        ledger: None,
        explanation: None,
        validity: validity::judge(run, None, None),
    };
    let Some(data) = &run.kernel else { return cell };
    let matches = join::join(&run.records, data);
    let accounts = ledger::close(run, &matches);
    let stats = kernel_stats::kernel(run, data);
    cell.in_force = in_force::in_force(run, data);
    cell.injection = injection(run, data, &matches);
    cell.explanation = Some(explain::explain(
        run,
        &cell.client,
        &stats,
        &accounts,
        inputs.prediction.as_ref(),
        inputs.cpus,
    ));
    cell.validity = validity::judge(run, Some(&stats.kernel), Some(&accounts));
    cell.kernel = Some(stats.kernel);
    cell.ledger = Some(accounts.ledger);
    cell
}

/// What was injected, and what the handshakes of our own connections say of it: from the SYN to
/// ESTABLISHED one packet of the service is delayed, and on `lo` one of the client as well. Those that
/// were sent again are left out.
fn injection(run: &RunData, data: &KernelData, matches: &[join::Match<'_>]) -> Option<Injection> {
    let impaired = data.impaired.as_ref()?;
    let mut times: Vec<u64> = run
        .records
        .iter()
        .zip(matches)
        .filter(|(record, _)| record.ordinal == 0 && record.syn_retransmits == 0)
        .filter_map(|(_, one)| one.turn)
        .filter(|turn| turn.syn >= impaired.at_ns && turn.established > turn.syn)
        .map(|turn| turn.established - turn.syn)
        .collect();
    times.sort_unstable();
    let crossings = if impaired.device == "lo" { 2.0 } else { 1.0 };
    let at = |share| client_stats::quantile(&times, share).map(|ns| ns as f64 / 1e6 / crossings);
    Some(Injection {
        engine: impaired.engine.clone(),
        device: impaired.device.clone(),
        requested_ms: impaired.delay_ns as f64 / 1e6,
        achieved_ms: at(0.5).zip(at(0.99)).map(|(p50, p99)| Achieved { p50, p99 }),
        dropped: data.injector_dropped,
        receipt: data.cleared.as_ref().and_then(receipt),
        retransmissions: data.retransmissions.map(|sent| Retransmissions {
            segments: sent.segments,
            synacks: sent.synacks,
            probes: sent.probes,
            timeouts: sent.timeouts,
        }),
        until_s: data
            .impaired_until(run.end)
            .map(|at| at.saturating_sub(run.start) as f64 / client_stats::NS_PER_S),
    })
}

fn receipt(cleared: &wire::Cleared) -> Option<Receipt> {
    let held = cleared.held?;
    let ms = |ns: u64| ns as f64 / 1e6;
    Some(Receipt {
        packets: held.packets,
        p50_ms: ms(held.p50_ns),
        p99_ms: ms(held.p99_ns),
        max_ms: ms(held.max_ns),
        reordered: cleared.reordered,
        largest_backlog: cleared.largest_backlog,
    })
}
