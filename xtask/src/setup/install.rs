//! Turns what is missing into commands, and runs them.

use std::fmt;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::item::Item;
use super::{ebpf, python};
use crate::workspace;

/// One step of an installation.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Debian's lists of packages, as root.
    FreshLists,
    /// Debian packages, as root.
    Apt(Vec<String>),
    /// The nightly toolchain, as the user.
    Rustup(&'static str),
    /// bpf-linker built against one LLVM, as the user.
    BpfLinker { llvm_major: u32 },
    /// cargo-deny, as the user.
    CargoDeny,
    /// The Python environment, as the user.
    Venv,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FreshLists => f.write_str(&workspace::line(&apt_update())),
            Self::Apt(packages) => f.write_str(&workspace::line(&apt_install(packages))),
            Self::Rustup(line) => f.write_str(line),
            Self::BpfLinker { llvm_major } => {
                f.write_str(&workspace::line(&ebpf::install_bpf_linker(*llvm_major)))
            }
            Self::CargoDeny => f.write_str(&workspace::line(&ebpf::install_cargo_deny())),
            Self::Venv => write!(f, "python3 -m venv {} (and pip)", python::venv().display()),
        }
    }
}

impl Step {
    /// Does it.
    ///
    /// # Errors
    /// When the command fails.
    pub(crate) fn run(&self) -> Result<()> {
        eprintln!("+ {self}");
        match self {
            Self::FreshLists => update_package_lists(),
            Self::Apt(packages) => apt(packages),
            Self::Rustup(line) => {
                let mut words = line.split_whitespace();
                let mut rustup = workspace::command(words.next().unwrap_or("rustup"));
                workspace::run(rustup.args(words))
            }
            Self::BpfLinker { llvm_major } => {
                workspace::run(&mut ebpf::install_bpf_linker(*llvm_major))
            }
            Self::CargoDeny => workspace::run(&mut ebpf::install_cargo_deny()),
            Self::Venv => python::make_venv(),
        }
    }
}

/// Whether a plan takes newer lists of packages than there are: an image's lists are as old as the
/// image, and nightly's LLVM may be younger.
pub(crate) fn needs_fresh_lists(missing: &[Item]) -> bool {
    missing.contains(&Item::BpfLinker)
        && workspace::find_program("apt-get").is_some()
        && choose_llvm(ebpf::nightly_rustc().ok().as_ref()).is_err()
}

/// Orders the steps: packages before what is built with them.
///
/// # Errors
/// When packages are missing and this is not Debian or a child of it, or when no LLVM fits.
pub(crate) fn plan(missing: &[Item]) -> Result<Vec<Step>> {
    let mut packages = Vec::new();
    let mut steps = Vec::new();
    for item in missing {
        match item {
            Item::Program { package, .. } => packages.push((*package).to_owned()),
            Item::Postgres => packages.push("postgresql".into()),
            Item::Python => packages.push("python3-venv".into()),
            Item::Nightly => steps.push(Step::Rustup(ebpf::INSTALL_NIGHTLY)),
            Item::RustSrc if missing.contains(&Item::Nightly) => {}
            Item::RustSrc => steps.push(Step::Rustup(ebpf::INSTALL_RUST_SRC)),
            Item::NightlyClippy => steps.push(Step::Rustup(ebpf::INSTALL_CLIPPY)),
            Item::BpfLinker => {
                let nightly = ebpf::nightly_rustc().ok();
                let llvm_major = choose_llvm(nightly.as_ref())?;
                if !ebpf::llvm_is_installed(llvm_major) {
                    packages.extend(ebpf::llvm_packages(llvm_major));
                }
                steps.push(Step::BpfLinker { llvm_major });
            }
            Item::Venv => steps.push(Step::Venv),
            Item::CargoDeny => steps.push(Step::CargoDeny),
        }
    }
    packages.sort();
    packages.dedup();
    if !packages.is_empty() {
        if workspace::find_program("apt-get").is_none() {
            bail!(
                "this is not Debian or a child of it; install what these Debian packages hold, \
                 then run this again: {}",
                packages.join(" ")
            );
        }
        steps.insert(0, Step::Apt(packages));
    }
    Ok(steps)
}

