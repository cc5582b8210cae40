//! `/metrics`: open on the loopback; on any other address over TLS, and only for those whom the API server lets `get` the
//! `nonResourceURL` (`access`).

use axum::{Router, middleware};
use kube::Client;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::access::{self, Access};
use crate::tls;
pub use crate::tls::TlsError;

pub struct Server {
    listener: TcpListener,
    /// `None`: only this machine, or this pod, reaches it.
    tls: Option<TlsAcceptor>,
}

impl Server {
    /// `name`: of the process, for the certificate.
    pub fn new(listener: TcpListener, name: &str) -> Result<Self, TlsError> {
        let open = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
        let tls = if open { None } else { Some(tls::self_signed(name)?) };
        Ok(Self { listener, tls })
    }

    /// Serves for as long as it is polled. Without a client that asks the API server, the loopback alone is served.
    pub async fn serve(self, router: Router, client: Option<Client>, limit_reached: impl Fn()) {
        let router = match (&self.tls, client) {
            (None, _) => router,
            (Some(_), Some(client)) => {
                router.layer(middleware::from_fn_with_state(Access::new(client), access::require))
            }
            (Some(_), None) => Router::new(),
        };
        crate::serve_with(self.tls, self.listener, router, limit_reached).await;
    }
}
