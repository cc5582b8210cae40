//! What is left out of Services that are served: for people, in the status of their VirtualIP.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Arc;
use core::net::Ipv4Addr;

use super::{Endpoint, EndpointSlice, Key, Limit, Object, ObjectName, Place, View};

/// Why a part of a VIP is not served although it has an owner. In the order of how much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// EndpointSlices of a Service hold names, alone or beside others that hold addresses.
    Names,
    /// Endpoints of a Service that serve name a node that the view does not hold.
    NodeUnknown,
    /// They stand on a node that has no speaker yet: it may get one, so no other node translates for them ([`super::place`]).
    NoSpeakerYet,
    /// Endpoints of a Service that serve have an address to which nothing may be sent.
    EndpointAddress,
    /// EndpointSlices of a Service have no room in the view ([`Limit::EndpointSlices`]).
    TooManySlices,
    /// The ports of an EndpointSlice beyond [`Limit::PortsPerObject`].
    TooManyEndpointPorts,
    /// Endpoints of a Service stand on no node, or on one without a speaker: nodes translate for them ([`super::via`]).
    Via,
    /// The ports of a Service beyond [`Limit::PortsPerObject`].
    TooManyPorts,
}

/// Services and EndpointSlices with more ports than the limit, and EndpointSlices of names.
#[derive(Clone, Debug, Default)]
pub(super) struct Parts {
    cut: BTreeSet<ObjectName>,
    cut_slices: BTreeSet<ObjectName>,
    names: BTreeMap<ObjectName, String>,
}

impl Parts {
    /// `cut`: ports were left out of the object. Whether that is news.
    pub fn note(&mut self, object: &Object, cut: bool) -> Result<bool, Limit> {
        match object {
            Object::Service(name, _) if cut => Ok(self.cut.insert(name.clone())),
            Object::EndpointSlice(name, _) if cut => {
                let named = self.names.remove(name).is_some();
                let has_room = self.cut_slices.len() < Limit::EndpointSlices.value();
                Ok((has_room && self.cut_slices.insert(name.clone())) | named)
            }
            Object::NameSlice(name, service) => {
                self.cut_slices.remove(name);
                super::insert(&mut self.names, name.clone(), service.clone(), Limit::EndpointSlices)
            }
            other => Ok(self.forget(&other.key())),
        }
    }

