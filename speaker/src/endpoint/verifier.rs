//! Who a server must be: of the CA and for the name, or anybody. Times of certificates are judged by the speaker's wall clock and are a
//! doubt of their own: in a cluster without a battery behind its clocks all certificates are "not valid yet" after a loss of power.

use std::fmt::Debug;
use std::sync::Arc;

use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::VerifierBuilderError;
use tokio_rustls::rustls::time_provider::TimeProvider;
use tokio_rustls::rustls::{
    self, CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

use crate::io::clock;

/// In any case the handshake must be signed by the certificate's key.
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    /// Whose certificate it must be; `None`: anybody's.
    of: Option<Arc<WebPkiServerVerifier>>,
}

/// The speaker's own.
#[derive(Debug)]
struct Wall;

pub fn by(roots: RootCertStore) -> Result<Arc<dyn ServerCertVerifier>, VerifierBuilderError> {
    let provider = Arc::new(ring::default_provider());
    let of = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?;
    Ok(Arc::new(Verifier { provider, of: Some(of) }))
}

pub fn none() -> Arc<dyn ServerCertVerifier> {
    Arc::new(Verifier { provider: Arc::new(ring::default_provider()), of: None })
}

/// For clients that verify so.
pub fn config(
    verifier: Arc<dyn ServerCertVerifier>,
) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    let builder = ClientConfig::builder_with_details(Arc::new(ring::default_provider()), Arc::new(Wall));
    // ring has the cipher suites of both versions.
    let builder = builder.with_safe_default_protocol_versions().expect("cipher suites of TLS 1.2 and 1.3");
    builder.dangerous().with_custom_certificate_verifier(verifier)
}

/// The time at which a certificate that is out of its time was in it. `None`: something else is wrong.
pub fn its_time(error: &CertificateError) -> Option<UnixTime> {
    match error {
        CertificateError::ExpiredContext { not_after, .. } => Some(*not_after),
        CertificateError::NotValidYetContext { not_before, .. } => Some(*not_before),
        _ => None,
    }
}

impl ServerCertVerifier for Verifier {
    /// Fails with an error about time only where nothing but the time is wrong.
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(of) = &self.of else { return Ok(ServerCertVerified::assertion()) };
        let verify = |now| of.verify_server_cert(certificate, intermediates, name, ocsp, now);
        let is_of = verify(now);
        let time = match &is_of {
            Err(Error::InvalidCertificate(error)) => its_time(error),
            _ => None,
        };
        match time.map(verify) {
            // The time was looked at first.
            Some(Err(Error::InvalidCertificate(error))) if its_time(&error).is_none() => Err(error.into()),
            // Of a chain with more than one that is out of its time the rest was not looked at.
            Some(Err(_)) => Err(CertificateError::ApplicationVerificationFailure.into()),
            Some(Ok(_)) | None => is_of,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl TimeProvider for Wall {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(clock::since_1970()))
    }
}
