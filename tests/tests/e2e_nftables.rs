//! Everything that is promised of a running cluster, beside kube-proxy in nftables mode.

mod e2e;

use e2e::services::{
    endings, endpoints, forwarding, inside, late_table, local, node_address, ports, ranges, several, shared, starts,
};
use e2e::steps;
use sheave_tests::lab::ProxyMode;

#[test]
fn promises_hold_beside_kube_proxy_nftables() {
    e2e::run(
        "e2enft",
        ProxyMode::Nftables,
        &[
            ("client address", 1, steps::client_address),
            ("endpoints of no node", 1, steps::endpoints_of_no_node),
            ("Service: slices, duplicates, named ports", 1, endpoints::slices),
            ("Service: pods that are not ready", 1, endpoints::not_ready),
            ("Service: hints, internalTrafficPolicy", 1, endpoints::hints),
            ("Service: terminating pods, no endpoint", 1, endings::terminating),
            ("Service: idle connections", 1, endings::idle),
            ("Service: start of a pod", 1, starts::starts),
            ("Service: clients inside", 1, inside::clients),
            ("Service: source ranges", 1, ranges::source_ranges),
            ("Service: forwarding policy DROP", 1, forwarding::drop_policy),
            ("Service: externalTrafficPolicy Local", 1, local::owners),
            ("Service: ports that are not served", 1, ports::ports),
            ("Service: a node's table late", 1, late_table::late_table),
            ("Service: several addresses", 1, several::addresses),
            ("Service: shared address", 1, shared::address),
            ("Service: addresses of nodes", 1, node_address::node_addresses),
            ("first answer", 1, steps::first_answer),
            ("forged heartbeats", 1, steps::forged_heartbeats),
            ("owner loss", 1, steps::owner_loss),
            ("other node loss", 1, steps::other_node_loss),
            ("loss of a node that translates", 1, steps::translator_loss),
            ("speaker SIGKILL", 1, steps::speaker_kill),
            ("speaker SIGSTOP", 1, steps::speaker_stop),
            ("graceful deletion", 1, steps::graceful_delete),
            ("speaker restarts", 1, steps::speaker_restarts),
            ("API server down, owner loss", 1, steps::api_server_down),
            ("node back after 5 s", 1, steps::node_back),
            ("rolling update", 1, steps::rolling_update),
            ("drain of the owner", 1, steps::drain_of_the_owner),
            ("all speakers killed", 1, steps::all_speakers_killed),
            ("nftables table and XDP link deleted", 1, steps::nft_and_xdp_deleted),
            ("no pod ready", 1, steps::no_pod_ready),
            ("selector to other pods and back", 1, steps::selector_changes),
            ("session affinity, 6 to 9 to 12 pods", 1, steps::session_affinity),
            ("API server lost on one node", 1, steps::api_lost_on_one_node),
            ("client address after it all", 1, steps::client_address),
            ("resources", 1, steps::resources),
            ("node without a speaker", 1, steps::node_without_speaker),
            ("uninstall", 1, steps::uninstall),
        ],
    );
}
