//! What compiles the kernel half: nightly with rust-src, and a bpf-linker whose LLVM is not older
//! than that of nightly's rustc (older LLVM cannot read newer bitcode).

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, anyhow, bail};

use crate::workspace;

/// What to type when there is no nightly toolchain.
pub(crate) const INSTALL_NIGHTLY: &str =
    "rustup toolchain install nightly --profile minimal --component rust-src";
/// What to type when nightly lacks the sources of `core`.
pub(crate) const INSTALL_RUST_SRC: &str = "rustup component add rust-src --toolchain nightly";
/// What to type when nightly lacks clippy.
pub(crate) const INSTALL_CLIPPY: &str = "rustup component add clippy --toolchain nightly";

/// The bpf-linker that `cargo xtask setup` builds.
pub(crate) const BPF_LINKER_VERSION: &str = "0.13.0";
/// The LLVM majors that it can be built against, newest first: its cargo features.
pub(crate) const LLVM_MAJORS: [u32; 3] = [23, 22, 21];
const CARGO_DENY_VERSION: &str = "0.20.2";

/// The nightly toolchain, as far as building for BPF cares.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Nightly {
    /// Major version of the LLVM in its rustc.
    pub(crate) llvm_major: u32,
}

/// Looks at the nightly toolchain.
///
/// # Errors
/// When it or its rust-src component is missing; the message holds the command that installs it.
pub(crate) fn nightly() -> Result<Nightly> {
    let nightly = nightly_rustc()?;
    if !has_rust_src()? {
        bail!("nightly lacks the sources of `core`; run: {INSTALL_RUST_SRC}");
    }
    Ok(nightly)
}

/// The nightly compiler alone, whether or not rust-src is there.
pub(crate) fn nightly_rustc() -> Result<Nightly> {
    let version = workspace::output(rustc_nightly().arg("-vV"))
        .map_err(|_| anyhow!("there is no nightly toolchain; run: {INSTALL_NIGHTLY}"))?;
    let llvm_major = version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))
        .and_then(|version| version.split('.').next()?.parse().ok())
        .context("`rustc +nightly -vV` does not say which LLVM it holds")?;
    Ok(Nightly { llvm_major })
}

/// Whether nightly has the sources of `core`.
pub(crate) fn has_rust_src() -> Result<bool> {
    let sysroot = workspace::output(rustc_nightly().args(["--print", "sysroot"]))?;
    Ok(Path::new(&sysroot).join("lib/rustlib/src/rust/library/core").is_dir())
}

/// Whether nightly has clippy.
pub(crate) fn has_clippy() -> bool {
    workspace::output(workspace::cargo_nightly().args(["clippy", "--version"])).is_ok()
}

fn rustc_nightly() -> Command {
    let mut command = workspace::command("rustc");
    command.env_remove("RUSTUP_TOOLCHAIN").arg("+nightly");
    command
}

/// Finds a bpf-linker that can read what nightly's rustc writes: first the one that
/// `cargo xtask setup` built under `target/tools`, then those in `PATH`.
///
/// # Errors
/// When there is none; the message holds the command that installs one.
pub(crate) fn bpf_linker(nightly: &Nightly) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates = std::iter::once(tools().join("bin"))
        .chain(std::env::split_paths(&path))
        .map(|directory| directory.join("bpf-linker"))
        .filter(|candidate| candidate.is_file());
    let mut too_old = None;
    for candidate in candidates {
        match linked_llvm_major(&candidate) {
            Some(major) if major < nightly.llvm_major => too_old = Some((candidate, major)),
            // Statically linked ones do not tell; the link step would.
            _ => return Ok(candidate),
        }
    }
    let wanted = nightly.llvm_major;
    match too_old {
        Some((path, major)) => bail!(
            "{} holds LLVM {major}, nightly's rustc LLVM {wanted}; run: cargo xtask setup",
            path.display()
        ),
        None => bail!("there is no bpf-linker for LLVM {wanted}; run: cargo xtask setup"),
    }
}

