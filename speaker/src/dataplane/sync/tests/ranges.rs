//! Source ranges: they wait for nothing but room.

use super::*;

/// The source ranges of a service port, by the maps in the kernel; `None`: every client is admitted.
fn ranges(world: &World, port: u16) -> Option<Vec<String>> {
    let maps = ForwardingMaps::open(&world.pins).unwrap().restore().unwrap();
    let value = maps.services.get(&service_key(VIP, port, Protocol::Tcp))?;
    let of_service = maps.ranges.iter().filter(|range| range.slot == value.ranges_slot());
    let shown = of_service.map(|range| format!("{}/{}", Ipv4Addr::from(range.network), range.length)).collect();
    (value.flags & ServiceValue::SOURCE_RANGES != 0).then_some(shown)
}

/// All 65,536 ranges are taken: what replaces a list waits until the maps have lost the old one, and for no other change.
#[test]
fn a_list_replaced_in_full_maps_follows_at_once() {
    in_namespaces(|dir| {
        let world = World::start(dir);
        let ports: Vec<u16> = (1..=64).collect();
        let services: Vec<(u16, &[u8])> = ports.iter().map(|port| (*port, &[1][..])).collect();
        // 1,024 clients of the network that is the number of the port, from so many on.
        let restrict = |first_list_from: u16| {
            let mut view = view(&services);
            for (name, service) in view.services().clone() {
                let port = service.ports[0].port;
                let from = if port == 1 { first_list_from } else { 0 };
                let client = |n: u16| Prefix {
                    network: Ipv4Addr::new(10, port as u8, ((from + 2 * n) >> 8) as u8, (from + 2 * n) as u8),
                    length: 32,
                };
                let ranges: Vec<Prefix> = (0..1024).map(client).collect();
                let attributes = ServiceAttributes { source_ranges: Some(ranges.into()), ..service.attributes };
                view.handle(Event::Apply(Object::Service(name, Service { attributes, ..service })));
            }
            world.view.send(Some(Arc::new(view))).unwrap();
        };
        world.show(&services);
        until("the start", START, || world.faults().is_empty() && world.serves(64, &[1], true));
        // nft takes long for so many, and the maps do not wait for it.
        let hold = world.hold("hold");
        let attempts = world.count("attempts");
        world.show(&services[..63]);
        until("nft hangs with another change", SOON, || world.count("attempts") > attempts);
        let number = |port: u16| ranges(&world, port).map(|list| list.len());
        restrict(0);
        let all = || ForwardingMaps::open(&world.pins).unwrap().restore().unwrap().ranges.len();
        until("the maps are full", 4 * SOON, || number(1) == Some(1024) && all() == 65_536);
        restrict(16384);
        until("the first list is another one", 4 * SOON, || {
            ranges(&world, 1).is_some_and(|list| list.len() == 1024 && list.contains(&"10.1.64.0/32".to_string()))
        });
        let is_reached = || world.metrics.names_of_limits_reached(std::time::Instant::now());
        until("no limit is reached any more", SOON, || is_reached().is_empty());
        world.show(&services);
        until("every client is admitted", 4 * SOON, || number(1).is_none());
        drop(hold);
        until("nothing hangs", START, || world.faults().is_empty());
    });
}

/// Neither for rules that hang nor with a service port that waits for these.
#[test]
fn source_ranges_do_not_wait_for_nft() {
    in_namespaces(|dir| {
        let world = World::start(dir);
        let restrict = |list: Option<&[u8]>| {
            let mut view = view(&[(80, &[1, 2]), (81, &[1, 2])]);
            let prefix = |n: &u8| Prefix { network: Ipv4Addr::new(10, *n, 0, 0), length: 16 };
            let ranges: Option<Vec<Prefix>> = list.map(|list| list.iter().map(prefix).collect());
            for (name, service) in view.services().clone() {
                let attributes =
                    ServiceAttributes { source_ranges: ranges.clone().map(Into::into), ..service.attributes };
                view.handle(Event::Apply(Object::Service(name, Service { attributes, ..service })));
            }
            world.view.send(Some(Arc::new(view))).unwrap();
        };
        world.show(&[(80, &[1, 2]), (81, &[2])]);
        until("the start", START, || world.faults().is_empty() && world.serves(80, &[1, 2], true));
        assert_eq!((ranges(&world, 80), ranges(&world, 81)), (None, None));
        let hold = world.hold("hold");
        for list in [Some(&[1, 2][..]), Some(&[2]), Some(&[]), Some(&[3]), None, Some(&[1])] {
            restrict(list);
            let want = list.map(|list| list.iter().map(|n| format!("10.{n}.0.0/16")).collect());
            // Port 81 got its first pod here: its rows wait for the rules.
            let took =
                until("the maps have the ranges", SOON, || ranges(&world, 80) == want && ranges(&world, 81) == want);
            println!("{want:?} after {took:.0?}");
            assert!(world.serves(81, &[2], false));
        }
        let metrics = String::from_utf8(world.metrics.render(&world.health).unwrap()).unwrap();
        for name in ["port-80", "port-81"] {
            let line = format!("sheave_denied_packets_total{{name=\"{name}\",namespace=\"default\"}} 0\n");
            assert!(metrics.contains(&line), "{metrics}");
        }
        drop(hold);
        until("the rules follow", SOON, || world.serves(81, &[1, 2], true));
        assert!(world.faults().is_empty());
    });
}
