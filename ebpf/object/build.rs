//! Builds `../` (package `sheave-ebpf`) for bpfel-unknown-none and leaves the object in OUT_DIR as `sheave.o`.
//!
//! Routes, the first that fits:
//! 1. `SHEAVE_SKIP_EBPF=1`: an empty object, so that clippy and tests of everything else need no BPF tools.
//! 2. `SHEAVE_EBPF_OBJECT=FILE`: a ready object.
//! 3. rustup's nightly with rust-src, and bpf-linker.
//! 4. a rustup toolchain named `debian` (`rustup toolchain link debian /usr`): Debian's rustc-web with a ready core
//!    (libstd-rust-web-dev-bpf) or its source (rust-web-src), and bpf-linker.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context as _, Result, bail};
use aya_build::{Package, Toolchain};

fn main() -> Result<()> {
    for name in [SKIP, READY] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    for path in ["build.rs", "../Cargo.toml", "../src", "../common/Cargo.toml", "../common/src"] {
        println!("cargo:rerun-if-changed={path}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set: not run by cargo")?);
    let object = out.join("sheave.o");
    if env::var_os(SKIP).is_some_and(|value| value == "1") {
        return fs::write(&object, []).context("writing the empty object");
    }
    if let Some(ready) = env::var_os(READY) {
        println!("cargo:rerun-if-changed={}", Path::new(&ready).display());
        fs::copy(&ready, &object).with_context(|| format!("{READY}: copying {}", Path::new(&ready).display()))?;
        return Ok(());
    }
    // The child's progress would come out as warnings of this crate; its own warnings still do.
    // SAFETY: this process has one thread.
    unsafe { env::set_var("CARGO_TERM_QUIET", "true") };
    build()?;
    fs::rename(out.join(BINARY), &object).context("the build left no object")
}

fn build() -> Result<()> {
    let package = Package { name: "sheave-ebpf", root_dir: "../src", ..Package::default() };
    if has_core("nightly", SOURCE) {
        return aya_build::build_ebpf([package], Toolchain::Nightly);
    }
    let ready_core = has_core("debian", "bpfel-unknown-none/lib");
    if !ready_core && !has_core("debian", SOURCE) {
        bail!(
            "no toolchain can build the eBPF program. Either `rustup toolchain install nightly --component rust-src`, or \
             Debian's rustc-web, cargo-web and libstd-rust-web-dev-bpf with `rustup toolchain link debian /usr`; both need \
             bpf-linker. {READY}=FILE takes a ready object, {SKIP}=1 builds without one."
        );
    }
    // A stable compiler: RUSTC_BOOTSTRAP opens `asm_experimental_arch` in aya-ebpf, and build-std where there is no ready core.
    // aya-build adds build-std when the value is "1", not when it lists crates.
    let bootstrap = if ready_core { "aya_ebpf,aya_ebpf_bindings,sheave_ebpf,sheave_xdp" } else { "1" };
    // SAFETY: this process has one thread; the variable reaches only the child that aya-build starts.
    unsafe { env::set_var("RUSTC_BOOTSTRAP", bootstrap) };
    aya_build::build_ebpf([package], Toolchain::Custom("debian"))
}

/// Whether the toolchain is there and has `part` below its lib/rustlib.
fn has_core(toolchain: &str, part: &str) -> bool {
    let Ok(output) = Command::new("rustup").args(["run", toolchain, "rustc", "--print", "sysroot"]).output() else {
        return false;
    };
    let sysroot = String::from_utf8_lossy(&output.stdout);
    output.status.success() && Path::new(sysroot.trim()).join("lib/rustlib").join(part).exists()
}

const SKIP: &str = "SHEAVE_SKIP_EBPF";
const READY: &str = "SHEAVE_EBPF_OBJECT";
const SOURCE: &str = "src/rust/library/core";
const BINARY: &str = "sheave-xdp";
