//! Loads the packet path, pins its maps, attaches it to the uplink and replaces it atomically on a restart.
//!
//! Layout of the pin directory: `maps-v<ABI>/<MAP>` and `link-<interface>`. The link stands outside the versioned directory:
//! a speaker with another map layout replaces the program in one step and leaves no gap. The link is never detached on exit;
//! only `uninstall` removes it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use ebpf_common::{ABI_VERSION, PROGRAM, map};

pub const MAPS: [&str; 14] = [
    map::CONFIG,
    map::LEASE,
    map::OWN,
    map::VIPS,
    map::NODE_ADDRESSES,
    map::SERVICES,
    map::SOURCE_RANGES,
    map::DENIED,
    map::SERVICE_COUNTERS,
    map::FRAGMENTS,
    map::RINGS,
    map::NODES,
    map::PEERS,
    map::COUNTERS,
];

/// Directory of pinned maps, before the version.
const MAPS_DIR: &str = "maps-v";

/// Where things are pinned.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_path_buf() }
    }

    /// Nothing of any version is pinned: this is the first speaker since the node booted, which empties the BPF file system, or ever.
    pub fn are_new(&self) -> bool {
        fs::read_dir(&self.root).map_or(true, |mut entries| entries.next().is_none())
    }

    pub fn map(&self, name: &str) -> PathBuf {
        self.maps_dir().join(name)
    }

    fn maps_dir(&self) -> PathBuf {
        self.root.join(format!("{MAPS_DIR}{ABI_VERSION}"))
    }

    fn link(&self, interface: &str) -> PathBuf {
        self.root.join(format!("link-{interface}"))
    }
}

/// The loaded program, its maps pinned.
pub struct Loaded {
    ebpf: Ebpf,
    pins: Pins,
}

/// Loads the program. Pinned maps of this ABI version are taken over with what they hold; one that an earlier speaker did not have is
/// made.
pub fn load(pins: &Pins) -> Result<Loaded> {
    let object = ebpf_object::object()?;
    let dir = pins.maps_dir();
    fs::create_dir_all(&dir).with_context(|| {
        format!("create {}: is a BPF file system mounted at or above {}?", dir.display(), pins.root.display())
    })?;
    let mut loader = EbpfLoader::new();
    for name in MAPS {
        loader.map_pin_path(name, pins.map(name));
    }
    let mut ebpf = loader.load(object).context("load the packet path's maps")?;
    let program = xdp(&mut ebpf)?;
    program.load().context("the kernel's verifier refused the packet path")?;
    Ok(Loaded { ebpf, pins: pins.clone() })
}

impl Loaded {
    /// Attaches to the interface in native mode, or replaces the program of our own pinned link. The pin is the only reference to
    /// the link: removing it detaches, and the check a moment later attaches anew ([`Loaded::is_attached`]).
    pub fn attach(&mut self, interface: &str) -> Result<Attached> {
        let path = self.pins.link(interface);
        let program = xdp(&mut self.ebpf)?;
        match PinnedLink::from_pin(&path) {
            Ok(pinned) => {
                let link = XdpLink::try_from(FdLink::from(pinned)).context("the pinned link is no XDP link")?;
                match program.attach_to_link(link) {
                    Ok(id) => {
                        drop(program.take_link(id).context("let go of the pinned link")?);
                        return Ok(Attached::Replaced);
                    }
                    // Detached by force, or its device is gone (ENOLINK): a new link.
                    Err(error) => {
                        tracing::warn!(error = format!("{:#}", anyhow::Error::new(error)), path = %path.display(), "pinned link unusable; attaching anew");
                        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
                    }
                }
            }
            Err(error) if path.exists() => bail!("open the pinned link {}: {error}", path.display()),
            Err(_) => {}
        }
        let id = program.attach(interface, XdpMode::Driver).map_err(|error| explain(error, interface))?;
        let link = program.take_link(id).context("take the new link")?;
        let link = FdLink::try_from(link).context("this kernel attached without a bpf_link: 5.9 or newer is needed")?;
        link.pin(&path).with_context(|| format!("pin the link at {}", path.display()))?;
        Ok(Attached::New)
    }

    /// Whether the pinned link is there and attached to the interface with this index. Two system calls.
    pub fn is_attached(&self, interface: &str, ifindex: u32) -> io::Result<bool> {
        ebpf_object::link::interface_of(&self.pins.link(interface)).map(|attached| attached == Some(ifindex))
    }

    /// Removes the maps of other versions: nothing uses them once the program is replaced.
    pub fn forget_other_versions(&self) -> Result<()> {
        let own = self.pins.maps_dir();
        for entry in fs::read_dir(&self.pins.root).with_context(|| format!("list {}", self.pins.root.display()))? {
            let path = entry?.path();
            let maps = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(MAPS_DIR));
            if maps && path != own {
                fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
                tracing::info!(path = %path.display(), "maps of another version removed");
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    New,
    Replaced,
}

/// Removes links and maps of every version.
pub fn uninstall(pins: &Pins) -> Result<()> {
    match fs::remove_dir_all(&pins.root) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("remove {}", pins.root.display())),
    }
}

fn xdp(ebpf: &mut Ebpf) -> Result<&mut Xdp> {
    let program = ebpf.program_mut(PROGRAM).with_context(|| format!("the object has no program {PROGRAM}"))?;
    program.try_into().context("the packet path is no XDP program")
}

fn explain(error: ProgramError, interface: &str) -> anyhow::Error {
    let code = match &error {
        ProgramError::SyscallError(syscall) => syscall.io_error.raw_os_error(),
        _ => None,
    };
    let hint = match code {
        Some(libc::EBUSY | libc::EEXIST) => {
            "another XDP program is attached there, which Sheave does not detach: remove it (ip link show dev, ip link set \
             dev … xdp off), or name another uplink with --interface"
        }
        Some(libc::EOPNOTSUPP) => "the driver has no native XDP",
        Some(libc::EPERM) => "capabilities BPF and NET_ADMIN are needed",
        _ => "see the kernel's message",
    };
    anyhow::Error::new(error).context(format!("attach the packet path to {interface}: {hint}"))
}
