//! What `sheave endpoint init` refuses, and that nothing is written then.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sheave_endpoint::Endpoint;
use sheave_endpoint::preset::{FILE, LIBRARY, Preset, Run, UNIT_PATH};
use sheave_tests::lab::image::{About, pack};
use sheave_tests::lab::wait::wait_for;
use sheave_tests::lab::{netns, plan};

use crate::world::{MEMBERS, OTHER, Said, VIP, World, mac, name};
use crate::{MEMBERS_FLAG, PATIENCE};

const MANIFEST: &str = "/etc/kubernetes/manifests/sheave-endpoint.yaml";
const IMAGE: &str = "docker.io/library/sheave-speaker:1";

pub fn story(world: &mut World) -> Result<()> {
    world.install(Preset::Kubeadm)?;
    not_for_this_machine(world)?;
    everything_at_once(world)?;
    keepalived(world)?;
    an_image_that_is_not_imported(world)?;
    a_file_that_is_there(world)?;
    programs_that_are_not_there(world)?;
    certificates_without_the_address(world)
}

fn line(vip: &str) -> String {
    format!("--preset kubeadm --image sheave-speaker:1 --image-is-imported --vip {vip} {MEMBERS_FLAG}")
}

fn refused(world: &World, said: &Said, names: &[&str]) -> Result<()> {
    ensure!(said.code == Some(1), "exit code {:?}: {}", said.code, said.text);
    said.says(&[&format!("nothing was written: {}", names.join(", "))])?;
    ensure!(!world.root("a")?.at(FILE).exists() && !world.root("a")?.at(MANIFEST).exists(), "{}", said.text);
    Ok(())
}

/// At once, without listening.
fn not_for_this_machine(world: &World) -> Result<()> {
    netns::ip(&name("a"), "address add 192.0.2.77/24 dev eth0\n")?;
    for (vip, why) in [
        ("198.51.100.1", "addresses: 198.51.100.1 is refused: an address in a subnet of eth0: 192.0.2.0/24"),
        ("192.0.2.12", "addresses: 192.0.2.12 is refused: it is the address of member b"),
        ("192.0.2.77", "addresses: 192.0.2.77 is refused: eth0 of this host has it"),
        ("192.0.2.255", "it is the network's own or broadcast address of 192.0.2.0/24"),
    ] {
        let said = world.init("a", &line(vip))?;
        refused(world, &said, &["NotAllowed"])?;
        said.says(&[why])?;
    }
    let elsewhere = world.init("a", &line("192.0.2.100").replace("192.0.2.11", "192.0.2.21"))?;
    refused(world, &elsewhere, &["NotAllowed"])?;
    elsewhere.says(&["one of them is an address of this host, which has"])?;
    netns::ip(&name("a"), "address delete 192.0.2.77/24 dev eth0\n")
}

/// All of it is said, each with its cause.
fn everything_at_once(world: &World) -> Result<()> {
    netns::ip(&name(OTHER), &format!("address add {VIP}/32 dev eth0\n"))?;
    let taken = netns::inside(&name("a"), || {
        let heartbeats = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 7484))?;
        let probes = TcpListener::bind((Ipv4Addr::LOCALHOST, 7486))?;
        // No TLS comes from it.
        let plain = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 6443))?;
        let greeter = plain.try_clone()?;
        // One connection: then the port is free with the others.
        std::thread::spawn(move || {
            let stream = greeter.accept().ok()?.0;
            std::io::Write::write_all(&mut &stream, b"220 other service\r\n").ok()
        });
        Ok((heartbeats, probes, plain))
    })?;
    world.root("a")?.write(UNIT_PATH, "")?;
    let said = world.init("a", &line("192.0.2.100"))?;
    refused(world, &said, &["VipAnswered", "PortTaken", "SecondSpeaker"])?;
    said.says(&[
        &format!("192.0.2.100: the host with MAC address {} answers for it", mac(OTHER)),
        "UDP port 7484, which the speaker needs for heartbeats, is another program's",
        "UDP port 7485 is free",
        "TCP port 7486, which the speaker needs for its probes, is another program's",
        "something listens on 192.0.2.11:6443 that speaks no TLS",
        "/etc/systemd/system/sheave-endpoint.service starts a speaker of the endpoint, too",
    ])?;
    drop(taken);
    fs::remove_file(world.root("a")?.at(UNIT_PATH))?;
    netns::ip(&name(OTHER), &format!("address delete {VIP}/32 dev eth0\n"))?;
    // A member that has it and runs no speaker of ours is no better.
    netns::ip(&name("b"), &format!("address add {VIP}/32 dev eth0\n"))?;
    let said = world.init("a", &line("192.0.2.100"))?;
    refused(world, &said, &["VipAnswered"])?;
    said.says(&[&format!("member b ({}) answers for it, and no speaker of this endpoint is heard there", mac("b"))])?;
    netns::ip(&name("b"), &format!("address delete {VIP}/32 dev eth0\n"))
}

