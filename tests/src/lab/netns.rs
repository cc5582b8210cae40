//! Network namespaces by name: created, entered, removed. The machine's own network is never touched.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};

pub fn path(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

pub fn exists(name: &str) -> bool {
    path(name).exists()
}

pub fn inode(name: &str) -> Result<u64> {
    Ok(fs::metadata(path(name)).with_context(|| format!("namespace {name}"))?.ino())
}

/// Names of all namespaces that begin with `prefix`.
pub fn list(prefix: &str) -> Vec<String> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| name.starts_with(prefix));
    names.sort();
    names
}

pub fn create(name: &str) -> Result<()> {
    run("ip", &["netns", "add", name])?;
    ip(name, "link set lo up\n")
}

/// Removes the namespace with all its devices. Nothing happens if there is none.
pub fn delete(name: &str) -> Result<()> {
    if exists(name) {
        run("ip", &["netns", "delete", name])?;
    }
    Ok(())
}

/// Runs a batch of `ip` commands inside a namespace.
pub fn ip(name: &str, batch: &str) -> Result<()> {
    let mut child = Command::new("ip")
        .args(["-netns", name, "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("start ip (Debian package iproute2)")?;
    child.stdin.take().expect("piped").write_all(batch.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("ip in namespace {name}: {}\n{batch}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Takes a device up or down at once: no program is started, so that a fault happens at the moment of the call.
pub fn set_link(name: &str, device: &str, up: bool) -> Result<()> {
    inside(name, || {
        // SAFETY: plain system calls with a structure that outlives them; the descriptor is ours alone.
        unsafe {
            let raw = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
            if raw < 0 {
                bail!("socket: {}", std::io::Error::last_os_error());
            }
            let socket = OwnedFd::from_raw_fd(raw);
            let mut request: libc::ifreq = std::mem::zeroed();
            let bytes = device.bytes().map(|byte| byte as libc::c_char);
            request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(bytes).for_each(|(to, byte)| *to = byte);
            let mut asked = libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request);
            if asked == 0 {
                let flag = libc::IFF_UP as libc::c_short;
                request.ifr_ifru.ifru_flags =
                    if up { request.ifr_ifru.ifru_flags | flag } else { request.ifr_ifru.ifru_flags & !flag };
                asked = libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request);
            }
            if asked != 0 {
                bail!("device {device} in {name}: {}", std::io::Error::last_os_error());
            }
        }
        Ok(())
    })
}

/// Sets keys below /proc/sys/net of a namespace; keys that this kernel does not have are left out.
pub fn sysctl(name: &str, settings: &[(&str, &str)]) -> Result<()> {
    inside(name, || {
        for (key, value) in settings {
            let file = Path::new("/proc/sys/net").join(key);
            if file.exists() {
                fs::write(&file, value).with_context(|| format!("sysctl {} = {value}", file.display()))?;
            }
        }
        Ok(())
    })
}

/// Runs a closure on a thread of its own inside the namespace (namespaces belong to threads).
pub fn inside<T: Send>(name: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let handle = open(name)?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            setns(&handle, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter namespace {name}"))?;
            work()
        });
        thread.join().map_err(|_| anyhow!("the thread in namespace {name} panicked"))?
    })
}

/// Makes a command run inside the namespace. It is the program itself that gets the pid and the signals.
pub fn enter(command: &mut Command, name: &str) -> Result<()> {
    let handle = open(name)?;
    // SAFETY: setns is a plain system call and async-signal-safe; the handle lives in the closure.
    unsafe {
        command.pre_exec(move || setns(&handle, CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from));
    }
    Ok(())
}

/// Runs a program to its end; its error output becomes the error.
pub fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {program}: is it installed?"))?;
    if !output.status.success() {
        bail!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn open(name: &str) -> Result<File> {
    File::open(path(name)).with_context(|| format!("namespace {name}"))
}
