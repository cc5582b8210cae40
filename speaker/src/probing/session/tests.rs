//! A real segment: the node, and a host in a network namespace of its own whose kernel answers.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use tokio::time::timeout;

use super::*;
use crate::io::tests::{in_namespace, ip};

const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, last)
}

/// Puts the other end of the cable into a namespace of its own, with these commands, for as long as `test` runs.
fn with_host(batch: &'static str, test: impl FnOnce()) {
    with_server(batch, || (), test);
}

/// The same, with what `serve` starts there.
pub fn with_server<T>(batch: &'static str, serve: impl FnOnce() -> T + Send + 'static, test: impl FnOnce()) {
    let (up, ready) = mpsc::channel();
    let (end, ended) = mpsc::channel::<()>();
    let (moved, is_moved) = mpsc::channel::<()>();
    let host = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace needs CAP_SYS_ADMIN");
        up.send(nix::unistd::gettid()).unwrap();
        is_moved.recv().unwrap();
        ip(batch);
        let server = serve();
        up.send(nix::unistd::gettid()).unwrap();
        // The namespace goes with this thread.
        let _ = ended.recv();
        drop(server);
    });
    let thread = ready.recv().unwrap();
    ip(&format!("link set far netns {thread}\n"));
    moved.send(()).unwrap();
    ready.recv().unwrap();
    test();
    drop(end);
    host.join().unwrap();
}

async fn report(session: &mut Session, round: i64, addresses: &[Ipv4Addr]) -> Report {
    let mut report = session.request(Asked { round, addresses: addresses.to_vec() }).await.unwrap();
    while report.is_none() {
        timeout(Duration::from_secs(5), session.due()).await.expect("it is due").unwrap();
        report = session.turn().unwrap();
    }
    report.unwrap()
}

pub fn session() -> Session {
    Session::new(None, NODE, IntCounter::new("sent", "Probes.").unwrap())
}

pub fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

#[test]
fn a_host_answers_for_its_address_and_for_no_other() {
    in_namespace(|| {
        with_host("link set far up\naddr add 192.0.2.7/24 dev far\naddr add 192.0.2.254/24 dev far\n", || {
            ip("route add default via 192.0.2.254\n");
            run(async {
                let mut session = session();
                let found = report(&mut session, 3, &[address(7), address(8)]).await;
                let expected = BTreeMap::from([(address(7), [HOST_MAC].into()), (address(8), [].into())]);
                assert_eq!((found.round, found.results), (3, expected));
                assert_eq!((found.gateways, found.proxies), ([HOST_MAC].into(), [].into()));
                assert!(session.socket.is_none(), "at rest no frame wakes it");
                assert_eq!(session.sent.get(), 2 * (2 + 1 + 8));
            });
        });
    });
}

/// A host that has the whole subnet as its own answers for every address.
#[test]
fn a_proxy_is_found_by_random_addresses() {
    in_namespace(|| {
        with_host("link set far up\naddr add 192.0.2.7/24 dev far\nroute add local 192.0.2.0/24 dev lo\n", || {
            run(async {
                let found = report(&mut session(), 1, &[address(9)]).await;
                assert_eq!(found.results, BTreeMap::from([(address(9), [HOST_MAC].into())]));
                assert_eq!((found.gateways, found.proxies), ([].into(), [HOST_MAC].into()));
            });
        });
    });
}

#[test]
fn silence_of_a_cut_cable_is_no_answer() {
    in_namespace(|| {
        ip("link set far down\n");
        run(async {
            let mut session = session();
            let asked = Asked { round: 1, addresses: vec![address(7)] };
            let failed = session.request(asked).await.unwrap_err();
            assert_eq!(failed.label(), "no_carrier");
            session.fail();
            assert!(timeout(Duration::from_millis(50), session.due()).await.is_err(), "nothing is under way");
        });
    });
}
