//! Builds ebpf/ with rustup's nightly. Without it (or with `SHEAVE_SKIP_EBPF=1`) the object is empty and the bench reports that
//! when it runs: nothing else in the workspace needs it.

use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

use anyhow::{Context as _, Result};
use aya_build::{Package, Toolchain};

fn main() -> Result<()> {
    println!("cargo:rerun-if-env-changed=SHEAVE_SKIP_EBPF");
    let out = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set: not run by cargo")?);
    let nightly = Command::new("rustup").args(["run", "nightly", "rustc", "--version"]).output();
    if env::var_os("SHEAVE_SKIP_EBPF").is_some_and(|value| value == "1") || !nightly.is_ok_and(|it| it.status.success())
    {
        println!("cargo:rerun-if-changed=build.rs");
        return fs::write(out.join(OBJECT), []).context("writing the empty object");
    }
    // SAFETY: this process has one thread. The child's progress would come out as warnings of this crate.
    unsafe { env::set_var("CARGO_TERM_QUIET", "true") };
    aya_build::build_ebpf(
        [Package { name: "second-chance-xdp", root_dir: "ebpf", ..Package::default() }],
        Toolchain::Nightly,
    )
}

const OBJECT: &str = "second-chance-xdp-object";
