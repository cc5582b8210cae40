//! The API server, as an administrator's program talks to it: no limit of its own, on connections of its own.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::future::try_join_all;
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::{Api, Client, Config};
use serde_json::Value;
use sheave_tests::lab::Lab;

use super::watch::Watch;

/// Where the Services live.
pub const NAMESPACE: &str = "bench";
/// That create, change and delete at the same time, each as fast as it is answered.
pub const WRITERS: usize = 8;

#[derive(Clone)]
pub struct Cluster {
    client: Client,
}

/// A kind of objects.
#[derive(Clone, Copy)]
pub struct Kind {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    namespace: Option<&'static str>,
}

pub const SERVICES: Kind = namespaced("", "v1", "Service", "services", NAMESPACE);
pub const SLICES: Kind = namespaced("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", NAMESPACE);
pub const LEDGER: Kind =
    Kind { group: "sheave.dev", version: "v1alpha1", kind: "VirtualIP", plural: "virtualips", namespace: None };

const fn namespaced(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    namespace: &'static str,
) -> Kind {
    Kind { group, version, kind, plural, namespace: Some(namespace) }
}

impl Cluster {
    /// The caller is a thread in the lab's network.
    pub async fn open(lab: &Lab) -> Result<Self> {
        let kubeconfig = Kubeconfig::read_from(lab.kubeconfig_inside())?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(Self { client: Client::try_from(config)? })
    }

    pub fn objects(&self, kind: Kind) -> Api<DynamicObject> {
        let gvk = GroupVersionKind::gvk(kind.group, kind.version, kind.kind);
        let resource = ApiResource::from_gvk_with_plural(&gvk, kind.plural);
        match kind.namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        }
    }

    pub async fn watch(&self, kind: Kind) -> Result<Watch> {
        Watch::start(self.objects(kind)).await.with_context(|| kind.plural.to_owned())
    }

    /// The moment at which the API server acknowledged it.
    pub async fn create(&self, kind: Kind, object: Value) -> Result<Instant> {
        let object: DynamicObject = serde_json::from_value(object)?;
        let created = self.objects(kind).create(&PostParams::default(), &object).await;
        created.with_context(|| format!("create {} {:?}", kind.kind, object.metadata.name))?;
        Ok(Instant::now())
    }

    pub async fn patch_status(&self, kind: Kind, name: &str, status: &Value) -> Result<()> {
        let patched = self.objects(kind).patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await;
        patched.map(drop).with_context(|| format!("patch the status of {} {name}", kind.kind))
    }

    /// The moment before it was asked for.
    pub async fn delete(&self, kind: Kind, name: &str) -> Result<Instant> {
        let asked = Instant::now();
        self.objects(kind).delete(name, &DeleteParams::default()).await.with_context(|| format!("delete {name}"))?;
        Ok(asked)
    }
}

/// Does something for each number below `count`, by all writers. Returns how long it took.
pub async fn by_writers(count: usize, work: impl AsyncFn(usize) -> Result<()>) -> Result<Duration> {
    let began = Instant::now();
    let numbers = std::cell::RefCell::new(0..count);
    let writer = |_| async {
        loop {
            let Some(number) = numbers.borrow_mut().next() else { return Ok(()) };
            work(number).await?;
        }
    };
    try_join_all((0..WRITERS).map(writer)).await.map(|_: Vec<()>| began.elapsed())
}
