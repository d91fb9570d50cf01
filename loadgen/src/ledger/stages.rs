//! Marks become stages.

/// A stage of a request, in causal order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Network handshake.
    Connect,
    /// The part of the handshake that a full backlog cost.
    BacklogOverflow,
    /// In the listen backlog, waiting for a free worker.
    AcceptQueue,
    /// The request's bytes on the wire, after accept.
    RequestNet,
    /// The request's bytes in the socket, nobody reading.
    Unread,
    /// The service at work on it.
    Service,
    /// The response on the wire.
    ResponseNet,
    /// The load generator late to read.
    ClientWait,
}

impl Stage {
    /// Every stage, in causal order.
    pub const ALL: [Self; 8] = [
        Self::Connect,
        Self::BacklogOverflow,
        Self::AcceptQueue,
        Self::RequestNet,
        Self::Unread,
        Self::Service,
        Self::ResponseNet,
        Self::ClientWait,
    ];

    /// The name used in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::BacklogOverflow => "backlog_overflow",
            Self::AcceptQueue => "accept_queue",
            Self::RequestNet => "request_net",
            Self::Unread => "unread",
            Self::Service => "service",
            Self::ResponseNet => "response_net",
            Self::ClientWait => "client_wait",
        }
    }
}

/// The marks of one completed request, nanoseconds of one clock. On a kept connection s0 and s2
/// are c0. c4k is 0 where the client's kernel was not watched.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timeline {
    /// The client started.
    pub c0: u64,
    /// The service's kernel had the connection established.
    pub s0: u64,
    /// accept() returned it.
    pub s2: u64,
    /// First byte of the request queued.
    pub s1: u64,
    /// First read.
    pub s3: u64,
    /// First byte of the response handed over; 0 if unknown.
    pub s4: u64,
    /// Last byte of the response handed over, as stamped when the call returned.
    pub s5: u64,
    /// Last byte of the response at the client's socket.
    pub c4k: u64,
    /// Last byte of the response read.
    pub c4: u64,
}

/// A request's time by stage: never negative, and their sum is c4 - c0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Split {
    ns: [u64; Stage::ALL.len()],
    /// Time by which marks contradicted causality. Not part of the sum.
    pub inverted_ns: u64,
    /// Whether `client_wait` was measured. If not it is 0 and `response_net` ends at c4.
    pub client_wait_known: bool,
}

impl Split {
    /// Time of a stage in nanoseconds.
    #[must_use]
    pub const fn get(&self, stage: Stage) -> u64 {
        self.ns[stage as usize]
    }

    /// Sum of the stages in nanoseconds.
    #[must_use]
    pub fn total(&self) -> u128 {
        self.ns.iter().map(|&ns| u128::from(ns)).sum()
    }

    /// Books what `connect` took beyond `usual_ns` as `backlog_overflow`.
    pub(super) fn move_overflow(&mut self, usual_ns: u64) {
        let excess = self.get(Stage::Connect).saturating_sub(usual_ns);
        self.ns[Stage::Connect as usize] -= excess;
        self.ns[Stage::BacklogOverflow as usize] += excess;
    }
}

/// Splits a request's time. In the order s0, s2, s1, s3, s5, c4k, c4, each stage is what its mark
/// adds to the latest mark so far, from c0 on. A mark that is early adds nothing; how early it was
/// is counted, except for s1 before s2: bytes may arrive before anybody accepts. A mark later than
/// c4 is taken as c4, and by how much it was later is counted too.
///
/// s5 is stamped when the sending call returns, and on a short path the client has the bytes before
/// that. They were handed over between s4 and s5, so an arrival between those two contradicts
/// nothing: the response then left when it arrived.
#[must_use]
pub fn split(timeline: &Timeline) -> Split {
    let mut split = Split { client_wait_known: timeline.c4k != 0, ..Split::default() };
    let end = timeline.c4.max(timeline.c0);
    let mut latest = timeline.c0;
    let c4k = if timeline.c4k == 0 { end } else { timeline.c4k };
    let s5 = match timeline.s4 {
        0 => timeline.s5,
        s4 if s4 <= c4k => timeline.s5.min(c4k),
        _ => timeline.s5,
    };
    let established = timeline.s0.clamp(timeline.c0, end);
    let marks = [
        (Stage::Connect, timeline.s0),
        (Stage::AcceptQueue, timeline.s2),
        (Stage::RequestNet, timeline.s1),
        (Stage::Unread, timeline.s3),
        (Stage::Service, s5),
        (Stage::ResponseNet, c4k),
        (Stage::ClientWait, end),
    ];
    for (stage, mark) in marks {
        let earliest = if stage == Stage::RequestNet { established } else { latest };
        split.inverted_ns += earliest.saturating_sub(mark) + mark.saturating_sub(end);
        let reached = mark.clamp(latest, end);
        split.ns[stage as usize] = reached - latest;
        latest = reached;
    }
    split
}
