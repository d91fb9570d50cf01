//! What every thread of the service does with its time.
//!
//! A thread's entry is written by the processor that switches it, which the scheduler makes one
//! at a time; only `woken` comes from others, as one aligned store.

use agent_common::abi::{ThreadTime, class, counter};
use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};

use crate::{
    emit, kernel,
    kernel::read_or_default,
    maps::{self, PROCESSES, THREADS, count, offset},
    wait,
};

/// `TASK_DEAD` (include/linux/sched.h, 6.1 to 6.18): the thread is switched out for the last time.
const TASK_DEAD: u32 = 0x80;

/// `sched_switch(bool preempt, struct task_struct *prev, struct task_struct *next,
/// unsigned int prev_state)`, the last since 5.18. `current` is still `prev`.
#[raw_tracepoint(tracepoint = "sched_switch")]
pub fn sched_switch(ctx: RawTracePointContext) -> i32 {
    let preempt = ctx.arg::<u64>(0) & 1 != 0;
    let prev: u64 = ctx.arg(1);
    let next: u64 = ctx.arg(2);
    let state = ctx.arg::<u64>(3) as u32;
    let prev_tgid: u32 = read_or_default(prev, offset!(task_tgid));
    if state & TASK_DEAD != 0 {
        ended(prev);
    } else if maps::is_service(prev_tgid) {
        switched_out(prev, prev_tgid, preempt || state == 0);
    }
    let next_tgid: u32 = read_or_default(next, offset!(task_tgid));
    if maps::is_service(next_tgid) {
        switched_in(next, next_tgid);
    }
    0
}

/// `sched_waking(struct task_struct *p)`: runs where the waker runs.
#[raw_tracepoint(tracepoint = "sched_waking")]
pub fn sched_waking(ctx: RawTracePointContext) -> i32 {
    let task: u64 = ctx.arg(0);
    let tgid: u32 = read_or_default(task, offset!(task_tgid));
    if maps::is_service(tgid) {
        let tid: u32 = read_or_default(task, offset!(task_pid));
        if let Some(thread) = THREADS.get_ptr_mut(tid) {
            unsafe { (*thread).woken = kernel::now() };
        }
    }
    0
}

/// `sched_process_fork(struct task_struct *parent, struct task_struct *child)`: the service's
/// children belong to it.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn sched_process_fork(ctx: RawTracePointContext) -> i32 {
    let parent: u64 = ctx.arg(0);
    let child: u64 = ctx.arg(1);
    let parent_tgid: u32 = read_or_default(parent, offset!(task_tgid));
    if maps::is_service(parent_tgid) {
        let tgid: u32 = read_or_default(child, offset!(task_tgid));
        if tgid != parent_tgid && PROCESSES.insert(tgid, 0u32, 0).is_err() {
            count(counter::LOST_PROCESS);
        }
    }
    0
}

/// `sched_process_exit(struct task_struct *p)`: `current` is a thread that ends. Its process is over
/// when it was the last: the leader may well go first.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn sched_process_exit(ctx: RawTracePointContext) -> i32 {
    let (tgid, _) = kernel::current();
    if maps::is_service(tgid) {
        let signal: u64 = read_or_default(ctx.arg(0), offset!(task_signal));
        // do_exit() has counted this thread out by now. What cannot be read counts as alive.
        if kernel::read::<i32>(signal, offset!(signal_live)) == Some(0) {
            let _ = PROCESSES.remove(tgid);
        }
    }
    0
}

/// A thread's last switch. Its process may be forgotten already, so only its own entry counts.
#[inline(always)]
fn ended(task: u64) {
    let tid: u32 = read_or_default(task, offset!(task_pid));
    let Some(thread) = THREADS.get_ptr_mut(tid) else { return };
    let thread = unsafe { &mut *thread };
    let now = kernel::now();
    run_until(thread, now);
    end_hold(thread, now);
    emit::thread_exit(thread, now);
    let _ = THREADS.remove(tid);
}

/// The current thread accepted a connection, which holds it from now.
#[inline(always)]
pub(crate) fn accepted(tgid: u32, tid: u32, conn: u64, now: u64) {
    let Some(thread) = running(tgid, tid, now) else { return };
    run_until(thread, now);
    end_hold(thread, now);
    thread.accepts += 1;
    thread.held_conn = conn;
    thread.hold_answered = 0;
    thread.held_since = now;
    thread.held_ns = thread.ns;
}

