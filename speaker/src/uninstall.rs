//! Takes off the node what a speaker put there: XDP link, pinned maps, nftables table, changed sysctls, state on disk, local socket. On a
//! node with a host speaker ([`crate::host_speaker`]) all but the last two are that one's.

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use crate::app::{runtime, sysctls};
use crate::args::UninstallArgs;
use crate::backend::nft::{ARP_TABLE, Nft};
use crate::dataplane::loader::{self, Pins};
use crate::host_speaker::Locks;
use crate::local_socket;
use crate::state::StateDir;

pub fn run(args: &UninstallArgs) -> Result<()> {
    runtime()?.block_on(async {
        if args.check {
            return check(args).await;
        }
        remove(args).await?;
        if args.stay {
            signal(SignalKind::terminate()).context("SIGTERM")?.recv().await;
        }
        Ok(())
    })
}

/// Takes what it can and names what it could not.
async fn remove(args: &UninstallArgs) -> Result<()> {
    let paths = &args.paths;
    let locks = Locks::beside(&paths.local_socket);
    let others = locks.has_host_speaker() && !args.host_speaker;
    if args.host_speaker && locks.host_speaker_runs() {
        bail!("HostSpeakerRuns: nothing was removed; stop `sheave-speaker endpoint` first");
    }
    let mut steps = Vec::new();
    if !others {
        steps.extend([
            ("XDP link and maps", loader::uninstall(&Pins::new(&paths.pin_dir))),
            ("nftables table", Nft::new(&paths.nft).delete().await.map_err(Into::into)),
            ("sysctls", sysctls(paths).restore().map(drop).map_err(Into::into)),
            // Behind the others: until then the DaemonSet's speaker does not begin.
            ("files of locks", locks.forget()),
        ]);
    }
    steps.extend([
        ("state", StateDir::remove(&paths.state_dir)),
        ("local socket", local_socket::remove(&paths.local_socket)),
    ]);
    let failed: Vec<String> =
        steps.into_iter().filter_map(|(what, result)| Some(format!("{what}: {:#}", result.err()?))).collect();
    if !failed.is_empty() {
        bail!("not removed: {}", failed.join("; "));
    }
    if others {
        info!(
            "HostSpeaker: XDP link, maps, nftables table and sysctls are those of the host speaker and stay; state removed"
        );
    } else {
        info!("removed XDP link, maps, nftables tables and state; sysctls restored");
    }
    Ok(())
}

async fn check(args: &UninstallArgs) -> Result<()> {
    if Locks::beside(&args.paths.local_socket).has_host_speaker() && !args.host_speaker {
        return Ok(());
    }
    let pins = args.paths.pin_dir.exists();
    let nft = Nft::new(&args.paths.nft);
    let mut tables = nft.tables().await.context("list the nftables tables")?;
    if nft.has_arp_table().await.context("list the nftables table of ARP")? {
        tables.push(ARP_TABLE);
    }
    if pins || !tables.is_empty() {
        bail!("not removed: pin directory {pins}, nftables tables {tables:?}");
    }
    Ok(())
}
