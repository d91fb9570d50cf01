//! Which threads served, and whether one had several requests in hand at once: only then is it known
//! to multiplex. A thread per connection, a pool and an event loop all accept while others work.

use std::collections::HashMap;

use agent_common::abi::flag;

use super::{Span, threads::Threads};
use crate::record::KernelData;

/// How the threads that read requests were seen to serve in the hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Serving {
    /// Threads that read requests.
    pub threads: usize,
    /// Most requests that one of them had read and not yet answered at once.
    pub at_once: usize,
    /// Whether each of them was there for most of the hold: a pool or loops, and not one thread for
    /// each short connection.
    pub lasting: bool,
}

impl Serving {
    /// Whether a thread went on to the next request before it had answered one.
    #[must_use]
    pub const fn multiplexes(self) -> bool {
        self.at_once > 1
    }

    /// Of the requests that were in hand in `hold`. One that ended without an answer is left out: how
    /// long it was in hand is not known.
    pub(super) fn of(data: &KernelData, threads: &Threads, hold: Span) -> Self {
        let mut steps: HashMap<u32, Vec<(u64, bool)>> = HashMap::new();
        for request in data.requests.iter().chain(&data.unfinished) {
            let until = match request.s5 {
                0 if request.flags & flag::UNFINISHED != 0 => hold.to,
                answered => answered,
            };
            let seen = request.tid != 0 && request.s3 != 0 && until >= request.s3;
            if seen && request.s3 <= hold.to && until >= hold.from {
                let of_thread = steps.entry(request.tid).or_default();
                of_thread.extend([(request.s3, true), (until, false)]);
            }
        }
        let lasting = !steps.is_empty() && steps.keys().all(|tid| threads.lasts(*tid));
        let at_once = steps.values_mut().map(|steps| most_at_once(steps)).max().unwrap_or(0);
        Self { threads: steps.len(), at_once, lasting }
    }
}

/// The most that were begun and not ended. What ends at a moment ends before what begins at it.
fn most_at_once(steps: &mut [(u64, bool)]) -> usize {
    steps.sort_unstable();
    let (mut now, mut most) = (0usize, 0);
    for (_, begins) in steps {
        now = if *begins { now + 1 } else { now.saturating_sub(1) };
        most = most.max(now);
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_after_the_other_is_one_at_once() {
        assert_eq!(most_at_once(&mut [(1, true), (2, false), (2, true), (3, false)]), 1);
        assert_eq!(most_at_once(&mut [(1, true), (3, false), (2, true), (4, false)]), 2);
        assert_eq!(most_at_once(&mut []), 0);
    }
}
