//! Lists and watches in bounded memory. Where the API server streams lists (WatchList), one object at a time is in memory; where it does
//! not, a small page. A user may write 256 kB into one Service's annotations, which are up to 1.5 MB of JSON.

use std::pin::pin;
use std::time::{Duration, Instant};

use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use kube::Api;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::DeserializeGuard;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher;
use sheave_api::kubernetes;
use tracing::debug;

use super::convert::Known;
use crate::view::version;

type Guarded<K> = DeserializeGuard<K>;
type Event<K> = watcher::Result<watcher::Event<Guarded<K>>>;

/// A full list, then every change, for ever; errors come with pauses that grow.
pub fn follow<K: Known>(api: Api<Guarded<K>>, config: watcher::Config) -> impl Stream<Item = Event<K>> + Send {
    let config = config.timeout(WATCH_SECONDS).page_size(PAGE);
    let streaming = kubernetes::follow(api.clone(), config.clone().streaming_lists()).boxed();
    let followed = Followed { events: streaming, paged: Some((api, config)), patience: Patience::default() };
    stream::unfold(followed, next)
}

struct Followed<K: Known> {
    events: BoxStream<'static, Event<K>>,
    /// What pages are read with, as long as lists are streamed.
    paged: Option<(Api<Guarded<K>>, watcher::Config)>,
    patience: Patience,
}

/// The next event. At the first sign that lists are not streamed, pages are read instead.
async fn next<K: Known>(mut followed: Followed<K>) -> Option<(Event<K>, Followed<K>)> {
    followed.patience.over().await;
    let mut event = followed.events.next().await?;
    let refused = matches!(&event, Err(watcher::Error::WatchStartFailed(error)) if does_not_stream(error));
    if refused && let Some((api, config)) = followed.paged.take() {
        debug!("the API server does not stream lists; pages of {PAGE} are read");
        followed.events = kubernetes::follow(api, config).boxed();
        event = followed.events.next().await?;
    }
    followed.patience.judge(event.as_ref().err(), Instant::now());
    Some((event, followed))
}

/// Pauses after errors. They grow while a watch cannot be begun. One that went on until its connection ended begins anew soon, however often
/// that happens: what it shows must not be half a minute late where connections do not last.
#[derive(Default)]
struct Patience {
    grows: watcher::DefaultBackoff,
    until: Option<Instant>,
}

impl Patience {
    fn judge(&mut self, error: Option<&watcher::Error>, now: Instant) {
        self.until = match error {
            None => {
                self.grows.reset();
                None
            }
            Some(watcher::Error::WatchFailed(_)) => Some(now + SHORT),
            Some(_) => self.grows.next().map(|pause| now + pause),
        };
    }

    async fn over(&mut self) {
        if let Some(at) = self.until.take() {
            tokio::time::sleep_until(at.into()).await;
        }
    }
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
/// After the end of a connection.
const SHORT: Duration = Duration::from_millis(500);
/// Objects per page where lists are not streamed: 30 MB of the largest Services.
const PAGE: u32 = 20;

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::{Arc, Mutex};

    use axum::http::{Request, Response};
    use kube::Client;
    use kube::client::Body;
    use sheave_api::VirtualIP;

    use super::*;

    /// Lists are streamed and end at once; a watch that goes on from there is refused. What was asked for.
    fn server_that_forgets(asked: Arc<Mutex<Vec<String>>>) -> Client {
        let list = r#"{"type":"BOOKMARK","object":{"apiVersion":"sheave.dev/v1alpha1","kind":"VirtualIP","metadata":{
            "resourceVersion":"5","annotations":{"k8s.io/initial-events-end":"true"}}}}"#;
        let refusal = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure",
            "message":"too old resource version: 5 (9)","reason":"Expired","code":410}"#;
        let server = move |request: Request<Body>| {
            let query = request.uri().query().unwrap_or_default();
            let lists = query.contains("sendInitialEvents=true");
            asked.lock().unwrap().push(if lists { "list" } else { "watch" }.into());
            let (status, body) = if lists { (200, list.replace('\n', "") + "\n") } else { (410, refusal.to_owned()) };
            let answer = Response::builder().status(status).body(Body::from(body.into_bytes())).unwrap();
            std::future::ready(Ok::<_, Infallible>(answer))
        };
        Client::new(tower::service_fn(server), "default")
    }

    #[tokio::test]
    async fn what_has_expired_is_asked_for_once() {
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let api: Api<Guarded<VirtualIP>> = Api::all(server_that_forgets(asked.clone()));
        let mut events = pin!(follow(api, watcher::Config::default()));
        let mut lists = 0;
        while lists < 2 {
            lists += usize::from(matches!(events.next().await, Some(Ok(watcher::Event::InitDone))));
        }
        assert_eq!(*asked.lock().unwrap(), ["list", "watch", "list"]);
    }

    #[test]
    fn connections_that_do_not_last_make_no_pause_grow() {
        let (now, mut patience) = (Instant::now(), Patience::default());
        let failed = || kube::Error::Api(kube::core::Status::failure("", "").boxed());
        let mut pause = |error: &watcher::Error| {
            patience.judge(Some(error), now);
            patience.until.unwrap() - now
        };
        (0..20).for_each(|_| assert_eq!(pause(&watcher::Error::WatchFailed(failed())), SHORT));
        let longest = (0..8).map(|_| pause(&watcher::Error::WatchStartFailed(failed()))).max().unwrap();
        assert!(longest > Duration::from_secs(20), "{longest:?}");
        patience.judge(None, now);
        assert!(patience.until.is_none());
    }
}
