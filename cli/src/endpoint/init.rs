//! `sheave endpoint init`: from an empty machine to a member of the endpoint.
//!
//! Read: [`Args`] → `plan` → `look` (what speaks against it, each with a name: `finding`) → `write`. Everything that is wrong is printed
//! before anything is written. What is written, and why, is `sheave_endpoint::preset`; `--check` is `check`.

mod check;
mod file;
mod finding;
mod host;
mod image;
mod packets;
mod segment;
mod tls;

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args as ClapArgs;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use sheave_endpoint::host::Seat;
use sheave_endpoint::preset::{FILE, LIBRARY, Plan, Preset, Run, UNIT_PATH};
use sheave_endpoint::{Endpoint, Keys, Member, Profile, Refusals};

use finding::{Finding, Obstacle, Report};
use host::Host;

#[derive(ClapArgs)]
pub struct Args {
    /// The distribution of Kubernetes.
    #[arg(long, value_parser = preset_parser())]
    preset: Preset,
    /// The address, or several: in the subnet of the members, on no interface.
    #[arg(long, value_delimiter = ',', value_parser = address, required_unless_present = "check")]
    vip: Vec<Ipv4Addr>,
    /// The machines with an API server, the first to be installed first: `a=192.0.2.11,b=192.0.2.12`. One is this machine.
    #[arg(long, value_delimiter = ',', value_parser = member, required_unless_present = "check")]
    members: Vec<Member>,
    /// Names of members that run no speaker: two others translate for each, and it does not see the client's address.
    #[arg(long, value_delimiter = ',')]
    without_speaker: Vec<String>,
    /// The uplink; without it: the interface that carries the member's address.
    #[arg(long)]
    interface: Option<String>,
    /// Further ports of the address, and where the members serve them: `8443:6443`. Existing kubeconfigs go on working.
    #[arg(long, value_delimiter = ',', value_parser = listener)]
    listen: Vec<(u16, u16)>,
    /// What starts the speaker; without it: static-pod with kubeadm, systemd with the others.
    #[arg(long, value_parser = run_parser())]
    run: Option<Run>,
    /// The speaker's image, for a static pod.
    #[arg(long)]
    image: Option<String>,
    /// The image is not looked for: it is in a runtime other than containerd, or will be imported.
    #[arg(long)]
    image_is_imported: bool,
    /// MicroK8s: serve port 25000, too, by which nodes join. Its tokens are known to one member alone.
    #[arg(long)]
    with_join: bool,
    /// How quickly a lost owner is noticed: steady is for machines that share processors.
    #[arg(long, value_parser = profile_parser(), default_value = "fast")]
    timing: Profile,
    /// Write the file anew where it differs from what is asked for. Its keys stay.
    #[arg(long)]
    replace: bool,
    /// Check and print; write nothing.
    #[arg(long)]
    dry_run: bool,
    /// Whether the endpoint of this machine's file works: certificates that name the address, at the members and through the address.
    #[arg(long, conflicts_with_all = ["dry_run", "replace"])]
    check: bool,
}

/// Exit code 1 if something speaks against it.
pub fn run(args: &Args) -> Result<ExitCode> {
    let host = Host::read().context("interfaces of this machine")?;
    if args.check {
        return check::run(args.preset, args.run(), &host);
    }
    let plan = args.plan();
    let mut report = Report::default();
    let Some(planned) = planned(args, &plan, &host, &mut report)? else { return Ok(refused(&report)) };
    look(args, &plan, &planned, &host, &mut report)?;
    report.print();
    if report.has_obstacles() {
        return Ok(refused(&report));
    }
    for written in plan.files(&planned.keys) {
        match (args.dry_run, planned.stays && written.path == FILE) {
            (_, true) => println!("{FILE} has all this already"),
            (true, _) => println!(
                "--- would be written: {} ({:04o})\n{}",
                written.path,
                written.mode,
                file::shown(&written.text)
            ),
            (false, _) => {
                file::write(&written).with_context(|| written.path.clone())?;
                println!("written: {} ({:04o})", written.path, written.mode);
            }
        }
    }
    println!("\n{}", next(&plan, &planned.seat));
    println!("--- for {}, by you (sheave runs none of it):\n{}", plan.preset.distribution().name, plan.snippet());
    Ok(ExitCode::SUCCESS)
}

