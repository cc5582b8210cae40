//! Pods of this node that begin and end.

use super::*;

const TERMINATING: Conditions = Conditions { ready: false, serving: true, terminating: true };

/// Beside a pod of another node one comes here that refuses, and then listens.
#[test]
fn a_new_pod_gets_rows_when_it_listens() {
    in_namespaces(|dir| {
        let world = World::start(dir);
        let pod = Target { address: Ipv4Addr::new(10, 0, 1, 80), port: 80 };
        ip(&format!("addr add {}/32 dev lo", pod.address));
        let show = |nodes: &[u8]| {
            world.view.send(Some(Arc::new(view_of(&[(80, nodes)], attributes::StartupProbe::On)))).unwrap();
        };
        show(&[2]);
        until("the start", START, || world.faults().is_empty() && world.serves(80, &[2], false));
        show(&[1, 2]);
        until("it is reported as refusing", SOON, || world.starts() == Starts::from([(pod, false)]));
        // What does not happen has no end to wait for: an addition to the ring would wait for less.
        std::thread::sleep(QUIET + Duration::from_secs(1));
        assert!(world.serves(80, &[2], false), "it refuses");
        world.newest_report();
        assert_eq!(world.starts(), Starts::from([(pod, false)]), "it is repeated");
        let listener = TcpListener::bind((pod.address, pod.port)).unwrap();
        let took = until("it is reported as started", SOON, || world.starts() == Starts::from([(pod, true)]));
        println!("reported {took:.0?} after it listens");
        until("it gets rows", QUIET + SOON, || world.serves(80, &[1, 2], true));
        let (_, client) = listener.accept().unwrap();
        assert_eq!(client.ip(), pod.address, "of this host");
    });
}

/// Another node's dispatcher still sends SYNs here by an older ring, and a pod that ends may have closed.
#[test]
fn pods_that_end_do_not_keep_new_flows_from_ready_ones_elsewhere() {
    in_namespaces(|dir| {
        let world = World::start(dir);
        world.show(&[(80, &[1, 2]), (81, &[1])]);
        until("the start", START, || world.serves(80, &[1, 2], true) && world.serves(81, &[1], true));
        let mut view = view(&[(80, &[1, 2]), (81, &[1])]);
        for (name, mut slice) in view.slices().clone() {
            let endpoints = &mut Arc::make_mut(&mut slice).endpoints;
            let here = endpoints.iter_mut().filter(|endpoint| endpoint.node == Some(node_name(1)));
            here.for_each(|endpoint| endpoint.conditions = TERMINATING);
            view.handle(Event::Apply(Object::EndpointSlice(name, Arc::unwrap_or_clone(slice))));
        }
        world.view.send(Some(Arc::new(view))).unwrap();
        until("the ready one gets them", SOON, || world.serves(80, &[2], false));
        assert!(world.serves(81, &[1], true), "it is the only one");
        world.show(&[(80, &[1, 2]), (81, &[1])]);
        until("it is ready again", 2 * SOON, || world.serves(80, &[1, 2], true));
    });
}
