//! What a node reports of the members of the API server endpoint (kind 4 of `super`).
//!
//! ```text
//! drain: member (4) | when, milliseconds of the wall clock (8) | 0 serve, 1 drain, 2 by force (1)
//! check: address (4) | port (2) | outcome (1) | HTTP status (2; 0: none) | milliseconds (2)
//! connections: port of the addresses (2) | member (4) | how many (4)
//! ```
//!
//! What only status shows is left out where it does not fit.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use super::{Reject, START, decode_starts, encode_starts};
use crate::health::drains::{self, Drain, Drains, Wish};
use crate::health::{Checked, Connections, Details, Outcome, Report};
use crate::startup::Target;
use crate::time::Duration;

const REACHES: u8 = 1;
const GIVEN_UP: u8 = 2;
const DRAINS: u8 = 4;
const CHECKS: u8 = 8;
const CONNECTIONS: u8 = 16;
const KNOWN: u8 = REACHES | GIVEN_UP | DRAINS | CHECKS | CONNECTIONS;

const DRAIN: usize = 13;
const CHECK: usize = 11;
const CONNECTION: usize = 10;

/// `room`: bytes of the datagram.
pub(super) fn encode_health(report: &Report, room: usize) -> Vec<u8> {
    let Report { reaches, given_up, targets, drains, details } = report;
    let drains = drains.iter().map(|(member, drain)| {
        let mut out = [0; DRAIN];
        out[..4].copy_from_slice(&member.octets());
        out[4..12].copy_from_slice(&drain.at.to_be_bytes());
        out[12] = drain.wish.number();
        out
    });
    let checks = details.checks.iter().map(|(target, checked)| {
        let (outcome, status) = outcome_numbers(checked.outcome);
        let mut out = [0; CHECK];
        out[..4].copy_from_slice(&target.address.octets());
        out[4..6].copy_from_slice(&target.port.to_be_bytes());
        out[6] = outcome;
        out[7..9].copy_from_slice(&status.to_be_bytes());
        out[9..].copy_from_slice(&u16::try_from(checked.took.as_millis()).unwrap_or(u16::MAX).to_be_bytes());
        out
    });
    let connections = details.connections.as_ref().map(|connections| {
        let encoded = connections.iter().map(|((port, member), count)| {
            let mut out = [0; CONNECTION];
            out[..2].copy_from_slice(&port.to_be_bytes());
            out[2..6].copy_from_slice(&member.octets());
            out[6..].copy_from_slice(&count.to_be_bytes());
            out
        });
        encoded.collect::<Vec<_>>()
    });
    let mut out = alloc::vec![if *reaches { REACHES } else { 0 } | if *given_up { GIVEN_UP } else { 0 }];
    let rest = targets.len() * START;
    let drains: Vec<_> = drains.take(drains::MAX).collect();
    list(&mut out, DRAINS, &drains, usize::MAX);
    let checks: Vec<_> = checks.take(usize::from(u8::MAX)).collect();
    list(&mut out, CHECKS, &checks, room.saturating_sub(rest));
    // No connection is something else than not counted.
    if let Some(connections) = connections {
        list_or_empty(&mut out, CONNECTIONS, &connections, room.saturating_sub(rest));
    }
    out.extend(encode_starts(targets));
    out
}

fn list<const N: usize>(out: &mut Vec<u8>, flag: u8, entries: &[[u8; N]], room: usize) {
    if !entries.is_empty() {
        list_or_empty(out, flag, entries, room);
    }
}

/// All entries or none.
fn list_or_empty<const N: usize>(out: &mut Vec<u8>, flag: u8, entries: &[[u8; N]], room: usize) {
    let Ok(count) = u8::try_from(entries.len()) else { return };
    if out.len() + 1 + entries.len() * N > room {
        return;
    }
    if let Some(flags) = out.first_mut() {
        *flags |= flag;
    }
    out.push(count);
    entries.iter().for_each(|entry| out.extend_from_slice(entry));
}

