//! Lists and watches in bounded memory. Where the API server streams lists (WatchList), one object at a time is in memory; where it does
//! not, a small page. A user may write 256 kB into one Service's annotations, which are up to 1.5 MB of JSON.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use futures::stream::{self, BoxStream, Stream, StreamExt};
use kube::runtime::utils::Backoff;
use kube::runtime::watcher;
use kube::{Api, Resource};
use serde::de::DeserializeOwned;

type Event<K> = watcher::Result<watcher::Event<K>>;

/// What a watch can be of.
pub trait Watched: Resource + Clone + Debug + DeserializeOwned + Send + 'static {}
impl<K: Resource + Clone + Debug + DeserializeOwned + Send + 'static> Watched for K {}

/// A full list, then every change, for ever; errors come with pauses that grow. With [`kube::core::DeserializeGuard`] an object that cannot
/// be read hides no other.
pub fn follow_all<K: Watched>(api: Api<K>, config: watcher::Config) -> impl Stream<Item = Event<K>> + Send {
    let config = config.page_size(PAGE);
    let streaming = follow(api.clone(), config.clone().streaming_lists()).boxed();
    let followed = Followed { events: streaming, paged: Some((api, config)), patience: Patience::default() };
    stream::unfold(followed, next)
}

/// The same of few objects, without pauses. As kube-runtime's watcher, which lists anew where the first event of a watch says that its
/// version has expired; where the API server, or what stands before it, refuses such a watch (410 Gone), it would ask for the same version
/// for ever.
pub fn follow<K: Watched>(api: Api<K>, config: watcher::Config) -> impl Stream<Item = Event<K>> + Send {
    let begin = move || watcher::watcher(api.clone(), config.clone()).boxed();
    stream::unfold((begin(), begin), |(mut events, begin)| async move {
        let event = events.next().await?;
        if event.as_ref().is_err_and(is_expired) {
            events = begin();
        }
        Some((event, (events, begin)))
    })
}

/// A watch was refused because its version has expired.
fn is_expired(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(kube::Error::Api(status)) if status.code == 410)
}

struct Followed<K: Watched> {
    events: BoxStream<'static, Event<K>>,
    /// What pages are read with, as long as lists are streamed.
    paged: Option<(Api<K>, watcher::Config)>,
    patience: Patience,
}

/// The next event. At the first sign that lists are not streamed, pages are read instead.
async fn next<K: Watched>(mut followed: Followed<K>) -> Option<(Event<K>, Followed<K>)> {
    followed.patience.over().await;
    let mut event = followed.events.next().await?;
    let refused = matches!(&event, Err(watcher::Error::WatchStartFailed(error)) if does_not_stream(error));
    if refused && let Some((api, config)) = followed.paged.take() {
        followed.events = follow(api, config).boxed();
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

/// `sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled`.
pub fn does_not_stream(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if [400, 422].contains(&status.code))
}

/// After the end of a connection.
const SHORT: Duration = Duration::from_millis(500);
/// Objects per page where lists are not streamed: 30 MB of the largest Services.
pub const PAGE: u32 = 20;

#[cfg(test)]
mod tests {
    use super::*;

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
