//! Finds each request's kernel timeline: by four-tuple, connection start, ordinal, byte offsets.
//!
//! Tuples are reused, mirrored on loopback and rewritten by NAT, and records get lost. So every
//! step may only narrow down; where two candidates remain or a check fails the request stays
//! unmatched, with the reason. One sort and one merge per side, whatever the number of requests.

use std::{collections::BTreeMap, net::SocketAddr};

use agent_common::{abi::flag, wire};

use crate::record::{KernelData, RequestRecord};

/// Why a request has no kernel timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unmatched {
    /// The client's socket never had an address: nothing to look for.
    NoAddress,
    /// The service's kernel knows no connection with these addresses.
    NoConnection,
    /// It knows some, but none that began while this one was open.
    NoConnectionInTime,
    /// Two or more began while this one was open.
    AmbiguousConnection,
    /// The connection was open before the probes were.
    BeforeProbes,
    /// The connection has no record of this ordinal.
    NoSuchOrdinal,
    /// The connection has two records of this ordinal.
    AmbiguousOrdinal,
    /// The service saw bytes of a further request before it had answered.
    Pipelined,
    /// Byte offsets or lengths differ.
    BytesDiffer,
    /// The service read the request before it was begun or after it had ended.
    TimesDiffer,
    /// A mark that every completed request has was not seen.
    MarksMissing,
}

impl Unmatched {
    /// The name used in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoAddress => "no_address",
            Self::NoConnection => "no_connection",
            Self::NoConnectionInTime => "no_connection_in_time",
            Self::AmbiguousConnection => "ambiguous_connection",
            Self::BeforeProbes => "before_probes",
            Self::NoSuchOrdinal => "no_such_ordinal",
            Self::AmbiguousOrdinal => "ambiguous_ordinal",
            Self::Pipelined => "pipelined",
            Self::BytesDiffer => "bytes_differ",
            Self::TimesDiffer => "times_differ",
            Self::MarksMissing => "marks_missing",
        }
    }
}

/// What was found for one request.
#[derive(Clone, Copy, Debug)]
pub struct Match<'a> {
    /// The service's kernel's view.
    pub server: Result<&'a wire::ServerRequest, Unmatched>,
    /// The client's kernel's view, where there is one and no doubt about it.
    pub turn: Option<&'a wire::ClientTurn>,
}

/// Whether a request ended with a response, success or not.
#[must_use]
pub fn completed(record: &RequestRecord) -> bool {
    record.outcome.has_response()
}

/// Joins every record; the result is in the order of `records`.
#[must_use]
pub fn join<'a>(records: &[RequestRecord], kernel: &'a KernelData) -> Vec<Match<'a>> {
    let connections = Connections::of(records);
    let servers = Service::of(kernel);
    let turns = Turns::of(&kernel.client_turns);
    let by_server = connections.assign(&servers.connections);
    let by_turns = connections.assign(&turns.connections);

    let nothing = Match { server: Err(Unmatched::NoAddress), turn: None };
    let mut matches = vec![nothing; records.len()];
    let per_connection = connections.list.iter().zip(by_server).zip(by_turns);
    for ((connection, server), turn) in per_connection {
        for &index in &connections.order[connection.from..connection.to] {
            let record = &records[index as usize];
            if record.local.port() == 0 {
                continue;
            }
            matches[index as usize] = Match {
                server: match server {
                    Found::One(at) => servers.request(&servers.connections[at], record),
                    Found::None => Err(servers.why_none(&connection.key)),
                    Found::Many => Err(Unmatched::AmbiguousConnection),
                },
                turn: match turn {
                    Found::One(at) => turns.turn(&turns.connections[at], record),
                    Found::None | Found::Many => None,
                },
            };
        }
    }
    matches
}

