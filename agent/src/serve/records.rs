//! Records of the kernel half as messages: translated, named and batched.

use std::collections::HashMap;

use agent_common::{
    abi::{self, flag},
    wire::{self, ClientTurn, Count, DbTurn, Hold, MAX_BATCH, ServerRequest, ToLoadgen},
};

use super::outbox::Outbox;
use crate::{
    model::postgres::{Decoded, Decoder},
    sys::observe::Event,
};

/// Different statements that are told apart. Beyond that their round trips have no name.
const MAX_STATEMENTS: usize = 10_000;

/// What waits to be sent, and what is remembered to name it.
#[derive(Debug, Default)]
pub(super) struct Records {
    requests: Vec<ServerRequest>,
    unfinished: Vec<ServerRequest>,
    client_turns: Vec<ClientTurn>,
    db_turns: Vec<DbTurn>,
    holds: Vec<Hold>,
    decoder: Decoder,
    statements: HashMap<String, u32>,
    sent_requests: u64,
    terminates: u64,
    unnamed: u64,
}

impl Records {
    /// Takes one record.
    pub(super) fn take(&mut self, event: Event, outbox: &mut Outbox) {
        match event {
            Event::Request(request) => {
                self.requests.push(server_request(&request));
                if self.requests.len() == MAX_BATCH {
                    self.send_requests(outbox);
                }
            }
            Event::DbTurn(turn) => self.db_turn(&turn, outbox),
            Event::ClientTurn(turn) => {
                self.client_turns.push(client_turn(&turn));
                send_full(&mut self.client_turns, ToLoadgen::ClientTurns, outbox);
            }
            Event::Hold(hold) => {
                let abi::Hold { tid, conn, start, end, ns, .. } = hold;
                self.holds.push(Hold { tid, conn, start, end, ns });
                send_full(&mut self.holds, ToLoadgen::Holds, outbox);
            }
            // The windows have it.
            Event::ThreadExit(_) => {}
        }
    }

    /// As [`Self::take`], for what was in progress when the session stopped.
    pub(super) fn take_outstanding(&mut self, event: Event, outbox: &mut Outbox) {
        match event {
            Event::Request(request) if request.flags & flag::UNFINISHED != 0 => {
                self.unfinished.push(server_request(&request));
                send_full(&mut self.unfinished, ToLoadgen::Unfinished, outbox);
            }
            event => self.take(event, outbox),
        }
    }

    fn db_turn(&mut self, turn: &abi::Turn, outbox: &mut Outbox) {
        let (kind, statement) = match self.decoder.turn(turn) {
            Decoded::RoundTrip { kind, statement } => (kind, statement),
            Decoded::Terminate => {
                self.terminates += 1;
                return;
            }
        };
        let statement = statement.and_then(|text| self.statement(text, outbox));
        self.db_turns.push(DbTurn {
            conn: turn.conn,
            ordinal: turn.ordinal,
            tid: turn.tid,
            held_conn: turn.held_conn,
            kind,
            statement,
            flags: turn.flags,
            sent_first: turn.sent_first,
            answered: turn.answered,
            received_last: turn.received_last,
            tx_bytes: turn.tx_bytes,
            rx_bytes: turn.rx_bytes,
        });
        send_full(&mut self.db_turns, ToLoadgen::DbTurns, outbox);
    }

    /// The number of a statement; a new one is sent before its first use.
    fn statement(&mut self, text: String, outbox: &mut Outbox) -> Option<u32> {
        if let Some(id) = self.statements.get(&text) {
            return Some(*id);
        }
        let id = self.statements.len() as u32;
        let known = self.statements.len() < MAX_STATEMENTS
            && outbox.records(&ToLoadgen::Statement { id, text: text.clone() }, 0);
        if !known {
            self.unnamed += 1;
            return None;
        }
        self.statements.insert(text, id);
        Some(id)
    }

    fn send_requests(&mut self, outbox: &mut Outbox) {
        let count = self.requests.len();
        if send(&mut self.requests, ToLoadgen::Requests, outbox) {
            self.sent_requests += count as u64;
        }
    }

    /// Sends what waits.
    pub(super) fn flush(&mut self, outbox: &mut Outbox) {
        self.send_requests(outbox);
        send(&mut self.client_turns, ToLoadgen::ClientTurns, outbox);
        send(&mut self.db_turns, ToLoadgen::DbTurns, outbox);
        send(&mut self.holds, ToLoadgen::Holds, outbox);
        send(&mut self.unfinished, ToLoadgen::Unfinished, outbox);
    }

    /// Complete requests that were sent.
    pub(super) fn sent_requests(&self) -> u64 {
        self.sent_requests
    }

    /// What was odd, by name, non-zero only. None of it is a loss.
    pub(super) fn oddities(&self) -> Vec<Count> {
        let odd = self.decoder.oddities();
        [
            ("database_terminate", self.terminates),
            ("unnamed_statement", self.unnamed),
            ("unknown_prepared", odd.unknown_prepared),
            ("undecoded_database_turn", odd.undecoded),
            ("unkept_prepared", odd.unkept_prepared),
        ]
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| Count { name: name.to_owned(), count })
        .collect()
    }
}

fn send_full<T>(items: &mut Vec<T>, message: fn(Vec<T>) -> ToLoadgen, outbox: &mut Outbox) {
    if items.len() >= MAX_BATCH {
        send(items, message, outbox);
    }
}

/// Sends all of `items`, if any; whether they were sent.
fn send<T>(items: &mut Vec<T>, message: fn(Vec<T>) -> ToLoadgen, outbox: &mut Outbox) -> bool {
    if items.is_empty() {
        return false;
    }
    let count = items.len();
    outbox.records(&message(std::mem::take(items)), count)
}

fn server_request(request: &abi::Request) -> ServerRequest {
    let tuple = &request.tuple;
    ServerRequest {
        conn: request.conn,
        client: wire::address(tuple.remote, tuple.remote_port),
        server: wire::address(tuple.local, tuple.local_port),
        ordinal: request.ordinal,
        tid: request.tid,
        flags: request.flags,
        s0: request.s0,
        s2: request.s2,
        s1: request.s1,
        s3: request.s3,
        s4: request.s4,
        s5: request.s5,
        rx_offset: request.rx_offset,
        rx_bytes: request.rx_bytes,
        tx_offset: request.tx_offset,
        tx_bytes: request.tx_bytes,
    }
}

fn client_turn(turn: &abi::ClientTurn) -> ClientTurn {
    let tuple = &turn.tuple;
    ClientTurn {
        client: wire::address(tuple.local, tuple.local_port),
        server: wire::address(tuple.remote, tuple.remote_port),
        ordinal: turn.ordinal,
        flags: turn.flags,
        syn: turn.syn,
        established: turn.established,
        c3k: turn.c3k,
        c4k: turn.c4k,
    }
}
