//! Container images without a container engine: a docker-archive tar of one layer, for `ctr images import`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::plan::repository;

/// What is known of an image beside its files.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    /// With registry and tag.
    pub reference: &'a str,
    pub entrypoint: &'a str,
    /// Its arguments where the pod gives none.
    pub command: &'a [&'a str],
    /// Where a shell in it looks for programs.
    pub path: &'a str,
}

/// Packs files and symbolic links (path in the image, path here) into an image and writes it to `tar`.
pub fn pack(tar: &Path, about: &About<'_>, files: &[(String, PathBuf)]) -> Result<()> {
    let mut layer = Archive::default();
    for (inside, outside) in files {
        let inside = inside.trim_start_matches('/');
        let context = || format!("image {}: {}", about.reference, outside.display());
        if outside.is_symlink() {
            layer.link(inside, &fs::read_link(outside).with_context(context)?.to_string_lossy())?;
        } else {
            layer.add(inside, 0o755, &fs::read(outside).with_context(context)?)?;
        }
    }
    let layer = layer.finish();
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {"Entrypoint": [about.entrypoint], "Cmd": about.command, "Env": [format!("PATH={}", about.path)]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{:x}", Sha256::digest(&layer))]},
    });
    let manifest = json!([{
        "Config": "config.json",
        "RepoTags": [about.reference],
        "Layers": ["layer.tar"],
    }]);
    let mut image = Archive::default();
    image.add("manifest.json", 0o644, &serde_json::to_vec(&manifest)?)?;
    image.add("config.json", 0o644, &serde_json::to_vec(&config)?)?;
    image.add("layer.tar", 0o644, &layer)?;
    // Renamed into place: a node that starts meanwhile imports the old or the new image.
    let new = tar.with_extension(format!("new-{}", std::process::id()));
    fs::write(&new, image.finish()).with_context(|| new.display().to_string())?;
    fs::rename(&new, tar).with_context(|| tar.display().to_string())
}

/// An image that the lab knows how to pack: what `make images` laid out for it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Image {
    pub name: String,
    pub tar: PathBuf,
    /// Of the image, which is one layer.
    pub bytes: u64,
}

/// Packs an image for everything that `make images` laid out, into `target/images`. What has not changed is left alone.
pub fn pack_all(pause: &Path) -> Result<Vec<Image>> {
    let folder = repository().join("target/images");
    fs::create_dir_all(&folder)?;
    let mut images = vec![pack_one(&folder, "pause", LAB, &[("/pause".into(), fs::canonicalize(pause)?)])?];
    for name in OURS {
        if folder.join("rootfs").join(name).exists() {
            images.push(pack_laid_out(&folder, name, LAB)?);
        }
    }
    Ok(images)
}

/// Packs `rootfs/<name>` of a folder as image `<name>:<tag>` into a tar beside `rootfs`.
pub fn pack_laid_out(folder: &Path, name: &str, tag: &str) -> Result<Image> {
    let root = folder.join("rootfs").join(name);
    pack_one(folder, name, tag, &files_below(&root, &root)?)
}

/// Packs a whole folder as an image with the name that a registry gives it.
pub fn pack_as(tar: &Path, about: &About<'_>, root: &Path) -> Result<Image> {
    let files = files_below(root, root)?;
    if is_older(tar, &files) {
        pack(tar, about, &files)?;
    }
    Ok(Image { name: about.reference.to_owned(), tar: tar.to_owned(), bytes: fs::metadata(tar)?.len() })
}

/// Every file and symbolic link below `folder`: its path in the image (relative to `root`) and here, in order.
fn files_below(folder: &Path, root: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            files.extend(files_below(&path, root)?);
        } else {
            files.push((format!("/{}", path.strip_prefix(root)?.display()), path));
        }
    }
    files.sort();
    Ok(files)
}

pub fn static_binary(name: &str) -> PathBuf {
    repository().join("target/static").join(TARGET).join("release").join(name)
}

fn pack_one(folder: &Path, name: &str, tag: &str, files: &[(String, PathBuf)]) -> Result<Image> {
    // Images of other versions are imported beside those of the lab.
    let file = if tag == LAB { format!("{name}.tar") } else { format!("{name}-{tag}.tar") };
    let (tar, image) = (folder.join(file), format!("{name}:{tag}"));
    if is_older(&tar, files) {
        // The next speaker is the same program by name, too.
        let (reference, entrypoint) =
            (format!("docker.io/library/{image}"), format!("/{}", name.trim_end_matches("-next")));
        let about = About { reference: &reference, entrypoint: &entrypoint, command: &[], path: "/" };
        pack(&tar, &about, files)?;
    }
    let bytes = fs::metadata(&tar)?.len();
    Ok(Image { name: image, tar, bytes })
}

/// Whether a file has changed since the image was packed, or it never was.
fn is_older(tar: &Path, files: &[(String, PathBuf)]) -> bool {
    let modified = |path: &Path| fs::symlink_metadata(path).and_then(|found| found.modified()).ok();
    let newest = files.iter().filter_map(|(_, path)| modified(path)).max();
    modified(tar).is_none_or(|packed| newest.is_some_and(|built| built > packed))
}

/// POSIX ustar, as much of it as images need.
#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn add(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.header(path, mode, content.len(), b'0', "")?;
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        Ok(())
    }

    fn link(&mut self, path: &str, target: &str) -> Result<()> {
        self.header(path, 0o777, 0, b'2', target)
    }

    fn header(&mut self, path: &str, mode: u32, size: usize, kind: u8, target: &str) -> Result<()> {
        for text in [path, target] {
            if text.len() > 100 {
                bail!("path {text:?} is longer than the 100 bytes of a tar header");
            }
        }
        let mut header = [0u8; BLOCK];
        header[..path.len()].copy_from_slice(path.as_bytes());
        header[100..108].copy_from_slice(format!("{mode:07o}\0").as_bytes());
        header[108..116].copy_from_slice(b"0000000\0");
        header[116..124].copy_from_slice(b"0000000\0");
        header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
        // No time: the same binary makes the same image.
        header[136..148].copy_from_slice(b"00000000000\0");
        header[156] = kind;
        header[157..157 + target.len()].copy_from_slice(target.as_bytes());
        header[257..265].copy_from_slice(b"ustar\x0000");
        // The checksum is taken with its own field filled with spaces.
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&header);
        Ok(())
    }

    fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.0
    }
}

/// The tag of what was built from the files as they are.
const LAB: &str = "lab";
const BLOCK: usize = 512;
/// Binaries that become images, as far as they have been built.
const OURS: [&str; 4] = ["sheave-traffic", "sheave-controller", "sheave-speaker", "sheave-speaker-next"];
const TARGET: &str =
    if cfg!(target_arch = "aarch64") { "aarch64-unknown-linux-gnu" } else { "x86_64-unknown-linux-gnu" };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tar_lists_what_was_packed() {
        let mut archive = Archive::default();
        archive.add("bin/one", 0o755, b"hello").unwrap();
        archive.add("two", 0o644, &[7; 600]).unwrap();
        archive.link("three", "bin/one").unwrap();
        let path = std::env::temp_dir().join(format!("sheave-tar-{}", std::process::id()));
        fs::write(&path, archive.finish()).unwrap();
        let listed = crate::lab::netns::run("tar", &["-tvf", &path.to_string_lossy()]).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(
            listed.contains("-rwxr-xr-x") && listed.contains("5 1970-01-01") && listed.contains("bin/one"),
            "{listed}"
        );
        assert!(listed.contains("600") && listed.contains("two"), "{listed}");
        assert!(listed.contains("three -> bin/one"), "{listed}");
    }
}
