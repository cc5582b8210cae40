//! What is left out of Services that are served: for people, in the status of their VirtualIP.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use core::net::Ipv4Addr;

use super::{Key, Limit, Object, ObjectName, Place, View};

/// Why a part of a VIP is not served although it has an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The ports of a Service beyond [`Limit::PortsPerObject`].
    TooManyPorts,
    /// All EndpointSlices of a Service hold names.
    NamesOnly,
    /// Endpoints of a Service stand on no node, or on one without a speaker: nodes translate for them ([`super::via`]).
    Via,
}

/// Services with more ports than the limit, and EndpointSlices of names.
#[derive(Clone, Debug, Default)]
pub(super) struct Parts {
    cut: BTreeSet<ObjectName>,
    names: BTreeMap<ObjectName, String>,
}

impl Parts {
    /// `cut`: what was left out of the object. Whether that is news.
    pub fn note(&mut self, object: &Object, cut: Option<Limit>) -> Result<bool, Limit> {
        match object {
            Object::Service(name, _) if cut.is_some() => Ok(self.cut.insert(name.clone())),
            Object::NameSlice(name, service) => {
                super::insert(&mut self.names, name.clone(), service.clone(), Limit::EndpointSlices)
            }
            other => Ok(self.forget(&other.key())),
        }
    }

    /// Whether it was noted.
    pub fn forget(&mut self, key: &Key) -> bool {
        match key {
            Key::Service(name) => self.cut.remove(name),
            Key::EndpointSlice(name) => self.names.remove(name).is_some(),
            Key::Node(_) | Key::VirtualIp(_) | Key::SpeakerState(_) | Key::L2Advertisement(_) | Key::Placement(_) => {
                false
            }
        }
    }

    pub fn name_slices(&self) -> impl Iterator<Item = &ObjectName> {
        self.names.keys()
    }

    fn has_names(&self, service: &ObjectName) -> bool {
        self.names.iter().any(|(slice, of)| slice.namespace == service.namespace && *of == service.name)
    }
}

impl View {
    /// What is not served of this VIP, of the first Service in order of its name.
    pub fn part(&self, vip: Ipv4Addr) -> Option<Part> {
        let services: BTreeSet<&ObjectName> = self.vips.get(&vip)?.services.iter().collect();
        services.into_iter().find_map(|service| self.part_of(service))
    }

    fn part_of(&self, service: &ObjectName) -> Option<Part> {
        if self.parts.cut.contains(service) {
            return Some(Part::TooManyPorts);
        }
        let is_of = |(name, slice): (&ObjectName, &super::EndpointSlice)| {
            name.namespace == service.namespace && slice.service == service.name
        };
        if self.parts.has_names(service) && !self.slices.iter().any(is_of) {
            return Some(Part::NamesOnly);
        }
        let mut endpoints = self.slices.iter().filter(|slice| is_of(*slice)).flat_map(|(_, slice)| &slice.endpoints);
        endpoints.any(|endpoint| self.place(endpoint) == Place::Via).then_some(Part::Via)
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use super::super::example::{VIP, pod, ports, slice, view, web};
    use super::super::{Change, Conditions, Endpoint, Event, Kind, Port, Service, ServiceAttributes};
    use super::*;

    fn ready() -> [Endpoint; 1] {
        [pod("a", 1, Conditions::READY)]
    }

    fn service_with(count: usize) -> Object {
        let first = ports(80, 53).remove(0);
        let port = |n: usize| Port { name: alloc::format!("p{n}"), port: u16::try_from(n).unwrap(), ..first.clone() };
        Object::Service(
            web(),
            Service { ports: (1..=count).map(port).collect(), attributes: ServiceAttributes::default() },
        )
    }

    #[test]
    fn one_port_too_many_is_left_out_and_said() {
        let mut known = view(ready());
        let most = Limit::PortsPerObject.value();
        assert_eq!(known.handle(Event::Apply(service_with(most))), Change::Changed);
        assert_eq!((known.part(VIP), known.refused().get(Limit::PortsPerObject)), (None, 0));
        let served = known.services()[&web()].clone();
        assert_eq!(known.handle(Event::Apply(service_with(most + 1))), Change::Refused(Limit::PortsPerObject));
        assert_eq!(known.services()[&web()], served, "the others stand");
        assert_eq!((known.part(VIP), known.refused().get(Limit::PortsPerObject)), (Some(Part::TooManyPorts), 1));
        assert_eq!(known.handle(Event::Apply(service_with(most))), Change::Changed, "the status changes");
        assert_eq!(known.part(VIP), None);
        known.handle(Event::Apply(service_with(most + 1)));
        assert_eq!(known.handle(Event::Delete(Key::Service(web()))), Change::Changed);
        assert_eq!(known.part(VIP), None);
    }

    #[test]
    fn a_service_with_names_only_is_said_and_one_with_an_address_is_served() {
        let mut known = view(ready());
        let names = |name: &str| Object::NameSlice(ObjectName::new("default", name), "web".into());
        assert_eq!(known.handle(Event::Apply(names("web-names"))), Change::Changed);
        assert_eq!(known.handle(Event::Apply(names("web-names"))), Change::None);
        assert_eq!(known.part(VIP), None, "another slice has addresses");
        assert_eq!(known.handle(Event::Apply(names("web-1"))), Change::Changed, "a slice of the same name");
        assert!(known.slices().is_empty());
        assert_eq!(known.part(VIP), Some(Part::NamesOnly));
        assert_eq!(known.handle(Event::Relisted(Kind::EndpointSlice, vec![names("web-1")])), Change::Changed);
        assert_eq!(known.handle(Event::Relisted(Kind::EndpointSlice, Vec::new())), Change::Changed);
        assert_eq!(known.part(VIP), None);
        known.handle(Event::Apply(names("web-1")));
        assert_eq!(known.handle(Event::Apply(slice(ready()))), Change::Changed);
        assert_eq!((known.part(VIP), known.slices().len()), (None, 1));
        let other = Object::NameSlice(ObjectName::new("elsewhere", "web-1"), "web".into());
        known.handle(Event::Relisted(Kind::EndpointSlice, vec![other]));
        assert_eq!(known.part(VIP), None, "of another namespace");
    }
}
