//! The things that can be missing, and how each is recognised.

use std::fmt;
use std::path::Path;

use anyhow::Result;

use super::{Need, ebpf, python};
use crate::workspace;

/// One requirement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item {
    /// A program, and the Debian package that holds it.
    Program { name: &'static str, package: &'static str },
    /// The Postgres server, which Debian keeps out of the search path.
    Postgres,
    /// The nightly toolchain.
    Nightly,
    /// The sources of `core` for nightly.
    RustSrc,
    /// Clippy for nightly.
    NightlyClippy,
    /// A bpf-linker that fits nightly.
    BpfLinker,
    /// A Python that can make virtual environments.
    Python,
    /// The virtual environment with the servers under test.
    Venv,
    /// cargo-deny.
    CargoDeny,
}

/// What a purpose needs.
pub(crate) fn items(need: Need) -> Result<Vec<Item>> {
    let program = |name, package| Item::Program { name, package };
    Ok(match need {
        Need::Build => vec![program("cc", "gcc"), Item::Nightly, Item::RustSrc, Item::BpfLinker],
        Need::Lab => vec![
            program("ip", "iproute2"),
            program("ss", "iproute2"),
            program("tc", "iproute2"),
            program("nft", "nftables"),
            program("tcpdump", "tcpdump"),
            program("strace", "strace"),
            program("ps", "procps"),
            program("setpriv", "util-linux"),
            Item::Postgres,
            Item::Python,
            Item::Venv,
        ],
        Need::Vm => vec![
            program("qemu-system-x86_64", "qemu-system-x86"),
            program("busybox", "busybox-static"),
            program("depmod", "kmod"),
            program("modprobe", "kmod"),
            program("xz", "xz-utils"),
            program("setpriv", "util-linux"),
        ],
        Need::Lint => vec![Item::Nightly, Item::NightlyClippy],
        Need::Audit => vec![Item::CargoDeny],
    })
}

impl Item {
    /// Whether it is there.
    pub(crate) fn present(&self) -> bool {
        match self {
            // A busybox that needs libraries cannot be the first process of a machine.
            Self::Program { name: "busybox", .. } => {
                workspace::find_program("busybox").is_some_and(|path| is_static(&path))
            }
            Self::Program { name, .. } => workspace::find_program(name).is_some(),
            Self::Postgres => has_postgres(),
            Self::Nightly => ebpf::nightly_rustc().is_ok(),
            Self::RustSrc => ebpf::has_rust_src().unwrap_or(false),
            Self::NightlyClippy => ebpf::has_clippy(),
            Self::BpfLinker => {
                ebpf::nightly_rustc().is_ok_and(|nightly| ebpf::bpf_linker(&nightly).is_ok())
            }
            Self::Python => python::interpreter().is_some(),
            Self::Venv => python::venv_is_current(),
            Self::CargoDeny => ebpf::cargo_deny().is_some(),
        }
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Program { name, package } => write!(f, "{name} (Debian: {package})"),
            Self::Postgres => write!(f, "the Postgres server (Debian: postgresql)"),
            Self::Nightly => write!(f, "a nightly Rust toolchain, for the kernel half"),
            Self::RustSrc => write!(f, "the sources of Rust's core library for nightly"),
            Self::NightlyClippy => write!(f, "clippy for nightly"),
            Self::BpfLinker => write!(f, "a bpf-linker whose LLVM is not older than nightly's"),
            Self::Python => write!(f, "Python 3.8 to 3.13 with venv (Debian: python3-venv)"),
            Self::Venv => write!(f, "a Python environment with Django and its servers"),
            Self::CargoDeny => write!(f, "cargo-deny"),
        }
    }
}

fn is_static(program: &Path) -> bool {
    // ldd exits with 1 for a program that needs no libraries.
    workspace::command("ldd").arg(program).output().is_ok_and(|output| !output.status.success())
}

fn has_postgres() -> bool {
    let debian = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let found = debian.flatten().any(|entry| entry.path().join("bin/postgres").is_file());
    found || workspace::find_program("postgres").is_some()
}
