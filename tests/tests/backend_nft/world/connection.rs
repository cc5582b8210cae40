//! Connections through a VIP: the client's end, and the pod's.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use super::PATIENCE;

/// An open connection; the pod's first line has its name and the client address that it sees.
pub struct Connection {
    stream: TcpStream,
    pub pod: SocketAddr,
    pub seen: SocketAddr,
}

impl Connection {
    pub fn greet(stream: TcpStream) -> std::io::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut line = String::new();
        BufReader::with_capacity(1, &stream).read_line(&mut line)?;
        let mut addresses = line.split_whitespace().map(|word| word.parse().expect("an address"));
        let (pod, seen) = (addresses.next().expect("pod"), addresses.next().expect("client"));
        Ok(Self { stream, pod, seen })
    }

    pub fn local(&self) -> SocketAddr {
        self.stream.local_addr().unwrap()
    }

    /// Whether so many bytes come back, sent in one go: more than fit into a packet, so that the kernel handles them in lumps.
    pub fn carries(&mut self, bytes: usize) -> bool {
        let mut sender = self.stream.try_clone().unwrap();
        sender.set_write_timeout(Some(PATIENCE)).unwrap();
        let sent = std::thread::spawn(move || sender.write_all(&vec![7; bytes]));
        let mut received = vec![0; bytes];
        let complete = self.stream.read_exact(&mut received).is_ok() && received.iter().all(|&byte| byte == 7);
        sent.join().unwrap().is_ok() && complete
    }

    /// The client has said all it has to say; the pod may go on.
    pub fn half_close(&self) {
        self.stream.shutdown(std::net::Shutdown::Write).unwrap();
    }

    /// What comes next: `Ok(0)` is the end.
    pub fn read(&mut self) -> std::io::Result<usize> {
        self.stream.read(&mut [0; 64])
    }

    /// Ends it with a reset.
    pub fn abort(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// What becomes of a byte that is sent.
    pub fn fate(&mut self) -> Option<std::io::ErrorKind> {
        let mut byte = [0];
        self.stream.write_all(b"x").and_then(|()| self.stream.read_exact(&mut byte)).err().map(|error| error.kind())
    }

    /// Whether a byte still comes back.
    pub fn is_alive(&mut self) -> bool {
        let mut byte = [0];
        self.stream.write_all(b"x").and_then(|()| self.stream.read_exact(&mut byte)).is_ok() && byte == *b"x"
    }
}

/// Names itself and its peer, then echoes.
pub fn answer_tcp(listener: TcpListener) {
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || -> std::io::Result<()> {
                let (local, peer) = (stream.local_addr()?, stream.peer_addr()?);
                (&stream).write_all(format!("{local} {peer}\n").as_bytes())?;
                std::io::copy(&mut &stream, &mut &stream).map(drop)
            });
        }
    });
}
