//! Kernel settings that the backend needs, while the speaker runs the node; put back at uninstall.
//!
//! ICMP redirects off: a packet that is still addressed to a VIP is routed back out of the uplink until the guard refuses it. The
//! kernel would send the client a redirect first (net/ipv4/ip_forward.c: `ip_rt_send_redirect` runs before the forward hook). A
//! redirect is sent if the setting of the interface or of `all` allows it (`IN_DEV_TX_REDIRECTS`), so both are set.
//!
//! `nf_conntrack_tcp_loose` on, as it is by default: only then does conntrack distinguish a segment of an unknown flow (new) from
//! a segment that contradicts a known flow (invalid). The first is searched for and reset if no node has the flow; the second
//! must not be, so with the setting off clients of lost flows would get no reset.
//!
//! ARP for VIPs, beside kube-proxy in IPVS mode: it gives every VIP to a device of every node, so each node's kernel would answer ARP for
//! all of them once our program does not, and ask for neighbors with a VIP as its own address, which moves the VIP in their tables. So
//! `arp_ignore` 1 and `arp_announce` 2, of `all` (the larger value of `all` and the interface counts), as kube-proxy's own
//! `--ipvs-strict-arp`. Stricter values stay.
//!
//! The values found are kept in a file until uninstall. They are written down before anything is changed and never again in
//! the same boot, so that a restarted speaker does not take its own value for the original. After a reboot the kernel has
//! its own values back and they are read anew.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

#[derive(Clone, Debug)]
pub struct Sysctls {
    base: PathBuf,
    file: PathBuf,
    boot_id: PathBuf,
}

#[derive(Debug, Error)]
#[error("{action} {path}: {source}")]
pub struct SysctlError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// The state file.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct SavedSysctls {
    boot_id: String,
    /// Path below the base -> the value found.
    original: BTreeMap<String, String>,
}

impl Sysctls {
    /// `base`: where the node's `/proc/sys/net` is writable. `file`: outlives the pod.
    pub fn new(base: impl Into<PathBuf>, file: impl Into<PathBuf>) -> Self {
        Self { base: base.into(), file: file.into(), boot_id: "/proc/sys/kernel/random/boot_id".into() }
    }

    /// Idempotent. Returns what had to be changed, as paths below the base.
    pub fn disable_redirects(&self, uplink: &str) -> Result<Vec<String>, SysctlError> {
        self.set(&["all", uplink].map(|device| format!("ipv4/conf/{device}/{REDIRECTS}")))
    }

    /// Idempotent, as above. While the kernel has no conntrack there is nothing to set: it begins with the value that we need.
    pub fn require_tcp_loose(&self) -> Result<Vec<String>, SysctlError> {
        match self.set(&[TCP_LOOSE.into()]) {
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            outcome => outcome,
        }
    }

    /// Idempotent, as above. VIPs are addresses of this host.
    pub fn hide_local_vips(&self) -> Result<Vec<String>, SysctlError> {
        self.set(&[ARP_IGNORE, ARP_ANNOUNCE].map(|name| format!("ipv4/conf/all/{name}")))
    }

