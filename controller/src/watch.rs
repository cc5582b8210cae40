//! IO: watches of the API server → facts. Objects are cut down to what decisions need before anything is kept.

use std::sync::Arc;

use futures::{Stream, StreamExt, stream};
use k8s_openapi::api::core::v1::Service;
use kube::api::ListParams;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use sheave_api::{AddressPool, Chain, VirtualIP};
use tracing::warn;

use crate::index::{Kind, Observed};
use crate::view::{GrantView, PoolView, ServiceKey, ServiceView, version};

/// Everything that happens to Services, pools and the ledger, for ever. Errors are logged and retried with backoff.
/// `server`: where that is, for the log.
pub fn all(client: &Client, server: &str) -> impl Stream<Item = Observed> + Send + use<> {
    let server: Arc<str> = server.into();
    let services = watch(Api::<Service>::all(client.clone()), server.clone(), Kind::Services, service);
    let pools = watch(Api::<AddressPool>::all(client.clone()), server.clone(), Kind::Pools, pool);
    let grants = watch(Api::<VirtualIP>::all(client.clone()), server, Kind::Grants, grant);
    stream::select(services, stream::select(pools, grants))
}

/// Everything as it is now, not as a watch has it. What a new leader must know before its first decision: a watch that
/// lags behind the last leader shows grants of Services that it has not shown yet, and they would be taken back.
pub async fn read_all(client: &Client) -> Result<Vec<Observed>, kube::Error> {
    let mut facts = Vec::new();
    // The ledger last: a Service that is granted something meanwhile is missing in neither.
    list(Api::<Service>::all(client.clone()), Kind::Services, service, &mut facts).await?;
    list(Api::<AddressPool>::all(client.clone()), Kind::Pools, pool, &mut facts).await?;
    list(Api::<VirtualIP>::all(client.clone()), Kind::Grants, grant, &mut facts).await?;
    Ok(facts)
}

async fn list<K>(
    api: Api<K>,
    kind: Kind,
    convert: fn(Seen<K>) -> Option<Observed>,
    facts: &mut Vec<Observed>,
) -> Result<(), kube::Error>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    facts.push(Observed::Begin(kind));
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = api.list(&params).await?;
        facts.extend(page.items.into_iter().filter_map(|object| convert(Seen::Here(object))));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => {
                facts.push(Observed::Complete(kind, version(page.metadata.resource_version)));
                return Ok(());
            }
        }
    }
}

/// Something that was seen, or is gone.
enum Seen<K> {
    Here(K),
    Gone(K),
}

fn watch<K>(
    api: Api<K>,
    server: Arc<str>,
    kind: Kind,
    convert: fn(Seen<K>) -> Option<Observed>,
) -> impl Stream<Item = Observed> + Send + use<K>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
{
    let config = watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE);
    watcher(api, config).default_backoff().filter_map(move |event| {
        let server = server.clone();
        async move {
            match event {
                Ok(watcher::Event::Init) => Some(Observed::Begin(kind)),
                Ok(watcher::Event::InitDone) => Some(Observed::Complete(kind, 0)),
                Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => convert(Seen::Here(object)),
                Ok(watcher::Event::Delete(object)) => convert(Seen::Gone(object)),
                Err(error) => {
                    warn!(?kind, %server, error = %Chain(&error), "watch failed; retrying");
                    None
                }
            }
        }
    })
}

fn service(seen: Seen<Service>) -> Option<Observed> {
    Some(match seen {
        Seen::Here(service) => Observed::Service(ServiceView::from(&service)),
        Seen::Gone(service) => {
            let key = ServiceKey { namespace: service.namespace().unwrap_or_default(), name: service.name_any() };
            Observed::ServiceGone(key, version(service.resource_version()))
        }
    })
}

fn pool(seen: Seen<AddressPool>) -> Option<Observed> {
    Some(match seen {
        Seen::Here(pool) => Observed::Pool(PoolView::from(&pool)),
        Seen::Gone(pool) => Observed::PoolGone(pool.name_any(), version(pool.resource_version())),
    })
}

fn grant(seen: Seen<VirtualIP>) -> Option<Observed> {
    let (Seen::Here(vip) | Seen::Gone(vip)) = &seen;
    let Some(view) = GrantView::new(vip) else {
        warn!(name = %vip.name_any(), "name and address of the VirtualIP differ; ignored");
        return None;
    };
    Some(match seen {
        Seen::Here(_) => Observed::Grant(view),
        Seen::Gone(_) => Observed::GrantGone(view.address, view.version),
    })
}

/// The API server ends a watch after this long, and we resume it: a connection that died silently is noticed.
const WATCH_SECONDS: u32 = 50;
/// Objects per page of a list: bounds the memory of a start.
const PAGE: u32 = 250;
