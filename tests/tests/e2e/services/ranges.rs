//! Source ranges with real clients: outside, pods and nodes; a change under load; the annotation; NodePorts.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sheave_tests::lab::{ClientKind, plan, wait_for};
use sheave_tests::scenario::inside::{Process, process_of};
use sheave_tests::scenario::pods::greeting_from;
use sheave_tests::scenario::settle::greet;
use sheave_tests::scenario::waits::{InTime, Waits, Watch, judge};
use sheave_tests::scenario::{Scene, http};
use sheave_tests::traffic;
use sheave_tests::traffic::clock::{milliseconds, now_ns};
use sheave_tests::traffic::report::HeldState;

use super::clients::{OUTSIDE, from, greeted_by, is_dropped, wait_served};
use super::ways::{Change, Flow, Ways};
use super::{Asked, Room, Server, WITHIN, counted};

pub fn source_ranges(scene: &Scene) -> Result<String> {
    let room = Room::open(scene, "ranges")?;
    room.start(&[
        Server::on(0, "ranged-1", "all"),
        Server::on(1, "ranged-2", "all"),
        Server::on(2, "ranged-3", "all"),
    ])?;
    let inside = Inside::find(&room)?;
    let more = format!("selector: {{app: all}}\n  loadBalancerSourceRanges: [{}]", inside.all().map(single).join(", "));
    let vip = room.service("ranged", 216, "", &more)?;
    wait_served(scene, vip)?;
    ensure!(is_dropped(scene, "far", vip)?, "a client outside is not denied");
    let counted = counted::counted(&room, "ranged", vip)?;
    inside.judged(&room, vip)?;
    let node_ports = node_ports(&room, vip)?;
    let narrowed = narrowed_under_load(&room, vip)?;
    let widened = widened(&room, vip)?;
    let annotated = annotated(&room, &inside)?;
    Ok(format!("{counted}; {narrowed}; {widened}; {node_ports}; {annotated}"))
}

/// Clients inside: node and pod of the ranges, and others.
struct Inside {
    admitted: (Ipv4Addr, Ipv4Addr),
    denied: (Ipv4Addr, Ipv4Addr),
    admitted_pod: Process,
    denied_pod: Process,
}

impl Inside {
    fn find(room: &Room<'_>) -> Result<Self> {
        let scene = room.scene;
        let addresses = |node: usize, pod: &str| {
            Ok::<_, anyhow::Error>((
                scene.node_address(&scene.nodes[node])?,
                room.find(pod)?.ip.context("the address of a pod")?,
            ))
        };
        let pod = |name: &str| process_of(&scene.lab, &room.find(name)?, "sheave-traffic");
        Ok(Self {
            admitted: addresses(0, "ranged-1")?,
            denied: addresses(1, "ranged-2")?,
            admitted_pod: pod("ranged-1")?,
            denied_pod: pod("ranged-2")?,
        })
    }

    fn all(&self) -> [Ipv4Addr; 5] {
        [plan::CLIENT, self.admitted.0, self.admitted.1, self.denied.0, self.denied.1]
    }

    /// By kube-proxy: all of them are admitted; then those that no range has any more are denied, and the others are not.
    fn judged(&self, room: &Room<'_>, vip: Ipv4Addr) -> Result<()> {
        let (scene, to) = (room.scene, format!("{vip}:80"));
        let [first, second] = [&scene.nodes[0], &scene.nodes[1]];
        let by_pod = |pod: &Process, what: &str| {
            wait_for(&format!("{what} to be admitted"), WITHIN, || Ok(pod.greeting(&scene.lab, &to).ok())).map(drop)
        };
        let by_node = |node: &str| {
            wait_for(&format!("{node} to be admitted"), WITHIN, || Ok(greeting_from(&scene.lab, node, &to).ok()))
                .map(drop)
        };
        by_pod(&self.admitted_pod, "a pod")?;
        by_pod(&self.denied_pod, "the other pod")?;
        by_node(first)?;
        by_node(second)?;
        set(room, &[plan::CLIENT, self.admitted.0, self.admitted.1])?;
        wait_for("the other node to be denied", WITHIN, || Ok(is_dropped(scene, second, vip)?.then_some(())))?;
        let elsewhere = format!("{}:80", scene.vip);
        wait_for("the other pod to be denied", WITHIN, || {
            // It reaches others, so what stands in its way is the list.
            let denied = self.denied_pod.greeting(&scene.lab, &to).is_err();
            Ok((denied && self.denied_pod.greeting(&scene.lab, &elsewhere).is_ok()).then_some(()))
        })?;
        self.admitted_pod.greeting(&scene.lab, &to).context("the admitted pod")?;
        greeting_from(&scene.lab, first, &to).context("the admitted node").map(drop)
    }
}