pub(super) fn decode_health(bytes: &[u8]) -> Result<Report, Reject> {
    let (&flags, mut rest) = bytes.split_first().ok_or(Reject::Truncated)?;
    if flags & !KNOWN != 0 {
        return Err(Reject::Malformed);
    }
    let has = |flag: u8| flags & flag != 0;
    let drains: Drains = match has(DRAINS) {
        true => in_order(take::<DRAIN>(&mut rest)?, drain)?,
        false => Drains::new(),
    };
    if drains.len() > drains::MAX {
        return Err(Reject::Malformed);
    }
    let checks: BTreeMap<Target, Checked> = match has(CHECKS) {
        true => in_order(take::<CHECK>(&mut rest)?, check)?,
        false => BTreeMap::new(),
    };
    let connections: Option<Connections> = match has(CONNECTIONS) {
        true => Some(in_order(take::<CONNECTION>(&mut rest)?, connection)?),
        false => None,
    };
    let targets = decode_starts(rest)?;
    let details = Details { checks, connections };
    Ok(Report { reaches: has(REACHES), given_up: has(GIVEN_UP), targets, drains, details })
}

fn take<'a, const N: usize>(rest: &mut &'a [u8]) -> Result<&'a [[u8; N]], Reject> {
    let (&count, after) = rest.split_first().ok_or(Reject::Truncated)?;
    let (entries, after) = after.split_at_checked(usize::from(count) * N).ok_or(Reject::Truncated)?;
    *rest = after;
    Ok(entries.as_chunks::<N>().0)
}

pub(super) fn in_order<const N: usize, K: Ord, V>(
    entries: &[[u8; N]],
    of: impl Fn(&[u8; N]) -> Option<(K, V)>,
) -> Result<BTreeMap<K, V>, Reject> {
    let mut map = BTreeMap::new();
    for entry in entries {
        let (key, value) = of(entry).ok_or(Reject::Malformed)?;
        if map.last_key_value().is_some_and(|(last, _)| *last >= key) {
            return Err(Reject::Malformed);
        }
        map.insert(key, value);
    }
    Ok(map)
}

fn drain(&[a, b, c, d, at @ .., wish]: &[u8; DRAIN]) -> Option<(Ipv4Addr, Drain)> {
    Some(([a, b, c, d].into(), Drain { at: u64::from_be_bytes(at), wish: Wish::from_number(wish)? }))
}

fn check(&[a, b, c, d, high, low, outcome, s0, s1, t0, t1]: &[u8; CHECK]) -> Option<(Target, Checked)> {
    let target = Target { address: [a, b, c, d].into(), port: u16::from_be_bytes([high, low]) };
    let outcome = outcome_of(outcome, u16::from_be_bytes([s0, s1]))?;
    Some((target, Checked { outcome, took: Duration::from_millis(u16::from_be_bytes([t0, t1]).into()) }))
}

fn connection(&[high, low, a, b, c, d, count @ ..]: &[u8; CONNECTION]) -> Option<((u16, Ipv4Addr), u32)> {
    Some(((u16::from_be_bytes([high, low]), [a, b, c, d].into()), u32::from_be_bytes(count)))
}

const NOT_READY: u8 = 4;
/// No statuses of HTTP, which begin with 100 (RFC 9110, 15): speakers of earlier versions treat them as not ready, which they are.
const SLOW: u16 = 1;
const CERTIFICATE_TIME: u16 = 2;

fn outcome_numbers(outcome: Outcome) -> (u8, u16) {
    match outcome {
        Outcome::Ready => (1, 0),
        Outcome::Unauthorized => (2, 0),
        Outcome::Handshake => (3, 0),
        Outcome::NotReady(status) => (NOT_READY, status),
        Outcome::Slow => (NOT_READY, SLOW),
        Outcome::CertificateTime => (NOT_READY, CERTIFICATE_TIME),
        Outcome::Refused => (5, 0),
        Outcome::Silent => (6, 0),
        Outcome::Certificate => (7, 0),
        Outcome::Protocol => (8, 0),
        Outcome::CaMissing => (9, 0),
        Outcome::Credential => (10, 0),
    }
}

