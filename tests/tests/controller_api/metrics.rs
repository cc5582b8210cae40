//! Metrics that others than the pod may read: over TLS, and only for those whom the API server lets read them.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use sheave_tests::lab::wait_for;

use super::objects::{Objects, SOON};
use super::replica::{self, NAMESPACE, Replica};

/// A third replica, which does not lead; its ServiceAccount is the one of the others.
pub fn chapter(objects: &Objects, kubeconfig: &Path, folder: &Path) -> Result<()> {
    let overlay = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/overlays/metrics");
    let all = objects.0.kubectl(&["kustomize", &overlay.to_string_lossy()])?;
    for flag in ["--metrics-listen=0.0.0.0:7475", "--metrics-listen=0.0.0.0:7483"] {
        ensure!(all.contains(flag), "the component does not set {flag}");
    }
    let added: Vec<&str> =
        all.split("\n---\n").filter(|document| document.contains("\n  name: sheave-metrics-")).collect();
    ensure!(added.len() == 2, "{added:?}");

    let address = replica::free("0.0.0.0:0")?.to_string();
    let replica = Replica::start("open", kubeconfig, folder, &[replica::METRICS_LISTEN, &address])?;
    let port = replica.metrics.port();
    ensure!(plain(port)?.is_none(), "metrics are readable without TLS");
    let token = objects.0.kubectl(&["-n", "default", "create", "token", "default"])?;
    ensure!(scrape(port, Some(token.trim()))?.0 == 503, "without the right to ask the API server nobody is let in");
    ensure!(replica.log().contains("the API server was asked who may read"), "{}", replica.log());

    objects.0.apply(&added.join("\n---\n"))?;
    wait_for("the right to ask", SOON, || Ok((scrape(port, Some("nonsense"))?.0 == 401).then_some(())))?;
    ensure!(scrape(port, None)?.0 == 401, "no token");
    ensure!(scrape(port, Some(token.trim()))?.0 == 403, "a token of somebody who may not");

    objects.0.kubectl(&["-n", NAMESPACE, "create", "serviceaccount", "prometheus"])?;
    let account = format!("--serviceaccount={NAMESPACE}:prometheus");
    let role = "--clusterrole=sheave-metrics-reader";
    objects.0.kubectl(&["create", "clusterrolebinding", "prometheus", role, &account])?;
    let token = objects.0.kubectl(&["-n", NAMESPACE, "create", "token", "prometheus"])?;
    let (status, body) = scrape(port, Some(token.trim()))?;
    ensure!(status == 200 && body.contains("sheave_controller_leader 0"), "{status}: {body:.200}");

    objects.0.kubectl(&["delete", "clusterrolebinding", "prometheus", "sheave-metrics-auth"])?;
    objects.0.kubectl(&["delete", "clusterrole", "sheave-metrics-reader"])?;
    objects.0.kubectl(&["-n", NAMESPACE, "delete", "serviceaccount", "prometheus"]).map(drop)
}

/// Status and body.
fn scrape(port: u16, token: Option<&str>) -> Result<(u16, String)> {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--insecure", "--max-time", "5", "--write-out", "\n%{http_code}"]);
    if let Some(token) = token {
        curl.args(["--header", &format!("Authorization: Bearer {token}")]);
    }
    let output = curl.arg(format!("https://127.0.0.1:{port}/metrics")).output().context("start curl")?;
    let text = String::from_utf8(output.stdout)?;
    let Some((body, status)) = text.rsplit_once('\n') else { bail!("curl: {}: {text:?}", output.status) };
    Ok((status.parse()?, body.to_owned()))
}

/// What is answered without TLS.
fn plain(port: u16) -> Result<Option<String>> {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--max-time", "5", &format!("http://127.0.0.1:{port}/metrics")]);
    let output = curl.output().context("start curl")?;
    Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned()))
}
