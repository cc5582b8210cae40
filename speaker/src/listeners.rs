//! The admin port on the node's address and on the loopback, wherever the node's address moves.
//!
//! The loopback is for the kubelet's probes: a pod of the host's network keeps the pod address of its start, so that probes to it
//! fail for good once the node has another one. No other address is listened on.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::admin::{self, Admin};

/// After a failed attempt to listen: the address may not be usable yet.
const RETRY: Duration = Duration::from_secs(1);

/// Where the admin port is served.
pub struct Listeners {
    port: u16,
    /// `--admin-listen` names one address: that and no other.
    follows: bool,
    bound: Vec<TcpListener>,
}

impl Listeners {
    /// Binds at once, so that an address in use is reported before anything else starts.
    pub async fn bind(node: Ipv4Addr, port: u16, fixed: Option<SocketAddr>) -> Result<Self> {
        let bound = match fixed {
            Some(address) => vec![admin::bind(address).await?],
            None => vec![
                admin::bind(SocketAddr::from((node, port))).await?,
                admin::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?,
            ],
        };
        Ok(Self { port, follows: fixed.is_none(), bound })
    }

    /// Ends only with an error of a server.
    pub async fn serve(self, admin: Admin, mut node: watch::Receiver<Option<Ipv4Addr>>) -> Result<()> {
        let mut servers = Servers::default();
        for listener in self.bound {
            servers.start(listener, &admin)?;
        }
        loop {
            if self.follows {
                let wanted = *node.borrow_and_update();
                if !servers.move_to(wanted, self.port, &admin).await {
                    sleep(RETRY).await;
                    continue;
                }
            }
            tokio::select! {
                ended = servers.ended() => return ended,
                changed = node.changed(), if self.follows => changed.context("the node's address")?,
            }
        }
    }
}

/// By the address that each listens on.
#[derive(Default)]
struct Servers(BTreeMap<IpAddr, JoinHandle<()>>);

impl Servers {
    fn start(&mut self, listener: TcpListener, admin: &Admin) -> Result<()> {
        let address = listener.local_addr().context("admin port")?.ip();
        self.0.insert(address, tokio::spawn(admin::serve(listener, admin.clone())));
        Ok(())
    }

    /// Whether the port is served where it should be.
    async fn move_to(&mut self, node: Option<Ipv4Addr>, port: u16, admin: &Admin) -> bool {
        let wanted = [Some(Ipv4Addr::LOCALHOST), node].map(|address| address.map(IpAddr::from));
        self.0.retain(|address, server| {
            let stays = wanted.contains(&Some(*address));
            if !stays {
                server.abort();
            }
            stays
        });
        let Some(node) = node.filter(|node| !self.0.contains_key(&IpAddr::from(*node))) else { return true };
        let bound = admin::bind(SocketAddr::from((node, port))).await;
        match bound.and_then(|listener| self.start(listener, admin)) {
            Ok(()) => {
                info!(%node, port, "admin port bound to the node's new address");
                true
            }
            Err(error) => {
                warn!(error = format!("{error:#}"), "admin port not bound to the node's new address; retrying");
                false
            }
        }
    }

    async fn ended(&mut self) -> Result<()> {
        let (ended, ..) = futures::future::select_all(self.0.values_mut()).await;
        bail!("the admin server ended: {ended:?}")
    }
}
