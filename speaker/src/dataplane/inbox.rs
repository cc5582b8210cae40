//! Messages to the dataplane loop from other threads: the newest one on each subject.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use ebpf_common::MAX_NODES;
use speaker_core::name::NodeName;
use speaker_core::wire::advert::Keyring;

use crate::io::Mac;
use crate::mailbox::{self, Undelivered};
use crate::metrics::Metrics;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Nodes that get no rows.
    Unavailable {
        /// Their kernels give no sign of life.
        down: BTreeSet<NodeName>,
        /// Their speakers have been silent for long.
        silent: BTreeSet<NodeName>,
        /// No speaker has been ready there since they were new or down.
        unknown: BTreeSet<NodeName>,
    },
    /// This node was cut off: others have served its rows meanwhile.
    WasAway,
    Neighbour {
        ip: Ipv4Addr,
        mac: Mac,
    },
    /// A node's MAC address under its signature, or no longer: it outranks the kernel's neighbour table.
    SignedMac {
        ip: Ipv4Addr,
        mac: Option<Mac>,
    },
    /// The uplink's own address changed.
    OwnMac(Mac),
    /// What this host is itself, and how it leaves the segment.
    HostAddresses(HostAddresses),
    /// The speakers' runs that the election has verified and receives.
    Incarnations(BTreeMap<NodeName, u64>),
    /// Nodes that the election sends its adverts to by unicast too.
    Unicast(BTreeSet<NodeName>),
    /// Reports are signed and verified with these from now on.
    Keys(Keyring),
}

/// Addresses that no VIP may have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostAddresses {
    /// Of this host, on any device.
    pub addresses: BTreeSet<Ipv4Addr>,
    /// Of default routes over the uplink.
    pub gateways: BTreeSet<Ipv4Addr>,
}

/// In the order in which the loop takes what waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Unavailable,
    WasAway,
    SignedMac(Ipv4Addr),
    Neighbour(Ipv4Addr),
    OwnMac,
    HostAddresses,
    Incarnations,
    Unicast,
    Keys,
}

/// What waits on one subject. The loop also receives nodes that were down only for a moment.
type Waiting = Vec<Message>;

#[derive(Clone)]
pub struct Outbox {
    sender: mailbox::Sender<Subject, Waiting>,
    metrics: Arc<Metrics>,
}

pub struct Inbox(mailbox::Receiver<Subject, Waiting>);

pub fn channel(metrics: Arc<Metrics>) -> (Outbox, Inbox) {
    let (sender, receiver) = mailbox::channel(MAX_WAITING);
    (Outbox { sender, metrics }, Inbox(receiver))
}

impl Outbox {
    /// Never waits for the loop. At the limit a neighbour of which nothing waits yet is left out and counted; the other subjects are few
    /// (signed addresses are those of nodes), and always delivered.
    pub fn send(&self, message: Message) -> Result<(), Undelivered> {
        let subject = match &message {
            Message::Unavailable { .. } => Subject::Unavailable,
            Message::WasAway => Subject::WasAway,
            Message::Neighbour { ip, .. } => Subject::Neighbour(*ip),
            Message::SignedMac { ip, .. } => Subject::SignedMac(*ip),
            Message::OwnMac(_) => Subject::OwnMac,
            Message::HostAddresses(_) => Subject::HostAddresses,
            Message::Incarnations(_) => Subject::Incarnations,
            Message::Unicast(_) => Subject::Unicast,
            Message::Keys(_) => Subject::Keys,
        };
        let waits = |waiting: Option<Waiting>| after(waiting.unwrap_or_default(), message);
        let sent = match subject {
            Subject::Neighbour(_) => self.sender.edit(subject, waits),
            _ => self.sender.insist(subject, waits),
        };
        match sent {
            Err(Undelivered::Full) => {
                self.metrics.limits_reached.with_label_values(&["neighbours_waiting"]).inc();
                Ok(())
            }
            outcome => outcome,
        }
    }
}

impl Inbox {
    /// All that waits; `None` when every sender is gone.
    pub async fn recv(&mut self) -> Option<impl Iterator<Item = Message> + use<>> {
        let waiting: BTreeMap<Subject, Waiting> = self.0.recv().await?;
        Some(waiting.into_values().flatten())
    }
}

/// At most two messages: all nodes that were down since the loop looked, then what is true now.
fn after(mut waiting: Waiting, message: Message) -> Waiting {
    let last = waiting.pop();
    match (waiting.pop(), last, &message) {
        (earlier, Some(mut last @ Message::Unavailable { .. }), Message::Unavailable { .. }) => {
            if let (Message::Unavailable { down, .. }, Some(Message::Unavailable { down: earlier, .. })) =
                (&mut last, earlier)
            {
                down.extend(earlier);
            }
            vec![last, message]
        }
        _ => vec![message],
    }
}

/// A segment's neighbours, and the other subjects.
const MAX_WAITING: usize = 4 * MAX_NODES as usize;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::Counters;
    use crate::dataplane::map_tests::with_maps;

    fn unavailable(down: &[&str], silent: &[&str]) -> Message {
        let names = |names: &[&str]| names.iter().filter_map(|name| NodeName::new(name)).collect();
        Message::Unavailable { down: names(down), silent: names(silent), unknown: BTreeSet::new() }
    }

    /// A segment with more neighbours than wait at a time, while the loop does not turn.
    #[test]
    fn neighbours_alone_are_left_out_at_the_limit() {
        with_maps(|pins| {
            let metrics = Arc::new(Metrics::new(Counters::open(pins).unwrap()).unwrap());
            let (outbox, mut inbox) = channel(metrics.clone());
            let neighbour = |number: u32| Message::Neighbour {
                ip: Ipv4Addr::from(0x0a00_0000 + number),
                mac: Mac([2, 0, 0, 0, 0, 1]),
            };
            (0..MAX_WAITING as u32 + 3).for_each(|number| outbox.send(neighbour(number)).unwrap());
            assert_eq!(metrics.limits_reached.with_label_values(&["neighbours_waiting"]).get(), 3);
            let signed = |last, mac| Message::SignedMac { ip: [192, 0, 2, last].into(), mac };
            let others = [
                unavailable(&["a"], &[]),
                Message::WasAway,
                signed(1, Some(Mac([2, 0, 0, 0, 0, 7]))),
                signed(2, None),
                Message::OwnMac(Mac([2, 0, 0, 0, 0, 9])),
                Message::HostAddresses(HostAddresses::default()),
            ];
            others.iter().for_each(|message| outbox.send(message.clone()).unwrap());
            outbox.send(neighbour(0)).unwrap();
            let received = futures::FutureExt::now_or_never(inbox.recv()).flatten().unwrap();
            let (neighbours, rest): (Vec<_>, Vec<_>) =
                received.partition(|message| matches!(message, Message::Neighbour { .. }));
            assert_eq!((neighbours.len(), rest.as_slice()), (MAX_WAITING, &others[..]));
            assert_eq!(metrics.limits_reached.with_label_values(&["neighbours_waiting"]).get(), 3);
        });
    }

    #[test]
    fn a_node_that_was_down_for_a_moment_was_down() {
        let messages = [unavailable(&["a"], &[]), unavailable(&["b"], &["c"]), unavailable(&[], &["d"])];
        let waiting = messages.into_iter().fold(Waiting::new(), after);
        assert_eq!(waiting, [unavailable(&["a", "b"], &["c"]), unavailable(&[], &["d"])]);
        let mac = |last| Message::OwnMac(Mac([2, 0, 0, 0, 0, last]));
        assert_eq!(after(vec![mac(1)], mac(2)), [mac(2)]);
    }
}
