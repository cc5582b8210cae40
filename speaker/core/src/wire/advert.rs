//! Election adverts: heartbeats and claim lists over UDP.
//!
//! Read first: docs/election.md section Wire. All numbers in network byte order.
//!
//! ```text
//!  0 "SHVE" | 4 version | 5 kind | 6 flags | 7 key id | 8 cluster (8) | 16 epoch (8) | 24 sequence (8)
//! 32 digest of the sender's claims (8) | 40 challenge (4) | 44 name length | 45 hint | 46 count (2) | 48 name
//! heartbeat: count x challenge (4)                                     the peers that the sender receives
//! claims:    part (2) | parts (2) | count x claim                      part of its claim list
//! node:      MAC address (6) | pace (2, `pace.rs`)                     of the sender; more may follow in later versions
//! claim:     family (1) | flags (1; 1: stepping down) | reserved (2) | term (8) | address (4; 16 for family 6, not in version 1)
//! MAC (32): HMAC-SHA256 of everything before it
//! ```

use alloc::vec::Vec;

use super::pace::Pace;
pub use super::reject::Reject;
use super::seal::MAC_LEN;
pub use super::seal::{Key, Keyring, Signer};
use crate::name::{NodeName, Term, Vip};

/// The largest datagram that is sent or taken: fits an Ethernet frame with room for encapsulation, so it is never fragmented.
pub const MAX_DATAGRAM: usize = 1400;
/// Peers that a heartbeat can name.
pub const MAX_ECHOES: usize = 256;
/// Claims of one node (`ebpf_common::MAX_VIPS`).
pub const MAX_CLAIMS: usize = ebpf_common::MAX_VIPS as usize;
/// Parts of one claim list: enough for [`MAX_CLAIMS`] beside the longest name.
pub const MAX_PARTS: usize = MAX_CLAIMS.div_ceil(claims_per_part(NodeName::MAX_LEN));

pub const VERSION: u8 = 1;
const MAGIC: [u8; 4] = *b"SHVE";
const KIND_HEARTBEAT: u8 = 1;
const KIND_CLAIMS: u8 = 2;
/// Refused as malformed by speakers that do not know it; they get the address by ARP alone.
const KIND_NODE: u8 = 3;
const FAMILY_IPV4: u8 = 4;

const NAME: usize = 48;
const ECHO_LEN: usize = 4;
const PARTS_LEN: usize = 4;
const CLAIM_LEN: usize = 16;
const NODE_LEN: usize = 8;

/// How many claims go into one datagram beside a name of this length.
pub const fn claims_per_part(name_len: usize) -> usize {
    (MAX_DATAGRAM - NAME - name_len - PARTS_LEN - MAC_LEN) / CLAIM_LEN
}

/// A window on the bytes of an advert: long enough for its fields, nothing else is promised.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a>(&'a [u8]);

impl<'a> Packet<'a> {
    /// Checks lengths, and the fields that identify an advert of ours. Trusts nothing.
    pub fn new(bytes: &'a [u8]) -> Result<Self, Reject> {
        if bytes.len() > MAX_DATAGRAM {
            return Err(Reject::Oversized);
        }
        if bytes.len() < NAME + MAC_LEN {
            return Err(Reject::Truncated);
        }
        let packet = Self(bytes);
        if bytes[..4] != MAGIC {
            return Err(Reject::Malformed);
        }
        if bytes[4] != VERSION {
            return Err(Reject::WrongVersion);
        }
        let count = packet.count();
        let (body, exact) = match packet.kind() {
            KIND_HEARTBEAT => (count * ECHO_LEN, true),
            KIND_CLAIMS => (PARTS_LEN + count * CLAIM_LEN, false),
            KIND_NODE => (NODE_LEN, false),
            _ => return Err(Reject::Malformed),
        };
        let length = NAME + packet.name_len() + body + MAC_LEN;
        if bytes.len() < length {
            return Err(Reject::Truncated);
        }
        if exact && bytes.len() > length {
            return Err(Reject::Malformed);
        }
        Ok(packet)
    }

