//! What an agent could leave behind: links, qdiscs, nft tables, BPF programs.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::lab::{Lab, Side, paths};

use crate::inject::difference;

/// Lets the kernel list its BPF programs among its symbols.
pub(crate) fn show_programs() -> Result<()> {
    std::fs::write("/proc/sys/net/core/bpf_jit_kallsyms", "1").context("bpf_jit_kallsyms")
}

/// Every BPF program that is loaded, by name.
pub(crate) fn programs() -> Result<Vec<String>> {
    let symbols = std::fs::read_to_string("/proc/kallsyms").context("/proc/kallsyms")?;
    let mut names: Vec<String> = symbols
        .lines()
        .filter_map(|line| line.split_whitespace().nth(2))
        .filter(|name| name.starts_with("bpf_prog_"))
        .map(str::to_owned)
        .collect();
    names.sort();
    Ok(names)
}

/// The whole machine, and both sides of a laboratory where there is one.
pub(crate) fn tree(lab: Option<&Lab>) -> Result<String> {
    let mut tree = String::new();
    let names = lab.map(|lab| [Side::Server, Side::Outside].map(|side| lab.network().name(side)));
    let spaces = std::iter::once(None).chain(names.into_iter().flatten().map(Some));
    for space in spaces {
        for line in ["ip -d link", "ip netns list", "tc -d qdisc show", "nft list ruleset"] {
            let (program, arguments) = line.split_once(' ').unwrap_or((line, ""));
            let mut command = Command::new(paths::system("ip")?);
            if let Some(space) = &space {
                command.args(["netns", "exec", space]);
                command.arg(paths::system(program)?);
            } else {
                command = Command::new(paths::system(program)?);
            }
            let output = command.args(arguments.split_whitespace()).output()?;
            ensure!(output.status.success(), "{line} in {space:?}: {output:?}");
            tree += &format!("== {}: {line}\n", space.as_deref().unwrap_or("machine"));
            tree += &String::from_utf8(output.stdout)?;
        }
    }
    tree += &format!("== BPF programs\n{}\n", programs()?.join("\n"));
    let pinned = std::fs::read_dir("/sys/fs/bpf").context("/sys/fs/bpf")?.count();
    tree += &format!("== pinned: {pinned}\n");
    Ok(tree)
}

/// Waits a moment for the tree to be as it was: the kernel frees programs after a grace period.
pub(crate) fn assert_unchanged(before: &str, lab: Option<&Lab>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let now = tree(lab)?;
        if now == before {
            return Ok(());
        }
        let change = difference(before, &now);
        ensure!(Instant::now() < deadline, "left behind:{change}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
