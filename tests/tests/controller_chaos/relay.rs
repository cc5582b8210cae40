//! What stands between a replica and the API server: a relay that can be cut. A cut one takes connections and bytes and passes none on,
//! as a switch that loses every frame; what was under way arrives when it is whole again, as after TCP's retransmissions.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use anyhow::{Context, Result};

#[derive(Clone)]
pub struct Relay {
    pub address: SocketAddr,
    gate: Arc<Gate>,
}

#[derive(Default)]
struct Gate {
    cut: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn pass(&self) {
        let cut = self.cut.lock().expect("no thread panics with it");
        drop(self.changed.wait_while(cut, |cut| *cut).expect("no thread panics with it"));
    }
}

impl Relay {
    /// Relays to `server` as long as the process lives.
    pub fn start(server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("a port for the relay")?;
        let relay = Self { address: listener.local_addr()?, gate: Arc::default() };
        let gate = relay.gate.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let gate = gate.clone();
                thread::spawn(move || {
                    gate.pass();
                    // A server that is not there: the client's connection ends.
                    if let Ok(server) = TcpStream::connect(server) {
                        // Nothing is held back until what went before is acknowledged.
                        let _ = client.set_nodelay(true).and(server.set_nodelay(true));
                        both_ways(&client, &server, &gate);
                    }
                });
            }
        });
        Ok(relay)
    }

    pub fn cut(&self, cut: bool) {
        *self.gate.cut.lock().expect("no thread panics with it") = cut;
        self.gate.changed.notify_all();
    }
}

fn both_ways(client: &TcpStream, server: &TcpStream, gate: &Gate) {
    thread::scope(|scope| {
        scope.spawn(|| one_way(client, server, gate));
        one_way(server, client, gate);
    });
}

fn one_way(mut from: &TcpStream, mut to: &TcpStream, gate: &Gate) {
    let mut bytes = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut bytes) {
        gate.pass();
        if to.write_all(&bytes[..length]).is_err() {
            break;
        }
    }
    // Either may be closed already.
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}
