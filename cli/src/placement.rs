//! `sheave move`, `sheave prefer`, `sheave drain`: where addresses are to be. Each makes a Placement, which the speakers follow.
//!
//! Read: here (what each command does) → [`obstacles`] (why a node cannot own an address) → [`objects`] (what is written and awaited).

mod objects;
mod obstacles;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::api::PostParams;
use kube::{Api, Client};
use sheave_api::local::SOCKET;
use sheave_api::{Placement, PlacementMode, PlacementSpec, VirtualIP};
use tokio::time::Instant;

use crate::local::{self, Change};
use objects::{Writer, virtual_ip, wait_empty, wait_owner};
use obstacles::Cluster;

#[derive(ClapArgs)]
pub struct Move {
    /// The address.
    address: Ipv4Addr,
    /// The node that is to own it.
    node: String,
    #[command(flatten)]
    common: Common,
}

#[derive(ClapArgs)]
pub struct Prefer {
    /// The address.
    address: Ipv4Addr,
    /// The node that is to come first when an owner is chosen.
    #[arg(required_unless_present = "undo")]
    node: Option<String>,
    #[command(flatten)]
    common: Common,
    /// Prefer no node any more.
    #[arg(long, conflicts_with_all = ["node", "reason"])]
    undo: bool,
}

#[derive(ClapArgs)]
pub struct Drain {
    /// The node that is to own addresses only while no other node can.
    #[arg(required_unless_present = "local", conflicts_with = "local")]
    node: Option<String>,
    #[command(flatten)]
    common: Common,
    /// The node that this runs on, by the socket of its speaker: as root, without an API server.
    #[arg(long, conflicts_with = "dry_run")]
    local: bool,
    /// That socket.
    #[arg(long, default_value = SOCKET)]
    pub socket: PathBuf,
    /// Let the node own addresses again.
    #[arg(long, conflicts_with = "reason")]
    undo: bool,
}

#[derive(ClapArgs)]
struct Common {
    /// Why: kept in the Placement, beside who and when.
    #[arg(long)]
    reason: Option<String>,
    /// Print what would be done. The API server checks it and changes nothing.
    #[arg(long)]
    dry_run: bool,
}

impl Drain {
    /// With `--local`.
    pub fn on_this_node(&self) -> Option<Change> {
        let begin = || Change::Begin { reason: self.common.reason.clone() };
        self.local.then(|| if self.undo { Change::End } else { begin() })
    }
}

/// One hand-over. Nothing stays behind.
pub async fn move_to(client: Client, args: Move) -> Result<ExitCode> {
    let Move { address, node, common: Common { reason, dry_run } } = args;
    let cluster = Cluster::read(&client).await?;
    cluster.known(&node)?;
    let vip = virtual_ip(&client, address).await?;
    let status = vip.status.clone().unwrap_or_default();
    let (Some(owner), Some(term)) = (status.owner.filter(|owner| !owner.is_empty()), status.term) else {
        let reason = status.reason.unwrap_or_else(|| "none is given".into());
        bail!("{address} has no owner that could hand it over; the reason: {reason}")
    };
    if owner == node {
        println!("{address} is at {node} already");
        return Ok(ExitCode::SUCCESS);
    }
    let obstacles = cluster.obstacles(&node, &vip);
    if !obstacles.is_empty() {
        bail!("{node} cannot own {address}: {}", obstacles::list(&obstacles));
    }
    let spec = PlacementSpec {
        mode: PlacementMode::Move,
        address: Some(address.to_string()),
        node: node.clone(),
        owner: Some(owner.clone()),
        term: Some(term),
        by: Some(user(&client).await?),
        reason,
    };
    let writer = Writer { client: client.clone(), dry_run };
    let began = Instant::now();
    let name = writer.apply(spec, Some(&vip)).await?;
    if dry_run {
        println!("{address} would move from {owner} to {node}; nothing was changed");
        return Ok(ExitCode::SUCCESS);
    }
    // However the wait ends, by Ctrl-C as well: a move that stays behind would be carried out whenever it becomes possible.
    let moved = tokio::select! {
        moved = wait_owner(&client, address, &node) => moved,
        interrupted = tokio::signal::ctrl_c() => interrupted.context("wait for Ctrl-C").map(|()| false),
    };
    writer
        .delete(&name)
        .await
        .with_context(|| format!("the move may still be carried out: kubectl delete placement {name}"))?;
    if !moved? {
        bail!("{address} is not at {node} after {} s; the move is taken back", began.elapsed().as_secs())
    }
    println!("{address} moved from {owner} to {node} after {} ms", began.elapsed().as_millis());
    Ok(ExitCode::SUCCESS)
}

