//! Packets that wait for their time. As in netem's queue, those that come in the order of their
//! times are in a line; the others are sorted beside it; and some go ahead of all.

use std::collections::{BTreeMap, VecDeque};

use super::scheduler::{Fate, Scheduler};

/// A packet held. Times are nanoseconds of one monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Packet {
    id: u32,
    arrival: Arrival,
    due_ns: u64,
}

/// When a packet came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Nanoseconds.
    pub ns: u64,
    /// How often counting [started over](Holding::start_over) before its time to go was decided.
    pub changes: u32,
}

/// What was done with packets so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Lost, as was asked.
    pub lost: u64,
    /// Dropped, since as many as may be were held.
    pub full: u64,
    /// Gone later than one that came after it.
    pub reordered: u64,
    /// Most that were held at once.
    pub largest_backlog: u64,
}

/// Packets held, and the scheduler that says how long.
#[derive(Debug)]
pub struct Holding {
    scheduler: Scheduler,
    /// Those that go at once, the last one first.
    front: VecDeque<Packet>,
    line: VecDeque<Packet>,
    /// By time, then by arrival.
    sorted: BTreeMap<(u64, u64), Packet>,
    arrived: u64,
    last_arrived: u32,
    newest_gone: Option<u32>,
    passing: bool,
    changes: u32,
    tally: Tally,
}

/// Packets whose time has come.
#[derive(Debug, PartialEq, Eq)]
pub struct Due {
    /// Their numbers, in the order in which they go.
    pub ids: Vec<u32>,
    /// Whether no packet with a lower number than the last of them stays: one word for all will do.
    pub all_up_to_last: bool,
    /// When each had arrived.
    pub arrivals: Vec<Arrival>,
}

/// Whether packet `a` came after `b`; numbers wrap at 2^32.
const fn is_after(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}

impl Holding {
    /// None yet.
    #[must_use]
    pub fn new(scheduler: Scheduler) -> Self {
        Self {
            scheduler,
            front: VecDeque::new(),
            line: VecDeque::new(),
            sorted: BTreeMap::new(),
            arrived: 0,
            last_arrived: 0,
            newest_gone: None,
            passing: false,
            changes: 0,
            tally: Tally::default(),
        }
    }

    /// Decides by `scheduler` from now on. Those that are held keep the time that they were given, as
    /// in netem's queue: after a change to less delay, later ones overtake them.
    pub fn change(&mut self, scheduler: Scheduler) {
        self.scheduler = scheduler;
    }

    /// Delays by this from now on, and decides all else as before. Not a [change](Self::changes): a
    /// ramp has hundreds of them.
    pub fn set_latency(&mut self, latency_ns: i64) {
        self.scheduler.set_latency(latency_ns);
    }

    /// Counts what comes from now on apart from what came before; how many are held.
    pub fn start_over(&mut self) -> u64 {
        self.changes += 1;
        self.len() as u64
    }

    /// How often counting [started over](Self::start_over).
    #[must_use]
    pub fn changes(&self) -> u32 {
        self.changes
    }

    /// Whether packets must come with their lengths.
    #[must_use]
    pub fn needs_lengths(&self) -> bool {
        self.scheduler.needs_lengths()
    }

    /// Takes the packet `id` of `bytes` bytes in, in the order of numbers; false if it is to be
    /// dropped.
    #[must_use]
    pub fn take_in(&mut self, id: u32, now_ns: u64, bytes: u64) -> bool {
        self.last_arrived = id;
        let fate = if self.passing {
            Fate::At(now_ns)
        } else {
            self.scheduler.decide(now_ns, bytes, self.len(), self.last_due())
        };
        let arrival = Arrival { ns: now_ns, changes: self.changes };
        let packet = |due_ns| Packet { id, arrival, due_ns };
        match fate {
            Fate::Lost => {
                self.tally.lost += 1;
                return false;
            }
            Fate::Full => {
                self.tally.full += 1;
                return false;
            }
            Fate::Front => self.front.push_front(packet(now_ns)),
            Fate::At(due) if self.line.back().is_none_or(|last| last.due_ns <= due) => {
                self.line.push_back(packet(due));
            }
            Fate::At(due) => {
                self.sorted.insert((due, self.arrived), packet(due));
            }
        }
        self.arrived += 1;
        self.tally.largest_backlog = self.tally.largest_backlog.max(self.len() as u64);
        true
    }

    /// Packets held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.front.len() + self.line.len() + self.sorted.len()
    }

    /// Whether none is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What was done so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// When the first is due.
    #[must_use]
    pub fn next_due(&self) -> Option<u64> {
        let front = self.front.front().map(|packet| packet.due_ns);
        let line = self.line.front().map(|packet| packet.due_ns);
        let sorted = self.sorted.first_key_value().map(|((due, _), _)| *due);
        front.or(line.into_iter().chain(sorted).min())
    }

    fn last_due(&self) -> Option<u64> {
        let front = self.front.back().map(|packet| packet.due_ns);
        let line = self.line.back().map(|packet| packet.due_ns);
        let sorted = self.sorted.last_key_value().map(|((due, _), _)| *due);
        front.into_iter().chain(line).chain(sorted).max()
    }

    /// Gives up those that are due at `now_ns`, and no more than `most` of them.
    pub fn take_due(&mut self, now_ns: u64, most: usize) -> Option<Due> {
        // Whatever is in the line came in the order of numbers; the others may lie between.
        let all_up_to_last = self.front.is_empty() && self.sorted.is_empty();
        let mut due = Due { ids: Vec::new(), all_up_to_last, arrivals: Vec::new() };
        while due.ids.len() < most && self.next_due().is_some_and(|next| next <= now_ns) {
            let Some(packet) = self.pop() else { break };
            self.leaves(packet.id);
            due.ids.push(packet.id);
            due.arrivals.push(packet.arrival);
        }
        (!due.ids.is_empty()).then_some(due)
    }

    /// Gives up all of them, due or not, in one word. What comes later is due at once.
    pub fn let_all_pass(&mut self) -> Option<Due> {
        self.passing = true;
        let held = !self.is_empty();
        self.front.clear();
        self.line.clear();
        self.sorted.clear();
        let ids = vec![self.last_arrived];
        held.then_some(Due { ids, all_up_to_last: true, arrivals: vec![] })
    }

    fn pop(&mut self) -> Option<Packet> {
        if let Some(packet) = self.front.pop_front() {
            return Some(packet);
        }
        let sorted = self.sorted.first_key_value().map(|((due, _), _)| *due);
        match (self.line.front(), sorted) {
            (Some(first), Some(due)) if due < first.due_ns => {
                self.sorted.pop_first().map(|(_, packet)| packet)
            }
            (None, _) => self.sorted.pop_first().map(|(_, packet)| packet),
            _ => self.line.pop_front(),
        }
    }

    fn leaves(&mut self, id: u32) {
        match self.newest_gone {
            Some(newest) if is_after(newest, id) => self.tally.reordered += 1,
            _ => self.newest_gone = Some(id),
        }
    }
}

#[cfg(test)]
mod tests;
