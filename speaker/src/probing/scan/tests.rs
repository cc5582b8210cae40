//! A real segment with a real DHCP server: busybox's udhcpd, in a network namespace of its own.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};

use sheave_api::SubnetScanSpec;

use super::*;
use crate::io::tests::{in_namespace, ip};
use crate::probing::session::tests::{run, session, with_server};

const HOST: &str = "link set lo up\nlink set far up\naddr add 192.0.2.254/24 dev far\n";

struct Udhcpd {
    child: Child,
    /// What it says later goes here: it ends where nobody would read it.
    _told: BufReader<ChildStderr>,
    folder: PathBuf,
}

impl Udhcpd {
    /// Gives out one address.
    fn start(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("sheave-udhcpd-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = |name: &str| folder.join(name).display().to_string();
        let conf = format!(
            "interface far\nstart 192.0.2.100\nend 192.0.2.100\nmax_leases 1\nlease_file {}\npidfile {}\noption subnet 255.255.255.0\n",
            file("leases"),
            file("pid")
        );
        std::fs::write(file("conf"), conf).unwrap();
        std::fs::write(file("leases"), "").unwrap();
        // It looks for a host with the address before it offers it: not for long here.
        let mut command = Command::new("busybox");
        command.args(["udhcpd", "-f", "-a", "50", &file("conf")]).stderr(Stdio::piped());
        let mut child = command.spawn().expect("busybox-static: scripts/setup.sh");
        let mut line = String::new();
        let mut told = BufReader::new(child.stderr.take().unwrap());
        told.read_line(&mut line).unwrap();
        assert!(line.contains("started"), "{line}");
        Self { child, _told: told, folder }
    }

    /// Seconds until the first lease ends, as the server writes it when it stops (busybox: networking/udhcp/dhcpd.h, `dyn_lease`, behind
    /// the time of the file).
    fn lease_seconds(&self) -> Option<u32> {
        let leases = std::fs::read(self.folder.join("leases")).unwrap();
        Some(u32::from_be_bytes(leases.get(8..12)?.try_into().unwrap()))
    }
}

impl Drop for Udhcpd {
    fn drop(&mut self) {
        // SIGTERM: it writes its leases.
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.child.id() as i32), nix::sys::signal::SIGTERM).unwrap();
        self.child.wait().unwrap();
        let lease = self.lease_seconds();
        std::fs::remove_dir_all(&self.folder).unwrap();
        // It holds an offer back for 60 s; a lease is for ten days.
        assert!(lease.is_none_or(|seconds| seconds <= 60), "an address was bound for {lease:?} s");
    }
}

fn wanted(round: i64, last: &[u8], dhcp: bool) -> Wanted {
    let addresses = last.iter().map(|last| Ipv4Addr::new(192, 0, 2, *last)).collect();
    Wanted { probes: Asked { round, addresses }, dhcp }
}

#[test]
fn a_dhcp_server_is_named_with_what_it_offers_and_binds_nothing() {
    in_namespace(|| {
        with_server(
            HOST,
            || Udhcpd::start("offers"),
            || {
                run(async {
                    let mut session = session();
                    let (status, failed) = look(&mut session, wanted(3, &[253, 254], true)).await;
                    assert!(failed.is_none(), "{failed:?}");
                    let host = "02:00:00:00:00:02";
                    let expected = json!({
                        "observedRound": 3,
                        "results": [{"address": "192.0.2.253"}, {"address": "192.0.2.254", "macs": [host]}],
                        "dhcpServers": [{"server": "192.0.2.254", "mac": host, "offered": "192.0.2.100"}],
                    });
                    assert_eq!(status, expected);
                    // Its last address was offered, and bound to nobody.
                    let (again, _) = look(&mut session, wanted(4, &[253], true)).await;
                    assert_eq!(again["dhcpServers"], expected["dhcpServers"]);
                });
            },
        );
    });
}

#[test]
fn without_a_server_there_is_none_and_unasked_nothing_is_sent() {
    in_namespace(|| {
        with_server(
            HOST,
            || (),
            || {
                run(async {
                    let mut session = session();
                    let began = std::time::Instant::now();
                    let (status, failed) = look(&mut session, wanted(1, &[7], false)).await;
                    assert!(failed.is_none() && began.elapsed() < Duration::from_secs(3), "{failed:?}");
                    assert_eq!(status, json!({"observedRound": 1, "results": [{"address": "192.0.2.7"}]}));
                    let (status, failed) = look(&mut session, wanted(2, &[7], true)).await;
                    assert!(failed.is_none() && status["dhcpServers"].is_null(), "{failed:?} {status}");
                });
            },
        );
    });
}

#[test]
fn a_cut_cable_is_a_problem_and_no_free_address() {
    in_namespace(|| {
        ip("link set far down\n");
        run(async {
            let (status, failed) = look(&mut session(), wanted(2, &[7], true)).await;
            assert_eq!(status, json!({"observedRound": 2, "problem": "no_carrier"}));
            assert_eq!(failed.map(|(reason, _)| reason), Some("no_carrier"));
        });
    });
}

#[test]
fn a_request_arrives_with_all_its_fields() {
    let spec = SubnetScanSpec { round: 5, addresses: vec!["192.0.2.7".into(), "nonsense".into()], dhcp: true };
    assert_eq!(SubnetScan::new("n1", spec).asked(), wanted(5, &[7], true));
}
