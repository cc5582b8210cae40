//! What stands for an API server: TLS on 6443, /readyz, and who it is and whom it sees for every other path.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

pub const PORT: u16 = 6443;

/// Until it is killed.
pub fn run(name: &str, certificate: &Path, key: &Path) -> Result<()> {
    let certificate = CertificateDer::from(std::fs::read(certificate)?);
    let key = PrivatePkcs8KeyDer::from(std::fs::read(key)?);
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key.into())?;
    let (config, name) = (Arc::new(config), Arc::<str>::from(name));
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).context("listen")?;
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
        let body = if path.starts_with("GET /readyz ") { "ok".into() } else { format!("{name} {seen}") };
        write!(stream.get_mut(), "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
        stream.get_mut().flush()?;
    }
}
