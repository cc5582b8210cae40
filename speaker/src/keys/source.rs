//! The Secret `sheave-keys`, watched through the API: created, it is here at once, while a volume follows with kubelet's next sync, a
//! minute or more later.

use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use sheave_api::{Chain, keys};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::{Contents, Found, Keys};
use crate::apiserver::ApiServer;
use crate::health::HealthFlags;
use crate::io::clock;
use crate::state::StateDir;

/// Why there is nothing to be had from the Secret. The label is the reason of /readyz and the log field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Nothing has been read yet.
    Awaited,
    /// The controller creates it.
    Missing,
    /// An entry is missing or has another length.
    Malformed,
    /// The Role `sheave-speaker` is not there.
    Refused,
    Unreachable,
}

impl Problem {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Awaited => "keys_awaited",
            Self::Missing => "keys_missing",
            Self::Malformed => "keys_malformed",
            Self::Refused => "keys_refused",
            Self::Unreachable => "keys_api_server_unreachable",
        }
    }
}

pub enum Update {
    Found(Box<Found>),
    Problem(Problem),
}

/// Updates that wait.
pub const MAX_UPDATES: usize = 8;
/// An API server has so long for its answer, and so long is the pause before the next request: doubled after each attempt, once
/// there are keys.
const ATTEMPT: Duration = Duration::from_secs(1);
const ATTEMPT_MAX: Duration = Duration::from_secs(8);
/// The API server ends the watch after this time: a connection that hangs is noticed.
const WATCH_SECONDS: u32 = 50;
/// Nothing at all came for longer: the connection hangs.
const HANGS: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 10);

/// Runs until the receiver of updates is dropped. `has_keys`: the speaker does not wait for them.
pub async fn run(server: ApiServer, namespace: String, has_keys: bool, updates: mpsc::Sender<Update>) {
    let mut source = Source { namespace, updates, kubernetes: None, last_problem: None, has_keys, pause: ATTEMPT };
    loop {
        let result = match server.reach(ATTEMPT).await {
            Ok((client, _)) => source.follow(client).await,
            Err(error) => source.problem(Problem::Unreachable, &format!("{error:#}")).await,
        };
        if result.is_err() {
            return;
        }
        sleep(source.pause).await;
        source.pause = if source.has_keys { ATTEMPT_MAX.min(2 * source.pause) } else { ATTEMPT };
    }
}

/// The first keys of this node, as soon as the Secret is there. `None`: the process was stopped meanwhile.
pub async fn first(disk: &StateDir, secret: &mut mpsc::Receiver<Update>, health: &HealthFlags) -> Result<Option<Keys>> {
    health.wait_for_keys(Some(Problem::Awaited));
    info!("no keys on disk; waiting for the Secret sheave-keys");
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    loop {
        let update = tokio::select! {
            update = secret.recv() => update.context("the watch of the Secret sheave-keys has ended")?,
            _ = terminate.recv() => return Ok(None),
            _ = interrupt.recv() => return Ok(None),
        };
        match update {
            Update::Problem(problem) => health.wait_for_keys(Some(problem)),
            Update::Found(found) => {
                let keys = Keys::adopt(disk, *found).await;
                health.begin(clock::now());
                health.wait_for_keys(None);
                return Ok(Some(keys));
            }
        }
    }
}

struct Source {
    namespace: String,
    updates: mpsc::Sender<Update>,
    kubernetes: Option<String>,
    /// The problem that was logged.
    last_problem: Option<Problem>,
    has_keys: bool,
    pause: Duration,
}

impl Source {
    /// Until the watch fails. An error: the receiver of updates was dropped.
    async fn follow(&mut self, client: Client) -> Result<()> {
        if self.kubernetes.is_none() {
            self.kubernetes = cluster(client.clone()).await;
        }
        let only = watcher::Config::default().fields(&format!("metadata.name={}", keys::SECRET)).timeout(WATCH_SECONDS);
        let mut secrets = pin!(watcher(Api::<Secret>::namespaced(client, &self.namespace), only));
        let mut listed = false;
        loop {
            let Ok(Some(event)) = timeout(HANGS, secrets.next()).await else { return Ok(()) };
            match event {
                Ok(watcher::Event::Init) => listed = false,
                Ok(watcher::Event::InitDone) if listed => {}
                Ok(watcher::Event::InitDone | watcher::Event::Delete(_)) => {
                    self.problem(Problem::Missing, "the controller creates it").await?;
                }
                Ok(watcher::Event::Apply(secret) | watcher::Event::InitApply(secret)) => {
                    listed = true;
                    self.found(secret).await?;
                }
                Err(error) => {
                    return self.problem(problem(&error), &describe(&error)).await;
                }
            }
        }
    }

    async fn found(&mut self, secret: Secret) -> Result<()> {
        match Contents::decode(&secret.data.unwrap_or_default()) {
            Ok(contents) => {
                if self.last_problem.take().is_some() {
                    info!("Secret sheave-keys readable again");
                }
                (self.has_keys, self.pause) = (true, ATTEMPT);
                self.send(Update::Found(Box::new(Found { contents, kubernetes: self.kubernetes.clone() }))).await
            }
            Err(error) => self.problem(Problem::Malformed, &format!("{error:#}")).await,
        }
    }

    /// Logs it when it is another one than before.
    async fn problem(&mut self, problem: Problem, detail: &str) -> Result<()> {
        if self.last_problem.replace(problem) != Some(problem) {
            warn!(reason = problem.label(), detail, "keys not read from the Secret sheave-keys; retrying");
        }
        self.send(Update::Problem(problem)).await
    }

    async fn send(&self, update: Update) -> Result<()> {
        match self.updates.send(update).await {
            Ok(()) => Ok(()),
            Err(_) => bail!("the receiver of keys has ended"),
        }
    }
}

/// The UID of the Namespace that lives as long as the cluster. Without it the keys on disk are taken to be of this cluster.
async fn cluster(client: Client) -> Option<String> {
    match timeout(ATTEMPT, Api::<Namespace>::all(client).get("kube-system")).await {
        Ok(Ok(namespace)) => namespace.uid(),
        Ok(Err(error)) => {
            warn!(
                error = describe_client(&error),
                "UID of the Namespace kube-system not read; keys on disk are taken to be of this cluster"
            );
            None
        }
        Err(_) => None,
    }
}

fn problem(error: &watcher::Error) -> Problem {
    match client_error(error) {
        Some(kube::Error::Api(_)) => Problem::Refused,
        Some(kube::Error::SerdeError(_)) => Problem::Malformed,
        _ => Problem::Unreachable,
    }
}

fn client_error(error: &watcher::Error) -> Option<&kube::Error> {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => Some(error),
        _ => None,
    }
}

fn describe(error: &watcher::Error) -> String {
    client_error(error).map_or_else(|| Chain(error).to_string(), describe_client)
}

/// The whole chain, but for what could not be read: that is quoted there, and may be a key.
fn describe_client(error: &kube::Error) -> String {
    match error {
        kube::Error::SerdeError(_) => "the API server's answer cannot be read".to_owned(),
        error => Chain(error).to_string(),
    }
}
