//! Finds the eBPF object that `cargo xtask build-ebpf` makes, and lets the crate say so in one
//! clear error when it is not there.

use std::path::Path;

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let object = root.join("target/agent-ebpf.o");
    println!("cargo::rerun-if-changed={}", object.display());
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(ebpf_object_missing)");
    if object.is_file() {
        println!("cargo::rustc-env=DWELL_EBPF_OBJECT={}", object.display());
    } else {
        println!("cargo::rustc-cfg=ebpf_object_missing");
    }
}
