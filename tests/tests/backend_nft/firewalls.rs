//! firewalld and ufw themselves, as Debian has them, in a node's namespace. They see a root of their own, so the machine keeps its rules and
//! its settings.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use sheave_tests::lab::netns;
use sheave_tests::lab::plan::repository;

use super::host_rules::{assert_dropped, assert_served};
use super::world::{CLIENT, Node, PODS, VIP, World};
use super::{FORWARD_DROP, only};

/// A shell in that root. All that was started in it ends with the value.
struct Shell {
    child: Child,
    commands: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Shell {
    fn on(node: &Node) -> Self {
        let programs = repository().join("target/firewalls");
        assert!(programs.join("usr/sbin/ufw").exists(), "{}: `make setup` fetches it", programs.display());
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/backend_nft/firewalls.sh");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", "exec sh \"$0\" \"$1\" 2>&1"]);
        command.args([&script, &std::fs::canonicalize(programs).unwrap()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        netns::enter(&mut command, &node.name).unwrap();
        let mut child = command.spawn().expect("unshare (Debian package util-linux)");
        let (commands, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, commands, output }
    }

    /// Panics unless it succeeds.
    fn run(&mut self, command: &str) -> String {
        writeln!(self.commands, "{command}\necho \"status $?\"").unwrap();
        let mut output = String::new();
        loop {
            let mut line = String::new();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "{command}: the shell has ended\n{output}");
            match line.trim().strip_prefix("status ") {
                Some("0") => return output,
                Some(status) => panic!("{command}: status {status}\n{output}"),
                None => output.push_str(&line),
            }
        }
    }

    /// In the background, with its output in a file.
    fn start(&mut self, command: &str) {
        self.run(&format!("{command} >/run/log 2>&1 &"));
    }

    /// Until a command succeeds.
    fn await_success(&mut self, command: &str) {
        self.run(&format!(
            "n=0; until {command} >/run/awaited 2>&1; do n=$((n + 1)); \
             [ $n -lt 300 ] || {{ cat /run/awaited /run/log; break; }}; sleep 0.1; done; [ $n -lt 300 ]"
        ));
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // With it goes the first process of its PID namespace, and so do all others there.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Its rules are loaded.
const REJECTS: &str = "nft list chain inet firewalld filter_FORWARD | grep -q 'reject with icmpx'";

/// What is no VIP's: a way of the client's to the pod itself.
fn reach_pods(world: &World) {
    netns::ip(&world.client, "route add 10.99.1.0/24 via 192.0.2.11\n").unwrap();
    let direct = world.connect(PODS[0], 8080).expect("nothing is in the way");
    assert_eq!(direct.pod, SocketAddr::from((PODS[0], 8080)));
}

#[test]
fn firewalld_itself_passes_what_is_translated_also_when_it_reloads() {
    let world = World::new("firewalld-real");
    reach_pods(&world);
    world.a.apply(&only(0));
    let mut open = world.connect(VIP, 80).unwrap();
    let mut shell = Shell::on(&world.a);
    shell.start("dbus-daemon --system --nofork --nopidfile");
    shell.await_success("test -S /run/dbus/system_bus_socket");
    shell.start("firewalld --nofork --nopid");
    // Its rules are loaded before it takes signals.
    shell.await_success(
        "dbus-send --system --print-reply --dest=org.fedoraproject.FirewallD1 / org.freedesktop.DBus.Peer.Ping",
    );
    // It is not there for show.
    assert!(world.connect(PODS[0], 8080).is_err(), "what is no VIP's is rejected");
    assert_served(&world);
    assert!(open.is_alive(), "a connection from before");
    // It deletes its table and loads it anew.
    shell.run("nft add chain inet firewalld before");
    shell.run("kill -HUP $!");
    shell.await_success(&format!("! nft list chain inet firewalld before && {REJECTS}"));
    assert!(world.connect(PODS[0], 8080).is_err(), "it is back");
    assert_served(&world);
    assert!(open.is_alive(), "after a reload");
    assert_eq!(open.seen.ip(), IpAddr::from(CLIENT));
}

#[test]
fn ufw_itself_is_passed_beside_kube_proxy_in_iptables_mode_alone() {
    let world = World::new("ufw-real");
    reach_pods(&world);
    // kube-proxy is there first: ufw keeps chains that are not its own.
    FORWARD_DROP.iter().for_each(|rule| world.a.run("iptables-nft", rule));
    let mut shell = Shell::on(&world.a);
    shell.run("ufw --force enable");
    world.a.apply(&only(0));
    let status = shell.run("ufw status verbose");
    assert!(status.contains("Status: active") && status.contains("deny (routed)"), "{status}");
    assert!(world.connect(PODS[0], 8080).is_err(), "what is no VIP's is dropped");
    assert_served(&world);
    shell.run("ufw reload");
    assert_served(&world);
    world.a.run("iptables-nft", "-F KUBE-FORWARD");
    assert_dropped(&world);
}
