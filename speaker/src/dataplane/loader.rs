//! Loads the packet path, pins its maps, attaches it to the uplink and replaces it atomically on a restart.
//!
//! Layout of the pin directory: `maps-v<ABI>/<MAP>` and `link-<interface>`. The link stands outside the versioned directory:
//! a speaker with another map layout replaces the program in one step and leaves no gap. The link is never detached on exit;
//! only `uninstall` removes it.
//!
//! A host speaker (docs/decisions/0016) has `next` too: the speaker that serves beside it puts its program there, and pins its own maps in a
//! directory of its own.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use aya::maps::{Map, MapData, ProgramArray};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use ebpf_common::{ABI_VERSION, CHAIN_PROGRAM, PROGRAM, map};
use ebpf_object::link;
use speaker_core::backend::Place;

use super::maps;

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
    /// Of the speaker that has the link.
    root: PathBuf,
    place: Place,
}

impl Pins {
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_path_buf(), place: Place::Alone }
    }

    /// `self`: as if the speaker were alone.
    pub fn at(self, place: Place) -> Self {
        Self { place, ..self }
    }

    pub fn place(&self) -> Place {
        self.place
    }

    /// The host speaker has, or had, a program that leaves to another what is not its own.
    pub fn have_next(&self) -> bool {
        self.next().exists()
    }

    /// Nothing of any version is pinned: this is the first speaker since the node booted, which empties the BPF file system, or ever.
    pub fn are_new(&self) -> bool {
        fs::read_dir(self.own()).map_or(true, |mut entries| entries.next().is_none())
    }

    /// Anything of this speaker, or that one left behind in its place.
    pub fn are_there(&self) -> bool {
        self.own().exists() || self.place == Place::Alone && self.of_second().exists()
    }

    pub fn map(&self, name: &str) -> PathBuf {
        self.maps_dir().join(name)
    }

    fn maps_dir(&self) -> PathBuf {
        self.own().join(format!("{MAPS_DIR}{ABI_VERSION}"))
    }

    /// Where this speaker's maps are.
    fn own(&self) -> PathBuf {
        match self.place {
            Place::Alone | Place::First => self.root.clone(),
            Place::Second => self.of_second(),
        }
    }

    /// Beside the other one, which is removed whole.
    fn of_second(&self) -> PathBuf {
        let mut path = self.root.clone().into_os_string();
        path.push("-services");
        path.into()
    }

    fn next(&self) -> PathBuf {
        self.root.join("next")
    }

    fn link(&self, interface: &str) -> PathBuf {
        self.root.join(format!("link-{interface}"))
    }
}

/// The loaded program, its maps pinned.
pub struct Loaded {
    ebpf: Ebpf,
    /// Which program of the object, and its number in the kernel.
    program: &'static str,
    id: u32,
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
    if pins.place == Place::First {
        loader.map_pin_path(map::NEXT, pins.next());
    }
    let mut ebpf = loader.load(object).context("load the packet path's maps")?;
    let program = load_program(&mut ebpf, pins)?;
    let id = xdp(&mut ebpf, program)?.info().context("the packet path's number")?.id();
    Ok(Loaded { ebpf, program, id, pins: pins.clone() })
}

/// A host speaker serves also where no other can serve beside it.
fn load_program(ebpf: &mut Ebpf, pins: &Pins) -> Result<&'static str> {
    if pins.place == Place::First {
        match xdp(ebpf, CHAIN_PROGRAM)?.load() {
            Ok(()) => return Ok(CHAIN_PROGRAM),
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::new(error));
                tracing::warn!(
                    error,
                    "the DaemonSet's speaker cannot serve beside this one: the kernel refused a program that calls another"
                );
                fs::remove_file(pins.next()).with_context(|| format!("remove {}", pins.next().display()))?;
            }
        }
    }
    xdp(ebpf, PROGRAM)?.load().context("the kernel's verifier refused the packet path")?;
    Ok(PROGRAM)
}

