//! Whether the kubelet finds the image of the static pod without a registry: in containerd, or in the folder that the distribution imports
//! from when it starts.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sheave_endpoint::preset::{Distribution, reference};

use super::finding::{Finding, Obstacle};

/// Archives that are looked into.
const MOST_ARCHIVES: usize = 64;

pub fn look(distribution: &Distribution, image: &str) -> Finding {
    let image = reference(image).unwrap_or_default();
    let in_runtime = imported(distribution.ctr, &image);
    if let Ok(true) = in_runtime {
        return Finding::Fine(format!("image {image} is imported"));
    }
    let archive = distribution.images.and_then(|folder| archive(Path::new(folder), &image));
    if let Some(archive) = archive {
        return Finding::Fine(format!(
            "image {image} is in {}, which {} imports",
            archive.display(),
            distribution.name
        ));
    }
    let found = match in_runtime {
        Err(error) => format!(" ({error})"),
        Ok(_) => String::new(),
    };
    let folder = distribution.images.map(|folder| format!(", put its archive into {folder}")).unwrap_or_default();
    let why = format!(
        "image {image} is not imported{found}: {} images import FILE{folder}; \
         or, if another runtime has it, --image-is-imported",
        distribution.ctr.join(" ")
    );
    Finding::refused(Obstacle::ImageMissing, why)
}

fn imported(ctr: &[&str], image: &str) -> Result<bool, String> {
    let Some((program, arguments)) = ctr.split_first() else { return Err("no containerd".into()) };
    let mut command = Command::new(program);
    command.args(arguments).args(["--connect-timeout", "3s", "images", "list", "--quiet", &format!("name=={image}")]);
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{program}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().any(|line| line == image))
}

/// The archive that has the image: a docker-archive names it in manifest.json, an OCI layout in index.json.
fn archive(folder: &Path, image: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    let paths = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file());
    paths.take(MOST_ARCHIVES).find(|path| ["manifest.json", "index.json"].iter().any(|list| names(path, list, image)))
}

/// tar knows its compressions.
fn names(archive: &Path, list: &str, image: &str) -> bool {
    let mut command = Command::new("tar");
    command.arg("--extract").arg("--to-stdout").arg("--occurrence").arg("--file").arg(archive).arg(list);
    let Ok(output) = command.stdin(Stdio::null()).output() else { return false };
    // References have no character that JSON would write in another way.
    String::from_utf8_lossy(&output.stdout).contains(&format!("\"{image}\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_found_by_the_image_in_it() {
        let folder = std::env::temp_dir().join(format!("sheave-init-image-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("manifest.json"), r#"[{"RepoTags":["docker.io/library/sheave-speaker:1"]}]"#)
            .unwrap();
        let tar = folder.join("sheave.tar.gz");
        let mut command = Command::new("tar");
        command.arg("--create").arg("--gzip").arg("--file").arg(&tar).arg("--directory").arg(&folder);
        assert!(command.arg("manifest.json").status().unwrap().success());
        std::fs::remove_file(folder.join("manifest.json")).unwrap();
        std::fs::write(folder.join("a.tar"), "no archive").unwrap();
        let found = archive(&folder, "docker.io/library/sheave-speaker:1");
        let other = archive(&folder, "docker.io/library/sheave-speaker:2");
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!((found, other), (Some(tar), None));
    }

    #[test]
    fn a_runtime_that_is_not_there_is_no_image() {
        assert!(imported(&["/nonexistent/ctr"], "a:1").unwrap_err().starts_with("/nonexistent/ctr: "));
    }
}
