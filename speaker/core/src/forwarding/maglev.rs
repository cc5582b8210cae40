//! The table fill of Maglev, and what a lost node's rows become.
//!
//! Read first: Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016), section 3.4.
//!
//! Deviation: the paper refills the whole table when a member goes, which moves a few per cent of the survivors' rows too and
//! with them open connections. Here the table is filled over all members, lost or not; then each row of a lost node looks
//! through other rows of the same table, in an order of its own that depends on nothing but its number, until one names a
//! node that is up. So the loss (and the return) of a node moves the rows of that node only, whatever else is lost already.
//! (A second fill over the survivors, the obvious way, keeps this promise for the first lost node only.)
//!
//! What does move survivors' rows: pods that come and go elsewhere (a few per cent, as in the paper), and a number of members
//! that crosses the boundary of [`size`] (40 members): then nearly every row. The larger size is a multiple of the smaller, so that a
//! ring of the smaller one can be written in rows of the larger ([`Ring::split`]) while those have flows of their own.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use ebpf_common::{MAX_ROWS, siphash13};

use super::Ring;
use super::numbers::Numbers;

/// Nodes of a ring: how many pods take part on each, and whether the node is lost.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Members {
    /// Hash of `nodes`. Compared first: of 10,000 service ports each table looks up the ring by its members several times, and names of
    /// nodes are long and alike.
    hash: u64,
    nodes: BTreeMap<String, Member>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    pub pods: u32,
    pub down: bool,
}

impl Members {
    /// Nodes without pods are no members.
    pub fn new(nodes: impl IntoIterator<Item = (String, u32, bool)>) -> Self {
        let members = nodes.into_iter().filter(|(_, pods, _)| *pods > 0);
        Self::of(members.map(|(node, pods, down)| (node, Member { pods, down })).collect())
    }

    fn of(nodes: BTreeMap<String, Member>) -> Self {
        let mut members = Self { hash: 0, nodes };
        members.hash = members.digest(&[0, 0]);
        members
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, Member)> {
        self.nodes.iter().map(|(node, member)| (node.as_str(), *member))
    }

    /// The nodes that have rows: all that are up, and if none is, all.
    pub fn serving(&self) -> impl Iterator<Item = &str> {
        let none_up = self.nodes.values().all(|member| member.down);
        self.iter().filter(move |(_, member)| none_up || !member.down).map(|(node, _)| node)
    }

    /// The same, but this node is lost; `None` if it had no rows.
    pub fn without(&self, node: &str) -> Option<Self> {
        let mut nodes = self.nodes.clone();
        let member = nodes.get_mut(node).filter(|member| !member.down)?;
        member.down = true;
        Some(Self::of(nodes))
    }

    pub fn pods(&self) -> u64 {
        self.nodes.values().map(|member| u64::from(member.pods)).sum()
    }

    /// Whether the others are these and more pods, and no node of these has lost or regained its rows.
    pub fn grow_into(&self, others: &Self) -> bool {
        let stays = |(node, member): (&String, &Member)| {
            others.nodes.get(node).is_some_and(|other| other.down == member.down && other.pods >= member.pods)
        };
        self.nodes.iter().all(stays) && self != others
    }

    /// Of the ring of these members: [`Ring::digest`].
    pub fn digest(&self, key: &[u64; 2]) -> u64 {
        self.nodes.iter().fold(key[0], |state, (name, member)| {
            siphash13(key, state ^ digest(key, name.as_bytes()), u64::from(member.pods) << 1 | u64::from(member.down))
        })
    }

    /// Turns of each node per round. Above [`MAX_TURNS`] all are scaled down alike, but not below one.
    fn turns(&self) -> Vec<u32> {
        let total = self.pods();
        let scale = |pods: u32| match total > MAX_TURNS {
            true => (u64::from(pods) * MAX_TURNS / total).max(1) as u32,
            false => pods,
        };
        self.nodes.values().map(|member| scale(member.pods)).collect()
    }
}

/// The ring of these members. Depends on nothing but its arguments.
pub fn fill(members: &Members, key: &[u64; 2]) -> Ring {
    let nodes: Vec<String> = members.nodes.keys().cloned().collect();
    let turns = members.turns();
    let rows = size(turns.iter().map(|&n| n as usize).sum());
    let mut table = base(&nodes, &turns, rows, key);
    let up: Vec<bool> = members.nodes.values().map(|member| !member.down).collect();
    if up.contains(&true) && up.contains(&false) {
        table = divert(&table, &up, key);
    }
    Ring { members: Arc::new(members.clone()), nodes, rows: table.into(), digest: members.digest(key) }
}

/// Rows for so many members: at least 100 rows each up to 654 members (the paper's bound for an even spread).
pub fn size(members: usize) -> u32 {
    if members == 0 {
        return 0;
    }
    let enough = |rows: &u32| *rows as usize >= ROWS_PER_MEMBER * members;
    SIZES.into_iter().find(enough).unwrap_or(MAX_ROWS)
}

