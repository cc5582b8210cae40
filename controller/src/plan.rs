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
use crate::view::{GrantView, ServiceKey, ServiceView};

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
        if self.leading {
            self.count_all();
        }
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
        // They end there if the Service wants them no more.
        let mut chosen = self.allocator.reservations_of(&service.uid);
        self.dirty.extend(chosen.iter().copied().map(Subject::Address));
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
        let preferred = prepared.or(chosen.first().copied());
        chosen.extend(prepared);
        let requests: Vec<Request> = requests.into_iter().map(|request| request.preferring(preferred)).collect();
        let decided = self.allocator.decide_all(&requests);
        if decided.grants.is_empty() {
            return self.keep(&service, decided);
        }
        // IPv4 is shown first: nothing about IPv6 keeps it waiting. A predecessor's IPv6 address is in the status until then.
        let is_allocated = service.condition.as_ref().is_some_and(|condition| condition.allocated);
        let is_second = decided.grants.iter().all(|(address, _)| address.is_ipv6());
        let waits = is_second && !is_allocated && service.shown_of(Family::V6).is_empty();
        if waits && let Some(write) = self.keep(&service, decided.clone()) {
            return Some(write);
        }
        let new = decided.grants.iter().map(|(address, _)| *address).filter(|address| !chosen.contains(address));
        let new: Vec<IpAddr> = new.collect();
        let grants: Vec<IpAddr> = decided.grants.iter().map(|(address, _)| *address).collect();
        if let Some(refused) = self.lacks_room(&service, &grants) {
            return self.refuse(&service, &refused);
        }
        if !self.may_grant(key, &new, now) {
            return None;
        }
        self.grant(&service, &decided.grants)
    }

    /// The next step of a Service to its addresses: the finalizer, then the ledger, one entry after the other.
    fn grant(&mut self, service: &ServiceView, grants: &[(IpAddr, String)]) -> Option<Write> {
        if grants.iter().any(|(address, _)| address.is_ipv4()) {
            self.waiting.remove(&service.key);
        }
        self.allocator.reserve(grants, &service.reference());
        self.count(&service.key);
        if !service.finalizer_is_ours() {
            let (address, _) = grants.first()?;
            return Some(Write::Prepare { address: *address, write: status::granting(service, grants) });
        }
        for (address, pool) in grants {
            if self.is_shared(*address, &service.uid) {
                // The ledger is changed by the address's own plan, for all Services at once.
                self.dirty.insert(Subject::Address(*address));
                continue;
            }
            let service = service.reference();
            let announced = self.announced(pool, std::slice::from_ref(&service), &Announced::default());
            return Some(Write::Grant { address: *address, pool: pool.clone(), service, announced });
        }
        None
    }

    /// A Service keeps what it has, or has nothing.
    fn keep(&mut self, service: &ServiceView, decided: Decided) -> Option<Write> {
        let Decided { kept, refused, .. } = decided;
        let v4: Vec<Ipv4Addr> = kept.iter().filter_map(|(address, _)| v4(address)).collect();
        if v4.is_empty() {
            let (_, refused) = refused.into_iter().next()?;
            return self.refuse_all(service, &refused);
        }
        let remarks = kept.iter().filter(|(address, _)| address.is_ipv4());
        let mut remarks: Vec<Refused> = remarks.filter_map(|(_, remark)| remark.clone()).collect();
        let kept_v6 = kept.iter().find(|(address, _)| address.is_ipv6()).cloned();
        let refused_v6 = refused.into_iter().find(|(family, _)| *family == Family::V6).map(|(_, refused)| refused);
        let keeps: Vec<IpAddr> = kept.iter().map(|(address, _)| *address).collect();
        // What it is still to have is reserved, not granted.
        self.mark_others(&service.uid, &keeps);
        let second = Second::of(self, kept_v6, refused_v6);
        // Of IPv6 none is missing where the Service would do without.
        let missing = second.remark.clone().filter(|_| service.requires_both || second.address.is_some());
        remarks.extend(missing);
        match remarks.first().map(|remark| remark.reason) {
            Some(reason) => self.waiting.insert(service.key.clone(), reason),
            None => self.waiting.remove(&service.key),
        };
        if second.remark.is_some() && second.address.is_none() {
            self.beside.insert(service.key.clone());
        } else {
            self.beside.remove(&service.key);
        }
        self.show(service, &v4, remarks, second.fate.as_deref())
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
                self.count(&ServiceKey::from(&service));
                self.mark_service(&ServiceKey::from(&service));
                // It may have kept others from the address.
                self.mark_waiting();
            }
        }
        joining
    }

    /// Whether the Service is prepared for this address and is to have it.
    fn wants(&self, holder: &ServiceRef, address: IpAddr) -> bool {
        let service = self.services.get(&ServiceKey::from(holder));
        let Some(service) = service.filter(|s| s.uid == holder.uid && s.finalizer_is_ours()) else { return false };
        let Claim::Wanted(requests) = self.claim(service) else { return false };
        let requests: Vec<Request> = requests.into_iter().map(|one| one.preferring(Some(address))).collect();
        self.allocator.decide_all(&requests).grants(address)
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
        let mut status = status::pool_status(view, pool, usage, &excluded_by, &about, wall)?;
        status["metadata"] = status::as_seen(&view.uid, view.version);
        Some(Write::PoolStatus { pool: name.to_string(), status })
    }

    /// Whether this is an address that the Service is to have, rather than another one.
    fn keeps(&self, service: &ServiceView, address: IpAddr) -> bool {
        match self.claim(service) {
            Claim::Foreign | Claim::Others(_) | Claim::AtNodes(_) => false,
            Claim::Refused(_) => self.had(service).contains(&address),
            // The new one is not in the ledger yet; until then the old one stays.
            Claim::Wanted(requests) => self.allocator.decide_all(&requests).keeps(address),
        }
    }

    /// A refusal takes nothing away: what the Service has stays, with the refusal as a remark.
    fn refuse(&mut self, service: &ServiceView, refused: &Refused) -> Option<Write> {
        self.waiting.insert(service.key.clone(), refused.reason);
        self.beside.remove(&service.key);
        let had = self.had(service);
        let vips: Vec<Ipv4Addr> = had.iter().filter_map(v4).collect();
        if vips.is_empty() {
            return self.refuse_all(service, refused);
        }
        let second = had.iter().find(|address| address.is_ipv6()).map(|address| self.reserved(*address));
        let stay: Vec<IpAddr> = vips.iter().copied().map(IpAddr::V4).collect();
        self.show(service, &vips, vec![refused.clone().keeping(&stay)], second.as_deref())
    }

    /// The Service keeps nothing.
    fn refuse_all(&mut self, service: &ServiceView, refused: &Refused) -> Option<Write> {
        self.waiting.insert(service.key.clone(), refused.reason);
        self.beside.remove(&service.key);
        // The finalizer goes with this write, so not before the ledger entries; when those are gone the Service is planned again.
        if self.allocator.is_listed(&service.uid) {
            self.mark_held(&service.uid);
            return status::withdrawn(service, &[], true).map(Write::Status);
        }
        self.partly.remove(&service.key);
        // Without any pool we are not (yet) in charge and leave what a predecessor wrote.
        let in_charge = refused.reason != Refusal::NoPool || self.allocator.has_pools();
        let may_empty = in_charge && self.whose.may_empty(service);
        status::refused(service, refused, may_empty).map(Write::Status)
    }

    /// `second`: what became of its IPv6 address.
    fn show(
        &mut self,
        service: &ServiceView,
        vips: &[Ipv4Addr],
        remarks: Vec<Refused>,
        second: Option<&str>,
    ) -> Option<Write> {
        let addresses = vips.iter().copied().map(IpAddr::V4);
        let late = addresses.clone().filter(|address| !service.shows(*address) && !self.is_confirmed(*address));
        let late: Vec<IpAddr> = late.collect();
        if !late.is_empty() {
            // Planned again when that is done.
            self.dirty.extend(late.into_iter().map(Subject::Address));
            return None;
        }
        let grants: Vec<&GrantView> = addresses.clone().filter_map(|address| self.grants.get(&address)).collect();
        let partly = grants.iter().flat_map(|grant| &grant.partly).copied().collect();
        let (without_place, ports) = self.without_place(&service.key);
        let mut parts = coverage::remarks(service, &partly, second);
        drop(parts.splice(..0, without_place));
        // The owner's speaker names the reasons, not the Service of each.
        let reported = |part: &&mut Refused| coverage::is_reported(part.reason);
        if grants.iter().any(|grant| grant.services.len() > 1) {
            let reported = parts.iter_mut().filter(reported);
            reported.for_each(|part| part.message.push_str(" (of one of the Services that share the address)"));
        }
        self.partly.insert(service.key.clone(), parts.iter().map(|part| part.reason).collect());
        let pool = |vip: &Ipv4Addr| self.allocator.taken(IpAddr::V4(*vip)).map_or("", |taken| taken.pool.as_str());
        let granted: Vec<(Ipv4Addr, &str)> = vips.iter().map(|vip| (*vip, pool(vip))).collect();
        let said: Vec<Refusal> = remarks.iter().map(|remark| remark.reason).collect();
        let parts = parts.into_iter().filter(|part| !said.contains(&part.reason));
        let remarks: Vec<Refused> = remarks.into_iter().chain(parts).collect();
        let write = status::allocated(service, &granted, &remarks, &ports)?;
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

    /// What the Service has had of what is granted to it; beside that one address of IPv6, if it still wants one.
    fn had(&self, service: &ServiceView) -> Vec<IpAddr> {
        let (four, six): (Vec<IpAddr>, Vec<IpAddr>) =
            self.allocator.held_by(&service.uid).partition(|address| address.is_ipv4());
        let had = service.had(&four.iter().filter_map(v4).collect::<Vec<_>>());
        let second = six.first().filter(|_| service.wants_ipv6 && !had.is_empty()).copied();
        had.into_iter().map(IpAddr::V4).chain(second).collect()
    }

    /// A Service that has moved to another address gives the old one back, and what it wants no more.
    fn mark_others(&mut self, uid: &str, kept: &[IpAddr]) {
        let others = self.allocator.held_by(uid).filter(|address| !kept.contains(address));
        let others: Vec<IpAddr> = others.collect();
        self.dirty.extend(others.into_iter().map(Subject::Address));
    }
}

fn v4(address: &IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
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
