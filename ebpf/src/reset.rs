//! TCP and UDP to an unserved port, or to a service without a ready endpoint.
//!
//! Read first: RFC 9293 section 3.10.7.1 (segments to a closed port) and 3.5.2 (reset generation).

use ebpf_common::{Config, FlowWords, Mark, ServiceValue, Verdict};

use crate::checksum;
use crate::forward::ethernet_bytes;
use crate::frame::{Frame, Mac};
use crate::parse::{
    self, Content, ETHERNET_LEN, ETHERTYPE_IPV4, IPV4_LEN, PROTO_TCP, Packet, Segment, Subject, TCP_LEN, Tcp,
};
use crate::second_chance::{self, Origin};
use crate::tables::Tables;
use crate::traffic;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    Unserved,
    /// The Service never had a pod, as far as this node knows.
    EmptyRing,
    /// All its pods are unready or gone.
    NoNewFlows,
    /// The Service has source ranges without this client.
    Source,
}

/// As [`refuse`], counted for the Service, if there is one. (A denied packet was counted as denied.)
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a part of the path")]
pub fn refuse_counted(
    frame: &mut impl Frame,
    tables: &impl Tables,
    config: &Config,
    packet: &Packet,
    origin: Origin,
    subject: &Subject,
    service: ServiceValue,
    why: Refused,
) -> Result<Verdict, Verdict> {
    if origin == Origin::Client && second_chance::may_be_of_node(service) && !subject.content.is_syn() {
        second_chance::pass_to_stack(frame, packet, origin, Mark::LOCAL)?;
        return Ok(second_chance::verdict(origin, &subject.content, Mark::LOCAL));
    }
    if matches!(why, Refused::EmptyRing | Refused::NoNewFlows) && origin == Origin::Client {
        traffic::count_packet(tables, u32::from(service.counter_slot()), packet);
    }
    let verdict = refuse(frame, config, packet, origin, subject, why)?;
    if verdict == Verdict::EmptyRingReset || verdict == Verdict::SourceReset {
        traffic::count_reset(tables, service);
    }
    Ok(verdict)
}

/// The frame becomes the refusal, or passes to the guard in nftables, or is dropped. What another node sent passes: conntrack
/// may know the flow (a service that was just deleted, an endpoint that is terminating), and if not, the guard refuses.
#[inline(always)]
pub fn refuse(
    frame: &mut impl Frame,
    config: &Config,
    packet: &Packet,
    origin: Origin,
    subject: &Subject,
    why: Refused,
) -> Result<Verdict, Verdict> {
    let mut mark = second_chance::no_alternate(origin, &subject.content);
    // The table here knows: a SYN is refused, whoever dispatched it.
    if subject.content.is_syn() && matches!(why, Refused::NoNewFlows | Refused::Source) {
        mark.slot = 0;
    }
    if origin != Origin::Client {
        second_chance::pass_to_stack(frame, packet, origin, mark)?;
        return Ok(second_chance::verdict(origin, &subject.content, mark));
    }
    match subject.content {
        Content::Tcp(tcp) => refuse_tcp(frame, config, packet, subject.flow, tcp, why),
        Content::Udp if config.flags & Config::UDP_SILENT != 0 => Err(why.of_udp()[0]),
        Content::Udp => {
            second_chance::pass_to_stack(frame, packet, origin, mark)?;
            Ok(why.of_udp()[1])
        }
        Content::Error => Err(Verdict::Protocol),
    }
}

impl Refused {
    #[inline(always)]
    fn of_tcp(self) -> Verdict {
        match self {
            Self::Unserved => Verdict::UnservedReset,
            Self::EmptyRing | Self::NoNewFlows => Verdict::EmptyRingReset,
            Self::Source => Verdict::SourceReset,
        }
    }

    /// Dropped, passed to the guard.
    #[inline(always)]
    fn of_udp(self) -> [Verdict; 2] {
        match self {
            Self::Unserved => [Verdict::UnservedSilent, Verdict::UnservedUnreachable],
            Self::EmptyRing | Self::NoNewFlows => [Verdict::EmptyRingSilent, Verdict::EmptyRingUnreachable],
            Self::Source => [Verdict::SourceDenied; 2],
        }
    }
}