/// What is to be.
struct Planned {
    endpoint: Endpoint,
    keys: Keys,
    seat: Seat,
    /// The file says all of it already: not a byte of it is changed.
    stays: bool,
}

/// What needs nothing but the request, the file that is there, and this machine. `None`: it was refused.
fn planned(args: &Args, plan: &Plan, host: &Host, report: &mut Report) -> Result<Option<Planned>> {
    let existing = match file::existing(Path::new(FILE)) {
        Ok(existing) => existing,
        Err(error) => {
            report.add(Finding::refused(Obstacle::FileUnusable, format!("{error:#}")));
            report.print();
            return Ok(None);
        }
    };
    let keys = match &existing {
        Some(existing) => existing.keys.clone(),
        None => file::new_keys().context("a new key")?,
    };
    let seated = args.unknown_members().and_then(|()| {
        let endpoint = plan.endpoint(&keys)?;
        let seat = endpoint.seat(&host.interfaces)?;
        Ok((endpoint, seat))
    });
    let (endpoint, seat) = match seated {
        Ok(seated) => seated,
        Err(refusals) => {
            let refusals = refusals.0.iter().map(|refusal| Finding::refused(Obstacle::NotAllowed, refusal.to_string()));
            refusals.for_each(|refusal| report.add(refusal));
            report.print();
            return Ok(None);
        }
    };
    let stays = existing.as_ref() == Some(&endpoint);
    if let Some(existing) = existing.filter(|_| !stays && !args.replace) {
        let fields = file::differences(&existing, &endpoint).join(", ");
        let why = format!("{FILE} is there and differs in {fields}; --replace writes it anew with the same keys");
        report.add(Finding::refused(Obstacle::FileDiffers, why));
    }
    Ok(Some(Planned { endpoint, keys, seat, stays }))
}

/// What this machine and its segment say.
fn look(args: &Args, plan: &Plan, planned: &Planned, host: &Host, report: &mut Report) -> Result<()> {
    let Planned { endpoint, seat, .. } = planned;
    for vip in &endpoint.addresses {
        report.add(Finding::Fine(format!(
            "{vip} is in a subnet of {} and on no interface of this machine",
            seat.interface
        )));
    }
    let link = host.link(&seat.interface)?;
    println!("listening on {} for {} s ...", seat.interface, segment::LISTEN.as_secs());
    let heard = segment::listen(link, endpoint, seat.member.address)
        .with_context(|| format!("listen on {} (root, or capability NET_RAW)", seat.interface))?;
    report.extend(segment::judge(endpoint, &heard));
    report.extend(host::ports(endpoint, &seat.member));
    if let Some(path) = plan.other_start().filter(|path| Path::new(path).exists()) {
        let why = format!("{path} starts a speaker of the endpoint, too: remove it first");
        report.add(Finding::refused(Obstacle::SecondSpeaker, why));
    }
    match (plan.run, &plan.image) {
        (Run::StaticPod, Some(_)) if args.image_is_imported => {}
        (Run::StaticPod, Some(image)) => report.add(image::look(plan.preset.distribution(), image)),
        _ => report.extend(programs()),
    }
    Ok(())
}

/// Of the archive, where the unit names them.
fn programs() -> Vec<Finding> {
    let look = |name: &str| {
        let path = format!("{LIBRARY}/{name}");
        if Path::new(&path).is_file() {
            return Finding::Fine(format!("{path} is there"));
        }
        let why = format!("{path} is not there: unpack the archive of `make endpoint-tar` (tar -C / -xzf ...)");
        Finding::refused(Obstacle::ProgramMissing, why)
    };
    ["sheave-speaker", "nft"].map(look).into()
}

