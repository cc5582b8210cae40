//! A client of the endpoint: one TLS connection, on which it asks who serves it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, StreamOwned};

/// As a kubelet would give up much later; here a hang is the failure.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct Connection {
    stream: StreamOwned<ClientConnection, TcpStream>,
    pub member: String,
    /// The client's address, as the member has it.
    pub seen: IpAddr,
}

#[derive(Debug)]
pub enum Failure {
    Refused,
    Silent,
    Other(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused => f.write_str("refused"),
            Self::Silent => f.write_str("silent"),
            Self::Other(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Failure {}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Self::Silent,
            _ => Self::Other(error.to_string()),
        }
    }
}

impl Connection {
    /// In the network namespace of the calling thread; the connection stays in it.
    pub fn open(to: SocketAddr, tls: Arc<ClientConfig>) -> Result<Self, Failure> {
        let tcp = TcpStream::connect_timeout(&to, PATIENCE)?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from("kubernetes.default.svc").map_err(|error| Failure::Other(error.to_string()))?;
        let tls = ClientConnection::new(tls, name).map_err(|error| Failure::Other(error.to_string()))?;
        let mut connection =
            Self { stream: StreamOwned::new(tls, tcp), member: String::new(), seen: IpAddr::from([0, 0, 0, 0]) };
        let answer = connection.ask()?;
        let answer = answer.split_once(' ').and_then(|(member, seen)| Some((member.to_owned(), seen.parse().ok()?)));
        (connection.member, connection.seen) = answer.ok_or_else(|| Failure::Other("no answer of ours".into()))?;
        Ok(connection)
    }

    /// Who serves it, and whom it sees.
    pub fn ask(&mut self) -> Result<String, Failure> {
        self.stream.write_all(b"GET /who HTTP/1.1\r\nHost: kubernetes\r\n\r\n")?;
        self.stream.flush()?;
        let mut answer = Vec::new();
        loop {
            let mut piece = [0; 512];
            let length = self.stream.read(&mut piece)?;
            if length == 0 {
                return Err(Failure::Other("closed".into()));
            }
            answer.extend_from_slice(&piece[..length]);
            let text = String::from_utf8_lossy(&answer);
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let expected = head.rsplit_once("Content-Length: ").and_then(|(_, length)| length.parse::<usize>().ok());
            if expected == Some(body.len()) {
                return Ok(body.to_owned());
            }
        }
    }
}
