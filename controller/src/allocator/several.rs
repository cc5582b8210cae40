//! Pure: the addresses of one Service together. IPv4 comes first; IPv6 is not served yet, so it is reserved beside an IPv4 address only, and
//! never keeps it waiting.

use std::net::IpAddr;

use super::{Allocator, Decision};
use crate::family::Family;
use crate::request::{Refused, Request};

/// What is to be done for a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decided {
    /// What it has, in order; the remark names what is not as it should be.
    pub kept: Vec<(IpAddr, Option<Refused>)>,
    /// Of which families it gets none.
    pub refused: Vec<(Family, Refused)>,
    /// What it is to have next, and from which pool. What it has stays until it has that.
    pub grant: Option<(IpAddr, String)>,
}

impl Decided {
    pub fn keeps(&self, address: IpAddr) -> bool {
        self.grant.is_some() || self.kept.iter().any(|(kept, _)| *kept == address)
    }

    /// Of IPv4 the addresses that the Service has, or is about to have.
    pub fn has(&self) -> impl Iterator<Item = IpAddr> {
        let next = self.grant.iter().map(|(address, _)| *address);
        self.kept.iter().map(|(address, _)| *address).chain(next).filter(IpAddr::is_ipv4)
    }
}

impl Allocator {
    /// Decides for all addresses that a Service asks for. Changes nothing.
    pub fn decide_all(&self, requests: &[Request]) -> Decided {
        let mut decided = Decided::default();
        for family in Family::ALL {
            if decided.grant.is_some() || family == Family::V6 && decided.kept.is_empty() {
                break;
            }
            for request in requests.iter().filter(|request| request.family == family) {
                match self.decide(request) {
                    Decision::Keep { address, remark } => decided.kept.push((address, remark)),
                    Decision::Grant { address, pool } => decided.grant = decided.grant.or(Some((address, pool))),
                    Decision::Refuse(refused) => decided.refused.push((family, refused)),
                }
            }
        }
        decided
    }
}
