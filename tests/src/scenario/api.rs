//! The API server as the scenarios see it: JSON over one `kubectl proxy`, which saves a start of kubectl for each request.

use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::http::{self, Answer};
use crate::lab::{Lab, plan, wait_for};

/// Dropping the last clone ends the proxy; so does the end of this program.
#[derive(Clone)]
pub struct Api(Arc<Proxy>);

struct Proxy {
    process: Child,
    socket: PathBuf,
}

impl Api {
    pub fn open(lab: &Lab) -> Result<Self> {
        // A program may have several.
        static OPENED: AtomicU32 = AtomicU32::new(0);
        let number = OPENED.fetch_add(1, Ordering::Relaxed);
        let socket = plan::lab_dir(lab.name()).join(format!("proxy-{}-{number}.sock", std::process::id()));
        let _ = std::fs::remove_file(&socket);
        let mut command = lab.kubectl_command();
        command.arg("proxy").arg(format!("--unix-socket={}", socket.display()));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: prctl is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).map_err(std::io::Error::from)
            });
        }
        let process = command.spawn().context("start kubectl proxy")?;
        let api = Self(Arc::new(Proxy { process, socket }));
        wait_for("kubectl proxy", Duration::from_secs(10), || Ok(api.get("/version").ok()))?;
        Ok(api)
    }

    pub fn get(&self, path: &str) -> Result<Value> {
        self.json("GET", path, None)
    }

    /// `None` if there is no such object.
    pub fn find(&self, path: &str) -> Result<Option<Value>> {
        let answer = self.ask("GET", path, None)?;
        if answer.status == 404 { Ok(None) } else { parse("GET", path, &answer).map(Some) }
    }

    pub fn create(&self, collection: &str, object: &Value) -> Result<Value> {
        self.json("POST", collection, Some(("application/json", &object.to_string())))
    }

    /// As `kubectl create`: `manifest` is YAML, unknown fields are refused.
    pub fn create_yaml(&self, collection: &str, manifest: &str) -> Result<Value> {
        self.json("POST", &format!("{collection}?fieldValidation=Strict"), Some(("application/yaml", manifest)))
    }

    /// As `kubectl apply --server-side --force-conflicts`: `manifest` is YAML, unknown fields are refused.
    pub fn apply(&self, path: &str, manifest: &str) -> Result<Value> {
        let path = format!("{path}?fieldManager=kubectl&force=true&fieldValidation=Strict");
        self.json("PATCH", &path, Some(("application/apply-patch+yaml", manifest)))
    }

    /// A merge patch (RFC 7386).
    pub fn patch(&self, path: &str, patch: &Value) -> Result<Value> {
        self.json("PATCH", path, Some(("application/merge-patch+json", &patch.to_string())))
    }

    /// Nothing happens if there is no such object.
    pub fn delete(&self, path: &str) -> Result<()> {
        let answer = self.ask("DELETE", path, None)?;
        if answer.status == 404 { Ok(()) } else { parse("DELETE", path, &answer).map(drop) }
    }

    /// The items of a collection.
    pub fn list(&self, path: &str) -> Result<Vec<Value>> {
        match self.get(path)?["items"].take() {
            Value::Array(items) => Ok(items),
            other => bail!("{path}: items are {other}"),
        }
    }

    fn json(&self, method: &str, path: &str, body: Option<(&str, &str)>) -> Result<Value> {
        parse(method, path, &self.ask(method, path, body)?)
    }

    /// Again where the API server says so (429): it begins to watch a definition that was changed. kubectl does the same.
    fn ask(&self, method: &str, path: &str, body: Option<(&str, &str)>) -> Result<Answer> {
        wait_for(&format!("an answer to {method} {path}"), WITHIN, || {
            let answer = self.ask_once(method, path, body)?;
            Ok((answer.status != 429).then_some(answer))
        })
    }

    fn ask_once(&self, method: &str, path: &str, body: Option<(&str, &str)>) -> Result<Answer> {
        let stream = UnixStream::connect(&self.0.socket).with_context(|| self.0.socket.display().to_string())?;
        stream.set_read_timeout(Some(WITHIN))?;
        http::request(stream, method, path, body)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Both fail when it has ended, which is as well.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// A text field by its JSON pointer; empty if it is not there.
pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Whether the status has a condition of this type that is True.
pub fn condition(object: &Value, kind: &str) -> bool {
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == kind && one["status"] == "True"))
}

fn parse(method: &str, path: &str, answer: &Answer) -> Result<Value> {
    if !(200..300).contains(&answer.status) {
        // What the API server says, without the JSON around it.
        let status: Value = serde_json::from_str(&answer.body).unwrap_or_default();
        let said = status["message"].as_str().unwrap_or(answer.body.trim());
        bail!("{method} {path}: {} {said}", answer.status);
    }
    serde_json::from_str(&answer.body).with_context(|| format!("{method} {path}: {:?}", answer.body))
}

/// It answers within milliseconds; the machine may be busy with other clusters.
const WITHIN: Duration = Duration::from_secs(30);
