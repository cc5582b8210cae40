//! What the API server allows whom: the accounts of Sheave's manifests here, users in `roles`.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::objects::Objects;
use super::replica::NAMESPACE;

const CONTROLLER: &str = "sheave-controller";
const SPEAKER: &str = "sheave-speaker";

/// Account, and what it needs: a verb, a resource with its group and perhaps a name, a subresource, a namespace.
const NEEDED: &[(&str, &str)] = &[
    (CONTROLLER, "patch services --subresource=status"),
    (CONTROLLER, "create virtualips.sheave.dev"),
    (CONTROLLER, "create secrets -n sheave-system"),
    (CONTROLLER, "get secrets/sheave-keys -n sheave-system"),
    (SPEAKER, "patch virtualips.sheave.dev --subresource=status"),
    (SPEAKER, "watch endpointslices.discovery.k8s.io"),
    (SPEAKER, "watch speakerstates.sheave.dev"),
    (SPEAKER, "watch l2advertisements.sheave.dev"),
    (SPEAKER, "watch placements.sheave.dev"),
    (SPEAKER, "create speakerstates.sheave.dev"),
    (SPEAKER, "patch speakerstates.sheave.dev"),
    (SPEAKER, "patch speakerstates.sheave.dev --subresource=status"),
    (SPEAKER, "watch addressprobes.sheave.dev"),
    (SPEAKER, "patch addressprobes.sheave.dev --subresource=status"),
    (SPEAKER, "watch subnetscans.sheave.dev"),
    (SPEAKER, "patch subnetscans.sheave.dev --subresource=status"),
    (CONTROLLER, "watch addressprobes.sheave.dev"),
    (CONTROLLER, "create addressprobes.sheave.dev"),
    (CONTROLLER, "patch addressprobes.sheave.dev"),
    (CONTROLLER, "watch secrets/sheave-keys -n sheave-system"),
    (CONTROLLER, "get namespaces/kube-system"),
    (CONTROLLER, "watch namespaces"),
    (CONTROLLER, "watch l2advertisements.sheave.dev"),
    (CONTROLLER, "patch l2advertisements.sheave.dev --subresource=status"),
    (CONTROLLER, "patch virtualips.sheave.dev"),
    (CONTROLLER, "watch nodes"),
    (CONTROLLER, "watch speakerstates.sheave.dev"),
    (CONTROLLER, "watch servicecidrs.networking.k8s.io"),
    (CONTROLLER, "watch endpointslices.discovery.k8s.io/kubernetes -n default"),
    (SPEAKER, "watch secrets/sheave-keys -n sheave-system"),
    (SPEAKER, "get namespaces/kube-system"),
];

const REFUSED: &[(&str, &str)] = &[
    (CONTROLLER, "list secrets -n sheave-system"),
    (CONTROLLER, "get secrets -n sheave-system"),
    (CONTROLLER, "create secrets -n default"),
    (CONTROLLER, "patch services"),
    (CONTROLLER, "patch virtualips.sheave.dev --subresource=status"),
    (CONTROLLER, "patch addresspools.sheave.dev"),
    (CONTROLLER, "patch l2advertisements.sheave.dev"),
    (CONTROLLER, "patch speakerstates.sheave.dev --subresource=status"),
    (CONTROLLER, "patch addressprobes.sheave.dev --subresource=status"),
    (CONTROLLER, "delete addressprobes.sheave.dev"),
    (SPEAKER, "patch addressprobes.sheave.dev"),
    (SPEAKER, "create addressprobes.sheave.dev"),
    (SPEAKER, "create subnetscans.sheave.dev"),
    (SPEAKER, "patch subnetscans.sheave.dev"),
    (CONTROLLER, "create subnetscans.sheave.dev"),
    (SPEAKER, "delete speakerstates.sheave.dev"),
    (SPEAKER, "update speakerstates.sheave.dev"),
    (SPEAKER, "create virtualips.sheave.dev"),
    (SPEAKER, "create placements.sheave.dev"),
    (SPEAKER, "patch l2advertisements.sheave.dev"),
    (SPEAKER, "patch virtualips.sheave.dev"),
    (SPEAKER, "patch services --subresource=status"),
    (CONTROLLER, "update secrets/sheave-keys -n sheave-system"),
    (CONTROLLER, "update namespaces"),
    (CONTROLLER, "update virtualips.sheave.dev"),
    (CONTROLLER, "list endpointslices.discovery.k8s.io -n default"),
    (CONTROLLER, "patch nodes"),
    (CONTROLLER, "patch nodes --subresource=status"),
    (CONTROLLER, "list pods"),
    (CONTROLLER, "list customresourcedefinitions"),
    (SPEAKER, "list secrets -n sheave-system"),
    (SPEAKER, "get secrets/other -n sheave-system"),
    (SPEAKER, "create secrets -n sheave-system"),
    (SPEAKER, "update secrets/sheave-keys -n sheave-system"),
    (SPEAKER, "list namespaces"),
];

pub fn chapter(objects: &Objects) -> Result<()> {
    let asked: Vec<Asked> =
        NEEDED.iter().chain(REFUSED).map(|(account, words)| Asked::account(account, words)).collect();
    for (number, (asked, is_allowed)) in asked.iter().zip(allowed(objects, &asked)?).enumerate() {
        let needed = number < NEEDED.len();
        ensure!(is_allowed == needed, "{} may {}: {is_allowed}", asked.user, asked.words);
    }
    Ok(())
}

/// A question to the API server's authorizers.
pub struct Asked {
    pub user: String,
    groups: Vec<String>,
    pub words: String,
}

impl Asked {
    pub fn user(user: &str, words: &str) -> Self {
        Self { user: user.into(), groups: vec!["system:authenticated".into()], words: words.into() }
    }

    /// Of Sheave's namespace.
    fn account(name: &str, words: &str) -> Self {
        let user = format!("system:serviceaccount:{NAMESPACE}:{name}");
        let groups = ["system:serviceaccounts", &format!("system:serviceaccounts:{NAMESPACE}"), "system:authenticated"];
        Self { user, groups: groups.map(String::from).into(), words: words.into() }
    }

    fn review(&self) -> Result<Value> {
        let mut words = self.words.split(' ');
        let (verb, what) = (words.next().context("a verb")?, words.next().context("a resource")?);
        let (resource, name) = what.split_once('/').unwrap_or((what, ""));
        let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
        let (mut subresource, mut namespace) = ("", "");
        while let Some(word) = words.next() {
            match word.strip_prefix("--subresource=") {
                Some(named) => subresource = named,
                None if word == "-n" => namespace = words.next().context("a namespace")?,
                None => anyhow::bail!("{word} in {:?}", self.words),
            }
        }
        let attributes = json!({
            "verb": verb, "group": group, "resource": resource, "subresource": subresource, "name": name, "namespace": namespace,
        });
        let spec = json!({ "user": self.user, "groups": self.groups, "resourceAttributes": attributes });
        Ok(json!({ "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec }))
    }
}

/// The answers, in order.
pub fn allowed(objects: &Objects, asked: &[Asked]) -> Result<Vec<bool>> {
    const REVIEWS: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let answer = |asked: &Asked| {
        let answer = objects.create(REVIEWS, &asked.review()?)?;
        answer["status"]["allowed"].as_bool().context("an answer")
    };
    asked.iter().map(answer).collect()
}
