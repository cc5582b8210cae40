//! `sheave drain --local`: the node that this runs on, by the socket of its speaker. No API server is asked.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sheave_api::local::{DRAIN, Drain, DrainRequest, LocalDrain, Refused};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};

/// What is to become of the node.
pub enum Change {
    Begin { reason: Option<String> },
    End,
}

/// Exit code 1 if the node still owns an address.
pub async fn drain(socket: &Path, change: Change) -> Result<ExitCode> {
    let socket = Socket(socket.to_path_buf());
    match change {
        Change::End => {
            let before = socket.state().await?;
            let after: Drain = socket.ask(Method::DELETE, DRAIN, None::<&DrainRequest>).await?;
            match before.drained {
                Some(drained) => println!("{} may own addresses again (it was drained {})", after.node, who(&drained)),
                None => println!("{} was not drained by this socket", after.node),
            }
            Ok(ExitCode::SUCCESS)
        }
        Change::Begin { reason } => {
            if let Some(drained) = socket.state().await?.drained {
                println!("drained already, {}", who(&drained));
            }
            let request = DrainRequest { by: user(), reason };
            let drained: Drain = socket.ask(Method::PUT, DRAIN, Some(&request)).await?;
            let after = socket.wait_empty(drained).await?;
            if after.owned.is_empty() {
                println!("{} is drained: it owns no address while another node can (--undo ends this)", after.node);
                return Ok(ExitCode::SUCCESS);
            }
            let owned: Vec<String> = after.owned.iter().map(ToString::to_string).collect();
            println!("{} is drained and keeps until another node can own them: {}", after.node, owned.join(", "));
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Who made a drain, when, and why.
pub fn who(drain: &LocalDrain) -> String {
    let reason = drain.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("on the node by {} since {}{reason}", drain.by, drain.since.0)
}

/// The socket is root's: the name is that of the person behind it, by what sudo or the login set.
fn user() -> String {
    let named = |variable| std::env::var(variable).ok().filter(|name: &String| !name.is_empty() && name.len() <= 253);
    named("SUDO_USER").or_else(|| named("USER")).or_else(|| named("LOGNAME")).unwrap_or_else(|| "root".to_owned())
}

/// Of a speaker on this node.
pub struct Socket(pub PathBuf);

impl Socket {
    async fn state(&self) -> Result<Drain> {
        self.ask(Method::GET, DRAIN, None::<&DrainRequest>).await
    }

    /// What the node owns once it has handed everything over, or the time for it is over.
    async fn wait_empty(&self, mut state: Drain) -> Result<Drain> {
        let until = Instant::now() + WITHIN;
        while !state.owned.is_empty() && Instant::now() < until {
            // The socket reports states, not changes.
            sleep(PAUSE).await;
            state = self.state().await?;
        }
        Ok(state)
    }

    pub async fn get<A: DeserializeOwned>(&self, uri: &str) -> Result<A> {
        self.ask(Method::GET, uri, None::<&()>).await
    }

    pub async fn ask<A: DeserializeOwned>(
        &self,
        method: Method,
        uri: &str,
        body: Option<&impl Serialize>,
    ) -> Result<A> {
        let body = body.map_or_else(|| Ok(Vec::new()), serde_json::to_vec).context("the request")?;
        let answered = timeout(ANSWER, self.send(method, uri, body)).await;
        let (ok, answer) =
            answered.with_context(|| format!("{}: no answer within {} s", self.0.display(), ANSWER.as_secs()))??;
        if !ok {
            let refused = serde_json::from_slice::<Refused>(&answer).map(|refused| refused.error);
            bail!("{}", refused.unwrap_or_else(|_| String::from_utf8_lossy(&answer).into_owned()));
        }
        serde_json::from_slice(&answer).context("the speaker's answer (is it of another version?)")
    }

    /// Whether it was carried out, and the answer.
    async fn send(&self, method: Method, uri: &str, body: Vec<u8>) -> Result<(bool, Bytes)> {
        let at = self.0.display();
        let stream = UnixStream::connect(&self.0).await;
        let stream = stream.with_context(|| format!("connect to {at} (root on the node, with a speaker that runs)"))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.with_context(|| format!("{at}"))?;
        let request = Request::builder().method(method).uri(uri).header("host", "localhost");
        let request = request.body(Full::new(Bytes::from(body))).context("the request")?;
        let exchange = async {
            let response = sender.send_request(request).await?;
            let ok = response.status().is_success();
            let body = Limited::new(response.into_body(), MOST_ANSWER).collect().await;
            let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
            anyhow::Ok((ok, body))
        };
        tokio::select! {
            answer = exchange => answer.with_context(|| format!("ask {at}")),
            Err(error) = connection => Err(error).with_context(|| format!("ask {at}")),
        }
    }
}

/// As long as hand-overs are waited for with an API server.
const WITHIN: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);
/// Longer than events are waited for (`sheave_endpoint::local::MAX_WAIT`).
const ANSWER: Duration = Duration::from_secs(8);
/// 4,096 addresses, or 32 members at 16 ports, and more than enough beside them.
const MOST_ANSWER: usize = 1024 * 1024;
