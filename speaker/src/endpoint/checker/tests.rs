//! Checks against real TLS servers on the loopback, with certificates made for the test.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use sheave_endpoint::Credential;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::*;

/// A folder of its own for each test.
struct Files(PathBuf);

impl Files {
    fn new(test: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("sheave-checker-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        pem("CERTIFICATE", self.0.der())
    }

    /// Certificate and key for a name.
    fn issue(&self, name: &str) -> (CertificateDer<'static>, KeyPair, String) {
        self.issue_for(CertificateParams::new(vec![name.to_owned()]).unwrap())
    }

    fn issue_for(&self, params: CertificateParams) -> (CertificateDer<'static>, KeyPair, String) {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.der().clone(), key, pem("CERTIFICATE", certificate.der()))
    }
}

/// Which certificate a server has and what it answers.
struct Server {
    acceptor: TlsAcceptor,
    answer: fn(&str) -> &'static str,
}

impl Server {
    fn new(ca: &Ca, name: &str, clients: Option<&Ca>, answer: fn(&str) -> &'static str) -> Self {
        Self::with(ca.issue(name), clients, answer)
    }

    fn with(
        (certificate, key, _): (CertificateDer<'static>, KeyPair, String),
        clients: Option<&Ca>,
        answer: fn(&str) -> &'static str,
    ) -> Self {
        let provider = Arc::new(ring::default_provider());
        let builder =
            ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(clients) => {
                let mut roots = RootCertStore::empty();
                roots.add(clients.0.der().clone()).unwrap();
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
                builder.with_client_cert_verifier(verifier)
            }
        };
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        let config = builder.with_single_cert(vec![certificate], key.into()).unwrap();
        Self { acceptor: TlsAcceptor::from(Arc::new(config)), answer }
    }

    /// Serves for as long as the runtime lives.
    async fn start(self) -> Target {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // A client that refuses the certificate is no fault of the server.
                let Ok(mut stream) = self.acceptor.accept(stream).await else { continue };
                let mut request = vec![0; 2048];
                let Ok(length) = stream.read(&mut request).await else { continue };
                let answer = (self.answer)(std::str::from_utf8(&request[..length]).unwrap());
                // So is one that has gone.
                stream.write_all(answer.as_bytes()).await.ok();
                stream.shutdown().await.ok();
            }
        });
        Target { address: Ipv4Addr::LOCALHOST, port }
    }
}

async fn check(target: Target, kind: Check, health: Health) -> Outcome {
    checker(target, kind, health).check(target).await
}

fn checker(target: Target, kind: Check, health: Health) -> Checker {
    Checker::new([(target.port, kind)].into(), &health, Duration::from_millis(500)).unwrap()
}

fn trusting(ca: PathBuf) -> Health {
    Health { ca_file: Some(ca), ..Health::default() }
}

#[tokio::test]
async fn statuses_of_an_api_server() {
    let (files, ca) = (Files::new("statuses"), Ca::new());
    let health = trusting(files.write("ca.crt", &ca.pem()));
    type Says = fn(&str) -> &'static str;
    let answers: [(Says, Outcome); 6] = [
        (|_| "HTTP/1.1 200 OK\r\n\r\nok", Outcome::Ready),
        (|_| "HTTP/1.1 401 Unauthorized\r\n\r\n", Outcome::Unauthorized),
        (|_| "HTTP/1.1 403 Forbidden\r\n\r\n", Outcome::Unauthorized),
        (|_| "HTTP/1.1 500 Internal Server Error\r\n\r\n", Outcome::NotReady(500)),
        (|_| "SSH-2.0-OpenSSH_9.2\r\n", Outcome::Protocol),
        (|_| "", Outcome::Refused),
    ];
    for (answer, expected) in answers {
        let target = Server::new(&ca, NAME, None, answer).start().await;
        assert_eq!(check(target, Check::Https, health.clone()).await, expected);
        assert_eq!(check(target, Check::Tls, health.clone()).await, Outcome::Handshake);
    }
}

