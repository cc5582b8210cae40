//! On which ports of its addresses the host listens: sockets as the kernel lists them in `/proc/net`.
//!
//! Read first: proc(5), kernel net/ipv4/tcp_ipv4.c (`tcp4_seq_show`; listening sockets come before all others), net/ipv4/udp.c
//! (`udp4_format_sock`; sockets of the kernel itself, as VXLAN's, are among them).

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

/// Ports on which processes, or the kernel, take what comes from outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listening {
    pub tcp: BTreeSet<u16>,
    pub udp: BTreeSet<u16>,
}

/// `net`: the directory `/proc/self/net`. A file that is not there (no IPv6) has no sockets.
pub fn read(net: &Path) -> io::Result<Listening> {
    let both = |files: [&str; 2], state| -> io::Result<BTreeSet<u16>> {
        let mut ports = BTreeSet::new();
        for file in files {
            match File::open(net.join(file)) {
                Ok(opened) => ports.extend(ports_of(BufReader::new(opened), state)?),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(ports)
    };
    Ok(Listening { tcp: both(["tcp", "tcp6"], LISTEN)?, udp: both(["udp", "udp6"], UNCONNECTED)? })
}

/// Of sockets in this state, those at the loopback left out.
fn ports_of(lines: impl BufRead, state: &str) -> io::Result<BTreeSet<u16>> {
    let mut ports = BTreeSet::new();
    for line in lines.lines().skip(1).take(MAX_LINES) {
        let line = line?;
        let mut fields = line.split_ascii_whitespace();
        let (Some(local), Some(found)) = (fields.nth(1), fields.nth(1)) else { continue };
        if found != state {
            // No listening socket follows, and of the others there may be very many.
            if state == LISTEN {
                break;
            }
            continue;
        }
        if let Some((address, port)) = local.split_once(':')
            && !is_loopback(address)
            && let Ok(port) = u16::from_str_radix(port, 16)
        {
            ports.insert(port);
        }
    }
    Ok(ports)
}

/// The words of an address are printed in the byte order of the host.
fn is_loopback(address: &str) -> bool {
    let words: Option<Vec<u32>> = (0..address.len() / 8)
        .map(|word| address.get(8 * word..8 * word + 8).and_then(|digits| u32::from_str_radix(digits, 16).ok()))
        .collect();
    let v4 = |word: &u32| word.to_ne_bytes()[0] == 127;
    match words.as_deref() {
        Some([word]) => v4(word),
        Some([0, 0, mapped, word]) if *mapped == u32::from_be_bytes([0, 0, 0xff, 0xff]).to_be() => v4(word),
        Some([0, 0, 0, word]) => *word == 1_u32.to_be(),
        _ => false,
    }
}

/// States of sockets, include/net/tcp_states.h: TCP_LISTEN, and TCP_CLOSE, which an UDP socket without a peer has.
const LISTEN: &str = "0A";
const UNCONNECTED: &str = "07";
/// Sockets that are read of one file.
const MAX_LINES: usize = 65_536;

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;
    use crate::io::tests::in_namespace;

    #[test]
    fn sockets_that_take_packets_from_outside_are_found_and_no_others() {
        in_namespace(|| {
            let net = Path::new("/proc/thread-self/net");
            let before = read(net).unwrap();
            let tcp = ["0.0.0.0:0", "127.0.0.1:0", "192.0.2.1:0", "[::]:0", "[::1]:0"]
                .map(|at| TcpListener::bind(at).unwrap());
            let udp = ["0.0.0.0:0", "127.0.0.2:0"].map(|at| UdpSocket::bind(at).unwrap());
            let connected = UdpSocket::bind("0.0.0.0:0").unwrap();
            connected.connect(("192.0.2.1", 9)).unwrap();
            let client = TcpStream::connect(tcp[2].local_addr().unwrap()).unwrap();
            let after = read(net).unwrap();
            let port = |number: usize| tcp[number].local_addr().unwrap().port();
            let new = |after: &BTreeSet<u16>, before: &BTreeSet<u16>| after - before;
            assert_eq!(new(&after.tcp, &before.tcp), [port(0), port(2), port(3)].into());
            assert_eq!(new(&after.udp, &before.udp), [udp[0].local_addr().unwrap().port()].into());
            drop(client);
        });
    }
}
