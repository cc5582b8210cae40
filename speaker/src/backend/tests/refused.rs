//! Parts of a plan that nft refuses. A program in front of the real nft stands in for a kernel that does.

use super::*;

/// Refuses every transaction with this address, and counts all of them.
fn refusing(name: &str, address: &str) -> (Wrapper, Counted) {
    let log = std::env::temp_dir().join(format!("sheave-nft-{name}-{}.log", std::process::id()));
    let script = format!(
        "text=$(cat)\nprintf '%s' \"$text\" | wc -l >> {}\ncase \"$text\" in *{address}*) echo 'this pod is refused' >&2; exit 1;; esac\n\
         printf '%s' \"$text\" | exec nft \"$@\"",
        log.display()
    );
    (Wrapper::new(name, &script), Counted(log))
}

/// The transactions so far, gone with this value.
struct Counted(std::path::PathBuf);

impl Counted {
    /// The lines of each.
    fn lines(&self) -> Vec<usize> {
        let log = std::fs::read_to_string(&self.0).unwrap_or_default();
        log.lines().map(|lines| lines.trim().parse().unwrap()).collect()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

const REFUSED: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 99);

#[test]
fn a_service_port_that_is_refused_stays_as_it_was_and_the_rest_changes() {
    in_namespace(|| async {
        let script = "text=$(cat)\ncase \"$text\" in *10.0.0.99*) echo 'this pod is refused' >&2; exit 1;; esac\n\
                      printf '%s' \"$text\" | exec nft \"$@\"";
        let wrapper = Wrapper::new("refusing", script);
        let mut backend = Backend::new(Nft::new(&wrapper.0));
        backend.sync(plan(1)).await.unwrap();
        let mut wanted = plan(1).with_peers([(2, Ipv4Addr::new(192, 0, 2, 12))].into());
        let [http, dns] = [(80, Protocol::Tcp), (53, Protocol::Udp)].map(|(port, proto)| service_key(VIP, port, proto));
        wanted.services.get_mut(&dns).unwrap().pods = vec![(Ipv4Addr::new(10, 0, 0, 99), 53)];
        wanted.starting = [Target { address: Ipv4Addr::new(10, 0, 0, 99), port: 53 }].into();
        for _ in 0..2 {
            let error = backend.sync(wanted.clone()).await.unwrap_err();
            assert!(error.to_string().contains("this pod is refused"), "{error}");
            let in_force = backend.in_force().unwrap();
            assert_eq!((&in_force.services, &in_force.peers), (&plan(1).services, &wanted.peers));
            assert!(in_force.starting.is_empty());
            assert!(Nft::new("nft").listing().await.unwrap().unwrap().contains("dup to 192.0.2.12"));
        }
        // A new one that is refused is not there, and a removed one goes.
        let mut new = wanted.clone();
        let refused = new.services.remove(&dns).unwrap();
        new.services.insert(service_key(VIP, 54, Protocol::Udp), refused);
        backend.sync(new).await.unwrap_err();
        assert!(backend.in_force().unwrap().services.keys().eq([&http]));
        assert!(backend.sync(plan(2)).await.is_ok() && !backend.is_suspect());
        assert!(!backend.audit().await.unwrap());
    });
}

/// So many service ports, with these pods from the first on instead of the usual one.
fn ported(ports: u16, pods: &[Ipv4Addr]) -> Plan {
    let mut plan = plan(1);
    let (key, local) = plan.services.pop_first().unwrap();
    plan.services = BTreeMap::new();
    for port in 1..=ports {
        let mut local = local.clone();
        local.attributes = Default::default();
        local.pods = vec![(pods.get(usize::from(port) - 1).copied().unwrap_or(POD), 80)];
        plan.services.insert(ServiceKey { port: port.to_be_bytes(), ..key }, local);
    }
    plan
}

fn port(plan: &Plan, n: u16) -> ServiceKey {
    ServiceKey { port: n.to_be_bytes(), ..*plan.services.keys().next().unwrap() }
}

#[test]
fn one_refused_service_port_keeps_back_no_other() {
    in_namespace(|| async {
        let (wrapper, counted) = refusing("one", "10.0.0.99");
        let mut backend = Backend::new(Nft::new(&wrapper.0));
        // As in a speaker, which listens for third-party changes.
        assert!(tokio::time::timeout(Duration::from_millis(50), backend.changed()).await.is_err());
        backend.sync(ported(300, &[])).await.unwrap();
        let other = Ipv4Addr::new(10, 0, 0, 2);
        // The first is refused, the second changes, one more is added.
        let wanted = ported(301, &[REFUSED, other]);
        let (first, second, added) = (port(&wanted, 1), port(&wanted, 2), port(&wanted, 301));
        let as_wanted = |backend: &Backend| {
            let in_force = &backend.in_force().unwrap().services;
            assert_eq!(in_force[&second].pods, [(other, 80)]);
            assert_eq!(in_force[&first].pods, [(POD, 80)]);
            assert!(in_force.contains_key(&added) && !backend.is_suspect());
        };
        let error = backend.sync(wanted.clone()).await.unwrap_err().to_string();
        assert!(
            error.contains("service port 192.0.2.1:1/udp (this pod is refused") && !error.contains(":2/"),
            "{error}"
        );
        as_wanted(&backend);
        let listing = Nft::new("nft").listing().await.unwrap().unwrap();
        assert!(listing.contains("chain udp-192.0.2.1-301 {") && listing.contains("dnat to 10.0.0.2:80"));
        // Nothing but what differs was written since the first table.
        let lines = counted.lines();
        assert!(lines.len() <= 8 && lines[1..].iter().all(|lines| *lines < 50), "{lines:?}");

        // What comes later is not compared with what was refused.
        let later = ported(302, &[REFUSED, other]);
        assert!(backend.sync(later.clone()).await.unwrap_err().to_string().contains("192.0.2.1:1/udp"));
        as_wanted(&backend);
        assert!(backend.in_force().unwrap().services.contains_key(&port(&later, 302)));
        let lines = counted.lines().split_off(lines.len());
        assert!(lines.len() <= 2 && lines.iter().all(|lines| *lines < 50), "{lines:?}");
        assert!(!backend.audit().await.unwrap(), "the table is as it is known");

        // In force once it is taken: it is tried again 200 ms later.
        backend.nft = Nft::new("nft");
        let began = Instant::now();
        while backend.sync(later.clone()).await.is_err() {
            assert!(began.elapsed() < Duration::from_secs(5));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(backend.in_force(), Some(&later));
        assert!(!backend.audit().await.unwrap());
    });
}

/// More refused ones than there are attempts for: what is not to blame comes into force all the same, a few runs of nft at a time.
#[test]
fn many_refused_service_ports_end_alone_with_bounded_work() {
    in_namespace(|| async {
        let (wrapper, counted) = refusing("many", "10.0.0.99");
        let mut backend = Backend::new(Nft::new(&wrapper.0));
        backend.sync(ported(1, &[])).await.unwrap();
        let pods: Vec<Ipv4Addr> = (0..90).map(|n| if n % 3 == 1 { REFUSED } else { POD }).collect();
        let wanted = ported(90, &pods);
        let began = Instant::now();
        loop {
            let before = counted.lines().len();
            let error = backend.sync(wanted.clone()).await.unwrap_err().to_string();
            assert!(error.contains("and 26 more") || error.len() < 1000, "{error}");
            assert!(counted.lines().len() - before <= 60, "{:?}", counted.lines());
            if backend.in_force().unwrap().services.len() == 60 {
                break;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "{}", backend.in_force().unwrap().services.len());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(backend.in_force().unwrap().services.values().all(|local| local.pods == [(POD, 80)]));
        // Also where no table was before.
        let mut anew = Backend::new(Nft::new(&wrapper.0));
        anew.sync(ported(3, &[POD, REFUSED])).await.unwrap_err();
        assert_eq!(anew.in_force().unwrap().services.len(), 2);
    });
}
