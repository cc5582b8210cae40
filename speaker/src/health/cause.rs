//! What can be out of order on a node, each under one name: line of `/readyz`, reason of a SpeakerState's condition, word in the log.

use sheave_api::speakerstate::stands_by;
use speaker_core::wire::advert::Reject;

use crate::keys::IDENTITY_DIFFERS;
use crate::keys::source::Problem;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    Keys(Problem),
    KeysIdentityDiffers,
    ElectionStalled,
    DataplaneStalled,
    PeersUnverified,
    AdvertsMissing,
    ReportsMissing,
    TooManyPeers,
    NftFailing,
    MapsFailing,
    NotAttached,
    NotSynced,
    NoCarrier,
    Joining,
    RightsMissing,
    ObjectsUnreadable,
    AddressConflict,
    ConntrackNearlyFull,
    ConntrackFull,
    ForwardPolicyDrop,
    HostSpeaker,
    HostSpeakerStopped,
}

/// What is looked at: the type of a condition. True is in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Check {
    KeysValid,
    PeersReached,
    LinkUp,
    PacketPathAttached,
    ViewApplied,
    ConntrackHasRoom,
    ForwardingAllowed,
}

impl Cause {
    /// The one name.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Keys(problem) => problem.label(),
            Self::KeysIdentityDiffers => IDENTITY_DIFFERS,
            Self::ElectionStalled => "election_stalled",
            Self::DataplaneStalled => "dataplane_stalled",
            Self::PeersUnverified => "peers_unverified",
            Self::AdvertsMissing => "adverts_missing",
            Self::ReportsMissing => "reports_missing",
            Self::TooManyPeers => Reject::TooManyPeers.label(),
            Self::NftFailing => "nft_failing",
            Self::MapsFailing => "maps_failing",
            Self::NotAttached => "not_attached",
            Self::NotSynced => "not_synced",
            Self::NoCarrier => "no_carrier",
            Self::Joining => "joining",
            Self::RightsMissing => "rights_missing",
            Self::ObjectsUnreadable => "objects_unreadable",
            Self::AddressConflict => "address_conflict",
            Self::ConntrackNearlyFull => "conntrack_nearly_full",
            Self::ConntrackFull => "conntrack_full",
            Self::ForwardPolicyDrop => "forward_policy_drop",
            Self::HostSpeaker => stands_by::HOST_SPEAKER,
            Self::HostSpeakerStopped => stands_by::HOST_SPEAKER_STOPPED,
        }
    }

    /// This speaker serves nothing, because it is not its turn.
    pub const fn stands_by(self) -> bool {
        matches!(self, Self::HostSpeaker | Self::HostSpeakerStopped)
    }

    pub const fn check(self) -> Check {
        match self {
            Self::Keys(_) | Self::KeysIdentityDiffers => Check::KeysValid,
            Self::ElectionStalled
            | Self::PeersUnverified
            | Self::AdvertsMissing
            | Self::ReportsMissing
            | Self::TooManyPeers
            | Self::AddressConflict
            | Self::Joining => Check::PeersReached,
            Self::NoCarrier => Check::LinkUp,
            Self::NotAttached | Self::HostSpeaker | Self::HostSpeakerStopped => Check::PacketPathAttached,
            Self::DataplaneStalled
            | Self::NftFailing
            | Self::MapsFailing
            | Self::NotSynced
            | Self::RightsMissing
            | Self::ObjectsUnreadable => Check::ViewApplied,
            Self::ConntrackNearlyFull | Self::ConntrackFull => Check::ConntrackHasRoom,
            Self::ForwardPolicyDrop => Check::ForwardingAllowed,
        }
    }

    /// For who reads the condition.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Keys(Problem::Awaited) => "the Secret sheave-keys has not been read yet",
            Self::Keys(Problem::Missing) => "there is no Secret sheave-keys; the controller creates it",
            Self::Keys(Problem::Malformed) => "an entry of the Secret sheave-keys is missing or has another length",
            Self::Keys(Problem::Refused) => {
                "the API server refuses the Secret sheave-keys: is the Role sheave-speaker there?"
            }
            Self::Keys(Problem::Unreachable) => "the API server did not answer when the Secret sheave-keys was read",
            Self::KeysIdentityDiffers => {
                "the Secret sheave-keys names another cluster id or flow key; this node keeps its own"
            }
            Self::ElectionStalled => "the election's loop has not turned for 5 s",
            Self::DataplaneStalled => "the dataplane's loop has not turned for 5 s",
            Self::PeersUnverified => "adverts of other nodes cannot be verified: they have other keys",
            Self::AdvertsMissing => {
                "other nodes' programs answer and their adverts do not arrive: is UDP 7480 let through, and do their speakers run?"
            }
            Self::ReportsMissing => {
                "adverts of other nodes arrive and their flow reports do not: is UDP 7481 let through?"
            }
            Self::TooManyPeers => {
                "there are more nodes with speakers than the election holds, and this is one of the newest: it owns no VIP, and other \
                 nodes serve its pods"
            }
            Self::NftFailing => {
                "the newest rules are refused by nftables or take long; those before them stay in force"
            }
            Self::MapsFailing => "the kernel refuses writes to the maps",
            Self::NotAttached => "the XDP program is not attached to the uplink; the log names the cause",
            Self::NotSynced => "waits for the full view, reports, rules and maps",
            Self::NoCarrier => "the uplink is down",
            Self::Joining => "listens for peers, 1 s at most",
            Self::RightsMissing => {
                "a kind of objects must not be read (sheave_rights_missing has it): is ClusterRole sheave-speaker of this version?"
            }
            Self::ObjectsUnreadable => {
                "an object cannot be read and is skipped (sheave_objects_unreadable has its kind, the log its name)"
            }
            Self::AddressConflict => {
                "another host of the segment announces a VIP of this node; the log has its Ethernet address"
            }
            Self::ConntrackNearlyFull => "raise net.netfilter.nf_conntrack_max",
            Self::ConntrackFull => {
                "first packets of new flows to pods of this node were dropped: raise net.netfilter.nf_conntrack_max"
            }
            Self::ForwardPolicyDrop => {
                "Sheave cannot overrule a chain that drops packets to pods unless a rule of its own accepts them (such as: ct status dnat accept)"
            }
            Self::HostSpeaker => {
                "the speaker of the API server endpoint (sheave-speaker endpoint) has this node's packet path and no place beside it, so \
                 this one serves nothing"
            }
            Self::HostSpeakerStopped => {
                "the speaker of the API server endpoint has this node's packet path and has not run for a minute: start it, or \
                 remove it (sheave-speaker uninstall --host-speaker)"
            }
        }
    }
}

impl Check {
    pub const ALL: [Self; 7] = [
        Self::KeysValid,
        Self::PeersReached,
        Self::LinkUp,
        Self::PacketPathAttached,
        Self::ViewApplied,
        Self::ConntrackHasRoom,
        Self::ForwardingAllowed,
    ];

    /// Its type in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::KeysValid => "KeysValid",
            Self::PeersReached => "PeersReached",
            Self::LinkUp => "LinkUp",
            Self::PacketPathAttached => "PacketPathAttached",
            Self::ViewApplied => "ViewApplied",
            Self::ConntrackHasRoom => "ConntrackHasRoom",
            Self::ForwardingAllowed => "ForwardingAllowed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_is_named_like_its_variant() {
        for check in Check::ALL {
            assert_eq!(check.as_str(), format!("{check:?}"));
        }
    }
}
