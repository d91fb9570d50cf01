//! Brings a Debian kernel package, unpacked and indexed but not installed.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::{setup::package, workspace};

/// An unpacked kernel.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// Release, as `uname -r` prints it.
    pub(crate) release: String,
    /// The compressed image that QEMU boots.
    pub(crate) image: PathBuf,
    /// `lib/modules` of the unpacked package.
    pub(crate) modules: PathBuf,
}

/// Downloads and unpacks the newest kernel of a series, unless that has been done.
///
/// # Errors
/// When apt knows no such package, or a step fails.
pub(crate) fn prepare(series: &str, directory: &Path) -> Result<Kernel> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("the virtual machine is written for x86_64, this is {}", std::env::consts::ARCH);
    }
    // A kernel that is there is used as it is: tests must not change with the mirror.
    let package = match unpacked(series, directory) {
        Some(package) => package,
        None => download(series, directory)?,
    };
    let root = directory.join(&package);
    let release = package.trim_start_matches("linux-image-").to_owned();
    Ok(Kernel {
        image: root.join("boot").join(format!("vmlinuz-{release}")),
        modules: root.join("lib/modules"),
        release,
    })
}

fn unpacked(series: &str, directory: &Path) -> Option<String> {
    let entries = std::fs::read_dir(directory).ok()?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    newest(series, names)
}

fn download(series: &str, directory: &Path) -> Result<String> {
    package::with_fresh_lists(|| try_download(series, directory))
}

fn try_download(series: &str, directory: &Path) -> Result<String> {
    let mut list = workspace::command("apt-cache");
    let known = workspace::output(list.args(["pkgnames", "linux-image-"]))
        .context("Debian's package tools are needed to fetch a kernel")?;
    let Some(package) = newest(series, known.lines().map(str::to_owned)) else {
        bail!("apt knows no kernel linux-image-{series}.*-amd64; is this Debian 12?");
    };
    let work = directory.join("unpacking");
    package::unpack(&package, &work)?;
    let release = package.trim_start_matches("linux-image-");
    let depmod = workspace::find_program("depmod").context("there is no depmod (Debian: kmod)")?;
    workspace::run(workspace::command(depmod).arg("-b").arg(&work).arg(release))?;
    // Renamed last: a directory with the package's name is complete.
    std::fs::rename(&work, directory.join(&package))?;
    Ok(package)
}

/// The newest of the stock kernel packages of a series: no cloud, rt or unsigned ones.
fn newest(series: &str, packages: impl Iterator<Item = String>) -> Option<String> {
    let prefix = format!("linux-image-{series}.");
    packages
        .filter(|package| {
            package.strip_prefix(&prefix).and_then(|rest| rest.strip_suffix("-amd64")).is_some_and(
                |version| {
                    version
                        .replace("+deb", "+")
                        .chars()
                        .all(|c| c.is_ascii_digit() || matches!(c, '.' | '-' | '+'))
                },
            )
        })
        .max_by_key(|package| numbers(package))
}

fn numbers(text: &str) -> Vec<u64> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

impl Kernel {
    /// The files that must be loaded, in order, for the named modules to work. Modules that are
    /// built in need none.
    ///
    /// # Errors
    /// When this kernel has no such module.
    pub(crate) fn module_files(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let base = self.modules.join(&self.release);
        let read = |name: &str| {
            let path = base.join(name);
            std::fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))
        };
        let (index, built_in) = (read("modules.dep")?, read("modules.builtin")?);
        let order = load_order(names, &index, &built_in)?;
        Ok(order.into_iter().map(|file| base.join(file)).collect())
    }
}

/// Orders modules so that each comes after what it needs; `index` is modules.dep.
fn load_order<'a>(names: &[&str], index: &'a str, built_in: &str) -> Result<Vec<&'a str>> {
    let mut seen = HashSet::new();
    let mut order = Vec::new();
    for name in names {
        let Some(line) = index
            .lines()
            .find(|line| line.split_once(':').is_some_and(|(file, _)| module_name(file) == *name))
        else {
            if built_in.lines().any(|file| module_name(file) == *name) {
                continue;
            }
            bail!("this kernel has no module `{name}`");
        };
        let Some((file, needs)) = line.split_once(':') else { continue };
        // depmod lists what a module needs with the deepest last.
        for file in needs.split_whitespace().rev().chain([file]) {
            if seen.insert(file) {
                order.push(file);
            }
        }
    }
    Ok(order)
}

/// `kernel/net/9p/9pnet_virtio.ko.xz` is module `9pnet_virtio`.
fn module_name(file: &str) -> &str {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split(".ko").next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::{load_order, newest};

    #[test]
    fn the_newest_stock_kernel_is_chosen_by_number() {
        let packages = [
            "linux-image-6.1.0-9-amd64",
            "linux-image-6.1.0-56-amd64",
            "linux-image-6.1.0-57-cloud-amd64",
            "linux-image-6.1.0-58-amd64-unsigned",
            "linux-image-6.12.101+deb12-amd64",
            "linux-image-6.12.99+deb12-amd64",
            "linux-image-6.12-amd64",
        ];
        let of = |series| newest(series, packages.iter().map(ToString::to_string));
        assert_eq!(of("6.1").as_deref(), Some("linux-image-6.1.0-56-amd64"));
        assert_eq!(of("6.12").as_deref(), Some("linux-image-6.12.101+deb12-amd64"));
        assert_eq!(of("5.10"), None);
    }

    #[test]
    fn modules_come_after_what_they_need() {
        let index = "kernel/net/9p/9pnet.ko:\n\
                     kernel/fs/9p/9p.ko: kernel/net/9p/9pnet.ko kernel/fs/netfs.ko\n\
                     kernel/net/9p/9pnet_virtio.ko.xz: kernel/net/9p/9pnet.ko";
        let order = load_order(&["9p", "9pnet_virtio", "serial"], index, "kernel/serial.ko");
        assert_eq!(
            order.unwrap(),
            [
                "kernel/fs/netfs.ko",
                "kernel/net/9p/9pnet.ko",
                "kernel/fs/9p/9p.ko",
                "kernel/net/9p/9pnet_virtio.ko.xz"
            ]
        );
        let missing = load_order(&["nosuch"], index, "").unwrap_err();
        assert!(missing.to_string().contains("nosuch"), "{missing}");
    }
}
