//! Finds the eBPF objects that `cargo xtask build-ebpf` makes, and lets the crate say so in one
//! clear error when one is not there.

use std::path::Path;

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(ebpf_object_missing)");
    for (variable, name) in [
        ("DWELL_EBPF_OBJECT", "agent-ebpf.o"),
        ("DWELL_REDIRECT_OBJECT", "agent-redirect.o"),
        ("DWELL_RECEIPT_OBJECT", "agent-receipt.o"),
        ("DWELL_RETRANSMIT_OBJECT", "agent-retransmit.o"),
    ] {
        let object = root.join("target").join(name);
        println!("cargo::rerun-if-changed={}", object.display());
        if object.is_file() {
            println!("cargo::rustc-env={variable}={}", object.display());
        } else {
            println!("cargo::rustc-cfg=ebpf_object_missing");
        }
    }
}
