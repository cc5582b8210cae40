//! Which nodes may hold a VIP, and which of them before others.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;

use crate::name::{NodeName, Term};
use crate::time::Duration;

/// Which nodes may hold a VIP. Cheap to clone: all VIPs share the sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Eligible {
    /// Every node that is ready.
    All,
    Only(Arc<BTreeSet<NodeName>>),
    /// These; the others only while none of these can.
    Preferred {
        nodes: Arc<BTreeSet<NodeName>>,
        others: Arc<BTreeSet<NodeName>>,
    },
    /// These as each is chosen. Any other node gives the VIP up, also where no successor is.
    Chosen {
        nodes: Arc<BTreeMap<NodeName, Standing>>,
        /// An owner hands over to a node of more weight that has been ready for so long; `None`: never.
        failback: Option<Duration>,
    },
    /// As `of`, but for what an administrator wants of this VIP alone.
    Placed {
        /// It comes before all others of its choice in rank. No node steps down for it, except for failback.
        preferred: Option<NodeName>,
        order: Option<Order>,
        of: Arc<Eligible>,
    },
    /// As `of`; these come before all others of their weight in rank. No node steps down for them.
    WithPods {
        nodes: Arc<BTreeSet<NodeName>>,
        of: Arc<Eligible>,
    },
}

/// What a node is to a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Standing {
    pub choice: Choice,
    /// Of two nodes of the same choice the one of more weight comes first in rank. No node steps down for it, except for failback.
    pub weight: u8,
}

/// The owner with this term is to hand the VIP over to a node, once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    pub to: NodeName,
    pub from: NodeName,
    pub term: Term,
}

/// Higher ones first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Choice {
    /// It claims nothing, and keeps what it holds while no other node can.
    Keeps,
    /// It is drained: it claims, and keeps what it holds, while no other node can.
    Last,
    /// It claims, and keeps what it holds, while no first choice can.
    Second,
    First,
}

impl Eligible {
    pub fn only(nodes: BTreeSet<NodeName>) -> Self {
        Self::Only(Arc::new(nodes))
    }

    /// `None`: it must not hold it.
    pub fn choice(&self, node: &NodeName) -> Option<Choice> {
        let first = |nodes: &BTreeSet<NodeName>| nodes.contains(node).then_some(Choice::First);
        match self {
            Self::All => Some(Choice::First),
            Self::Only(nodes) => first(nodes).or(Some(Choice::Keeps)),
            Self::Preferred { nodes, others } => {
                let second = others.contains(node).then_some(Choice::Second);
                first(nodes).or(second).or(Some(Choice::Keeps))
            }
            Self::Chosen { nodes, .. } => nodes.get(node).map(|standing| standing.choice),
            Self::Placed { of, .. } | Self::WithPods { of, .. } => of.choice(node),
        }
    }

    /// As a first choice.
    pub fn contains(&self, node: &NodeName) -> bool {
        self.choice(node) == Some(Choice::First)
    }

    /// Where no first choice can.
    pub fn falls_back_to(&self, node: &NodeName) -> bool {
        self.choice(node) == Some(Choice::Second)
    }

    pub fn weight(&self, node: &NodeName) -> u8 {
        match self {
            Self::All | Self::Only(_) | Self::Preferred { .. } => 0,
            Self::Chosen { nodes, .. } => nodes.get(node).map(|standing| standing.weight).unwrap_or_default(),
            Self::Placed { preferred: Some(preferred), .. } if preferred == node => PREFERRED,
            Self::Placed { of, .. } | Self::WithPods { of, .. } => of.weight(node),
        }
    }

    /// How long a node of more weight must have been ready before an owner hands over to it.
    pub fn failback(&self) -> Option<Duration> {
        match self {
            Self::All | Self::Only(_) | Self::Preferred { .. } => None,
            Self::Chosen { failback, .. } => *failback,
            Self::Placed { of, .. } | Self::WithPods { of, .. } => of.failback(),
        }
    }

    /// The hand-over that an administrator has ordered.
    pub fn order(&self) -> Option<&Order> {
        match self {
            Self::All | Self::Only(_) | Self::Preferred { .. } | Self::Chosen { .. } => None,
            Self::Placed { order, .. } => order.as_ref(),
            Self::WithPods { of, .. } => of.order(),
        }
    }

    /// Whether an owner that works may come to hand it over.
    pub fn may_be_offered(&self) -> bool {
        self.failback().is_some() || self.order().is_some()
    }

    /// No node may claim it.
    pub fn is_nobodys(&self) -> bool {
        match self {
            Self::All => false,
            Self::Only(nodes) => nodes.is_empty(),
            Self::Preferred { nodes, others } => nodes.is_empty() && others.is_empty(),
            Self::Chosen { nodes, .. } => nodes.values().all(|standing| standing.choice == Choice::Keeps),
            Self::Placed { of, .. } | Self::WithPods { of, .. } => of.is_nobodys(),
        }
    }

    /// It comes before nodes without pods in rank.
    pub fn has_pod(&self, node: &NodeName) -> bool {
        matches!(self, Self::WithPods { nodes, .. } if nodes.contains(node))
    }

    /// Nodes with pods come first, and none is known.
    pub fn lacks_pods(&self) -> bool {
        matches!(self, Self::WithPods { nodes, .. } if nodes.is_empty())
    }
}

/// Above every weight of an L2Advertisement, which is 100 at most.
const PREFERRED: u8 = 101;
