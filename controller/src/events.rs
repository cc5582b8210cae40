//! IO: Events for users. They have a queue of their own and never hold up an allocation; an Event that does not fit is dropped
//! and counted.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use sheave_api::excerpt::bounded;
use sheave_api::{CONTROLLER_NAME, Chain};
use tokio::sync::mpsc;
use tracing::warn;

use crate::metrics::Metrics;
use crate::status::Note;
use crate::view::ServiceKey;

/// The sending end.
#[derive(Clone)]
pub struct Events {
    queue: mpsc::Sender<Event>,
    instance: String,
    metrics: Arc<Metrics>,
}

/// The receiving end, to be spawned.
pub struct Publisher {
    client: Client,
    queue: mpsc::Receiver<Event>,
    metrics: Arc<Metrics>,
}

/// Both ends of a queue.
pub fn channel(client: Client, instance: &str, metrics: Arc<Metrics>) -> (Events, Publisher) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let events = Events { queue: sender, instance: instance.to_string(), metrics: metrics.clone() };
    (events, Publisher { client, queue: receiver, metrics })
}

impl Events {
    /// Queues an Event about a Service.
    pub fn send(&self, service: &ServiceKey, uid: &str, note: Note) {
        let now = Timestamp::now();
        let event = Event {
            metadata: ObjectMeta {
                name: Some(format!("{}.{:x}", service.name, now.as_nanosecond())),
                namespace: Some(service.namespace.clone()),
                ..ObjectMeta::default()
            },
            action: Some("Allocate".to_string()),
            event_time: Some(MicroTime(now)),
            note: Some(bounded(note.message, MAX_NOTE)),
            reason: Some(note.reason.to_string()),
            regarding: Some(ObjectReference {
                api_version: Some("v1".to_string()),
                kind: Some("Service".to_string()),
                namespace: Some(service.namespace.clone()),
                name: Some(service.name.clone()),
                uid: Some(uid.to_string()),
                ..ObjectReference::default()
            }),
            reporting_controller: Some(CONTROLLER_NAME.to_string()),
            reporting_instance: Some(self.instance.clone()),
            type_: Some(if note.warning { "Warning" } else { "Normal" }.to_string()),
            ..Event::default()
        };
        if self.queue.try_send(event).is_err() {
            self.metrics.events_dropped.inc();
        }
    }
}

impl Publisher {
    /// Until every sending end is gone and the queue is empty.
    pub async fn run(self) {
        let Publisher { client, queue, metrics } = self;
        let events = stream::unfold(queue, |mut queue| async { queue.recv().await.map(|event| (event, queue)) });
        events.for_each_concurrent(REQUESTS, |event| publish(&client, &metrics, event)).await;
    }
}

async fn publish(client: &Client, metrics: &Metrics, event: Event) {
    let namespace = event.metadata.namespace.clone().unwrap_or_default();
    let api = Api::<Event>::namespaced(client.clone(), &namespace);
    match tokio::time::timeout(REQUEST, api.create(&PostParams::default(), &event)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => {
            metrics.events_dropped.inc();
            warn!(error = %Chain(&error), "Event not written; dropped");
        }
        Err(_) => {
            metrics.events_dropped.inc();
            warn!("Event not written in time; dropped");
        }
    }
}

/// Bytes that the API server takes; it refuses an Event with more.
const MAX_NOTE: usize = 1024;
/// Some kB each.
const QUEUE: usize = 1024;
/// At a time. An address takes three other writes, of which the writer has eight under way: with fewer here the queue overflows while
/// many Services come.
const REQUESTS: usize = 4;
/// How long one may take.
const REQUEST: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_as_long_as_the_api_server_takes() {
        let (queue, mut sent) = mpsc::channel(1);
        let metrics = Arc::new(Metrics::register().unwrap());
        let events = Events { queue, instance: "a".to_string(), metrics };
        let service = ServiceKey { namespace: "default".to_string(), name: "web".to_string() };
        events.send(&service, "uid", Note { warning: true, reason: "NoPool", message: "ä".repeat(5000) });
        let note = sent.try_recv().unwrap().note.unwrap();
        assert!(note.len() <= 1024 && note.ends_with("ä…"), "{}", note.len());
    }
}
