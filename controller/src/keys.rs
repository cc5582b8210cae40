//! IO: the Secret with the speakers' keys. The leader creates it if there is none; then it belongs to the cluster's owner, who may
//! rotate its entries. Every replica keeps its contents in memory, so that a Secret that is deleted is back at once, the same.
//!
//! Read first: docs/decisions/0014.

use std::collections::BTreeMap;
use std::io::Read;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use hmac::digest::KeyInit;
use hmac::{Hmac, Mac};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use sha2::Sha256;
use sheave_api::{CONTROLLER_NAME, Chain, keys, kubernetes};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::lease::Leadership;

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error("no random bytes: {0}")]
    Random(#[from] std::io::Error),
    #[error("the API server: {0}")]
    Api(#[source] kube::Error),
    #[error("the API server's answer is no Secret")]
    Unreadable,
    #[error("Namespace {CLUSTER} has no UID")]
    NoUid,
    #[error("the API server did not answer in time")]
    Timeout(#[from] tokio::time::error::Elapsed),
}

impl From<kube::Error> for KeysError {
    fn from(error: kube::Error) -> Self {
        match error {
            // It quotes what it could not read.
            kube::Error::SerdeError(_) => KeysError::Unreadable,
            error => KeysError::Api(error),
        }
    }
}

type Contents = BTreeMap<String, ByteString>;

/// What is known of the Secret.
#[derive(Default)]
struct Known {
    presence: Presence,
    /// Of the last Secret that had every entry.
    contents: Option<Contents>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Presence {
    #[default]
    Unknown,
    Listing,
    Present,
    Absent,
}

impl Known {
    fn observe(&mut self, event: watcher::Event<Secret>) {
        use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
        self.presence = match event {
            Init => Presence::Listing,
            InitDone if self.presence == Presence::Listing => Presence::Absent,
            InitDone => self.presence,
            Apply(secret) | InitApply(secret) => {
                self.keep(secret);
                Presence::Present
            }
            Delete(secret) => {
                self.keep(secret);
                Presence::Absent
            }
        };
    }

    fn keep(&mut self, secret: Secret) {
        if let Some(data) = secret.data.filter(is_complete) {
            self.contents = Some(data);
        }
    }
}

fn is_complete(data: &Contents) -> bool {
    ENTRIES.iter().all(|(name, length)| data.get(*name).is_some_and(|entry| entry.0.len() == *length))
}

/// The task that keeps the Secret in being.
pub struct Keeper {
    client: Client,
    namespace: String,
    leadership: Leadership,
    known: Known,
}

impl Keeper {
    pub fn new(client: Client, namespace: &str, leadership: Leadership) -> Self {
        Keeper { client, namespace: namespace.to_string(), leadership, known: Known::default() }
    }

    /// Runs until stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        let only = watcher::Config::default().fields(&format!("metadata.name={}", keys::SECRET)).timeout(WATCH_SECONDS);
        let mut secrets = pin!(kubernetes::follow(self.api(), only).default_backoff());
        let mut retry = tokio::time::interval(RETRY);
        let mut failing = false;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some(event) = secrets.next() => match event {
                    Ok(event) => self.known.observe(event),
                    Err(error) => {
                        if !std::mem::replace(&mut failing, true) {
                            warn!(error = %of_watch(error), "watch of the Secret sheave-keys failed; retrying");
                        }
                        continue;
                    }
                },
                () = self.leadership.changed() => {}
                _ = retry.tick() => {}
            }
            if self.known.presence != Presence::Absent || self.leadership.request_deadline().is_none() {
                failing &= self.known.presence != Presence::Present;
                continue;
            }
            match self.create().await {
                Ok(()) => failing = false,
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        warn!(error = %Chain(&error), "Secret with the speakers' keys not created; retrying");
                    }
                }
            }
        }
    }

    fn api(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn create(&mut self) -> Result<(), KeysError> {
        let again = self.known.contents.clone();
        let (data, what) = match again {
            Some(data) => (data, "created again, as it was"),
            None => (self.generate().await?, "created"),
        };
        let labels = BTreeMap::from([("app.kubernetes.io/part-of".to_string(), "sheave".to_string())]);
        let metadata = ObjectMeta {
            name: Some(keys::SECRET.to_string()),
            namespace: Some(self.namespace.clone()),
            labels: Some(labels),
            ..ObjectMeta::default()
        };
        let secret =
            Secret { metadata, data: Some(data), type_: Some("sheave.dev/keys".to_string()), ..Secret::default() };
        let params = PostParams { field_manager: Some(CONTROLLER_NAME.to_string()), ..PostParams::default() };
        match tokio::time::timeout(REQUEST, self.api().create(&params, &secret)).await? {
            Ok(secret) => {
                info!(namespace = self.namespace, name = keys::SECRET, "Secret with the speakers' keys {what}");
                self.known.observe(watcher::Event::Apply(secret));
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 409 && status.reason == "AlreadyExists" => {
                self.known.presence = Presence::Unknown;
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The signing key is random. The identity that all nodes must share for as long as the cluster lives follows from the
    /// cluster, so that it is the same when no replica has it in memory.
    async fn generate(&self) -> Result<Contents, KeysError> {
        let namespaces = Api::<Namespace>::all(self.client.clone());
        let cluster = tokio::time::timeout(REQUEST, namespaces.get(CLUSTER)).await??;
        let uid = cluster.uid().filter(|uid| !uid.is_empty()).ok_or(KeysError::NoUid)?;
        let entries = [
            (keys::CURRENT, random(32)?),
            (keys::FLOW_HASH, derive(&uid, keys::FLOW_HASH, 16)),
            (keys::CLUSTER_ID, derive(&uid, keys::CLUSTER_ID, 8)),
        ];
        Ok(entries.into_iter().map(|(name, bytes)| (name.to_string(), ByteString(bytes))).collect())
    }
}

/// HMAC-SHA256 keyed with the UID over the entry's name, its first bytes.
fn derive(uid: &str, entry: &str, length: usize) -> Vec<u8> {
    // RFC 2104: a key shorter than the block is filled with zeros. A UID has 36 characters.
    let mut block = [0; 64];
    block.iter_mut().zip(uid.bytes()).for_each(|(to, from)| *to = from);
    let mut mac = <Hmac<Sha256> as KeyInit>::new(&block.into());
    mac.update(entry.as_bytes());
    mac.finalize().into_bytes().iter().copied().take(length).collect()
}

/// The chain of an error of a watch, without what it could not read.
fn of_watch(error: watcher::Error) -> String {
    use watcher::Error::{InitialListFailed, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(error) | WatchStartFailed(error) | WatchFailed(error) => {
            Chain(&KeysError::from(error)).to_string()
        }
        error => Chain(&error).to_string(),
    }
}

/// Eight characters that separate two processes of one name.
pub fn suffix() -> Result<String, std::io::Error> {
    Ok(random(4)?.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn random(length: usize) -> Result<Vec<u8>, std::io::Error> {
    let mut bytes = vec![0; length];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// The entries that there must be, and their bytes.
const ENTRIES: [(&str, usize); 3] = [(keys::CURRENT, 32), (keys::FLOW_HASH, 16), (keys::CLUSTER_ID, 8)];
/// The Namespace whose UID is the cluster's: it lives as long as the cluster (the SIGs' convention for a cluster's identity).
const CLUSTER: &str = "kube-system";
const REQUEST: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_secs(1);
/// As for the other watches.
const WATCH_SECONDS: u32 = 50;

#[cfg(test)]
mod tests;
