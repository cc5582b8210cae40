//! IO: pauses that an overloaded API server asks for: 429, or 503, with `Retry-After`. It judges requests by who asks for what (API Priority
//! and Fairness), so each kind of them pauses on its own: a leader whose writes are refused keeps the lead. Nothing is sent again here:
//! whoever asked learns of the refusal, and its next request waits until the pause is over.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderMap, Method, Request, Response, StatusCode};
use sheave_api::kubernetes::retry_after;
use tower::{Layer, Service};
use tracing::warn;

use crate::metrics::Metrics;

/// Requests that pause together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// The leader's record itself.
    Lease,
    /// Lists and watches.
    Reads,
    Writes,
    Events,
}

impl Flow {
    pub const ALL: [Flow; 4] = [Flow::Lease, Flow::Reads, Flow::Writes, Flow::Events];

    pub const fn as_str(self) -> &'static str {
        match self {
            Flow::Lease => "lease",
            Flow::Reads => "reads",
            Flow::Writes => "writes",
            Flow::Events => "events",
        }
    }

    fn of(method: &Method, path: &str) -> Flow {
        match path {
            _ if path.contains("/leases/") => Flow::Lease,
            _ if method == Method::GET => Flow::Reads,
            // To create a Lease is a request to all of them.
            _ if path.ends_with("/leases") => Flow::Lease,
            _ if path.ends_with("/events") => Flow::Events,
            _ => Flow::Writes,
        }
    }

    /// Whether a request waits here until the pause is over. The others have a deadline inside the lease: who sends them waits before it
    /// begins.
    fn waits_here(self) -> bool {
        matches!(self, Flow::Reads | Flow::Events)
    }
}

/// The pauses that are in force. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Pauses(Arc<Mutex<[Option<Instant>; Flow::ALL.len()]>>);

impl Pauses {
    /// The end of the pause; None if there is none.
    pub fn until(&self, flow: Flow) -> Option<Instant> {
        let ends = self.0.lock().unwrap_or_else(PoisonError::into_inner)[flow as usize];
        ends.filter(|at| *at > Instant::now())
    }

    /// Returns when there is no pause any more.
    pub async fn over(&self, flow: Flow) {
        while let Some(at) = self.until(flow) {
            tokio::time::sleep_until(at.into()).await;
        }
    }

    /// Of several answers the latest end counts. True if there was no pause before.
    fn begin(&self, flow: Flow, span: Duration) -> bool {
        let is_new = self.until(flow).is_none();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all[flow as usize] = all[flow as usize].max(Some(Instant::now() + span));
        is_new
    }
}

fn asked(status: StatusCode, headers: &HeaderMap) -> Option<Duration> {
    let header = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    retry_after(status.as_u16(), header)
}

/// Makes a client keep the pauses.
#[derive(Clone)]
pub struct KeepPauses {
    pub pauses: Pauses,
    pub metrics: Arc<Metrics>,
}

impl<S> Layer<S> for KeepPauses {
    type Service = Paused<S>;

    fn layer(&self, inner: S) -> Paused<S> {
        Paused { inner, keep: self.clone() }
    }
}

/// A client that keeps them.
pub struct Paused<S> {
    inner: S,
    keep: KeepPauses,
}

impl<S, A, B> Service<Request<A>> for Paused<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let flow = Flow::of(request.method(), request.uri().path());
        let KeepPauses { pauses, metrics } = self.keep.clone();
        // Nothing is sent before it is polled.
        let answer = self.inner.call(request);
        Box::pin(async move {
            if flow.waits_here() {
                pauses.over(flow).await;
            }
            let answer = answer.await?;
            if let Some(span) = asked(answer.status(), answer.headers()) {
                metrics.requests_refused.with_label_values(&[flow.as_str()]).inc();
                if pauses.begin(flow, span) {
                    let (status, seconds) = (answer.status().as_u16(), span.as_secs());
                    warn!(
                        requests = flow.as_str(),
                        status, seconds, "the API server is overloaded and asks for a pause"
                    );
                }
            }
            Ok(answer)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use axum::http::HeaderValue;
    use tower::ServiceExt;

    use super::*;

    #[test]
    fn requests_are_told_apart() {
        let of = |method: Method, path: &str| Flow::of(&method, path);
        let leases = "/apis/coordination.k8s.io/v1/namespaces/sheave-system/leases";
        assert_eq!(of(Method::PUT, &format!("{leases}/sheave-controller")), Flow::Lease);
        assert_eq!(of(Method::GET, &format!("{leases}/sheave-controller")), Flow::Lease);
        assert_eq!(of(Method::POST, leases), Flow::Lease);
        assert_eq!(of(Method::GET, leases), Flow::Reads, "its watch");
        assert_eq!(of(Method::GET, "/api/v1/services"), Flow::Reads);
        assert_eq!(of(Method::PATCH, "/api/v1/namespaces/a/services/b/status"), Flow::Writes);
        assert_eq!(of(Method::POST, "/apis/events.k8s.io/v1/namespaces/a/events"), Flow::Events);
    }

    /// A server that refuses its first request; how many it got.
    fn server(
        sent: Arc<AtomicU32>,
    ) -> impl Service<Request<()>, Response = Response<()>, Error = (), Future: Send + 'static> {
        tower::service_fn(move |_| {
            let sent = sent.clone();
            async move {
                let mut answer = Response::new(());
                if sent.fetch_add(1, Ordering::Relaxed) == 0 {
                    *answer.status_mut() = StatusCode::TOO_MANY_REQUESTS;
                    answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
                }
                Ok(answer)
            }
        })
    }

    #[tokio::test]
    async fn a_refusal_is_told_and_the_next_read_waits() {
        let sent: Arc<AtomicU32> = Arc::default();
        let (pauses, metrics) = (Pauses::default(), Arc::new(Metrics::register().unwrap()));
        let keep = KeepPauses { pauses: pauses.clone(), metrics: metrics.clone() };
        let mut client = keep.layer(server(sent.clone()));
        let read = || Request::get("/api/v1/services").body(()).unwrap();
        let first = client.ready().await.unwrap().call(read()).await.unwrap();
        assert_eq!((first.status(), sent.load(Ordering::Relaxed)), (StatusCode::TOO_MANY_REQUESTS, 1), "sent once");
        assert!(pauses.until(Flow::Reads).is_some() && pauses.until(Flow::Writes).is_none());
        let ends = pauses.until(Flow::Reads).unwrap();
        assert_eq!(client.ready().await.unwrap().call(read()).await.unwrap().status(), StatusCode::OK);
        assert!(Instant::now() >= ends, "it was sent before the end of the pause");
        assert_eq!(metrics.requests_refused.with_label_values(&["reads"]).get(), 1);
    }
}