/// Where `cargo xtask setup` installs cargo programs.
pub(crate) fn tools() -> PathBuf {
    workspace::target().join("tools")
}

/// The oldest LLVM that is available, known to bpf-linker and not older than `wanted`: the nearest
/// relative of what rustc writes.
pub(crate) fn fitting_llvm(wanted: u32, available: impl Fn(u32) -> bool) -> Option<u32> {
    LLVM_MAJORS.into_iter().rev().find(|major| *major >= wanted && available(*major))
}

/// Whether an LLVM to build against is there.
pub(crate) fn llvm_is_installed(major: u32) -> bool {
    llvm_prefix(major).join("bin/llvm-config").exists()
        && llvm_prefix(major).join("lib/libPolly.a").exists()
}

/// The Debian packages to build bpf-linker with.
pub(crate) fn llvm_packages(major: u32) -> Vec<String> {
    let mut packages = vec![format!("llvm-{major}-dev"), format!("libpolly-{major}-dev")];
    packages.extend(["g++", "zlib1g-dev", "libzstd-dev"].map(String::from));
    packages
}

fn llvm_prefix(major: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{major}"))
}

/// The command that builds bpf-linker against one LLVM.
pub(crate) fn install_bpf_linker(llvm_major: u32) -> Command {
    let mut command = cargo_install("bpf-linker", BPF_LINKER_VERSION);
    command
        .args(["--no-default-features", "--features", &format!("llvm-{llvm_major}")])
        .env("LLVM_PREFIX", llvm_prefix(llvm_major));
    command
}

/// The command that builds cargo-deny.
pub(crate) fn install_cargo_deny() -> Command {
    cargo_install("cargo-deny", CARGO_DENY_VERSION)
}

/// Looks for cargo-deny under `target/tools`, then in `PATH`.
pub(crate) fn cargo_deny() -> Option<PathBuf> {
    let own = tools().join("bin/cargo-deny");
    if own.is_file() { Some(own) } else { workspace::find_program("cargo-deny") }
}

/// Built outside the workspace's target directory, whose lock the caller's cargo may hold.
fn cargo_install(package: &str, version: &str) -> Command {
    let mut command = workspace::cargo();
    command
        .args(["install", "--locked", "--quiet", package, "--version", version, "--force"])
        .arg("--root")
        .arg(tools())
        .env_remove("CARGO_TARGET_DIR");
    command
}

/// The LLVM that a program is dynamically linked to, where it is.
fn linked_llvm_major(program: &Path) -> Option<u32> {
    let libraries = workspace::output(workspace::command("ldd").arg(program)).ok()?;
    llvm_major_of(&libraries)
}

/// Reads `libLLVM.so.22.1` and the older spelling `libLLVM-14.so.1`.
fn llvm_major_of(libraries: &str) -> Option<u32> {
    libraries.lines().find_map(|line| {
        let (_, rest) = line.split_once("libLLVM")?;
        let rest = rest.strip_prefix(".so.").or_else(|| rest.strip_prefix('-'))?;
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::{fitting_llvm, llvm_major_of};

    #[test]
    fn the_nearest_llvm_that_is_not_older_is_chosen() {
        assert_eq!(fitting_llvm(22, |_| true), Some(22));
        assert_eq!(fitting_llvm(22, |major| major == 23), Some(23));
        assert_eq!(fitting_llvm(22, |major| major == 21), None);
        assert_eq!(fitting_llvm(24, |_| true), None);
    }

    #[test]
    fn reads_both_spellings_of_the_library() {
        let new = "\tlibc.so.6 => /lib/libc.so.6\n\tlibLLVM.so.22.1 => /usr/lib/libLLVM.so.22.1";
        assert_eq!(llvm_major_of(new), Some(22));
        assert_eq!(llvm_major_of("\tlibLLVM-14.so.1 => /usr/lib/libLLVM-14.so.1"), Some(14));
        assert_eq!(llvm_major_of("\tlibc.so.6 => /lib/libc.so.6"), None);
    }
}
