//! `cargo xtask test`: every test of the repository, in groups.
//!
//! Everything is compiled as the user; only finished test binaries that need it run as root. A
//! failing group does not keep the others from running.

mod groups;
mod summary;

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::setup::{self, Need};
use groups::Plan;
use summary::Summary;

/// Arguments of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only what needs no root: format, lints and unit tests
    #[arg(long, conflicts_with = "long")]
    unit: bool,
    /// Also storms, matrices, and the check of dependencies' licences and advisories
    #[arg(long)]
    long: bool,
    /// Install what is missing without asking; CI=true in the environment does the same
    #[arg(long, short)]
    yes: bool,
    /// Run only this group, or tests whose name holds this, and no format or lint check
    filter: Option<String>,
}

/// Runs the groups; fails if any of them did.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let mut needs = vec![Need::Build, Need::Lint];
    if !args.unit {
        needs.extend([Need::Lab, Need::Vm]);
    }
    if args.long {
        needs.push(Need::Audit);
    }
    setup::ensure(&needs, args.yes)?;

    let plan = Plan { filter: args.filter.as_deref(), long: args.long };
    let mut summary = Summary::default();
    summary.group("eBPF object", groups::ebpf_object);
    if args.filter.is_none() {
        summary.group("format", groups::format);
        summary.group("lints", groups::lints);
        summary.group("lints of the kernel half", groups::ebpf_lints);
        summary.group("licences and sources", groups::licences);
    }
    if args.long {
        summary.group("advisories", groups::advisories);
    }
    summary.group("unit", || plan.unit());
    if !args.unit {
        plan.privileged(&mut summary);
    }
    print!("{summary}");
    if let Some(filter) = &args.filter
        && summary.passed()
        && !summary.ran_tests()
    {
        bail!("no group is called `{filter}`, and no test's name holds it");
    }
    Ok(if summary.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
