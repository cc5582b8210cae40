//! `sheave endpoint init --check`: whether the endpoint of this machine's file works. It looks at what is really served, not at what the
//! distribution was told.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use sheave_endpoint::preset::{FILE, MANIFEST, Preset, Run, UNIT_PATH};
use sheave_endpoint::{Endpoint, Health, Member};
use tokio_rustls::rustls::RootCertStore;

use super::file;
use super::finding::{Finding, Obstacle, Report};
use super::host::{Host, SOCKET};
use super::tls::{self, Chain, Served};

/// Exit code 1 if something is missing.
pub fn run(preset: Preset, run: Run, host: &Host) -> Result<ExitCode> {
    let mut report = Report::default();
    match file::existing(Path::new(FILE)) {
        Ok(Some(endpoint)) => endpoint_of(&endpoint, preset, run, host, &mut report),
        Ok(None) => report.add(Finding::refused(Obstacle::NotServed, format!("{FILE} is not there"))),
        Err(error) => report.add(Finding::refused(Obstacle::FileUnusable, format!("{error:#}"))),
    }
    report.print();
    if report.has_obstacles() {
        println!("not all is there: {}", report.names());
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn endpoint_of(endpoint: &Endpoint, preset: Preset, run: Run, host: &Host, report: &mut Report) {
    match endpoint.seat(&host.interfaces) {
        Ok(seat) => report.add(Finding::Fine(format!("{FILE}: this machine is member {}", seat.member.name))),
        Err(refusals) => report.add(Finding::refused(Obstacle::NotAllowed, refusals.to_string())),
    }
    report.add(started(preset, run));
    report.add(match UnixStream::connect(SOCKET) {
        Ok(_) => Finding::Fine(format!("the speaker runs ({SOCKET})")),
        Err(error) => Finding::refused(Obstacle::NotServed, format!("no speaker answers at {SOCKET}: {error}")),
    });
    let roots = roots(&endpoint.health, report);
    let join = preset.distribution().join;
    for member in &endpoint.members {
        let targets: BTreeSet<u16> = endpoint.ports.iter().map(|port| port.target).collect();
        // What joining nodes trust there is a fingerprint, not a name.
        for target in targets.into_iter().filter(|target| Some(*target) != join) {
            report.extend(of_member(endpoint, member, target, roots.as_ref()));
        }
    }
    for vip in &endpoint.addresses {
        for port in endpoint.ports.iter().filter(|port| port.sources.is_empty() && Some(port.target) != join) {
            report.add(through(*vip, port.listen));
        }
    }
}

fn started(preset: Preset, run: Run) -> Finding {
    let path = match (run, preset.distribution().manifests) {
        (Run::StaticPod, Some(folder)) => format!("{folder}/{MANIFEST}"),
        _ => UNIT_PATH.to_owned(),
    };
    if Path::new(&path).is_file() {
        return Finding::Fine(format!("{path} is there"));
    }
    Finding::refused(Obstacle::NotServed, format!("{path} is not there (--run says what starts the speaker)"))
}

fn roots(health: &Health, report: &mut Report) -> Option<RootCertStore> {
    let path = health.ca_file.as_deref()?;
    match tls::roots(path) {
        Ok(Some(roots)) => return Some(roots),
        Ok(None) => report.add(Finding::refused(
            Obstacle::NotServed,
            format!("{} is not there yet: the API servers are not checked until it is", path.display()),
        )),
        Err(error) => report.add(Finding::refused(Obstacle::NotServed, format!("{}: {error}", path.display()))),
    }
    None
}

fn of_member(endpoint: &Endpoint, member: &Member, port: u16, roots: Option<&RootCertStore>) -> Vec<Finding> {
    let at = SocketAddrV4::new(member.address, port);
    let who = format!("{} {at}", member.name);
    let chain = match served(&who, at) {
        Ok(chain) => chain,
        Err(finding) => return vec![finding],
    };
    let https = endpoint.ports.iter().any(|one| one.target == port && one.check == sheave_endpoint::Check::Https);
    let mut findings: Vec<Finding> = endpoint.addresses.iter().map(|vip| names(&who, &chain, *vip)).collect();
    // Other ports may have other CAs.
    if let Some(Err(error)) = roots.filter(|_| https).map(|roots| chain.is_signed_by(roots)) {
        let why = format!("{who}: its certificate is not of the CA in the file, or not valid now: {error}");
        findings.push(Finding::refused(Obstacle::NotServed, why));
    }
    findings
}

/// As kubectl would come.
fn through(vip: Ipv4Addr, port: u16) -> Finding {
    let at = SocketAddrV4::new(vip, port);
    match served(&format!("through {at}"), at) {
        Ok(chain) => names(&format!("through {at}"), &chain, vip),
        Err(finding) => finding,
    }
}

fn served(who: &str, at: SocketAddrV4) -> Result<Chain, Finding> {
    match tls::look(at) {
        Served::Certificate(chain) => Ok(chain),
        Served::NoTls(error) => Err(Finding::refused(Obstacle::NotServed, format!("{who}: no TLS: {error}"))),
        Served::Nothing(error) => Err(Finding::refused(Obstacle::NotServed, format!("{who}: {error}"))),
    }
}

fn names(who: &str, chain: &Chain, vip: Ipv4Addr) -> Finding {
    match chain.names(vip) {
        Ok(()) => Finding::Fine(format!("{who}: its certificate names {vip}")),
        Err(instead) => {
            let why = format!(
                "{who}: its certificate does not name {vip}, but {instead}: the distribution's part is missing"
            );
            Finding::refused(Obstacle::SanMissing, why)
        }
    }
}
