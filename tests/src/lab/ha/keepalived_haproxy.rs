//! keepalived and HAProxy on the nodes of the API servers, with the checks, intervals and times of two guides: kubeadm's "High Availability
//! Considerations" (repository kubernetes/kubeadm; with its later check by `http-check connect ssl` and 35 s for clients and servers) and
//! k3s' "Cluster Load Balancer" (repository k3s-io/docs at 10235571). k3s has two machines for them; here they stand on the servers, as at
//! kubeadm, and HAProxy listens on another port than the API server.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Part;
use crate::lab::plan::{API_PORT, Endpoint, Guide, Plan, UPLINK};

/// Writes what they read. Returns the programs with their arguments.
pub fn prepare(
    plan: &Plan,
    endpoint: &Endpoint,
    guide: Guide,
    node: &str,
) -> Result<Vec<(Part, PathBuf, Vec<String>)>> {
    let dir = plan.node_dir(node);
    let (haproxy, keepalived, check) =
        (dir.join("haproxy.cfg"), dir.join("keepalived.conf"), dir.join("check-apiserver.sh"));
    let port = endpoint.port();
    write(&haproxy, 0o644, &balancing(guide, port, &plan.control_plane()))?;
    // Its first node is the master of the guide.
    let before = plan.control_plane().iter().position(|(name, _)| name == node).context("a node of the lab")?;
    let rank = u8::try_from(before)?;
    match guide {
        Guide::Kubeadm => {
            let script =
                format!("#!/bin/sh\nexec curl -sfk --max-time 2 https://localhost:{port}/healthz -o /dev/null\n");
            write(&check, 0o755, &script)?;
            let check = format!("script \"{}\"\n  interval 3\n  weight -2\n  fall 10\n  rise 2", check.display());
            write(&keepalived, 0o644, &election("", &check, 101 - rank, endpoint.address, rank == 0))?;
        }
        Guide::K3s => {
            let security = "global_defs {\n  enable_script_security\n  script_user root\n}\n";
            let check = "script \"/usr/bin/killall -0 haproxy\"\n  interval 2";
            write(&keepalived, 0o644, &election(security, check, 200 - 50 * rank, endpoint.address, rank == 0))?;
        }
    }
    let text = |path: &Path| path.display().to_string();
    // In the foreground, as under a service manager.
    let haproxy = ["-db", "-f", &text(&haproxy)].map(str::to_owned).into();
    let keepalived =
        ["--dont-fork", "--log-console", "--log-detail", "--use-file", &text(&keepalived)].map(str::to_owned).into();
    Ok(vec![
        (Part::Haproxy, "/usr/sbin/haproxy".into(), haproxy),
        (Part::Keepalived, "/usr/sbin/keepalived".into(), keepalived),
    ])
}

fn balancing(guide: Guide, port: u16, members: &[(String, Ipv4Addr)]) -> String {
    let (defaults, check, server) = match guide {
        Guide::Kubeadm => (
            "  retries 1\n  option redispatch\n  timeout connect 5s\n  timeout client 35s\n  timeout server 35s\n  timeout queue 20s\n  \
             timeout check 10s\n",
            "  option httpchk\n  http-check connect ssl\n  http-check send meth GET uri /healthz\n  http-check expect status 200\n",
            "check verify none",
        ),
        // What Debian's own haproxy.cfg has, to which this guide adds.
        Guide::K3s => (
            "  timeout connect 5000\n  timeout client 50000\n  timeout server 50000\n",
            "  option tcp-check\n  default-server inter 10s downinter 5s\n",
            "check",
        ),
    };
    let mut text = format!(
        "defaults\n  mode tcp\n{defaults}frontend apiserver\n  bind *:{port}\n  default_backend apiservers\n\
         backend apiservers\n{check}  balance roundrobin\n"
    );
    for (name, address) in members {
        _ = writeln!(text, "  server {name} {address}:{API_PORT} {server}");
    }
    text
}

fn election(globals: &str, check: &str, priority: u8, address: Ipv4Addr, master: bool) -> String {
    let state = if master { "MASTER" } else { "BACKUP" };
    format!(
        "{globals}vrrp_script check {{\n  {check}\n}}\n\
         vrrp_instance apiserver {{\n  state {state}\n  interface {UPLINK}\n  virtual_router_id 51\n  priority {priority}\n  \
         authentication {{\n    auth_type PASS\n    auth_pass 42\n  }}\n  virtual_ipaddress {{\n    {address}/24\n  }}\n  \
         track_script {{\n    check\n  }}\n}}\n"
    )
}

fn write(path: &Path, mode: u32, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| path.display().to_string())?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).with_context(|| path.display().to_string())
}
