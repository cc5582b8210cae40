//! Several addresses of one Service: added and removed while it serves, and what holds for one holds for all.

use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use anyhow::{Result, ensure};
use sheave_tests::lab::{plan, wait_for};
use sheave_tests::scenario::Scene;
use sheave_tests::scenario::api::text;

use super::clients::{OUTSIDE, from, greeted_by, tcp, wait_served};
use super::{Asked, Room, Server, WITHIN};

pub fn addresses(scene: &Scene) -> Result<String> {
    let room = Room::open(scene, "several")?;
    room.start(&[Server::on(0, "several-1", "all"), Server::on(1, "several-2", "all")])?;
    // The range of one client: it holds at every address.
    let ranges = format!("selector: {{app: all}}\n  loadBalancerSourceRanges: [{}/32]", plan::CLIENT);
    let first = room.service_with("several", 213, Asked { more: &ranges, ..Asked::default() })?;
    wait_served(scene, first)?;
    let second = plan::address(214);
    let granted = entry(scene, first)?;

    asks(&room, &[second, first])?;
    wait_shown(&room, &[first, second])?;
    wait_served(scene, second)?;
    ensure!(entry(scene, first)? == granted, "the address that stays was granted anew");
    let [(client, of_client), (far, _)] = OUTSIDE;
    let mut served = 0;
    for vip in [first, second] {
        served += greeted_by(scene, client, of_client, vip, FEW)?.values().sum::<usize>();
        from(scene, far, || {
            let connects = TcpStream::connect_timeout(&tcp(vip), PATIENCE).is_ok();
            ensure!(!connects, "a client outside the source ranges reaches {vip}");
            Ok(())
        })?;
    }

    // The first one goes: it is withdrawn, and the other one serves on.
    let granted = entry(scene, second)?;
    asks(&room, &[second])?;
    wait_shown(&room, &[second])?;
    from(scene, client, || {
        let gone = || Ok(TcpStream::connect_timeout(&tcp(first), PATIENCE).is_err().then_some(()));
        wait_for(&format!("{first} to answer no more"), WITHIN, gone)
    })?;
    served += greeted_by(scene, client, of_client, second, FEW)?.values().sum::<usize>();
    ensure!(entry(scene, second)? == granted, "the address that stays was granted anew");
    Ok(format!("{served} connections to {first} and {second}, then {second} alone"))
}

/// The Service asks for these from now on.
fn asks(room: &Room<'_>, addresses: &[Ipv4Addr]) -> Result<()> {
    let addresses: Vec<String> = addresses.iter().map(Ipv4Addr::to_string).collect();
    let annotation = format!("sheave.dev/loadBalancerIPs={}", addresses.join(","));
    let service = ["-n", room.namespace, "annotate", "--overwrite", "service", "several", &annotation];
    room.scene.lab.kubectl(&service).map(drop)
}

/// Exactly these, lowest first.
fn wait_shown(room: &Room<'_>, addresses: &[Ipv4Addr]) -> Result<()> {
    wait_for(&format!("the status to show {addresses:?}"), WITHIN, || {
        let service = room.scene.api.get(&room.path("services", "several"))?;
        let entries = service.pointer("/status/loadBalancer/ingress").and_then(|list| list.as_array());
        let shown = entries.into_iter().flatten().map(|entry| text(entry, "/ip").to_owned());
        Ok(shown.eq(addresses.iter().map(Ipv4Addr::to_string)).then_some(()))
    })
}

/// The ledger's entry, by its uid.
fn entry(scene: &Scene, address: Ipv4Addr) -> Result<String> {
    let vip = scene.api.get(&format!("/apis/sheave.dev/v1alpha1/virtualips/{address}"))?;
    Ok(text(&vip, "/metadata/uid").to_owned())
}

const FEW: usize = 8;
const PATIENCE: Duration = Duration::from_secs(2);