/// The segment becomes its reset.
#[inline(always)]
fn refuse_tcp(
    frame: &mut impl Frame,
    config: &Config,
    packet: &Packet,
    flow: FlowWords,
    tcp: Tcp,
    why: Refused,
) -> Result<Verdict, Verdict> {
    // RFC 9293 section 3.10.7.1: "If a segment contains a RST, it is discarded."
    if tcp.flags & Tcp::RST != 0 {
        return Err(Verdict::UnservedRst);
    }
    let segment = parse::segment(frame, packet)?;
    let bytes = reset(config, parse::link(frame)?.src.mac(), flow, &segment);
    frame.truncate(RESET_LEN).ok_or(Verdict::NoRoom)?;
    frame.write(0, bytes).ok_or(Verdict::NoRoom)?;
    Ok(why.of_tcp())
}

/// A frame of 54 bytes from the VIP to the sender of the segment, back to the router it came by. The IP header is new: no
/// options, "don't fragment", identification 0 (RFC 6864 section 4.1 allows any value with that flag).
#[inline(always)]
fn reset(config: &Config, router: Mac, flow: FlowWords, segment: &Segment) -> [u8; RESET_LEN] {
    let (seq, ack, flags) = answer_to(segment);
    let mut ip = [0; IPV4_LEN];
    ip[0] = 0x45;
    ip[3] = (IPV4_LEN + TCP_LEN) as u8;
    ip[6] = 0x40;
    ip[8] = TTL;
    ip[9] = PROTO_TCP;
    ip[12..16].copy_from_slice(&flow.dst());
    ip[16..20].copy_from_slice(&flow.src());
    let sum = checksum::finish(checksum::sum(&ip));
    ip[10..12].copy_from_slice(&sum.to_be_bytes());

    let mut tcp = [0; TCP_LEN];
    tcp[0..2].copy_from_slice(&flow.dst_port());
    tcp[2..4].copy_from_slice(&flow.src_port());
    tcp[4..8].copy_from_slice(&seq.to_be_bytes());
    tcp[8..12].copy_from_slice(&ack.to_be_bytes());
    tcp[12] = (TCP_LEN as u8 / 4) << 4;
    tcp[13] = flags;
    // RFC 9293 section 3.1: the pseudo header is addresses, protocol, length of the segment.
    let pseudo = checksum::sum(&flow.dst()) + checksum::sum(&flow.src()) + u32::from(PROTO_TCP) + TCP_LEN as u32;
    let sum = checksum::finish(pseudo + checksum::sum(&tcp));
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());

    let mut bytes = [0; RESET_LEN];
    bytes[..14].copy_from_slice(&ethernet_bytes(router, config.mac, ETHERTYPE_IPV4));
    bytes[14..34].copy_from_slice(&ip);
    bytes[34..54].copy_from_slice(&tcp);
    bytes
}

/// Sequence number, acknowledgment number and flags of the reset, by RFC 9293 section 3.10.7.1.
#[inline(always)]
fn answer_to(tcp: &Segment) -> (u32, u32, u8) {
    if tcp.flags & Tcp::ACK != 0 {
        // <SEQ=SEG.ACK><CTL=RST>
        return (tcp.ack, 0, Tcp::RST);
    }
    // <SEQ=0><ACK=SEG.SEQ+SEG.LEN><CTL=RST,ACK>; SYN and FIN count in SEG.LEN (section 3.4).
    let syn = u32::from(tcp.flags & Tcp::SYN != 0);
    let fin = u32::from(tcp.flags & Tcp::FIN != 0);
    let len = tcp.data_len.wrapping_add(syn).wrapping_add(fin);
    (0, tcp.seq.wrapping_add(len), Tcp::RST | Tcp::ACK)
}

pub const RESET_LEN: usize = ETHERNET_LEN + IPV4_LEN + TCP_LEN;
/// RFC 1700: the default time to live.
pub const TTL: u8 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(flags: u8, data_len: u32) -> Segment {
        Segment { seq: 0xffff_fff0, ack: 77, flags, data_len }
    }

    #[test]
    fn an_acknowledged_segment_is_reset_at_its_own_acknowledgment() {
        assert_eq!(answer_to(&tcp(Tcp::ACK, 100)), (77, 0, Tcp::RST));
        assert_eq!(answer_to(&tcp(Tcp::ACK | Tcp::SYN, 0)), (77, 0, Tcp::RST));
    }

    #[test]
    fn any_other_segment_is_acknowledged_with_all_it_occupies() {
        assert_eq!(answer_to(&tcp(Tcp::SYN, 0)), (0, 0xffff_fff1, Tcp::RST | Tcp::ACK));
        assert_eq!(answer_to(&tcp(Tcp::SYN | Tcp::FIN, 3)), (0, 0xffff_fff5, Tcp::RST | Tcp::ACK));
        assert_eq!(answer_to(&tcp(0, 0x20)), (0, 0x10, Tcp::RST | Tcp::ACK));
    }
}
