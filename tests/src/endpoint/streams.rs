//! `kubectl exec` and `kubectl logs -f` of a static pod, through the endpoint and the kubelet of the pod's node.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::spawn;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::lab::ha::Ha;
use crate::lab::plan::kubernetes_bin;
use crate::lab::wait_for;
use crate::traffic::clock::{milliseconds, now_ns, sleep_until};

/// Both, open. Dropped, they end.
pub struct Streams(Vec<Stream>);

struct Stream {
    what: &'static str,
    server: String,
    node: String,
    child: Child,
    /// When the last line came; 0: none yet.
    last_ns: Arc<AtomicU64>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Streamed {
    pub what: &'static str,
    /// The API server that serves it, by the audit logs.
    pub server: String,
    /// The node of the pod.
    pub node: String,
    pub alive: bool,
    /// Since its last line; there is one a second.
    pub silent_ms: f64,
}

impl Streams {
    /// Of the pod that [`super::kubelets::put_static_pod`] gave a node. Returns when both have printed a line.
    pub fn open(ha: &Ha, node: &str, pod: &str) -> Result<Self> {
        // A static pod's name for the API server.
        let pod = format!("{pod}-{node}");
        let exec = Stream::open(ha, node, "exec", "/exec?", &["exec", "--stdin", &pod, "--", "/bin/cat"])?;
        let logs = Stream::open(ha, node, "logs -f", "/log?", &["logs", "--follow", "--tail=1", &pod])?;
        Ok(Self(vec![exec, logs]))
    }

    pub fn seen(&mut self) -> Vec<Streamed> {
        let now = now_ns();
        let seen = |stream: &mut Stream| Streamed {
            what: stream.what,
            server: stream.server.clone(),
            node: stream.node.clone(),
            alive: stream.alive(),
            silent_ms: milliseconds(stream.last_ns.load(Ordering::Acquire), now),
        };
        self.0.iter_mut().map(seen).collect()
    }
}

impl Stream {
    fn open(ha: &Ha, node: &str, what: &'static str, path: &str, arguments: &[&str]) -> Result<Self> {
        let requests =
            || ha.nodes().into_iter().map(|node| Ok((served(ha, &node, path)?, node))).collect::<Result<Vec<_>>>();
        let before = requests()?;
        // A mirror pod appears some time after its container.
        wait_for(&format!("kubectl {what} of a pod on {node}"), OPENS_WITHIN, || {
            let mut command = ha.lab.netns_command("client", &kubernetes_bin().join("kubectl").to_string_lossy())?;
            command.args(arguments).env("KUBECONFIG", ha.lab.kubeconfig_inside());
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
            let mut child = command.spawn().context("start kubectl")?;
            let last_ns = Arc::new(AtomicU64::new(0));
            let (stdin, stdout) = (child.stdin.take().context("stdin")?, child.stdout.take().context("stdout")?);
            spawn_reader(stdout, last_ns.clone());
            spawn_writer(stdin);
            let mut stream = Self { what, server: String::new(), node: node.to_owned(), child, last_ns };
            let line = wait_for("a line", LINE_WITHIN, || {
                Ok((!stream.alive() || stream.last_ns.load(Ordering::Acquire) > 0).then_some(()))
            });
            let opened = line.is_ok() && stream.alive();
            let grown = requests()?.into_iter().zip(&before).find(|(now, before)| now.0 > before.0);
            let Some(((_, server), _)) = grown.filter(|_| opened) else { return Ok(None) };
            stream.server = server;
            Ok(Some(stream))
        })
    }

    fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // It may have ended.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// How many such requests of kubectl an API server has begun to answer.
fn served(ha: &Ha, node: &str, path: &str) -> Result<usize> {
    let events = ha.audit(node, "kubectl")?;
    let is_one = |event: &&serde_json::Value| event["requestURI"].as_str().is_some_and(|uri| uri.contains(path));
    Ok(events.iter().filter(is_one).count())
}

fn spawn_reader(stdout: ChildStdout, last_ns: Arc<AtomicU64>) {
    spawn(move || {
        for _ in BufReader::new(stdout).lines().map_while(Result::ok) {
            last_ns.store(now_ns(), Ordering::Release);
        }
    });
}

/// A line a second, until the program has ended: `logs` does not read them.
fn spawn_writer(mut stdin: ChildStdin) {
    spawn(move || {
        while stdin.write_all(b"line\n").and_then(|()| stdin.flush()).is_ok() {
            sleep_until(now_ns() + 1_000_000_000);
        }
    });
}

const OPENS_WITHIN: Duration = Duration::from_secs(60);
const LINE_WITHIN: Duration = Duration::from_secs(10);
