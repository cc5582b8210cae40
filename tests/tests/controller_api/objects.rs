//! Pools, Services and the ledger, as a user with kubectl sees them.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sheave_tests::lab::{Lab, wait_for};
use sheave_tests::scenario::api::Api;

/// How long anything that the controller does may take here. It takes milliseconds; the machine may be busy with other clusters.
pub const SOON: Duration = Duration::from_secs(30);
/// A deletion waits for the controller, which may just be starting.
const GONE: Duration = Duration::from_secs(60);

/// Where the API server has the objects of a kind, of namespace `default` where there are several.
fn collection(kind: &str) -> Option<String> {
    Some(match kind.strip_suffix('s').unwrap_or(kind) {
        "service" => "/api/v1/namespaces/default/services".into(),
        "events.events.k8s.io" => "/apis/events.k8s.io/v1/namespaces/default/events".into(),
        kind @ ("node" | "namespace") => format!("/api/v1/{kind}s"),
        kind @ ("addresspool" | "virtualip" | "speakerstate" | "l2advertisement" | "placement" | "addressprobe"
        | "subnetscan") => {
            format!("/apis/sheave.dev/v1alpha1/{kind}s")
        }
        _ => return None,
    })
}

/// kubectl with arguments, and what follows from it.
pub struct Objects<'a>(pub &'a Lab, Api);

impl<'a> Objects<'a> {
    pub fn new(lab: &'a Lab) -> Result<Self> {
        Ok(Self(lab, Api::open(lab)?))
    }

    /// What is freed is free at once: the chapters count on the lowest address.
    pub fn pool(&self, name: &str, addresses: &str) -> Result<()> {
        self.pool_with(name, &format!("addresses: ['{addresses}']"))
    }

    /// The same with this spec, the fields of a flow mapping.
    pub fn pool_with(&self, name: &str, spec: &str) -> Result<()> {
        let metadata = format!("metadata: {{name: {name}, annotations: {{sheave.dev/address-retention: 0s}}}}");
        let object = format!("apiVersion: sheave.dev/v1alpha1\nkind: AddressPool\n{metadata}\nspec: {{{spec}}}");
        self.apply("addresspool", name, &object)
    }

    /// As `kubectl apply`, without one: of a known kind, the object of this name.
    pub fn apply(&self, kind: &str, name: &str, object: &str) -> Result<()> {
        let path = collection(kind).with_context(|| format!("kind {kind}"))?;
        self.1.apply(&format!("{path}/{name}"), object).map(drop)
    }

    /// What the API server says to an object that it must not admit.
    pub fn refusal(&self, kind: &str, object: &str) -> Result<String> {
        let path = collection(kind).with_context(|| format!("kind {kind}"))?;
        match self.1.create_yaml(&path, object) {
            Ok(_) => bail!("the API server admits\n{object}"),
            Err(error) => Ok(format!("{error:#}")),
        }
    }

    /// A merge patch of an object, as `kubectl patch --type=merge`; `name` may end in `/status`.
    pub fn patch(&self, kind: &str, name: &str, patch: &Value) -> Result<()> {
        let path = collection(kind).with_context(|| format!("kind {kind}"))?;
        self.1.patch(&format!("{path}/{name}"), patch).map(drop)
    }

    /// Whether there is such an object.
    pub fn exists(&self, kind: &str, name: &str) -> Result<bool> {
        let path = collection(kind).with_context(|| format!("kind {kind}"))?;
        Ok(self.1.find(&format!("{path}/{name}"))?.is_some())
    }

