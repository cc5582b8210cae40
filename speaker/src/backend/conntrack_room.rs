//! How full the kernel's conntrack table is. When it is full the kernel drops the first packet of every new flow, without an answer: a
//! client sees a connection that times out. Packets that are only dispatched to another node need no entry.

use std::fs;
use std::io::{self, Error, ErrorKind};
use std::path::Path;

/// A table that is so full, in percent, is a warning.
const NEARLY_FULL: u64 = 90;
/// And no longer below this.
const ROOM_AGAIN: u64 = 80;

/// Of the network namespace that it is read in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    pub entries: u64,
    /// `net.netfilter.nf_conntrack_max`; 0: none.
    pub limit: u64,
    /// Packets that found no room, on all processors, since the namespace was made. With room these are segments that fit no state of
    /// their flow (net/netfilter/nf_conntrack_core.c, `nf_conntrack_in`).
    pub dropped: u64,
}

impl Room {
    /// `proc`: where the file system is mounted.
    pub fn read(proc: &Path) -> io::Result<Self> {
        let sysctl = |name: &str| {
            let path = proc.join("sys/net/netfilter").join(name);
            let text = fs::read_to_string(&path)?;
            text.trim().parse().map_err(|_| malformed(&path, &text))
        };
        let path = proc.join("thread-self/net/stat/nf_conntrack");
        let statistics = fs::read_to_string(&path)?;
        let dropped = dropped(&statistics).ok_or_else(|| malformed(&path, &statistics))?;
        Ok(Self { entries: sysctl("nf_conntrack_count")?, limit: sysctl("nf_conntrack_max")?, dropped })
    }

    fn percent(&self) -> u64 {
        self.entries.saturating_mul(100).checked_div(self.limit).unwrap_or(0)
    }
}

/// The sum of the column `drop`: one line for each processor, in hexadecimal, below a line of names.
fn dropped(statistics: &str) -> Option<u64> {
    let mut lines = statistics.lines();
    let column = lines.next()?.split_whitespace().position(|name| name == "drop")?;
    let values = lines.map(|line| u64::from_str_radix(line.split_whitespace().nth(column)?, 16).ok());
    values.sum()
}

fn malformed(path: &Path, text: &str) -> Error {
    let start: String = text.chars().take(80).collect();
    Error::new(ErrorKind::InvalidData, format!("{}: {start:?}", path.display()))
}

/// What has just changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    NearlyFull,
    RoomAgain,
    /// So many packets were dropped since the last look.
    Dropped(u64),
}

/// The last look.
#[derive(Debug, Default)]
pub struct Watch {
    last: Option<Room>,
    nearly_full: bool,
}

impl Watch {
    pub fn is_nearly_full(&self) -> bool {
        self.nearly_full
    }

    /// Packets that were dropped before the first look are not ours to report.
    pub fn look(&mut self, room: Room) -> Vec<Change> {
        let mut changes = Vec::new();
        let dropped = self.last.map_or(0, |last| room.dropped.saturating_sub(last.dropped));
        self.last = Some(room);
        let was_nearly_full = self.nearly_full;
        if !self.nearly_full && room.percent() >= NEARLY_FULL {
            self.nearly_full = true;
            changes.push(Change::NearlyFull);
        } else if self.nearly_full && room.percent() < ROOM_AGAIN {
            self.nearly_full = false;
            changes.push(Change::RoomAgain);
        }
        if dropped > 0 && (was_nearly_full || self.nearly_full) {
            changes.push(Change::Dropped(dropped));
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_called_nearly_full_once_until_there_is_room_again() {
        let mut watch = Watch::default();
        let mut look = |entries, dropped| watch.look(Room { entries, limit: 1000, dropped });
        assert_eq!(look(899, 7), [], "what was dropped before is not reported");
        assert_eq!(look(500, 8), [], "a segment that fits no flow");
        assert_eq!(look(900, 8), [Change::NearlyFull]);
        assert_eq!(look(850, 8), []);
        assert_eq!(look(1000, 19), [Change::Dropped(11)]);
        assert_eq!(look(799, 19), [Change::RoomAgain]);
        assert_eq!(look(1000, 20), [Change::NearlyFull, Change::Dropped(1)]);
        let no_limit = watch.look(Room { entries: 5, limit: 0, dropped: 21 });
        assert_eq!(no_limit, [Change::RoomAgain, Change::Dropped(1)], "since it was full");
    }

    #[test]
    fn dropped_packets_of_all_processors_are_added() {
        let text = "entries  found drop early_drop\n0000 01 0a 00\n0000 01 10 00\n";
        assert_eq!(dropped(text), Some(26));
        for malformed in ["", "entries found\n0 0\n", "entries drop\n0\n", "entries drop\n0 xyz\n"] {
            assert_eq!(dropped(malformed), None, "{malformed:?}");
        }
    }

    /// This kernel's own files.
    #[test]
    fn the_kernel_has_these_files() {
        let room = Room::read(Path::new("/proc")).unwrap();
        assert!(room.limit > 0 && room.entries <= room.limit, "{room:?}");
        let error = Room::read(Path::new("/nonexistent")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
}
