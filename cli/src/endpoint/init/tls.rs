//! What a port of an API server shows to a client: the certificate that is really served, and which names it has.

use std::io::{self, ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{
    self, CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme,
};

/// A handshake of a busy API server takes less.
const PATIENCE: Duration = Duration::from_secs(3);
const MOST_CA: u64 = 1 << 20;

/// What a port serves.
#[derive(Debug)]
pub enum Served {
    Certificate(Chain),
    /// Something listens.
    NoTls(String),
    /// Nothing listens, or it is silent.
    Nothing(String),
}

/// The server's own certificate and those that it sends with it.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    own: Option<CertificateDer<'static>>,
    others: Vec<CertificateDer<'static>>,
}

/// One connection and handshake. The certificate is not judged here.
pub fn look(at: SocketAddrV4) -> Served {
    let stream = match TcpStream::connect_timeout(&at.into(), PATIENCE) {
        Ok(stream) => stream,
        Err(error) => return Served::Nothing(error.to_string()),
    };
    let seen = Arc::new(Seen { provider: Arc::new(ring::default_provider()), chain: Mutex::default() });
    match handshake(stream, *at.ip(), seen.clone()) {
        // A server that wants a certificate of its clients has shown its own before.
        Ok(()) | Err(_) if seen.has_chain() => Served::Certificate(seen.take()),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            Served::Nothing(format!("no answer within {} s", PATIENCE.as_secs()))
        }
        Err(error) => Served::NoTls(error.to_string()),
        Ok(()) => Served::NoTls("no certificate".into()),
    }
}

fn handshake(mut stream: TcpStream, ip: Ipv4Addr, seen: Arc<Seen>) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let config = ClientConfig::builder_with_provider(seen.provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(seen)
        .with_no_client_auth();
    // No name is sent for an address (RFC 6066 section 3): the server chooses the certificate, as for kubectl.
    let name = ServerName::IpAddress(std::net::IpAddr::V4(ip).into());
    let mut connection = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    let mut limited = Limited { stream: &mut stream, left: MOST_HANDSHAKE };
    while connection.is_handshaking() {
        connection.complete_io(&mut limited)?;
    }
    Ok(())
}

const MOST_HANDSHAKE: usize = 1 << 20;

/// A server that goes on sending has an end.
struct Limited<'a> {
    stream: &'a mut TcpStream,
    left: usize,
}

impl Read for Limited<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(self.left);
        let length = self.stream.read(&mut buffer[..most])?;
        self.left -= length;
        Ok(length)
    }
}

impl io::Write for Limited<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl Chain {
    /// `Err`: the names that it has instead.
    pub fn names(&self, vip: Ipv4Addr) -> Result<(), String> {
        let own = self.own.as_ref().ok_or("no certificate")?;
        let name = ServerName::IpAddress(std::net::IpAddr::V4(vip).into());
        let certificate = ParsedCertificate::try_from(own).map_err(|error| error.to_string())?;
        verify_server_name(&certificate, &name).map_err(|error| match error {
            rustls::Error::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. }) => {
                presented.join(", ")
            }
            other => other.to_string(),
        })
    }

    /// Whether one of these has signed it, and it is valid now.
    pub fn is_signed_by(&self, roots: &RootCertStore) -> Result<(), String> {
        let own = self.own.as_ref().ok_or("no certificate")?;
        let certificate = ParsedCertificate::try_from(own).map_err(|error| error.to_string())?;
        let algorithms = ring::default_provider().signature_verification_algorithms;
        verify_server_cert_signed_by_trust_anchor(&certificate, roots, &self.others, UnixTime::now(), algorithms.all)
            .map_err(|error| error.to_string())
    }
}

/// `Ok(None)`: the file is not there yet.
pub fn roots(path: &Path) -> io::Result<Option<RootCertStore>> {
    let length = match std::fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        metadata => metadata?.len(),
    };
    if length > MOST_CA {
        return Err(io::Error::other(format!("{length} bytes, at most {MOST_CA}")));
    }
    let pem = std::fs::read(path)?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        roots.add(certificate.map_err(io::Error::other)?).map_err(io::Error::other)?;
    }
    if roots.is_empty() { Err(io::Error::other("no certificate in it")) } else { Ok(Some(roots)) }
}

/// Takes every certificate and keeps it.
#[derive(Debug)]
struct Seen {
    provider: Arc<CryptoProvider>,
    chain: Mutex<Chain>,
}

impl Seen {
    fn has_chain(&self) -> bool {
        self.chain.lock().unwrap_or_else(PoisonError::into_inner).own.is_some()
    }

    fn take(&self) -> Chain {
        std::mem::take(&mut self.chain.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ServerCertVerifier for Seen {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let others = others.iter().map(|one| one.clone().into_owned()).collect();
        let chain = Chain { own: Some(own.clone().into_owned()), others };
        *self.chain.lock().unwrap_or_else(PoisonError::into_inner) = chain;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn what_speaks_no_tls_is_told_from_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let std::net::SocketAddr::V4(at) = listener.local_addr().unwrap() else { unreachable!("bound to IPv4") };
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            io::Write::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        });
        assert!(matches!(look(at), Served::NoTls(_)));
        server.join().unwrap();
        assert!(matches!(look(at), Served::Nothing(_)), "refused");
    }

    #[test]
    fn a_ca_that_is_absent_may_come() {
        assert!(roots(Path::new("/nonexistent/ca.crt")).unwrap().is_none());
        assert!(roots(Path::new("/etc/hostname")).is_err(), "no certificate");
    }
}