    fn kind(&self) -> u8 {
        self.0[5]
    }

    fn flags(&self) -> u8 {
        self.0[6]
    }

    pub fn key_id(&self) -> u8 {
        self.0[7]
    }

    /// Of the key that the sender accepts beside the one that signs this ([`Key::hint`]).
    pub fn other_hint(&self) -> u8 {
        self.0[45]
    }

    pub fn cluster(&self) -> u64 {
        self.u64_at(8)
    }

    /// The flag of the sender, verified or not.
    pub fn advertises_ready(&self) -> bool {
        Flags::from_bits(self.flags()).ready
    }

    /// Of the sender, verified or not; `None`: this advert states none that is allowed.
    pub fn stated_pace(&self) -> Option<Pace> {
        match self.kind() {
            KIND_NODE => parse_node(self).ok().and_then(|(_, pace)| pace),
            _ => None,
        }
    }

    fn challenge(&self) -> u32 {
        u32::from_be_bytes(self.array_at(40))
    }

    fn name_len(&self) -> usize {
        usize::from(self.0[44])
    }

    fn count(&self) -> usize {
        usize::from(u16::from_be_bytes(self.array_at(46)))
    }

    fn name(&self) -> &'a [u8] {
        &self.0[NAME..NAME + self.name_len()]
    }

    fn body(&self) -> &'a [u8] {
        &self.0[NAME + self.name_len()..self.0.len() - MAC_LEN]
    }

    /// What is signed, and the MAC.
    pub fn split_mac(&self) -> (&'a [u8], &'a [u8]) {
        self.0.split_at(self.0.len() - MAC_LEN)
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

/// What an advert means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advert {
    pub node: NodeName,
    pub cluster: u64,
    pub epoch: u64,
    pub sequence: u64,
    pub flags: Flags,
    /// Of the sender's whole claim list ([`digest`]).
    pub digest: u64,
    /// A peer that echoes it has received the sender lately.
    pub challenge: u32,
    pub body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// The challenges of the peers that the sender receives.
    Heartbeat { echoes: Vec<u32> },
    /// Part `part` (from 0) of `parts` of the claim list with the digest of the header.
    Claims { part: u16, parts: u16, claims: Vec<Claim> },
    /// The sender's MAC address on the segment: under the HMAC, so that no ARP frame outranks it. And its pace, by which it is judged;
    /// `None`: by that of the receiver.
    Node { mac: [u8; 6], pace: Option<Pace> },
}

/// What a node states about itself. Bits that version 1 does not know are ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// May own VIPs.
    pub ready: bool,
    /// Hands over, then stops.
    pub leaving: bool,
    /// Misses the claim list of a peer.
    pub need_claims: bool,
    /// Listens; makes no new claims.
    pub joining: bool,
    /// Its claims were won or kept without receiving any peer.
    pub alone: bool,
    /// Its view is that of its disk: no API server has confirmed it.
    pub saved_view: bool,
    /// An administrator wants it to own VIPs only while no other node can.
    pub drained: bool,
}

impl Flags {
    const READY: u8 = 1;
    const LEAVING: u8 = 1 << 1;
    const NEED_CLAIMS: u8 = 1 << 2;
    const JOINING: u8 = 1 << 3;
    const ALONE: u8 = 1 << 4;
    const SAVED_VIEW: u8 = 1 << 5;
    const DRAINED: u8 = 1 << 6;

    /// Whether it may get new flows: its packet path is ready, and it knows the present state. A node that is cut off, or has not
    /// yet received the others again, does not know which nodes served its rows in its place.
    pub fn takes_flows(self) -> bool {
        self.ready && !self.joining && !self.alone
    }

    fn from_bits(bits: u8) -> Self {
        let has = |bit| bits & bit != 0;
        Self {
            ready: has(Self::READY),
            leaving: has(Self::LEAVING),
            need_claims: has(Self::NEED_CLAIMS),
            joining: has(Self::JOINING),
            alone: has(Self::ALONE),
            saved_view: has(Self::SAVED_VIEW),
            drained: has(Self::DRAINED),
        }
    }