/// A router that advertises the address and does not answer ARP for it: it is on the loopback.
fn keepalived(world: &mut World) -> Result<()> {
    let router = name(OTHER);
    netns::sysctl(&router, &[("ipv4/conf/all/arp_ignore", "1")])?;
    for (version, others, id) in [(2, "192.0.2.60/32 dev lo", 51), (3, "", 52)] {
        let config = world.dir.join("keepalived.conf");
        let text = format!(
            "global_defs {{\n vrrp_version {version}\n}}\nvrrp_instance api {{\n state MASTER\n interface eth0\n virtual_router_id {id}
 priority 255\n advert_int 1\n virtual_ipaddress {{\n  {VIP}/32 dev lo\n  {others}\n }}\n}}\n"
        );
        fs::write(&config, text)?;
        let mut command = Command::new("keepalived");
        command.args(["--dont-fork", "--log-console", "--vrrp", "--use-file"]).arg(&config);
        command.arg("--pid").arg(world.dir.join("keepalived.pid")).arg("--vrrp_pid").arg(world.dir.join("vrrp.pid"));
        netns::enter(&mut command, &router)?;
        world.start(command, OTHER, "keepalived")?;
        let has = |wanted: bool| {
            move || {
                let addresses =
                    netns::run("ip", &["-netns", &name(OTHER), "-oneline", "address", "show", "dev", "lo"])?;
                Ok((addresses.contains(&VIP.to_string()) == wanted).then_some(()))
            }
        };
        wait_for("keepalived to be master", PATIENCE, has(true))?;
        let said = world.init("a", &line("192.0.2.100"))?;
        refused(world, &said, &["VipAdvertised"])?;
        said.says(&[
            "192.0.2.100: no host answers for it",
            &format!(
                "192.0.2.51 (VRRP version {version}, virtual router {id}) advertises 192.0.2.100: stop keepalived"
            ),
        ])?;
        if version == 2 {
            said.says(&["advertises 192.0.2.60: other addresses"])?;
        }
        world.stop(OTHER, "keepalived")?;
        wait_for("keepalived to take the address away", PATIENCE, has(false))?;
    }
    Ok(())
}

/// With containerd as the kubelet has it.
fn an_image_that_is_not_imported(world: &mut World) -> Result<()> {
    let line = line("192.0.2.100").replace(" --image-is-imported", "");
    let said = world.init("a", &line)?;
    refused(world, &said, &["ImageMissing"])?;
    said.says(&[&format!("image {IMAGE} is not imported"), "ctr --namespace k8s.io images import FILE"])?;
    let binaries = plan::repository().join("target/kubernetes");
    let root = world.root("a")?;
    for program in ["ctr", "containerd"] {
        root.program(&format!("/usr/local/bin/{program}"), &binaries.join(program))?;
    }
    let config = "version = 3\nroot = \"/var/lib/containerd\"\nstate = \"/run/containerd\"
disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.cri.v1.images\", \"io.containerd.cri.v1.runtime\",
  \"io.containerd.nri.v1.nri\"]\n";
    root.write("/etc/containerd.toml", config)?;
    let command = root.command(&name("a"), &["/usr/local/bin/containerd", "--config", "/etc/containerd.toml"])?;
    world.start(command, "a", "containerd")?;
    wait_for("containerd", PATIENCE, || Ok(world.ctr(&["version"])?.status.success().then_some(())))?;
    let said = world.init("a", &line)?;
    refused(world, &said, &["ImageMissing"])?;
    ensure!(!said.text.contains("connect"), "containerd was asked: {}", said.text);
    let content = world.dir.join("content");
    fs::write(&content, "a program")?;
    let about = About { reference: IMAGE, entrypoint: "/sheave-speaker", command: &[], path: "/" };
    pack(&world.root("a")?.at("tmp/image.tar"), &about, &[("/sheave-speaker".into(), content)])?;
    let imported = world.ctr(&["images", "import", "--no-unpack", "/tmp/image.tar"])?;
    ensure!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
    let said = world.init("a", &format!("{line} --dry-run"))?;
    ensure!(said.code == Some(0), "{}", said.text);
    said.says(&[
        &format!("image {IMAGE} is imported"),
        "would be written: /etc/sheave/endpoint.yaml",
        "key: (not shown)",
        &format!("would be written: {MANIFEST}"),
        "controlPlaneEndpoint: 192.0.2.100:6443",
    ])?;
    let root = world.root("a")?;
    ensure!(!root.at(FILE).exists() && !root.at(MANIFEST).exists(), "a dry run writes nothing");
    world.end("a", "containerd")
}

