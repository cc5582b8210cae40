//! What users may do who are bound to Kubernetes' own roles `view`, `edit` and `admin`: in one namespace, and in all.

use anyhow::{Context, Result, ensure};
use sheave_tests::lab::{Lab, wait_for};

use super::objects::Objects;
use super::rights::{Asked, allowed};
use super::speaker_state::IN_FORCE;

const NAMESPACE: &str = "team";
/// Nobody may change one whose fields decide who gets which address.
const GRANTS: [&str; 2] = ["addresspools", "l2advertisements"];
/// Written by the controller and the speakers alone.
const WRITTEN_BY_SHEAVE: [&str; 4] = ["virtualips", "speakerstates", "addressprobes", "subnetscans"];
const READ: [&str; 5] = ["addresspools", "l2advertisements", "placements", "speakerstates", "virtualips"];

pub fn chapter(lab: &Lab, objects: &Objects) -> Result<()> {
    lab.kubectl(&["create", "namespace", NAMESPACE])?;
    for role in ["view", "edit", "admin"] {
        let (inside, all) = (format!("--user=team-{role}"), format!("--user=all-{role}"));
        let role = format!("--clusterrole={role}");
        lab.kubectl(&["-n", NAMESPACE, "create", "rolebinding", &inside[7..], &role, &inside])?;
        lab.kubectl(&["create", "clusterrolebinding", &all[7..], &role, &all])?;
    }
    let question = |user: &str, verb: &str, kind: &str| Asked::user(user, &format!("{verb} {kind}.sheave.dev"));
    // Each role has what the one before has.
    wait_for("the roles to be aggregated", IN_FORCE, || {
        let last =
            [("create", "placements"), ("list", "virtualips")].map(|(verb, kind)| question("all-admin", verb, kind));
        Ok(allowed(objects, &last)?.iter().all(|may| *may).then_some(()))
    })?;
    let mut asked: Vec<(bool, Asked)> = Vec::new();
    let mut expect = |may: bool, user: &str, verb: &str, kind: &str| asked.push((may, question(user, verb, kind)));
    for kind in READ {
        for verb in ["get", "list", "watch"] {
            ["all-view", "all-edit", "all-admin"].iter().for_each(|user| expect(true, user, verb, kind));
        }
    }
    for user in ["all-view", "all-edit", "all-admin", "team-view", "team-edit", "team-admin"] {
        ["addressprobes", "subnetscans"].iter().for_each(|kind| expect(false, user, "list", kind));
        for kind in GRANTS.iter().chain(&WRITTEN_BY_SHEAVE) {
            let verbs = ["create", "update", "patch", "delete", "deletecollection"];
            verbs.iter().for_each(|verb| expect(false, user, verb, kind));
        }
        // Who has one namespace sees none of them.
        READ.iter().filter(|_| user.starts_with("team-")).for_each(|kind| expect(false, user, "list", kind));
        let places = ["all-edit", "all-admin"].contains(&user);
        ["create", "delete"].iter().for_each(|verb| expect(places, user, verb, "placements"));
    }
    let (expected, asked): (Vec<bool>, Vec<Asked>) = asked.into_iter().unzip();
    for ((asked, may), expected) in asked.iter().zip(allowed(objects, &asked)?).zip(expected) {
        ensure!(may == expected, "{} may {}: {may}", asked.user, asked.words);
    }
    requests(lab).context("requests")?;
    lab.kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"])?;
    lab.kubectl(&["delete", "clusterrolebinding", "all-view", "all-edit", "all-admin"]).map(drop)
}

/// Real ones: the API server admits them, and refuses them.
fn requests(lab: &Lab) -> Result<()> {
    let pool = "apiVersion: sheave.dev/v1alpha1\nkind: AddressPool\nmetadata: {name: grabbed}\nspec: {addresses: [192.0.2.0/24]}";
    let placement = "apiVersion: sheave.dev/v1alpha1\nkind: Placement\nmetadata: {name: drain-node1}\nspec: {mode: Drain, node: node1}";
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: team}\n\
                   spec: {type: LoadBalancer, loadBalancerClass: example.com/none, ports: [{port: 80}]}";
    for user in ["team-admin", "all-admin", "all-edit"] {
        refused(lab, user, pool, "addresspools.sheave.dev")?;
    }
    for user in ["team-edit", "team-admin", "all-view"] {
        refused(lab, user, placement, "placements.sheave.dev")?;
    }
    applied(lab, "team-edit", service)?.map_err(anyhow::Error::msg).context("a Service of one's own namespace")?;
    applied(lab, "all-edit", placement)?.map_err(anyhow::Error::msg).context("a Placement")?;
    let seen = lab.kubectl(&["--as=all-view", "get", "placements", "-o", "name"])?;
    ensure!(seen.trim() == "placement.sheave.dev/drain-node1", "{seen}");
    lab.kubectl(&["--as=all-edit", "delete", "placement", "drain-node1"]).map(drop)
}

fn refused(lab: &Lab, user: &str, object: &str, kind: &str) -> Result<()> {
    let Err(said) = applied(lab, user, object)? else { anyhow::bail!("{user} could apply {object}") };
    ensure!(said.contains("Forbidden") && said.contains(kind) && said.contains(user), "{user}: {said}");
    Ok(())
}

/// Server-side: one request, which tells what is forbidden.
fn applied(lab: &Lab, user: &str, object: &str) -> Result<Result<(), String>> {
    super::speaker_state::server_side(lab, &lab.kubeconfig(), object, &[&format!("--as={user}")])
}
