//! Chains of `iptables-legacy`: xtables' own tables, which nftables neither has nor shows.
//!
//! Read first: kernel include/uapi/linux/netfilter_ipv4/ip_tables.h (`ipt_getinfo`, `ipt_get_entries`). A chain begins with an entry
//! whose target is `ERROR` and holds the chain's name; jumps are offsets.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;

use socket2::{Domain, Protocol, Socket, Type};

use super::accept_mark::one_bit;

/// Whether this thread's network namespace has the table. Whoever asks for one that is not listed makes it.
pub fn has_table(proc: &Path, table: &str) -> io::Result<bool> {
    match fs::read_to_string(proc.join("thread-self/net/ip_tables_names")) {
        Ok(tables) => Ok(tables.lines().any(|name| name == table)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// A table of this thread's network namespace.
pub struct Table {
    info: [u8; INFO],
    entries: Vec<u8>,
}

impl Table {
    /// Needs the capabilities NET_ADMIN and NET_RAW.
    pub fn read(table: &str) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
        let mut info = [0; INFO];
        info[..table.len()].copy_from_slice(table.as_bytes());
        ask(socket.as_raw_fd(), GET_INFO, &mut info)?;
        let size = info[INFO - 4..].try_into().map(u32::from_ne_bytes).unwrap_or_default();
        if size as usize > MAX_SIZE {
            return Err(io::Error::other(format!("table {table} has {size} bytes; {MAX_SIZE} are read at most")));
        }
        let mut entries = vec![0; ENTRIES + size as usize];
        entries[..table.len()].copy_from_slice(table.as_bytes());
        entries[NAME..NAME + 4].copy_from_slice(&size.to_ne_bytes());
        ask(socket.as_raw_fd(), GET_ENTRIES, &mut entries)?;
        Ok(Self { info, entries })
    }

    pub fn has_chain(&self, chain: &str) -> bool {
        let head = [ERROR_TARGET, chain.as_bytes(), b"\0"].concat();
        self.entries.windows(head.len()).any(|window| window == head)
    }

    /// The mark by which a rule of the chain accepts packets.
    pub fn accepted_mark(&self, chain: &str) -> Option<u32> {
        let name = |target: &[u8], name: &[u8]| target.get(2..2 + name.len()) == Some(name);
        let head = [ERROR_TARGET, chain.as_bytes(), b"\0"].concat();
        let (mut rest, mut within) = (self.entries.get(ENTRIES..)?, false);
        while let Some(next) = short(rest, NEXT_AT).filter(|next| *next >= ENTRY) {
            let entry = rest.get(..next)?;
            let target = entry.get(short(entry, TARGET_AT)?..)?;
            if name(target, b"ERROR\0") {
                within = name(target, &head);
            } else if within && number(target, TARGET) == Some(ACCEPT) && name(target, b"\0") {
                let found =
                    matches(entry).find_map(|one| name(one, b"mark\0").then(|| one_bit(one.get(MATCH..)?)).flatten());
                if found.is_some() {
                    return found;
                }
            }
            rest = rest.get(next..)?;
        }
        None
    }

    /// Whether the policy of its chain FORWARD is drop: the last entry of a base chain, which the kernel calls its underflow.
    pub fn drops_forwarded(&self) -> bool {
        let entry = || {
            let at = number(&self.info, UNDERFLOWS + 4 * FORWARD)? as usize;
            let entry = self.entries.get(ENTRIES..)?.get(at..)?;
            let target = u16::from_ne_bytes(entry.get(TARGET_AT..TARGET_AT + 2)?.try_into().ok()?);
            number(entry, usize::from(target) + TARGET)
        };
        entry() == Some(DROP)
    }
}

/// The matches of an entry, each with its head.
fn matches(entry: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = short(entry, TARGET_AT).and_then(|target| entry.get(ENTRY..target)).unwrap_or_default();
    core::iter::from_fn(move || {
        let size = short(rest, 0).filter(|size| *size >= MATCH)?;
        let (one, others) = rest.split_at_checked(size)?;
        rest = others;
        Some(one)
    })
}

fn short(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?).into())
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn ask(socket: RawFd, what: libc::c_int, buffer: &mut [u8]) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `length` bytes, and the buffer has as many.
    let result =
        unsafe { libc::getsockopt(socket, libc::IPPROTO_IP, what, buffer.as_mut_ptr().cast(), &raw mut length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// IPT_SO_GET_INFO and IPT_SO_GET_ENTRIES.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
/// XT_TABLE_MAXNAMELEN.
const NAME: usize = 32;
/// `ipt_getinfo`: name, hooks, five entries, five underflows, number, size.
const INFO: usize = NAME + 4 * 13;
/// In `ipt_getinfo`, behind name, hooks and entries.
const UNDERFLOWS: usize = NAME + 4 + 4 * 5;
/// NF_INET_FORWARD.
const FORWARD: usize = 2;
/// In `ipt_entry`, behind `ipt_ip` and `nfcache`: where the target begins, from the begin of the entry.
const TARGET_AT: usize = 84 + 4;
/// And the next entry, likewise.
const NEXT_AT: usize = 84 + 6;
/// `ipt_entry`: the matches are behind it.
const ENTRY: usize = 112;
/// `xt_entry_match`: what it compares with is behind it.
const MATCH: usize = 32;
/// `xt_entry_target`: the verdict is behind it.
const TARGET: usize = 32;
/// -NF_ACCEPT - 1.
const ACCEPT: u32 = u32::MAX - 1;
/// -NF_DROP - 1.
const DROP: u32 = u32::MAX;
/// `ipt_get_entries`: name, size, and what aligns the entries to eight bytes.
const ENTRIES: usize = NAME + 8;
/// The end of `xt_entry_target`'s name and its revision, before the chain's name: 29 bytes from offset 2.
const ERROR_TARGET: &[u8] = b"ERROR\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
/// kube-proxy's share of the filter table is one rule for each port without endpoint.
const MAX_SIZE: usize = 16 << 20;