/// It is neither overwritten nor is its key lost.
fn a_file_that_is_there(world: &World) -> Result<()> {
    let written = world.init("a", &line("192.0.2.100"))?;
    ensure!(written.code == Some(0), "{}", written.text);
    let read = || -> Result<String> { Ok(fs::read_to_string(world.root("a")?.at(FILE))?) };
    let first = read()?;
    let again = world.init("a", &line("192.0.2.100"))?;
    ensure!(again.code == Some(0) && read()? == first, "{}", again.text);
    let other = format!("{} --listen 8443:6443", line("192.0.2.100"));
    let refused = world.init("a", &other)?;
    ensure!(refused.code == Some(1) && read()? == first, "{}", refused.text);
    refused.says(&["FileDiffers: /etc/sheave/endpoint.yaml is there and differs in ports; --replace"])?;
    let replaced = world.init("a", &format!("{other} --replace"))?;
    ensure!(replaced.code == Some(0), "{}", replaced.text);
    let (first, second) = (Endpoint::parse(&first)?, Endpoint::parse(&read()?)?);
    ensure!(first.keys == second.keys && second.ports.len() == 2, "the key stays");
    world.root("a")?.write(FILE, "addresses: []\n")?;
    let unusable = world.init("a", &line("192.0.2.100"))?;
    ensure!(unusable.code == Some(1), "{}", unusable.text);
    unusable.says(&["FileUnusable", "addresses: a list of 0 is refused"])
}

fn programs_that_are_not_there(world: &mut World) -> Result<()> {
    world.install(Preset::K0s)?;
    world.root("a")?.remove_program(&format!("{LIBRARY}/nft"))?;
    let said = world.init("a", &format!("--preset k0s --vip {VIP} {MEMBERS_FLAG}"))?;
    refused(world, &said, &["ProgramMissing"])?;
    said.says(&["/usr/local/lib/sheave/nft is not there", "/usr/local/lib/sheave/sheave-speaker is there"])
}

/// `--check`: what the distribution was told is not what is served.
fn certificates_without_the_address(world: &mut World) -> Result<()> {
    world.install(Preset::Rke2)?;
    let said = world.init("a", &format!("--preset rke2 --vip {VIP} {MEMBERS_FLAG}"))?;
    ensure!(said.code == Some(0), "{}", said.text);
    for node in MEMBERS {
        let names: &[&str] = if node == "b" {
            &["kubernetes.default.svc", "192.0.2.12"]
        } else {
            &["kubernetes.default.svc", "192.0.2.100"]
        };
        // Of c one port is not there.
        let ports: &[u16] = if node == "c" { &[6443] } else { &[6443, 9345] };
        world.start_server(node, &ports.iter().copied().collect(), names)?;
    }
    world.start_speaker("a", Preset::Rke2, Run::Systemd)?;
    let expected = [
        "a 192.0.2.11:6443: its certificate names 192.0.2.100",
        "a 192.0.2.11:9345: its certificate names 192.0.2.100",
        "SanMissing: b 192.0.2.12:6443: its certificate does not name 192.0.2.100, but ",
        "192.0.2.12",
        "c 192.0.2.13:6443: its certificate names 192.0.2.100",
        "NotServed: c 192.0.2.13:9345: Connection refused",
        "the speaker runs (/run/sheave/endpoint.sock)",
        "not all is there: SanMissing, NotServed",
    ];
    let said = wait_for("the speaker", Duration::from_secs(30), || {
        let said = world.init("a", "--preset rke2 --check")?;
        Ok(said.says(&expected).is_ok().then_some(said))
    });
    let said = match said {
        Ok(said) => said,
        Err(error) => return Err(error).context(world.init("a", "--preset rke2 --check")?.text),
    };
    ensure!(said.code == Some(1), "{}", said.text);
    Ok(())
}
