//! Clients of sessionAffinity outlive a table that is built anew, by whomever.

use super::super::clients::read;
use super::*;

const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 5);

/// The rest of the client's record with the second pod, in seconds.
fn recorded(plan: &Plan) -> Option<u64> {
    let (set, _) = plan.client_sets().pop_last().unwrap();
    Some(read(ruleset::TABLE, &set).unwrap()?.get(&CLIENT)?.as_secs())
}

async fn record(nft: &Nft, plan: &Plan) {
    let (set, _) = plan.client_sets().pop_last().unwrap();
    let element = format!("{CLIENT} timeout 10800s expires 5000s");
    nft.apply(&format!("add element ip {} {} {{ {element} }}", ruleset::TABLE, set.name())).await.unwrap();
}

fn assert_recorded(plan: &Plan, what: &str) {
    let left = recorded(plan).expect(what);
    // The test takes seconds, on a busy machine a minute.
    assert!((4000..=5000).contains(&left), "{what}: {left}");
}

#[test]
fn clients_stay_when_the_table_is_built_anew() {
    in_namespace(|| async {
        let nft = Nft::new("nft");
        let mut backend = Backend::new(nft.clone());
        let two = plan(2);
        backend.sync(two.clone()).await.unwrap();
        assert!(!backend.audit().await.unwrap());
        record(&nft, &two).await;
        assert!(!backend.audit().await.unwrap(), "a client is no third-party change");
        assert_recorded(&two, "as it was entered");
        backend.sync(plan(3)).await.unwrap();
        backend.sync(plan(2)).await.unwrap();
        assert_recorded(&two, "an update");
        let silent = Plan { udp_silent: true, ..plan(2) };
        assert_eq!(backend.sync(silent).await.unwrap(), Outcome::Replaced);
        assert_recorded(&two, "a replacement");
        backend.remember_clients();
        for attack in ["delete table ip sheave", "flush ruleset"] {
            nft.apply(attack).await.unwrap();
            assert_eq!(recorded(&two), None);
            assert!(backend.audit().await.unwrap());
            assert_recorded(&two, attack);
        }
        let mut next = Backend::new(nft.clone());
        assert_eq!(next.sync(plan(2)).await.unwrap(), Outcome::Replaced);
        assert_recorded(&two, "the next speaker");
    });
}

#[test]
fn clients_of_a_pod_that_left_are_forgotten() {
    in_namespace(|| async {
        let nft = Nft::new("nft");
        let mut backend = Backend::new(nft.clone());
        let two = plan(2);
        backend.sync(two.clone()).await.unwrap();
        record(&nft, &two).await;
        backend.remember_clients();
        assert_recorded(&two, "as it was entered");
        backend.sync(plan(1)).await.unwrap();
        backend.sync(plan(2)).await.unwrap();
        assert_eq!(recorded(&two), None, "its pod left and came back");
        nft.apply("flush ruleset").await.unwrap();
        assert!(backend.audit().await.unwrap());
        assert_eq!(recorded(&two), None, "nor does a repair bring it back");
        // In the transaction that builds the table anew the pod is new as well.
        backend.sync(plan(1)).await.unwrap();
        let silent = Plan { udp_silent: true, ..plan(2) };
        assert_eq!(backend.sync(silent).await.unwrap(), Outcome::Replaced);
        assert_eq!(recorded(&two), None);
    });
}

#[test]
fn a_shorter_timeout_counts_for_what_is_carried_over() {
    in_namespace(|| async {
        let nft = Nft::new("nft");
        let mut backend = Backend::new(nft.clone());
        backend.sync(plan(2)).await.unwrap();
        record(&nft, &plan(2)).await;
        let mut shorter = Plan { udp_silent: true, ..plan(2) };
        let timeout = speaker_core::attributes::AffinityTimeout::new(60).unwrap();
        shorter.services.values_mut().for_each(|local| local.attributes.affinity_timeout = timeout);
        backend.sync(shorter.clone()).await.unwrap();
        assert!(recorded(&shorter).is_some_and(|left| left <= 60));
    });
}
