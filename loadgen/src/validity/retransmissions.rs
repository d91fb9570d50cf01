//! Whether TCP's own timers were part of what a run with a delay measured.

use crate::record::{KernelData, RunData};

/// What is sent again, at most, for one SYN or final ACK that was turned away: six SYNs and five
/// SYN/ACKs (tcp_syn_retries, tcp_synack_retries).
const REPEATS_PER_DROP: u64 = 11;

/// Whether TCP waited for its timers instead of for the delay alone. A backlog that is full makes
/// handshakes repeat as well, and is the service's own doing: those are told, and no more.
pub(super) fn judge(
    run: &RunData,
    data: &KernelData,
    reasons: &mut Vec<String>,
    notes: &mut Vec<String>,
) {
    let Some(impaired) = &data.impaired else { return };
    let device = &impaired.device;
    let Some(sent) = data.retransmissions else {
        notes.push(format!(
            "what TCP sent again through {device} was not counted: were there retransmission \
             timeouts, nothing here would tell"
        ));
        return;
    };
    if sent.timeouts > 0 {
        reasons.push(format!(
            "{} retransmission timeouts fired on the service's connections through {device}: what \
             was measured is in part TCP waiting for its timers, not the delay; look for packets \
             that are lost, or a delay beyond TCP's timeout (1 s for a connection's first packet, later \
             what its round trips took and 0.2 s)",
            sent.timeouts
        ));
    }
    let own: u64 = run
        .records
        .iter()
        .filter(|record| record.ordinal == 0)
        .map(|record| u64::from(record.syn_retransmits))
        .sum();
    let turned_away: u64 = data.windows.iter().map(|window| window.listen_overflows).sum();
    let repeated = format!("{own} SYN and {} SYN/ACK were sent again", sent.synacks);
    match (own + sent.synacks, turned_away) {
        (0, _) => {}
        (_, 0) => reasons.push(format!(
            "{repeated}, and no full backlog had turned one away: what was measured is in part TCP \
             waiting for its timers, not the delay; look for packets that are lost, or a delay \
             beyond TCP's first timeout of 1 s"
        )),
        (repeats, n) if repeats <= REPEATS_PER_DROP * n => {
            notes.push(format!("{repeated}: a full backlog had turned {n} away"));
        }
        (_, n) => reasons.push(format!(
            "{repeated}, far more than the {n} that a full backlog had turned away: what was measured \
             is in part TCP waiting for its timers, not the delay; look for packets that are lost"
        )),
    }
}
