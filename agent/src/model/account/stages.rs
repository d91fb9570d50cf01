//! Where one request waited, from the marks of the service's own kernel.

use agent_common::abi::{Request, flag};
use serde::Serialize;

/// Something for each stage, in the order in which a request passes them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PerStage<T> {
    /// Established, in the listen backlog, until accept() returned it. New connections only.
    pub accept_queue: T,
    /// Accepted, the request's first byte not there yet. New connections only.
    pub request_net: T,
    /// Bytes in the socket, nobody reading.
    pub unread: T,
    /// From the first read to the last byte of the response handed over.
    pub service: T,
}

impl<T> PerStage<T> {
    /// The same of each.
    pub fn map<U>(&self, of: impl Fn(&T) -> U) -> PerStage<U> {
        PerStage {
            accept_queue: of(&self.accept_queue),
            request_net: of(&self.request_net),
            unread: of(&self.unread),
            service: of(&self.service),
        }
    }

    /// Name and value of each, in order.
    pub fn named(&self) -> [(&'static str, &T); 4] {
        [
            ("accept_queue", &self.accept_queue),
            ("request_net", &self.request_net),
            ("unread", &self.unread),
            ("service", &self.service),
        ]
    }

    /// Each, in the same order.
    pub fn each_mut(&mut self) -> [&mut T; 4] {
        [&mut self.accept_queue, &mut self.request_net, &mut self.unread, &mut self.service]
    }
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Read and answered.
    Answered,
    /// Read, and the connection ended without an answer.
    Unanswered,
    /// In service when the measurement began; its answer was not seen.
    AnswerUnseen,
    /// The connection ended before anybody accepted it.
    NeverAccepted,
    /// Something was sent on the connection before anything was read.
    AnsweredUnread,
}

/// A request, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// What became of it.
    pub outcome: Outcome,
    /// How long it was in each stage, nanoseconds; None where it was not, or where a mark is missing.
    pub ns: PerStage<Option<u64>>,
    /// accept() of its connection was not seen: how long it was in the queue, and then unread, is
    /// not known.
    pub unseen_accept: bool,
    /// The arrival of its first byte was not seen: how long it was unread is not known.
    pub unseen_first_byte: bool,
    /// Bytes of the next request came before this one was answered: no mark tells the two apart.
    pub pipelined: bool,
    /// A mark is earlier than the one that causes it. Such a stage counts as nothing.
    pub inverted: bool,
}

impl Taken {
    /// Whether it was read and answered.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        self.outcome == Outcome::Answered
    }
}