/// Counts why the completed requests among `matches` have no timeline.
#[must_use]
pub fn reasons<'a>(matches: impl Iterator<Item = &'a Match<'a>>) -> BTreeMap<String, u64> {
    let mut reasons = BTreeMap::new();
    for one in matches {
        if let Err(reason) = one.server {
            *reasons.entry(reason.name().to_owned()).or_insert(0) += 1;
        }
    }
    reasons
}

/// Client's address, client's port, service's port. The service's address is left out: NAT may
/// have rewritten it, and time and bytes decide.
type Key = (u128, u16, u16);

fn key(client: SocketAddr, server_port: u16) -> Key {
    let ip = match client.ip().to_canonical() {
        std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        std::net::IpAddr::V6(v6) => v6,
    };
    (ip.to_bits(), client.port(), server_port)
}

/// A connection of any of the three sides: a stretch of that side's sorted order.
#[derive(Clone, Copy, Debug)]
struct Connection {
    key: Key,
    /// When it began.
    start: u64,
    /// Client: when its last request ended. Elsewhere unused.
    end: u64,
    from: usize,
    to: usize,
}

/// What another side has for a client's connection.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Found {
    None,
    One(usize),
    Many,
}

/// The client's connections, sorted by key and start.
struct Connections {
    order: Vec<u32>,
    list: Vec<Connection>,
}

impl Connections {
    fn of(records: &[RequestRecord]) -> Self {
        let sort_key = |record: &RequestRecord| {
            (key(record.local, record.remote.port()), record.connection_start)
        };
        let mut order: Vec<u32> = (0..records.len() as u32).collect();
        order.sort_by_cached_key(|&index| sort_key(&records[index as usize]));
        let mut list = Vec::new();
        let mut from = 0;
        let same =
            |a: &u32, b: &u32| sort_key(&records[*a as usize]) == sort_key(&records[*b as usize]);
        for chunk in order.chunk_by(same) {
            let (key, start) = sort_key(&records[chunk[0] as usize]);
            let ends = chunk.iter().map(|&index| records[index as usize].c4);
            let to = from + chunk.len();
            list.push(Connection { key, start, end: ends.max().unwrap_or(start), from, to });
            from = to;
        }
        Self { order, list }
    }

    /// For each of ours the one of `others` that began while it was open, and was the next to
    /// begin. `others` sorted by key and start.
    fn assign(&self, others: &[Connection]) -> Vec<Found> {
        let mut found = vec![Found::None; self.list.len()];
        let mut ours = 0;
        for (index, other) in others.iter().enumerate() {
            // The last of ours that is not after it.
            while ours < self.list.len()
                && (self.list[ours].key, self.list[ours].start) <= (other.key, other.start)
            {
                ours += 1;
            }
            let Some(at) = ours.checked_sub(1) else { continue };
            let ours = &self.list[at];
            if ours.key == other.key && other.start != 0 && other.start <= ours.end {
                found[at] = match found[at] {
                    Found::None => Found::One(index),
                    Found::One(_) | Found::Many => Found::Many,
                };
            }
        }
        found
    }
}

/// The service's connections and requests, sorted by key, start, number, ordinal.
struct Service<'a> {
    requests: Vec<&'a wire::ServerRequest>,
    connections: Vec<Connection>,
}

impl<'a> Service<'a> {
    fn of(kernel: &'a KernelData) -> Self {
        let mut requests: Vec<&wire::ServerRequest> =
            kernel.requests.iter().chain(&kernel.unfinished).collect();
        requests.sort_by_cached_key(|request| {
            (key(request.client, request.server.port()), request.s0, request.conn, request.ordinal)
        });
        let mut connections = Vec::new();
        let mut from = 0;
        for chunk in requests.chunk_by(|a, b| a.conn == b.conn && a.client == b.client) {
            let (first, to) = (chunk[0], from + chunk.len());
            let key = key(first.client, first.server.port());
            connections.push(Connection { key, start: first.s0, end: 0, from, to });
            from = to;
        }
        Self { requests, connections }
    }

