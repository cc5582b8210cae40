//! Commands of the other threads to the election thread: a mailbox with the newest of each kind. Senders never wait.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use speaker_core::election::Eligible;
use speaker_core::name::{NodeName, Vip};
use speaker_core::rotation;
use tracing::warn;

use crate::io::Mac;

#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    Desired {
        desired: BTreeMap<Vip, Eligible>,
        /// By a view from disk that no API server has confirmed.
        saved_view: bool,
    },
    Ready(bool),
    Carrier(bool),
    /// The MAC address of the uplink.
    OwnMac(Mac),
    /// The node's address on the segment, if it has one.
    OwnAddress(Option<Ipv4Addr>),
    /// All other nodes and their addresses on the segment, and those of them that have left the cluster.
    Nodes {
        nodes: BTreeMap<NodeName, Ipv4Addr>,
        departed: BTreeSet<NodeName>,
        /// Nodes that are not among these, because the election has no place for them.
        beyond_limit: BTreeSet<NodeName>,
        /// Nor has it one for this node.
        this_one: bool,
        /// The view is one from disk.
        saved: bool,
    },
    /// An administrator wants this node to own VIPs only while no other node can.
    Drained(bool),
    /// The signing keys of the Secret; on disk already.
    Keys(rotation::Secret),
    Leave,
}

/// In the order in which the loop takes waiting commands: announcements after a link returns must name the present address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Keys,
    OwnMac,
    OwnAddress,
    Carrier,
    Drained,
    Nodes,
    Desired,
    Ready,
    Leave,
}

impl Command {
    fn kind(&self) -> Kind {
        match self {
            Self::Keys(_) => Kind::Keys,
            Self::OwnMac(_) => Kind::OwnMac,
            Self::OwnAddress(_) => Kind::OwnAddress,
            Self::Carrier(_) => Kind::Carrier,
            Self::Drained(_) => Kind::Drained,
            Self::Nodes { .. } => Kind::Nodes,
            Self::Desired { .. } => Kind::Desired,
            Self::Ready(_) => Kind::Ready,
            Self::Leave => Kind::Leave,
        }
    }
}

#[derive(Debug, Default)]
struct Waiting {
    newest: BTreeMap<Kind, Command>,
    /// The link was lost since the loop last took commands, even if it is back: others may own this node's VIPs (R11).
    link_lost: bool,
    ended: bool,
}

type Mailbox = Arc<Mutex<Waiting>>;

/// Leaves commands and wakes the loop.
#[derive(Clone)]
pub struct Commands {
    waiting: Mailbox,
    wake: Arc<EventFd>,
}

impl Commands {
    pub fn channel() -> Result<(Self, Inbox)> {
        let (waiting, wake) = (Mailbox::default(), EventFd::from_flags(EfdFlags::EFD_NONBLOCK).context("eventfd")?);
        let wake = Arc::new(wake);
        Ok((Self { waiting: waiting.clone(), wake: wake.clone() }, Inbox { waiting, wake }))
    }

    /// Replaces a command of the same kind that waits. An error means that the loop has ended: the process is about to as well.
    pub fn send(&self, command: Command) -> Result<()> {
        {
            let mut waiting = lock(&self.waiting);
            if waiting.ended {
                bail!("the election loop has ended");
            }
            waiting.link_lost |= command == Command::Carrier(false);
            waiting.newest.insert(command.kind(), command);
        }
        // EAGAIN: the counter is full, so the loop is being woken anyway.
        match self.wake.write(1) {
            Ok(_) | Err(Errno::EAGAIN) => Ok(()),
            Err(error) => Err(error).context("wake the election loop"),
        }
    }
}

/// The loop's end.
pub struct Inbox {
    waiting: Mailbox,
    wake: Arc<EventFd>,
}

impl Inbox {
    /// All commands that wait.
    pub fn take(&self) -> Vec<Command> {
        // Reading resets the counter; EAGAIN: no command came.
        if let Err(error) = self.wake.read()
            && error != Errno::EAGAIN
        {
            warn!(%error, "eventfd");
        }
        let Waiting { newest, link_lost, .. } = {
            let mut waiting = lock(&self.waiting);
            let ended = waiting.ended;
            std::mem::replace(&mut *waiting, Waiting { ended, ..Waiting::default() })
        };
        let mut commands = Vec::new();
        for command in newest.into_values() {
            if link_lost && command == Command::Carrier(true) {
                commands.push(Command::Carrier(false));
            }
            commands.push(command);
        }
        commands
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        lock(&self.waiting).ended = true;
    }
}

/// A panic while it was held cannot have left it half changed.
fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desired(last: u8) -> Command {
        let vip = Vip([192, 0, 2, last].into());
        Command::Desired { desired: [(vip, Eligible::All)].into(), saved_view: false }
    }

    /// The election's thread is kept from running: neither the view nor the packet path waits for it.
    #[test]
    fn senders_do_not_wait_for_the_loop_and_the_newest_counts() {
        let (commands, inbox) = Commands::channel().unwrap();
        for number in 0..10_000 {
            commands.send(desired(number as u8)).unwrap();
            commands.send(Command::Ready(number % 2 == 0)).unwrap();
        }
        commands.send(Command::OwnMac(Mac([2, 0, 0, 0, 0, 1]))).unwrap();
        let newest = [Command::OwnMac(Mac([2, 0, 0, 0, 0, 1])), desired(9_999_u16 as u8), Command::Ready(false)];
        assert_eq!(inbox.take(), newest);
        assert_eq!(inbox.take(), []);
        drop(inbox);
        assert!(commands.send(Command::Leave).unwrap_err().to_string().contains("ended"));
    }

    #[test]
    fn a_link_that_was_lost_for_a_moment_was_lost() {
        let (commands, inbox) = Commands::channel().unwrap();
        for up in [true, false, true] {
            commands.send(Command::Carrier(up)).unwrap();
        }
        assert_eq!(inbox.take(), [Command::Carrier(false), Command::Carrier(true)]);
        commands.send(Command::Carrier(true)).unwrap();
        assert_eq!(inbox.take(), [Command::Carrier(true)]);
        commands.send(Command::Carrier(false)).unwrap();
        assert_eq!(inbox.take(), [Command::Carrier(false)]);
    }
}