    fn bits(self) -> u8 {
        let Self { ready, leaving, need_claims, joining, alone, saved_view, drained } = self;
        let bit = |set, bit| if set { bit } else { 0 };
        bit(ready, Self::READY)
            | bit(leaving, Self::LEAVING)
            | bit(need_claims, Self::NEED_CLAIMS)
            | bit(joining, Self::JOINING)
            | bit(alone, Self::ALONE)
            | bit(saved_view, Self::SAVED_VIEW)
            | bit(drained, Self::DRAINED)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    pub vip: Vip,
    pub term: Term,
    /// The owner steps down: it may not hold the VIP any longer and wants a successor.
    pub stepping_down: bool,
}

impl Claim {
    const STEPPING_DOWN: u8 = 1;

    fn flags(self) -> u8 {
        if self.stepping_down { Self::STEPPING_DOWN } else { 0 }
    }
}

impl Advert {
    /// The meaning of a datagram of this cluster, signed with one of the keys.
    ///
    /// The cluster is compared before the MAC: a neighbour cluster is a fact of life and no forgery.
    pub fn open(bytes: &[u8], cluster: u64, keys: &Keyring) -> Result<Self, Reject> {
        let packet = Packet::new(bytes)?;
        if packet.cluster() != cluster {
            return Err(Reject::WrongCluster);
        }
        let (signed, mac) = packet.split_mac();
        keys.verify(packet.key_id(), signed, mac)?;
        Self::parse(&packet)
    }

    pub fn parse(packet: &Packet<'_>) -> Result<Self, Reject> {
        let name = core::str::from_utf8(packet.name()).ok().and_then(NodeName::new).ok_or(Reject::Malformed)?;
        let body = match packet.kind() {
            KIND_HEARTBEAT => Body::Heartbeat { echoes: parse_echoes(packet)? },
            KIND_CLAIMS => parse_claims(packet)?,
            _ => parse_node(packet).map(|(mac, pace)| Body::Node { mac, pace })?,
        };
        Ok(Self {
            node: name,
            cluster: packet.cluster(),
            epoch: packet.u64_at(16),
            sequence: packet.u64_at(24),
            flags: Flags::from_bits(packet.flags()),
            digest: packet.u64_at(32),
            challenge: packet.challenge(),
            body,
        })
    }

    /// As a signed datagram. The caller keeps to [`MAX_ECHOES`] and [`claims_per_part`].
    pub fn seal(&self, keys: &Keyring) -> Vec<u8> {
        let (kind, count) = match &self.body {
            Body::Heartbeat { echoes } => (KIND_HEARTBEAT, echoes.len()),
            Body::Claims { claims, .. } => (KIND_CLAIMS, claims.len()),
            Body::Node { .. } => (KIND_NODE, 0),
        };
        let name = self.node.as_str().as_bytes();
        let mut out = Vec::with_capacity(NAME + name.len() + PARTS_LEN + count * CLAIM_LEN + MAC_LEN);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[VERSION, kind, self.flags.bits(), keys.current.id]);
        for field in [self.cluster, self.epoch, self.sequence, self.digest] {
            out.extend_from_slice(&field.to_be_bytes());
        }
        out.extend_from_slice(&self.challenge.to_be_bytes());
        out.extend_from_slice(&[name.len() as u8, keys.other_hint()]);
        out.extend_from_slice(&(count as u16).to_be_bytes());
        out.extend_from_slice(name);
        self.body.emit(&mut out);
        keys.seal(&mut out);
        debug_assert!(out.len() <= MAX_DATAGRAM);
        out
    }
}

impl Keyring {
    /// Which key signed this advert, and the hint of the other one that its sender accepts; `None` if neither did.
    pub fn signer(&self, bytes: &[u8]) -> Option<(Signer, u8)> {
        let packet = Packet::new(bytes).ok()?;
        let (signed, mac) = packet.split_mac();
        Some((self.verify(packet.key_id(), signed, mac).ok()?, packet.other_hint()))
    }
}

