//! `agent doctor`: what this kernel can do, and the probe plan that follows.

use std::{fmt::Write as _, process::ExitCode};

use agent_common::wire::PlanLine;
use serde::Serialize;

use crate::{
    model::plan::{self, Facts, Plan},
    sys::{
        facts,
        netns::Netns,
        nfqueue,
        observe::{Observer, Target},
        qdisc,
    },
};

/// Shows what this kernel can do and which hook serves each measurement
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit status: 0 if this machine can both inject and measure, else 1.\n\n\
    Examples:\n  sudo agent doctor\n  sudo agent doctor --json | jq .plan")]
pub struct Args {
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// Everything the doctor found.
#[derive(Debug, Serialize)]
struct Report {
    /// 1; fields may be added.
    schema_version: u32,
    kernel: String,
    architecture: &'static str,
    checks: Vec<Check>,
    plan: Vec<PlanLine>,
    /// Whether the main job can be done: inject and measure.
    ready: bool,
}

/// One question and its answer.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    ok: bool,
    /// Whether the main job needs it.
    needed: bool,
    detail: String,
}

/// Runs the command.
///
/// # Errors
/// Only if the report cannot be written.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let report = examine();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", text(&report));
    }
    Ok(if report.ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn examine() -> Report {
    let mut checks = vec![architecture(), root(), capabilities()];
    let plan = match facts::gather() {
        Ok(facts) => {
            checks.extend(facts_checks(&facts));
            let plan = plan::plan(&facts);
            checks.push(trial(&plan));
            plan
        }
        Err(error) => {
            checks.push(Check::needed("eBPF", Err(error.to_string())));
            Plan::default()
        }
    };
    checks.extend(injection());
    let measures = ["s0", "s1", "s2", "s3", "s5", "wait classes"];
    let ready = checks.iter().all(|check| check.ok || !check.needed)
        && measures.iter().all(|mark| plan.serves(mark));
    Report {
        schema_version: 1,
        kernel: kernel_release(),
        architecture: std::env::consts::ARCH,
        checks,
        plan: plan.lines,
        ready,
    }
}

impl Check {
    fn needed(name: &'static str, outcome: Result<String, String>) -> Self {
        let ok = outcome.is_ok();
        Self { name, ok, needed: true, detail: outcome.unwrap_or_else(|why| why) }
    }

    fn optional(name: &'static str, outcome: Result<String, String>) -> Self {
        Self { needed: false, ..Self::needed(name, outcome) }
    }
}

fn kernel_release() -> String {
    nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn architecture() -> Check {
    let name = std::env::consts::ARCH;
    Check::needed(
        "architecture",
        if name == "x86_64" {
            Ok(name.to_owned())
        } else {
            Err(format!("{name}: the probes read system call registers of x86_64 only"))
        },
    )
}

fn root() -> Check {
    Check::needed(
        "user",
        if nix::unistd::geteuid().is_root() {
            Ok("root".to_owned())
        } else {
            Err("not root: run `sudo agent doctor`".to_owned())
        },
    )
}

/// What loading and attaching the probes, entering namespaces and setting qdiscs need.
const CAPABILITIES: [caps::Capability; 5] = [
    caps::Capability::CAP_BPF,
    caps::Capability::CAP_PERFMON,
    caps::Capability::CAP_NET_ADMIN,
    caps::Capability::CAP_SYS_ADMIN,
    caps::Capability::CAP_SYS_PTRACE,
];

fn capabilities() -> Check {
    let missing: Vec<String> = CAPABILITIES
        .into_iter()
        .filter(|&wanted| !caps::has_cap(None, caps::CapSet::Effective, wanted).unwrap_or(false))
        .map(|wanted| wanted.to_string())
        .collect();
    Check::needed(
        "capabilities",
        if missing.is_empty() {
            Ok("all that are needed".to_owned())
        } else {
            Err(format!(
                "missing {}: run as root outside an unprivileged container",
                missing.join(", ")
            ))
        },
    )
}

fn facts_checks(facts: &Facts) -> Vec<Check> {
    let loads = |result: &Result<(), String>| result.clone().map(|()| "loads".to_owned());
    let absent: Vec<&str> = plan::TRACEPOINTS
        .into_iter()
        .filter(|name| !facts.tracepoints.iter().any(|t| t == name))
        .collect();
    vec![
        Check::needed("BTF", Ok(format!("{}, every field found", crate::sys::btf::VMLINUX))),
        Check::needed("raw tracepoint programs", loads(&facts.raw_tracepoint)),
        Check::optional("fentry/fexit programs", loads(&facts.tracing)),
        Check::optional("cgroup/getpeername programs", loads(&facts.cgroup_getpeername)),
        Check::optional(
            "tracepoints",
            if absent.is_empty() {
                Ok(format!("all {}", plan::TRACEPOINTS.len()))
            } else {
                Err(format!("not on this kernel: {}", absent.join(", ")))
            },
        ),
    ]
}

/// Loads and attaches the whole plan for an instant, on a port that nobody can have.
fn trial(plan: &Plan) -> Check {
    Check::needed(
        "probes",
        Observer::attach_plan(&Target::default(), plan)
            .map(|_observer| format!("{} loaded and attached, then removed", plan.hooks.len()))
            .map_err(|error| error.to_string()),
    )
}

/// One engine is enough; `auto` takes netem where there is one.
fn injection() -> Vec<Check> {
    // In a namespace that ends with the trial: nothing of this host is touched.
    let netem = try_in_scratch(|| qdisc::probe().map_err(|error| error.to_string()));
    let nfqueue = try_in_scratch(|| nfqueue::Delay::probe().map_err(|error| error.to_string()));
    let chosen = match (&netem, &nfqueue) {
        (Ok(()), _) => Ok("netem".to_owned()),
        (_, Ok(())) => Ok("nfqueue, since this kernel has no netem".to_owned()),
        (Err(netem), Err(nfqueue)) => {
            Err(format!("none works: netem: {netem}; nfqueue: {nfqueue}"))
        }
    };
    let works = |engine: Result<(), String>| engine.map(|()| "works".to_owned());
    vec![
        Check::optional("netem", works(netem)),
        Check::optional("nfqueue", works(nfqueue)),
        Check::needed("injection engine", chosen),
    ]
}

fn try_in_scratch(trial: impl FnOnce() -> Result<(), String> + Send) -> Result<(), String> {
    Netns::run_in_scratch(trial).map_err(|error| error.to_string())?
}

fn text(report: &Report) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "kernel {} on {}\n", report.kernel, report.architecture);
    let width = report.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    for check in &report.checks {
        let mark = match (check.ok, check.needed) {
            (true, _) => "ok",
            (false, true) => "FAIL",
            (false, false) => "no",
        };
        let _ = writeln!(out, "  {mark:<4} {:<width$}  {}", check.name, check.detail);
    }
    if !report.plan.is_empty() {
        let width = report.plan.iter().map(|line| line.mark.len()).max().unwrap_or(0);
        let _ = writeln!(out, "\nprobe plan");
        for line in &report.plan {
            let served = match (&line.hook, &line.reason) {
                (Some(hook), _) => hook.clone(),
                (None, reason) => {
                    format!("unavailable: {}", reason.as_deref().unwrap_or("no reason known"))
                }
            };
            let _ = writeln!(out, "  {:<width$}  {served}", line.mark);
        }
    }
    let verdict = if report.ready {
        "This machine can inject latency and measure where requests wait."
    } else {
        "This machine cannot do the whole job: mend what says FAIL above."
    };
    let _ = writeln!(out, "\n{verdict}");
    out
}
