//! Takes off the node what a speaker put there: XDP link, pinned maps, nftables table, changed sysctls, state on disk, local socket. On a
//! node with a host speaker ([`crate::host_speaker`]) link and sysctls are that one's, and each has maps and tables of its own.

use anyhow::{Context, Result, bail};
use speaker_core::backend::Place;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use crate::app::{runtime, sysctls};
use crate::args::UninstallArgs;
use crate::backend::nft::Nft;
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
    let place = place(&locks, args);
    let mut steps = vec![
        ("XDP program and maps", loader::uninstall(&Pins::new(&paths.pin_dir).at(place))),
        ("nftables table", Nft::new(&paths.nft).at(place).delete().await.map_err(Into::into)),
    ];
    if !others {
        steps.extend([
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
            "HostSpeaker: XDP link and sysctls are those of the host speaker and stay, with its maps and tables; ours and the state removed"
        );
    } else {
        info!("removed XDP link, maps, nftables tables and state; sysctls restored");
    }
    Ok(())
}

async fn check(args: &UninstallArgs) -> Result<()> {
    let place = place(&Locks::beside(&args.paths.local_socket), args);
    let pins = Pins::new(&args.paths.pin_dir).at(place).are_there();
    let nft = Nft::new(&args.paths.nft).at(place);
    let mut tables = nft.tables().await.context("list the nftables tables")?;
    tables.extend(nft.arp_tables().await.context("list the nftables tables of ARP")?);
    if pins || !tables.is_empty() {
        bail!("not removed: pin directory {pins}, nftables tables {tables:?}");
    }
    Ok(())
}

/// Whose things are to be removed.
fn place(locks: &Locks, args: &UninstallArgs) -> Place {
    match (locks.has_host_speaker(), args.host_speaker) {
        (_, true) => Place::First,
        (true, false) => Place::Second,
        (false, false) => Place::Alone,
    }
}
