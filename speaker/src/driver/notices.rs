//! What the election thread sends to the main loop.

use std::net::Ipv4Addr;

use speaker_core::election::{LoseReason, Owner};
use speaker_core::name::Term;
use speaker_core::wire::advert::Keyring;

use crate::mailbox;

/// What the other threads receive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    Acquired {
        vip: Ipv4Addr,
        term: Term,
    },
    /// `why`: without an owner, the reason for which this node was the last to let it go, if it was.
    OwnerChanged {
        vip: Ipv4Addr,
        owner: Option<Owner>,
        why: Option<LoseReason>,
    },
    /// This node owns the VIP and is silent: another cluster has it.
    Yielded {
        vip: Ipv4Addr,
        term: Term,
    },
    HandedOver {
        all_taken: bool,
    },
    /// Adverts are signed and verified with these from now on.
    Keys(Keyring),
    /// This node is new and cannot verify the others: it owns nothing.
    HeldBack,
    /// This node's cluster id and flow key are those of the cluster.
    IdentityConfirmed,
}

/// Where the loop puts its reports: it never waits. Of what is not taken yet the newest of each kind and VIP counts.
pub struct Notices(mailbox::Sender<Subject, Notice>);

/// In the order in which they are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// That this node owns the VIP, or that it has no owner.
    Owned(Ipv4Addr),
    /// Which other node owns it.
    Owner(Ipv4Addr),
    Keys,
    HeldBack,
    IdentityConfirmed,
    HandedOver,
}

impl Notices {
    /// At most two for each VIP of the view, and the last.
    pub fn channel() -> (Self, mailbox::Receiver<Subject, Notice>) {
        let (sender, receiver) = mailbox::channel(usize::MAX);
        (Self(sender), receiver)
    }

    pub fn send(&self, notice: Notice) -> Result<(), mailbox::Undelivered> {
        let subject = match notice {
            Notice::Acquired { vip, .. }
            | Notice::Yielded { vip, .. }
            | Notice::OwnerChanged { vip, owner: None, .. } => Subject::Owned(vip),
            Notice::OwnerChanged { vip, owner: Some(_), .. } => Subject::Owner(vip),
            Notice::Keys(_) => Subject::Keys,
            Notice::HeldBack => Subject::HeldBack,
            Notice::IdentityConfirmed => Subject::IdentityConfirmed,
            Notice::HandedOver { .. } => Subject::HandedOver,
        };
        self.0.send(subject, notice)
    }
}
