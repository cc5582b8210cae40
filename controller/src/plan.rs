//! Pure: what must be written next. The order of writes makes a crash between any two of them harmless: the finalizer comes before
//! the ledger entry, and the ledger entry before the status that shows the address. They go in the reverse order.

use std::net::Ipv4Addr;
use std::time::Instant;

use k8s_openapi::jiff::Timestamp;

use crate::allocator::{Decision, State};
use crate::coverage;
use crate::index::{Index, Planned, Subject, Write};
use crate::request::{Claim, Refused, claim};
use crate::status;
use crate::view::{ServiceKey, ServiceView};

impl Index {
    /// The next write, or none for now. The caller must hand every one back to [`finished`](Index::finished).
    pub fn next_write(&mut self, now: Instant, wall: Timestamp) -> Option<Planned> {
        if !self.leading || !self.is_synced() {
            return None;
        }
        while let Some(subject) = self.take_dirty(now) {
            let write = match &subject {
                Subject::Address(address) => self.plan_address(*address),
                // Of a predecessor with the same name if the time differs; its successor is a subject of its own.
                Subject::Service(created, key) if self.services.get(key).is_some_and(|s| s.created == *created) => {
                    self.plan_service(key)
                }
                Subject::Service(..) => None,
                Subject::Pool(name) => self.plan_pool(name, wall),
            };
            if let Some(write) = write {
                self.in_flight.insert(subject.clone());
                return Some(Planned { subject, write });
            }
        }
        None
    }

    /// The first subject that something may be done about: nothing on its way, no pause after a failure.
    fn take_dirty(&mut self, now: Instant) -> Option<Subject> {
        let paused = |subject: &Subject| self.not_before.get(subject).is_some_and(|at| *at > now);
        let subject = self.dirty.iter().find(|s| !self.in_flight.contains(*s) && !paused(s)).cloned()?;
        self.dirty.remove(&subject);
        self.not_before.remove(&subject);
        Some(subject)
    }

    /// A Service: prepare, grant, then show; or refuse with the reason.
    fn plan_service(&mut self, key: &ServiceKey) -> Option<Write> {
        let prepared = self.prepared.remove(key);
        let service = self.services.get(key)?.clone();
        let mut request = match claim(&service) {
            Claim::Wanted(request) => request,
            Claim::Foreign => {
                self.waiting.remove(key);
                self.partly.remove(key);
                return self.withdraw(&service).map(Write::Status);
            }
            Claim::Refused(refused) => return self.refuse(&service, &refused),
        };
        request.adopt = prepared.or(request.adopt);
        match self.allocator.decide(&request) {
            Decision::Keep { address, remark } => {
                match &remark {
                    Some(remark) => self.waiting.insert(key.clone(), remark.reason),
                    None => self.waiting.remove(key),
                };
                self.mark_others(&service.uid, address);
                self.show(&service, address, remark)
            }
            Decision::Grant { address, pool } => {
                self.waiting.remove(key);
                self.allocator.reserve(address, pool.clone(), request.service.clone());
                if service.finalizer_is_ours() {
                    return Some(Write::Grant { address, pool, service: request.service });
                }
                Some(Write::Prepare { address, write: status::granting(&service, address, &pool) })
            }
            Decision::Refuse(refused) => self.refuse(&service, &refused),
        }
    }

    /// An entry of the ledger: gone when no Service keeps it and none shows it any more.
    fn plan_address(&mut self, address: Ipv4Addr) -> Option<Write> {
        let grant = self.grants.get(&address)?;
        let release = Write::Release { address, uid: grant.uid.clone() };
        if self.allocator.taken(address).is_some_and(|taken| taken.state == State::Leaving) {
            return Some(release);
        }
        for holder in &grant.services {
            let Some(service) = self.services.get(&ServiceKey::from(holder)).filter(|s| s.uid == holder.uid) else {
                continue;
            };
            // A third party may have taken our condition away.
            let is_ours = service.condition.is_some() || service.finalizer_is_ours();
            let shown_by_us = is_ours && service.shows(address);
            // Without the ledger entry nothing would say whose the finalizer is.
            let unmarked = service.finalizer && !service.finalizer_is_ours();
            let may_be_shown = self.in_flight.contains(&Subject::Service(service.created, service.key.clone()));
            if shown_by_us || unmarked || may_be_shown || self.keeps(service, address) {
                return None;
            }
        }
        self.allocator.leave(address);
        Some(release)
    }

    fn plan_pool(&self, name: &str, wall: Timestamp) -> Option<Write> {
        let (view, pool) = (self.pools.get(&name.to_string())?, self.allocator.pool(name)?);
        let status = status::pool_status(view, pool, self.allocator.usage(name), wall)?;
        Some(Write::PoolStatus { pool: name.to_string(), status })
    }

    /// Whether this is the address that the Service is to have, rather than another one.
    fn keeps(&self, service: &ServiceView, address: Ipv4Addr) -> bool {
        match claim(service) {
            Claim::Foreign => false,
            Claim::Refused(_) => self.held_first(service) == Some(address),
            Claim::Wanted(request) => match self.allocator.decide(&request) {
                Decision::Keep { address: kept, .. } => kept == address,
                // The new one is not in the ledger yet; until then the old one stays.
                Decision::Grant { .. } => true,
                Decision::Refuse(_) => false,
            },
        }
    }

    /// A refusal takes nothing away: what the Service has stays, with the refusal as a remark.
    fn refuse(&mut self, service: &ServiceView, refused: &Refused) -> Option<Write> {
        self.waiting.insert(service.key.clone(), refused.reason);
        match self.held_first(service) {
            Some(address) => self.show(service, address, Some(refused.clone().keeping(address))),
            // The finalizer goes with this write, so not before the ledger entry; when that is gone the Service is planned again.
            None if self.allocator.is_listed(&service.uid) => None,
            None => {
                self.partly.remove(&service.key);
                status::refused(service, refused, self.allocator.has_pools()).map(Write::Status)
            }
        }
    }

    fn show(&mut self, service: &ServiceView, address: Ipv4Addr, remark: Option<Refused>) -> Option<Write> {
        let partly = self.grants.get(&address).and_then(|grant| grant.partly);
        let parts = coverage::remarks(service, partly);
        self.partly.insert(service.key.clone(), parts.iter().map(|part| part.reason).collect());
        let pool = self.allocator.taken(address).map_or("", |taken| taken.pool.as_str());
        let said = remark.as_ref().map(|remark| remark.reason);
        let parts = parts.into_iter().filter(|part| Some(part.reason) != said);
        let remarks: Vec<Refused> = remark.into_iter().chain(parts).collect();
        status::allocated(service, address, pool, &remarks).map(Write::Status)
    }

    fn withdraw(&self, service: &ServiceView) -> Option<status::StatusWrite> {
        let held: Vec<Ipv4Addr> = self.allocator.held_by(&service.uid).collect();
        status::withdrawn(service, &held, self.allocator.is_listed(&service.uid))
    }

    /// Of what the Service holds, the address that its status shows, else the lowest.
    fn held_first(&self, service: &ServiceView) -> Option<Ipv4Addr> {
        let mut held: Vec<Ipv4Addr> = self.allocator.held_by(&service.uid).collect();
        held.sort_by_key(|address| (!service.shows(*address), *address));
        held.first().copied()
    }

    /// A Service that has moved to another address gives the old one back.
    fn mark_others(&mut self, uid: &str, kept: Ipv4Addr) {
        let others: Vec<Ipv4Addr> = self.allocator.held_by(uid).filter(|address| *address != kept).collect();
        self.dirty.extend(others.into_iter().map(Subject::Address));
    }
}