fn refused(report: &Report) -> ExitCode {
    println!("nothing was written: {}", report.names());
    ExitCode::FAILURE
}

fn next(plan: &Plan, seat: &Seat) -> String {
    let start = match plan.run {
        Run::StaticPod => "the kubelet starts the speaker as soon as it runs".to_owned(),
        Run::Systemd => format!("start the speaker: systemctl daemon-reload && systemctl enable --now {}", unit_name()),
    };
    let others: Vec<&str> = plan.members.iter().map(|member| member.name.as_str()).collect();
    let others = others.into_iter().filter(|name| *name != seat.member.name).collect::<Vec<_>>().join(", ");
    format!("{start}\nthe other members ({others}): copy {FILE} there with its mode, and run the same command")
}

fn unit_name() -> &'static str {
    UNIT_PATH.rsplit('/').next().unwrap_or(UNIT_PATH)
}

impl Args {
    fn run(&self) -> Run {
        self.run.unwrap_or(self.preset.distribution().run)
    }

    fn plan(&self) -> Plan {
        let members = self.members.iter().cloned();
        let speaks = |member: Member| Member { speaker: !self.without_speaker.contains(&member.name), ..member };
        Plan {
            preset: self.preset,
            run: self.run(),
            addresses: self.vip.clone(),
            interface: self.interface.clone(),
            members: members.map(speaks).collect(),
            also: self.listen.clone(),
            profile: self.timing,
            with_join: self.with_join,
            image: self.image.clone(),
        }
    }

    fn unknown_members(&self) -> Result<(), Refusals> {
        let known = |name: &&String| self.members.iter().any(|member| member.name == **name);
        let members: Vec<&str> = self.members.iter().map(|member| member.name.as_str()).collect();
        match self.without_speaker.iter().find(|name| !known(name)) {
            Some(name) => {
                let allowed = format!("names of --members: {}", members.join(", "));
                Err(sheave_endpoint::Refusal::new("--without-speaker", name, allowed).into())
            }
            None => Ok(()),
        }
    }
}

fn preset_parser() -> impl TypedValueParser<Value = Preset> {
    let names = ["kubeadm", "k3s", "rke2", "k0s", "microk8s"];
    let named = |name: String| Preset::ALL.into_iter().find(|preset| preset.flag() == name).ok_or("no preset");
    PossibleValuesParser::new(names).try_map(named)
}

fn run_parser() -> impl TypedValueParser<Value = Run> {
    PossibleValuesParser::new(["static-pod", "systemd"])
        .map(|name| if name == "systemd" { Run::Systemd } else { Run::StaticPod })
}

fn profile_parser() -> impl TypedValueParser<Value = Profile> {
    PossibleValuesParser::new(["fast", "steady"])
        .map(|name| if name == "fast" { Profile::Fast } else { Profile::Steady })
}

fn address(text: &str) -> Result<Ipv4Addr, String> {
    match text.parse() {
        Ok(address) => Ok(address),
        Err(_) if text.parse::<std::net::Ipv6Addr>().is_ok() => Err("IPv6 is not served yet; an IPv4 address".into()),
        Err(_) => Err("an IPv4 address such as 192.0.2.100".into()),
    }
}

/// The name may be left out: it is the address then.
fn member(text: &str) -> Result<Member, String> {
    let (name, value) = text.split_once('=').unwrap_or((text, text));
    Ok(Member { name: name.into(), address: address(value)?, speaker: true })
}

fn listener(text: &str) -> Result<(u16, u16), String> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    let (listen, target) = text.split_once(':').unwrap_or((text, text));
    port(listen).zip(port(target)).ok_or_else(|| "PORT or PORT:TARGET, each 1 to 65535".into())
}

#[cfg(test)]
mod tests;