    /// Restores the settings that are still as we left them, and deletes the file. Settings that a third party has changed since,
    /// and interfaces that are gone, stay as they are.
    pub fn restore(&self) -> Result<Vec<String>, SysctlError> {
        let saved = self.load()?;
        let mut restored = Vec::new();
        for (name, value) in &saved.original {
            match self.read(name) {
                Ok(now) if now == needed(name) => {
                    self.write(name, value)?;
                    restored.push(name.clone());
                }
                Ok(_) => {}
                Err(error) if error.source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        match fs::remove_file(&self.file) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(failed("remove", &self.file)(source)),
            _ => Ok(restored),
        }
    }

    fn set(&self, names: &[String]) -> Result<Vec<String>, SysctlError> {
        let mut saved = self.load()?;
        let mut differing = Vec::new();
        for name in names {
            let value = self.read(name)?;
            if !suffices(name, &value) {
                saved.original.entry(name.clone()).or_insert(value);
                differing.push(name.clone());
            }
        }
        if !differing.is_empty() {
            self.store(&saved)?;
        }
        for name in &differing {
            self.write(name, needed(name))?;
        }
        Ok(differing)
    }

    /// What this boot's first speaker found. An unreadable file counts as none: worse than forgetting were not to start.
    fn load(&self) -> Result<SavedSysctls, SysctlError> {
        let boot_id = fs::read_to_string(&self.boot_id).map_err(failed("read", &self.boot_id))?.trim().to_owned();
        let saved = match fs::read(&self.file) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(path = %self.file.display(), %error, "file of original sysctls unreadable; uninstall will not restore them");
                SavedSysctls::default()
            }),
            Err(source) if source.kind() == io::ErrorKind::NotFound => SavedSysctls::default(),
            Err(source) => return Err(failed("read", &self.file)(source)),
        };
        if saved.boot_id == boot_id {
            return Ok(saved);
        }
        Ok(SavedSysctls { boot_id, original: BTreeMap::new() })
    }

    /// Whole or not at all.
    fn store(&self, saved: &SavedSysctls) -> Result<(), SysctlError> {
        let text = serde_json::to_vec(saved).map_err(io::Error::from).map_err(failed("write", &self.file))?;
        let new = self.file.with_extension("new");
        if let Some(parent) = self.file.parent() {
            fs::create_dir_all(parent).map_err(failed("create", parent))?;
        }
        let mut file = fs::File::create(&new).map_err(failed("create", &new))?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed("write", &new))?;
        fs::rename(&new, &self.file).map_err(failed("rename", &new))
    }

    fn read(&self, name: &str) -> Result<String, SysctlError> {
        let path = self.base.join(name);
        Ok(fs::read_to_string(&path).map_err(failed("read", &path))?.trim().to_owned())
    }

    fn write(&self, name: &str, value: &str) -> Result<(), SysctlError> {
        let path = self.base.join(name);
        fs::write(&path, value).map_err(failed("write", &path))
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SysctlError {
    let path = path.to_owned();
    move |source| SysctlError { action, path, source }
}

/// What a setting is set to.
fn needed(name: &str) -> &'static str {
    match name.rsplit('/').next() {
        Some(ARP_ANNOUNCE) => "2",
        Some(ARP_IGNORE) => "1",
        _ if name == TCP_LOOSE => "1",
        _ => "0",
    }
}

/// `arp_ignore` 2 and 8 answer for even fewer addresses than 1 (kernel Documentation/networking/ip-sysctl.rst).
fn suffices(name: &str, value: &str) -> bool {
    value == needed(name) || (name.ends_with(ARP_IGNORE) && ["2", "8"].contains(&value))
}

