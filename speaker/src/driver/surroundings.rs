//! The socket, the clock and the kernel as the election's turn uses them (`speaker_core::election::turn`): datagrams in, actions out.

use std::sync::atomic::Ordering;
use std::time::Duration;

use speaker_core::election::turn::Surroundings;
use speaker_core::election::{self, Phase};
use speaker_core::time::Instant;
use speaker_core::wire::advert::{Packet, Reject};
use speaker_core::{announce, liveness, readiness, unicast};
use tracing::{info, warn};

use super::{Incoming, Notice, State};
use crate::io::udp::RECEIVE_BUFFER;
use crate::io::{Mac, clock};

impl Surroundings for State {
    fn now(&mut self) -> Instant {
        clock::now()
    }

    fn stalled(&mut self) -> Duration {
        self.stall.since_heartbeat(clock::now(), clock::thread_time())
    }

    fn receive(&mut self) -> Option<Vec<u8>> {
        let mut buffer = [0; RECEIVE_BUFFER];
        loop {
            let received = match self.driver.udp.receive(&mut buffer) {
                Ok(received) => received?,
                Err(error) => {
                    self.failed("receive", &error);
                    return None;
                }
            };
            self.driver.metrics.adverts_received.inc();
            // RFC 5082: what crossed a router is not from this segment.
            if received.ttl == 255 {
                let bytes = received.bytes.to_vec();
                let (source, multicast) = (received.source, received.multicast);
                let packet = Packet::new(&bytes).ok();
                let cluster = packet.map(|packet| packet.cluster());
                let ready = packet.is_some_and(|packet| packet.advertises_ready());
                let pace = packet.and_then(|packet| packet.stated_pace());
                self.incoming = Incoming { source, multicast, cluster, ready, pace, signed: self.signer(&bytes) };
                return Some(bytes);
            }
            self.driver.metrics.count_rejected("ttl", "advert");
        }
    }

    fn act(&mut self, action: election::Action, now: Instant) -> Option<election::Event> {
        use election::Action;
        match action {
            Action::Send(datagram) => self.send(&datagram),
            Action::RenewLease { until } => {
                self.lease_until = until;
                self.stall.heartbeat_sent();
                return (!self.write_lease(now)).then_some(election::Event::NotRenewed);
            }
            Action::Acquire { vip, term } => {
                return (!self.acquire(vip, term, now)).then_some(election::Event::NotAcquired(vip));
            }
            Action::Release { vip, reason } => self.release(vip, reason, now),
            // Of the VIPs whose entry the kernel has just refused, none is announced.
            Action::Announce { vip } if self.driver.health.owns(vip.0) => {
                self.on_announce(announce::Event::Announce(vip), now);
            }
            Action::Announce { .. } => {}
            Action::Address { node, mac } => self.set_signed_mac(&node, Mac(mac)),
            Action::Received { node, epoch, ready, receives_us, pace } => {
                self.note_incarnation(&node, epoch);
                self.verified(&node, pace, now);
                let multicast = self.incoming.multicast;
                self.on_unicast(unicast::Event::Received { node: node.clone(), multicast, receives_us, pace }, now);
                self.on_liveness(liveness::Event::Pace(node.clone(), pace), now);
                self.on_liveness(liveness::Event::Heartbeat(node.clone()), now);
                if ready {
                    self.on_readiness(readiness::Event::Ready(node), now);
                }
            }
            Action::PeerUp { node } => {
                info!(%node, "peer up: its heartbeats arrive");
                self.driver.metrics.peers.inc();
            }
            Action::PeerDown { node, left } => {
                warn!(%node, "peer down: no heartbeat within the dead interval");
                self.forget_signed_mac(&node);
                self.on_unicast(unicast::Event::Silent { node, left }, now);
                self.driver.metrics.peers.dec();
            }
            Action::Phase(phase) => {
                info!(phase = phase.label(), "phase");
                let joined = matches!(phase, Phase::Member | Phase::Isolated);
                self.driver.health.joined.store(joined, Ordering::Relaxed);
                self.driver.metrics.isolated.set(i64::from(phase == Phase::Isolated));
            }
            Action::OwnerChanged { vip, owner } => {
                let why = self.released_for.remove(&vip);
                self.notify_app(Notice::OwnerChanged { vip: vip.0, owner, why });
            }
            Action::Rejected { reason } => {
                if reason == Reject::WrongCluster {
                    self.on_other_cluster(now);
                }
                self.rejected(reason, now);
                self.driver.metrics.count_rejected(reason.label(), "advert");
            }
            Action::HandedOver { all_taken } => self.notify_app(Notice::HandedOver { all_taken }),
        }
        None
    }
}
