//! Lists and watches in bounded memory. Where the API server streams lists (WatchList), one object at a time is in memory; where it does
//! not, a small page. A user may write 256 kB into one Service's annotations, which are up to 1.5 MB of JSON.

use std::pin::pin;

use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use kube::Api;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::DeserializeGuard;
use kube::runtime::{WatchStreamExt, watcher};
use tracing::debug;

use super::convert::Known;
use crate::view::version;

type Guarded<K> = DeserializeGuard<K>;
type Event<K> = watcher::Result<watcher::Event<Guarded<K>>>;

/// A full list, then every change, for ever; errors come with pauses that grow.
pub fn follow<K: Known>(api: Api<Guarded<K>>, config: watcher::Config) -> impl Stream<Item = Event<K>> + Send {
    let config = config.timeout(WATCH_SECONDS).page_size(PAGE);
    let streaming = watcher(api.clone(), config.clone().streaming_lists()).default_backoff().boxed();
    stream::unfold((streaming, Some((api, config))), next)
}

type State<K> = (BoxStream<'static, Event<K>>, Option<(Api<Guarded<K>>, watcher::Config)>);

/// The next event. At the first sign that lists are not streamed, pages are read instead.
async fn next<K: Known>((mut events, mut paged): State<K>) -> Option<(Event<K>, State<K>)> {
    let event = events.next().await?;
    let refused = matches!(&event, Err(watcher::Error::WatchStartFailed(error)) if does_not_stream(error));
    if refused && let Some((api, config)) = paged.take() {
        debug!("the API server does not stream lists; pages of {PAGE} are read");
        events = watcher(api, config).default_backoff().boxed();
        let event = events.next().await?;
        return Some((event, (events, paged)));
    }
    Some((event, (events, paged)))
}

/// Everything as it is now, one object at a time. Returns the version that it was read at.
pub async fn list<K: Known>(api: &Api<Guarded<K>>, mut each: impl FnMut(Guarded<K>)) -> Result<u64, kube::Error> {
    let params = WatchParams::streaming_lists().timeout(LIST_SECONDS);
    // No version asks for the newest state there is.
    match api.watch(&params, "").await {
        Ok(events) => {
            let mut events = pin!(events);
            while let Some(event) = events.next().await {
                match event? {
                    WatchEvent::Added(object) | WatchEvent::Modified(object) => each(object),
                    WatchEvent::Deleted(_) => {}
                    WatchEvent::Bookmark(mark) if mark.metadata.annotations.contains_key(END) => {
                        return Ok(version(Some(mark.metadata.resource_version)));
                    }
                    WatchEvent::Bookmark(_) => {}
                    WatchEvent::Error(status) => return Err(kube::Error::Api(status)),
                }
            }
        }
        Err(error) if does_not_stream(&error) => {}
        Err(error) => return Err(error),
    }
    pages(api, each).await
}

async fn pages<K: Known>(api: &Api<Guarded<K>>, mut each: impl FnMut(Guarded<K>)) -> Result<u64, kube::Error> {
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = api.list(&params).await?;
        page.items.into_iter().for_each(&mut each);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(version(page.metadata.resource_version)),
        }
    }
}

/// What the API server says where this replica's account has no right to read.
pub fn denial(error: &watcher::Error) -> Option<String> {
    let (watcher::Error::InitialListFailed(cause)
    | watcher::Error::WatchStartFailed(cause)
    | watcher::Error::WatchFailed(cause)) = error
    else {
        return None;
    };
    match cause {
        kube::Error::Api(status) if status.code == 403 => Some(status.message.clone()),
        _ => None,
    }
}

/// `sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled`.
fn does_not_stream(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if [400, 422].contains(&status.code))
}

/// The annotation of the bookmark that ends a streamed list.
const END: &str = "k8s.io/initial-events-end";
/// The API server ends a watch after this long, and we resume it: a connection that died silently is noticed.
const WATCH_SECONDS: u32 = 50;
/// The same for a streamed list. The reader gives up earlier.
const LIST_SECONDS: u32 = 30;
/// Objects per page where lists are not streamed: 30 MB of the largest Services.
const PAGE: u32 = 20;
