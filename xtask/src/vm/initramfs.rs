//! The first file system of the virtual machine: a busybox, kernel modules, two scripts and the job.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::kernel::Kernel;
use super::machine::{Job, shell_quoted};
use crate::workspace;

/// Modules for reaching the host: the PCI transport, the console port, 9p, and the overlay.
const MODULES: [&str; 5] = ["virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"];

/// Packs the file system for one job.
///
/// # Errors
/// When busybox or a module is missing.
pub(crate) fn build(kernel: &Kernel, job: &Job) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.directory("bin");
    archive.directory("dev");
    archive.directory("modules");
    let busybox = workspace::find_program("busybox")
        .context("there is no busybox (Debian: busybox-static)")?;
    archive.file("bin/busybox", 0o755, &read(&busybox)?);
    archive.file("init", 0o755, include_bytes!("init.sh"));
    archive.file("init2.sh", 0o644, include_bytes!("init2.sh"));
    let modules = format!("modules={}\n", shell_quoted(&kernel.modules.to_string_lossy()));
    archive.file("settings.sh", 0o644, modules.as_bytes());
    archive.file("job.sh", 0o644, job.script().as_bytes());

    let mut order = String::new();
    for (position, file) in kernel.module_files(&MODULES)?.iter().enumerate() {
        let name = format!("{position:02}.ko");
        archive.file(&format!("modules/{name}"), 0o644, &read_module(file)?);
        order.push_str(&name);
        order.push('\n');
    }
    archive.file("modules/order", 0o644, order.as_bytes());
    Ok(archive.finish())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Newer kernel packages hold compressed modules, which busybox's insmod does not read.
fn read_module(path: &Path) -> Result<Vec<u8>> {
    let extension = path.extension().and_then(|extension| extension.to_str());
    let program = match extension {
        Some("ko") => return read(path),
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => bail!("{} is compressed in an unknown way", path.display()),
    };
    let output = workspace::command(program)
        .arg("-dcq")
        .arg(path)
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        bail!("{program} could not read {}", path.display());
    }
    Ok(output.stdout)
}

/// A cpio archive in the `newc` format (kernel: Documentation/driver-api/early-userspace/
/// buffer-format.rst): per entry a header of 8-digit hexadecimal fields, the name and the content,
/// both padded to 4 bytes.
#[derive(Debug, Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn directory(&mut self, name: &str) {
        self.entry(name, 0o040_755, &[]);
    }

    fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entry(name, 0o100_000 | mode, content);
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let (size, name_size) = (content.len(), name.len() + 1);
        // Magic, inode, mode, uid, gid, links, mtime, size, device (2), special (2), name size, sum.
        let header = format!(
            "070701{:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{size:08x}{:08x}{:08x}{:08x}{:08x}\
             {name_size:08x}{:08x}",
            self.entries, 0, 0, 1, 0, 0, 0, 0, 0, 0
        );
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::Archive;

    #[test]
    fn entries_are_aligned_and_carry_their_sizes() {
        let mut archive = Archive::default();
        archive.file("ab", 0o644, b"12345");
        let bytes = archive.finish();
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[54..62], b"00000005", "size of the content");
        assert_eq!(&bytes[94..102], b"00000003", "size of the name with its NUL");
        assert_eq!(&bytes[110..113], b"ab\0");
        assert_eq!(&bytes[116..121], b"12345");
        assert_eq!(&bytes[124..130], b"070701");
        assert_eq!(bytes.len() % 4, 0);
        assert!(bytes.windows(10).any(|window| window == b"TRAILER!!!"));
    }
}
