//! What becomes of objects on a running cluster: pools, placements, SpeakerStates, Secrets; and of the controller.

mod e2e;

use e2e::{services, steps};
use sheave_tests::lab::ProxyMode;

#[test]
fn objects_are_followed_on_a_running_cluster() {
    e2e::run(
        "e2eobj",
        ProxyMode::Nftables,
        &[
            ("SpeakerStates", 1, steps::speaker_states),
            ("Secret replaced, speaker restarted", 1, steps::keys_replaced),
            ("speaker waits for the Secret", 1, steps::keys_awaited),
            ("objects that cannot be read, large ones", 1, steps::odd_objects),
            ("forged ARP for every node", 1, steps::forged_arp),
            ("announced by chosen nodes", 1, steps::announced_by_chosen_nodes),
            ("placed by hand", 1, steps::placed_by_hand),
            ("controller failover", 1, steps::controller_failover),
            ("pool exhaustion", 1, steps::pool_exhaustion),
            ("whole segment as a pool", 1, steps::whole_segment),
            ("addresses that hosts use", 1, steps::address_conflict),
            ("a host with a VIP", 1, services::other_host::comes_up),
            // The last one: a node that was deleted counts as down until nothing is known of its flows any more.
            ("a node joins with a VIP", 1, services::node_joins::with_a_vip),
        ],
    );
}