    /// A Service of type LoadBalancer; `more` is added to its spec.
    pub fn service(&self, name: &str, annotations: &str, more: &str) -> Result<()> {
        let object = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, annotations: {{{annotations}}}}}\n\
             spec: {{type: LoadBalancer, selector: {{app: {name}}}, ports: [{{port: 80}}]{more}}}"
        );
        self.apply("service", name, &object)
    }

    /// The same with these ports.
    pub fn service_with(&self, name: &str, ports: &str, more: &str) -> Result<()> {
        let object = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
             spec: {{type: LoadBalancer, selector: {{app: {name}}}, ports: {ports}{more}}}"
        );
        self.apply("service", name, &object)
    }

    /// `status.loadBalancer.ingress[0].ports` of a Service.
    pub fn ports(&self, service: &str) -> Result<Value> {
        Ok(self.get(&["service", service])?["status"]["loadBalancer"]["ingress"][0]["ports"].take())
    }

    /// As `kubectl get`. What is asked for often is read without one: its start takes longer than the answer.
    pub fn get(&self, what: &[&str]) -> Result<Value> {
        let known = what.first().and_then(|kind| collection(kind));
        match (known, what) {
            (Some(path), [_]) => return self.1.get(&path),
            (Some(path), [_, name]) if !name.starts_with('-') => return self.1.get(&format!("{path}/{name}")),
            _ => {}
        }
        Ok(serde_json::from_str(&self.0.kubectl(&[&["get", "-o", "json"], what].concat())?)?)
    }

    /// Makes an object in this collection, and returns what the API server answers.
    pub fn create(&self, collection: &str, object: &Value) -> Result<Value> {
        self.1.create(collection, object)
    }

    /// As `kubectl delete`: returns when it is gone.
    pub fn delete(&self, kind: &str, name: &str) -> Result<()> {
        let Some(path) = collection(kind) else {
            return self.0.kubectl(&["delete", kind, name, "--wait=true"]).map(drop);
        };
        let path = format!("{path}/{name}");
        self.1.find(&path)?.with_context(|| format!("{kind} {name} is not there"))?;
        self.1.delete(&path)?;
        wait_for(&format!("{kind} {name} to be gone"), GONE, || Ok(self.1.find(&path)?.is_none().then_some(())))
    }

    /// A third-party change of a Service's status.
    pub fn third_party_status(&self, service: &str, ingress: &str) -> Result<()> {
        self.third_party_status_by("kubectl-patch", service, ingress)
    }

    /// The same by this field manager.
    pub fn third_party_status_by(&self, manager: &str, service: &str, ingress: &str) -> Result<()> {
        let ingress: Value = serde_json::from_str(ingress)?;
        let patch = json!({ "status": { "loadBalancer": { "ingress": ingress } } });
        self.patch("service", &format!("{service}/status?fieldManager={manager}"), &patch)
    }

    /// What the Service shows: (ip, ipMode).
    pub fn shown(&self, service: &str) -> Result<Option<(String, String)>> {
        let service = self.get(&["service", service])?;
        let ingress = &service["status"]["loadBalancer"]["ingress"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
        Ok(ingress.get(0).map(|entry| (text(&entry["ip"]), text(&entry["ipMode"]))))
    }

    /// (status, reason, message) of our condition on a Service.
    pub fn condition(&self, service: &str) -> Result<(String, String, String)> {
        let service = self.get(&["service", service])?;
        let conditions = service["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let ours = conditions.iter().find(|condition| condition["type"] == "sheave.dev/Allocated");
        let text = |field: &str| ours.and_then(|c| c[field].as_str()).unwrap_or_default().to_string();
        Ok((text("status"), text("reason"), text("message")))
    }

    /// (status, reason, message) of a pool.
    pub fn pool_condition(&self, pool: &str) -> Result<(String, String, String)> {
        let pool = self.get(&["addresspool", pool])?;
        let text = |field: &str| pool["status"]["conditions"][0][field].as_str().unwrap_or_default().to_string();
        Ok((text("status"), text("reason"), text("message")))
    }

    /// Waits until the status of a pool has these counts: it follows within a second.
    pub fn wait_counts(&self, pool: &str, expected: &[(&str, i64)]) -> Result<()> {
        wait_for(&format!("pool {pool} to count {expected:?}"), SOON, || {
            let pool = self.get(&["addresspool", pool])?;
            Ok(expected.iter().all(|(field, count)| pool["status"][field] == *count).then_some(()))
        })
    }

    /// The ledger: address → (uid of the entry, name of the Service).
    pub fn ledger(&self) -> Result<BTreeMap<String, (String, String)>> {
        let list = self.get(&["virtualips"])?;
        let items = list["items"].as_array().context("a list")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
        Ok(items
            .iter()
            .map(|vip| {
                let value = (text(&vip["metadata"]["uid"]), text(&vip["spec"]["services"][0]["name"]));
                (text(&vip["spec"]["address"]), value)
            })
            .collect())
    }

    /// Waits until the Service shows this address, as a VIP, and the ledger has the same.
    pub fn wait_shown(&self, service: &str, address: &str) -> Result<()> {
        wait_for(&format!("{service} to have {address}"), SOON, || {
            let shown = self.shown(service)? == Some((address.to_string(), "VIP".to_string()));
            let granted = self.ledger()?.get(address).is_some_and(|(_, name)| name == service);
            Ok((shown && granted).then_some(()))
        })
    }

    /// Waits until the Service shows nothing, for this reason.
    pub fn wait_refused(&self, service: &str, reason: &str) -> Result<()> {
        wait_for(&format!("{service} to be refused: {reason}"), SOON, || {
            let (status, found, _) = self.condition(service)?;
            Ok((status == "False" && found == reason && self.shown(service)?.is_none()).then_some(()))
        })
    }

    pub fn wait_ledger(&self, addresses: &[&str]) -> Result<()> {
        wait_for(&format!("the ledger to be {addresses:?}"), SOON, || {
            Ok(self.ledger()?.keys().map(String::as_str).eq(addresses.iter().copied()).then_some(()))
        })
    }

    /// Waits for an Event about a Service, of this type and reason, and returns its message.
    pub fn wait_event(&self, service: &str, type_: &str, reason: &str) -> Result<String> {
        wait_for(&format!("an Event {reason} about {service}"), SOON, || {
            let events = self.get(&["events.events.k8s.io"])?;
            let about = |event: &&Value| {
                event["regarding"]["name"] == service && event["reason"] == reason && event["type"] == type_
            };
            let found = events["items"].as_array().and_then(|items| items.iter().find(about).cloned());
            Ok(found.map(|event| event["note"].as_str().unwrap_or_default().to_string()))
        })
    }
}