/// The ranges are not for NodePorts: a client outside that is denied at the VIP reaches the NodePort of every node. Without NodePorts it
/// reaches none, and the VIP is served as before.
fn node_ports(room: &Room<'_>, vip: Ipv4Addr) -> Result<String> {
    let scene = room.scene;
    let path = room.path("services", "ranged");
    let service = scene.api.get(&path)?;
    let port = service.pointer("/spec/ports/0/nodePort").and_then(Value::as_u64).context("the NodePort")?;
    let ways: Vec<SocketAddr> = scene
        .nodes
        .iter()
        .map(|node| Ok((scene.node_address(node)?, u16::try_from(port)?).into()))
        .collect::<Result<_>>()?;
    ensure!(is_dropped(scene, "far", vip)?, "the client is not denied at the VIP");
    for to in &ways {
        let answered =
            from(scene, "far", || wait_for(&format!("an answer at {to}"), WITHIN, || Ok(greet(*to).ok())).map(drop));
        answered.context("a denied client at a NodePort")?;
    }
    let mut ports = service["spec"]["ports"].clone();
    for one in ports.as_array_mut().context("ports")? {
        one.as_object_mut().context("a port")?.remove("nodePort");
    }
    let closed = scene.api.patch(&path, &json!({"spec": {"allocateLoadBalancerNodePorts": false, "ports": ports}}))?;
    let left =
        closed["spec"]["ports"].as_array().into_iter().flatten().filter(|one| !one["nodePort"].is_null()).count();
    ensure!(left == 0, "the API server keeps NodePorts: {}", closed["spec"]);
    for to in &ways {
        from(scene, "far", || wait_for(&format!("{to} to be closed"), WITHIN, || Ok(greet(*to).err())).map(drop))?;
    }
    let (role, address) = OUTSIDE[0];
    greeted_by(scene, role, address, vip, FEW)?;
    Ok(format!("NodePort {port} open to a denied client on {} nodes, closed without allocation", ways.len()))
}

/// The client is taken out of the ranges while it sends on open connections and opens new ones by every node, owner or not, all at once:
/// its connections are reset, its datagrams are lost, and every node denies it. The other client is admitted by the same change.
fn narrowed_under_load(room: &Room<'_>, vip: Ipv4Addr) -> Result<String> {
    let scene = room.scene;
    let ways = Ways::open(scene, vip)?;
    let flow = Flow::open(scene, vip)?;
    let mut held = traffic::hold(&scene.lab, ClientKind::Segment, &format!("{vip}:80"), CONNECTIONS, 10)?;
    let watch = Watch::start(scene)?;
    let change = Change::default();
    let (mut denied_after, datagrams_until, patch_ms, mark_ns) = std::thread::scope(|scope| {
        let nodes: Vec<_> = (0..scene.nodes.len())
            .map(|node| {
                (
                    node,
                    scope.spawn({
                        let (ways, change) = (&ways, &change);
                        move || ways.follow(node, change, false)
                    }),
                )
            })
            .collect();
        let datagrams = scope.spawn(|| flow.follow(&change, false));
        change.wait_begun(nodes.len() + 1)?;
        let mark_ns = now_ns();
        held.mark_at(mark_ns)?;
        change.made_at(mark_ns);
        let set = set(room, &[plan::FAR_CLIENT]);
        let patch_ms = milliseconds(mark_ns, now_ns());
        let join =
            |joined: std::thread::Result<Result<f64>>| joined.unwrap_or_else(|_| anyhow::bail!("a client panicked"));
        let denied: Vec<(String, Result<f64>)> =
            nodes.into_iter().map(|(node, thread)| (scene.nodes[node].clone(), join(thread.join()))).collect();
        let datagrams = join(datagrams.join());
        set?;
        let denied = denied.into_iter().map(|(node, after)| Ok((node.clone(), after.context(node)?)));
        Ok::<_, anyhow::Error>((
            denied.collect::<Result<Vec<_>>>()?,
            datagrams.context("datagrams")?,
            patch_ms,
            mark_ns,
        ))
    })?;
    drop(ways);
    let report = held.report()?;
    let ended = report.count(HeldState::Reset, |_| true);
    ensure!(ended == usize::from(CONNECTIONS), "not all connections of the client were reset: {:?}", report.counts);
    let last = report.connections.iter().filter_map(|one| one.mark_to_end_ms).fold(0.0, f64::max);
    // The API server's own answer is no part of the promise that a busy machine breaks.
    let waits = watch.finish(mark_ns, report.late_ms.max(patch_ms))?;
    denied_after.sort_by(|one, other| one.1.total_cmp(&other.1));
    let slowest = denied_after.last().map_or(0.0, |(_, after)| *after);
    let mut said = Vec::new();
    for (what, ms) in
        [("the last reset", last), ("the last datagram", datagrams_until), ("the last node's denial", slowest)]
    {
        said.push(in_time(what, ms, &waits)?);
    }
    wait_served_by_far(scene, vip)?;
    let denied = denied_packets(room)?;
    Ok(format!("{ended} connections: {}; nodes {denied_after:.0?}; denied packets counted {denied:?}", said.join(", ")))
}

