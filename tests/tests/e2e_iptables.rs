//! What depends on kube-proxy's mode, beside kube-proxy in iptables mode.

mod e2e;

use e2e::services::{endings, endpoints, forwarding, inside, local, node_address, ports, ranges, shared, starts};
use e2e::steps;
use sheave_tests::lab::ProxyMode;

#[test]
fn promises_hold_beside_kube_proxy_iptables() {
    e2e::run(
        "e2eipt",
        ProxyMode::Iptables,
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
            ("Service: shared address", 1, shared::address),
            ("Service: addresses of nodes", 1, node_address::node_addresses),
            ("owner loss", 1, steps::owner_loss),
            ("loss of a node that translates", 1, steps::translator_loss),
            ("rolling update", 1, steps::rolling_update),
            ("nftables table and XDP link deleted", 1, steps::nft_and_xdp_deleted),
            ("no pod ready", 1, steps::no_pod_ready),
            ("session affinity, 6 to 9 to 12 pods", 1, steps::session_affinity),
            ("without Sheave", 1, steps::baseline),
            ("client address after it all", 1, steps::client_address),
            ("node without a speaker", 1, steps::node_without_speaker),
        ],
    );
}
