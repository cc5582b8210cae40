//! HTTP on a Unix socket of this node, for root alone: what must work where no API server answers. Routes and types: `sheave_api::local`.
//!
//! Connections, headers and times are bounded as on the admin ports (`sheave_admin`), and bodies too. A further route is a line in
//! [`router`].

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use sheave_api::local::{DRAIN, Drain, DrainRequest, LocalDrain, MAX_REQUEST, Refused};
use tokio::net::UnixListener;
use tracing::info;

use crate::health::HealthFlags;
use crate::io::clock;
use crate::local_drain::LocalDrains;
use crate::metrics::Metrics;

/// What the handlers read and change.
#[derive(Clone)]
pub struct Local {
    pub node: String,
    pub drains: LocalDrains,
    pub health: Arc<HealthFlags>,
}

/// Takes the place of a socket that an earlier speaker left. It has its name only when root alone can open it.
pub fn bind(path: &Path) -> Result<UnixListener> {
    let temporary = path.with_extension("new");
    let dir = path.parent().with_context(|| format!("{} has no directory", path.display()))?;
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    // Of a speaker that was killed at this point.
    crate::state::remove_if_there(&temporary).with_context(|| format!("remove {}", temporary.display()))?;
    let listener = UnixListener::bind(&temporary).with_context(|| format!("listen on {}", temporary.display()))?;
    fs::set_permissions(&temporary, Permissions::from_mode(0o600))
        .and_then(|()| fs::rename(&temporary, path))
        .with_context(|| format!("give the socket its name {}", path.display()))?;
    Ok(listener)
}

