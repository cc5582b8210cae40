//! What all chapters stand on: two API servers, Services, and what the API servers count.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sheave_tests::lab::{Lab, wait_for};
use sheave_tests::scenario::api::{Api, text};

use super::end;
use super::history::History;
use super::proxy::Proxy;
use super::replica::{self, Replica};
use super::{LEDGER, NAMESPACE, POOLS, SERVICES};

/// Whatever the controller does takes milliseconds once nothing is in its way; the machine may be busy.
pub const SOON: Duration = Duration::from_secs(20);
/// Addresses for benchmarks (RFC 2544), of which no interface here has one.
const POOL: &str = "198.18.0.1-198.18.0.60";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/sheave-system/leases/sheave-controller";

/// One of the two API servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// The one that the test asks.
    First,
    Second,
}

impl Server {
    /// Its network namespace, and the name that its process is recorded by.
    pub const fn role(self) -> &'static str {
        match self {
            Server::First => "cp",
            Server::Second => "cp2",
        }
    }
}

pub struct Ground<'a> {
    pub lab: &'a Lab,
    pub folder: &'a Path,
    pub api: Api,
    /// Kubeconfigs of the controller's account for each API server.
    accounts: [PathBuf; 2],
    /// The way to the second one.
    port: u16,
}

impl<'a> Ground<'a> {
    pub fn prepare(lab: &'a Lab, folder: &'a Path) -> Result<Self> {
        sheave_tests::lab::manifests::install(lab)?;
        let api = Api::open(lab)?;
        api.create("/api/v1/namespaces", &json!({ "metadata": { "name": NAMESPACE } }))?;
        let metadata = json!({ "name": "hardship", "annotations": { "sheave.dev/address-retention": "0s" } });
        let pool = json!({
            "apiVersion": "sheave.dev/v1alpha1", "kind": "AddressPool", "metadata": metadata, "spec": { "addresses": [POOL] },
        });
        api.create(POOLS, &pool)?;
        let port = lab.way_to(Server::Second.role())?;
        let token = lab.kubectl(&["-n", replica::NAMESPACE, "create", "token", "sheave-controller"])?;
        let account = |name| replica::account(lab, folder, name, "sheave-controller", token.trim());
        let accounts = [account("first")?, account("second")?];
        let file = format!("--kubeconfig={}", accounts[1].display());
        lab.kubectl(&[&file, "config", "set", "clusters.lab.server", &format!("https://127.0.0.1:{port}")])?;
        let ground = Self { lab, folder, api, accounts, port };
        ground.wait_ready(Server::Second)?;
        Ok(ground)
    }

    /// A replica that asks this API server alone.
    pub fn replica(&self, server: Server, name: &str, flags: &[&str]) -> Result<Replica> {
        Replica::start(name, &self.accounts[server as usize], self.folder, flags)
    }

    /// A proxy of its own before this API server.
    pub fn proxy(&self, server: Server, name: &str) -> Result<Proxy> {
        let file = format!("--kubeconfig={}", self.accounts[server as usize].display());
        let config = self.lab.kubectl(&[&file, "config", "view", "--raw", "-o", "json"])?;
        Proxy::start(serde_json::from_str(&config)?, self.folder.join(format!("proxy-{name}.kubeconfig")))
    }

    /// A replica that asks what is behind this proxy.
    pub fn replica_behind(&self, proxy: &Proxy, name: &str, flags: &[&str]) -> Result<Replica> {
        Replica::start(name, &proxy.kubeconfig, self.folder, flags)
    }

    /// A replica that leads; no other does.
    pub fn leader_behind(&self, proxy: &Proxy, name: &str, flags: &[&str]) -> Result<Replica> {
        let replica = self.replica_behind(proxy, name, flags)?;
        wait_for(&format!("{name} to lead"), SOON, || Ok(replica.leads()?.then_some(())))?;
        Ok(replica)
    }

    pub fn wait_ready(&self, server: Server) -> Result<()> {
        wait_for(&format!("API server {} to be ready", server.role()), Duration::from_secs(40), || {
            Ok(self.raw(server, "/readyz").ok().filter(|said| said == "ok").map(drop))
        })
    }

    /// What the API server answers to the administrator.
    fn raw(&self, server: Server, path: &str) -> Result<String> {
        let other = format!("--server=https://127.0.0.1:{}", self.port);
        match server {
            Server::First => self.lab.kubectl(&["get", "--raw", path]),
            Server::Second => self.lab.kubectl(&[&other, "get", "--raw", path]),
        }
    }

    /// All metrics of an API server.
    pub fn counts(&self, server: Server) -> Result<Counts> {
        self.raw(server, "/metrics").map(Counts)
    }

    /// A signal for etcd, or an API server.
    pub fn signal(&self, process: &str, signal: Signal) -> Result<()> {
        let state = self.lab.state()?;
        state.processes.get(process).with_context(|| format!("no process {process}"))?.signal(signal)
    }

