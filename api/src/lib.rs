//! CRD types, status reasons and validation of Sheave (group `sheave.dev`).
//!
//! Read: [`pool`] (where addresses come from) → [`virtualip`] (the ledger: which Service was granted which address, which node
//! holds it) → [`speakerstate`] (a node as its speaker finds it) → [`status`] (every name a refusal can have) → [`validate`]
//! (what an address range may look like, once in CEL and once in Rust) → [`source_ranges`] (which clients a Service admits).
//! `src/bin/crdgen.rs` prints the CustomResourceDefinitions; `manifests/crds` is generated from it.

mod chain;
pub mod kubernetes;
pub mod pool;
pub mod source_ranges;
pub mod speakerstate;
pub mod status;
pub mod validate;
pub mod virtualip;

pub use chain::Chain;
pub use pool::{AddressPool, AddressPoolSpec, AddressPoolStatus};
pub use source_ranges::{RangeError, SourceRanges};
pub use speakerstate::{SpeakerState, SpeakerStateSpec, SpeakerStateStatus, UplinkState};
pub use status::{NoOwner, Partly, PoolReason, Refusal};
pub use validate::{AddressRange, MalformedRange};
pub use virtualip::{ServiceRef, VirtualIP, VirtualIPSpec, VirtualIPStatus};

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

/// Annotations of a Service that name the pool its address must come from, ours first. MetalLB's are understood.
pub const POOL_ANNOTATIONS: [&str; 3] =
    ["sheave.dev/address-pool", "metallb.io/address-pool", "metallb.universe.tf/address-pool"];

/// Annotations of a Service that name the wanted address(es), separated by commas. MetalLB's are understood.
pub const ADDRESS_ANNOTATIONS: [&str; 3] =
    ["sheave.dev/loadBalancerIPs", "metallb.io/loadBalancerIPs", "metallb.universe.tf/loadBalancerIPs"];

/// The finalizer of Services that have an address: Kubernetes' own name for it, so that its tools know what is waited for.
pub const CLEANUP_FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";

/// Ports of a Service that are served: the first so many of `spec.ports` whose protocol is served.
pub const MAX_PORTS: usize = 1000;

/// IPv4 source ranges of a Service, adjacent and nested ones counted as one. A Service with more is not served.
pub const MAX_SOURCE_RANGES: usize = 1024;

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
