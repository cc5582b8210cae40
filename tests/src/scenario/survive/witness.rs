//! What is seen from outside while clients open connections: the node that each SYN was sent to and who reset it, as the switch sees it, the
//! times in which a node's speaker did not run, and those in which an EndpointSlice named a pod that had closed. For [`super::causes`].

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use super::causes::{Frame, Period, Seen};
use super::slices::{self, Slices};
use crate::lab::plan::Plan;
use crate::lab::{Lab, netns};
use crate::scenario::deploy::Scene;
use crate::scenario::http;
use crate::traffic::clock::now_ns;

pub struct Witness {
    stop: Arc<AtomicBool>,
    frames: JoinHandle<Result<Vec<Frame>>>,
    slices: JoinHandle<Slices>,
    speakers: BTreeMap<String, JoinHandle<Vec<Period>>>,
    /// What was ordered, and has not ended yet.
    open: BTreeMap<(String, &'static str), u64>,
    ordered: Vec<Period>,
}

impl Witness {
    /// Returns when SYNs to the address are seen.
    pub fn start(scene: &Scene) -> Result<Self> {
        let plan = scene.lab.state()?.plan;
        let stop = Arc::new(AtomicBool::new(false));
        let socket = netns::inside(&plan.netns("sw"), || listen(scene.vip))?;
        let stopped = stop.clone();
        let frames = thread::spawn(move || watch_frames(&socket, &plan, &stopped));
        let (api, stopped) = (scene.api.clone(), stop.clone());
        let slices = thread::spawn(move || slices::watch(&api, &stopped));
        let watch = |node: &String| {
            let (lab, name, stopped) = (scene.lab.clone(), node.clone(), stop.clone());
            (node.clone(), thread::spawn(move || watch_speaker(&lab, &name, &stopped)))
        };
        let speakers = scene.nodes.iter().map(watch).collect();
        Ok(Self { stop, frames, slices, speakers, open: BTreeMap::new(), ordered: Vec::new() })
    }

    /// From now on this condition lasts on the node, by order.
    pub fn begins(&mut self, node: &str, what: &'static str) {
        self.open.entry((node.to_owned(), what)).or_insert_with(now_ns);
    }

    pub fn ends(&mut self, node: &str, what: &'static str) {
        if let Some(from_ns) = self.open.remove(&(node.to_owned(), what)) {
            self.ordered.push(Period { node: node.to_owned(), what, from_ns, until_ns: now_ns() });
        }
    }

    pub fn finish(mut self) -> Result<Seen> {
        self.stop.store(true, Ordering::Release);
        for (node, what) in self.open.keys().cloned().collect::<Vec<_>>() {
            self.ends(&node, what);
        }
        let frames = self.frames.join().map_err(|_| anyhow!("the thread that watches SYNs panicked"))??;
        let slices = self.slices.join().map_err(|_| anyhow!("the thread that watches EndpointSlices panicked"))?;
        let mut down = Vec::new();
        for (node, speaker) in self.speakers {
            down.extend(speaker.join().map_err(|_| anyhow!("the thread that watches the speaker of {node} panicked"))?);
        }
        let Slices { late, answers } = slices;
        let none_serves = slices::none_serves(&answers, &down);
        Ok(Seen { frames, down, late, none_serves, ordered: self.ordered })
    }
}

/// A speaker that does not answer is dead or frozen, from its last answer on, until one is ready again.
fn watch_speaker(lab: &Lab, node: &str, stop: &AtomicBool) -> Vec<Period> {
    let mut periods = Vec::new();
    let (mut answered_ns, mut down_since) = (now_ns(), None);
    let mut end = |from_ns: u64, until_ns| {
        periods.push(Period { node: node.to_owned(), what: "did not run", from_ns, until_ns });
    };
    while !stop.load(Ordering::Acquire) {
        let queried_ns = now_ns();
        let answer = lab.state().and_then(|state| http::speaker(lab, state.node_address(node)?, "/readyz"));
        match (answer, down_since) {
            (Ok(answer), Some(from_ns)) if answer.status == 200 => {
                end(from_ns, now_ns());
                down_since = None;
                answered_ns = queried_ns;
            }
            (Ok(_), None) => answered_ns = queried_ns,
            (Err(_), None) => down_since = Some(answered_ns),
            _ => {}
        }
        sleep(BETWEEN_QUESTIONS);
    }
    if let Some(from_ns) = down_since {
        end(from_ns, now_ns());
    }
    periods
}

fn watch_frames(socket: &OwnedFd, plan: &Plan, stop: &AtomicBool) -> Result<Vec<Frame>> {
    let (mut frames, mut buffer) = (Vec::<Frame>::new(), [0u8; HEADERS]);
    while !stop.load(Ordering::Acquire) {
        // SAFETY: the buffer outlives the call and has the length given.
        let length = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        let Ok(length) = usize::try_from(length) else {
            match io::Error::last_os_error().kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => continue,
                _ => bail!("SYNs at the switch: {}", io::Error::last_os_error()),
            }
        };
        frames.extend(read(&buffer[..length], plan, now_ns()));
    }
    Ok(frames)
}