/// And back, on every node at once, for the same flow of datagrams too.
fn widened(room: &Room<'_>, vip: Ipv4Addr) -> Result<String> {
    let scene = room.scene;
    let ways = Ways::open(scene, vip)?;
    let watch = Watch::start(scene)?;
    let change = Change::default();
    let (slowest, patch_ms, mark_ns) = std::thread::scope(|scope| {
        let nodes: Vec<_> = (0..scene.nodes.len())
            .map(|node| {
                scope.spawn({
                    let (ways, change) = (&ways, &change);
                    move || ways.follow(node, change, true)
                })
            })
            .collect();
        change.wait_begun(nodes.len())?;
        let mark_ns = now_ns();
        change.made_at(mark_ns);
        let set = set(room, &[plan::CLIENT, plan::FAR_CLIENT]);
        let patch_ms = milliseconds(mark_ns, now_ns());
        let mut slowest = 0.0_f64;
        let mut failed = None;
        for node in nodes {
            match node.join().unwrap_or_else(|_| anyhow::bail!("a client panicked")) {
                Ok(after) => slowest = slowest.max(after),
                Err(error) => failed = Some(error),
            }
        }
        set?;
        failed.map_or(Ok((slowest, patch_ms, mark_ns)), Err)
    })?;
    drop(ways);
    let waits = watch.finish(mark_ns, patch_ms)?;
    let said = in_time("the last attempt that was denied", slowest, &waits)?;
    for (role, address) in OUTSIDE {
        greeted_by(scene, role, address, vip, FEW)?;
    }
    Ok(format!("widened: {said}"))
}

/// The annotation counts for clients outside. kube-proxy does not read it: clients inside are admitted, and the condition says so.
fn annotated(room: &Room<'_>, inside: &Inside) -> Result<String> {
    let scene = room.scene;
    let annotations = format!(", service.beta.kubernetes.io/load-balancer-source-ranges: {}", single(plan::CLIENT));
    let asked = Asked { annotations: &annotations, more: "selector: {app: all}", ..Asked::default() };
    let vip = room.service_with("annotated", 217, asked)?;
    wait_served(scene, vip)?;
    ensure!(is_dropped(scene, "far", vip)?, "a client outside is not denied by the annotation");
    let message = room.remark("annotated", "SourceRangesOutsideOnly")?;
    ensure!(message.contains("set the field"), "{message}");
    let to = format!("{vip}:80");
    wait_for("a pod to be admitted, as the condition says", WITHIN, || {
        Ok(inside.denied_pod.greeting(&scene.lab, &to).ok())
    })?;
    // What the condition advises.
    let field = json!({"spec": {"loadBalancerSourceRanges": [single(plan::CLIENT)]}});
    scene.api.patch(&room.path("services", "annotated"), &field)?;
    wait_for("the pod to be denied by the field", WITHIN, || Ok(inside.denied_pod.greeting(&scene.lab, &to).err()))?;
    room.remark("annotated", "AddressAllocated")?;
    let (role, address) = OUTSIDE[0];
    greeted_by(scene, role, address, vip, FEW)?;
    Ok("the annotation denies outside, the field inside too".into())
}

/// By node, from its speaker. The client tried each of them.
fn denied_packets(room: &Room<'_>) -> Result<Vec<f64>> {
    let scene = room.scene;
    let series = format!("sheave_denied_packets_total{{name=\"ranged\",namespace=\"{}\"}}", room.namespace);
    let of = |node: &String| {
        wait_for(&format!("{node} to count denied packets"), WITHIN, || {
            let metrics = http::metrics(&scene.lab, scene.node_address(node)?)?;
            Ok(http::value(&metrics, &series).filter(|packets| *packets > 0.0))
        })
    };
    scene.nodes.iter().map(of).collect()
}

fn in_time(what: &str, ms: f64, waits: &Waits) -> Result<String> {
    let judged = judge(ms, PROMISED_MS, waits.until(ms));
    ensure!(judged != InTime::Broken, "{what} came {ms:.0} ms after the change; {waits:?}");
    let busy = if judged == InTime::TooBusy { " (machine too busy to judge)" } else { "" };
    Ok(format!("{what} after {ms:.0} ms{busy}"))
}

fn set(room: &Room<'_>, clients: &[Ipv4Addr]) -> Result<()> {
    let ranges: Vec<String> = clients.iter().map(|client| single(*client)).collect();
    let patch = json!({"spec": {"loadBalancerSourceRanges": ranges}});
    room.scene.api.patch(&room.path("services", "ranged"), &patch).map(drop)
}

fn single(client: Ipv4Addr) -> String {
    format!("{client}/32")
}

fn wait_served_by_far(scene: &Scene, vip: Ipv4Addr) -> Result<()> {
    let (role, address) = OUTSIDE[1];
    wait_for("the other client to be admitted", WITHIN, || Ok(greeted_by(scene, role, address, vip, 1).ok()))?;
    greeted_by(scene, role, address, vip, FEW).map(drop)
}

const CONNECTIONS: u16 = 60;
const FEW: usize = 8;
/// A change takes effect everywhere within a second.
const PROMISED_MS: f64 = 1000.0;
