//! UDP probes at a fixed rate: how long does no pod answer?

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;

use super::clock::{milliseconds, now_ns, sleep_until};
use super::control::{Control, print_report, say_ready};
use super::ports::SourcePorts;
use super::report::{Answered, Outage, ProbeFlow, ProbeReport};

#[derive(clap::Args)]
pub struct Arguments {
    #[arg(long)]
    to: SocketAddr,
    #[arg(long, default_value_t = 1.0)]
    interval_ms: f64,
    /// Sockets, each with a source port of its own; every interval one probe on each
    #[arg(long, default_value_t = 1)]
    flows: u16,
    /// Of the kind this measures anyway; kept so that a command line shows what it sends
    #[arg(long)]
    udp: bool,
    #[arg(long)]
    duration: Option<f64>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let control = Control::start(arguments.duration)?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut ports = SourcePorts::new(None, arguments.flows);
    let flows: Vec<_> = (0..arguments.flows).map(|_| Flow::open(&mut ports, arguments.to)).collect::<Result<_>>()?;
    let receivers: Vec<_> = flows
        .iter()
        .map(|flow| {
            let (flow, stop) = (flow.clone(), stop.clone());
            thread::spawn(move || flow.receive(&stop))
        })
        .collect();
    say_ready()?;
    let sender = {
        let (flows, stop) = (flows.clone(), stop.clone());
        let every = (arguments.interval_ms * 1e6) as u64;
        thread::spawn(move || send(&flows, every, &stop))
    };
    control.wait();
    stop.store(true, Ordering::Release);
    let _ = sender.join();
    // Answers on their way are awaited by the receivers' time limit.
    receivers.into_iter().for_each(|receiver| drop(receiver.join()));
    let mark_ns = control.mark_ns();
    let flows: Vec<_> = flows.iter().map(Flow::report).collect();
    print_report(&summary(arguments, mark_ns, flows))
}

fn send(flows: &[Flow], every: u64, stop: &AtomicBool) {
    let mut at = now_ns();
    while !stop.load(Ordering::Acquire) {
        flows.iter().for_each(Flow::send);
        at += every;
        // After an oversleep the lost ticks are left out: a burst would hide a short outage.
        at = at.max(now_ns());
        sleep_until(at);
    }
}

fn summary(arguments: &Arguments, mark_ns: Option<u64>, flows: Vec<ProbeFlow>) -> ProbeReport {
    let longest = |from_ns: u64| {
        let outages = flows.iter().flat_map(|flow| &flow.outages).filter(|outage| outage.to_ns > from_ns);
        outages.map(|outage| outage.ms).fold(0.0, f64::max)
    };
    ProbeReport {
        to: arguments.to.to_string(),
        interval_ms: arguments.interval_ms,
        mark_ns,
        sent: flows.iter().map(|flow| flow.sent).sum(),
        received: flows.iter().map(|flow| flow.received).sum(),
        lost: flows.iter().map(|flow| flow.lost).sum(),
        longest_outage_ms: longest(0),
        longest_outage_after_mark_ms: mark_ns.map(longest),
        flows,
    }
}

#[derive(Clone)]
struct Flow {
    socket: Arc<UdpSocket>,
    probes: Arc<Mutex<Vec<Probe>>>,
}

struct Probe {
    sent_ns: u64,
    answered_by: Option<Arc<str>>,
}

