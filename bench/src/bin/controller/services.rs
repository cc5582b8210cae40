//! The Services: what they look like, and how they are made and removed.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::cluster::{Cluster, SERVICES, SLICES, by_writers};

/// Services that are alike but for their names.
pub struct Services {
    pub count: usize,
    pub class: &'static str,
    /// Annotation of the key under which Services share an address.
    sharing: &'static str,
}

impl Services {
    pub fn new(count: usize, class: &'static str, sharing: &'static str) -> Self {
        Self { count, class, sharing }
    }

    /// The same, of a class that no controller serves.
    pub fn of_no_controller(&self) -> Self {
        Self { class: "bench.sheave.dev/none", ..*self }
    }

    /// As many as there are Services, up to what leaves some room below the 4,096 VIPs of a cluster: then several share one.
    pub fn addresses(&self) -> usize {
        self.count.min(ADDRESSES)
    }

    pub fn name(number: usize) -> String {
        format!("service-{number:05}")
    }

    /// One of them. Those that share an address have ports of their own.
    fn service(&self, number: usize) -> Value {
        let (key, round) = (number % self.addresses(), number / self.addresses());
        let annotations = match self.count > self.addresses() {
            true => json!({ self.sharing: format!("key-{key}") }),
            false => json!({}),
        };
        self.object(&Self::name(number), &annotations, 80 + round)
    }

    /// One more, with an address of its own.
    pub fn alone(&self, name: &str) -> Value {
        self.object(name, &json!({}), 80)
    }

    /// Without a selector: EndpointSlices are the harness's, so that no other controller has work with it.
    fn object(&self, name: &str, annotations: &Value, port: usize) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": name, "annotations": annotations },
            "spec": {
                "type": "LoadBalancer", "loadBalancerClass": self.class, "allocateLoadBalancerNodePorts": false,
                "ports": [{ "port": port }],
            },
        })
    }

    pub async fn create(&self, cluster: &Cluster) -> Result<Duration> {
        by_writers(self.count, async |number| cluster.create(SERVICES, self.service(number)).await.map(drop)).await
    }

    /// Two endpoints each.
    pub async fn create_slices(&self, cluster: &Cluster) -> Result<Duration> {
        let slice = |number: usize| {
            let (name, [_, a, b, c]) = (Self::name(number), (2 * number as u32).to_be_bytes());
            let endpoint = |last: u8| json!({ "addresses": [format!("10.{}.{b}.{}", 128 + a, c | last)], "conditions": { "ready": true } });
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": { "name": name, "labels": { "kubernetes.io/service-name": name } },
                "endpoints": [endpoint(0), endpoint(1)], "ports": [{ "name": "", "port": 8080, "protocol": "TCP" }],
            })
        };
        by_writers(self.count, async |number| cluster.create(SLICES, slice(number)).await.map(drop)).await
    }

    /// A status as a controller would write it, and nothing else.
    pub async fn patch_statuses(&self, cluster: &Cluster) -> Result<Duration> {
        let patch = |number: usize| {
            let [_, _, a, b] = (number as u32).to_be_bytes();
            json!({ "status": { "loadBalancer": { "ingress": [{ "ip": format!("198.19.{a}.{b}"), "ipMode": "VIP" }] } } })
        };
        by_writers(self.count, async |number| cluster.patch_status(SERVICES, &Self::name(number), &patch(number)).await)
            .await
    }

    pub async fn delete(&self, cluster: &Cluster) -> Result<Duration> {
        by_writers(self.count, async |number| cluster.delete(SERVICES, &Self::name(number)).await.map(drop)).await
    }
}

/// The most addresses that all of them have together.
const ADDRESSES: usize = 4_000;
