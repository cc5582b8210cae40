//! A kind of objects as a watch shows it, with the moment at which something was first seen.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::StreamExt;
use kube::api::DynamicObject;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Ends when it is dropped.
pub struct Watch {
    state: watch::Receiver<State>,
    reader: JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

#[derive(Default)]
pub struct State {
    pub objects: HashMap<String, Seen>,
    /// How many of them show an address.
    pub shown: usize,
    /// When objects went.
    pub gone: HashMap<String, Instant>,
    synced: bool,
}

#[derive(Clone, PartialEq, Eq)]
pub struct Seen {
    pub version: String,
    /// Of a Service: what its status shows, and since when.
    pub address: Option<(String, Instant)>,
}

impl Watch {
    /// Returns when everything that is there was seen.
    pub async fn start(api: Api<DynamicObject>) -> Result<Self> {
        let (sender, state) = watch::channel(State::default());
        let reader = tokio::spawn(async move {
            let mut events = watcher(api, watcher::Config::default().streaming_lists()).default_backoff().boxed();
            while let Some(event) = events.next().await {
                match event {
                    Ok(event) => sender.send_modify(|state| state.take(event, Instant::now())),
                    // What was missed meanwhile is missed: the condition that waits for it is told of nothing, and says so.
                    Err(error) => eprintln!("watch: {error}; it goes on"),
                }
            }
        });
        let watch = Self { state, reader };
        watch.until("everything that is there", Duration::from_secs(60), |state| state.synced.then_some(())).await?;
        Ok(watch)
    }

    /// Looks after each event, until the condition returns something.
    pub async fn until<T>(
        &self,
        what: &str,
        within: Duration,
        mut condition: impl FnMut(&State) -> Option<T>,
    ) -> Result<T> {
        let mut state = self.state.clone();
        let found = async {
            loop {
                if let Some(found) = condition(&state.borrow_and_update()) {
                    return Ok(found);
                }
                state.changed().await.context("the watch ended")?;
            }
        };
        let timeout = tokio::time::timeout(within, found).await;
        timeout.with_context(|| format!("waited {} s for {what}", within.as_secs()))?
    }

    /// What is known now.
    pub fn now<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.borrow())
    }
}

impl State {
    fn take(&mut self, event: watcher::Event<DynamicObject>, now: Instant) {
        match event {
            watcher::Event::Apply(object) | watcher::Event::InitApply(object) => self.seen(&object, now),
            watcher::Event::Delete(object) => {
                let name = object.name_any();
                let known = self.objects.remove(&name);
                self.shown -= usize::from(known.is_some_and(|known| known.address.is_some()));
                self.gone.insert(name, now);
            }
            watcher::Event::Init => {}
            watcher::Event::InitDone => self.synced = true,
        }
    }

    fn seen(&mut self, object: &DynamicObject, now: Instant) {
        let name = object.name_any();
        let shown = object.data.pointer("/status/loadBalancer/ingress/0/ip").and_then(Value::as_str);
        let before = self.objects.get(&name).and_then(|seen| seen.address.clone());
        let address = match (before, shown) {
            (Some((before, since)), Some(shown)) if before == shown => Some((before, since)),
            (_, shown) => shown.map(|shown| (shown.to_owned(), now)),
        };
        let seen = Seen { version: object.resource_version().unwrap_or_default(), address };
        self.shown += usize::from(seen.address.is_some());
        let before = self.objects.insert(name, seen);
        self.shown -= usize::from(before.is_some_and(|before| before.address.is_some()));
    }
}
