//! A measurement in progress: drained every few milliseconds, reported every second.

use agent_common::wire::{ErrorReply, ToLoadgen, Totals};

use super::{
    kernel::{Impair, Measure, Service},
    outbox::Outbox,
    records::Records,
};
use crate::model::aggregate::{self, Aggregator, Snapshot};

const MS: u64 = 1_000_000;
/// The ring buffer is looked at this often. Nothing wakes the agent: see agent-ebpf's emit.
const DRAIN_EVERY_NS: u64 = 5 * MS;
/// A record waits at most this long for its batch to fill.
const FLUSH_EVERY_NS: u64 = 100 * MS;
/// Length of a window.
const WINDOW_NS: u64 = 1_000 * MS;

/// Probes, and what is made of their records.
pub(super) struct Measuring {
    probes: Box<dyn Measure>,
    aggregator: Aggregator,
    records: Records,
    unix_database: Option<String>,
    /// Records that the outbox had dropped before.
    dropped_before: u64,
    next_drain_ns: u64,
    next_flush_ns: u64,
    next_window_ns: u64,
}

impl Measuring {
    /// Begins with probes that were attached by `now_ns`.
    pub(super) fn start(
        mut probes: Box<dyn Measure>,
        service: &dyn Service,
        impairment: Option<&dyn Impair>,
        outbox: &Outbox,
        now_ns: u64,
    ) -> Self {
        let first = snapshot(probes.as_mut(), service, impairment, now_ns);
        Self {
            probes,
            aggregator: Aggregator::new(first),
            records: Records::default(),
            unix_database: None,
            dropped_before: outbox.dropped(),
            next_drain_ns: now_ns,
            next_flush_ns: now_ns + FLUSH_EVERY_NS,
            next_window_ns: now_ns + WINDOW_NS,
        }
    }

    /// When [`Self::tick`] is due.
    pub(super) fn due_ns(&self) -> u64 {
        self.next_drain_ns
    }

    /// Does what is due. Whether a window was closed.
    pub(super) fn tick(
        &mut self,
        service: &dyn Service,
        impairment: Option<&dyn Impair>,
        outbox: &mut Outbox,
        now_ns: u64,
    ) -> bool {
        if now_ns < self.next_drain_ns {
            return false;
        }
        // From now, not from when it was due: after a delay one drain catches up.
        self.next_drain_ns = now_ns + DRAIN_EVERY_NS;
        self.drain(outbox);
        if now_ns >= self.next_flush_ns {
            self.next_flush_ns = now_ns + FLUSH_EVERY_NS;
            self.records.flush(outbox);
        }
        if now_ns < self.next_window_ns {
            return false;
        }
        // On the second, however late each one is.
        self.next_window_ns +=
            WINDOW_NS.max((now_ns - self.next_window_ns) / WINDOW_NS * WINDOW_NS);
        self.window(service, impairment, outbox, now_ns);
        true
    }

    fn drain(&mut self, outbox: &mut Outbox) {
        let (records, aggregator) = (&mut self.records, &mut self.aggregator);
        self.probes.drain(&mut |event| records.take(event, aggregator, outbox));
        aggregator.sample_queue(&self.probes.queue());
    }

    fn window(
        &mut self,
        service: &dyn Service,
        impairment: Option<&dyn Impair>,
        outbox: &mut Outbox,
        now_ns: u64,
    ) {
        let now = self.look(service, impairment, now_ns);
        self.close(now, service, outbox);
    }

    fn look(
        &mut self,
        service: &dyn Service,
        impairment: Option<&dyn Impair>,
        now_ns: u64,
    ) -> Snapshot {
        // It also lets waits on such a socket count as the database's from now on.
        self.unix_database = self.probes.unix_database().or(self.unix_database.take());
        snapshot(self.probes.as_mut(), service, impairment, now_ns)
    }

    fn close(&mut self, now: Snapshot, service: &dyn Service, outbox: &mut Outbox) {
        let name = |tgid, tid| service.thread_name(tgid, tid);
        for window in self.aggregator.close(now, name) {
            outbox.records(&ToLoadgen::Window(window), 1);
        }
    }

    /// Takes further processes into the service.
    pub(super) fn follow(&mut self, tgids: &[u32]) -> Result<(), ErrorReply> {
        self.probes.follow(tgids)
    }

    /// Ends the measurement: detaches the probes, sends what is left and a last window, and returns
    /// the sums.
    pub(super) fn finish(
        mut self,
        service: &dyn Service,
        impairment: Option<&dyn Impair>,
        outbox: &mut Outbox,
        now_ns: u64,
    ) -> Totals {
        // Twice: one drain takes at most what fits the buffer, and more may have come meanwhile.
        self.drain(outbox);
        self.drain(outbox);
        // Detaching takes a while, in which one probe is gone and another still counts: the last
        // window ends before it.
        let mut last = self.look(service, impairment, now_ns);
        for event in self.probes.outstanding() {
            self.records.take_outstanding(event, &mut self.aggregator, outbox);
        }
        self.records.flush(outbox);
        // The ends of threads came with the rest; they and all losses count in this window.
        let counters = self.probes.counters();
        last.counters = counters;
        if now_ns > self.aggregator.since_ns() {
            self.close(last, service, outbox);
        }
        let mut named = aggregate::nonzero(&counters);
        named.extend(self.records.oddities());
        Totals {
            requests: self.records.sent_requests(),
            counters: named,
            lost_events: aggregate::lost(&counters),
            peer_slow: outbox.dropped() - self.dropped_before,
            unix_database: self.unix_database,
        }
    }
}

fn snapshot(
    probes: &mut dyn Measure,
    service: &dyn Service,
    impairment: Option<&dyn Impair>,
    now_ns: u64,
) -> Snapshot {
    Snapshot {
        at_ns: now_ns,
        threads: probes.threads(now_ns),
        queue: probes.queue(),
        counters: probes.counters(),
        listen_drops: service.listen_drops(),
        injector_dropped: impairment.map_or(0, Impair::dropped),
    }
}
