//! Parts of a plan that nft refuses, or takes too long for. A program in front of the real nft stands in for a kernel that does.

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

/// Hangs before a transaction with this text, or of more lines than that, and counts all of them.
fn hanging(name: &str, text: &str, lines: usize) -> (Wrapper, Counted) {
    let log = std::env::temp_dir().join(format!("sheave-nft-{name}-{}.log", std::process::id()));
    let script = format!(
        "text=$(cat)\nlines=$(printf '%s' \"$text\" | wc -l)\necho $lines >> {}\n\
         case \"$text\" in *{text}*) exec sleep 1000;; esac\n[ $lines -gt {lines} ] && exec sleep 1000\n\
         printf '%s' \"$text\" | exec nft \"$@\"",
        log.display()
    );
    (Wrapper::new(name, &script), Counted(log))
}

const SHORT: Duration = Duration::from_millis(700);

/// Until all but what is held back is in force; the errors on the way.
async fn sync_until(backend: &mut Backend, plan: &Plan, ports: usize) -> Vec<String> {
    let mut errors = Vec::new();
    while backend.in_force().is_none_or(|in_force| in_force.services.len() < ports) || backend.is_searching() {
        assert!(errors.len() < 30, "{errors:#?}");
        match backend.sync(plan.clone()).await {
            Ok(_) => break,
            Err(error) => errors.push(format!("{}: {error}", error.label())),
        }
    }
    errors
}

/// No transaction of more than 400 lines ends in time: the first table comes in parts, and a large change of it too.
#[test]
fn a_plan_that_takes_too_long_comes_into_force_in_parts() {
    in_namespace(|| async {
        let (wrapper, counted) = hanging("slow", "no-such-text", 400);
        let mut backend = Backend::new(Nft::new(&wrapper.0).with_timeout(SHORT));
        let first = ported(400, &[]);
        let errors = sync_until(&mut backend, &first, 400).await;
        assert!(!errors.is_empty() && errors.iter().all(|error| error.starts_with("timeout: ")), "{errors:#?}");
        assert_eq!(backend.in_force(), Some(&Plan { second_chance: true, ..first.clone() }));
        assert!(!backend.audit().await.unwrap(), "the table is as it is known");

        // Nothing of what is in force is touched, however long the change takes.
        let before = counted.lines().len();
        let wanted = ported(900, &[]);
        assert_eq!(backend.sync(wanted.clone()).await.unwrap_err().label(), "timeout");
        assert_eq!(backend.in_force().map(|plan| plan.services.len()), Some(400));
        assert!(!backend.is_suspect());
        let errors = sync_until(&mut backend, &wanted, 900).await;
        assert!(errors.len() < 5, "{errors:#?}");
        assert_eq!(backend.in_force().map(|plan| plan.services.len()), Some(900));
        assert!(counted.lines().len() - before < 20, "{:?}", counted.lines());
        assert_eq!(backend.sync(ported(899, &[])).await.unwrap(), Outcome::Updated);
        assert!(!backend.audit().await.unwrap());
    });
}

/// One service port alone takes too long: it is kept back alone, with a name.
#[test]
fn one_service_port_that_takes_too_long_keeps_back_no_other() {
    in_namespace(|| async {
        let (wrapper, counted) = hanging("stuck", "10.0.0.99", usize::MAX >> 1);
        let mut backend = Backend::new(Nft::new(&wrapper.0).with_timeout(SHORT));
        backend.sync(ported(20, &[])).await.unwrap();
        let mut pods = [Ipv4Addr::new(10, 0, 0, 2); 20];
        pods[6] = REFUSED;
        let wanted = ported(20, &pods);
        let bad = port(&wanted, 7);
        let changed = |backend: &Backend| {
            let services = &backend.in_force().unwrap().services;
            services.iter().filter(|(key, local)| wanted.services[*key].pods == local.pods).count()
        };
        let mut errors = Vec::new();
        while changed(&backend) < 19 || backend.is_searching() {
            errors.push(backend.sync(wanted.clone()).await.unwrap_err().to_string());
            assert!(errors.len() < 20, "{errors:#?}");
        }
        assert_eq!(backend.in_force().unwrap().services[&bad].pods, [(POD, 80)]);
        assert!(counted.lines().len() < 25, "{:?}", counted.lines());
        // A change beside it does not wait for it.
        let mut next = wanted.clone();
        next.services.remove(&port(&wanted, 1));
        let error = backend.sync(next.clone()).await.unwrap_err().to_string();
        assert!(!backend.in_force().unwrap().services.contains_key(&port(&wanted, 1)), "{error}");
        // It is in force once it fits.
        backend.nft = Nft::new("nft");
        let began = Instant::now();
        while backend.sync(next.clone()).await.is_err() {
            assert!(began.elapsed() < Duration::from_secs(30));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(!backend.audit().await.unwrap());
    });
}
