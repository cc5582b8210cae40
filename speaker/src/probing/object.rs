//! This node's object of requests at the API server (AddressProbe, SubnetScan): the request is watched, the answer written. Server-side
//! apply, without waiting for what the object has become meanwhile: an answer names its request.

use std::fmt::Debug;
use std::marker::PhantomData;
use std::net::Ipv4Addr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sheave_api::addressprobe::most;
use sheave_api::{AddressProbe, AddressProbeStatus, Chain, ProbeResult, SPEAKER_NAME};
use speaker_core::probe::Report;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::Asked;
use crate::apiserver::ApiServer;
use crate::io::Mac;
use crate::metrics::Metrics;

/// For a connection to one server, and for one answer: one that is later is of no use.
const CONNECT: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(2);
/// Between attempts to watch.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// The API server ends the watch after this time: a connection that hangs is noticed.
const WATCH_SECONDS: u32 = 50;
/// Nothing at all came for longer: the connection hangs.
const HANGS: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 10);

/// A kind of objects by which a speaker is asked for something.
pub trait Request: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static {
    type Asked: Send;

    fn round(&self) -> i64;
    /// The last round that was answered.
    fn answered(&self) -> i64;
    fn asked(&self) -> Self::Asked;
}

impl Request for AddressProbe {
    type Asked = Asked;

    fn round(&self) -> i64 {
        self.spec.round
    }

    fn answered(&self) -> i64 {
        self.status.as_ref().map_or(0, |status| status.observed_round)
    }

    fn asked(&self) -> Asked {
        Asked { round: self.spec.round, addresses: addresses::<Self>(&self.spec.addresses, most::ADDRESSES) }
    }
}

/// What can be read.
pub fn addresses<K: Request>(texts: &[String], most: usize) -> Vec<Ipv4Addr> {
    let parse = |text: &String| match text.parse::<Ipv4Addr>() {
        Ok(address) => Some(address),
        Err(_) => {
            warn!(kind = %K::kind(&()), address = text, "spec.addresses: not an IPv4 address; not probed");
            None
        }
    };
    texts.iter().take(most).filter_map(parse).collect()
}

/// Sends each request once, until the receiver is dropped.
pub async fn follow<K: Request>(server: ApiServer, node: String, requests: mpsc::Sender<K::Asked>) {
    let (mut pause, mut failing) = (PAUSE, false);
    let mut last = Last::default();
    loop {
        let ended = match server.reach(CONNECT).await {
            Ok((client, _)) => watch_one::<K>(client, &node, &requests, &mut last, &mut pause).await,
            Err(error) => Err(format!("{error:#}")),
        };
        match ended {
            Ok(Ended::Receiver) => return,
            Ok(Ended::Silent) => {}
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    warn!(kind = %K::kind(&()), error, "requests to probe addresses not watched; they stay unanswered, retrying");
                }
                sleep(pause).await;
                pause = PAUSE_MAX.min(2 * pause);
                continue;
            }
        }
        if std::mem::take(&mut failing) {
            info!(kind = %K::kind(&()), "requests to probe addresses watched again");
        }
    }
}

enum Ended {
    Receiver,
    /// The connection hangs.
    Silent,
}

/// The request that was handled last, by the uid of its object: one that is made anew begins with the first round again.
#[derive(Default)]
struct Last {
    uid: String,
    round: i64,
}

impl Last {
    /// The request, unless it was handled or answered before.
    fn take<K: Request>(&mut self, object: &K) -> Option<K::Asked> {
        let uid = object.uid().unwrap_or_default();
        if self.uid != uid {
            *self = Last { uid, round: 0 };
        }
        let round = object.round();
        if round <= self.round.max(object.answered()) {
            return None;
        }
        self.round = round;
        Some(object.asked())
    }
}

async fn watch_one<K: Request>(
    client: Client,
    node: &str,
    requests: &mpsc::Sender<K::Asked>,
    last: &mut Last,
    pause: &mut Duration,
) -> Result<Ended, String> {
    let only = watcher::Config::default().fields(&format!("metadata.name={node}")).timeout(WATCH_SECONDS);
    let mut objects = pin!(watcher(Api::<K>::all(client), only));
    loop {
        let Ok(Some(event)) = timeout(HANGS, objects.next()).await else { return Ok(Ended::Silent) };
        match event {
            Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => {
                if let Some(asked) = last.take(&object)
                    && requests.send(asked).await.is_err()
                {
                    return Ok(Ended::Receiver);
                }
            }
            Ok(watcher::Event::InitDone) => *pause = PAUSE,
            Ok(watcher::Event::Init | watcher::Event::Delete(_)) => {}
            Err(error) => return Err(Chain(&error).to_string()),
        }
    }
}

/// Writes answers.
pub struct Object<K> {
    server: ApiServer,
    node: String,
    metrics: Arc<Metrics>,
    /// While it works.
    client: Option<Client>,
    failing: bool,
    kind: PhantomData<K>,
}