impl Flow {
    fn open(ports: &mut SourcePorts, to: SocketAddr) -> Result<Self> {
        let (socket, _) = ports.next(UdpSocket::bind)?;
        socket.connect(to).with_context(|| to.to_string())?;
        socket.set_read_timeout(Some(LATE))?;
        // A busy machine wakes the receiver late: what waits for it meanwhile has arrived. More than the system's limit
        // needs a capability that clients of a lab have; without it the usual size must do.
        let _ = setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER);
        Ok(Self { socket: Arc::new(socket), probes: Arc::default() })
    }

    fn send(&self) {
        let number = {
            let mut probes = self.probes.lock().expect("no panic");
            probes.push(Probe { sent_ns: now_ns(), answered_by: None });
            probes.len() as u64 - 1
        };
        // What cannot be sent (an ICMP error came back for an earlier one, no route) is a lost probe.
        let _ = self.socket.send(&number.to_be_bytes());
    }

    fn receive(&self, stop: &AtomicBool) {
        let mut buffer = [0; 512];
        let mut last: Arc<str> = Arc::from("");
        loop {
            match self.socket.recv(&mut buffer) {
                Ok(length) if length >= 8 => {
                    let number = u64::from_be_bytes(buffer[..8].try_into().expect("8 bytes"));
                    let who = String::from_utf8_lossy(&buffer[8..length]);
                    if *last != *who {
                        last = Arc::from(who.as_ref());
                    }
                    let mut probes = self.probes.lock().expect("no panic");
                    if let Some(probe) = usize::try_from(number).ok().and_then(|number| probes.get_mut(number)) {
                        probe.answered_by = Some(last.clone());
                    }
                }
                Ok(_) => {}
                Err(_) if stop.load(Ordering::Acquire) => return,
                // Nothing for a while, or an ICMP error.
                Err(_) => {}
            }
        }
    }

    fn report(&self) -> ProbeFlow {
        let probes = self.probes.lock().expect("no panic");
        let received = probes.iter().filter(|probe| probe.answered_by.is_some()).count() as u64;
        ProbeFlow {
            local: self.socket.local_addr().map(|address| address.to_string()).unwrap_or_default(),
            sent: probes.len() as u64,
            received,
            lost: probes.len() as u64 - received,
            last_sent_ns: probes.last().map_or(0, |probe| probe.sent_ns),
            outages: outages(&probes),
            answered_by: answerers(&probes),
        }
    }
}

fn outages(probes: &[Probe]) -> Vec<Outage> {
    let mut found = Vec::new();
    let mut current: Option<(u64, u64)> = None;
    let mut close = |current: &mut Option<(u64, u64)>, to_ns: u64| {
        if let Some((from_ns, lost)) = current.take() {
            found.push(Outage { from_ns, to_ns, lost, ms: milliseconds(from_ns, to_ns) });
        }
    };
    for probe in probes {
        match (&probe.answered_by, &mut current) {
            (None, None) => current = Some((probe.sent_ns, 1)),
            (None, Some((_, lost))) => *lost += 1,
            (Some(_), _) => close(&mut current, probe.sent_ns),
        }
    }
    close(&mut current, probes.last().map_or(0, |probe| probe.sent_ns));
    found
}

fn answerers(probes: &[Probe]) -> Vec<Answered> {
    let mut found: Vec<Answered> = Vec::new();
    for Probe { sent_ns, answered_by } in probes {
        let Some(who) = answered_by else { continue };
        let mut words = who.split_whitespace();
        let (pod, node) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let started_ns = words.next().and_then(|started| started.parse().ok()).unwrap_or_default();
        match found.last_mut() {
            Some(last) if last.pod == pod && last.started_ns == started_ns => {
                last.longest_gap_ms = last.longest_gap_ms.max(milliseconds(last.to_ns, *sent_ns));
                last.to_ns = *sent_ns;
                last.count += 1;
            }
            _ => found.push(Answered {
                pod: pod.to_owned(),
                node: node.to_owned(),
                started_ns,
                from_ns: *sent_ns,
                to_ns: *sent_ns,
                longest_gap_ms: 0.0,
                count: 1,
            }),
        }
    }
    found
}

const RECEIVE_BUFFER: usize = 8 << 20;
/// An answer that takes longer than this is lost.
const LATE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_lasts_from_the_first_lost_probe_to_the_next_answered_one() {
        let answers = [true, false, false, true, true, false];
        let probes: Vec<_> = answers
            .iter()
            .enumerate()
            .map(|(number, answered)| Probe {
                sent_ns: number as u64 * 1_000_000,
                answered_by: answered.then(|| Arc::from(" pod node1 7")),
            })
            .collect();
        let found = outages(&probes);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].lost, found[0].ms), (2, 2.0));
        assert_eq!((found[1].lost, found[1].ms), (1, 0.0), "nothing answered later: it lasts to the last probe");
        let [one] = answerers(&probes).try_into().expect("one pod");
        assert_eq!((one.node.as_str(), one.started_ns, one.count), ("node1", 7, 3));
        assert_eq!((one.from_ns, one.to_ns, one.longest_gap_ms), (0, 4_000_000, 3.0));
    }

    #[test]
    fn a_pod_that_was_restarted_is_another_one() {
        let probe = |sent_ns, who: &str| Probe { sent_ns, answered_by: Some(Arc::from(who)) };
        let found = answerers(&[probe(1, " pod node1 7"), probe(2, " pod node1 7"), probe(3, " pod node1 8")]);
        assert_eq!(found.iter().map(|one| (one.started_ns, one.count)).collect::<Vec<_>>(), [(7, 2), (8, 1)]);
    }
}
