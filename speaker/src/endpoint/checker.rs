//! One check of an API server: a connection, a TLS handshake, and where the port speaks HTTP, GET /readyz.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use sheave_endpoint::{Check, Health};
use speaker_core::health::{Outcome, Target};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, AlertDescription, ClientConfig};

use super::trust::{self, Trust};
use super::verifier;

/// Every API server's certificate has it.
const NAME: &str = "kubernetes.default.svc";
/// So long before a check is given up by the one who asked for it, what is known of the server is said.
const TO_SAY: Duration = Duration::from_millis(100);
/// "HTTP/1.1 200": as much is read of an answer.
const STATUS: usize = 12;

#[derive(Clone)]
pub struct Checker(Arc<Inner>);

struct Inner {
    /// By port of the members.
    checks: BTreeMap<u16, Check>,
    trust: Trust,
    unverified: Arc<ClientConfig>,
    name: ServerName<'static>,
    timeout: Duration,
}

impl Checker {
    pub fn new(checks: BTreeMap<u16, Check>, health: &Health, timeout: Duration) -> Result<Self> {
        let name = ServerName::try_from(NAME).context("name of the API server")?;
        let trust = Trust::new(health.clone());
        Ok(Self(Arc::new(Inner { checks, trust, unverified: trust::unverified(), name, timeout })))
    }

    pub async fn check(&self, target: Target) -> Outcome {
        let inner = &self.0;
        let kind = inner.checks.get(&target.port).copied().unwrap_or(Check::Tls);
        let to = SocketAddrV4::new(target.address, target.port);
        let attempt = async {
            match kind {
                Check::Tls => inner.handshake(to, inner.unverified.clone()).await.map(|_| Outcome::Handshake),
                Check::Https => inner.readyz(to).await,
            }
        };
        match timeout(inner.timeout, attempt).await {
            Ok(Ok(outcome) | Err(outcome)) => outcome,
            Err(_) => Outcome::Silent,
        }
    }
}

impl Inner {
    /// A server that completes the handshake serves, also where its readiness waits for its etcd for longer than a check does.
    async fn readyz(&self, to: SocketAddrV4) -> Result<Outcome, Outcome> {
        let end = Instant::now() + self.timeout.saturating_sub(TO_SAY);
        let session = match self.trust.session() {
            Ok(session) => session,
            // A file that is missing on each node must not stop servers that live: unchecked they serve in doubt.
            Err(refused) => return self.handshake(to, self.unverified.clone()).await.map(|_| refused.outcome),
        };
        let stream = self.handshake(to, session.tls.clone()).await?;
        timeout_at(end, self.status(stream, session)).await.unwrap_or(Err(Outcome::Slow))
    }

    async fn status(&self, mut stream: TlsStream<TcpStream>, session: trust::Session) -> Result<Outcome, Outcome> {
        let bearer = session.token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        let request = format!(
            "GET /readyz HTTP/1.1\r\nHost: {NAME}\r\nUser-Agent: sheave-speaker\r\n{bearer}Accept: */*\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.map_err(|error| outcome(&error))?;
        let mut answer = [0; STATUS];
        stream.read_exact(&mut answer).await.map_err(|error| outcome(&error))?;
        Ok(judge(&answer))
    }

    async fn handshake(&self, to: SocketAddrV4, tls: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>, Outcome> {
        let stream = TcpStream::connect(to).await.map_err(|error| outcome(&error))?;
        // A reset when it ends: checks leave no port in TIME_WAIT.
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).map_err(|error| outcome(&error))?;
        TlsConnector::from(tls).connect(self.name.clone(), stream).await.map_err(|error| outcome(&error))
    }
}

fn judge(answer: &[u8; STATUS]) -> Outcome {
    let status = answer.strip_prefix(b"HTTP/1.").and_then(|rest| std::str::from_utf8(rest.get(2..5)?).ok());
    match status.and_then(|status| status.parse::<u16>().ok()) {
        Some(200) => Outcome::Ready,
        Some(401 | 403) => Outcome::Unauthorized,
        Some(status @ 100..) => Outcome::NotReady(status),
        Some(_) | None => Outcome::Protocol,
    }
}

/// What an error of a connection or of TLS says about the server.
fn outcome(error: &io::Error) -> Outcome {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match (tls, error.kind()) {
        (Some(rustls::Error::InvalidCertificate(error)), _) if verifier::its_time(error).is_some() => {
            Outcome::CertificateTime
        }
        (Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented), _) => {
            Outcome::Certificate
        }
        // It wants a certificate of its clients: TLS is spoken.
        (Some(rustls::Error::AlertReceived(alert)), _) if wants_certificate(*alert) => Outcome::Handshake,
        (Some(_), _) => Outcome::Protocol,
        (None, ErrorKind::TimedOut | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable) => Outcome::Silent,
        (None, _) => Outcome::Refused,
    }
}

fn wants_certificate(alert: AlertDescription) -> bool {
    use AlertDescription::{BadCertificate, CertificateRequired, CertificateUnknown, UnknownCA};
    matches!(alert, BadCertificate | CertificateRequired | CertificateUnknown | UnknownCA)
}

#[cfg(test)]
mod tests;