impl<K: Request> Object<K> {
    pub fn new(server: ApiServer, node: String, metrics: Arc<Metrics>) -> Self {
        Self { server, node, metrics, client: None, failing: false, kind: PhantomData }
    }

    /// The newest status at a time, until the sender is dropped. One that cannot be written is dropped: the asker asks again.
    pub async fn answer(mut self, mut statuses: watch::Receiver<Option<Value>>) {
        while statuses.changed().await.is_ok() {
            let Some(status) = statuses.borrow_and_update().clone() else { continue };
            let (kind, round) = (K::kind(&()), status["observedRound"].as_i64());
            match timeout(PATIENCE, self.write(status)).await.unwrap_or_else(|_| Err("no answer in time".to_owned())) {
                Ok(()) => {
                    debug!(%kind, round, "request answered");
                    if std::mem::take(&mut self.failing) {
                        info!(%kind, "requests answered again");
                    }
                }
                Err(error) => {
                    self.client = None;
                    self.metrics.address_probe_errors.with_label_values(&["not_written"]).inc();
                    if !std::mem::replace(&mut self.failing, true) {
                        warn!(%kind, error, round, "request to probe addresses not answered");
                    }
                }
            }
        }
    }

    async fn write(&mut self, status: Value) -> Result<(), String> {
        let client = match self.client.take() {
            Some(client) => client,
            None => self.server.reach(CONNECT).await.map_err(|error| format!("{error:#}"))?.0,
        };
        let api = Api::<K>::all(client.clone());
        let params = PatchParams::apply(SPEAKER_NAME).force();
        let object = json!({
            "apiVersion": K::api_version(&()),
            "kind": K::kind(&()),
            "metadata": { "name": self.node },
            "status": status,
        });
        let written = api.patch_status(&self.node, &params, &Patch::Apply(object)).await;
        written.map_err(|error| Chain(&error).to_string())?;
        self.client = Some(client);
        Ok(())
    }
}

/// The status of an AddressProbe.
pub fn answer(report: &Report) -> Value {
    let status = AddressProbeStatus {
        observed_round: report.round,
        results: results(report, most::ADDRESSES),
        gateways: texts(&mut report.gateways.iter(), most::MACS),
        proxies: texts(&mut report.proxies.iter(), most::MACS),
    };
    json!(status)
}

pub fn results(report: &Report, most: usize) -> Vec<ProbeResult> {
    let results = report.results.iter().map(|(address, macs)| ProbeResult {
        address: address.to_string(),
        macs: texts(&mut macs.iter(), most::ANSWERS),
    });
    results.take(most).collect()
}

pub fn texts(macs: &mut dyn Iterator<Item = &[u8; 6]>, most: usize) -> Vec<String> {
    macs.take(most).map(|mac| Mac(*mac).to_string()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use sheave_api::AddressProbeSpec;

    use super::*;

    fn object(uid: &str, round: i64, answered: i64) -> AddressProbe {
        let spec = AddressProbeSpec { round, addresses: vec!["192.0.2.7".into(), "nonsense".into()] };
        let status = AddressProbeStatus { observed_round: answered, ..AddressProbeStatus::default() };
        let mut object = AddressProbe { status: Some(status), ..AddressProbe::new("n1", spec) };
        object.metadata.uid = Some(uid.into());
        object
    }

    #[test]
    fn a_request_is_handled_once() {
        let mut last = Last::default();
        let asked = Asked { round: 4, addresses: vec![Ipv4Addr::new(192, 0, 2, 7)] };
        assert_eq!(last.take(&object("a", 4, 3)), Some(asked), "what cannot be read is left out");
        assert_eq!(last.take(&object("a", 4, 3)), None, "listed again");
        assert_eq!(last.take(&object("a", 4, 4)), None, "our own answer");
        assert!(last.take(&object("a", 5, 4)).is_some());
        assert!(last.take(&object("b", 1, 0)).is_some(), "made anew");
        assert_eq!(Last::default().take(&object("a", 5, 5)), None, "answered before this speaker started");
    }

    #[test]
    fn an_answer_names_its_request_and_every_address() {
        let (silent, used) = (Ipv4Addr::new(192, 0, 2, 7), Ipv4Addr::new(192, 0, 2, 8));
        let host = [2, 0, 0, 0, 0, 0xab];
        let report = Report {
            round: 9,
            results: BTreeMap::from([(silent, BTreeSet::new()), (used, BTreeSet::from([host]))]),
            gateways: BTreeSet::new(),
            proxies: BTreeSet::from([host]),
        };
        assert_eq!(
            answer(&report),
            json!({
                "observedRound": 9,
                "results": [{"address": "192.0.2.7"}, {"address": "192.0.2.8", "macs": ["02:00:00:00:00:ab"]}],
                "proxies": ["02:00:00:00:00:ab"],
            })
        );
    }
}
