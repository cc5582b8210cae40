//! One peer: the epoch and the sequence of its last datagram, and its report.
//!
//! Read first: docs/decisions/0008.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::reports::{Report, Reported};
use crate::time::{Duration, Instant};
use crate::wire::report::{Datagram, MAX_LIST, Piece, Reject, Services, decode};

#[derive(Debug)]
pub(super) struct Peer {
    epoch: u64,
    /// The highest epoch that was taken and then proved not to be the present one: nothing up to it is news.
    retired: u64,
    sequence: u64,
    pub received: Instant,
    pub version: u64,
    pub digest: u64,
    pub reported: Option<Reported>,
    /// Epoch and version of the report.
    reported_version: (u64, u64),
    assembly: Option<Assembly>,
    /// Since when its table differs from ours, and since when its view does.
    pub differs: Option<Instant>,
    pub views_differ: Option<Instant>,
    pub alarmed: bool,
}

/// Rows of which parts have come.
#[derive(Debug)]
struct Assembly {
    version: u64,
    parts: u16,
    got: BTreeMap<u16, Vec<u8>>,
}

impl Peer {
    pub fn new(now: Instant) -> Self {
        Self {
            epoch: 0,
            retired: 0,
            sequence: 0,
            received: now,
            version: 0,
            digest: 0,
            reported: None,
            reported_version: (0, 0),
            assembly: None,
            differs: None,
            views_differ: None,
            alarmed: false,
        }
    }

    /// The kept report is the latest version, or there is none yet.
    pub fn is_known(&self) -> bool {
        self.version == 0 || self.reported_version == (self.epoch, self.version)
    }

    /// The election has verified that this incarnation runs. Its epoch may be lower than one that was taken before: the node's clock was
    /// set back, or what was taken was a recording. A datagram alone never leads back to a lower epoch.
    pub fn verify(&mut self, epoch: u64) {
        if epoch < self.epoch || epoch > self.epoch && epoch <= self.retired {
            self.retired = self.retired.max(self.epoch);
            (self.epoch, self.sequence, self.version, self.assembly) = (epoch, 0, 0, None);
        }
    }

    /// Whether its report changed.
    pub fn take(&mut self, datagram: Datagram, now: Instant) -> Result<bool, Reject> {
        let Datagram { epoch, sequence, version, digest, partial, age_millis, parts, piece, .. } = datagram;
        if epoch != self.epoch && epoch <= self.epoch.max(self.retired) {
            return Err(Reject::StaleEpoch);
        }
        if epoch == self.epoch && (sequence <= self.sequence || version < self.version) {
            return Err(Reject::Replayed);
        }
        let scanned = now - Duration::from_millis(u64::from(age_millis));
        (self.epoch, self.sequence, self.version, self.digest, self.received) = (epoch, sequence, version, digest, now);
        if self.is_known() {
            if let Some(reported) = self.reported.as_mut().filter(|_| version != 0) {
                reported.confirmed = reported.confirmed.max(scanned);
            }
            return Ok(false);
        }
        let services = match piece {
            _ if parts == 0 => Services::new(),
            None => return Ok(false),
            Some(piece) => match self.assemble(parts, piece) {
                Some(list) => decode(&list)?,
                None => return Ok(false),
            },
        };
        self.reported_version = (epoch, version);
        self.assembly = None;
        Ok(self.set_reported(Report { digest, partial, services }, scanned))
    }

    /// The list, once all parts are there.
    fn assemble(&mut self, parts: u16, piece: Piece) -> Option<Vec<u8>> {
        let version = self.version;
        if !self.assembly.as_ref().is_some_and(|assembly| assembly.version == version && assembly.parts == parts) {
            self.assembly = Some(Assembly { version, parts, got: BTreeMap::new() });
        }
        let assembly = self.assembly.as_mut()?;
        assembly.got.insert(piece.part, piece.bytes);
        let bytes: usize = assembly.got.values().map(Vec::len).sum();
        let whole = assembly.got.len() == usize::from(parts) && bytes <= MAX_LIST;
        whole.then(|| assembly.got.values().flatten().copied().collect())
    }

    /// Rows that are as they were keep their allocation.
    fn set_reported(&mut self, mut report: Report, confirmed: Instant) -> bool {
        let Some(known) = &mut self.reported else {
            self.reported = Some(Reported { report: Arc::new(report), confirmed, ..Reported::default() });
            return true;
        };
        for (key, rows) in &mut report.services {
            if let Some(same) = known.report.services.get(key).filter(|known| *known == rows) {
                *rows = same.clone();
            }
        }
        known.confirmed = confirmed;
        let changed = *known.report != report;
        if changed {
            known.supersede(Arc::new(report));
        }
        changed
    }
}