impl Ring {
    /// The same ring in the rows of the largest: each row becomes several, one behind the other, that name its node. So flows
    /// that were opened by a ring of that size keep their rows apart, each with its own alternates. `None` if nothing is to be split.
    pub fn split(&self) -> Option<Self> {
        let of = self.rows.len();
        let into = (MAX_ROWS as usize).checked_div(of).filter(|&into| into > 1)?;
        let rows: Vec<u16> = self.rows.iter().flat_map(|node| core::iter::repeat_n(node, into)).collect();
        let rows = Numbers::from(rows);
        Some(Self { members: self.members.clone(), nodes: self.nodes.clone(), rows, digest: self.digest })
    }
}

/// The paper's table: members in turn take the next free row of their own permutation.
fn base(nodes: &[String], turns: &[u32], rows: u32, key: &[u64; 2]) -> Vec<u16> {
    let mut permutations: Vec<Permutation> = Vec::new();
    for (node, (name, &turns)) in nodes.iter().zip(turns).enumerate() {
        let identity = digest(key, name.as_bytes());
        permutations.extend((0..turns).map(|ordinal| Permutation::new(node as u16, identity, ordinal, rows, key)));
    }
    let mut table = vec![FREE; rows as usize];
    let mut left = rows;
    while left > 0 {
        for permutation in permutations.iter_mut().take(left as usize) {
            let node = permutation.node;
            let row = permutation.by_ref().find(|&row| table[row as usize] == FREE);
            // A permutation names every row, so while one is free it is found.
            let Some(row) = row else { return table };
            table[row as usize] = node;
            left -= 1;
        }
    }
    table
}

/// The rows of lost nodes, each given to the node of another row.
fn divert(base: &[u16], up: &[bool], key: &[u64; 2]) -> Vec<u16> {
    let is_up = |node: u16| up[usize::from(node)];
    let rows = base.len() as u64;
    let resolve = |(row, &node): (usize, &u16)| {
        if is_up(node) {
            return node;
        }
        let probe = |attempt: u64| base[(siphash13(key, row as u64, DIVERT | attempt) % rows) as usize];
        let neighbours = || base[row..].iter().chain(&base[..row]).copied();
        (0..MAX_PROBES).map(probe).chain(neighbours()).find(|&node| is_up(node)).unwrap_or(node)
    };
    base.iter().enumerate().map(resolve).collect()
}

/// (offset + i * skip) mod rows: every row once, because skip and rows have no common divisor.
struct Permutation {
    node: u16,
    next: u32,
    skip: u32,
    rows: u32,
}

impl Permutation {
    fn new(node: u16, identity: u64, ordinal: u32, rows: u32, key: &[u64; 2]) -> Self {
        let offset = siphash13(key, identity, u64::from(ordinal) << 1) % u64::from(rows);
        let mut skip = (siphash13(key, identity, (u64::from(ordinal) << 1) | 1) % u64::from(rows - 1)) as u32 + 1;
        while gcd(skip, rows) != 1 {
            skip = skip % (rows - 1) + 1;
        }
        Self { node, next: offset as u32, skip, rows }
    }
}

impl Iterator for Permutation {
    type Item = u32;

    /// Never ends; the caller knows that a free row is left.
    fn next(&mut self) -> Option<u32> {
        let row = self.next;
        self.next += self.skip;
        if self.next >= self.rows {
            self.next -= self.rows;
        }
        Some(row)
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The keyed hash of the ABI, chained over the bytes; the length goes first, so that padding cannot make two names equal.
pub(crate) fn digest(key: &[u64; 2], bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(siphash13(key, bytes.len() as u64, 0), |state, chunk| {
        let mut block = [0; 8];
        block[..chunk.len()].copy_from_slice(chunk);
        siphash13(key, state, u64::from_le_bytes(block))
    })
}

/// The largest prime below 2^12 (32 KiB in the kernel, up to 40 members), and sixteen times that (512 KiB). Only two, because
/// crossing from one to the other moves nearly every row; the one a multiple of the other, see [`Ring::split`].
const SIZES: [u32; 2] = [4093, MAX_ROWS];
const ROWS_PER_MEMBER: usize = 100;
/// Members whose permutations are kept; ten rows for each in the largest table.
const MAX_TURNS: u64 = 6552;
/// No row of a table: node indices stay below `MAX_NODES`.
const FREE: u16 = u16::MAX;
/// Keeps the hashes of `divert` apart from those of member identities (whose ordinals stay below it).
const DIVERT: u64 = 1 << 63;
/// With 19 of 20 nodes lost one row in 27 gets this far; then it takes the next row in line.
const MAX_PROBES: u64 = 64;

#[cfg(test)]
mod tests;
