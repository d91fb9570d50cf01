//! The event loop of one thread.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mio::{Events, Poll, Token};

use super::live::{Live, Span};
use super::user::{Step, Surroundings, User};
use super::{CONNECT_BACKOFF_NS, EngineError, Outcome, Plan};
use crate::clock::{self, now_ns};
use crate::record::{self, Beyond, Failure, RequestRecord};

/// Longest sleep: a stop from outside is noticed within this time.
const MAX_SLEEP_NS: u64 = 50_000_000;
/// How often numbers go to the progress line.
const PUBLISH_NS: u64 = 250_000_000;
/// Most users started between two looks at the sockets.
const START_BATCH: usize = 64;
const READ_BUFFER_BYTES: usize = 64 << 10;
const FIRST_RECORDS: usize = 1 << 16;

/// One thread's share of a run.
pub(super) struct Share {
    pub(super) plan: Arc<Plan>,
    /// Number of its first user.
    pub(super) offset: u32,
    /// Distance to the next one's.
    pub(super) step: u32,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) stop: Arc<AtomicBool>,
    pub(super) live: Arc<Live>,
}

/// Runs this thread's users until the end of the run.
pub(super) fn run(share: &Share) -> Result<Outcome, EngineError> {
    let kernel = |what| move |error| EngineError::Kernel { what, error };
    let mut poll = Poll::new().map_err(kernel("make an event loop"))?;
    let registry = poll.registry().try_clone().map_err(kernel("share the event loop"))?;
    let mut events = Events::with_capacity(1024);
    let mut worker = Worker::new(share, &registry);
    let cpu_start = clock::thread_cpu_ns();
    let runqueue_start = clock::thread_runqueue_ns();
    let mut sleep = worker.housekeeping(now_ns());
    let end = loop {
        match poll.poll(&mut events, Some(sleep)) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            result => result.map_err(kernel("wait for events"))?,
        }
        let woken = now_ns();
        if woken >= share.end || share.stop.load(Ordering::Relaxed) {
            break woken;
        }
        for event in &events {
            worker.on_event(event);
        }
        let now = now_ns();
        worker.loop_busy_max = worker.loop_busy_max.max(now - woken);
        sleep = worker.housekeeping(now);
    };
    let wall = end.saturating_sub(share.start).max(1) as f64;
    let runqueue = clock::thread_runqueue_ns().zip(runqueue_start).map_or(0, |(b, a)| b - a);
    let mut outcome = worker.finish(end);
    outcome.cpu_share = (clock::thread_cpu_ns() - cpu_start) as f64 / wall;
    outcome.runqueue_share = runqueue as f64 / wall;
    Ok(outcome)
}

struct Worker<'a> {
    share: &'a Share,
    around: Surroundings<'a>,
    users: Vec<User>,
    user_starts: Vec<u64>,
    records: Vec<RequestRecord>,
    max_records: usize,
    beyond: Beyond,
    /// Resting users and when they go on, soonest first since all rest equally long.
    resting: VecDeque<(u64, usize)>,
    timeout_ns: Option<u64>,
    /// No request can time out before this.
    next_expiry: u64,
    span: Span,
    next_publish: u64,
    loop_busy_max: u64,
    stale_retries: u64,
}

impl<'a> Worker<'a> {
    fn new(share: &'a Share, registry: &'a mio::Registry) -> Self {
        let plan = &share.plan;
        let mine = plan.schedule.users().saturating_sub(share.offset).div_ceil(share.step);
        Self {
            share,
            around: Surroundings {
                target: plan.target,
                address: plan.target.into(),
                head: plan.request.head,
                close: plan.request.close,
                registry,
                buffer: vec![0; READ_BUFFER_BYTES].into_boxed_slice(),
                random: fastrand::Rng::new(),
                errors: std::collections::BTreeMap::new(),
            },
            users: Vec::with_capacity(mine as usize),
            user_starts: Vec::with_capacity(mine as usize),
            records: Vec::with_capacity(FIRST_RECORDS),
            max_records: plan.max_records / share.step as usize,
            beyond: Beyond::default(),
            resting: VecDeque::new(),
            timeout_ns: plan.timeout.map(|t| u64::try_from(t.as_nanos()).unwrap_or(u64::MAX)),
            next_expiry: 0,
            span: Span::default(),
            next_publish: share.start + PUBLISH_NS,
            loop_busy_max: 0,
            stale_retries: 0,
        }
    }

