//! What `kubectl apply` of Sheave's manifests makes, for programs that run the controller themselves.

use std::path::Path;

use anyhow::Result;

use super::Lab;

/// Everything of `manifests/` except what would run pods.
pub fn install(lab: &Lab) -> Result<()> {
    let overlay = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/overlays/lab");
    let all = lab.kubectl(&["kustomize", &overlay.to_string_lossy()])?;
    let runs = |document: &&str| {
        !["Deployment", "DaemonSet", "PodDisruptionBudget"]
            .iter()
            .any(|kind| document.lines().any(|line| line == format!("kind: {kind}")))
    };
    let objects: Vec<&str> = all.split("\n---\n").filter(runs).collect();
    lab.apply(&objects.join("\n---\n"))?;
    for plural in [
        "addresspools",
        "addressprobes",
        "l2advertisements",
        "placements",
        "speakerstates",
        "subnetscans",
        "virtualips",
    ] {
        lab.kubectl(&["wait", "--for=condition=Established", &format!("crd/{plural}.sheave.dev"), "--timeout=10s"])?;
    }
    Ok(())
}
