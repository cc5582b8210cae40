//! Which DHCP servers give out addresses on a segment: a client that asks and takes nothing.
//!
//! Read first: RFC 2131 sections 2 (the message), 3.1 and 4.4.1 (discover and offer), RFC 2132 sections 9.6, 9.13 and 9.14. Two
//! DHCPDISCOVER a second apart; the servers' offers are collected for 4 s. There is no DHCPREQUEST, so no server binds an address; what it
//! holds back for the offer it frees by itself.
//!
//! The client has an identifier of its own: a server neither takes it for the host's own DHCP client, whose lease stays as it is, nor
//! offers that client's address. Its Ethernet address is the node's, so that switches that compare the two let the message pass.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use crate::machine::Machine;
use crate::time::{Duration, Instant};

pub type Mac = [u8; 6];

/// When each message is sent, from the start on.
pub const SENT_AT: [Duration; 2] = [Duration::ZERO, Duration::from_secs(1)];
/// How long offers are waited for: a server may probe an address before it offers it (RFC 2131 section 2.2), by default for up to 3 s.
pub const WAIT: Duration = Duration::from_secs(4);
/// Servers that are reported.
pub const MAX_SERVERS: usize = 8;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Start {
        own: Mac,
        /// A random number.
        seed: u64,
    },
    /// A UDP datagram to the client's port, and who has sent it.
    Message {
        message: Vec<u8>,
        from: Mac,
    },
    Tick,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// To all, from no address, client's port to server's port.
    Send(Vec<u8>),
    /// The search is over. Each server with its first offer.
    Found(BTreeMap<Ipv4Addr, Offer>),
}

/// An address that a server would give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    pub offered: Ipv4Addr,
    /// Who has sent it: the server, or a relay.
    pub from: Mac,
}

/// One search at a time.
#[derive(Clone, Debug, Default)]
pub struct Discovery(Option<Search>);

#[derive(Clone, Debug)]
struct Search {
    own: Mac,
    transaction: u32,
    began: Instant,
    sent: usize,
    found: BTreeMap<Ipv4Addr, Offer>,
}

impl Discovery {
    pub fn is_busy(&self) -> bool {
        self.0.is_some()
    }
}

impl Machine for Discovery {
    type Event = Event;
    type Action = Action;

