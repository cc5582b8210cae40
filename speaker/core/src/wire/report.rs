//! Flow reports over UDP: one small datagram each second, and the rows in parts when they change or on request.
//!
//! Read first: docs/decisions/0008. All numbers in network byte order.
//!
//! ```text
//!  0 "SHVH" | 4 version of the format | 5 kind (1 summary, 2 part, 3 starts, 4 health, 5 totals)
//!  6 flags (1: requests reports; 2: partial; 4: asks for unicast) | 7 key id
//!  8 cluster (8) | 16 epoch (8) | 24 sequence (8), higher in each datagram of an epoch
//! 32 version of the report (8; 0: none yet) | 40 digest of the table (8) | 48 digest of the view (8; 0: none yet)
//! 56 age in milliseconds (4) | 60 part (2), from 0 | 62 parts (2; 0: no rows) | 64 name length | 65 reserved (3) | 68 name
//! part: a piece of the list of sections; the list is all parts, one after the other
//! starts: for each new pod of the sender address (4) | port (2) | 1 if it has started, else 0 (1); in order
//! health: flags (1; 1: reaches a member, 2: has given up ownership, 4: drains, 8: checks, 16: connections) | drains | checks | connections |
//!         for each member's port that the sender checks for all: address (4) | port (2) | 1 if it answers, else 0 (1); in order
//!         drains, checks, connections, each if its flag says so: how many (1) | that many, in order (health.rs beside this file)
//! totals: some of the sender's totals of members, in order (totals.rs beside this file)
//! section: address (4) | port (2) | protocol (1) | form (1; 1 list, 2 bits) | rows of the ring (2) | length (2) | rows
//! MAC (32): HMAC-SHA256 of everything before it
//! ```
//!
//! A speaker before 2026-12 does not know kinds 3 to 5. It counts a datagram of a kind that it does not know as malformed, keeps nothing
//! of it, and takes the summary that is sent beside it. So what is new gets a kind of its own: an unknown flag would cost it the report.

mod health;
mod totals;

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use ebpf_common::{MAX_ROWS, MAX_SERVICES, ServiceKey};

use super::advert::MAX_DATAGRAM;
pub use super::reject::Reject;
use super::seal::MAC_LEN;
pub use super::seal::{Key, Keyring};
use crate::health::Report;
use crate::health::totals::Totals;
use crate::name::NodeName;
use crate::reports::Rows;
use crate::startup::{Starts, Target};
use health::{decode_health, encode_health};
pub use totals::MAX_TOTALS;
use totals::{decode_totals, encode_totals};

/// Bytes of the list of sections of one node. What does not fit is left out, and the report is marked partial.
pub const MAX_LIST: usize = 1 << 20;
/// Parts of it, beside the longest name.
pub const MAX_PARTS: usize = MAX_LIST.div_ceil(piece_len(NodeName::MAX_LEN));

pub const VERSION: u8 = 1;
const MAGIC: [u8; 4] = *b"SHVH";
const KIND_SUMMARY: u8 = 1;
const KIND_PART: u8 = 2;
const KIND_STARTS: u8 = 3;
const KIND_HEALTH: u8 = 4;
const KIND_TOTALS: u8 = 5;
const FLAG_REQUEST: u8 = 1;
const FLAG_PARTIAL: u8 = 2;
const FLAG_ASKS: u8 = 4;
const NAME: usize = 68;

const SECTION: usize = 12;
const FORM_LIST: u8 = 1;
const FORM_BITS: u8 = 2;

/// Bytes of the list that go into one datagram beside a name of this length.
pub const fn piece_len(name_len: usize) -> usize {
    MAX_DATAGRAM - NAME - name_len - MAC_LEN
}

const START: usize = 7;
/// New pods that are reported at most, beside the longest name. Those that are left out count as started.
pub const MAX_STARTS: usize = piece_len(NodeName::MAX_LEN) / START;

/// What a datagram means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    pub node: NodeName,
    pub cluster: u64,
    pub epoch: u64,
    pub sequence: u64,
    /// The sender misses the report of a node; to one node: of that one.
    pub requests: bool,
    /// Some rows are left out of the list.
    pub partial: bool,
    /// To one node: its multicast does not arrive at the sender. A speaker before 2026-12 does not know this.
    pub asks: bool,
    /// Grows with every change; 0: it does not know yet what it holds.
    pub version: u64,
    pub digest: u64,
    /// Digest of the view that the sender has applied (`Digests::view`); 0: none yet.
    pub view: u64,
    /// How long ago the sender looked.
    pub age_millis: u32,
    /// Parts of the list.
    pub parts: u16,
    pub piece: Option<Piece>,
    /// The new pods of the sender: all of them. `None`: the datagram is about something else.
    pub starts: Option<Starts>,
    /// What the sender checks: all of it.
    pub health: Option<Report>,
    /// What the sender has counted of members: some of it, at most [`MAX_TOTALS`].
    pub totals: Option<Totals>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    pub part: u16,
    pub bytes: Vec<u8>,
}

