//! ICMP to a VIP: errors about our flows go where the flow goes, echo requests are answered, the rest is dropped.
//!
//! Read first: RFC 792; RFC 1122 section 3.2.2; RFC 1191 section 3 (path MTU discovery breaks without these errors: the router
//! that cannot carry a reply from VIP to client tells the VIP, and only the node with the pod has use for it).

use ebpf_common::{Config, FlowWords, Verdict};

use crate::checksum;
use crate::forward::{self, CHECKSUM_AT, TTL_AT};
use crate::frame::Frame;
use crate::parse::{self, Content, FRAGMENT_OFFSET, IPV4_LEN, PROTO_TCP, PROTO_UDP, Packet, Subject};
use crate::reset::TTL;
use crate::tables::Tables;

/// An error leads to the flow that it is about; everything else ends here.
#[inline(always)]
pub fn subject(
    frame: &mut impl Frame,
    tables: &impl Tables,
    config: &Config,
    packet: &Packet,
) -> Result<Subject, Verdict> {
    if packet.transport_len() < ICMP_LEN {
        return Err(Verdict::Malformed);
    }
    let [kind, code] = frame.read::<2>(packet.transport()).ok_or(Verdict::Malformed)?;
    match kind {
        DESTINATION_UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM => {
            Ok(Subject { flow: quoted_flow(frame, packet)?, content: Content::Error })
        }
        ECHO_REQUEST if code == 0 => Err(echo(frame, tables, config, packet)?),
        _ => Err(Verdict::Protocol),
    }
}

/// The flow that an error is about; `None` for whatever is not an error about a flow.
#[inline(always)]
pub fn error(frame: &impl Frame, packet: &Packet) -> Option<FlowWords> {
    if packet.transport_len() < ICMP_LEN {
        return None;
    }
    let [kind, _] = frame.read::<2>(packet.transport())?;
    let is_error = matches!(kind, DESTINATION_UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM);
    if is_error { quoted_flow(frame, packet).ok() } else { None }
}

/// An error quotes the packet it is about: from the VIP to the client. The flow is that one reversed. RFC 792: an error carries the IP header and at least the first 64 bits of data of the packet it is about.
#[inline(always)]
fn quoted_flow(frame: &impl Frame, packet: &Packet) -> Result<FlowWords, Verdict> {
    let quoted = packet.transport() + ICMP_LEN;
    let quoted_len = packet.transport_len() - ICMP_LEN;
    if quoted_len < IPV4_LEN + QUOTED_DATA {
        return Err(Verdict::Malformed);
    }
    let [first, _, _, _, _, _, f0, f1, _, proto, _, _, s0, s1, s2, s3, d0, d1, d2, d3] =
        frame.read::<IPV4_LEN>(quoted).ok_or(Verdict::Malformed)?;
    let header_len = usize::from(first & 0xf) * 4;
    if first >> 4 != 4 || header_len < IPV4_LEN || quoted_len < header_len + QUOTED_DATA {
        return Err(Verdict::Malformed);
    }
    // About a packet that did not come from this VIP, or one of a protocol that we do not carry.
    if [s0, s1, s2, s3] != packet.dst() || (proto != PROTO_TCP && proto != PROTO_UDP) {
        return Err(Verdict::Protocol);
    }
    // A later fragment has no ports; the first one has.
    if u16::from_be_bytes([f0, f1]) & FRAGMENT_OFFSET != 0 {
        return Err(Verdict::Fragment);
    }
    let [sp0, sp1, dp0, dp1] = frame.read::<4>(quoted + header_len).ok_or(Verdict::Malformed)?;
    let addresses = FlowWords::addresses([d0, d1, d2, d3], packet.dst());
    Ok(FlowWords::new(addresses, [[dp0, dp1], [sp0, sp1]], proto))
}

/// RFC 1122 section 3.2.2.6. Only the owner answers, only while its lease runs, and only requests without IP options: those
/// would have to be turned round (RFC 1122 section 3.2.2.6, source route).
#[inline(always)]
fn echo(frame: &mut impl Frame, tables: &impl Tables, config: &Config, packet: &Packet) -> Result<Verdict, Verdict> {
    if packet.has_options() || !tables.is_own(packet.dst()) || tables.now_ns() >= tables.lease().until_ns {
        return Err(Verdict::Protocol);
    }
    let at = packet.transport();
    let [_, _, c0, c1] = frame.read::<4>(at).ok_or(Verdict::Malformed)?;
    let sum = checksum::update(u16::from_be_bytes([c0, c1]), u16::from(ECHO_REQUEST) << 8, 0);
    let [c0, c1] = sum.to_be_bytes();
    frame.write(at, [ECHO_REPLY, 0, c0, c1]).ok_or(Verdict::Malformed)?;
    // Swapped addresses do not change the sum of the IP header, the time to live does.
    let sum = frame.read::<2>(CHECKSUM_AT).ok_or(Verdict::Malformed)?;
    let old = u16::from_be_bytes([packet.ttl, packet.proto]);
    let new = u16::from_be_bytes([TTL, packet.proto]);
    let [c0, c1] = checksum::update(u16::from_be_bytes(sum), old, new).to_be_bytes();
    let (from, to) = (packet.dst(), packet.src());
    let header = [TTL, packet.proto, c0, c1, from[0], from[1], from[2], from[3], to[0], to[1], to[2], to[3]];
    frame.write(TTL_AT, header).ok_or(Verdict::Malformed)?;
    let asker = parse::link(frame)?.src.mac();
    forward::ethernet(frame, asker, config.mac).ok_or(Verdict::Malformed)?;
    Ok(Verdict::EchoAnswered)
}

const ICMP_LEN: usize = 8;
const QUOTED_DATA: usize = 8;

const ECHO_REPLY: u8 = 0;
const DESTINATION_UNREACHABLE: u8 = 3;
const ECHO_REQUEST: u8 = 8;
const TIME_EXCEEDED: u8 = 11;
const PARAMETER_PROBLEM: u8 = 12;
