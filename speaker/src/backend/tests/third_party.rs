//! Changes of our table by third parties: noticed at once, repaired.

use super::*;

#[test]
fn a_third_party_change_is_noticed_and_repaired() {
    in_namespace(|| async {
        let nft = Nft::new("nft");
        let mut backend = Backend::new(nft.clone());
        assert!(!backend.audit().await.unwrap(), "nothing to audit yet");
        backend.sync(plan(2)).await.unwrap();
        assert!(!backend.audit().await.unwrap() && !backend.audit().await.unwrap());
        let generation = netfilter::generation().unwrap();
        nft.apply("add table ip foreign").await.unwrap();
        assert_ne!(netfilter::generation().unwrap(), generation);
        assert!(!backend.audit().await.unwrap(), "a third party's table is not ours");
        let whole = nft.listing().await.unwrap();
        let attacks = [
            "delete table ip sheave",
            "flush chain ip sheave prerouting",
            "delete table ip sheave-conntrack-hook",
            "flush ruleset",
        ];
        for attack in attacks {
            nft.apply(attack).await.unwrap();
            assert!(backend.audit().await.unwrap(), "{attack}");
            assert_eq!(nft.listing().await.unwrap(), whole);
            assert!(!backend.audit().await.unwrap());
        }
        // Between a change and its first audit.
        backend.sync(plan(3)).await.unwrap();
        nft.delete().await.unwrap();
        assert!(backend.audit().await.unwrap());
        // A change that meets a missing table builds it anew.
        nft.delete().await.unwrap();
        assert_eq!(backend.sync(plan(1)).await.unwrap(), Outcome::Replaced);
        // What an earlier version left goes too, and is found until then.
        nft.apply("add table ip sheave-keep").await.unwrap();
        assert_eq!(nft.tables().await.unwrap(), ruleset::ALL_TABLES);
        nft.delete().await.unwrap();
        nft.delete().await.unwrap();
        assert_eq!(nft.listing().await.unwrap(), None);
        assert!(nft.tables().await.unwrap().is_empty());
        assert!(counters::read(ruleset::TABLE).unwrap().is_empty());
    });
}

/// Within so many milliseconds a third-party change of our table is reported.
async fn reports_change(backend: &mut Backend, milliseconds: u64) -> bool {
    tokio::time::timeout(Duration::from_millis(milliseconds), backend.changed()).await.is_ok()
}

#[test]
fn third_party_changes_of_our_table_are_reported_and_nothing_else() {
    in_namespace(|| async {
        let nft = Nft::new("nft");
        let mut backend = Backend::new(nft.clone());
        assert!(!reports_change(&mut backend, 1).await);
        for pods in [1, 2, 0, 3] {
            backend.sync(plan(pods)).await.unwrap();
        }
        nft.apply("add table ip other; add table ip6 sheave; add chain ip other c; delete table ip other")
            .await
            .unwrap();
        assert!(!reports_change(&mut backend, 300).await, "our own changes, and those of other tables");
        for attack in ["delete table ip sheave", "flush chain ip sheave flow_lookup", "flush ruleset"] {
            // While nothing is known to compare with, and after that.
            for audited in [false, true] {
                backend.sync(plan(0)).await.unwrap();
                backend.sync(plan(1)).await.unwrap();
                assert!(!audited || !backend.audit().await.unwrap());
                tokio::time::sleep(PACE).await;
                nft.apply(attack).await.unwrap();
                // Nobody audits meanwhile: it is the kernel that reports. How soon is measured by the benchmarks.
                assert!(reports_change(&mut backend, 5000).await, "{attack}");
                assert!(backend.audit().await.unwrap(), "{attack}");
                assert!(!reports_change(&mut backend, 250).await, "the repair is our own change");
            }
        }
        // A third party that does not stop is answered at a pace.
        let mut reported = 0;
        let end = Instant::now() + Duration::from_secs(1);
        while Instant::now() < end {
            nft.apply("add rule ip sheave flow_lookup drop").await.unwrap();
            reported += u32::from(reports_change(&mut backend, 10).await);
        }
        assert!((1..=6).contains(&reported), "{reported}");
        assert!(backend.audit().await.unwrap());
    });
}

/// The periodic audit comes first: its repair is the only one, and the next change waits for no pace.
#[test]
fn what_a_repair_has_made_good_is_not_reported() {
    in_namespace(|| async {
        let nft = Nft::new("nft");
        let mut backend = Backend::new(nft.clone());
        assert!(!reports_change(&mut backend, 1).await, "from now on the kernel reports");
        backend.sync(plan(2)).await.unwrap();
        assert!(!backend.audit().await.unwrap());
        nft.apply("delete table ip sheave").await.unwrap();
        assert!(backend.audit().await.unwrap());
        assert!(!reports_change(&mut backend, 250).await, "it is repaired");
        nft.apply("delete table ip sheave").await.unwrap();
        assert!(reports_change(&mut backend, 5000).await && backend.audit().await.unwrap());
    });
}

/// A change is reported once. An audit that fails then must not leave it to the next periodic one.
#[test]
fn a_reported_change_that_could_not_be_audited_is_repaired_by_the_next_sync() {
    in_namespace(|| async {
        let mut backend = Backend::new(Nft::new("nft"));
        assert!(!reports_change(&mut backend, 1).await, "from now on the kernel reports");
        backend.sync(plan(2)).await.unwrap();
        assert!(!backend.audit().await.unwrap());
        let unable = Wrapper::new("unable-to-list", "echo 'cannot list' >&2; exit 1");
        for reported in [false, true] {
            let attack = if reported { "delete table ip sheave" } else { "add table ip foreign" };
            Nft::new("nft").apply(attack).await.unwrap();
            assert_eq!(reports_change(&mut backend, if reported { 5000 } else { 50 }).await, reported);
            backend.nft = Nft::new(&unable.0);
            assert_eq!(backend.audit().await.unwrap_err().label(), "refused");
            backend.nft = Nft::new("nft");
            assert_eq!(backend.is_suspect(), reported);
        }
        assert_eq!(backend.sync(plan(2)).await.unwrap(), Outcome::Replaced);
        assert!(backend.nft.listing().await.unwrap().is_some());
    });
}