impl Datagram {
    /// The meaning of a datagram of this cluster, signed with one of the keys. Trusts nothing.
    pub fn open(bytes: &[u8], cluster: u64, keys: &Keyring) -> Result<Self, Reject> {
        if bytes.len() > MAX_DATAGRAM {
            return Err(Reject::Oversized);
        }
        let Some((head, _)) = bytes.split_first_chunk::<NAME>().filter(|_| bytes.len() >= NAME + MAC_LEN) else {
            return Err(Reject::Truncated);
        };
        let head = Head(head);
        if head.array_at(0) != MAGIC {
            return Err(Reject::Malformed);
        }
        if head.0[4] != VERSION {
            return Err(Reject::WrongVersion);
        }
        // Before the MAC: a neighbour cluster is a fact of life and no forgery.
        if head.u64_at(8) != cluster {
            return Err(Reject::WrongCluster);
        }
        let (signed, mac) = bytes.split_at(bytes.len() - MAC_LEN);
        keys.verify(head.0[7], signed, mac)?;
        Self::parse(&head, &signed[NAME..])
    }

    fn parse(head: &Head<'_>, rest: &[u8]) -> Result<Self, Reject> {
        let name_len = usize::from(head.0[64]);
        let (name, bytes) = rest.split_at_checked(name_len).ok_or(Reject::Truncated)?;
        let node = core::str::from_utf8(name).ok().and_then(NodeName::new).ok_or(Reject::Malformed)?;
        let (part, parts) = (head.u16_at(60), head.u16_at(62));
        let (mut piece, mut starts, mut health, mut totals) = (None, None, None, None);
        match head.0[5] {
            KIND_SUMMARY if bytes.is_empty() => {}
            KIND_PART if part < parts && !bytes.is_empty() => piece = Some(Piece { part, bytes: bytes.into() }),
            KIND_STARTS => starts = Some(decode_starts(bytes)?),
            KIND_HEALTH => health = Some(decode_health(bytes)?),
            KIND_TOTALS => totals = Some(decode_totals(bytes)?),
            _ => return Err(Reject::Malformed),
        }
        if usize::from(parts) > MAX_PARTS {
            return Err(Reject::Malformed);
        }
        Ok(Self {
            node,
            cluster: head.u64_at(8),
            epoch: head.u64_at(16),
            sequence: head.u64_at(24),
            requests: head.0[6] & FLAG_REQUEST != 0,
            partial: head.0[6] & FLAG_PARTIAL != 0,
            asks: head.0[6] & FLAG_ASKS != 0,
            version: head.u64_at(32),
            digest: head.u64_at(40),
            view: head.u64_at(48),
            age_millis: u32::from_be_bytes(head.array_at(56)),
            parts,
            piece,
            starts,
            health,
            totals,
        })
    }

    /// As a signed datagram. The caller keeps to [`piece_len`], [`MAX_STARTS`] and [`MAX_TOTALS`].
    pub fn seal(&self, keys: &Keyring) -> Vec<u8> {
        let name = self.node.as_str().as_bytes();
        let starts = self.starts.as_ref().map(encode_starts);
        let health = self.health.as_ref().map(|report| encode_health(report, piece_len(name.len())));
        let totals = self.totals.as_ref().map(encode_totals);
        let (kind, part, piece) = match (&self.piece, &starts, &health, &totals) {
            (Some(piece), ..) => (KIND_PART, piece.part, &piece.bytes[..]),
            (None, Some(starts), ..) => (KIND_STARTS, 0, &starts[..]),
            (None, None, Some(health), _) => (KIND_HEALTH, 0, &health[..]),
            (None, None, None, Some(totals)) => (KIND_TOTALS, 0, &totals[..]),
            (None, None, None, None) => (KIND_SUMMARY, 0, &[][..]),
        };
        let flags = [(self.requests, FLAG_REQUEST), (self.partial, FLAG_PARTIAL), (self.asks, FLAG_ASKS)];
        let flags = flags.into_iter().filter(|(set, _)| *set).fold(0, |flags, (_, flag)| flags | flag);
        let mut out = Vec::with_capacity(NAME + name.len() + piece.len() + MAC_LEN);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[VERSION, kind, flags, keys.current.id]);
        for field in [self.cluster, self.epoch, self.sequence, self.version, self.digest, self.view] {
            out.extend_from_slice(&field.to_be_bytes());
        }
        out.extend_from_slice(&self.age_millis.to_be_bytes());
        out.extend_from_slice(&part.to_be_bytes());
        out.extend_from_slice(&self.parts.to_be_bytes());
        out.extend_from_slice(&[name.len() as u8, 0, 0, 0]);
        out.extend_from_slice(name);
        out.extend_from_slice(piece);
        keys.seal(&mut out);
        debug_assert!(out.len() <= MAX_DATAGRAM);
        out
    }
}

