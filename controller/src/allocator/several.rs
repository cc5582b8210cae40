//! Pure: the addresses of one Service together. Of IPv4 it has all that it names, or none of those that it does not have yet. IPv6 is not
//! served yet, so it is reserved beside IPv4 only, and never keeps it waiting.

use std::net::IpAddr;

use sheave_api::MAX_VIRTUAL_IPS;

use super::choice::limit_reached;
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
    /// What it is to have next, and from which pools. What it has stays until it has all of that.
    pub grants: Vec<(IpAddr, String)>,
}

impl Decided {
    pub fn keeps(&self, address: IpAddr) -> bool {
        !self.grants.is_empty() || self.kept.iter().any(|(kept, _)| *kept == address)
    }

    pub fn grants(&self, address: IpAddr) -> bool {
        self.grants.iter().any(|(granted, _)| *granted == address)
    }

    /// Of IPv4 the addresses that the Service has, or is about to have.
    pub fn has(&self) -> impl Iterator<Item = IpAddr> {
        let next = self.grants.iter().map(|(address, _)| *address);
        self.kept.iter().map(|(address, _)| *address).chain(next).filter(IpAddr::is_ipv4)
    }
}

impl Allocator {
    /// Decides for all addresses that a Service asks for. Changes nothing.
    pub fn decide_all(&self, requests: &[Request]) -> Decided {
        let (v4, v6): (Vec<&Request>, Vec<&Request>) = requests.iter().partition(|one| one.family == Family::V4);
        let mut decided = self.decide_v4(&v4);
        if decided.grants.is_empty() && !decided.kept.is_empty() {
            v6.into_iter().for_each(|request| self.decide_one(request, &mut decided));
        }
        decided
    }

    fn decide_v4(&self, requests: &[&Request]) -> Decided {
        let mut decided = Decided::default();
        let Some(first) = requests.first() else { return decided };
        let held = self.held_by(&first.service.uid).filter(IpAddr::is_ipv4);
        let held: Vec<IpAddr> = held.collect();
        if requests.len() == 1 && held.len() <= 1 {
            self.decide_one(first, &mut decided);
            return decided;
        }
        let mut missing = Vec::new();
        for request in requests {
            match self.fitting(request) {
                Some(address) => decided.kept.push((address, self.remark_of(address, request))),
                None => missing.push(*request),
            }
        }
        match self.find_all(&missing, requests.len()) {
            Ok(grants) => decided.grants = grants,
            Err(refused) => {
                let stays = first.stays(&held, requests.len());
                decided.kept = stays.iter().map(|address| (*address, None)).collect();
                match decided.kept.first_mut() {
                    Some((_, remark)) => *remark = Some(refused.keeping(&stays)),
                    None => decided.refused.push((Family::V4, refused)),
                }
            }
        }
        decided
    }

    fn decide_one(&self, request: &Request, decided: &mut Decided) {
        match self.decide(request) {
            Decision::Keep { address, remark } => decided.kept.push((address, remark)),
            Decision::Grant { address, pool } => decided.grants.push((address, pool)),
            Decision::Refuse(refused) => decided.refused.push((request.family, refused)),
        }
    }

    /// An address for each of these requests of one Service, or why it gets none of them. `all`: as many addresses as it asks for.
    fn find_all(&self, requests: &[&Request], all: usize) -> Result<Vec<(IpAddr, String)>, Refused> {
        let (mut found, mut refused): (Vec<(IpAddr, String)>, Option<Refused>) = (Vec::new(), None);
        for request in requests {
            match self.find(request) {
                Ok(grant) => found.push(grant),
                Err(Refused { reason, message }) => {
                    let message = naming(request, message);
                    let another =
                        |first: Refused| Refused { message: format!("{}; {message}", first.message), ..first };
                    refused = Some(refused.map_or_else(|| Refused { reason, message: message.clone() }, another));
                }
            }
        }
        let new = found.iter().filter(|(address, _)| !self.taken.contains_key(address)).count();
        if refused.is_none() && new > MAX_VIRTUAL_IPS.saturating_sub(self.taken.len()) {
            refused = Some(limit_reached());
        }
        match refused {
            None => Ok(found),
            Some(refused) if all == 1 => Err(refused),
            Some(Refused { reason, message }) => {
                let message = format!("{message}; the Service asks for {all} addresses and gets all of them or none");
                Err(Refused { reason, message })
            }
        }
    }
}

/// What a refusal says, with the address that it is about in front.
fn naming(request: &Request, message: String) -> String {
    match request.address {
        Some(address) if !message.starts_with(&format!("{address} ")) => format!("{address}: {message}"),
        _ => message,
    }
}
