//! Puts what the agent sends where the join looks for it. Pure.

use agent_common::wire::ToLoadgen;

use super::link::LinkError;
use crate::record::{AgentError, KernelData};

/// More different statements than any agent sends (it stops at 10,000).
const MAX_STATEMENTS: u32 = 1 << 16;

/// What came so far.
#[derive(Debug, Default)]
pub(super) struct Collector {
    pub(super) data: KernelData,
    /// The agent answered Clear, with success or not.
    pub(super) cleared: bool,
}

impl Collector {
    /// Whether a message may come at any time: a record or a remark, not an answer.
    pub(super) const fn takes(message: &ToLoadgen) -> bool {
        use ToLoadgen::{
            ClientTurns, DbTurns, Holds, Notice, Requests, Statement, Unfinished, Window,
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
        )
    }

    /// Keeps one message that came at `now_ns`.
    pub(super) fn take(&mut self, now_ns: u64, message: ToLoadgen) -> Result<(), LinkError> {
        let data = &mut self.data;
        match message {
            ToLoadgen::Requests(mut batch) => data.requests.append(&mut batch),
            ToLoadgen::ClientTurns(mut batch) => data.client_turns.append(&mut batch),
            ToLoadgen::DbTurns(mut batch) => data.db_turns.append(&mut batch),
            ToLoadgen::Holds(mut batch) => data.holds.append(&mut batch),
            ToLoadgen::Unfinished(mut batch) => data.unfinished.append(&mut batch),
            ToLoadgen::Window(window) => {
                data.injector_dropped += window.injector_dropped;
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
            ToLoadgen::Cleared { dropped, .. } => {
                // The windows end with the measurement, this sum with the impairment.
                data.injector_dropped = data.injector_dropped.max(dropped);
                self.cleared = true;
            }
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
