//! sessionAffinity: whatever changes, one transaction that nft takes leads to the table that would be built anew, and no client of a pod
//! that stays is lost.

use speaker_core::attributes::AffinityTimeout;
use speaker_core::backend::affinity::ClientSet;
use speaker_core::backend::{LocalPods, Place};

use super::super::clients::read;
use super::*;

const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 5);

/// A fixed sequence: the same plans in every run.
struct Dice(u64);

impl Dice {
    /// 0 to `sides - 1`.
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % sides
    }

    fn one_in(&mut self, sides: u64) -> bool {
        self.roll(sides) == 0
    }
}

/// Two Services with up to six ports each, on up to five pods: ports without some of the pods, target ports that differ, addresses with two
/// endpoints, Services and ports without affinity, ports that pass from one Service to the other.
fn any(dice: &mut Dice) -> Plan {
    let mut plan = plan(1);
    let local = plan.services.values().next().unwrap().clone();
    plan.services.clear();
    let affine = [!dice.one_in(4), !dice.one_in(2)];
    let timeouts = [10_800, 60 + dice.roll(2) as i64].map(|seconds| AffinityTimeout::new(seconds).unwrap());
    let lacks = [dice.roll(5), dice.roll(5), dice.roll(5)];
    for port in 80..92 {
        if dice.one_in(4) {
            continue;
        }
        let service = if dice.one_in(8) { dice.roll(2) as usize } else { usize::from(port >= 86) };
        let pods = (1..=5_u8).filter(|n| !lacks.contains(&u64::from(*n)) && !dice.one_in(12));
        let mut pods: Vec<(Ipv4Addr, u16)> = pods.map(|n| (Ipv4Addr::new(10, 0, 0, n), 8000 + port)).collect();
        for (_, target) in &mut pods {
            *target += if dice.one_in(6) { 1000 } else { 0 };
        }
        if let (true, Some((address, target))) = (dice.one_in(6), pods.last().copied()) {
            pods.push((address, target + 1));
        }
        let mut attributes = local.attributes.clone();
        attributes.affinity = if affine[service] { Affinity::ClientIp } else { Affinity::None };
        attributes.affinity_timeout = timeouts[usize::from(dice.one_in(3))];
        let protocol = if port % 3 == 0 { Protocol::Udp } else { Protocol::Tcp };
        if !pods.is_empty() {
            let (last_resort, service) = (dice.one_in(5), service as u64);
            let local = LocalPods { attributes, pods, last_resort, service, ..local.clone() };
            plan.services.insert(service_key(VIP, port, protocol), local);
        }
    }
    plan
}

async fn record(nft: &Nft, set: &ClientSet) {
    let element = format!("{CLIENT} timeout 10800s expires 5000s");
    nft.apply(&format!("add element ip {} {} {{ {element} }}", ruleset::TABLE, set.name())).await.unwrap();
}

fn is_recorded(set: &ClientSet) -> bool {
    read(ruleset::TABLE, set).unwrap().is_some_and(|clients| clients.contains_key(&CLIENT))
}

#[test]
fn any_update_ends_where_a_replacement_ends_and_keeps_clients() {
    in_namespace(|| async {
        let mut dice = Dice(0x5368_6561_7665);
        let nft = Nft::new("nft");
        let anew = nft.clone().at(Place::Second);
        let mut before = any(&mut dice);
        nft.apply(&ruleset::replace(&before)).await.unwrap();
        let (mut updates, mut kept) = (0, 0);
        for step in 0..STEPS {
            let sets = before.client_sets();
            for set in sets.keys().filter(|set| !is_recorded(set)) {
                record(&nft, set).await;
            }
            let after = any(&mut dice);
            let Some(text) = ruleset::update(&before, &after) else { continue };
            nft.apply(&text).await.unwrap_or_else(|error| panic!("step {step}: {error}\n{text}"));
            for set in after.client_sets().keys() {
                assert_eq!(is_recorded(set), sets.contains_key(set), "step {step}: {set:?}");
                kept += usize::from(sets.contains_key(set));
            }
            anew.apply(&ruleset::replace(&after)).await.unwrap();
            let [updated, built] = [listing(&nft).await, listing(&anew).await];
            assert_eq!(updated, built, "step {step}: {before:#?}\n{text}");
            (before, updates) = (after, updates + 1);
        }
        assert!(updates > STEPS / 2 && kept > STEPS, "{updates} updates, {kept} sets stayed");
    });
}

async fn listing(nft: &Nft) -> Vec<String> {
    sorted(&nft.listing().await.unwrap().unwrap().replace("ip sheave-services", "ip sheave"))
}

const STEPS: usize = 60;
