//! One measurement, from attached probes to the summary.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agent_common::wire::Window;

use crate::{
    inject::Outcome,
    measure::{Ended, Measurement, Sink, Surroundings},
    model::account::{Account, Figures, Summary},
    sys::{
        clock,
        discover::{self, Life, Listening},
        observe::Event,
    },
};

/// How often the service is asked whether it lives.
const ALIVE_EVERY_NS: u64 = 1_000_000_000;

/// Where it is shown.
pub(super) trait Output {
    /// A window was closed.
    fn window(&mut self, figures: &Figures, account: &Account) -> anyhow::Result<()>;
    /// Something the user should know.
    fn notice(&mut self, notice: &str);
    /// Lets this much time pass. Whether the user wants to end.
    fn wait(&mut self, time: Duration) -> anyhow::Result<bool> {
        std::thread::sleep(time);
        Ok(false)
    }
    /// The end.
    fn end(&mut self, summary: &Summary, ended: &'static str) -> anyhow::Result<()>;
}

/// How a measurement ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The user or the time that he gave.
    Asked,
    /// The service.
    Gone,
}

struct ToAccount<'a>(&'a mut Account);

impl Sink for ToAccount<'_> {
    fn record(&mut self, event: Event) {
        match event {
            Event::Request(request) => self.0.request(&request),
            Event::DbTurn(turn) => self.0.turn(&turn),
            // Nobody is paired; and what holds a thread shows in its time.
            Event::ClientTurn(_) | Event::Hold(_) | Event::ThreadExit(_) => {}
        }
    }

    fn outstanding(&mut self, event: Event) {
        self.record(event);
    }

    fn flush(&mut self) {}

    fn window(&mut self, window: Window) {
        self.0.window(&window);
    }
}

impl Surroundings for Listening {
    fn listen_drops(&self) -> Option<u64> {
        self.listen_drops()
    }

    fn outcome(&self) -> Option<Outcome> {
        None
    }

    fn thread_name(&self, tgid: u32, tid: u32) -> Option<String> {
        discover::thread_name(tgid, tid)
    }
}

/// Goes on with a measurement that began at that time, until `stop` is set, `duration` is over, the
/// user wants to end, or the service does.
///
/// # Errors
/// Nothing can be shown any more, or a process cannot be followed.
pub(super) fn run(
    service: &mut Listening,
    (start_ns, mut measurement): (u64, Measurement),
    stop: &AtomicBool,
    duration: Option<Duration>,
    output: &mut dyn Output,
) -> anyhow::Result<Ending> {
    let end_ns = duration.map_or(u64::MAX, |length| start_ns.saturating_add(nanoseconds(length)));
    let mut account = Account::new(start_ns)?;
    let mut next_alive_ns = start_ns + ALIVE_EVERY_NS;
    let ended = loop {
        let now_ns = clock::monotonic_ns();
        if stop.load(Ordering::Relaxed) {
            break "interrupted";
        }
        if now_ns >= end_ns {
            break "duration";
        }
        if measurement.tick(service, &mut ToAccount(&mut account), now_ns) {
            let figures = account.close();
            output.window(&figures, &account)?;
        }
        if now_ns >= next_alive_ns {
            next_alive_ns = now_ns + ALIVE_EVERY_NS;
            match service.life() {
                Life::Same => {}
                Life::TakenOver => {
                    let pids: Vec<u32> = service.processes.iter().map(|one| one.pid).collect();
                    measurement.follow(&pids)?;
                    output.notice(&format!(
                        "other processes have taken over the service's socket and are followed from \
                         now on: {pids:?}"
                    ));
                }
                Life::Gone => break "service_gone",
            }
        }
        let due_ns = measurement.due_ns().min(end_ns);
        let nap = Duration::from_nanos(due_ns.saturating_sub(clock::monotonic_ns()));
        if output.wait(nap)? {
            break "interrupted";
        }
    };
    let now_ns = clock::monotonic_ns();
    let Ended { counters, unix_database } =
        measurement.finish(service, &mut ToAccount(&mut account), now_ns);
    let figures = account.close();
    output.window(&figures, &account)?;
    output.end(&account.summary(&counters, unix_database), ended)?;
    Ok(if ended == "service_gone" { Ending::Gone } else { Ending::Asked })
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
