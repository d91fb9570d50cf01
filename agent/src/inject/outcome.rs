//! What an impairment did: so far, or in all once it has ended.

use serde::{Deserialize, Serialize};

use crate::model::impairment::{Receipt, Retransmissions};
use crate::sys::nfqueue::Account;
use crate::sys::receipt::Got;

/// What an impairment did to packets and connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// What packets got that came since the last change; None where it could not be measured. All that
    /// follows is since the beginning.
    pub receipt: Option<Receipt>,
    /// Packets dropped, or let through undelayed, since the engine's queue was full; with netem also
    /// those that were to be lost.
    pub dropped: u64,
    /// Packets lost as was asked; None where the kernel counts them with the dropped (netem).
    pub lost_as_asked: Option<u64>,
    /// Packets that went later than one that had come after them; None where it could not be
    /// measured.
    pub reordered: Option<u64>,
    /// Most packets that were held at once, of either direction; None where it could not be measured.
    pub largest_backlog: Option<u64>,
    /// What TCP sent again meanwhile; None where it could not be measured.
    pub retransmissions: Option<Retransmissions>,
    /// Packets that were held when it was taken away, and were lost with it (netem).
    pub lost: u64,
    /// Packets that were held when it was changed: they got what was in force when they came, and are
    /// in neither receipt.
    pub held_over: u64,
}

impl Outcome {
    /// Of the kernel's own engine, with what the programs at its ends counted.
    pub(super) fn of_netem(got: Option<Got>, dropped: u64) -> Self {
        Self {
            receipt: got.map(|got| got.receipt),
            reordered: got.map(|got| got.reordered),
            largest_backlog: got.map(|got| got.largest_backlog),
            dropped,
            ..Self::default()
        }
    }
}

impl From<Account> for Outcome {
    fn from(account: Account) -> Self {
        Self {
            receipt: Some(account.receipt),
            dropped: account.dropped,
            lost_as_asked: Some(account.lost),
            reordered: Some(account.reordered),
            largest_backlog: Some(account.largest_backlog),
            retransmissions: None,
            lost: 0,
            held_over: 0,
        }
    }
}