    fn handle(&mut self, event: Event, now: Instant, actions: &mut Vec<Action>) {
        match event {
            Event::Start { own, seed } => {
                let transaction = (seed >> 32) as u32;
                self.0 = Some(Search { own, transaction, began: now, sent: 0, found: BTreeMap::new() });
            }
            Event::Message { message, from } => {
                let Some(search) = &mut self.0 else { return };
                let Some((server, offered)) = offer(&message, search.own, search.transaction) else { return };
                if search.found.len() < MAX_SERVERS {
                    search.found.entry(server).or_insert(Offer { offered, from });
                }
            }
            Event::Tick => {}
        }
        let Some(search) = &mut self.0 else { return };
        if SENT_AT.get(search.sent).is_some_and(|at| search.began + *at <= now) {
            search.sent += 1;
            let seconds = now.since(search.began).as_secs() as u16;
            actions.push(Action::Send(discover(search.own, search.transaction, seconds)));
        }
        if search.began + WAIT <= now {
            actions.push(Action::Found(core::mem::take(&mut search.found)));
            self.0 = None;
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let search = self.0.as_ref()?;
        Some(search.began + SENT_AT.get(search.sent).copied().unwrap_or(WAIT))
    }
}

/// A DHCPDISCOVER. The reply is asked for by broadcast: the address that it is for is not configured.
fn discover(own: Mac, transaction: u32, seconds: u16) -> Vec<u8> {
    let mut message = Vec::with_capacity(LEAST);
    message.extend([REQUEST, ETHERNET, 6, 0]);
    message.extend(transaction.to_be_bytes());
    message.extend(seconds.to_be_bytes());
    message.extend(BROADCAST.to_be_bytes());
    // No address of the client, none offered, no server, no relay.
    message.extend([0; 16]);
    message.extend(own);
    message.resize(COOKIE_AT, 0);
    message.extend(COOKIE);
    message.extend([MESSAGE_TYPE, 1, DISCOVER]);
    message.extend([CLIENT_IDENTIFIER, 1 + IDENTITY.len() as u8 + 6, 0]);
    message.extend(IDENTITY);
    message.extend(own);
    // Subnet mask and router, as any client asks; some servers offer nothing to one that asks for nothing.
    message.extend([PARAMETERS, 2, 1, 3, END]);
    // RFC 1542 section 2.1: not shorter than a BOOTP message.
    message.resize(message.len().max(LEAST), 0);
    message
}

/// The server and the address that it offers; `None`: it is no offer, or none for us. Options that overflow into other fields (option 52)
/// are not read: type and server stand in front in every message seen.
fn offer(message: &[u8], own: Mac, transaction: u32) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let address = |at: usize| {
        let octets: [u8; 4] = message.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(octets))
    };
    let head = (message.get(..3)?, message.get(4..8)?, message.get(28..34)?, message.get(COOKIE_AT..COOKIE_AT + 4)?);
    if head != (&[REPLY, ETHERNET, 6], &transaction.to_be_bytes()[..], &own[..], &COOKIE[..]) {
        return None;
    }
    let (mut kind, mut server) = (None, None);
    let mut options = message.get(COOKIE_AT + 4..)?;
    while let [code, rest @ ..] = options {
        match *code {
            PAD => options = rest,
            END => break,
            code => {
                let (length, rest) = rest.split_first()?;
                let (value, rest) = rest.split_at_checked(usize::from(*length))?;
                match (code, value) {
                    (MESSAGE_TYPE, [value]) => kind = Some(*value),
                    (SERVER_IDENTIFIER, value) => server = <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from),
                    _ => {}
                }
                options = rest;
            }
        }
    }
    let offered = address(16)?;
    (kind == Some(OFFER) && !offered.is_unspecified()).then_some(server.zip(Some(offered))).flatten()
}

const REQUEST: u8 = 1;
const REPLY: u8 = 2;
const ETHERNET: u8 = 1;
/// Flag of section 2.
const BROADCAST: u16 = 0x8000;
/// Behind the fixed fields, then the options.
const COOKIE_AT: usize = 236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
const LEAST: usize = 300;
/// Of the client identifier, before the Ethernet address; its type 0 is "other than a hardware address".
const IDENTITY: &[u8] = b"sheave-init";

const PAD: u8 = 0;
const MESSAGE_TYPE: u8 = 53;
const SERVER_IDENTIFIER: u8 = 54;
const PARAMETERS: u8 = 55;
const CLIENT_IDENTIFIER: u8 = 61;
const END: u8 = 255;
const DISCOVER: u8 = 1;
const OFFER: u8 = 2;

#[cfg(test)]
mod tests {
    use std::vec;

    use super::*;

