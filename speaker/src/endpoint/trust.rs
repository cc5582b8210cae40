//! What a check verifies with and shows: CA file, client certificate, token. Read at each check, used anew when a byte changed: kubeadm and
//! kubelet renew them under a running speaker.

use std::fmt;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use sheave_endpoint::{Credential, Health};
use speaker_core::health::Outcome;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tracing::{info, warn};

use super::verifier;

/// With what a check is made.
#[derive(Clone)]
pub struct Session {
    pub tls: Arc<ClientConfig>,
    pub token: Option<Arc<str>>,
}

pub struct Trust {
    health: Health,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    files: Files,
    session: Option<Result<Session, Refused>>,
}

/// The bytes of the files. Without `Debug`: keys are among them.
#[derive(Default, PartialEq)]
struct Files {
    ca: Option<Vec<u8>>,
    certificate: Option<Vec<u8>>,
    key: Option<Vec<u8>>,
    token: Option<Vec<u8>>,
}

/// Why no check can be made: its outcome, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub outcome: Outcome,
    pub why: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for Refused {}

/// What is there must be usable; what is absent may come with the first API server.
pub fn check(health: &Health) -> Result<(), Refused> {
    match Trust::new(health.clone()).session() {
        Err(refused) if refused.outcome == Outcome::Credential && !refused.why.ends_with(ABSENT) => Err(refused),
        _ => Ok(()),
    }
}

impl Trust {
    pub fn new(health: Health) -> Self {
        Self { health, known: Mutex::default() }
    }

    /// By the files as they are now.
    pub fn session(&self) -> Result<Session, Refused> {
        let files = match self.read() {
            Ok(files) => files,
            Err(refused) => return self.keep(None, Err(refused)),
        };
        {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if let (true, Some(session)) = (known.files == files, &known.session) {
                return session.clone();
            }
        }
        let session = self.build(&files);
        self.keep(Some(files), session)
    }

    fn keep(&self, files: Option<Files>, session: Result<Session, Refused>) -> Result<Session, Refused> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known.session.replace(session.clone());
        known.files = files.unwrap_or_default();
        match (&before, &session) {
            (Some(Err(before)), Err(now)) if before == now => {}
            (_, Err(refused)) => {
                warn!(reason = refused.outcome.label(), error = %refused, "API servers not verified until that changes; they get connections while no other is ready")
            }
            (Some(_), Ok(_)) => info!("files of the checks have changed; used from now on"),
            (None, Ok(_)) => {}
        }
        session
    }

    fn read(&self) -> Result<Files, Refused> {
        let ca =
            self.health.ca_file.as_deref().map(|path| read("health.caFile", path, Outcome::CaMissing)).transpose()?;
        let read = |field, path: &PathBuf| read(field, path, Outcome::Credential);
        let (certificate, key, token) = match &self.health.credential {
            None => (None, None, None),
            Some(Credential::Certificate { certificate, key }) => {
                (Some(read("health.clientCert", certificate)?), Some(read("health.clientKey", key)?), None)
            }
            Some(Credential::Token(token)) => (None, None, Some(read("health.tokenFile", token)?)),
        };
        Ok(Files { ca, certificate, key, token })
    }

    fn build(&self, files: &Files) -> Result<Session, Refused> {
        let config = verifier::config(match &files.ca {
            Some(pem) => verifier::by(self.roots(pem)?).map_err(|_| self.unusable("health.caFile", CERTIFICATES))?,
            None => verifier::none(),
        });
        let mut tls = match (&files.certificate, &files.key) {
            (Some(certificate), Some(key)) => {
                let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<Vec<_>, _>>();
                let chain = chain.ok().filter(|chain| !chain.is_empty());
                let chain = chain.ok_or_else(|| self.unusable("health.clientCert", "a PEM certificate"))?;
                let key = PrivateKeyDer::from_pem_slice(key);
                let key = key.map_err(|_| self.unusable("health.clientKey", "a PEM private key"))?;
                let with = config.with_client_auth_cert(chain, key);
                with.map_err(|error| {
                    self.unusable("health.clientKey", &format!("the key of health.clientCert ({error})"))
                })?
            }
            _ => config.with_no_client_auth(),
        };
        // Each check is a whole handshake: it sees the certificate of now.
        tls.resumption = Resumption::disabled();
        let token = files.token.as_ref().map(|token| self.token(token)).transpose()?;
        Ok(Session { tls: Arc::new(tls), token })
    }

    fn roots(&self, pem: &[u8]) -> Result<RootCertStore, Refused> {
        let mut roots = RootCertStore::empty();
        let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().unwrap_or_default();
        let added = certificates.into_iter().try_for_each(|certificate| roots.add(certificate));
        if added.is_err() || roots.is_empty() {
            return Err(self.unusable("health.caFile", CERTIFICATES));
        }
        Ok(roots)
    }

    /// As it may stand in a header.
    fn token(&self, token: &[u8]) -> Result<Arc<str>, Refused> {
        let text = std::str::from_utf8(token).unwrap_or_default().trim();
        let valid = !text.is_empty() && text.len() <= MAX_TOKEN && text.bytes().all(|byte| byte.is_ascii_graphic());
        if valid {
            Ok(text.into())
        } else {
            Err(self.unusable("health.tokenFile", "a bearer token of at most 8192 characters"))
        }
    }

    fn unusable(&self, field: &str, allowed: &str) -> Refused {
        let path = match (field, &self.health.credential) {
            ("health.caFile", _) => self.health.ca_file.as_deref(),
            ("health.clientCert", Some(Credential::Certificate { certificate, .. })) => Some(certificate.as_path()),
            ("health.clientKey", Some(Credential::Certificate { key, .. })) => Some(key.as_path()),
            (_, Some(Credential::Token(token))) => Some(token.as_path()),
            _ => None,
        };
        let path = path.unwrap_or(Path::new(""));
        Refused { outcome: Outcome::Credential, why: format!("{field}: {path:?} is refused: {allowed}") }
    }
}

/// For ports whose certificates are by other CAs and for other names: that TLS is spoken is all that is asked.
pub fn unverified() -> Arc<ClientConfig> {
    let mut tls = verifier::config(verifier::none()).with_no_client_auth();
    tls.resumption = Resumption::disabled();
    Arc::new(tls)
}

fn read(field: &str, path: &Path, missing: Outcome) -> Result<Vec<u8>, Refused> {
    let bounded = || -> io::Result<Vec<u8>> {
        let length = std::fs::metadata(path)?.len();
        if length > MAX_FILE {
            return Err(io::Error::other(format!("{length} bytes, at most {MAX_FILE}")));
        }
        std::fs::read(path)
    };
    bounded().map_err(|error| match error.kind() {
        ErrorKind::NotFound => Refused { outcome: missing, why: format!("{field}: {path:?}: {ABSENT}") },
        _ => Refused { outcome: Outcome::Credential, why: format!("{field}: {path:?}: {error}") },
    })
}

const CERTIFICATES: &str = "a PEM file with certificates";
const ABSENT: &str = "the file is not there yet";
const MAX_FILE: u64 = 1 << 20;
const MAX_TOKEN: usize = 8192;