    /// The kernel ends every connection of the second API server's clients.
    pub fn end_connections(&self) -> Result<()> {
        let servers = self.lab.state()?.plan.control_plane();
        let (role, address) = servers.get(Server::Second as usize).context("a second API server")?;
        // Its own clients are on the loopback.
        let own = format!("src {address} and sport = :6443");
        let done = self.lab.netns_command(role, "ss")?.args(["-K", "-t", "state", "established", &own]).output();
        let done = done.context("ss")?;
        ensure!(done.status.success(), "ss -K: {}", String::from_utf8_lossy(&done.stderr));
        Ok(())
    }

    pub fn create(&self, name: &str) -> Result<()> {
        self.create_with(name, &json!({}))
    }

    pub fn create_with(&self, name: &str, annotations: &Value) -> Result<()> {
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "annotations": annotations },
            "spec": { "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": [{ "port": 80 }] },
        });
        self.api.create(SERVICES, &service).map(drop)
    }

    pub fn delete(&self, name: &str) -> Result<()> {
        self.api.delete(&format!("{SERVICES}/{name}"))
    }

    /// What it shows; empty if nothing, also where there is no such Service.
    pub fn shown(&self, name: &str) -> Result<String> {
        let service = self.api.find(&format!("{SERVICES}/{name}"))?.unwrap_or_default();
        Ok(text(&service, "/status/loadBalancer/ingress/0/ip").to_owned())
    }

    /// Status and reason of its condition.
    pub fn condition(&self, name: &str) -> Result<(String, String)> {
        let service = self.api.get(&format!("{SERVICES}/{name}"))?;
        let (status, reason) = end::condition(&service);
        Ok((status.to_owned(), reason.to_owned()))
    }

    pub fn wait_shown(&self, name: &str) -> Result<String> {
        wait_for(&format!("{name} to show an address"), SOON, || {
            Ok(Some(self.shown(name)?).filter(|address| !address.is_empty()))
        })
    }

    /// Entries of the ledger: address, uid, names of the Services.
    pub fn ledger(&self) -> Result<Vec<(String, String, String)>> {
        let entry = |entry: &Value| {
            let names = entry["spec"]["services"].as_array().into_iter().flatten().map(|one| text(one, "/name"));
            let names = names.collect::<Vec<_>>().join(" ");
            (text(entry, "/spec/address").to_owned(), text(entry, "/metadata/uid").to_owned(), names)
        };
        Ok(self.api.list(LEDGER)?.iter().map(entry).collect())
    }

    /// The version of everything as it is now.
    pub fn version(&self) -> Result<u64> {
        text(&self.api.get(LEDGER)?, "/metadata/resourceVersion").parse().context("resourceVersion")
    }

    /// How often the lead has changed hands.
    pub fn terms(&self) -> Result<u64> {
        self.api.get(LEASE)?["spec"]["leaseTransitions"].as_u64().context("leaseTransitions")
    }

    /// Every Service has an address or a refusal that is true.
    pub fn wait_true(&self) -> Result<()> {
        end::wait_true(&self.api)
    }

    /// All Services go, and nothing is left. What has happened is judged.
    pub fn end(&self, history: History) -> Result<()> {
        self.clear()?;
        let report = history.end(&self.api)?;
        eprintln!("  {report}");
        ensure!(report.violations.is_empty(), "{}", report.violations.join("\n"));
        Ok(())
    }

    pub fn clear(&self) -> Result<()> {
        for service in self.api.list(SERVICES)? {
            self.delete(text(&service, "/metadata/name"))?;
        }
        wait_for("nothing to be left of deleted Services", SOON, || {
            Ok((self.api.list(LEDGER)?.is_empty() && self.api.list(SERVICES)?.is_empty()).then_some(()))
        })
    }
}

/// The metrics of an API server at one moment.
pub struct Counts(String);

impl Counts {
    /// The sum of all samples of this name with all of these labels, as the text has them: `verb="LIST"`.
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let samples = self.0.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{'));
        let samples = samples.filter(|sample| labels.iter().all(|label| sample.contains(label)));
        samples.filter_map(|sample| sample.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }

    /// Requests that were answered, with all of these labels.
    pub fn requests(&self, labels: &[&str]) -> f64 {
        self.sum("apiserver_request_total", labels)
    }

    /// Lists of this kind, in pages or streamed.
    pub fn lists(&self, resource: &str) -> f64 {
        let resource = format!("resource=\"{resource}\"");
        self.requests(&["verb=\"LIST\"", &resource])
            + self.sum("apiserver_watch_list_duration_seconds_count", &[&resource])
    }

    /// Writes of what the controller writes, whatever became of them.
    pub fn writes(&self) -> f64 {
        let of = |resource: &str| {
            let writes = ["POST", "PUT", "PATCH", "DELETE"].map(|verb| format!("verb=\"{verb}\""));
            writes.iter().map(|verb| self.requests(&[verb, &format!("resource=\"{resource}\"")])).sum::<f64>()
        };
        ["services", "virtualips", "addresspools"].into_iter().map(of).sum()
    }
}
