//! (iii) Where packets go: what the dataplane thread is made of.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use sheave_api::NoOwner;
use speaker_core::backend;
use speaker_core::eligibility::Unowned;
use speaker_core::forwarding::Planner;
use speaker_core::forwarding::previous::PreviousRings;
use speaker_core::reports::exchange::{self, Exchange};
use speaker_core::reports::reporter::Reporter;
use speaker_core::view::View;
use speaker_core::view::endpoints::{Reason, digests, frontends};
use speaker_core::wire::advert::Keyring;
use tokio::sync::watch;
use tracing::warn;

use super::Ground;
use crate::args::UdpUnserved;
use crate::backend::Backend;
use crate::backend::arp_guard::ArpGuard;
use crate::backend::nft::Nft;
use crate::dataplane::ForwardingMaps;
use crate::dataplane::attachment::Attachment;
use crate::dataplane::conntrack_scan;
use crate::dataplane::loader::Loaded;
use crate::dataplane::startup_probe::StartupProbe;
use crate::dataplane::sync::{Members, Sync, Synced, Tools};
use crate::driver::{Command, Commands};
use crate::io::clock;
use crate::io::netlink::Uplink;
use crate::io::udp::MulticastSocket;
use crate::keys::Identity;
use crate::mailbox;
use crate::state::PersistedState;
use crate::status::Ownership;
use crate::status::lost::Elected;

/// Between two report summaries of a node.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Tables of two nodes that differ for longer are an alarm.
const TABLES_DIFFER: Duration = Duration::from_secs(5);

pub struct Parts<'a> {
    pub ground: &'a Ground,
    pub uplink: &'a Uplink,
    pub identity: Identity,
}

impl Parts<'_> {
    pub fn sync(
        &self,
        loaded: Loaded,
        members: Option<Members>,
        on_synced: Box<dyn Fn(Synced) + Send>,
        lagging: watch::Sender<bool>,
    ) -> Result<Sync> {
        let Self { ground, uplink, identity } = self;
        let args = &ground.args;
        Ok(Sync {
            node: args.node_name.clone(),
            node_ip: args.node_ip,
            uplink: backend::Uplink::new(&uplink.name)?,
            mac: uplink.mac,
            hash_key: identity.flow_key(),
            return_window: Duration::from_millis(args.return_window_ms),
            udp_silent: args.udp_unserved == UdpUnserved::Silent,
            advert_ports: [args.heartbeat_port, args.report_port].into(),
            cluster: identity.cluster_id(),
            attachment: Attachment::new(loaded, &uplink.name, uplink.index),
            planner: Planner::new(identity.flow_key(), previous_rings(ground.persisted.as_ref(), args.drain_window())),
            saver: ground.saver.clone(),
            // The checks of members know better.
            startup_probe: match ground.booted && members.is_none() {
                true => StartupProbe::running(),
                false => StartupProbe::Off,
            },
            members,
            health: ground.health.clone(),
            metrics: ground.metrics.clone(),
            on_synced,
            on_lagging: Box::new(move |is_lagging| _ = lagging.send_replace(is_lagging)),
        })
    }

    pub fn tools(&self) -> Result<Tools> {
        let Ground { args, pins, .. } = self.ground;
        let nft = Nft::new(&args.paths.nft).at(pins.place());
        Ok(Tools {
            reporter: Reporter::new(&args.node_name, self.identity.flow_key(), args.drain_window()),
            flows: conntrack_scan::conntrack(),
            clients: conntrack_scan::nftables(nft.place.table()),
            maps: ForwardingMaps::open(pins)?,
            backend: Backend::new(nft.clone()),
            arp_guard: Some(ArpGuard::start(nft, self.uplink, self.ground.metrics.clone())?),
        })
    }

    pub fn exchange(&self, keys: Keyring, last_view: Option<&View>) -> Exchange {
        let config = exchange::Config {
            node: self.ground.node.clone(),
            cluster: self.identity.cluster_id(),
            epoch: self.ground.epoch,
            keys,
            interval: REPORT_INTERVAL,
            differ: TABLES_DIFFER,
            pods: last_view.map(|view| digests(view, &frontends(view).0).pods).unwrap_or_default(),
        };
        Exchange::new(config, clock::now())
    }

    pub fn report_socket(&self) -> Result<MulticastSocket> {
        self.ground.adverts_socket("reports", self.uplink, self.ground.args.report_port)
    }
}

