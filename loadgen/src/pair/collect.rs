//! Puts what the agent sends where the join looks for it. Pure.

use agent_common::wire::ToLoadgen;

use super::link::LinkError;
use crate::record::{AgentError, KernelData};

/// More different statements than any agent sends (it stops at 10,000).
const MAX_STATEMENTS: u32 = 1 << 16;

/// Most bytes of records that are kept. A request of a service with a database comes with about 1.5
/// kB of them (itself, the client's view, a hold, eight round trips): some 1.4 million requests.
const MAX_BYTES: usize = 2 << 30;

/// What came so far.
#[derive(Debug)]
pub(super) struct Collector {
    pub(super) data: KernelData,
    /// Bytes of records for which there is room.
    room: usize,
    /// The agent answered Clear, with success or not.
    pub(super) cleared: bool,
}

impl Default for Collector {
    fn default() -> Self {
        Self { data: KernelData::default(), room: MAX_BYTES, cleared: false }
    }
}

/// Appends a batch if there is room, else counts it.
fn append<T>(list: &mut Vec<T>, mut batch: Vec<T>, room: &mut usize, dropped: &mut u64) {
    let bytes = size_of::<T>() * batch.len();
    if bytes > *room {
        *dropped += batch.len() as u64;
        return;
    }
    *room -= bytes;
    list.append(&mut batch);
}

impl Collector {
    /// Whether a message may come at any time: a record or a remark, not an answer.
    pub(super) const fn takes(message: &ToLoadgen) -> bool {
        use ToLoadgen::{
            ClientTurns, DbTurns, Holds, InForce, Notice, Requests, Statement, Unfinished, Window,
        };
        matches!(
            message,
            Requests(_)
                | ClientTurns(_)
                | Statement { .. }
                | DbTurns(_)
                | Holds(_)
                | Window(_)
                | Unfinished(_)
                | Notice(_)
                | InForce { .. }
        )
    }

    /// Keeps one message that came at `now_ns`.
    pub(super) fn take(&mut self, now_ns: u64, message: ToLoadgen) -> Result<(), LinkError> {
        let (data, room) = (&mut self.data, &mut self.room);
        let dropped = &mut data.dropped_records;
        match message {
            ToLoadgen::Requests(batch) => append(&mut data.requests, batch, room, dropped),
            ToLoadgen::ClientTurns(batch) => append(&mut data.client_turns, batch, room, dropped),
            ToLoadgen::DbTurns(batch) => append(&mut data.db_turns, batch, room, dropped),
            ToLoadgen::Holds(batch) => append(&mut data.holds, batch, room, dropped),
            ToLoadgen::Unfinished(batch) => append(&mut data.unfinished, batch, room, dropped),
            ToLoadgen::Window(window) => {
                data.injector_dropped += window.injector_dropped;
                if let Some(sent) = window.retransmissions {
                    *data.retransmissions.get_or_insert_default() += sent;
                }
                data.windows.push(window);
            }
            ToLoadgen::Statement { id, text } => {
                if id >= MAX_STATEMENTS {
                    return Err(LinkError::Statement(id));
                }
                let index = id as usize;
                if data.statements.len() <= index {
                    data.statements.resize(index + 1, String::new());
                }
                data.statements[index] = text;
            }
            ToLoadgen::Stopped(totals) => data.totals = Some(totals),
            ToLoadgen::Cleared(cleared) => {
                // The windows end with the measurement, this sum with the impairment.
                data.injector_dropped = data.injector_dropped.max(cleared.dropped);
                data.cleared = Some(cleared);
                self.cleared = true;
            }
            // Bounded: an agent looks once a second.
            ToLoadgen::InForce { at_ns, others } => data.in_force.push((at_ns, others)),
            ToLoadgen::Notice(text) => data.notices.push(text),
            ToLoadgen::Error(reply) => {
                let (code, message) = (reply.code, reply.message);
                data.errors.push(AgentError { at_ns: now_ns, code, message });
                self.cleared = true;
            }
            // Answers that nobody waits for any more.
            ToLoadgen::Hello(_)
            | ToLoadgen::Targeted(_)
            | ToLoadgen::Started { .. }
            | ToLoadgen::Impaired(_)
            | ToLoadgen::Bye => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use agent_common::wire::Hold;

    use super::*;

    #[test]
    fn beyond_the_room_records_are_counted() {
        let hold =
            Hold { tid: 1, conn: 1, start: 1, end: 2, ns: [0; agent_common::abi::class::COUNT] };
        let mut collector = Collector { room: 5 * size_of::<Hold>(), ..Collector::default() };
        for _ in 0..3 {
            collector.take(0, ToLoadgen::Holds(vec![hold; 2])).unwrap();
        }
        assert_eq!((collector.data.holds.len(), collector.data.dropped_records), (4, 2));
    }
}