pub async fn prefer(client: Client, args: Prefer) -> Result<ExitCode> {
    let Prefer { address, node, common: Common { reason, dry_run }, undo: _ } = args;
    let writer = Writer { client: client.clone(), dry_run };
    let Some(node) = node else {
        let name = PlacementSpec { address: Some(address.to_string()), ..PlacementSpec::default() }.name();
        let was = writer.delete(&name).await?;
        let preferred =
            if dry_run { "would be preferred no more; nothing was changed" } else { "is preferred no more" };
        match was {
            Some(was) => println!("{address}: {} {preferred}", was.spec.node),
            None => println!("{address}: no node was preferred"),
        }
        return Ok(ExitCode::SUCCESS);
    };
    let cluster = Cluster::read(&client).await?;
    cluster.known(&node)?;
    let vip = virtual_ip(&client, address).await?;
    let (lasting, passing): (Vec<_>, Vec<_>) =
        cluster.obstacles(&node, &vip).into_iter().partition(obstacles::Obstacle::lasts);
    if !lasting.is_empty() {
        bail!("{node} may not own {address}: {}", obstacles::list(&lasting));
    }
    let spec = PlacementSpec {
        mode: PlacementMode::Prefer,
        address: Some(address.to_string()),
        node: node.clone(),
        by: Some(user(&client).await?),
        reason,
        ..PlacementSpec::default()
    };
    writer.apply(spec, Some(&vip)).await?;
    let (comes, done) = if dry_run { ("would come", "; nothing was changed") } else { ("comes", "") };
    println!("{address}: {node} {comes} first when an owner is chosen{done}");
    if !passing.is_empty() {
        println!("at present {node} cannot own it: {}", obstacles::list(&passing));
    }
    let owner = vip.status.as_ref().and_then(|status| status.owner.as_deref()).filter(|owner| !owner.is_empty());
    if let Some(owner) = owner.filter(|owner| *owner != node) {
        println!("the present owner, {owner}, stays (sheave move {address} {node} moves it)");
    }
    Ok(ExitCode::SUCCESS)
}

/// Exit code 1 if the node still owns an address.
pub async fn drain(client: Client, args: Drain) -> Result<ExitCode> {
    let Drain { node, common: Common { reason, dry_run }, undo, .. } = args;
    let node = node.context("a node, or --local")?;
    let writer = Writer { client: client.clone(), dry_run };
    if undo {
        let name = PlacementSpec { mode: PlacementMode::Drain, node: node.clone(), ..PlacementSpec::default() }.name();
        let may = if dry_run { "would own addresses again; nothing was changed" } else { "may own addresses again" };
        match writer.delete(&name).await? {
            Some(was) => println!("{node} {may} (it was drained {})", obstacles::who(&was)),
            None => println!("{node} was not drained"),
        }
        if let Some(drain) = objects::drained_there(&client, &node).await? {
            println!("it stays drained {} (sheave drain --local --undo, on the node)", local::who(&drain));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let cluster = Cluster::read(&client).await?;
    cluster.known(&node)?;
    let owned = objects::owned(&client, &node).await?;
    match cluster.drained(&node) {
        Some(drained) => println!("{node} is drained already, {}", obstacles::who(drained)),
        None => {
            let spec = PlacementSpec {
                mode: PlacementMode::Drain,
                node: node.clone(),
                by: Some(user(&client).await?),
                reason,
                ..PlacementSpec::default()
            };
            writer.apply(spec, None).await?;
        }
    }
    // Those stay, and are not waited for.
    let stuck: BTreeSet<Ipv4Addr> = owned.iter().filter_map(|vip| stays(&cluster, &node, vip)).collect();
    if dry_run {
        println!(
            "{node} would hand over {} of {} addresses; nothing was changed",
            owned.len() - stuck.len(),
            owned.len()
        );
        return Ok(ExitCode::SUCCESS);
    }
    let kept = wait_empty(&client, &node, &stuck).await?;
    if kept.is_empty() {
        println!("{node} is drained: it owns no address while another node can (sheave drain {node} --undo ends this)");
        return Ok(ExitCode::SUCCESS);
    }
    let kept: Vec<String> = kept.iter().map(ToString::to_string).collect();
    println!("{node} is drained and keeps until another node can own them: {}", kept.join(", "));
    Ok(ExitCode::FAILURE)
}

/// The address, if no other node can own it; says why.
fn stays(cluster: &Cluster, node: &str, vip: &VirtualIP) -> Option<Ipv4Addr> {
    let others: Vec<_> =
        cluster.names().filter(|other| *other != node).map(|other| (other, cluster.obstacles(other, vip))).collect();
    if others.iter().any(|(_, obstacles)| obstacles.is_empty()) {
        return None;
    }
    println!("{} stays at {node}: no other node can own it", vip.spec.address);
    for (other, obstacles) in others {
        println!("  {other}: {}", obstacles::list(&obstacles));
    }
    vip.spec.address.parse().ok()
}

/// The name that the API server knows the caller by.
async fn user(client: &Client) -> Result<String> {
    let api = Api::<SelfSubjectReview>::all(client.clone());
    let review = api.create(&PostParams::default(), &SelfSubjectReview::default()).await.context("ask who this is")?;
    let name = review.status.and_then(|status| status.user_info).and_then(|user| user.username);
    name.context("the API server does not say who this is")
}

/// For `sheave status`: by address the node that is preferred, and by node who drained it.
pub fn listed(placements: &[Placement]) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
    let of = |mode| placements.iter().filter(move |one| one.spec.mode == mode);
    let preferred =
        of(PlacementMode::Prefer).filter_map(|one| Some((one.spec.address.clone()?, one.spec.node.clone())));
    let drained = of(PlacementMode::Drain).map(|one| (one.spec.node.clone(), obstacles::who(one)));
    (preferred.collect(), drained.collect())
}
