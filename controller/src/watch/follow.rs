//! Lists and watches in bounded memory, as [`kubernetes::follow_all`] has it, and lists that are read once.

use std::pin::pin;

use futures::{Stream, StreamExt};
use kube::Api;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::DeserializeGuard;
use kube::runtime::watcher;
use sheave_api::kubernetes::{self, Watched};

use crate::view::version;

type Guarded<K> = DeserializeGuard<K>;
type Event<K> = watcher::Result<watcher::Event<Guarded<K>>>;

/// A full list, then every change, for ever; errors come with pauses that grow.
pub fn follow<K: Watched>(api: Api<Guarded<K>>, config: watcher::Config) -> impl Stream<Item = Event<K>> + Send {
    kubernetes::follow_all(api, config.timeout(WATCH_SECONDS))
}

/// Everything as it is now, one object at a time. Returns the version that it was read at.
pub async fn list<K: Watched>(api: &Api<Guarded<K>>, mut each: impl FnMut(Guarded<K>)) -> Result<u64, kube::Error> {
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
        Err(error) if kubernetes::does_not_stream(&error) => {}
        Err(error) => return Err(error),
    }
    pages(api, each).await
}

async fn pages<K: Watched>(api: &Api<Guarded<K>>, mut each: impl FnMut(Guarded<K>)) -> Result<u64, kube::Error> {
    let mut params = ListParams::default().limit(kubernetes::PAGE);
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

/// The annotation of the bookmark that ends a streamed list.
const END: &str = "k8s.io/initial-events-end";
/// The API server ends a watch after this long, and we resume it: a connection that died silently is noticed.
const WATCH_SECONDS: u32 = 50;
/// The same for a streamed list. The reader gives up earlier.
const LIST_SECONDS: u32 = 30;

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
}
