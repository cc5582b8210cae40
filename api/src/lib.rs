//! CRD types, status reasons and validation of Sheave (group `sheave.dev`).
//!
//! Read: [`pool`] (where addresses come from) → [`l2advertisement`] (which of them are announced by ARP, and from which nodes) → [`placement`] (where an administrator wants them)
//! → [`virtualip`] (the ledger: which Service was granted which address, which node
//! holds it) → [`speakerstate`] (a node as its speaker finds it) → [`addressprobe`] (whether a host uses an address) → [`subnetscan`] (which ones do, for `sheave init`) → [`status`] (every name a refusal can have) → [`validate`]
//! (what an address range may look like, once in CEL and once in Rust) → [`source_ranges`] (which clients a Service admits),
//! [`startup_probe`] (whether its new pods are probed), [`address_mode`] (whether nodes' own addresses serve it).
//! `src/bin/crdgen` prints the CustomResourceDefinitions; `manifests/crds` and docs/fields.md are generated from it.

pub mod address_mode;
pub mod addressprobe;
pub mod annotations;
mod chain;
pub mod excerpt;
mod excluded;
pub mod kubernetes;
pub mod l2advertisement;
pub mod local;
pub mod placement;
pub mod pool;
pub mod source_ranges;
pub mod speakerstate;
pub mod startup_probe;
pub mod status;
pub mod subnetscan;
pub mod validate;
pub mod virtualip;

pub use address_mode::AddressMode;
pub use addressprobe::{AddressProbe, AddressProbeSpec, AddressProbeStatus, ProbeResult, ProbeVerdict};
pub use annotations::{
    ADDRESS_ANNOTATIONS, CILIUM_SHARING_ANNOTATIONS, MOVE_ANNOTATION, POOL_ANNOTATIONS, RETENTION_ANNOTATION,
    SHARING_ANNOTATIONS,
};
pub use chain::Chain;
pub use excerpt::excerpt;
pub use excluded::Excluded;
pub use l2advertisement::{L2Advertisement, L2AdvertisementSpec, L2AdvertisementStatus, PreferredNodes};
pub use placement::{Placement, PlacementMode, PlacementSpec};
pub use pool::{AddressPool, AddressPoolSpec, AddressPoolStatus, Announce};
pub use source_ranges::{RangeError, SourceRanges};
pub use speakerstate::{Listening, SpeakerState, SpeakerStateSpec, SpeakerStateStatus, UplinkState};
pub use status::{AdvertisementReason, NoOwner, Partly, PoolReason, Refusal};
pub use subnetscan::{DhcpServer, SubnetScan, SubnetScanSpec, SubnetScanStatus};
pub use validate::{AddressRange, MalformedRange};
pub use virtualip::{ServiceRef, VirtualIP, VirtualIPSpec, VirtualIPStatus, virtual_ip_address, virtual_ip_name};

/// The API group of every type here.
pub const GROUP: &str = "sheave.dev";
/// The only version so far.
pub const VERSION: &str = "v1alpha1";

/// `spec.loadBalancerClass` of Services that are ours by name; Services without a class are ours too.
pub const LOAD_BALANCER_CLASS: &str = "sheave.dev/sheave";

/// Name of the component in Events (`reportingController`) and of the field manager in `managedFields`.
pub const CONTROLLER_NAME: &str = "sheave.dev/controller";

/// Name of the speaker as field manager.
pub const SPEAKER_NAME: &str = "sheave.dev/speaker";

/// Addresses that the Services of a cluster may have in use together: what the speakers' tables hold (`ebpf_common::MAX_VIPS`).
pub const MAX_VIRTUAL_IPS: usize = 4096;

/// Services that may share an address.
pub const MAX_SERVICES_PER_ADDRESS: usize = 64;

/// IPv4 addresses that a Service may ask for.
pub const MAX_ADDRESSES: usize = 16;

/// L2Advertisements that are followed: the oldest ones.
pub const MAX_L2_ADVERTISEMENTS: usize = 64;

/// The finalizer of Services that have an address: Kubernetes' own name for it, so that its tools know what is waited for.
pub const CLEANUP_FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";

/// Ports of a Service that are served: the first so many of `spec.ports` whose protocol is served.
pub const MAX_PORTS: usize = 1000;

/// IPv4 source ranges of a Service, adjacent and nested ones counted as one. A Service with more admits no client.
pub const MAX_SOURCE_RANGES: usize = 1024;

/// Service ports of all Services of a cluster, each port of each address being one: what the speakers' tables hold
/// (`ebpf_common::MAX_SERVICES`).
pub const MAX_SERVICE_PORTS: usize = 16_384;

/// EndpointSlices of a cluster that speakers keep, whatever Service they are of (`Limit::EndpointSlices` of speaker-core).
pub const MAX_SLICES: usize = 65_536;

/// Services of a cluster with source ranges (`ebpf_common::MAX_RESTRICTED`, without the slot of those beyond).
pub const MAX_RESTRICTED_SERVICES: usize = 4095;

/// IPv4 source ranges of all Services of a cluster (`ebpf_common::MAX_SOURCE_RANGES`).
pub const MAX_ALL_SOURCE_RANGES: usize = 65_536;

/// The Secret with the speakers' keys, in the namespace that Sheave is installed in; created by the leading controller
/// if there is none, never changed afterwards.
pub mod keys {
    /// Name of the Secret, watched by the speakers.
    pub const SECRET: &str = "sheave-keys";
    /// 32 raw random bytes: the HMAC-SHA256 key that adverts are signed with.
    pub const CURRENT: &str = "current";
    /// Raw bytes, only during a rotation: a key that is still accepted.
    pub const PREVIOUS: &str = "previous";
    /// 16 raw bytes: the key of the flow hash. Every node must use the same, or tables differ.
    pub const FLOW_HASH: &str = "flow-hash";
    /// 8 raw bytes: separates the adverts of two clusters on one segment.
    pub const CLUSTER_ID: &str = "cluster-id";
}