const REDIRECTS: &str = "send_redirects";
const ARP_IGNORE: &str = "arp_ignore";
const ARP_ANNOUNCE: &str = "arp_announce";
const TCP_LOOSE: &str = "netfilter/nf_conntrack_tcp_loose";

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that looks like /proc/sys/net, removed at the end.
    struct Fake(PathBuf);

    impl Fake {
        fn new(name: &str, all: &str, uplink: &str) -> Self {
            let fake = Self(std::env::temp_dir().join(format!("sheave-sysctl-{}-{name}", std::process::id())));
            fs::create_dir_all(&fake.0).unwrap();
            fs::write(fake.0.join("boot_id"), "boot 1\n").unwrap();
            fake.set("all", all);
            fake.set("eth0.5", uplink);
            fake
        }
        fn set(&self, device: &str, value: &str) {
            let directory = self.0.join("net/ipv4/conf").join(device);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("send_redirects"), format!("{value}\n")).unwrap();
        }
        fn get(&self, device: &str) -> String {
            let path = self.0.join("net/ipv4/conf").join(device).join("send_redirects");
            fs::read_to_string(path).unwrap().trim().to_owned()
        }
        fn both(&self) -> [String; 2] {
            [self.get("all"), self.get("eth0.5")]
        }
        fn sysctls(&self) -> Sysctls {
            let (base, file) = (self.0.join("net"), self.0.join("state/sysctl.json"));
            Sysctls { base, file, boot_id: self.0.join("boot_id") }
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn restarts_do_not_forget_the_originals() {
        let fake = Fake::new("restart", "1", "1");
        assert_eq!(fake.sysctls().disable_redirects("eth0.5").unwrap().len(), 2);
        assert_eq!(fake.both(), ["0", "0"]);
        assert_eq!(fake.sysctls().disable_redirects("eth0.5").unwrap(), Vec::<String>::new());
        // A third party turned one on again: off, and the first original stays.
        fake.set("all", "1");
        assert_eq!(fake.sysctls().disable_redirects("eth0.5").unwrap().len(), 1);
        assert_eq!(fake.sysctls().restore().unwrap().len(), 2);
        assert_eq!(fake.both(), ["1", "1"]);
        assert_eq!(fake.sysctls().restore().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn what_was_off_stays_off_also_after_a_reboot() {
        let fake = Fake::new("off", "0", "1");
        fake.sysctls().disable_redirects("eth0.5").unwrap();
        // Reboot; the administrator has turned it off meanwhile.
        fs::write(fake.0.join("boot_id"), "boot 2\n").unwrap();
        assert_eq!(fake.sysctls().disable_redirects("eth0.5").unwrap(), Vec::<String>::new());
        assert_eq!(fake.sysctls().restore().unwrap(), Vec::<String>::new());
        assert_eq!(fake.both(), ["0", "0"]);
    }

    #[test]
    fn unknown_flows_are_distinguished_from_invalid_ones() {
        let fake = Fake::new("loose", "1", "0");
        assert_eq!(fake.sysctls().require_tcp_loose().unwrap(), Vec::<String>::new(), "no conntrack yet");
        let file = fake.0.join("net").join(TCP_LOOSE);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "0\n").unwrap();
        fake.sysctls().disable_redirects("eth0.5").unwrap();
        assert_eq!(fake.sysctls().require_tcp_loose().unwrap(), [TCP_LOOSE]);
        assert_eq!(fs::read_to_string(&file).unwrap(), "1");
        assert_eq!(fake.sysctls().require_tcp_loose().unwrap(), Vec::<String>::new());
        assert_eq!(fake.sysctls().restore().unwrap().len(), 2);
        assert_eq!((fs::read_to_string(&file).unwrap().as_str(), fake.get("all").as_str()), ("0", "1"));
    }

    /// The effect: `io/tests.rs`.
    #[test]
    fn a_stricter_arp_setting_stays() {
        let fake = Fake::new("arp", "1", "1");
        let file = |name: &str| fake.0.join("net/ipv4/conf/all").join(name);
        for (ignore, announce, changed) in [("2", "2", 0), ("8", "0", 1), ("3", "1", 2)] {
            fs::write(file(ARP_IGNORE), ignore).unwrap();
            fs::write(file(ARP_ANNOUNCE), announce).unwrap();
            assert_eq!(fake.sysctls().hide_local_vips().unwrap().len(), changed, "{ignore} {announce}");
            assert_eq!(fs::read_to_string(file(ARP_ANNOUNCE)).unwrap(), "2");
            assert_eq!(fake.sysctls().restore().unwrap().len(), changed);
            assert_eq!(fs::read_to_string(file(ARP_IGNORE)).unwrap(), ignore);
            assert_eq!(fs::read_to_string(file(ARP_ANNOUNCE)).unwrap(), announce);
        }
    }

    #[test]
    fn a_broken_file_and_a_missing_interface() {
        let fake = Fake::new("broken", "1", "1");
        fs::create_dir_all(fake.0.join("state")).unwrap();
        fs::write(fake.0.join("state/sysctl.json"), "{").unwrap();
        assert_eq!(fake.sysctls().disable_redirects("eth0.5").unwrap().len(), 2);
        let error = fake.sysctls().disable_redirects("eth9").unwrap_err();
        assert!(error.to_string().contains("eth9"), "{error}");
        fs::remove_dir_all(fake.0.join("net/ipv4/conf/eth0.5")).unwrap();
        assert_eq!(fake.sysctls().restore().unwrap(), vec!["ipv4/conf/all/send_redirects"]);
    }
}
