//! TLS servers that complete handshakes and say nothing: what a distribution has beside its API server, for konnectivity agents and joining
//! nodes.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

#[derive(clap::Args)]
pub struct Arguments {
    #[arg(long, required = true)]
    port: Vec<u16>,
    #[arg(long)]
    certificate: PathBuf,
    #[arg(long)]
    key: PathBuf,
}

/// Until it is killed.
pub fn run(arguments: &Arguments) -> Result<()> {
    let acceptor = TlsAcceptor::from(Arc::new(config(&arguments.certificate, &arguments.key)?));
    super::single_threaded()?.block_on(async {
        let mut listening = JoinSet::new();
        for port in &arguments.port {
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)).await;
            listening.spawn(listen(listener.with_context(|| format!("port {port}"))?, acceptor.clone()));
        }
        let ended = listening.join_next().await.context("a port")?;
        ended.map_err(|_| anyhow!("a listener panicked"))?
    })
}

fn config(certificate: &Path, key: &Path) -> Result<ServerConfig> {
    let chain = CertificateDer::from_pem_file(certificate).with_context(|| certificate.display().to_string())?;
    let key = PrivateKeyDer::from_pem_slice(&fs::read(key).with_context(|| key.display().to_string())?)?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    Ok(config.with_safe_default_protocol_versions()?.with_no_client_auth().with_single_cert(vec![chain], key)?)
}

async fn listen(listener: TcpListener, acceptor: TlsAcceptor) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await.context("accept")?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            // The client ends it, as it likes.
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let mut buffer = [0; 1024];
            while matches!(stream.read(&mut buffer).await, Ok(1..)) {}
        });
    }
}