#[tokio::test]
async fn the_certificate_is_verified_for_the_api_servers_name() {
    let (files, ca) = (Files::new("certificates"), Ca::new());
    let ok = |_: &str| "HTTP/1.1 200 OK\r\n\r\n";
    let right = Server::new(&ca, NAME, None, ok).start().await;
    let name = Server::new(&ca, "example.org", None, ok).start().await;
    let health = trusting(files.write("ca.crt", &ca.pem()));
    let other = trusting(files.write("other.crt", &Ca::new().pem()));
    let insecure = Health { insecure_skip_verify: true, ..Health::default() };
    for (target, health, expected) in [
        (right, &health, Outcome::Ready),
        (name, &health, Outcome::Certificate),
        (right, &other, Outcome::Certificate),
        (name, &insecure, Outcome::Ready),
    ] {
        assert_eq!(check(target, Check::Https, health.clone()).await, expected);
    }
}

#[tokio::test]
async fn a_certificate_out_of_its_time_is_a_doubt_of_its_own() {
    let (files, ca, other) = (Files::new("times"), Ca::new(), Ca::new());
    let health = trusting(files.write("ca.crt", &ca.pem()));
    let (past, future) = ((2020, 2021), (2120, 2121));
    for (ca, name, (from, until), expected) in [
        (&ca, NAME, past, Outcome::CertificateTime),
        (&ca, NAME, future, Outcome::CertificateTime),
        (&ca, NAME, (2020, 2121), Outcome::Ready),
        // The time is not all that is wrong.
        (&other, NAME, past, Outcome::Certificate),
        (&other, NAME, future, Outcome::Certificate),
        (&ca, "example.org", past, Outcome::Certificate),
        (&ca, "example.org", future, Outcome::Certificate),
    ] {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        let target = Server::with(ca.issue_for(params), None, |_| "HTTP/1.1 200 OK\r\n\r\n").start().await;
        assert_eq!(check(target, Check::Https, health.clone()).await, expected, "{name}, {from} to {until}");
        assert_eq!(check(target, Check::Tls, health.clone()).await, Outcome::Handshake);
    }
}

/// As an API server whose etcd does not answer: its readiness waits for longer than a check.
#[tokio::test]
async fn a_server_that_completes_the_handshake_and_says_nothing_is_slow_and_not_silent() {
    let (files, ca) = (Files::new("slow"), Ca::new());
    let health = trusting(files.write("ca.crt", &ca.pem()));
    let (certificate, key, _) = ca.issue(NAME);
    let server = Server::with((certificate, key, String::new()), None, |_| "");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target { address: Ipv4Addr::LOCALHOST, port: listener.local_addr().unwrap().port() };
    let checked = check(target, Check::Https, health.clone());
    let serves = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = server.acceptor.accept(stream).await.unwrap();
        // Until the client goes.
        stream.read_to_end(&mut Vec::new()).await.ok();
    };
    assert_eq!(tokio::join!(checked, serves).0, Outcome::Slow);
    // The kernel accepts for a server that has stopped.
    assert_eq!(check(target, Check::Https, health).await, Outcome::Silent);
}

#[tokio::test]
async fn the_ca_file_is_read_when_it_comes_and_when_it_changes() {
    let (files, ca, next) = (Files::new("renewed"), Ca::new(), Ca::new());
    let target = Server::new(&ca, NAME, None, |_| "HTTP/1.1 200 OK\r\n\r\n").start().await;
    let path = files.0.join("ca.crt");
    let checker = checker(target, Check::Https, trusting(path.clone()));
    assert_eq!(checker.check(target).await, Outcome::CaMissing);
    for (text, expected) in [
        (ca.pem(), Outcome::Ready),
        (next.pem(), Outcome::Certificate),
        (next.pem() + &ca.pem(), Outcome::Ready),
        ("no certificate".into(), Outcome::Credential),
        (ca.pem(), Outcome::Ready),
    ] {
        files.write("ca.crt", &text);
        assert_eq!(checker.check(target).await, expected, "{text}");
    }
    std::fs::remove_file(path).unwrap();
    assert_eq!(checker.check(target).await, Outcome::CaMissing);
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let closed = Target { port: closed.port(), ..target };
    let refused = self::checker(closed, Check::Https, trusting(files.0.join("ca.crt"))).check(closed).await;
    assert_eq!(refused, Outcome::Refused, "what does not answer does not serve in doubt");
    assert!(Outcome::CaMissing.serves_in_doubt() && Outcome::Credential.serves_in_doubt());
}