/// Its directory may be a mount of the pod.
pub fn remove(path: &Path) -> Result<()> {
    for path in [path.with_extension("new"), path.to_path_buf()] {
        crate::state::remove_if_there(&path).with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(())
}

/// Serves for as long as it is polled. `beside`: further routes.
pub async fn serve(listener: UnixListener, local: Local, beside: Router, metrics: Arc<Metrics>) {
    let connections = metrics.limits_reached.with_label_values(&["local_connections"]);
    sheave_admin::serve_unix(listener, router(local).merge(beside), || connections.inc()).await;
}

/// The same for a speaker that serves nothing: every request is refused for this reason.
pub async fn refuse(listener: UnixListener, why: &'static str, metrics: Arc<Metrics>) {
    let connections = metrics.limits_reached.with_label_values(&["local_connections"]);
    let router = Router::new().fallback(async move || refused(StatusCode::CONFLICT, why.to_owned()));
    sheave_admin::serve_unix(listener, router, || connections.inc()).await;
}

fn router(local: Local) -> Router {
    Router::new()
        .route(DRAIN, get(drain).put(begin_drain).delete(end_drain))
        .layer(DefaultBodyLimit::max(MAX_REQUEST))
        .with_state(local)
}

async fn drain(State(local): State<Local>) -> Response {
    answer(StatusCode::OK, &local.state())
}

/// A node that is drained already stays so by whom, since when and why it is.
async fn begin_drain(State(local): State<Local>, body: Bytes) -> Response {
    let request = serde_json::from_slice::<DrainRequest>(&body).map_err(|error| format!("the request: {error}"));
    let request = match request.and_then(|request| request.check().map(|()| request)) {
        Ok(request) => request,
        Err(error) => return refused(StatusCode::BAD_REQUEST, error),
    };
    if local.drains.current().is_some() {
        return answer(StatusCode::OK, &local.state());
    }
    let DrainRequest { by, reason } = request;
    let now = clock::timestamp();
    let since = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    info!(%by, reason, "drained on this node: it hands its VIPs over, and owns some only while no other node can");
    local.set(Some(LocalDrain { by, reason, since })).await
}

async fn end_drain(State(local): State<Local>) -> Response {
    info!("drain of this node ends: it may own VIPs");
    local.set(None).await
}

impl Local {
    fn state(&self) -> Drain {
        let owned = self.health.owned().into_keys().collect();
        Drain { node: self.node.clone(), drained: self.drains.current(), owned }
    }

    async fn set(&self, drain: Option<LocalDrain>) -> Response {
        match self.drains.set(drain).await {
            Ok(()) => answer(StatusCode::OK, &self.state()),
            Err(error) => refused(StatusCode::INTERNAL_SERVER_ERROR, format!("nothing was changed: {error:#}")),
        }
    }
}

fn refused(status: StatusCode, error: String) -> Response {
    answer(status, &Refused { error })
}

fn answer(status: StatusCode, object: &impl Serialize) -> Response {
    match serde_json::to_vec(object) {
        Ok(body) => (status, [(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use speaker_core::time::Instant;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::*;
    use crate::state::StateDir;

    /// A socket in a directory of its own, and the state directory beside it.
    struct Served {
        dir: PathBuf,
        local: Local,
    }

    impl Served {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("sheave-local-{}-{name}", std::process::id()));
            let health = Arc::new(HealthFlags::new(Instant::ZERO));
            let local = Local { node: "n1".into(), drains: LocalDrains::load(&StateDir::open(&dir)), health };
            let listener = bind(&dir.join("speaker.sock")).expect("binds");
            tokio::spawn(sheave_admin::serve_unix(listener, router(local.clone()), || {}));
            Self { dir, local }
        }

        /// Status and body.
        async fn ask(&self, method: &str, body: &str) -> (u16, String) {
            let mut stream = UnixStream::connect(self.dir.join("speaker.sock")).await.expect("connects");
            let head =
                format!("{method} {DRAIN} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
            stream.write_all(format!("{head}{body}").as_bytes()).await.expect("writes");
            let mut text = String::new();
            stream.read_to_string(&mut text).await.expect("reads");
            let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
            (status, text.split_once("\r\n\r\n").expect("a body").1.to_owned())
        }

        async fn state(&self, method: &str, body: &str) -> Drain {
            let (status, text) = self.ask(method, body).await;
            assert_eq!(status, 200, "{text}");
            serde_json::from_str(&text).expect("a state")
        }
    }

    impl Drop for Served {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.dir).expect("cleans up");
        }
    }

    #[tokio::test]
    async fn a_drain_is_on_disk_before_it_is_acknowledged_and_ends_there() {
        let served = Served::new("drain");
        let mut seen = served.local.drains.subscribe();
        served.local.health.own([192, 0, 2, 1].into(), 7);
        let before = served.state("GET", "").await;
        assert_eq!((before.node.as_str(), before.drained), ("n1", None));
        assert_eq!(before.owned, [std::net::Ipv4Addr::new(192, 0, 2, 1)]);
        let drained = served.state("PUT", r#"{"by":"root","reason":"disk"}"#).await.drained.expect("is drained");
        assert_eq!((drained.by.as_str(), drained.reason.as_deref()), ("root", Some("disk")));
        assert_eq!(seen.wait_for(Option::is_some).await.expect("reported").clone(), Some(drained.clone()));
        assert_eq!(
            LocalDrains::load(&StateDir::open(&served.dir)).current(),
            Some(drained.clone()),
            "as the next speaker"
        );
        let again = served.state("PUT", r#"{"by":"another"}"#).await;
        assert_eq!(again.drained, Some(drained), "by whom and since when stays");
        assert_eq!(served.state("DELETE", "").await.drained, None);
        assert_eq!(LocalDrains::load(&StateDir::open(&served.dir)).current(), None);
        assert_eq!(served.state("DELETE", "").await.drained, None, "again");
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_refused_by_name_and_changes_nothing() {
        let served = Served::new("refused");
        let long = format!(r#"{{"by":"root","reason":"{}"}}"#, "x".repeat(1025));
        for (body, words) in [
            ("", "the request: EOF"),
            (r#"{"by":"root","until":"noon"}"#, "unknown field `until`"),
            (r#"{"by":""}"#, "by: '' has 0 bytes; 1 to 253 are allowed"),
            (long.as_str(), "reason: 1025 bytes; at most 1024 are allowed"),
        ] {
            let (status, text) = served.ask("PUT", body).await;
            assert!(status == 400 && text.contains(words), "{body}: {status} {text}");
        }
        let (status, _) = served.ask("PUT", &"x".repeat(MAX_REQUEST + 1)).await;
        assert_eq!(status, 413);
        assert_eq!(served.ask("POST", "").await.0, 405);
        assert_eq!(served.state("GET", "").await.drained, None);
    }

    #[tokio::test]
    async fn a_drain_that_cannot_be_kept_on_disk_is_refused() {
        let served = Served::new("disk");
        let elsewhere = served.dir.with_extension("elsewhere");
        fs::rename(&served.dir, &elsewhere).expect("renames");
        let since = Time(Timestamp::UNIX_EPOCH);
        let refused = served.local.set(Some(LocalDrain { by: "root".into(), reason: None, since })).await;
        fs::rename(&elsewhere, &served.dir).expect("renames back");
        assert_eq!((refused.status(), served.local.drains.current()), (StatusCode::INTERNAL_SERVER_ERROR, None));
    }

    /// A speaker that was killed leaves its socket.
    #[tokio::test]
    async fn root_alone_opens_it_and_a_new_speaker_takes_it_over() {
        let served = Served::new("taken");
        let path = served.dir.join("speaker.sock");
        let mode = fs::metadata(&path).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let second = bind(&path).expect("binds again");
        let names: Vec<_> =
            fs::read_dir(&served.dir).expect("lists").flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(names, ["speaker.sock"]);
        let accepted = tokio::spawn(async move { second.accept().await.map(drop) });
        UnixStream::connect(&path).await.expect("connects");
        accepted.await.expect("no panic").expect("the new one has it");
    }
}
