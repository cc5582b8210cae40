//! Pauses that an overloaded API server asks for when it refuses the status of a VirtualIP. Nothing is sent again behind the writer's back,
//! as the client library would: what waits meanwhile is replaced by what is newer.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::Response;
use axum::http::header::RETRY_AFTER;
use kube::Client;
use kube::client::ClientBuilder;
use sheave_api::kubernetes::retry_after;
use tokio::time::Instant;
use tower::util::MapResponseLayer;

/// For a connection, and for an answer on it. A connection that hangs (the API server's node lost power) is given up and replaced.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// The end of the last pause that was asked for.
#[derive(Clone, Default)]
pub struct Overload(Arc<Mutex<Option<Instant>>>);

impl Overload {
    /// The end of the pause; None if there is none.
    pub fn until(&self) -> Option<Instant> {
        let ends = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ends.filter(|at| *at > Instant::now())
    }

    fn note<B>(&self, answer: &Response<B>) {
        let header = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        if let Some(pause) = retry_after(answer.status().as_u16(), header) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + pause);
        }
    }
}

/// Its connections are its own: no watch rests on them.
pub fn client(mut config: kube::Config) -> kube::Result<(Client, Overload)> {
    config.connect_timeout = Some(PATIENCE);
    config.read_timeout = Some(PATIENCE);
    config.default_retry = false;
    let overload = Overload::default();
    let noted = overload.clone();
    let note = MapResponseLayer::new(move |answer: Response<_>| {
        noted.note(&answer);
        answer
    });
    Ok((ClientBuilder::try_from(config)?.with_layer(&note).build(), overload))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use k8s_openapi::jiff::Timestamp;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::sync::{mpsc, watch};

    use super::*;
    use crate::mailbox;
    use crate::status::{Elected, Ownership, Sources, run};

    /// An API server that refuses its first request, and knows no VirtualIP. When it got each.
    async fn server(got: mpsc::UnboundedSender<Instant>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let mut heads = ["429 Too Many Requests\r\nRetry-After: 2"].into_iter();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 4096];
                while stream.read(&mut request).await.is_ok_and(|length| length > 0) {
                    got.send(Instant::now()).unwrap();
                    let head = heads.next().unwrap_or("404 Not Found");
                    let answer = format!("HTTP/1.1 {head}\r\nContent-Length: 0\r\n\r\n");
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            }
        });
        address
    }

    /// The others are not even tried: they would be refused as well.
    #[tokio::test]
    async fn a_refusal_makes_all_statuses_wait() {
        let (got, mut requests) = mpsc::unbounded_channel();
        let (client, overload) = client(kube::Config::new(server(got).await.parse().unwrap())).unwrap();
        let (updates, waiting) = mailbox::channel(usize::MAX);
        for last in 1..=3 {
            let owned = Ownership::Owned { term: 1, since: Timestamp::UNIX_EPOCH };
            updates.send(Ipv4Addr::new(192, 0, 2, last), owned).unwrap();
        }
        let ((_owners, seen), (_views, views)) = (mailbox::channel(usize::MAX), watch::channel(None));
        let sources = Sources { seen, views, elected: Arc::new(Elected::default()), health: Arc::default() };
        tokio::spawn(run((client, overload), "us".into(), waiting, sources));
        let mut at = Vec::new();
        for _ in 0..4 {
            at.push(requests.recv().await.unwrap());
        }
        assert!(at[1] - at[0] >= Duration::from_secs(2), "the next request was sent {:?} later", at[1] - at[0]);
        drop(updates);
        assert!(requests.try_recv().is_err(), "each status is asked for once after that");
    }
}