#[tokio::test]
async fn a_token_and_a_certificate_are_shown() {
    let (files, ca, clients) = (Files::new("credentials"), Ca::new(), Ca::new());
    let by_token = |request: &str| match request.contains("\r\nAuthorization: Bearer t0ken\r\n") {
        true => "HTTP/1.1 200 OK\r\n\r\n",
        false => "HTTP/1.1 401 Unauthorized\r\n\r\n",
    };
    let trusted = trusting(files.write("ca.crt", &ca.pem()));
    let target = Server::new(&ca, NAME, None, by_token).start().await;
    let token = Some(Credential::Token(files.write("token", "t0ken\n")));
    assert_eq!(check(target, Check::Https, Health { credential: token, ..trusted.clone() }).await, Outcome::Ready);
    assert_eq!(check(target, Check::Https, trusted.clone()).await, Outcome::Unauthorized);

    let target = Server::new(&ca, NAME, Some(&clients), |_| "HTTP/1.1 200 OK\r\n\r\n").start().await;
    let (_, key, certificate) = clients.issue("sheave");
    let (certificate, key) =
        (files.write("tls.crt", &certificate), files.write("tls.key", &pem("PRIVATE KEY", &key.serialize_der())));
    let credential = Some(Credential::Certificate { certificate, key });
    assert_eq!(check(target, Check::Https, Health { credential, ..trusted.clone() }).await, Outcome::Ready);
    // konnectivity wants one of its clients: that it asks is the answer.
    assert_eq!(check(target, Check::Tls, trusted).await, Outcome::Handshake);
}

#[tokio::test]
async fn a_port_that_is_closed_or_silent_or_no_tls() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    let (silent_port, plain_port) = (port(&silent), port(&plain));
    tokio::spawn(async move {
        let (mut stream, _) = plain.accept().await.unwrap();
        stream.write_all(b"220 mail.example.org ESMTP\r\n").await.unwrap();
        // Until the client has gone.
        let _ = stream.read(&mut [0; 1024]).await;
    });
    for (port, expected) in
        [(closed, Outcome::Refused), (silent_port, Outcome::Silent), (plain_port, Outcome::Protocol)]
    {
        let target = Target { address: Ipv4Addr::LOCALHOST, port };
        assert_eq!(check(target, Check::Tls, Health::default()).await, expected);
    }
}

/// At the start, so that a person learns of it.
#[test]
fn a_file_that_cannot_be_used_has_a_message() {
    let (files, ca) = (Files::new("messages"), Ca::new());
    let bad = files.write("bad", "no PEM");
    let good = files.write("ca.crt", &ca.pem());
    let (_, key, certificate) = ca.issue("sheave");
    let certificate = files.write("tls.crt", &certificate);
    let key = files.write("tls.key", &pem("PRIVATE KEY", &key.serialize_der()));
    let with = |credential| Health { credential: Some(credential), ..trusting(good.clone()) };
    let token = files.write("token", "two words");
    let shown = |path: &PathBuf| format!("{path:?}");
    for (health, expected) in [
        (trusting(bad.clone()), format!("health.caFile: {} is refused: a PEM file with certificates", shown(&bad))),
        (
            with(Credential::Certificate { certificate: bad.clone(), key: key.clone() }),
            format!("health.clientCert: {} is refused: a PEM certificate", shown(&bad)),
        ),
        (
            with(Credential::Certificate { certificate: certificate.clone(), key: bad.clone() }),
            format!("health.clientKey: {} is refused: a PEM private key", shown(&bad)),
        ),
        (
            with(Credential::Token(token.clone())),
            format!("health.tokenFile: {} is refused: a bearer token of at most 8192 characters", shown(&token)),
        ),
    ] {
        assert_eq!(trust::check(&health).unwrap_err().to_string(), expected);
    }
    assert_eq!(trust::check(&with(Credential::Certificate { certificate, key })), Ok(()));
    assert_eq!(trust::check(&trusting(files.0.join("absent"))), Ok(()), "it comes with the first API server");
}