/// A window on the fields in front of the name.
struct Head<'a>(&'a [u8; NAME]);

impl Head<'_> {
    fn u16_at(&self, at: usize) -> u16 {
        u16::from_be_bytes(self.array_at(at))
    }

    fn u64_at(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.array_at(at))
    }

    fn array_at<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut array = [0; N];
        array.copy_from_slice(&self.0[at..at + N]);
        array
    }
}

fn encode_starts(starts: &Starts) -> Vec<u8> {
    let mut out = Vec::with_capacity(starts.len() * START);
    for (target, started) in starts {
        out.extend_from_slice(&target.address.octets());
        out.extend_from_slice(&target.port.to_be_bytes());
        out.push(u8::from(*started));
    }
    out
}

fn decode_starts(bytes: &[u8]) -> Result<Starts, Reject> {
    let (entries, rest) = bytes.as_chunks::<START>();
    let mut starts = Starts::new();
    for &[a, b, c, d, high, low, started] in entries {
        let target = Target { address: [a, b, c, d].into(), port: u16::from_be_bytes([high, low]) };
        let in_order = starts.last_key_value().is_none_or(|(last, _)| *last < target);
        if !in_order || started > 1 {
            return Err(Reject::Malformed);
        }
        starts.insert(target, started == 1);
    }
    if rest.is_empty() { Ok(starts) } else { Err(Reject::Malformed) }
}

/// The rows of each service port.
pub type Services = BTreeMap<ServiceKey, Arc<Rows>>;

/// The list of sections; true: not all had room in it.
pub fn encode(services: &Services) -> (Vec<u8>, bool) {
    let mut out = Vec::new();
    for (key, rows) in services {
        let (form, content) = match rows.as_list() {
            Some(list) => (FORM_LIST, list.iter().flat_map(|row| row.to_be_bytes()).collect()),
            None => (FORM_BITS, rows.bits()),
        };
        if out.len() + SECTION + content.len() > MAX_LIST {
            return (out, true);
        }
        out.extend_from_slice(&key.addr);
        out.extend_from_slice(&key.port);
        out.extend_from_slice(&[key.proto, form]);
        out.extend_from_slice(&(rows.of() as u16).to_be_bytes());
        out.extend_from_slice(&(content.len() as u16).to_be_bytes());
        out.extend_from_slice(&content);
    }
    (out, false)
}

/// The meaning of such a list: service ports in order, each with some row, no row beyond its ring.
pub fn decode(mut list: &[u8]) -> Result<Services, Reject> {
    let mut services = Services::new();
    while !list.is_empty() {
        let (section, rest) = list.split_first_chunk::<SECTION>().ok_or(Reject::Truncated)?;
        let [a, b, c, d, port @ .., proto, form, of0, of1, length0, length1] = *section;
        let length = usize::from(u16::from_be_bytes([length0, length1]));
        let (content, rest) = rest.split_at_checked(length).ok_or(Reject::Truncated)?;
        let key = ServiceKey { addr: [a, b, c, d], port, proto, pad: 0 };
        let in_order = services.last_key_value().is_none_or(|(last, _)| *last < key);
        if !in_order || services.len() >= MAX_SERVICES as usize {
            return Err(Reject::Malformed);
        }
        let of = u32::from(u16::from_be_bytes([of0, of1]));
        services.insert(key, Arc::new(decode_rows(form, of, content)?));
        list = rest;
    }
    Ok(services)
}

fn decode_rows(form: u8, of: u32, content: &[u8]) -> Result<Rows, Reject> {
    if of > MAX_ROWS || content.is_empty() {
        return Err(Reject::Malformed);
    }
    let rows = match form {
        FORM_LIST => {
            let (list, rest) = content.as_chunks::<2>();
            let rows = || list.iter().map(|row| u32::from(u16::from_be_bytes(*row)));
            let in_order = rows().is_sorted_by(|a, b| a < b) && rows().all(|row| row < of);
            (rest.is_empty() && in_order).then(|| Rows::new(of, rows()))
        }
        FORM_BITS => Rows::from_bits(of, content),
        _ => None,
    };
    rows.filter(|rows| !rows.is_empty()).ok_or(Reject::Malformed)
}

#[cfg(test)]
mod tests;