    const OWN: Mac = [2, 0, 0, 0, 0, 1];
    const SERVER_MAC: Mac = [2, 0, 0, 0, 0, 9];
    const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);
    const OFFERED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);
    const SEED: u64 = 0x1234_5678_9abc_def0;

    fn at(millis: u64) -> Instant {
        Instant::from_millis(1_000_000 + millis)
    }

    /// What a server sends for a DHCPDISCOVER, options in another order than the client's.
    fn reply(to: &[u8], kind: u8) -> Vec<u8> {
        let mut message = to[..COOKIE_AT + 4].to_vec();
        message[0] = REPLY;
        message[16..20].copy_from_slice(&OFFERED.octets());
        message.extend([PAD, 1, 4, 255, 255, 255, 0, SERVER_IDENTIFIER, 4]);
        message.extend(SERVER.octets());
        message.extend([MESSAGE_TYPE, 1, kind, END]);
        message
    }

    fn handle(discovery: &mut Discovery, event: Event, now: Instant) -> Vec<Action> {
        let mut actions = vec![];
        discovery.handle(event, now, &mut actions);
        actions
    }

    fn start(discovery: &mut Discovery) -> Vec<u8> {
        match &handle(discovery, Event::Start { own: OWN, seed: SEED }, at(0))[..] {
            [Action::Send(message)] => message.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_discover_has_the_fields_of_the_specification() {
        let message = discover(OWN, 0x1234_5678, 1);
        assert_eq!(&message[..12], &[1, 1, 6, 0, 0x12, 0x34, 0x56, 0x78, 0, 1, 0x80, 0]);
        assert!(message[12..28].iter().all(|byte| *byte == 0), "no address of any kind");
        assert_eq!((&message[28..34], &message[236..243]), (&OWN[..], &[99, 130, 83, 99, 53, 1, 1][..]));
        assert!(message.len() >= 300 && message.contains(&END));
        let identifier = [&[61, 18, 0][..], b"sheave-init", &OWN].concat();
        assert!(message.windows(identifier.len()).any(|window| window == identifier));
        assert!(!message[240..].windows(3).any(|window| window == [53, 1, 3]), "never a request");
    }

    #[test]
    fn two_messages_and_four_seconds() {
        let mut discovery = Discovery::default();
        assert_eq!(discovery.next_deadline(), None);
        let first = start(&mut discovery);
        assert_eq!(discovery.next_deadline(), Some(at(1_000)));
        let again = handle(&mut discovery, Event::Tick, at(1_000));
        assert!(matches!(&again[..], [Action::Send(message)] if message[4..8] == first[4..8]), "{again:?}");
        let offered = Event::Message { message: reply(&first, OFFER), from: SERVER_MAC };
        assert_eq!(handle(&mut discovery, offered.clone(), at(1_500)), []);
        assert_eq!(handle(&mut discovery, offered, at(1_600)), [], "each server once");
        assert_eq!(discovery.next_deadline(), Some(at(4_000)));
        let found = BTreeMap::from([(SERVER, Offer { offered: OFFERED, from: SERVER_MAC })]);
        assert_eq!(handle(&mut discovery, Event::Tick, at(4_000)), [Action::Found(found)]);
        assert!(!discovery.is_busy() && discovery.next_deadline().is_none());
    }

    #[test]
    fn what_is_no_offer_for_us_counts_for_nothing() {
        let mut discovery = Discovery::default();
        let first = start(&mut discovery);
        let whole = reply(&first, OFFER);
        assert_eq!(offer(&whole, OWN, 0x1234_5678), Some((SERVER, OFFERED)));
        let changed = |at: usize| {
            let mut message = whole.clone();
            message[at] ^= 1;
            message
        };
        for (what, message) in [
            ("an acknowledgement", reply(&first, 5)),
            ("a request", changed(0)),
            ("another transaction", changed(7)),
            ("another client", changed(33)),
            ("another cookie", changed(COOKIE_AT)),
            ("no server", changed(whole.len() - 9)),
        ] {
            assert_eq!(offer(&message, OWN, 0x1234_5678), None, "{what}");
        }
        for length in 0..whole.len() - 1 {
            assert_eq!(offer(&whole[..length], OWN, 0x1234_5678), None, "cut to {length} bytes");
        }
        let long = [&whole[..COOKIE_AT + 4], &[MESSAGE_TYPE, 200, OFFER]].concat();
        assert_eq!(offer(&long, OWN, 0x1234_5678), None, "an option that is longer than the message");
    }

    #[test]
    fn servers_have_a_limit() {
        let mut discovery = Discovery::default();
        let first = start(&mut discovery);
        let at_server = reply(&first, OFFER).len() - 8;
        for last in 0..20 {
            let mut message = reply(&first, OFFER);
            message[at_server + 3] = last;
            handle(&mut discovery, Event::Message { message, from: SERVER_MAC }, at(10));
        }
        let found = handle(&mut discovery, Event::Tick, at(4_000));
        assert!(
            found.iter().any(|action| matches!(action, Action::Found(found) if found.len() == MAX_SERVERS)),
            "{found:?}"
        );
    }
}
