//! A machine's own files: a root directory of its own with this machine's programs, in which `sheave endpoint init` writes at the paths
//! that it names, and in which the speaker runs as unit or static pod would run it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::{Pod, Volume};
use sheave_endpoint::preset::{LIBRARY, UNIT_PATH};
use sheave_tests::lab::netns;

pub struct Root {
    dir: PathBuf,
}

/// Folders that every machine has.
const FOLDERS: [&str; 9] = ["dev", "etc", "proc", "run", "sys", "tmp", "usr", "var/lib", "local/lib/sheave"];
/// What is a link to a folder of /usr on Debian.
const LINKS: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

impl Root {
    /// Empty but for what every machine has.
    pub fn new(dir: &Path) -> Result<Self> {
        let root = Self { dir: dir.to_path_buf() };
        for folder in FOLDERS {
            root.folder(folder)?;
        }
        for link in LINKS {
            let outside = Path::new("/").join(link);
            let to = fs::read_link(&outside)
                .with_context(|| format!("{} is no link to a folder of /usr", outside.display()))?;
            symlink(to, root.at(link))?;
        }
        Ok(root)
    }

    /// Of a path inside.
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.dir.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn folder(&self, path: impl AsRef<Path>) -> Result<PathBuf> {
        let folder = self.at(path);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        Ok(folder)
    }

    pub fn write(&self, path: &str, content: &str) -> Result<()> {
        self.folder(Path::new(path).parent().context("a folder")?)?;
        fs::write(self.at(path), content).with_context(|| path.to_owned())
    }

    /// A program of this machine at a path below /usr/local.
    pub fn program(&self, path: &str, program: &Path) -> Result<()> {
        let link = self.local(path)?;
        self.folder(link.parent().context("a folder")?)?;
        if !self.at(&link).exists() {
            fs::hard_link(program, self.at(&link))
                .or_else(|_| fs::copy(program, self.at(&link)).map(drop))
                .with_context(|| format!("{} as {path}", program.display()))?;
        }
        Ok(())
    }

    pub fn remove_program(&self, path: &str) -> Result<()> {
        Ok(fs::remove_file(self.at(self.local(path)?))?)
    }

    fn local(&self, path: &str) -> Result<PathBuf> {
        Ok(Path::new("local").join(Path::new(path).strip_prefix("/usr/local").context("below /usr/local")?))
    }

    /// A command on the machine, in its network.
    pub fn command(&self, namespace: &str, words: &[&str]) -> Result<Command> {
        let mounts =
            vec![Mount::Bind("/usr".into(), "/usr".into()), Mount::Bind(self.at("local"), "/usr/local".into())];
        inside(&self.dir, namespace, mounts, false, &[], words)
    }