    fn why_none(&self, key: &Key) -> Unmatched {
        let from = self.connections.partition_point(|other| other.key < *key);
        let same = || self.connections[from..].iter().take_while(|other| other.key == *key);
        if same().any(|other| other.start == 0) {
            Unmatched::BeforeProbes
        } else if same().next().is_some() {
            Unmatched::NoConnectionInTime
        } else {
            Unmatched::NoConnection
        }
    }

    fn request(
        &self,
        connection: &Connection,
        record: &RequestRecord,
    ) -> Result<&'a wire::ServerRequest, Unmatched> {
        let all = &self.requests[connection.from..connection.to];
        let from = all.partition_point(|request| request.ordinal < record.ordinal);
        let request = match all.get(from) {
            Some(request) if request.ordinal == record.ordinal => *request,
            _ => return Err(Unmatched::NoSuchOrdinal),
        };
        if all.get(from + 1).is_some_and(|next| next.ordinal == record.ordinal) {
            return Err(Unmatched::AmbiguousOrdinal);
        }
        check(request, record).map_or(Ok(request), Err)
    }
}

/// What speaks against `request` being the one of `record`.
fn check(request: &wire::ServerRequest, record: &RequestRecord) -> Option<Unmatched> {
    if request.flags & flag::ADOPTED != 0 {
        return Some(Unmatched::BeforeProbes);
    }
    if request.flags & flag::PIPELINED != 0 {
        return Some(Unmatched::Pipelined);
    }
    if request.rx_offset != record.tx_offset || request.tx_offset != record.rx_offset {
        return Some(Unmatched::BytesDiffer);
    }
    if request.s3 != 0 && (request.s3 < record.c0 || request.s3 > record.c4) {
        // What was not finished may well be read after the run.
        return completed(record).then_some(Unmatched::TimesDiffer);
    }
    if !completed(record) {
        return None;
    }
    if request.rx_bytes != record.tx_bytes || request.tx_bytes != record.rx_bytes {
        return Some(Unmatched::BytesDiffer);
    }
    let marks = [request.s0, request.s2, request.s1, request.s3, request.s5];
    marks.contains(&0).then_some(Unmatched::MarksMissing)
}

/// The client's kernel's exchanges, sorted by key, start, ordinal.
struct Turns<'a> {
    turns: Vec<&'a wire::ClientTurn>,
    connections: Vec<Connection>,
}

impl<'a> Turns<'a> {
    fn of(turns: &'a [wire::ClientTurn]) -> Self {
        let mut turns: Vec<&wire::ClientTurn> = turns.iter().collect();
        let sort_key = |turn: &wire::ClientTurn| (key(turn.client, turn.server.port()), turn.syn);
        turns.sort_by_cached_key(|turn| (sort_key(turn), turn.ordinal));
        let mut connections = Vec::new();
        let mut from = 0;
        for chunk in turns.chunk_by(|a, b| sort_key(a) == sort_key(b)) {
            let (key, start) = sort_key(chunk[0]);
            let to = from + chunk.len();
            connections.push(Connection { key, start, end: 0, from, to });
            from = to;
        }
        Self { turns, connections }
    }

    fn turn(
        &self,
        connection: &Connection,
        record: &RequestRecord,
    ) -> Option<&'a wire::ClientTurn> {
        let all = &self.turns[connection.from..connection.to];
        let from = all.partition_point(|turn| turn.ordinal < record.ordinal);
        let turn = *all.get(from)?;
        let alone = all.get(from + 1).is_none_or(|next| next.ordinal != record.ordinal);
        let fits = turn.ordinal == record.ordinal
            && wire::canonical(turn.server) == wire::canonical(record.remote)
            && (turn.c4k == 0 || (record.c0..=record.c4).contains(&turn.c4k));
        (alone && fits).then_some(turn)
    }
}

#[cfg(test)]
mod tests;