impl Loaded {
    /// Where the speaker's place is. Of two, the second one's program is called by the first one's.
    pub fn attach(&mut self, interface: &str) -> Result<Attached> {
        match self.pins.place {
            Place::Alone | Place::First => self.attach_to(interface),
            Place::Second => self.join(interface),
        }
    }

    fn join(&mut self, interface: &str) -> Result<Attached> {
        let first = self.pins.link(interface);
        // 0: it was detached.
        if link::interface_of(&first)
            .with_context(|| format!("read {}", first.display()))?
            .is_none_or(|index| index == 0)
        {
            bail!(
                "no packet path of the host speaker is attached to {interface} ({}): has it started, there?",
                first.display()
            );
        }
        let path = self.pins.next();
        let shown = path.display();
        let before = link::program_in(&path).with_context(|| format!("read {shown}"))?;
        let array = MapData::from_pin(&path).with_context(|| format!("open {shown}: has the host speaker started?"))?;
        let mut array = ProgramArray::try_from(Map::ProgramArray(array)).with_context(|| shown.to_string())?;
        let program = xdp(&mut self.ebpf, self.program)?.fd().context("the packet path is not loaded")?;
        array
            .set(0, program, 0)
            .with_context(|| format!("put the packet path behind the host speaker's, in {shown}"))?;
        Ok(if before.is_some() { Attached::Replaced } else { Attached::New })
    }

    /// Attaches to the interface in native mode, or replaces the program of our own pinned link. The pin is the only reference to
    /// the link: removing it detaches, and the check a moment later attaches anew ([`Loaded::is_attached`]).
    fn attach_to(&mut self, interface: &str) -> Result<Attached> {
        let path = self.pins.link(interface);
        let program = xdp(&mut self.ebpf, self.program)?;
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

    /// Whether the pinned link is there and attached to the interface with this index, and this program gets its frames. Two system calls,
    /// of a second speaker four.
    pub fn is_attached(&self, interface: &str, ifindex: u32) -> io::Result<bool> {
        let linked = link::interface_of(&self.pins.link(interface))? == Some(ifindex);
        Ok(linked && (self.pins.place != Place::Second || link::program_in(&self.pins.next())? == Some(self.id)))
    }

    /// What a second speaker must leave to the first one.
    pub fn vips_of_first(&self) -> Result<BTreeSet<Ipv4Addr>> {
        if self.pins.place == Place::Second { maps::vips_of_first(&self.pins) } else { Ok(BTreeSet::new()) }
    }

    /// Removes the maps of other versions, and those that a speaker of this node had beside a host speaker that is gone: nothing uses them
    /// once the program is replaced.
    pub fn forget_other_versions(&self) -> Result<()> {
        let own = self.pins.maps_dir();
        let root = self.pins.own();
        for entry in fs::read_dir(&root).with_context(|| format!("list {}", root.display()))? {
            let path = entry?.path();
            let maps = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(MAPS_DIR));
            if maps && path != own {
                fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
                tracing::info!(path = %path.display(), "maps of another version removed");
            }
        }
        if self.pins.place == Place::Alone {
            remove_all(&self.pins.of_second())?;
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    New,
    Replaced,
}

/// Removes links and maps of every version. What is the other's of two speakers stays.
pub fn uninstall(pins: &Pins) -> Result<()> {
    match pins.place {
        Place::Alone => remove_all(&pins.of_second()).and(remove_all(&pins.root)),
        Place::First => remove_all(&pins.root),
        Place::Second => leave(pins).and(remove_all(&pins.of_second())),
    }
}

/// The first speaker's program calls no other any more.
fn leave(pins: &Pins) -> Result<()> {
    let path = pins.next();
    let shown = path.display();
    if link::program_in(&path).with_context(|| format!("read {shown}"))?.is_none() {
        return Ok(());
    }
    let array = MapData::from_pin(&path).with_context(|| format!("open {shown}"))?;
    let mut array = ProgramArray::try_from(Map::ProgramArray(array)).with_context(|| shown.to_string())?;
    array.clear_index(&0).with_context(|| format!("empty {shown}"))
}

fn remove_all(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("remove {}", dir.display())),
    }
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?;
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