    /// The speaker as the unit of the machine starts it: its line, its capabilities.
    pub fn unit(&self, namespace: &str) -> Result<Command> {
        let unit = fs::read_to_string(self.at(UNIT_PATH)).context(UNIT_PATH)?;
        let line = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)).with_context(|| key.to_owned());
        let words: Vec<&str> = line("ExecStart=")?.split(' ').collect();
        let capabilities: Vec<String> =
            line("CapabilityBoundingSet=")?.split(' ').map(capability).collect::<Result<_>>()?;
        // What StateDirectory and RuntimeDirectory make.
        self.folder(Path::new("/var/lib").join(line("StateDirectory=")?))?;
        self.folder(Path::new("/run").join(line("RuntimeDirectory=")?))?;
        ensure!(words[0] == format!("{LIBRARY}/sheave-speaker"));
        let mounts =
            vec![Mount::Bind("/usr".into(), "/usr".into()), Mount::Bind(self.at("local"), "/usr/local".into())];
        inside(&self.dir, namespace, mounts, false, &capabilities, &words)
    }

    /// The speaker as a kubelet starts the pod of a manifest: its mounts and no others, its capabilities, its root read-only.
    pub fn pod(&self, namespace: &str, manifest: &str, speaker: &Path) -> Result<Command> {
        let text = fs::read_to_string(self.at(manifest)).with_context(|| manifest.to_owned())?;
        let spec = serde_yaml::from_str::<Pod>(&text)?.spec.context("a spec")?;
        let container = spec.containers.first().context("a container")?;
        let security = container.security_context.as_ref().context("securityContext")?;
        ensure!(security.read_only_root_filesystem == Some(true) && spec.host_network == Some(true));
        let add = security.capabilities.as_ref().and_then(|both| both.add.as_ref()).context("capabilities")?;
        let capabilities: Vec<String> =
            add.iter().map(|name| capability(&format!("CAP_{name}"))).collect::<Result<_>>()?;
        let image = Root::new(&self.dir.with_extension("pod"))?;
        image.program("/usr/local/sheave-speaker", speaker)?;
        let mut mounts =
            vec![Mount::Bind("/usr".into(), "/usr".into()), Mount::Bind(image.at("local"), "/usr/local".into())];
        let volumes = spec.volumes.unwrap_or_default();
        for mount in container.volume_mounts.iter().flatten() {
            let volume = volumes.iter().find(|volume| volume.name == mount.name).context("each mount has a volume")?;
            let host = self.host_path(volume)?;
            image.folder(&mount.mount_path)?;
            mounts.push(match host.as_str() {
                // Made anew in each namespace.
                "/sys/fs/bpf" => continue,
                "/proc/sys/net" => Mount::Bind(host.into(), mount.mount_path.clone()),
                _ if mount.read_only == Some(true) => Mount::ReadOnly(self.at(&host), mount.mount_path.clone()),
                _ => Mount::Bind(self.at(&host), mount.mount_path.clone()),
            });
        }
        let words =
            ["/usr/local/sheave-speaker"].into_iter().chain(container.args.iter().flatten().map(String::as_str));
        inside(&image.dir, namespace, mounts, true, &capabilities, &words.collect::<Vec<_>>())
    }

    /// As the kubelet judges the type of a hostPath.
    fn host_path(&self, volume: &Volume) -> Result<String> {
        let path = volume.host_path.as_ref().context("a hostPath")?;
        let is_ours = !["/sys/fs/bpf", "/proc/sys/net"].contains(&path.path.as_str());
        match path.type_.as_deref() {
            Some("DirectoryOrCreate") => drop(self.folder(&path.path)?),
            Some("Directory") if is_ours => ensure!(self.at(&path.path).is_dir(), "{} is no folder", path.path),
            Some("Directory") => {}
            other => bail!("{}: type {other:?}", path.path),
        }
        Ok(path.path.clone())
    }
}

enum Mount {
    Bind(PathBuf, String),
    ReadOnly(PathBuf, String),
}

/// Everything is mounted in a mount namespace that ends with the command; so is the bpffs.
fn inside(
    root: &Path,
    namespace: &str,
    mounts: Vec<Mount>,
    read_only: bool,
    capabilities: &[String],
    words: &[&str],
) -> Result<Command> {
    let root = root.display();
    let mut script = format!("set -e\nmount --bind {root} {root}\n");
    for mount in mounts {
        script.push_str(&match mount {
            Mount::Bind(from, to) => format!("mount --bind {} {root}{to}\n", from.display()),
            Mount::ReadOnly(from, to) => {
                format!("mount --bind {} {root}{to}\nmount -o remount,bind,ro {root}{to}\n", from.display())
            }
        });
    }
    script.push_str(&format!(
        "mount --rbind /proc {root}/proc\nmount --rbind /dev {root}/dev\nmount -t sysfs sysfs {root}/sys
mount -t bpf bpf {root}/sys/fs/bpf\n"
    ));
    if read_only {
        script.push_str(&format!("mount -o remount,bind,ro {root}\n"));
    }
    let reduce = match capabilities {
        [] => String::new(),
        capabilities => format!("setpriv --bounding-set -all,{} --inh-caps -all", capabilities.join(",")),
    };
    script.push_str(&format!("exec chroot {root} {reduce} \"$@\"\n"));
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh"]).args(words);
    command.env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin");
    netns::enter(&mut command, namespace)?;
    Ok(command)
}

/// As setpriv calls it.
fn capability(name: &str) -> Result<String> {
    let name = name.strip_prefix("CAP_").with_context(|| format!("{name} is no capability"))?;
    Ok(format!("+{}", name.to_ascii_lowercase()))
}
