//! Sheave as it was at another commit: its images and its manifests, built from its own files by its own commands.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sheave_bench::commit::git;
use sheave_tests::lab::image::{self, Image};
use sheave_tests::lab::plan::repository;

/// A commit that is checked out and built below `target/upgrade`.
pub struct Commit {
    /// As short as it may be: the folder, and the tag of the images.
    pub name: String,
    /// The lab's overlay of that commit, with these images.
    pub overlay: PathBuf,
    pub images: Vec<Image>,
}

impl Commit {
    /// Builds what is not there yet: minutes the first time, nothing the second.
    pub fn build(revision: &str) -> Result<Self> {
        let full = git(&["rev-parse", "--verify", "--end-of-options", &format!("{revision}^{{commit}}")])
            .with_context(|| format!("from: {revision:?} names no commit of this repository"))?;
        let name = git(&["rev-parse", "--short", &full])?;
        let source = repository().join("target/upgrade").join(&name);
        let built = source.join("target/images");
        let stamp = built.join("commit");
        if fs::read_to_string(&stamp).ok().as_deref() != Some(full.as_str()) {
            check_out(&source, &full)?;
            make_images(&source)?;
            fs::write(&stamp, &full).with_context(|| stamp.display().to_string())?;
        }
        let images = OURS.iter().map(|image| image::pack_laid_out(&built, image, &name)).collect::<Result<_>>()?;
        let overlay = write_overlay(&source, &name)?;
        Ok(Self { name, overlay, images })
    }
}

/// A working tree whose files are those of the commit, even after an earlier attempt that failed.
fn check_out(source: &Path, full: &str) -> Result<()> {
    let path = source.to_str().context("the path of the repository is no UTF-8")?;
    if !source.join(".git").exists() {
        // Forced: `target` may have been removed without git.
        git(&["worktree", "add", "--force", "--detach", path, full])?;
    }
    git(&["-C", path, "checkout", "--quiet", "--force", "--detach", full]).map(drop)
}

/// `make images` of the commit, into that working tree's own `target`.
fn make_images(source: &Path) -> Result<()> {
    eprintln!("images of {}: built from its own files (some minutes)", source.display());
    let mut make = Command::new("make");
    // Flags of the make that called this one are not for that Makefile.
    make.arg("-C").arg(source).arg("images").env_remove("MAKEFLAGS").env_remove("MAKELEVEL");
    let status = make.status().context("start make")?;
    if !status.success() {
        bail!("make -C {} images: {status}", source.display());
    }
    Ok(())
}

/// The lab's overlay names images by the tag `lab`, which is that of the version to upgrade to.
fn write_overlay(source: &Path, tag: &str) -> Result<PathBuf> {
    let overlay = source.join("target/overlay");
    let images: String = OURS.iter().map(|image| format!("- name: {image}\n  newTag: {tag}\n")).collect();
    let text = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n- ../../manifests/overlays/lab\nimages:\n{images}"
    );
    write(&overlay, &text)?;
    Ok(overlay)
}

/// The lab's overlay of the files as they are, with speakers that are replaced only when their pods are deleted.
pub fn write_on_delete() -> Result<PathBuf> {
    let overlay = repository().join("target/upgrade/on-delete");
    let text = "apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources:
- ../../../manifests/overlays/lab
patches:
- target: {kind: DaemonSet, name: sheave-speaker}
  patch: |-
    - {op: replace, path: /spec/updateStrategy, value: {type: OnDelete}}
";
    write(&overlay, text)?;
    Ok(overlay)
}

fn write(overlay: &Path, text: &str) -> Result<()> {
    fs::create_dir_all(overlay).with_context(|| overlay.display().to_string())?;
    let file = overlay.join("kustomization.yaml");
    fs::write(&file, text).with_context(|| file.display().to_string())
}

const OURS: [&str; 2] = ["sheave-controller", "sheave-speaker"];
