//! Connections of which one end has closed its side, and the other goes on: conntrack's timeout for those (`close_wait`), cut to seconds.
//! For as long as something is sent the entry lives; once it is gone the client's next segment is reset, and no pod sees it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use sheave_tests::lab::{netns, wait_for};
use socket2::{SockRef, TcpKeepalive};
use speaker_core::backend::Guard;
use speaker_core::view::Affinity;

use crate::world::{Node, PATIENCE, PODS, PODS_B, VIP, World, plan};

/// A pod of node a beside two others, which has both ends in the test's hands.
const POD: Ipv4Addr = Ipv4Addr::new(10, 99, 1, 9);
const TIMEOUTS: [&str; 2] =
    ["netfilter/nf_conntrack_tcp_timeout_close_wait", "netfilter/nf_conntrack_tcp_timeout_fin_wait"];
const TIMEOUT: Duration = Duration::from_secs(4);
/// Each time much less than the timeout.
const PAUSE: Duration = Duration::from_secs(1);
/// In all more than the timeout.
const PAUSES: usize = 5;
const BEYOND: Duration = Duration::from_millis(5500);

/// Two nodes with three and two pods, and a connection to one of them.
struct HalfClosed {
    world: World,
    client: TcpStream,
    pod: TcpStream,
}

impl HalfClosed {
    fn open(test: &str) -> Self {
        let world = World::pair(test);
        for timeout in TIMEOUTS {
            world.a.sysctl(timeout, &TIMEOUT.as_secs().to_string()).unwrap();
        }
        netns::ip(&world.a.pods, &format!("addr add {POD}/24 dev eth0\n")).unwrap();
        let listener = netns::inside(&world.a.pods, || Ok(TcpListener::bind((POD, 8080))?)).unwrap();
        let [one, two] = PODS;
        // New flows get this pod; then the others are there as well.
        world.a.apply(&plan(&[POD], Affinity::None));
        let client = netns::inside(&world.client, || Ok(TcpStream::connect((VIP, 80))?)).unwrap();
        let (pod, _) = listener.accept().unwrap();
        world.a.apply(&plan(&[one, two, POD], Affinity::None));
        world.b().apply(&plan(&PODS_B, Affinity::None));
        for stream in [&client, &pod] {
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(4 * PATIENCE)).unwrap();
        }
        let mut opened = Self { world, client, pod };
        opened.carries(1);
        opened
    }

    /// Both ways.
    fn carries(&mut self, times: usize) {
        for _ in 0..times {
            send(&mut self.client, &mut self.pod);
            send(&mut self.pod, &mut self.client);
        }
    }

    /// From now on what reaches a pod is counted.
    fn count(&self) {
        for node in self.nodes() {
            node.nft(
                "table ip seen {
                   counter to_pods { }
                   chain forward { type filter hook forward priority 0; tcp dport 8080 counter name to_pods; }
                 }",
            );
        }
    }

    /// By our guard, once, and past all pods.
    fn was_reset_once(&self) {
        assert_eq!(self.nodes().map(|node| node.guard(Guard::Reset)).into_iter().sum::<u64>(), 1);
        assert_eq!(self.nodes().map(|node| node.counters("seen")["to_pods"]), [0, 0], "a pod has seen it");
    }

    fn nodes(&self) -> [&Node; 2] {
        [&self.world.a, self.world.b()]
    }
}

fn send(from: &mut TcpStream, to: &mut TcpStream) {
    from.write_all(b"x").unwrap();
    assert_eq!(to.read(&mut [0; 16]).unwrap(), 1, "what was sent comes");
}

/// The usual one: a client that has sent its request to the end, and waits for a long answer.
#[test]
fn a_client_that_has_closed_its_side_gets_data_within_the_timeout_and_is_reset_beyond_it() {
    let mut open = HalfClosed::open("half-client");
    open.client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(open.pod.read(&mut [0; 16]).unwrap(), 0, "the pod has the client's end");
    for _ in 0..PAUSES {
        std::thread::sleep(PAUSE);
        send(&mut open.pod, &mut open.client);
    }
    open.count();
    // It sends nothing any more but acknowledgments and the probes of its keepalive, the first of which comes too late.
    let keepalive = TcpKeepalive::new().with_time(2 * TIMEOUT);
    SockRef::from(&open.client).set_tcp_keepalive(&keepalive).unwrap();
    assert_eq!(open.client.read(&mut [0; 16]).map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
    open.was_reset_once();
}

#[test]
fn a_pod_that_has_closed_its_side_gets_data_within_the_timeout_and_the_client_is_reset_beyond_it() {
    let mut open = HalfClosed::open("half-pod");
    open.pod.shutdown(Shutdown::Write).unwrap();
    assert_eq!(open.client.read(&mut [0; 16]).unwrap(), 0, "the client has the pod's end");
    for _ in 0..PAUSES {
        std::thread::sleep(PAUSE);
        send(&mut open.client, &mut open.pod);
    }
    open.count();
    std::thread::sleep(BEYOND);
    open.client.write_all(b"x").unwrap();
    // tcp(7): of a connection whose other end has closed its side a reset is this error, and reading goes on saying that it is the end.
    let error = wait_for("a reset", PATIENCE, || Ok(open.client.take_error()?)).unwrap();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    open.was_reset_once();
}
