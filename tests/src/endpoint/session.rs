//! One connection of a client to an API server: TCP, a TLS handshake, HTTP/2. The certificate says which API server it is.

use std::io::{self, Cursor, ErrorKind};
use std::net::{IpAddr, SocketAddrV4};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use h2::RecvStream;
use h2::client::{Builder, SendRequest};
use http::{Method, Request, Response};
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::lab::ha::Ha;

/// What a client of the lab's API servers knows.
#[derive(Debug)]
pub struct Access {
    tls: Arc<ClientConfig>,
    token: String,
    /// Audit logs tell the clients apart by it.
    user_agent: &'static str,
    ha: Ha,
    /// Their nodes by certificate, those of before a renewal as well.
    servers: Mutex<Vec<(CertificateDer<'static>, String)>>,
}

/// Why a connection failed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Failure {
    Refused,
    Reset,
    /// Without a TLS handshake for [`PATIENCE`].
    NoHandshake,
    Other(String),
}

/// A connection, with the API server that serves it.
pub struct Session {
    pub server: String,
    send: SendRequest<Body>,
}

/// Of a request.
type Body = Cursor<Vec<u8>>;

/// A connection without a TLS handshake after that has failed.
pub const PATIENCE: Duration = Duration::from_secs(4);
/// Of the client on the segment, and of those on nodes.
pub const USER_AGENT: &str = "sheave-endpoint-client";
pub const ON_NODE: &str = "sheave-endpoint-node";

impl Access {
    pub fn of(ha: &Ha, user_agent: &'static str) -> Result<Arc<Self>> {
        let mut roots = RootCertStore::empty();
        roots.add(read(&ha.authority())?)?;
        let mut tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        // Each connection is a new one, as of a new process.
        tls.resumption = Resumption::disabled();
        let servers = Mutex::new(certificates(ha)?);
        Ok(Arc::new(Self { tls: Arc::new(tls), token: ha.token()?, user_agent, ha: ha.clone(), servers }))
    }

    /// In the network namespace of the calling thread.
    pub async fn open(&self, to: SocketAddrV4) -> Result<Session, Failure> {
        let tls = timeout(PATIENCE, self.handshake(to)).await.map_err(|_| Failure::NoHandshake)??;
        let server = self.server(&tls)?;
        let (send, connection) = Builder::new().handshake(tls).await.map_err(|error| Failure::of(&error))?;
        // Its end shows at the requests.
        tokio::spawn(connection);
        Ok(Session { server, send })
    }

    /// Whose handshake completes: also where no API server stands.
    pub async fn reach(&self, to: SocketAddrV4) -> Result<String, Failure> {
        let tls = timeout(PATIENCE, self.handshake(to)).await.map_err(|_| Failure::NoHandshake)??;
        self.server(&tls)
    }

    /// Whether a server has the certificate of a node's API server that is in its file now.
    pub async fn has_newest(&self, to: SocketAddrV4, node: &str) -> Result<bool> {
        let newest = read(&self.ha.certificate(node))?;
        Ok(self.handshake(to).await.is_ok_and(|tls| certificate(&tls) == Some(&newest)))
    }

    /// Whose certificate that is.
    fn server(&self, tls: &TlsStream<TcpStream>) -> Result<String, Failure> {
        let shown = certificate(tls).ok_or_else(|| Failure::Other("no certificate".into()))?;
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |servers: &[(CertificateDer<'static>, String)]| {
            servers.iter().find(|(known, _)| known == shown).map(|(_, node)| node.clone())
        };
        if let Some(server) = of(&servers) {
            return Ok(server);
        }
        servers.extend(certificates(&self.ha).map_err(|error| Failure::Other(format!("{error:#}")))?);
        of(&servers).ok_or_else(|| Failure::Other("a certificate of none of the API servers".into()))
    }

    async fn handshake(&self, to: SocketAddrV4) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        TlsConnector::from(self.tls.clone()).connect(ServerName::IpAddress(IpAddr::V4(*to.ip()).into()), stream).await
    }
}

fn certificate(tls: &TlsStream<TcpStream>) -> Option<&CertificateDer<'static>> {
    tls.get_ref().1.peer_certificates()?.first()
}

/// As they are in the files now.
fn certificates(ha: &Ha) -> Result<Vec<(CertificateDer<'static>, String)>> {
    ha.nodes().into_iter().map(|node| Ok((read(&ha.certificate(&node))?, node))).collect()
}

fn read(path: &Path) -> Result<CertificateDer<'static>> {
    CertificateDer::from_pem_file(path).with_context(|| path.display().to_string())
}

impl Session {
    /// Returns with the answer's head.
    pub async fn request(
        &mut self,
        access: &Access,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<Response<RecvStream>, h2::Error> {
        let request = Request::builder()
            .method(method)
            .uri(format!("https://kubernetes.default.svc{path}"))
            .header("authorization", format!("Bearer {}", access.token))
            .header("user-agent", access.user_agent)
            .header("accept", "application/json")
            .header("content-type", "application/merge-patch+json")
            .body(())
            .map_err(|_| h2::Error::from(h2::Reason::INTERNAL_ERROR))?;
        let (answer, mut stream) = self.send.clone().ready().await?.send_request(request, body.is_empty())?;
        if !body.is_empty() {
            stream.send_data(Body::new(body), true)?;
        }
        answer.await
    }
}

impl Failure {
    pub fn label(&self) -> &str {
        match self {
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::NoHandshake => "no TLS handshake after 4 s",
            Self::Other(why) => why,
        }
    }

    fn of(error: &h2::Error) -> Self {
        match error.get_io() {
            Some(io) if io.kind() == ErrorKind::ConnectionReset => Self::Reset,
            _ => Self::Other(error.to_string()),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof => Self::Reset,
            // The kernel's own patience is longer: a host that answers no ARP request.
            _ => Self::Other(error.to_string()),
        }
    }
}
