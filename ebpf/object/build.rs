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
use object::build::elf::{Builder, SectionData};
use object::elf::SHT_STRTAB;

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
    let built = fs::read(out.join(BINARY)).context("the build left no object")?;
    fs::write(&object, strip(&built)?).context("writing the object")
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

/// Takes out the debug sections (nine tenths of the object) and leaves BTF, which the loader and the kernel read.
fn strip(object: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(object).context("the built object is no ELF file")?;
    for section in &mut builder.sections {
        let name = section.name.to_vec();
        section.delete = name.starts_with(b".debug_") || name.starts_with(b".rel.debug_");
    }
    builder.delete_orphans();
    // LLVM keeps section names and symbol names in one table; the writer wants two.
    let names = builder.sections.add();
    names.name = b".shstrtab"[..].into();
    names.sh_type = SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    let mut stripped = Vec::new();
    builder.write(&mut stripped).context("writing the object without its debug sections")?;
    Ok(stripped)
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
