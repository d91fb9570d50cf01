//! Small simulated servers that leave behind exactly what a run would: tests know every mark, and
//! so what the analysis has to say.

mod servers;
mod sim;

use agent_common::{abi::class, wire::DbKind};

pub(crate) const MS: u64 = 1_000_000;
pub(crate) const SECOND: u64 = 1_000 * MS;
/// One way between client and service, undelayed.
pub(crate) const NET: u64 = 30_000;
/// What a hook or a wake-up takes.
pub(crate) const TICK: u64 = 5_000;
const START: u64 = 1_000 * SECOND;
const TX: u64 = 120;
const RX: u64 = 4_096;
const MASTER: u32 = 100;
const FIRST_WORKER: u32 = 101;
const FIRST_EXECUTOR: u32 = 10_000;

/// Something that a worker does for a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// Spends time in a wait class.
    Spend(usize, u64),
    /// A database round trip: kind, statement, time that the database takes.
    Turn(DbKind, Option<u32>, u64),
}

/// A closed-loop run.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) name: &'static str,
    pub(crate) setup: &'static str,
    pub(crate) users: u32,
    pub(crate) ramp_per_s: f64,
    pub(crate) hold_s: u64,
    /// On everything that leaves the service.
    pub(crate) delay: u64,
    pub(crate) steps: Vec<Step>,
    /// Connections of clients are kept from request to request (event loops only).
    pub(crate) keep_alive: bool,
}

/// The study's io_read on a sync worker: 43 ms, of which the database 36.
pub(crate) fn io_read(name: &'static str, setup: &'static str, delay_ms: u64) -> Load {
    let mut steps = vec![Step::Spend(class::CPU, 3 * MS)];
    let setup_trips = [
        (DbKind::TcpConnect, 50_000),
        (DbKind::SslRequest, 300_000),
        (DbKind::Startup, 1_200_000),
        (DbKind::Auth, 1_500_000),
        (DbKind::Auth, 1_450_000),
    ];
    steps.extend(setup_trips.map(|(kind, ns)| Step::Turn(kind, None, ns)));
    steps.push(Step::Turn(DbKind::SessionSetup, Some(0), 200_000));
    steps.push(Step::Turn(DbKind::Query, Some(1), 1_300_000));
    steps.push(Step::Spend(class::CPU, 2 * MS));
    steps.push(Step::Turn(DbKind::Query, Some(2), 30 * MS));
    steps.push(Step::Spend(class::CPU, 2 * MS));
    Load {
        name,
        setup,
        users: 100,
        ramp_per_s: 10.0,
        hold_s: 60,
        delay: delay_ms * MS,
        steps,
        keep_alive: false,
    }
}

/// A server without a database that spends its time in one wait class.
pub(crate) fn control(class: usize, ms: u64) -> Load {
    let steps = vec![Step::Spend(class::CPU, MS), Step::Spend(class, ms * MS)];
    Load {
        name: "control",
        setup: "sync",
        users: 20,
        ramp_per_s: 10.0,
        hold_s: 20,
        delay: 0,
        steps,
        keep_alive: false,
    }
}

impl Load {
    /// Time that a worker takes over a request.
    pub(crate) fn held(&self) -> u64 {
        let step = |step: &Step| match step {
            Step::Spend(_, ns) => *ns,
            Step::Turn(_, _, ns) => ns + self.delay,
        };
        self.steps.iter().map(step).sum::<u64>() + 4 * TICK
    }

    /// Number of database round trips of a request.
    pub(crate) fn turns(&self) -> usize {
        self.steps.iter().filter(|step| matches!(step, Step::Turn(..))).count()
    }
}
