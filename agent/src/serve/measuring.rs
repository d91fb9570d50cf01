//! The measurement of a session: what its peer is sent of it.

use agent_common::wire::{ToLoadgen, Totals, Window};

use super::{
    kernel::{Impair, Service},
    outbox::Outbox,
    records::Records,
};
use crate::{
    inject::Outcome,
    measure::{Ended, Measurement, Probes, Sink, Surroundings},
    model::aggregate,
    sys::observe::{Event, ObserveError},
};

/// A measurement, and what is made of its records.
pub(super) struct Measuring {
    measurement: Measurement,
    records: Records,
    /// Records that the outbox had dropped before.
    dropped_before: u64,
}

/// The session's service and impairment.
pub(super) struct Around<'a> {
    pub(super) service: &'a dyn Service,
    pub(super) impairment: Option<&'a dyn Impair>,
}

impl Surroundings for Around<'_> {
    fn listen_drops(&self) -> Option<u64> {
        self.service.listen_drops()
    }

    fn outcome(&self) -> Option<Outcome> {
        self.impairment.map(Impair::outcome)
    }

    fn thread_name(&self, tgid: u32, tid: u32) -> Option<String> {
        self.service.thread_name(tgid, tid)
    }
}

struct ToPeer<'a> {
    records: &'a mut Records,
    outbox: &'a mut Outbox,
}

impl Sink for ToPeer<'_> {
    fn record(&mut self, event: Event) {
        self.records.take(event, self.outbox);
    }

    fn outstanding(&mut self, event: Event) {
        self.records.take_outstanding(event, self.outbox);
    }

    fn flush(&mut self) {
        self.records.flush(self.outbox);
    }

    fn window(&mut self, window: Window) {
        self.outbox.records(&ToLoadgen::Window(window), 1);
    }
}

impl Measuring {
    /// Begins with probes that were attached by `now_ns`.
    pub(super) fn start(
        probes: Box<dyn Probes>,
        around: &Around<'_>,
        outbox: &Outbox,
        now_ns: u64,
    ) -> Self {
        Self {
            measurement: Measurement::start(probes, around, now_ns),
            records: Records::default(),
            dropped_before: outbox.dropped(),
        }
    }

    /// When [`Self::tick`] is due.
    pub(super) fn due_ns(&self) -> u64 {
        self.measurement.due_ns()
    }

    /// Does what is due.
    pub(super) fn tick(&mut self, around: &Around<'_>, outbox: &mut Outbox, now_ns: u64) {
        let mut sink = ToPeer { records: &mut self.records, outbox };
        self.measurement.tick(around, &mut sink, now_ns);
    }

    /// Takes further processes into the service.
    ///
    /// # Errors
    /// There are more than fit.
    pub(super) fn follow(&mut self, tgids: &[u32]) -> Result<(), ObserveError> {
        self.measurement.follow(tgids)
    }

    /// Ends the measurement: detaches the probes, sends what is left and a last window, and returns
    /// the sums.
    pub(super) fn finish(
        mut self,
        around: &Around<'_>,
        outbox: &mut Outbox,
        now_ns: u64,
    ) -> Totals {
        let mut sink = ToPeer { records: &mut self.records, outbox };
        let Ended { counters, unix_database } = self.measurement.finish(around, &mut sink, now_ns);
        let mut named = aggregate::nonzero(&counters);
        named.extend(self.records.oddities());
        Totals {
            requests: self.records.sent_requests(),
            counters: named,
            lost_events: aggregate::lost(&counters),
            peer_slow: outbox.dropped() - self.dropped_before,
            unix_database,
        }
    }
}
