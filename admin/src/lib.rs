//! HTTP on the admin ports of speaker and controller: probes for the kubelet, without authentication, and metrics ([`metrics`]);
//! and on a speaker's Unix socket. Beside it what both do about their own memory ([`memory`]).
//!
//! Whoever reaches these ports, the process behind them holds the lease. So memory and descriptors are
//! bounded whatever clients do, and a probe of kubelet is answered beside them: a connection serves one request, has
//! [`CONNECTION`] for all of it, holds at most [`MAX_HEADER`] of unfinished headers, and the one connection too many ends the oldest.

mod access;
pub mod memory;
pub mod metrics;
mod tls;

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

/// Connections at a time.
pub const MAX_CONNECTIONS: usize = 64;
/// Bytes of a request before its headers are complete. More is answered with 431.
pub const MAX_HEADER: usize = 16 * 1024;
/// Lines of it.
const MAX_HEADER_LINES: usize = 64;
/// For the headers of a request. Kubelet gives a probe 2 s or 3 s in all.
pub const HEADER: Duration = Duration::from_secs(5);
/// For a request and its answer.
pub const CONNECTION: Duration = Duration::from_secs(10);
/// After the kernel had no descriptor for a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves for as long as it is polled. `limit_reached` is called for each connection that is ended in favor of a newer one.
pub async fn serve(listener: TcpListener, router: Router, limit_reached: impl Fn()) {
    serve_with(None, listener, router, limit_reached).await;
}

/// The same on a socket of this node: who may open it, its file says.
pub async fn serve_unix(listener: UnixListener, router: Router, limit_reached: impl Fn()) {
    serve_with(None, listener, router, limit_reached).await;
}

/// Where connections come from.
trait Listener {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>>;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<TcpStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<UnixStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

async fn serve_with(tls: Option<TlsAcceptor>, listener: impl Listener, router: Router, limit_reached: impl Fn()) {
    let mut open = Open::default();
    loop {
        match listener.next().await {
            Ok(stream) => {
                if open.make_room() {
                    limit_reached();
                }
                open.0.push_back(tokio::spawn(connection(stream, tls.clone(), router.clone())));
            }
            Err(error) if is_of_one_client(&error) => {}
            Err(error) => {
                warn!(%error, "admin port: connection not accepted");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Connections in the order in which they came; all end with the server.
#[derive(Default)]
struct Open(VecDeque<JoinHandle<()>>);

impl Open {
    /// True if a connection was ended for it. The oldest: a probe is answered within milliseconds, so it is the newest.
    fn make_room(&mut self) -> bool {
        if self.0.len() < MAX_CONNECTIONS {
            return false;
        }
        self.0.retain(|task| !task.is_finished());
        if self.0.len() < MAX_CONNECTIONS {
            return false;
        }
        if let Some(oldest) = self.0.pop_front() {
            oldest.abort();
        }
        true
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin, tls: Option<TlsAcceptor>, router: Router) {
    let served = async {
        match tls {
            None => one_request(stream, router).await,
            Some(tls) => match tls.accept(stream).await {
                Ok(stream) => one_request(stream, router).await,
                Err(error) => debug!(%error, "admin port: TLS handshake failed"),
            },
        }
    };
    if timeout(CONNECTION, served).await.is_err() {
        debug!("admin port: request not served in time");
    }
}

async fn one_request(stream: impl AsyncRead + AsyncWrite + Unpin, router: Router) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER)
        .keep_alive(false)
        .max_buf_size(MAX_HEADER)
        .max_headers(MAX_HEADER_LINES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    if let Err(error) = served.await {
        debug!(%error, "admin port: request not served");
    }
}

/// The client went away before it was accepted.
fn is_of_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

#[cfg(test)]
mod tests;