/// A SYN and the node that it is sent to, or a reset and the node that sends it.
fn read(frame: &[u8], plan: &Plan, at_ns: u64) -> Option<Frame> {
    let tcp = ETHERNET + usize::from(*frame.get(ETHERNET)? & 0x0f) * 4;
    let port = |at: usize| Some(u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?));
    if frame.get(tcp + 13)? & RST == 0 {
        return Some(Frame::Syn { at_ns, port: port(tcp)?, node: plan.node_of_mac(frame.first_chunk()?)? });
    }
    let node = plan.node_of_mac(frame.get(6..)?.first_chunk()?)?;
    Some(Frame::Reset { at_ns, port: port(tcp + 2)?, node, forwarded: *frame.get(ETHERNET + 8)? < TTL })
}

/// All ports of the switch, each frame as often as it passes one; SYNs to the address and resets from it only.
fn listen(vip: Ipv4Addr) -> Result<OwnedFd> {
    let filter = syns_and_resets(vip);
    let program = libc::sock_fprog { len: u16::try_from(filter.len())?, filter: filter.as_ptr().cast_mut() };
    let wait = libc::timeval { tv_sec: 0, tv_usec: 100_000 };
    // SAFETY: plain system calls with structures that outlive them; the descriptor is ours alone.
    unsafe {
        // Without a protocol no frames arrive before the filter is set.
        let raw = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        if raw < 0 {
            bail!("AF_PACKET socket: {}", io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(raw);
        set(raw, libc::SO_ATTACH_FILTER, &program)?;
        set(raw, libc::SO_RCVTIMEO, &wait)?;
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        // Only with "all protocols" the kernel also shows what is sent.
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        let length = size_of::<libc::sockaddr_ll>() as u32;
        if libc::bind(raw, (&raw const address).cast(), length) < 0 {
            bail!("bind to the switch: {}", io::Error::last_os_error());
        }
        Ok(socket)
    }
}

/// # Safety
/// `value` is of the type that the option takes.
unsafe fn set<T>(socket: i32, option: i32, value: &T) -> Result<()> {
    let (value, length) = ((&raw const *value).cast(), size_of::<T>() as u32);
    // SAFETY: the value outlives the call.
    if unsafe { libc::setsockopt(socket, libc::SOL_SOCKET, option, value, length) } < 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("socket option {option}"));
    }
    Ok(())
}

/// `tcpdump -d "(tcp[13] & 0x12 == 2 and dst host VIP) or (tcp[13] & 4 != 0 and src host VIP)"`
fn syns_and_resets(vip: Ipv4Addr) -> Vec<libc::sock_filter> {
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let (load, jump) = (libc::BPF_LD | libc::BPF_ABS, libc::BPF_JMP | libc::BPF_K);
    let flags = libc::BPF_LD | libc::BPF_IND | libc::BPF_B;
    vec![
        step(load | libc::BPF_H, 0, 0, 12),
        step(jump | libc::BPF_JEQ, 0, 13, 0x0800),
        step(load | libc::BPF_B, 0, 0, 23),
        step(jump | libc::BPF_JEQ, 0, 11, 6),
        step(libc::BPF_LDX | libc::BPF_MSH | libc::BPF_B, 0, 0, 14),
        step(load | libc::BPF_W, 0, 0, 30),
        step(jump | libc::BPF_JEQ, 0, 3, u32::from(vip)),
        step(flags, 0, 0, 14 + 13),
        step(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, 0x12),
        step(jump | libc::BPF_JEQ, 4, 5, 0x02),
        step(load | libc::BPF_W, 0, 0, 26),
        step(jump | libc::BPF_JEQ, 0, 3, u32::from(vip)),
        step(flags, 0, 0, 14 + 13),
        step(jump | libc::BPF_JSET, 0, 1, u32::from(RST)),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, HEADERS as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ]
}

const ETHERNET: usize = 14;
const RST: u8 = 0x04;
/// Of what a node itself sends: its kernel's and our program's. What a pod sends has been forwarded.
const TTL: u8 = 64;
const HEADERS: usize = 96;
const BETWEEN_QUESTIONS: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::LabConfig;

    #[test]
    fn a_syn_names_its_port_and_the_node_it_goes_to() {
        let plan = Plan::new(&LabConfig::default()).unwrap();
        let mut frame = vec![0u8; 54];
        frame[..6].copy_from_slice(&[0x06, 0, 192, 168, 77, 12]);
        frame[14] = 0x45;
        frame[34..36].copy_from_slice(&40_001u16.to_be_bytes());
        let syn = Frame::Syn { at_ns: 7, port: 40_001, node: "node2".to_owned() };
        assert_eq!(read(&frame, &plan, 7), Some(syn));
        frame[5] = 5;
        assert_eq!(read(&frame, &plan, 7), None, "the client's own");
        assert_eq!(read(&frame[..20], &plan, 7), None);
    }

    #[test]
    fn a_reset_names_its_node_and_whether_a_pod_sent_it() {
        let plan = Plan::new(&LabConfig::default()).unwrap();
        let mut frame = vec![0u8; 54];
        frame[6..12].copy_from_slice(&[0x06, 0, 192, 168, 77, 13]);
        (frame[14], frame[22], frame[47]) = (0x45, 63, 0x14);
        frame[36..38].copy_from_slice(&40_001u16.to_be_bytes());
        let reset = |forwarded| Frame::Reset { at_ns: 7, port: 40_001, node: "node3".to_owned(), forwarded };
        assert_eq!(read(&frame, &plan, 7), Some(reset(true)));
        frame[22] = 64;
        assert_eq!(read(&frame, &plan, 7), Some(reset(false)));
    }
}
