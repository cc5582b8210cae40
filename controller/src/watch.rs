//! IO: watches of the API server → facts. Objects are cut down to what decisions need before anything is kept, and one that cannot be
//! read hides no other.
//!
//! Read: [`follow`] (lists and watches in bounded memory) → here (which ones) → [`convert`] (objects → facts).

mod convert;
mod follow;
mod groups;

use std::sync::Arc;

use futures::stream::{BoxStream, select_all};
use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ApiResource;
use kube::core::DeserializeGuard;
use kube::runtime::watcher;
use kube::{Api, Client};
use sheave_api::kubernetes::{Watched, is_not_served};
use sheave_api::{AddressPool, Chain, L2Advertisement, SpeakerState, VirtualIP};
use tracing::warn;

use crate::guards::{Fact, Source};
use crate::index::{Kind, Observed};
use crate::view::NamespaceMeta;
use convert::{NodeObject, PoolObject, Seen, SpeakerObject};

/// Everything that happens in the cluster as far as it matters here, for ever. Errors are logged and retried with backoff.
/// `server`: where that is, for the log.
pub fn all(client: &Client, server: &str) -> impl Stream<Item = Observed> + Send + use<> {
    let watch = Watches { server: server.into() };
    let kubernetes = watcher::Config::default().fields("metadata.name=kubernetes");
    select_all([
        watch.objects(services(client), Kind::Services, convert::service),
        watch.objects(pools(client), Kind::Pools, convert::pool),
        watch.objects(grants(client), Kind::Grants, convert::grant),
        watch.objects(namespaces(client), Kind::Namespaces, convert::namespace),
        watch.objects(advertisements(client), Kind::Advertisements, convert::advertisement),
        watch.objects(Api::all(client.clone()), Kind::Probes, convert::probe),
        watch.facts(with::<NodeObject, Node>(client), everything(), Source::Nodes, convert::node),
        watch.facts(with::<SpeakerObject, SpeakerState>(client), everything(), Source::SpeakerStates, convert::speaker),
        watch.facts(Api::all(client.clone()), everything(), Source::ServiceRanges, convert::service_range),
        watch.facts(api_servers(client), kubernetes, Source::ApiServers, convert::api_servers),
        groups::all(client.clone()).boxed(),
    ])
}

/// Everything that is allocated as it is now, not as a watch has it. What a new leader must know before its first decision: a watch
/// that lags behind the last leader shows grants of Services that it has not shown yet, and they would be taken back.
pub async fn read_all(client: &Client) -> Result<Vec<Observed>, kube::Error> {
    let mut facts = Vec::new();
    list(namespaces(client), Kind::Namespaces, convert::namespace, &mut facts).await?;
    // The ledger last: a Service that is granted something meanwhile is missing in neither.
    list(services(client), Kind::Services, convert::service, &mut facts).await?;
    list(pools(client), Kind::Pools, convert::pool, &mut facts).await?;
    list(advertisements(client), Kind::Advertisements, convert::advertisement, &mut facts).await?;
    list(grants(client), Kind::Grants, convert::grant, &mut facts).await?;
    Ok(facts)
}

type Guarded<K> = DeserializeGuard<K>;

fn services(client: &Client) -> Api<Guarded<Service>> {
    Api::all(client.clone())
}

fn pools(client: &Client) -> Api<Guarded<PoolObject>> {
    with::<PoolObject, AddressPool>(client)
}

fn grants(client: &Client) -> Api<Guarded<VirtualIP>> {
    Api::all(client.clone())
}

fn namespaces(client: &Client) -> Api<Guarded<NamespaceMeta>> {
    Api::all(client.clone())
}

fn advertisements(client: &Client) -> Api<Guarded<L2Advertisement>> {
    Api::all(client.clone())
}

fn api_servers(client: &Client) -> Api<Guarded<EndpointSlice>> {
    Api::namespaced(client.clone(), "default")
}

/// Objects of type `K`, of which only the fields of `F` are read.
fn with<F, K>(client: &Client) -> Api<Guarded<F>>
where
    F: kube::Resource<DynamicType = ApiResource>,
    K: kube::Resource<DynamicType = ()>,
{
    Api::all_with(client.clone(), &ApiResource::erase::<K>(&()))
}

fn everything() -> watcher::Config {
    watcher::Config::default()
}

async fn list<K: Watched>(
    api: Api<Guarded<K>>,
    kind: Kind,
    convert: fn(Seen<K>) -> Option<Observed>,
    facts: &mut Vec<Observed>,
) -> Result<(), kube::Error> {
    facts.push(Observed::Begin(kind));
    let version = follow::list(&api, |object| facts.extend(convert::object(kind, object, convert))).await?;
    facts.push(Observed::Complete(kind, version));
    Ok(())
}

/// What all watches have in common.
struct Watches {
    server: Arc<str>,
}

impl Watches {
    fn objects<K: Watched>(
        &self,
        api: Api<Guarded<K>>,
        kind: Kind,
        convert: fn(Seen<K>) -> Option<Observed>,
    ) -> BoxStream<'static, Observed> {
        let server = self.server.clone();
        let events = follow::follow(api, everything());
        let fact = move |event: watcher::Result<watcher::Event<Guarded<K>>>| match event {
            Ok(watcher::Event::Init) => Some(Observed::Begin(kind)),
            Ok(watcher::Event::InitDone) => Some(Observed::Complete(kind, 0)),
            Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => {
                convert::object(kind, object, convert)
            }
            Ok(watcher::Event::Delete(object)) => convert::gone(&object, convert),
            // An upgrade without the CRD of its version: no speaker answers.
            Err(error) if kind == Kind::Probes && is_not_served(&error) => Some(Observed::Complete(kind, 0)),
            Err(error) => {
                warn!(kind = kind.as_str(), %server, error = %Chain(&error), "watch failed; retrying");
                follow::denial(&error).map(|said| Observed::Denied(kind.as_str(), said))
            }
        };
        events.filter_map(move |event| std::future::ready(fact(event))).boxed()
    }

    fn facts<K: Watched>(
        &self,
        api: Api<Guarded<K>>,
        config: watcher::Config,
        source: Source,
        convert: fn(K) -> crate::guards::facts::Facts,
    ) -> BoxStream<'static, Observed> {
        let server = self.server.clone();
        let fact = move |event: watcher::Result<watcher::Event<Guarded<K>>>| match event {
            Ok(watcher::Event::Init) => Some(Observed::Guard(Fact::Begin(source))),
            Ok(watcher::Event::InitDone) => Some(Observed::Guard(Fact::Complete(source))),
            Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => {
                convert::fact(source, object, convert).map(Observed::Guard)
            }
            Ok(watcher::Event::Delete(object)) => Some(Observed::Guard(convert::fact_gone(source, &object))),
            // Kubernetes before 1.33: --service-cidr says it, or the ClusterIPs that are seen.
            Err(error) if source == Source::ServiceRanges && is_not_served(&error) => {
                Some(Observed::Guard(Fact::Complete(source)))
            }
            Err(error) => {
                warn!(kind = source.as_str(), %server, error = %Chain(&error), "watch failed; retrying");
                follow::denial(&error).map(|said| Observed::Denied(source.as_str(), said))
            }
        };
        let events = follow::follow(api, config);
        events.filter_map(move |event| std::future::ready(fact(event))).boxed()
    }
}