/// The current thread read the first bytes of a request on this connection.
#[inline(always)]
pub(crate) fn request_read(tgid: u32, tid: u32, conn: u64) {
    if let Some(thread) = running(tgid, tid, 0) {
        thread.requests += 1;
        thread.request_conn = conn;
    }
}

/// Thread `by` answered (or took over) the request on this connection that thread `of` has in hand.
/// What `of` has taken up since is not touched. A thread that answers itself is still held: it has
/// to close and to log. One whose request another thread answers may wait for work from now on.
#[inline(always)]
pub(crate) fn answered(of: u32, by: u32, conn: u64) {
    let Some(thread) = THREADS.get_ptr_mut(of) else { return };
    let thread = unsafe { &mut *thread };
    if thread.request_conn == conn {
        thread.request_conn = 0;
    }
    if by != of && thread.held_conn == conn {
        thread.hold_answered = 1;
    }
}

/// The current thread begins a database turn; tells which connection holds it.
#[inline(always)]
pub(crate) fn turn_begun(tgid: u32, tid: u32) -> u64 {
    let Some(thread) = running(tgid, tid, 0) else { return 0 };
    thread.db_turns += 1;
    thread.held_conn
}

/// The entry of the current thread of the service, made if it has none yet.
#[inline(always)]
fn running(tgid: u32, tid: u32, now: u64) -> Option<&'static mut ThreadTime> {
    if let Some(thread) = THREADS.get_ptr_mut(tid) {
        return Some(unsafe { &mut *thread });
    }
    if !maps::is_service(tgid) {
        return None;
    }
    let now = if now == 0 { kernel::now() } else { now };
    create(tgid, tid, now)
}

#[inline(always)]
fn create(tgid: u32, tid: u32, now: u64) -> Option<&'static mut ThreadTime> {
    let Some(thread) = maps::new_thread(tid) else {
        count(counter::LOST_THREAD);
        return None;
    };
    thread.tid = tid;
    thread.tgid = tgid;
    thread.class = class::CPU as u32;
    thread.since = now;
    thread.first_seen = now;
    Some(thread)
}

#[inline(always)]
fn switched_out(task: u64, tgid: u32, runnable: bool) {
    let tid: u32 = read_or_default(task, offset!(task_pid));
    let now = kernel::now();
    let Some(thread) = running(tgid, tid, now) else { return };
    run_until(thread, now);
    if runnable {
        thread.involuntary += 1;
        thread.class = class::RUNQUEUE as u32;
        return;
    }
    thread.voluntary += 1;
    let held = thread.held_conn != 0 && thread.hold_answered == 0;
    let in_hand = held || thread.request_conn != 0;
    let class = wait::classify(task, in_hand, thread.db_turns != 0);
    if class == class::IDLE {
        end_hold(thread, now);
    }
    thread.class = class as u32;
}

#[inline(always)]
fn switched_in(task: u64, tgid: u32) {
    let tid: u32 = read_or_default(task, offset!(task_pid));
    let now = kernel::now();
    let Some(thread) = THREADS.get_ptr_mut(tid) else {
        create(tgid, tid, now);
        return;
    };
    let thread = unsafe { &mut *thread };
    let since = thread.since;
    let woken = thread.woken;
    // The last wake-up is the one that ended this sleep. It may be older than the sleep itself, by
    // microseconds: the waker, elsewhere, was first. What follows it was spent on the run queue.
    let left = if thread.class == class::RUNQUEUE as u32 || woken == 0 || woken > now {
        now
    } else if woken < since {
        since
    } else {
        woken
    };
    add(thread, left - since);
    thread.ns[class::RUNQUEUE] += now - left;
    thread.class = class::CPU as u32;
    thread.since = now;
    thread.woken = 0;
}

/// Adds to the class that is open. The index is checked, since the verifier cannot know it.
#[inline(always)]
fn add(thread: &mut ThreadTime, ns: u64) {
    let index = thread.class as usize;
    if index < class::COUNT {
        thread.ns[index] += ns;
    }
}

/// Closes the interval of a running thread.
#[inline(always)]
fn run_until(thread: &mut ThreadTime, now: u64) {
    thread.ns[class::CPU] += now - thread.since;
    thread.since = now;
}

#[inline(always)]
fn end_hold(thread: &mut ThreadTime, now: u64) {
    if thread.held_conn != 0 {
        emit::hold(thread, now);
        thread.held_conn = 0;
    }
}