    /// Whether it was noted.
    pub fn forget(&mut self, key: &Key) -> bool {
        match key {
            Key::Service(name) => self.cut.remove(name),
            Key::EndpointSlice(name) => self.names.remove(name).is_some() | self.cut_slices.remove(name),
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
    /// What is not served of this VIP, of all its Services.
    pub fn parts(&self, vip: Ipv4Addr) -> BTreeSet<Part> {
        let services = self.vips.get(&vip).map_or(&[][..], |granted| &granted.services);
        services.iter().flat_map(|service| self.parts_of(service)).collect()
    }

    fn parts_of(&self, service: &ObjectName) -> BTreeSet<Part> {
        let mut parts: BTreeSet<Part> =
            self.parts.cut.contains(service).then_some(Part::TooManyPorts).into_iter().collect();
        let is_of = |(name, slice): &(&ObjectName, &Arc<EndpointSlice>)| {
            name.namespace == service.namespace && slice.service == service.name
        };
        if self.parts.has_names(service) {
            parts.insert(Part::Names);
        }
        if self.left_out.has_slice_of(service) {
            parts.insert(Part::TooManySlices);
        }
        for (name, slice) in self.slices.iter().filter(is_of) {
            parts.extend(self.parts.cut_slices.contains(name).then_some(Part::TooManyEndpointPorts));
            parts.extend(slice.endpoints.iter().filter_map(|endpoint| self.part_of(endpoint)));
        }
        parts
    }

    /// Of one that serves: the others would not be served either way.
    fn part_of(&self, endpoint: &Endpoint) -> Option<Part> {
        if !(endpoint.conditions.ready || endpoint.conditions.serving) {
            return None;
        }
        if !self.may_be_sent_to(endpoint.address) {
            return Some(Part::EndpointAddress);
        }
        match self.place(endpoint) {
            Place::Via => Some(Part::Via),
            Place::Unknown => Some(Part::NodeUnknown),
            Place::Node(name) => self.awaits_speaker(name).then_some(Part::NoSpeakerYet),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use super::super::example::{UNREADY, VIP, pod, ports, service, slice, slice_named, view, vip, web};
    use super::super::{Change, Conditions, Event, Kind, Node, Port, Service, ServiceAttributes, SpeakerState};
    use super::*;

    fn parts(view: &View) -> Vec<Part> {
        view.parts(VIP).into_iter().collect()
    }

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
        assert_eq!((parts(&known), known.refused().get(Limit::PortsPerObject)), (vec![], 0));
        let served = known.services()[&web()].clone();
        assert_eq!(known.handle(Event::Apply(service_with(most + 1))), Change::Refused(Limit::PortsPerObject));
        assert_eq!(known.services()[&web()], served, "the others stand");
        assert_eq!((parts(&known), known.refused().get(Limit::PortsPerObject)), (vec![Part::TooManyPorts], 1));
        assert_eq!(known.handle(Event::Apply(service_with(most))), Change::Changed, "the status changes");
        assert_eq!(parts(&known), []);
        known.handle(Event::Apply(service_with(most + 1)));
        assert_eq!(known.handle(Event::Delete(Key::Service(web()))), Change::Changed);
        assert_eq!(parts(&known), []);
    }

    /// discovery/v1 allows 20,000.
    #[test]
    fn one_port_of_a_slice_too_many_is_said_until_it_is_gone() {
        let wide = |count: usize| {
            let Object::Service(_, Service { ports, .. }) = service_with(count) else { unreachable!() };
            let slice = EndpointSlice { service: "web".into(), ports, endpoints: ready().into() };
            Event::Apply(Object::EndpointSlice(ObjectName::new("default", "web-1"), slice))
        };
        let mut known = view(ready());
        let most = Limit::PortsPerObject.value();
        known.handle(wide(most));
        assert_eq!(parts(&known), []);
        assert_eq!(known.handle(wide(most + 1)), Change::Refused(Limit::PortsPerObject));
        assert_eq!(parts(&known), [Part::TooManyEndpointPorts]);
        assert_eq!(known.handle(wide(most)), Change::Changed, "the status changes");
        assert_eq!(parts(&known), []);
        known.handle(wide(most + 1));
        known.handle(Event::Apply(Object::NameSlice(ObjectName::new("default", "web-1"), "web".into())));
        assert_eq!(parts(&known), [Part::Names]);
        known.handle(wide(most + 1));
        assert_eq!(parts(&known), [Part::TooManyEndpointPorts]);
        assert_eq!(known.handle(Event::Relisted(Kind::EndpointSlice, vec![])), Change::Changed);
        assert_eq!(parts(&known), []);
    }

    /// The last slice of the cluster that has no room, and then has.
    #[test]
    fn a_slice_beyond_the_limit_is_said_until_it_has_room() {
        let mut known = view(ready());
        let other = |n: usize| slice_named(&alloc::format!("a{n}"), ready());
        let Object::EndpointSlice(_, of_another) = other(0) else { unreachable!() };
        let of_another = EndpointSlice { service: "other".into(), ..of_another };
        for n in known.slices().len()..Limit::EndpointSlices.value() {
            let name = ObjectName::new("default", alloc::format!("a{n}"));
            known.handle(Event::Apply(Object::EndpointSlice(name, of_another.clone())));
        }
        assert_eq!(parts(&known), []);
        let refused = Change::Refused(Limit::EndpointSlices);
        let beyond = || Event::Apply(slice_named("web-2", ready()));
        assert_eq!(known.handle(beyond()), refused);
        assert_eq!(parts(&known), [Part::TooManySlices]);
        let elsewhere = Object::EndpointSlice(ObjectName::new("elsewhere", "web-3"), of_another.clone());
        assert_eq!(known.handle(Event::Apply(elsewhere)), refused);
        assert_eq!(
            known.handle(Event::Delete(Key::EndpointSlice(ObjectName::new("default", "web-2")))),
            Change::Changed
        );
        assert_eq!(parts(&known), [], "of another Service");
        assert_eq!(known.handle(beyond()), refused);
        known.handle(Event::Delete(Key::EndpointSlice(ObjectName::new("default", "a7"))));
        assert_eq!(known.handle(beyond()), Change::Changed, "it is listed again");
        assert_eq!(parts(&known), []);
        known.handle(Event::Apply(slice_named("web-4", ready())));
        assert_eq!(parts(&known), [Part::TooManySlices]);
        assert_eq!(known.handle(Event::Relisted(Kind::EndpointSlice, vec![slice(ready())])), Change::Changed);
        assert_eq!(parts(&known), []);
    }

    #[test]
    fn endpoints_to_which_nothing_may_be_sent_are_said() {
        let at = |address: [u8; 4], conditions| Endpoint { address: address.into(), ..pod("a", 1, conditions) };
        for address in [VIP.octets(), [169, 254, 0, 1], [127, 0, 0, 1]] {
            let mut known = view([pod("a", 1, Conditions::READY), at(address, Conditions::READY)]);
            assert_eq!(parts(&known), [Part::EndpointAddress], "{address:?}");
            known.handle(Event::Apply(slice([pod("a", 1, Conditions::READY), at(address, UNREADY)])));
            assert_eq!(parts(&known), [], "it would not serve");
        }
    }

    #[test]
    fn a_slice_of_names_is_said_alone_and_beside_addresses() {
        let mut known = view(ready());
        let names = |name: &str| Object::NameSlice(ObjectName::new("default", name), "web".into());
        assert_eq!(known.handle(Event::Apply(names("web-names"))), Change::Changed);
        assert_eq!(known.handle(Event::Apply(names("web-names"))), Change::None);
        assert_eq!(parts(&known), [Part::Names], "whatever addresses another slice has");
        assert_eq!(known.handle(Event::Apply(names("web-1"))), Change::Changed, "a slice of the same name");
        assert!(known.slices().is_empty());
        assert_eq!(parts(&known), [Part::Names]);
        assert_eq!(known.handle(Event::Relisted(Kind::EndpointSlice, vec![names("web-1")])), Change::Changed);
        assert_eq!(known.handle(Event::Relisted(Kind::EndpointSlice, Vec::new())), Change::Changed);
        assert_eq!(parts(&known), []);
        known.handle(Event::Apply(names("web-1")));
        assert_eq!(known.handle(Event::Apply(slice(ready()))), Change::Changed);
        assert_eq!((parts(&known), known.slices().len()), (vec![], 1));
        let other = Object::NameSlice(ObjectName::new("elsewhere", "web-1"), "web".into());
        known.handle(Event::Relisted(Kind::EndpointSlice, vec![other]));
        assert_eq!(parts(&known), [], "of another namespace");
    }

    /// They would be refused, or not served for ten minutes, without a word.
    #[test]
    fn endpoints_without_a_place_are_said() {
        let elsewhere = |conditions| Endpoint { node: Some("gone".into()), ..pod("a", 9, conditions) };
        let mut known = view([pod("a", 1, Conditions::READY), elsewhere(Conditions::READY)]);
        assert_eq!(parts(&known), [Part::NodeUnknown]);
        known.handle(Event::Apply(slice([pod("a", 1, Conditions::READY), elsewhere(UNREADY)])));
        assert_eq!(parts(&known), [], "it would not serve");

        let speaker = |node: &str| Event::Apply(Object::SpeakerState(node.into(), SpeakerState::default()));
        known.handle(Event::Apply(slice([pod("c", 1, Conditions::READY)])));
        assert_eq!(parts(&known), [], "no speaker says that it runs: an earlier version, or the first moment");
        for node in ["a", "b"] {
            assert_eq!(known.handle(speaker(node)), Change::Changed);
        }
        assert_eq!(parts(&known), [Part::NoSpeakerYet]);
        known.handle(Event::Apply(slice([pod("c", 1, UNREADY)])));
        assert_eq!(parts(&known), []);
        known.handle(Event::Apply(slice([pod("c", 1, Conditions::READY)])));
        let settled = Node { reported: i64::MAX, ..known.nodes()["c"].clone() };
        known.handle(Event::Apply(Object::Node("c".into(), settled)));
        assert_eq!(parts(&known), [Part::Via], "others translate");
        known.handle(Event::Apply(slice([pod("c", 1, UNREADY)])));
        assert_eq!(parts(&known), [], "for none that serves");
        known.handle(Event::Apply(slice([pod("c", 1, Conditions::READY)])));
        assert_eq!(known.handle(speaker("c")), Change::Changed);
        assert_eq!(parts(&known), []);
    }

    #[test]
    fn what_is_not_served_of_each_service_of_a_vip_is_said() {
        let mut known = view(ready());
        let outside = Endpoint { node: None, ..pod("z", 1, Conditions::READY) };
        let other = ObjectName::new("default", "zz");
        known.handle(Event::Apply(service_with(Limit::PortsPerObject.value() + 1)));
        known.handle(Event::Apply(slice([outside])));
        known.handle(Event::Apply(service(other.clone(), ServiceAttributes::default())));
        known.handle(Event::Apply(Object::NameSlice(ObjectName::new("default", "zz-1"), "zz".into())));
        known.handle(Event::Apply(vip(VIP, [web(), other])));
        assert_eq!(parts(&known), [Part::Names, Part::Via, Part::TooManyPorts]);
        known.handle(Event::Apply(slice_named(
            "web-2",
            [Endpoint { node: Some("gone".into()), ..pod("a", 9, Conditions::READY) }],
        )));
        assert_eq!(parts(&known), [Part::Names, Part::NodeUnknown, Part::Via, Part::TooManyPorts]);
    }
}