    fn on_event(&mut self, event: &mio::event::Event) {
        let index = event.token().0;
        if let Some(user) = self.users.get_mut(index) {
            let step = user.advance(event, &mut self.around);
            self.follow(index, step);
        }
    }

    /// Goes on with a user until it waits for its socket or rests.
    fn follow(&mut self, index: usize, mut step: Step) {
        loop {
            let user = &mut self.users[index];
            step = match step {
                Step::Pending => return,
                Step::Stale => {
                    self.stale_retries += 1;
                    user.again(&mut self.around)
                }
                Step::Ended => {
                    let record = *user.record();
                    self.span.count(record.c4 - record.c0, record.outcome);
                    if self.records.len() < self.max_records {
                        self.records.push(record);
                    } else {
                        self.beyond.count(&record, self.share.start);
                    }
                    if is_connect_failure(record.outcome) {
                        self.resting.push_back((record.c4 + CONNECT_BACKOFF_NS, index));
                        return;
                    }
                    user.begin(&mut self.around)
                }
            };
        }
    }

    /// Starts, wakes and times out users, publishes numbers. Returns how long nothing of that is due.
    fn housekeeping(&mut self, now: u64) -> Duration {
        let mut wake = self.share.end.min(now + MAX_SLEEP_NS);
        wake = wake.min(self.start_users(now));
        while let Some(&(at, index)) = self.resting.front() {
            if at > now {
                wake = wake.min(at);
                break;
            }
            self.resting.pop_front();
            let step = self.users[index].begin(&mut self.around);
            self.follow(index, step);
        }
        if let Some(timeout) = self.timeout_ns {
            if now >= self.next_expiry {
                self.next_expiry = self.expire(now, timeout);
            }
            wake = wake.min(self.next_expiry);
        }
        if now >= self.next_publish {
            self.share.live.give(&mut self.span);
            self.next_publish = now + PUBLISH_NS;
        }
        Duration::from_nanos(wake.saturating_sub(now))
    }

    /// Starts the users that are due; returns when the next one is.
    fn start_users(&mut self, now: u64) -> u64 {
        let (schedule, share) = (&self.share.plan.schedule, self.share);
        let before = self.users.len();
        while self.users.len() < self.users.capacity() {
            let index = self.users.len();
            let number = share.offset + index as u32 * share.step;
            if number >= schedule.users() {
                break;
            }
            let due = share.start.saturating_add(schedule.start_of(number));
            if due > now || index - before == START_BATCH {
                share.live.started((index - before) as u32);
                return due;
            }
            let plan = &share.plan;
            self.users.push(User::new(number, Token(index), plan.target, &plan.request));
            self.user_starts.push(now_ns());
            let step = self.users[index].begin(&mut self.around);
            self.follow(index, step);
        }
        share.live.started((self.users.len() - before) as u32);
        u64::MAX
    }

    /// Ends the requests whose time is up; returns when the next one's can be.
    fn expire(&mut self, now: u64, timeout: u64) -> u64 {
        let mut next = now.saturating_add(timeout);
        for index in 0..self.users.len() {
            let user = &mut self.users[index];
            if !user.is_busy() {
                continue;
            }
            let deadline = user.record().c0.saturating_add(timeout);
            if deadline <= now {
                let step = user.time_out(now);
                self.follow(index, step);
            } else {
                next = next.min(deadline);
            }
        }
        // Not more often than every millisecond, whatever the number of users.
        next.max(now + 1_000_000)
    }

    fn finish(mut self, end: u64) -> Outcome {
        self.share.live.give(&mut self.span);
        let mut open = Vec::with_capacity(self.users.len());
        for user in self.users {
            let (record, stream) = user.give_up(end);
            self.records.extend(record);
            open.extend(stream);
        }
        Outcome {
            start: self.share.start,
            end,
            user_starts: self.user_starts,
            records: self.records,
            beyond: self.beyond,
            loop_busy_max: self.loop_busy_max,
            stale_retries: self.stale_retries,
            system_errors: self.around.errors,
            open,
            ..Outcome::default()
        }
    }
}

const fn is_connect_failure(outcome: record::Outcome) -> bool {
    use Failure::{ConnectOther, ConnectRefused, ConnectReset, ConnectTimeout};
    matches!(
        outcome,
        record::Outcome::Failed(ConnectRefused | ConnectTimeout | ConnectReset | ConnectOther)
    )
}
