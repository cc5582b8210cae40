//! Addresses that no VIP may have, and which of two addresses of a node the packet path goes by.

use super::*;

/// A VIP that comes with the second view.
const OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 200);

/// A pool with an address of this host, or of its gateway, in it: the VIP is not programmed, whatever the API says, and named.
#[test]
fn an_address_of_this_host_or_its_gateway_is_not_served() {
    in_namespaces(|dir| {
        let world = World::start(dir);
        world.show(&[(80, &[1, 2])]);
        until("it is served", START, || world.serves(80, &[1, 2], true) && world.elects(VIP));
        for (reason, host) in [
            (Reason::AddressOfHost, HostAddresses { addresses: [VIP, address(1)].into(), gateways: BTreeSet::new() }),
            (Reason::AddressOfGateway, HostAddresses { addresses: [address(1)].into(), gateways: [VIP].into() }),
        ] {
            world.outbox.send(Message::HostAddresses(host)).unwrap();
            until("it is taken out", SOON, || world.rows(80).is_none() && !world.has_vip() && !world.elects(VIP));
            assert_eq!(world.barred(), Some(reason));
            // A view that comes later changes nothing.
            let mut later = view(&[(80, &[1, 2]), (81, &[2])]);
            let services = vec![ObjectName::new("default", "port-81")];
            let other = VirtualIp { pool: "pool".into(), services, ..VirtualIp::default() };
            later.handle(Event::Apply(Object::VirtualIp(OTHER, other)));
            world.view.send(Some(Arc::new(later))).unwrap();
            until("the view is followed", SOON, || world.elects(OTHER));
            assert!(world.rows(80).is_none() && world.rows(81).is_none() && !world.has_vip());
            assert_eq!((world.barred(), world.elects(VIP)), (Some(reason), false));
            world.outbox.send(Message::HostAddresses(HostAddresses::default())).unwrap();
            until("it is served again", 2 * SOON, || world.serves(80, &[1, 2], true) && world.elects(VIP));
            assert_eq!(world.barred(), None);
        }
    });
}

/// ARP and the kernel's neighbours are unsigned.
#[test]
fn the_signed_mac_of_a_node_outranks_its_neighbour_entry() {
    in_namespaces(|dir| {
        let world = World::start(dir);
        let mac = |last| Mac([2, 0, 0, 0, 0, last]);
        let neighbour = |last| world.outbox.send(Message::Neighbour { ip: address(2), mac: mac(last) }).unwrap();
        let signed = |mac| world.outbox.send(Message::SignedMac { ip: address(2), mac }).unwrap();
        world.show(&[(80, &[1, 2, 3])]);
        until("the neighbour entry is used", START, || {
            world.serves(80, &[1, 2, 3], true) && world.mac(2) == Some(mac(2))
        });
        signed(Some(mac(8)));
        until("the signed one is", SOON, || world.mac(2) == Some(mac(8)));
        neighbour(7);
        // Taken by the loop: what is sent after it has an effect.
        let third = Message::SignedMac { ip: address(3), mac: Some(mac(33)) };
        world.outbox.send(third).unwrap();
        until("the loop has taken both", SOON, || world.mac(3) == Some(mac(33)));
        assert_eq!(world.mac(2), Some(mac(8)));
        signed(None);
        neighbour(7);
        until("its speaker is silent: the neighbour entry counts", SOON, || world.mac(2) == Some(mac(7)));
    });
}

impl World {
    /// The election is to find an owner for the VIP.
    fn elects(&self, vip: Ipv4Addr) -> bool {
        self.synced.lock().unwrap().as_ref().is_some_and(|synced| synced.desired.contains_key(&Vip(vip)))
    }

    fn barred(&self) -> Option<Reason> {
        self.synced.lock().unwrap().as_ref()?.barred.get(&VIP).copied()
    }

    /// The packet path takes packets to it.
    fn has_vip(&self) -> bool {
        ForwardingMaps::open(&self.pins).unwrap().restore().unwrap().vips.contains(&VIP.octets())
    }

    /// To which a dispatcher sends packets for the node.
    fn mac(&self, node: u8) -> Option<Mac> {
        let maps = ForwardingMaps::open(&self.pins).unwrap().restore().unwrap();
        maps.nodes.values().find(|known| Ipv4Addr::from(known.addr) == address(node)).map(|known| Mac(known.mac))
    }
}
