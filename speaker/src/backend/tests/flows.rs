//! Flows in conntrack: read, forgotten when their pod is gone, kept while the node's status is uncertain.

use speaker_core::backend::Destinations;

use super::*;

/// Pod 10.0.0.1 is the namespace itself. Translates in output what goes to the VIP: the stand-in for our own chain in
/// prerouting, which what a node sends itself does not pass.
async fn pod_in_this_namespace() {
    ["link set lo up", "addr add 10.0.0.1/32 dev lo", "route add 192.0.2.1/32 dev lo"].into_iter().for_each(ip);
    translate("10.0.0.1").await;
}

fn ip(arguments: &str) {
    assert!(std::process::Command::new("ip").args(arguments.split(' ')).status().unwrap().success(), "{arguments}");
}

async fn until(happened: impl Fn() -> bool) {
    let waiting = async {
        while !happened() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("it did not happen");
}

async fn translate(target: &str) {
    let text = format!(
        "add table ip test
         add chain ip test output {{ type nat hook output priority -110; }}
         flush chain ip test output
         add rule ip test output ip daddr 192.0.2.1 meta l4proto {{ tcp, udp }} dnat to {target}"
    );
    Nft::new("nft").apply(&text).await.unwrap();
}

fn vips() -> Destinations {
    BTreeSet::from([VIP]).into()
}

#[test]
fn a_udp_flow_leaves_its_pod_when_it_is_deleted_and_not_before() {
    in_namespace(|| async {
        pod_in_this_namespace().await;
        let pods = [53, 54].map(|port| UdpSocket::bind((POD, port)).unwrap());
        pods.iter().for_each(|pod| pod.set_read_timeout(Some(Duration::from_millis(200))).unwrap());
        let (client, bystander) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let reaches = |pod: usize| {
            client.send_to(b"x", (VIP, 53)).unwrap();
            pods[pod].recv(&mut [0; 8]).is_ok()
        };
        assert!(reaches(0));
        bystander.send_to(b"x", (VIP, 53)).unwrap();
        translate("10.0.0.1:54").await;
        assert!(pods[0].recv(&mut [0; 8]).is_ok() && reaches(0), "conntrack holds on to the first pod");

        let forget = |port: u16| conntrack::forget(&vips(), |flow| flow.pod == (POD, port)).unwrap();
        assert_eq!(forget(54), 0);
        assert!(reaches(0), "flows to other pods are left alone");
        assert_eq!(forget(53), 2);
        assert!(reaches(1));
        assert_eq!(forget(53), 0);
    });
}

#[test]
fn flows_are_read_as_the_client_sends_them() {
    in_namespace(|| async {
        pod_in_this_namespace().await;
        let pod = TcpListener::bind((POD, 80)).unwrap();
        let client = TcpStream::connect((VIP, 80)).unwrap();
        let (served, _) = pod.accept().unwrap();
        // Not to a VIP: not read.
        let _other = TcpStream::connect((POD, 80)).unwrap();
        let udp = UdpSocket::bind((POD, 0)).unwrap();
        udp.send_to(b"x", (VIP, 53)).unwrap();

        let flows = || {
            let mut flows = conntrack::flows(&vips()).unwrap();
            flows.sort_by_key(|flow| flow.tuple.proto);
            flows
        };
        let tuple = |from: std::net::SocketAddr, port: u16, proto| FlowTuple {
            src: POD.octets(),
            dst: VIP.octets(),
            src_port: from.port().to_be_bytes(),
            dst_port: port.to_be_bytes(),
            proto,
        };
        let open = TcpState::Established;
        let from = client.local_addr().unwrap();
        let tcp = Flow { tuple: tuple(from, 80, 6), pod: (POD, 80), tcp: Some(open), assured: true };
        let from = udp.local_addr().unwrap();
        let datagram = Flow { tuple: tuple(from, 53, 17), pod: (POD, 53), tcp: None, assured: false };
        assert_eq!(flows(), [tcp, datagram]);

        assert_eq!(conntrack::forget_closed(&vips(), |_| true).unwrap(), 0);
        drop(served);
        drop(client);
        let closed = [Flow { tcp: Some(TcpState::TimeWait), ..tcp }, datagram];
        let patience = Instant::now() + Duration::from_secs(2);
        while flows() != closed && Instant::now() < patience {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(flows(), closed);
        assert_eq!(conntrack::forget_closed(&vips(), |_| true).unwrap(), 1);
        assert_eq!(flows(), [datagram]);
    });
}

/// The kernel makes the new entry where the old one was, so both have the same identification.
#[test]
fn a_connection_that_uses_the_port_again_meanwhile_is_not_forgotten() {
    in_namespace(|| async {
        pod_in_this_namespace().await;
        let pod = TcpListener::bind((POD, 80)).unwrap();
        for _ in 0..20 {
            let connect = || {
                let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
                socket.set_reuse_address(true).unwrap();
                // It ends with a reset.
                socket.set_linger(Some(Duration::ZERO)).unwrap();
                socket.bind(&std::net::SocketAddr::from((POD, 40001)).into()).unwrap();
                // A process that another test starts has a copy of the socket that was closed, until it runs
                // its program: until then the kernel refuses this connection, as the same as that.
                let patience = Instant::now() + Duration::from_secs(2);
                while let Err(error) = socket.connect(&std::net::SocketAddr::from((VIP, 80)).into()) {
                    assert!(
                        error.kind() == std::io::ErrorKind::AddrNotAvailable && Instant::now() < patience,
                        "{error}"
                    );
                    std::thread::yield_now();
                }
                (socket, pod.accept().unwrap())
            };
            drop(connect());
            until(|| conntrack::flows(&vips()).unwrap()[0].is_closed()).await;
            let mut again = None;
            let forgotten = conntrack::forget(&vips(), |flow| {
                let closed = flow.is_closed();
                if closed {
                    again.get_or_insert_with(connect);
                }
                closed
            });
            assert_eq!(forgotten.unwrap(), 0);
            let states = || conntrack::flows(&vips()).unwrap().iter().map(|flow| flow.tcp).collect::<Vec<_>>();
            until(|| states() == [Some(TcpState::Established)]).await;
        }
    });
}

#[test]
fn flows_whose_pod_is_gone_are_forgotten_and_no_others() {
    in_namespace(|| async {
        pod_in_this_namespace().await;
        let pod = TcpListener::bind((POD, 80)).unwrap();
        let _client = TcpStream::connect((VIP, 80)).unwrap();
        let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        udp.send_to(b"x", (VIP, 53)).unwrap();
        let entries = || conntrack::flows(&vips()).unwrap().len();
        let wait = |ms| tokio::time::sleep(Duration::from_millis(ms));

        let mut backend = Backend::new(Nft::new("nft"));
        backend.sync(plan(1)).await.unwrap();
        wait(400).await;
        assert_eq!((entries(), backend.flows_forgotten()), (2, 0));
        // An endpoint that moves from one slice to another is in neither for a moment.
        backend.sync(plan(0)).await.unwrap();
        wait(50).await;
        backend.sync(plan(1)).await.unwrap();
        wait(400).await;
        assert_eq!((entries(), backend.flows_forgotten()), (2, 0));
        // The pod is no longer listed, but it lives: UDP does as well with another, the connection does not.
        backend.sync(plan(0)).await.unwrap();
        until(|| backend.flows_in_removal_grace() == 1).await;
        assert_eq!((entries(), backend.flows_forgotten()), (1, 1));
        // Listed or not, and whether it listens or not: a host has the address.
        drop(pod);
        wait(1000).await;
        assert_eq!((entries(), backend.flows_in_removal_grace()), (1, 1));
        ip("addr del 10.0.0.1/32 dev lo");
        until(|| backend.flows_forgotten() == 2).await;
        assert_eq!((entries(), backend.flows_in_removal_grace()), (0, 0));

        // A new speaker looks for what an earlier one left.
        ip("addr add 10.0.0.1/32 dev lo");
        udp.send_to(b"x", (VIP, 53)).unwrap();
        let mut backend = Backend::new(Nft::new("nft"));
        backend.sync(plan(0)).await.unwrap();
        wait(400).await;
        assert_eq!((entries(), backend.flows_forgotten()), (0, 1));
    });
}

/// A node that was cut off from the API server and reaches it again: its pods are called unready for some seconds.
#[test]
fn udp_flows_stay_while_the_node_status_is_uncertain() {
    in_namespace(|| async {
        pod_in_this_namespace().await;
        let udp = UdpSocket::bind((POD, 0)).unwrap();
        udp.send_to(b"x", (VIP, 53)).unwrap();
        // What must not happen is given the time in which it would (200 ms, and a dump): there is nothing to wait for.
        let wait = |ms| tokio::time::sleep(Duration::from_millis(ms));
        let mut backend = Backend::new(Nft::new("nft"));
        backend.sync(plan(1)).await.unwrap();
        wait(400).await;

        let unready = || plan_of(1, Conditions { ready: false, serving: false, terminating: false });
        let plan = unready();
        let was_uncertain = Plan { endpoints: plan.endpoints.clone().uncertain(true), ..plan };
        // The uncertainty may begin a moment later than the pods are called unready.
        backend.sync(unready()).await.unwrap();
        wait(50).await;
        backend.sync(was_uncertain).await.unwrap();
        wait(400).await;
        assert_eq!((conntrack::flows(&vips()).unwrap().len(), backend.flows_forgotten()), (1, 0));

        // The uncertainty has ended.
        backend.sync(unready()).await.unwrap();
        until(|| backend.flows_forgotten() > 0).await;
        assert!(conntrack::flows(&vips()).unwrap().is_empty());
    });
}

/// An open TCP flow to port 80 of the VIP, as if it had been translated: IPCTNL_MSG_CT_NEW.
fn insert(netfilter: &Netfilter, (address, port): (Ipv4Addr, u16), vip: Ipv4Addr) {
    let tuple = |from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)| {
        let addresses = [plain(1, &from.0.octets()), plain(2, &to.0.octets())].concat();
        let ports = [plain(1, &[6]), plain(2, &from.1.to_be_bytes()), plain(3, &to.1.to_be_bytes())].concat();
        [nested(1, &addresses), nested(2, &ports)].concat()
    };
    let entry = [
        nested(1, &tuple((address, port), (vip, 80))),
        nested(2, &tuple((vip, 80), (address, port))),
        // CTA_NAT_DST, CTA_TIMEOUT, CTA_PROTOINFO.
        nested(13, &plain(1, &POD.octets())),
        plain(7, &600_u32.to_be_bytes()),
        nested(4, &nested(1, &plain(1, &[3]))),
    ];
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL | libc::NLM_F_ACK;
    netfilter.request(0x0100, flags, &entry.concat(), &mut |_| {}).unwrap();
}

/// The figures of bench/README.md, Conntrack, are what this prints with `--nocapture`.
#[test]
fn a_table_of_100_000_entries_is_read_and_cleared_in_time() {
    in_namespace(|| async {
        Nft::new("nft").apply("table ip nat { chain c { type nat hook prerouting priority -100; }; }").await.unwrap();
        let netfilter = Netfilter::open().unwrap();
        let other = Ipv4Addr::new(198, 51, 100, 1);
        for n in 0..100_000_u32 {
            let client = (Ipv4Addr::from_bits(0x0b00_0000 + n / 10_000), 1024 + (n % 10_000) as u16);
            insert(&netfilter, client, if n < 10_000 { VIP } else { other });
        }
        let timed = |what: &str, expected: usize, work: &dyn Fn() -> std::io::Result<usize>| {
            let started = Instant::now();
            assert_eq!(work().unwrap(), expected, "{what}");
            println!("{what}: {:.0?}", started.elapsed());
            assert!(started.elapsed() < Duration::from_secs(4), "{what}: {:?}", started.elapsed());
        };
        let read = |vips: BTreeSet<Ipv4Addr>| conntrack::flows(&vips.into()).map(|flows| flows.len());
        let unused = |n: u8| (1..=n).map(|n| Ipv4Addr::new(203, 0, 113, n));
        timed("none, of one VIP", 0, &|| read(unused(1).collect()));
        timed("10,000, of one VIP", 10_000, &|| read([VIP].into()));
        timed("10,000, of four VIPs", 10_000, &|| read(unused(3).chain([VIP]).collect()));
        timed("10,000, of a hundred VIPs", 10_000, &|| read(unused(99).chain([VIP]).collect()));
        timed("100,000, of two VIPs", 100_000, &|| read([VIP, other].into()));
        timed("10,000 forgotten", 10_000, &|| conntrack::forget(&vips(), |_| true));
        assert_eq!(read([VIP].into()).unwrap(), 0);
        assert_eq!(read([other].into()).unwrap(), 90_000);
    });
}