impl Body {
    fn emit(&self, out: &mut Vec<u8>) {
        match self {
            Self::Heartbeat { echoes } => echoes.iter().for_each(|tag| out.extend_from_slice(&tag.to_be_bytes())),
            Self::Claims { part, parts, claims } => {
                out.extend_from_slice(&part.to_be_bytes());
                out.extend_from_slice(&parts.to_be_bytes());
                for claim in claims {
                    out.extend_from_slice(&[FAMILY_IPV4, claim.flags(), 0, 0]);
                    out.extend_from_slice(&claim.term.0.to_be_bytes());
                    out.extend_from_slice(&claim.vip.octets());
                }
            }
            Self::Node { mac, pace } => {
                out.extend_from_slice(mac);
                out.extend_from_slice(&Pace::to_bytes(*pace));
            }
        }
    }
}

/// The digest of a claim list in order of addresses. Not a secret: adverts are signed.
pub fn digest(claims: impl IntoIterator<Item = Claim>) -> u64 {
    claims.into_iter().fold(EMPTY_DIGEST, |digest, claim| {
        let address = u64::from(u32::from_be_bytes(claim.vip.octets()));
        let address = address | u64::from(FAMILY_IPV4) << 32 | u64::from(claim.flags()) << 40;
        ebpf_common::siphash13(&[digest, EMPTY_DIGEST], address, claim.term.0)
    })
}

/// The digest of no claims.
pub const EMPTY_DIGEST: u64 = 0;

fn parse_echoes(packet: &Packet<'_>) -> Result<Vec<u32>, Reject> {
    if packet.count() > MAX_ECHOES {
        return Err(Reject::Malformed);
    }
    let (tags, _) = packet.body().as_chunks::<ECHO_LEN>();
    Ok(tags.iter().map(|tag| u32::from_be_bytes(*tag)).collect())
}

fn parse_claims(packet: &Packet<'_>) -> Result<Body, Reject> {
    let (head, rest) = packet.body().split_first_chunk::<PARTS_LEN>().ok_or(Reject::Truncated)?;
    let (part, parts) = (u16::from_be_bytes([head[0], head[1]]), u16::from_be_bytes([head[2], head[3]]));
    if part >= parts || usize::from(parts) > MAX_PARTS {
        return Err(Reject::Malformed);
    }
    let (claims, rest) = rest.as_chunks::<CLAIM_LEN>();
    if claims.len() != packet.count() || !rest.is_empty() {
        return Err(Reject::Malformed);
    }
    let claims = claims.iter().map(parse_claim).collect::<Result<_, _>>()?;
    Ok(Body::Claims { part, parts, claims })
}

/// A group address, or none, is no address of a node (IEEE 802 section 8.2.2).
fn parse_node(packet: &Packet<'_>) -> Result<([u8; 6], Option<Pace>), Reject> {
    let (mac, rest) = packet.body().split_first_chunk::<6>().ok_or(Reject::Truncated)?;
    let (pace, _) = rest.split_first_chunk::<{ Pace::LEN }>().ok_or(Reject::Truncated)?;
    if mac[0] & 1 != 0 || *mac == [0; 6] {
        return Err(Reject::Malformed);
    }
    Ok((*mac, Pace::from_bytes(*pace)?))
}

fn parse_claim(bytes: &[u8; CLAIM_LEN]) -> Result<Claim, Reject> {
    let [family, flags, _, _, term @ .., a, b, c, d] = *bytes;
    if family != FAMILY_IPV4 {
        return Err(Reject::Malformed);
    }
    Ok(Claim {
        vip: Vip([a, b, c, d].into()),
        term: Term(u64::from_be_bytes(term)),
        stepping_down: flags & Claim::STEPPING_DOWN != 0,
    })
}

#[cfg(test)]
mod tests;
