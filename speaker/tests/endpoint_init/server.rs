//! What stands for an API server and what is beside it: TLS on several ports, /readyz for clients with a certificate alone, and who it is
//! and whom it sees for every other path.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

/// Until it is killed. The folder has ca.crt, server.crt and server.key.
pub fn run(name: &str, folder: &Path, ports: &[String]) -> Result<()> {
    let certificate = |file: &str| CertificateDer::from_pem_file(folder.join(file)).with_context(|| file.to_owned());
    let mut roots = RootCertStore::empty();
    roots.add(certificate("ca.crt")?)?;
    let provider = Arc::new(ring::default_provider());
    // As kube-apiserver does: a certificate is asked for and not required.
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients.allow_unauthenticated().build()?)
        .with_single_cert(vec![certificate("server.crt")?], PrivateKeyDer::from_pem_file(folder.join("server.key"))?)?;
    let (config, name) = (Arc::new(config), Arc::<str>::from(name));
    let mut threads = Vec::new();
    for port in ports {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port.parse::<u16>()?)).context("listen")?;
        let (config, name) = (config.clone(), name.clone());
        threads.push(std::thread::spawn(move || listen(&listener, &config, &name)));
    }
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a listener panicked"))??;
    }
    Ok(())
}

fn listen(listener: &TcpListener, config: &Arc<ServerConfig>, name: &Arc<str>) -> Result<()> {
    for stream in listener.incoming() {
        let (config, name, stream) = (config.clone(), name.clone(), stream?);
        std::thread::spawn(move || {
            // The client ends a connection as it likes.
            serve(&name, config, stream).ok();
        });
    }
    Ok(())
}

fn serve(name: &str, config: Arc<ServerConfig>, stream: TcpStream) -> Result<()> {
    let seen = stream.peer_addr()?.ip();
    let mut stream = BufReader::new(StreamOwned::new(ServerConnection::new(config)?, stream));
    loop {
        let mut path = String::new();
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            if stream.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if path.is_empty() {
                path = line.clone();
            }
        }
        let is_known = stream.get_ref().conn.peer_certificates().is_some();
        let (status, body) = match (path.starts_with("GET /readyz "), is_known) {
            (false, _) => (200, format!("{name} {seen}")),
            (true, true) => (200, "ok".into()),
            // Worse than a real one's 401, which counts as an answer: here only the certificate of the preset makes it ready.
            (true, false) => (503, "no certificate".into()),
        };
        write!(stream.get_mut(), "HTTP/1.1 {status} -\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
        stream.get_mut().flush()?;
    }
}
