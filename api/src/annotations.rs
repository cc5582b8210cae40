//! Every annotation that Sheave reads. One that stands here has a row, and a test, in docs/fields.md.

use crate::{address_mode, source_ranges, startup_probe};

/// Annotations of a Service that name the pool its address must come from. The first is ours; MetalLB's are understood.
pub const POOL_ANNOTATIONS: [&str; 3] =
    ["sheave.dev/address-pool", "metallb.io/address-pool", "metallb.universe.tf/address-pool"];

/// Annotations of a Service that name the wanted address(es), separated by commas. The first is ours; its earlier name, MetalLB's,
/// kube-vip's and Cilium's are understood.
pub const ADDRESS_ANNOTATIONS: [&str; 7] = [
    "sheave.dev/addresses",
    "sheave.dev/loadBalancerIPs",
    "metallb.io/loadBalancerIPs",
    "metallb.universe.tf/loadBalancerIPs",
    "kube-vip.io/loadbalancerIPs",
    "lbipam.cilium.io/ips",
    "io.cilium/lb-ipam-ips",
];

/// Annotations of a Service that name the key under which it may share an address with others. The first is ours.
pub const SHARING_ANNOTATIONS: [&str; 3] =
    ["sheave.dev/allow-shared-ip", "metallb.io/allow-shared-ip", "metallb.universe.tf/allow-shared-ip"];

/// The same of Cilium, whose keys are confined to the Service's namespace. Ours are not: these have no other name here.
pub const CILIUM_SHARING_ANNOTATIONS: [&str; 2] = ["lbipam.cilium.io/sharing-key", "io.cilium/lb-ipam-sharing-key"];

/// Annotation of an AddressPool: how long an address that was freed is kept for a Service of the same namespace and name.
pub const RETENTION_ANNOTATION: &str = "sheave.dev/address-retention";

/// Annotation of a VirtualIP: the pool that its Services are to have an address from instead, with an administrator's consent.
/// `sheave pool move` writes it, and it goes with the VirtualIP.
pub const MOVE_ANNOTATION: &str = "sheave.dev/move-to-pool";

/// All of them, each with what it means. An earlier name of ours, or one of another project, says the same as ours.
pub const ALL: [(&str, &str); 20] = [
    (POOL_ANNOTATIONS[0], POOL),
    (POOL_ANNOTATIONS[1], POOL),
    (POOL_ANNOTATIONS[2], POOL),
    (ADDRESS_ANNOTATIONS[0], ADDRESS),
    (ADDRESS_ANNOTATIONS[1], ADDRESS),
    (ADDRESS_ANNOTATIONS[2], ADDRESS),
    (ADDRESS_ANNOTATIONS[3], ADDRESS),
    (ADDRESS_ANNOTATIONS[4], ADDRESS),
    (ADDRESS_ANNOTATIONS[5], ADDRESS),
    (ADDRESS_ANNOTATIONS[6], ADDRESS),
    (SHARING_ANNOTATIONS[0], SHARING),
    (SHARING_ANNOTATIONS[1], SHARING),
    (SHARING_ANNOTATIONS[2], SHARING),
    (CILIUM_SHARING_ANNOTATIONS[0], "Service: the same within the namespace"),
    (CILIUM_SHARING_ANNOTATIONS[1], "Service: the same within the namespace"),
    (
        RETENTION_ANNOTATION,
        "AddressPool: how long a freed address is kept for a Service of the same namespace and name",
    ),
    (
        address_mode::ANNOTATION,
        "Service: whether nodes' own addresses serve its ports, in place of an address from a pool",
    ),
    (MOVE_ANNOTATION, "VirtualIP: the pool that its Services are to have an address from instead (`sheave pool move`)"),
    (source_ranges::ANNOTATION, "Service: the clients that it admits, where `spec.loadBalancerSourceRanges` is empty"),
    (startup_probe::ANNOTATION, "Service: whether its new pods are probed before they get connections"),
];

const POOL: &str = "Service: the pool that its address must come from";
const ADDRESS: &str = "Service: the wanted addresses";
const SHARING: &str = "Service: the key under which it shares an address with others";