/// The LLVM for bpf-linker: installed or installable, not older than nightly's.
fn choose_llvm(nightly: Option<&ebpf::Nightly>) -> Result<u32> {
    // Without a nightly yet, the newest that bpf-linker knows is the best guess.
    let wanted = nightly.map_or(ebpf::LLVM_MAJORS[0], |nightly| nightly.llvm_major);
    let available =
        |major: u32| ebpf::llvm_is_installed(major) || has_package(&format!("llvm-{major}-dev"));
    ebpf::fitting_llvm(wanted, available).with_context(|| {
        format!(
            "nightly's rustc holds LLVM {wanted} and no LLVM of that age or younger can be \
             installed with bpf-linker {} (it knows {:?}). Add https://apt.llvm.org to apt's \
             sources for llvm-{wanted}-dev, or put another bpf-linker into the search path",
            ebpf::BPF_LINKER_VERSION,
            ebpf::LLVM_MAJORS
        )
    })
}

fn has_package(name: &str) -> bool {
    let mut policy = workspace::command("apt-cache");
    policy.args(["policy", name]).env("LC_ALL", "C");
    let has = |policy: &mut Command| {
        workspace::output(policy).is_ok_and(|text| {
            text.lines().any(|line| {
                line.trim().strip_prefix("Candidate: ").is_some_and(|version| version != "(none)")
            })
        })
    };
    has(&mut policy)
}

/// A command as root: through sudo unless that is who we are.
pub(crate) fn as_root(program: &str) -> Command {
    if is_root() {
        workspace::command(program)
    } else {
        let mut command = workspace::command("sudo");
        command.arg(program);
        command
    }
}

/// Whether this process runs as root.
pub(crate) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

fn apt_install(packages: &[String]) -> Command {
    let mut command = as_root("env");
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-q"]);
    command.arg("--no-install-recommends").args(packages);
    command
}

fn apt(packages: &[String]) -> Result<()> {
    if !is_root() && workspace::find_program("sudo").is_none() {
        bail!(
            "installing packages takes root and there is no sudo; as root, run: cargo xtask setup"
        );
    }
    // Fresh images come without package lists, and old lists name packages that are gone.
    if let Err(error) = update_package_lists() {
        eprintln!("warning: {error:#}; going on with the lists at hand");
    }
    workspace::run(&mut apt_install(packages))
}

/// Has apt-get fetch the lists of packages.
///
/// # Errors
/// When it fails, or there is no way to become root.
pub(crate) fn update_package_lists() -> Result<()> {
    workspace::run(&mut apt_update())
}

fn apt_update() -> Command {
    let mut command = as_root("apt-get");
    command.args(["update", "-q"]);
    command
}

#[cfg(test)]
mod tests {
    use super::{Item, Step, plan};

    #[test]
    fn packages_come_first_and_once() {
        let missing = [
            Item::Venv,
            Item::Program { name: "ip", package: "iproute2" },
            Item::Program { name: "tc", package: "iproute2" },
            Item::Python,
        ];
        // On a machine without apt-get, the same packages are in the message.
        match plan(&missing) {
            Ok(steps) => assert_eq!(
                steps,
                [Step::Apt(vec!["iproute2".into(), "python3-venv".into()]), Step::Venv]
            ),
            Err(error) => assert!(error.to_string().ends_with("iproute2 python3-venv")),
        }
    }

    #[test]
    fn nightly_brings_its_sources_along() {
        let steps = plan(&[Item::Nightly, Item::RustSrc]).unwrap();
        assert_eq!(steps.len(), 1);
        assert!(steps[0].to_string().contains("--component rust-src"));
    }
}
