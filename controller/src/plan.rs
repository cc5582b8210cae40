//! Pure: what must be written next. The order of writes makes a crash between any two of them harmless: the finalizer comes before
//! the ledger entry, and the ledger entry before the status that shows the address. They go in the reverse order.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use k8s_openapi::jiff::Timestamp;
use sheave_api::{Refusal, ServiceRef};

use crate::advertisements::Announced;
use crate::allocator::Decided;
use crate::coverage;
use crate::family::Family;
use crate::index::{Entry, Index, Planned, SeenEntry, Subject, Write};
use crate::request::{Claim, Refused, Request};
use crate::status;
use crate::view::{ServiceKey, ServiceView};

impl Index {
    /// The next write, or none for now. The caller must hand every one back to [`finished`](Index::finished).
    pub fn next_write(&mut self, now: Instant, wall: Timestamp) -> Option<Planned> {
        // Those that follow keep freed addresses as well: one of them leads next.
        self.allocator.tick(now);
        if !self.is_synced() {
            return None;
        }
        // A follower, too: its notes and metrics say who else is there.
        self.observe_probes(now);
        self.refresh_surroundings();
        self.refresh_at_nodes();
        if !self.leading {
            return None;
        }
        self.follow_probes(now);
        while let Some(subject) = self.take_dirty(now) {
            let write = match &subject {
                Subject::Probe(node) => self.plan_probe(node, now),
                Subject::Address(address) => self.plan_address(*address),
                Subject::NodeAddress(address) => self.plan_node_address(*address),
                // Of a predecessor with the same name if the time differs; its successor is a subject of its own.
                Subject::Service(created, key) if self.services.get(key).is_some_and(|s| s.created == *created) => {
                    self.plan_service(key, now)
                }
                Subject::Service(..) => None,
                Subject::Pool(name) => self.plan_pool(name, wall),
                Subject::Advertisement(name) => self.plan_advertisement(name, wall),
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
    fn plan_service(&mut self, key: &ServiceKey, now: Instant) -> Option<Write> {
        let prepared = self.prepared.remove(key);
        let service = self.services.get(key)?.clone();
        self.left.remove(key);
        // It ends there if the Service wants it no more.
        let reserved = self.allocator.reservation(&service.uid);
        self.dirty.extend(reserved.map(Subject::Address));
        let requests = match self.claim(&service) {
            Claim::Wanted(requests) => requests,
            Claim::AtNodes(_) => return self.plan_at_nodes(&service),
            Claim::Foreign => return self.let_go(&service),
            Claim::Others(who) => {
                self.left.insert(key.clone(), who);
                let mut write = self.let_go(&service)?;
                if let Write::Status(write) = &mut write {
                    write.notes.clear();
                }
                return Some(write);
            }
            Claim::Refused(refused) => return self.refuse(&service, &refused),
        };
        let chosen = prepared.or(reserved);
        let requests: Vec<Request> = requests.into_iter().map(|request| request.preferring(chosen)).collect();
        let decided = self.allocator.decide_all(&requests);
        let Some((address, pool)) = &decided.grant else { return self.keep(&service, decided) };
        // IPv4 is shown first: nothing about IPv6 keeps it waiting. A predecessor's IPv6 address is in the status until then.
        let is_allocated = service.condition.as_ref().is_some_and(|condition| condition.allocated);
        let waits = address.is_ipv6() && !is_allocated && service.shown_of(Family::V6).is_empty();
        if waits && let Some(write) = self.keep(&service, decided.clone()) {
            return Some(write);
        }
        if chosen != Some(*address) && !self.may_grant(key, *address, now) {
            return None;
        }
        self.grant(&service, *address, pool)
    }

    /// The next step of a Service to an address: the finalizer, then the ledger.
    fn grant(&mut self, service: &ServiceView, address: IpAddr, pool: &str) -> Option<Write> {
        if address.is_ipv4() {
            self.waiting.remove(&service.key);
        }
        self.allocator.reserve(address, pool.to_string(), service.reference());
        if !service.finalizer_is_ours() {
            return Some(Write::Prepare { address, write: status::granting(service, address, pool) });
        }
        if self.is_shared(address, &service.uid) {
            // The ledger is changed by the address's own plan, for all Services at once.
            self.dirty.insert(Subject::Address(address));
            return None;
        }
        let service = service.reference();
        let announced = self.announced(pool, std::slice::from_ref(&service), &Announced::default());
        Some(Write::Grant { address, pool: pool.to_string(), service, announced })
    }

    /// A Service keeps what it has, or has nothing.
    fn keep(&mut self, service: &ServiceView, decided: Decided) -> Option<Write> {
        let Decided { kept, refused, .. } = decided;
        let mut v4 = kept.iter().filter_map(|(address, remark)| match address {
            IpAddr::V4(address) => Some((*address, remark.clone())),
            IpAddr::V6(_) => None,
        });
        let Some((address, remark)) = v4.next() else {
            let (_, refused) = refused.into_iter().next()?;
            return self.refuse(service, &refused);
        };
        let kept_v6 = kept.iter().find(|(address, _)| address.is_ipv6()).cloned();
        let refused_v6 = refused.into_iter().find(|(family, _)| *family == Family::V6).map(|(_, refused)| refused);
        let keeps: Vec<IpAddr> = kept.iter().map(|(address, _)| *address).collect();
        // What it is still to have is reserved, not granted.
        self.mark_others(&service.uid, &keeps);
        let second = Second::of(self, kept_v6, refused_v6);
        // Of IPv6 none is missing where the Service would do without.
        let missing = second.remark.clone().filter(|_| service.requires_both || second.address.is_some());
        let first = remark.as_ref().or(missing.as_ref()).map(|remark| remark.reason);
        match first {
            Some(reason) => self.waiting.insert(service.key.clone(), reason),
            None => self.waiting.remove(&service.key),
        };
        if second.remark.is_some() && second.address.is_none() {
            self.beside.insert(service.key.clone());
        } else {
            self.beside.remove(&service.key);
        }
        self.show(service, address, remark.into_iter().chain(missing).collect(), second.fate.as_deref())
    }

    /// Whether the ledger has an entry that is to name the Service as well, or is about to have one.
    fn is_shared(&self, address: IpAddr, uid: &str) -> bool {
        let busy = |service: &ServiceRef| service.uid != uid && self.is_in_flight(service);
        self.grants.get(&address).is_some() || self.allocator.reserved(address).any(busy)
    }

    /// An entry of the ledger: gone when no Service keeps it and none shows it any more; else it names those that do, those that
    /// are to share it, the pool that contains the address, and the L2Advertisements that select it.
    fn plan_address(&mut self, address: IpAddr) -> Option<Write> {
        let joining = self.joining(address);
        let grant = self.grants.get(&address)?;
        let stays =
            |holder: &&ServiceRef| !self.allocator.is_leaving(address, &holder.uid) && self.stays(holder, address);
        let (staying, leaving): (Vec<&ServiceRef>, Vec<&ServiceRef>) = grant.services.iter().partition(stays);
        let services: Vec<ServiceRef> = staying.into_iter().cloned().chain(joining).collect();
        let leaving: Vec<&str> = leaving.into_iter().map(|service| service.uid.as_str()).collect();
        let pool = self.allocator.taken(address).map_or(&grant.pool, |taken| &taken.pool);
        let announced = self.announced(pool, &services, &grant.announced);
        let from =
            Entry { pool: grant.pool.clone(), services: grant.services.clone(), announced: grant.announced.clone() };
        let to = Entry { pool: pool.clone(), services, announced };
        let entry = SeenEntry::from(grant);
        self.allocator.leave(address, &leaving);
        if to.services.is_empty() {
            return Some(Write::Release(entry));
        }
        if from != to { Some(Write::Amend { entry, from, to }) } else { self.confirm(address) }
    }

    /// Whether a Service that the ledger names keeps the address, or shows it still.
    fn stays(&self, holder: &ServiceRef, address: IpAddr) -> bool {
        // What cannot be read is not known to be over.
        if self.is_unreadable(&ServiceKey::from(holder)) {
            return true;
        }
        let Some(service) = self.services.get(&ServiceKey::from(holder)).filter(|s| s.uid == holder.uid) else {
            return false;
        };
        // A third party may have taken our condition away.
        let is_ours = service.condition.is_some() || service.finalizer_is_ours();
        let shown_by_us = is_ours && service.shows(address);
        // Without the ledger entry nothing would say whose the finalizer is.
        let unmarked = service.finalizer && !service.finalizer_is_ours();
        shown_by_us || unmarked || self.is_in_flight(holder) || self.keeps(service, address)
    }

    /// Services that the ledger is to name as well. A reservation that leads to nothing ends.
    fn joining(&mut self, address: IpAddr) -> Vec<ServiceRef> {
        let reserved = self.allocator.reserved(address).cloned();
        let (busy, waiting): (Vec<ServiceRef>, Vec<ServiceRef>) =
            reserved.partition(|service| self.is_in_flight(service));
        let (mut joining, exists) = (Vec::new(), self.grants.get(&address).is_some());
        if !exists && !busy.is_empty() {
            return joining;
        }
        for service in waiting {
            if exists && self.wants(&service, address) {
                joining.push(service);
            } else {
                self.allocator.unreserve(address, &service.uid);
                self.mark_service(&ServiceKey::from(&service));
            }
        }
        joining
    }

    /// Whether the Service is prepared for this address and none else is granted to it.
    fn wants(&self, holder: &ServiceRef, address: IpAddr) -> bool {
        let service = self.services.get(&ServiceKey::from(holder));
        let Some(service) = service.filter(|s| s.uid == holder.uid && s.finalizer_is_ours()) else { return false };
        let Claim::Wanted(requests) = self.claim(service) else { return false };
        let requests: Vec<Request> = requests.into_iter().map(|one| one.preferring(Some(address))).collect();
        self.allocator.decide_all(&requests).grant.is_some_and(|(found, _)| found == address)
    }

    /// Whether a write about this Service is under way.
    fn is_in_flight(&self, holder: &ServiceRef) -> bool {
        let key = ServiceKey::from(holder);
        let subject = |service: &ServiceView| Subject::Service(service.created, key.clone());
        let service = self.services.get(&key).filter(|service| service.uid == holder.uid);
        service.is_some_and(|service| self.in_flight.contains(&subject(service)))
    }

    fn plan_pool(&self, name: &str, wall: Timestamp) -> Option<Write> {
        let (view, pool) = (self.pools.get(&name.to_string())?, self.allocator.pool(name)?);
        let (usage, excluded_by) = (self.allocator.usage(name), self.allocator.excluded_by(name));
        let about = self.about_probes(name);
        let status = status::pool_status(view, pool, usage, &excluded_by, &about, wall)?;
        Some(Write::PoolStatus { pool: name.to_string(), status })
    }

    /// Whether this is an address that the Service is to have, rather than another one.
    fn keeps(&self, service: &ServiceView, address: IpAddr) -> bool {
        match self.claim(service) {
            Claim::Foreign | Claim::Others(_) | Claim::AtNodes(_) => false,
            Claim::Refused(_) => self.held_first(service).contains(&address),
            // The new one is not in the ledger yet; until then the old one stays.
            Claim::Wanted(requests) => self.allocator.decide_all(&requests).keeps(address),
        }
    }

    /// A refusal takes nothing away: what the Service has stays, with the refusal as a remark.
    fn refuse(&mut self, service: &ServiceView, refused: &Refused) -> Option<Write> {
        self.waiting.insert(service.key.clone(), refused.reason);
        self.beside.remove(&service.key);
        let held = self.held_first(service);
        let first = held.iter().find_map(|address| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        });
        match first {
            Some(address) => {
                let second = held.iter().find(|address| address.is_ipv6()).map(|address| self.reserved(*address));
                self.show(service, address, vec![refused.clone().keeping(address.into())], second.as_deref())
            }
            // The finalizer goes with this write, so not before the ledger entry; when that is gone the Service is planned again.
            None if self.allocator.is_listed(&service.uid) => {
                self.mark_held(&service.uid);
                status::withdrawn(service, &[], true).map(Write::Status)
            }
            None => {
                self.partly.remove(&service.key);
                // Without any pool we are not (yet) in charge and leave what a predecessor wrote.
                let in_charge = refused.reason != Refusal::NoPool || self.allocator.has_pools();
                let may_empty = in_charge && self.whose.may_empty(service);
                status::refused(service, refused, may_empty).map(Write::Status)
            }
        }
    }

    /// `second`: what became of its IPv6 address.
    fn show(
        &mut self,
        service: &ServiceView,
        vip: Ipv4Addr,
        remarks: Vec<Refused>,
        second: Option<&str>,
    ) -> Option<Write> {
        let address = IpAddr::V4(vip);
        if !service.shows(address) && !self.is_confirmed(address) {
            // Planned again when that is done.
            self.dirty.insert(Subject::Address(address));
            return None;
        }
        let grant = self.grants.get(&address);
        let mut parts =
            coverage::remarks(service, &grant.map(|grant| grant.partly.clone()).unwrap_or_default(), second);
        // The owner's speaker names the reasons, not the Service of each.
        let reported = |part: &&mut Refused| coverage::is_reported(part.reason);
        if grant.is_some_and(|grant| grant.services.len() > 1) {
            let reported = parts.iter_mut().filter(reported);
            reported.for_each(|part| part.message.push_str(" (of one of the Services that share the address)"));
        }
        self.partly.insert(service.key.clone(), parts.iter().map(|part| part.reason).collect());
        let pool = self.allocator.taken(address).map_or("", |taken| taken.pool.as_str());
        let said: Vec<Refusal> = remarks.iter().map(|remark| remark.reason).collect();
        let parts = parts.into_iter().filter(|part| !said.contains(&part.reason));
        let remarks: Vec<Refused> = remarks.into_iter().chain(parts).collect();
        let write = status::allocated(service, vip, pool, &remarks)?;
        let write = if self.whose.may_write(service) { Some(write) } else { write.without_ingress() };
        write.map(Write::Status)
    }

    /// That an IPv6 address is reserved, for the condition.
    fn reserved(&self, address: IpAddr) -> String {
        let pool = self.allocator.taken(address).map_or("", |taken| taken.pool.as_str());
        format!("{address} from pool '{pool}' is reserved")
    }

    /// Not ours, or not any more: what we wrote is taken back.
    fn let_go(&mut self, service: &ServiceView) -> Option<Write> {
        self.waiting.remove(&service.key);
        self.partly.remove(&service.key);
        self.beside.remove(&service.key);
        if let Some(shown) = self.at_nodes.shown(service) {
            return status::withdrawn_from_nodes(service, &shown).map(Write::Status);
        }
        let held: Vec<IpAddr> = self.allocator.held_by(&service.uid).collect();
        status::withdrawn(service, &held, self.allocator.is_listed(&service.uid)).map(Write::Status)
    }

    /// Of what the Service holds, the address that its status shows, else the lowest; beside it one of IPv6, if it still wants one.
    fn held_first(&self, service: &ServiceView) -> Vec<IpAddr> {
        let held = self.allocator.held_by(&service.uid).filter(|address| address.is_ipv4() || service.wants_ipv6);
        let mut held: Vec<IpAddr> = held.collect();
        held.sort_by_key(|address| (Family::of(*address), !service.shows(*address), *address));
        held.dedup_by_key(|address| Family::of(*address));
        if held.first().is_some_and(IpAddr::is_ipv6) { Vec::new() } else { held }
    }

    /// A Service that has moved to another address gives the old one back, and what it wants no more.
    fn mark_others(&mut self, uid: &str, kept: &[IpAddr]) {
        let others = self.allocator.held_by(uid).filter(|address| !kept.contains(address));
        let others: Vec<IpAddr> = others.collect();
        self.dirty.extend(others.into_iter().map(Subject::Address));
    }
}

/// What became of the IPv6 address of a Service that has one of IPv4.
struct Second {
    address: Option<IpAddr>,
    /// What is not as the Service wants it.
    remark: Option<Refused>,
    /// For the condition.
    fate: Option<String>,
}

impl Second {
    fn of(index: &Index, kept: Option<(IpAddr, Option<Refused>)>, refused: Option<Refused>) -> Self {
        match (kept, refused) {
            (Some((address, remark)), _) => {
                Second { address: Some(address), remark, fate: Some(index.reserved(address)) }
            }
            (None, Some(refused)) => {
                let fate = Some(format!("no address is reserved, {}", refused.message));
                Second { address: None, remark: Some(refused), fate }
            }
            // It is being reserved, or not wanted.
            (None, None) => Second { address: None, remark: None, fate: None },
        }
    }
}