/// The previous rings; without usable ones the reports of the other nodes fill in.
fn previous_rings(persisted: Option<&PersistedState>, window: Duration) -> PreviousRings {
    let Some(persisted) = persisted else { return PreviousRings::new(window) };
    PreviousRings::restore(&persisted.previous_rings, window, &clock::boot_id(), clock::now()).unwrap_or_else(|error| {
        warn!(%error, "previous rings not restored from disk; continuing with the reports of other nodes");
        PreviousRings::new(window)
    })
}

/// `statuses`: where it is written that a VIP must not be served.
pub fn on_synced(
    commands: Commands,
    statuses: mailbox::Sender<Ipv4Addr, Ownership>,
    elected: Arc<Elected>,
) -> Box<dyn Fn(Synced) + Send> {
    Box::new(move |Synced { desired, saved_view, ready, barred, unowned }| {
        // A view from disk says nothing of what the API has now.
        elected.follow(desired.keys().filter(|_| !saved_view).map(|vip| vip.0).collect());
        let why = |reason: &Reason| match reason {
            Reason::AddressOfNode => Some(NoOwner::AddressOfNode),
            Reason::AddressOfHost => Some(NoOwner::AddressOfHost),
            Reason::AddressOfGateway => Some(NoOwner::AddressOfGateway),
            _ => None,
        };
        let barred: BTreeMap<Ipv4Addr, NoOwner> =
            barred.iter().filter_map(|(vip, reason)| Some((*vip, why(reason)?))).collect();
        elected.bar(barred.clone());
        for (vip, reason) in barred {
            // The writer ends only with the process.
            let _ = statuses.send(vip, Ownership::Refused(reason));
        }
        for (vip, reason) in unowned {
            let reason = match reason {
                Unowned::NotAnnounced => NoOwner::NotAnnounced,
                Unowned::NoEligibleNode => NoOwner::NoEligibleNode,
            };
            let _ = statuses.send(vip, Ownership::Vacant(reason));
        }
        let sent =
            commands.send(Command::Desired { desired, saved_view }).and_then(|()| commands.send(Command::Ready(ready)));
        if let Err(error) = sent {
            warn!(%error, "command to the election failed");
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

    /// What the status of a VIP says of it, by what the packet path found.
    fn written(barred: Option<Reason>, unowned: Option<Unowned>) -> Option<Ownership> {
        let (commands, _inbox) = Commands::channel().unwrap();
        let (statuses, mut written) = mailbox::channel(usize::MAX);
        let on_synced = on_synced(commands, statuses, Arc::default());
        on_synced(Synced {
            desired: BTreeMap::new(),
            saved_view: false,
            ready: true,
            barred: barred.map(|reason| (VIP, reason)).into_iter().collect(),
            unowned: unowned.map(|reason| (VIP, reason)).into_iter().collect(),
        });
        let waiting = futures::FutureExt::now_or_never(written.recv()).flatten();
        waiting.and_then(|mut waiting| waiting.remove(&VIP))
    }

    #[test]
    fn the_status_names_why_a_vip_is_not_served() {
        for (reason, name) in [
            (Reason::AddressOfNode, "AddressOfNode"),
            (Reason::AddressOfHost, "AddressOfHost"),
            (Reason::AddressOfGateway, "AddressOfGateway"),
        ] {
            let Some(Ownership::Refused(written)) = written(Some(reason), None) else { panic!("{name} is written") };
            assert_eq!(written.as_str(), name);
        }
        for (reason, name) in [(Unowned::NotAnnounced, "NotAnnounced"), (Unowned::NoEligibleNode, "NoEligibleNode")] {
            let Some(Ownership::Vacant(written)) = written(None, Some(reason)) else { panic!("{name} is written") };
            assert_eq!(written.as_str(), name);
        }
        assert_eq!(written(None, None), None);
    }
}
