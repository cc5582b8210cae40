//! A controller of this version with the rights of an older one: it says which are missing, and keeps the lead from nobody.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sheave_tests::lab::{Lab, wait_for};

use super::objects::Objects;
use super::pair::Pair;
use super::replica::{self, NAMESPACE, Replica};

/// Service `four` has 192.168.77.200 when this begins, and when it ends.
pub fn chapters(lab: &Lab, objects: &Objects, pair: &mut Pair, folder: &Path) -> Result<()> {
    lab.apply(&account())?;
    let token = lab.kubectl(&["-n", NAMESPACE, "create", "token", OLD])?;
    let kubeconfig = replica::account(lab, folder, "old", OLD, token.trim())?;
    let replica = Replica::begin("old", &kubeconfig, folder, &[])?;
    names_what_is_missing(&replica).context("what is missing")?;
    leaves_the_lead(objects, pair, &replica).context("the lead")?;
    lab.kubectl(&[
        "create",
        "clusterrolebinding",
        OLD,
        "--clusterrole=sheave-controller",
        &format!("--serviceaccount={NAMESPACE}:{OLD}"),
    ])?;
    works_again(objects, &replica).context("with the rights")?;
    drop(replica);
    pair.fill()?;
    lab.kubectl(&["delete", "clusterrolebinding", OLD, "sheave-controller-old"])?;
    lab.kubectl(&["delete", "clusterrole", OLD])?;
    lab.kubectl(&["-n", NAMESPACE, "delete", "rolebinding,serviceaccount", OLD])?;
    objects.wait_ledger(&["192.168.77.200"])
}

fn names_what_is_missing(replica: &Replica) -> Result<()> {
    for (kind, resource) in MISSING {
        let note = format!("note: not allowed to read {kind}, so no address is granted and this replica does not lead");
        wait_for(&format!("/readyz to name {kind}"), READ, || {
            let answer = replica.readyz()?;
            let line = answer.lines().find(|line| line.starts_with(&note));
            let named = line.is_some_and(|line| line.contains(&format!("resource \"{resource}\"")));
            Ok((answer.starts_with("HTTP/1.1 503") && named).then_some(()))
        })
        .with_context(|| replica.readyz().unwrap_or_else(|error| format!("{error:#}")))?;
        let metric = format!("sheave_controller_rights_missing{{kind=\"{kind}\"}}");
        ensure!(replica.metric(&metric)? == 1.0, "{metric} is not 1");
        let said = format!("not allowed to read {kind}, so no address is granted");
        ensure!(replica.log().matches(&said).count() == 1, "said once: {}", replica.log());
    }
    let waits = replica.readyz()?;
    ensure!(waits.contains("waiting for the first full list of L2Advertisements"), "{waits}");
    ensure!(replica.metric("sheave_controller_rights_missing{kind=\"Services\"}")? == 0.0);
    Ok(())
}

/// It could do nothing with it; the replicas of the older version can.
fn leaves_the_lead(objects: &Objects, pair: &mut Pair, replica: &Replica) -> Result<()> {
    pair.stop()?;
    let began = Instant::now();
    // A replica that competes has a Lease of 5 s soon after it has ended: only the time shows that this one does not.
    while began.elapsed() < LEASE_ENDED {
        ensure!(!replica.leads()?, "it leads after {:?}", began.elapsed());
        std::thread::sleep(Duration::from_millis(200));
    }
    pair.fill()?;
    ensure!(!replica.leads()?, "it leads beside another one");
    objects.service("next", "", "")?;
    objects.wait_shown("next", "192.168.77.201")?;
    objects.delete("service", "next")?;
    pair.stop()?;
    Ok(())
}

fn works_again(objects: &Objects, replica: &Replica) -> Result<()> {
    objects.service("next", "", "")?;
    wait_for("it to be ready", TRIED_AGAIN, || Ok(replica.readyz()?.starts_with("HTTP/1.1 200").then_some(())))?;
    wait_for("it to lead", TRIED_AGAIN, || Ok(replica.leads()?.then_some(())))?;
    objects.wait_shown("next", "192.168.77.201")?;
    let notes = replica.readyz()?;
    ensure!(!notes.contains("not allowed"), "{notes}");
    wait_for("the metric to be 0 again", READ, || {
        Ok((replica.metric("sheave_controller_rights_missing{kind=\"Nodes\"}")? == 0.0).then_some(()))
    })?;
    objects.delete("service", "next")
}

/// The account of a controller before there were guards.
fn account() -> String {
    let binding = |kind: &str, metadata: &str, role: &str| {
        format!(
            "apiVersion: rbac.authorization.k8s.io/v1\nkind: {kind}Binding\nmetadata: {{{metadata}}}\n\
             roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: {kind}, name: {role}}}\n\
             subjects: [{{kind: ServiceAccount, name: {OLD}, namespace: {NAMESPACE}}}]\n---\n"
        )
    };
    format!(
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {OLD}, namespace: {NAMESPACE}}}\n---\n{}{}\
         apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {{name: {OLD}}}\nrules:\n\
         - {{apiGroups: [''], resources: [services, namespaces], verbs: [get, list, watch]}}\n\
         - {{apiGroups: [''], resources: [services/status], verbs: [patch]}}\n\
         - {{apiGroups: [sheave.dev], resources: [addresspools, virtualips], verbs: [get, list, watch]}}\n",
        binding("Role", &format!("name: {OLD}, namespace: {NAMESPACE}"), "sheave-controller"),
        binding("ClusterRole", "name: sheave-controller-old", OLD),
    )
}

const OLD: &str = "old-controller";
/// What is not in that ClusterRole, and its resource.
const MISSING: [(&str, &str); 6] = [
    ("AddressProbes", "addressprobes"),
    ("L2Advertisements", "l2advertisements"),
    ("Nodes", "nodes"),
    ("SpeakerStates", "speakerstates"),
    ("ServiceCIDRs", "servicecidrs"),
    ("EndpointSlice kubernetes", "endpointslices"),
];
/// A list that is refused at once, and the next turn of the loop.
const READ: Duration = Duration::from_secs(10);
/// Longer than a Lease.
const LEASE_ENDED: Duration = Duration::from_secs(8);
/// Watches that fail are tried again after 30 s at most.
const TRIED_AGAIN: Duration = Duration::from_secs(60);
