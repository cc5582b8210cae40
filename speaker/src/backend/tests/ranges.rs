//! Source ranges as the real nft takes them. Packets: tests/tests/backend_nft/source_ranges.rs; times and memory: `make bench-ranges`.

use super::super::worker::SLOW;
use super::*;

/// So many service ports, each with a list of its own or with one list of all of them.
fn ported(ports: u16, ranges: impl Fn(u16) -> SourceRanges) -> Plan {
    let mut plan = plan(1);
    let (key, local) = plan.services.pop_first().unwrap();
    plan.services = BTreeMap::new();
    for port in 1..=ports {
        let mut local = local.clone();
        local.attributes.source_ranges = Some(ranges(port));
        plan.services.insert(ServiceKey { port: port.to_be_bytes(), ..key }, local);
    }
    plan
}

fn list(first: u32, ranges: u32) -> SourceRanges {
    (0..ranges).map(|n| Prefix { network: (first + 2 * n).into(), length: 32 }).collect::<Vec<_>>().into()
}

/// What one Service may ask for, and what a thousand do, leads no run of nft near the time after which `nft_failing` is named.
#[test]
fn no_number_of_ranges_within_the_limits_makes_nft_slow() {
    in_namespace(|| async {
        let mut backend = Backend::new(Nft::new("nft").with_timeout(SLOW));
        backend.sync(plan(1)).await.unwrap();
        let shared = [list(0x0a00_0000, 1024), list(0x0b00_0000, 1024)];
        let own = |shift: u32| move |port: u16| list(0x0a00_0000 + (u32::from(port) << 8) + shift, 10);
        let mut one_changed = ported(1000, own(1));
        one_changed.services.first_entry().unwrap().get_mut().attributes.source_ranges = Some(shared[1].clone());
        for (what, plan) in [
            ("1,000 ports of one Service", ported(1000, |_| shared[0].clone())),
            ("another list", ported(1000, |_| shared[1].clone())),
            ("1,000 lists", ported(1000, own(0))),
            ("1,000 other lists", ported(1000, own(1))),
            ("one other list", one_changed),
        ] {
            let lists: BTreeSet<u128> = plan
                .services
                .values()
                .filter_map(|local| Some(local.attributes.source_ranges.as_ref()?.name()))
                .collect();
            assert_eq!(backend.sync(plan).await.unwrap(), Outcome::Updated, "{what}");
            assert!(!backend.audit().await.unwrap(), "{what}");
            let listing = backend.nft.listing().await.unwrap().unwrap();
            assert_eq!(listing.matches("\tset ranges-").count(), lists.len(), "{what}");
            // From the uplink, from pods of this node, from its own processes: each to VIPs and to ports of nodes.
            assert_eq!(listing.matches("vmap @restricted").count(), 6, "{what}");
        }
    });
}