fn outcome_of(number: u8, status: u16) -> Option<Outcome> {
    let outcome = match number {
        1 => Outcome::Ready,
        2 => Outcome::Unauthorized,
        3 => Outcome::Handshake,
        NOT_READY => {
            return Some(match status {
                SLOW => Outcome::Slow,
                CERTIFICATE_TIME => Outcome::CertificateTime,
                status => Outcome::NotReady(status),
            });
        }
        5 => Outcome::Refused,
        6 => Outcome::Silent,
        7 => Outcome::Certificate,
        8 => Outcome::Protocol,
        9 => Outcome::CaMissing,
        10 => Outcome::Credential,
        _ => return None,
    };
    (status == 0).then_some(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let target = |last: u8, port| Target { address: [10, 0, 0, last].into(), port };
        let drains = [([10, 0, 0, 2].into(), Drain { at: 258, wish: Wish::Drain })].into();
        let checked = |outcome, millis| Checked { outcome, took: Duration::from_millis(millis) };
        let checks = [(target(1, 6443), checked(Outcome::NotReady(500), 7))].into();
        let connections = Some([((8443, [10, 0, 0, 1].into()), 3)].into());
        let details = Details { checks, connections };
        Report { reaches: true, given_up: false, targets: [(target(1, 6443), true)].into(), drains, details }
    }

    #[test]
    fn vector() {
        let bytes = encode_health(&report(), 1000);
        let expected: [&[u8]; 5] = [
            b"\x1d",
            b"\x01\x0a\0\0\x02\0\0\0\0\0\0\x01\x02\x01",
            b"\x01\x0a\0\0\x01\x19\x2b\x04\x01\xf4\0\x07",
            b"\x01\x20\xfb\x0a\0\0\x01\0\0\0\x03",
            b"\x0a\0\0\x01\x19\x2b\x01",
        ];
        assert_eq!(bytes, expected.concat());
        assert_eq!(decode_health(&bytes), Ok(report()));
        for length in 0..bytes.len() - START {
            assert!(decode_health(&bytes[..length]).is_err(), "{length} bytes");
        }
        for (at, byte) in [(0, 0x3d), (14, 3), (22, 11), (22, 0)] {
            let mut bad = bytes.clone();
            bad[at] = byte;
            assert!(decode_health(&bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn outcomes_are_their_numbers() {
        for number in 1..=10 {
            let outcome = outcome_of(number, 0).unwrap();
            assert_eq!(outcome_numbers(outcome), (number, 0));
        }
        assert_eq!((outcome_of(0, 0), outcome_of(11, 0), outcome_of(1, 200)), (None, None, None));
        for (outcome, numbers) in
            [(Outcome::NotReady(500), (4, 500)), (Outcome::Slow, (4, 1)), (Outcome::CertificateTime, (4, 2))]
        {
            assert_eq!((outcome_numbers(outcome), outcome_of(numbers.0, numbers.1)), (numbers, Some(outcome)));
        }
    }

    /// What decides is sent in any case.
    #[test]
    fn what_is_for_status_alone_is_left_out_where_it_does_not_fit() {
        let full = report();
        let most = 1 + 14 + 7;
        let decoded = decode_health(&encode_health(&full, most)).unwrap();
        assert_eq!(decoded, Report { details: Details::default(), ..full.clone() });
        let decoded = decode_health(&encode_health(&full, most + 1 + CHECK)).unwrap();
        assert_eq!(decoded.details, Details { connections: None, ..full.details.clone() });
        let none = Report { details: Details { connections: Some(Connections::new()), ..Details::default() }, ..full };
        assert_eq!(decode_health(&encode_health(&none, 1000)), Ok(none), "no connection is not the same as not known");
    }
}