/// Takes a request apart that is over (no [`flag::UNFINISHED`]).
#[must_use]
pub fn take_apart(request: &Request) -> Taken {
    let Request { s0, s1, s2, s3, s5, flags, .. } = *request;
    let first = request.ordinal == 0;
    let adopted = flags & flag::ADOPTED != 0;
    let new = first && !adopted;
    let outcome = match (s3 != 0, s5 != 0) {
        (true, true) => Outcome::Answered,
        // The probes are attached one after the other: one that sees reads, then one for sends.
        (true, false) if first && adopted => Outcome::AnswerUnseen,
        (true, false) => Outcome::Unanswered,
        (false, true) => Outcome::AnsweredUnread,
        (false, false) => Outcome::NeverAccepted,
    };
    let pipelined = flags & flag::PIPELINED != 0;
    let unseen_accept = new && s2 == 0 && outcome != Outcome::NeverAccepted;
    let read = s3 != 0 && !pipelined;
    let unseen_first_byte = read && (s1 == 0 || flags & flag::S1_AT_READ != 0);

    let accepted = new && s0 != 0 && s2 != 0;
    let arrived = read && !unseen_first_byte && !unseen_accept;
    // Bytes often come before accept(): they are in the queue with their connection then.
    let there = if new { s1.max(s2) } else { s1 };
    let mut inverted = false;
    let mut between = |known: bool, from: u64, to: u64| {
        known.then(|| {
            inverted |= to < from;
            to.saturating_sub(from)
        })
    };
    let ns = PerStage {
        accept_queue: between(accepted, s0, s2),
        request_net: between(new && arrived, s2, there),
        unread: between(arrived, there, s3),
        service: between(read && outcome == Outcome::Answered, s3, s5),
    };
    Taken { outcome, ns, unseen_accept, unseen_first_byte, pipelined, inverted }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(marks: [u64; 5]) -> Request {
        let [s0, s2, s1, s3, s5] = marks;
        Request { s0, s2, s1, s3, s5, ..Request::default() }
    }

    fn ns(request: &Request) -> [Option<u64>; 4] {
        take_apart(request).ns.named().map(|(_, ns)| *ns)
    }

    #[test]
    fn a_new_connection_passes_every_stage() {
        assert_eq!(
            ns(&request([100, 150, 160, 175, 300])),
            [Some(50), Some(10), Some(15), Some(125)]
        );
        // Bytes that were there before accept().
        assert_eq!(
            ns(&request([100, 150, 101, 175, 300])),
            [Some(50), Some(0), Some(25), Some(125)]
        );
    }

    #[test]
    fn a_kept_connection_has_no_queue() {
        let kept = Request { ordinal: 1, ..request([100, 150, 400, 410, 500]) };
        assert_eq!(ns(&kept), [None, None, Some(10), Some(90)]);
        let adopted = Request { flags: flag::ADOPTED, ..request([0, 0, 400, 410, 500]) };
        assert_eq!(ns(&adopted), [None, None, Some(10), Some(90)]);
        assert!(!take_apart(&adopted).unseen_accept);
    }

    #[test]
    fn what_was_not_seen_is_not_guessed() {
        let unseen = take_apart(&request([100, 0, 101, 175, 300]));
        assert!(unseen.unseen_accept);
        assert_eq!(ns(&request([100, 0, 101, 175, 300])), [None, None, None, Some(125)]);
        let at_read = Request { flags: flag::S1_AT_READ, ..request([100, 150, 175, 175, 300]) };
        assert!(take_apart(&at_read).unseen_first_byte);
        assert_eq!(ns(&at_read), [Some(50), None, None, Some(125)]);
        let pipelined = Request { flags: flag::PIPELINED, ..request([100, 150, 160, 175, 300]) };
        assert_eq!(ns(&pipelined), [Some(50), None, None, None]);
    }

    #[test]
    fn outcomes() {
        let outcome = |marks| take_apart(&request(marks)).outcome;
        assert_eq!(outcome([100, 150, 160, 175, 0]), Outcome::Unanswered);
        assert_eq!(ns(&request([100, 150, 160, 175, 0])), [Some(50), Some(10), Some(15), None]);
        let adopted = Request { flags: flag::ADOPTED, ..request([0, 0, 160, 175, 0]) };
        assert_eq!(take_apart(&adopted).outcome, Outcome::AnswerUnseen);
        assert_eq!(outcome([100, 0, 0, 0, 0]), Outcome::NeverAccepted);
        assert_eq!(ns(&request([100, 0, 0, 0, 0])), [None; 4]);
        assert_eq!(outcome([100, 150, 0, 0, 300]), Outcome::AnsweredUnread);
    }

    #[test]
    fn a_mark_before_its_cause_is_told() {
        let taken = take_apart(&request([100, 90, 95, 99, 98]));
        assert!(taken.inverted);
        assert_eq!(ns(&request([100, 90, 95, 99, 98])), [Some(0), Some(5), Some(4), Some(0)]);
    }

    proptest! {
        /// Whatever the marks, the stages of an answered request on a new connection sum to its time.
        #[test]
        fn stages_sum_to_the_whole(mut marks in proptest::array::uniform5(1..u64::MAX / 2)) {
            marks.sort_unstable();
            let taken = take_apart(&request(marks));
            let sum: u64 = taken.ns.named().iter().filter_map(|(_, ns)| **ns).sum();
            prop_assert_eq!(sum, marks[4] - marks[0]);
            prop_assert!(!taken.inverted);
        }

        #[test]
        fn no_marks_panic(marks: [u64; 5], ordinal: u32, flags: u32) {
            let _ = take_apart(&Request { ordinal, flags, ..request(marks) });
        }
    }
}
