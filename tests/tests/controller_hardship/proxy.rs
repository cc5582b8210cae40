//! What stands between a replica and an API server where single requests are to be told apart: HTTP/1.1 on the replica's side, TLS on the API
//! server's. A request passes, is answered in the API server's place, or is held; when it passes then, it does so whatever has become of its
//! sender, as one that was sent before.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sheave_tests::lab::wait_for;
use sheave_tests::scenario::api::text;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::net::{TcpListener, TcpStream, tcp};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// What is done with a request.
pub enum Verdict {
    Pass,
    /// It is answered with this status, and nothing passes.
    Refuse(u16),
    /// Until there is another rule, which judges it anew.
    Hold,
}

pub type Rule = Box<dyn FnMut(&Request) -> Verdict + Send>;

/// A request, and what has become of it.
#[derive(Clone, Debug)]
pub struct Request {
    pub at: Instant,
    pub method: String,
    /// Without the query.
    pub path: String,
    pub query: String,
    pub body: String,
    pub held: bool,
    /// The answer's status, and whether the API server gave it.
    pub answer: Option<(u16, bool)>,
    /// The uid of the priority level that the API server judged it by.
    pub level: String,
}

impl Request {
    /// Whether it passed and was carried out.
    pub fn done(&self) -> bool {
        matches!(self.answer, Some((200..=299, true)))
    }

    pub fn refused(&self) -> bool {
        matches!(self.answer, Some((_, false)))
    }

    /// Whether it asks for the record of the lead, or writes it.
    pub fn is_of_lease(&self) -> bool {
        self.path.contains("/leases")
    }

    pub fn is_write(&self) -> bool {
        self.method != "GET"
    }

    /// The value of a field of the query.
    pub fn asks(&self, field: &str) -> Option<&str> {
        self.query.split('&').find_map(|pair| pair.strip_prefix(field)?.strip_prefix('='))
    }

    /// Whether it asks for all objects of this kind, in pages or streamed.
    pub fn lists(&self, plural: &str) -> bool {
        let whole = self.asks("watch").is_none() || self.asks("sendInitialEvents") == Some("true");
        whole && !self.is_write() && self.path.ends_with(&format!("/{plural}"))
    }
}

/// It stays as long as the process lives.
pub struct Proxy {
    pub kubeconfig: PathBuf,
    shared: Arc<Shared>,
}

impl Proxy {
    /// `config`: a kubeconfig that names the API server and has a token. That of the replica's side is written to a file of this name.
    pub fn start(mut config: Value, kubeconfig: PathBuf) -> Result<Self> {
        let upstream = Upstream::of(&config)?;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").context("a port for the proxy")?;
        listener.set_nonblocking(true)?;
        config["clusters"][0]["cluster"] = json!({ "server": format!("http://{}", listener.local_addr()?) });
        std::fs::write(&kubeconfig, config.to_string())?;
        let state = State { rule: Box::new(|_| Verdict::Pass), requests: vec![] };
        let shared = Arc::new(Shared {
            upstream,
            state: Mutex::new(state),
            rules: watch::Sender::new(()),
            ends: watch::Sender::new(()),
            unfinished: watch::Sender::new(None),
        });
        let serving = shared.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::spawn(move || runtime.block_on(serve(listener, serving)));
        Ok(Self { kubeconfig, shared })
    }

    /// From now on; also for what is held.
    pub fn rule(&self, rule: impl FnMut(&Request) -> Verdict + Send + 'static) {
        self.shared.state().rule = Box::new(rule);
        self.shared.rules.send_replace(());
    }

    pub fn pass(&self) {
        self.rule(|_| Verdict::Pass);
    }

    /// All connections of the replica, also those whose requests are held.
    pub fn end_connections(&self) {
        self.shared.ends.send_replace(());
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.state().requests.clone()
    }

    pub fn count(&self, wanted: impl Fn(&Request) -> bool) -> usize {
        self.shared.state().requests.iter().filter(|request| wanted(request)).count()
    }

    /// Returns when a request is held.
    pub fn wait_held(&self, within: Duration) -> Result<()> {
        wait_for("a request to be held", within, || Ok((self.count(|request| request.held) > 0).then_some(())))
    }

    /// Sends the API server the beginning of a request of the same account: the rest of its body never comes. It ends with the next one of
    /// these.
    pub fn begin_request(&self, method: &str, path: &str) {
        let Upstream { address, token, .. } = &self.shared.upstream;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{{"
        );
        self.shared.unfinished.send_replace(Some(head));
    }
}

/// Where requests go, and as whom.
struct Upstream {
    address: SocketAddr,
    token: String,
    tls: TlsConnector,
}

impl Upstream {
    fn of(config: &Value) -> Result<Self> {
        let cluster = &config["clusters"][0]["cluster"];
        let address = text(cluster, "/server").trim_start_matches("https://").parse().context("server")?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(text(cluster, "/certificate-authority")).context("authority")?)?;
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let token = text(config, "/users/0/user/token").to_owned();
        Ok(Self { address, token, tls: TlsConnector::from(Arc::new(tls)) })
    }

    async fn connect(&self) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        self.tls.connect(ServerName::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST).into()), stream).await
    }
}

struct Shared {
    upstream: Upstream,
    state: Mutex<State>,
    /// The rule is another one.
    rules: watch::Sender<()>,
    /// All connections are to end.
    ends: watch::Sender<()>,
    /// The beginning of a request that is never finished.
    unfinished: watch::Sender<Option<String>>,
}

struct State {
    rule: Rule,
    requests: Vec<Request>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics with it")
    }

    fn change(&self, number: usize, change: impl FnOnce(&mut Request)) {
        change(&mut self.state().requests[number]);
    }

    /// Returns when the request is not held, or not any more.
    async fn judge(&self, number: usize) -> Verdict {
        let mut rules = self.rules.subscribe();
        loop {
            let verdict = {
                let State { rule, requests } = &mut *self.state();
                let verdict = rule(&requests[number]);
                requests[number].held = matches!(verdict, Verdict::Hold);
                verdict
            };
            match verdict {
                Verdict::Hold => rules.changed().await.expect("the sender is in the same place"),
                other => return other,
            }
        }
    }
}

async fn serve(listener: std::net::TcpListener, shared: Arc<Shared>) -> Result<()> {
    let listener = TcpListener::from_std(listener)?;
    tokio::spawn(unfinished(shared.clone()));
    loop {
        let (client, _) = listener.accept().await?;
        let shared = shared.clone();
        tokio::spawn(async move {
            let mut ends = shared.ends.subscribe();
            tokio::select! {
                // A replica that is killed, or an API server that is not there: the connection ends.
                _ = connection(&shared, client) => {}
                _ = ends.changed() => {}
            }
        });
    }
}

/// Keeps one unfinished request with the API server.
async fn unfinished(shared: Arc<Shared>) -> Result<()> {
    let mut heads = shared.unfinished.subscribe();
    let mut _open = None;
    loop {
        heads.changed().await?;
        let head = heads.borrow_and_update().clone();
        if let Some(head) = head {
            let mut server = shared.upstream.connect().await?;
            server.write_all(head.as_bytes()).await?;
            _open = Some(server);
        }
    }
}

type ToClient = Arc<tokio::sync::Mutex<tcp::OwnedWriteHalf>>;

/// Of a client that sends a request when the last one is answered.
async fn connection(shared: &Arc<Shared>, client: TcpStream) -> Result<()> {
    client.set_nodelay(true)?;
    let (mut from, to) = client.into_split();
    let to: ToClient = Arc::new(tokio::sync::Mutex::new(to));
    // The request that the API server has not answered.
    let awaited = watch::Sender::new(None);
    let (mut server, mut answers): (Option<WriteHalf<_>>, _) = (None, JoinSet::new());
    let mut bytes = vec![];
    while let Some((request, whole)) = read(&mut from, &mut bytes).await? {
        let number = {
            let requests = &mut shared.state().requests;
            requests.push(request);
            requests.len() - 1
        };
        match shared.judge(number).await {
            Verdict::Refuse(status) => {
                shared.change(number, |request| request.answer = Some((status, false)));
                to.lock().await.write_all(refusal(status).as_bytes()).await?;
            }
            Verdict::Pass | Verdict::Hold => {
                if server.is_none() {
                    let (reader, writer) = split(shared.upstream.connect().await?);
                    answers.spawn(pass_answers(shared.clone(), reader, to.clone(), awaited.clone()));
                    server = Some(writer);
                }
                awaited.send_replace(Some(number));
                let server = server.as_mut().expect("it was made");
                server.write_all(&whole).await?;
                server.flush().await?;
            }
        }
    }
    // A client that does not wait for it: what the API server says counts all the same.
    let _ = awaited.subscribe().wait_for(Option::is_none).await;
    Ok(())
}

/// The next request, and all of its bytes.
async fn read(from: &mut tcp::OwnedReadHalf, bytes: &mut Vec<u8>) -> Result<Option<(Request, Vec<u8>)>> {
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let length = header(&head, "content-length").map_or(Ok(0), str::parse::<usize>)?;
            let whole = end + 4 + length;
            if bytes.len() >= whole {
                let rest = bytes.split_off(whole);
                let whole = std::mem::replace(bytes, rest);
                return Ok(Some((parse(&head, &whole[end + 4..])?, whole)));
            }
        }
        let mut more = [0; 16 * 1024];
        match from.read(&mut more).await? {
            0 => return Ok(None),
            length => bytes.extend_from_slice(&more[..length]),
        }
    }
}

fn parse(head: &str, body: &[u8]) -> Result<Request> {
    let mut words = head.split(' ');
    let (method, target) = words.next().zip(words.next()).with_context(|| head.to_owned())?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    Ok(Request {
        at: Instant::now(),
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        body: String::from_utf8_lossy(body).into_owned(),
        held: false,
        answer: None,
        level: String::new(),
    })
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = head.lines().filter_map(|line| line.split_once(':'));
    pairs.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

/// Passes all that comes, and looks at the heads: a client that sends one request at a time gets one answer at a time.
async fn pass_answers(
    shared: Arc<Shared>,
    mut from: ReadHalf<TlsStream<TcpStream>>,
    to: ToClient,
    awaited: watch::Sender<Option<usize>>,
) {
    let (mut bytes, mut head) = ([0; 16 * 1024], vec![]);
    while let Ok(length @ 1..) = from.read(&mut bytes).await {
        let number = *awaited.borrow();
        if let Some(number) = number {
            head.extend_from_slice(&bytes[..length]);
            if let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") {
                let text = String::from_utf8_lossy(&head[..end]).into_owned();
                shared.change(number, |request| {
                    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
                    request.answer = status.map(|status| (status, true));
                    request.level = header(&text, "x-kubernetes-pf-prioritylevel-uid").unwrap_or_default().to_owned();
                });
                head.clear();
                awaited.send_replace(None);
            }
        }
        // It may be gone.
        let _ = to.lock().await.write_all(&bytes[..length]).await;
    }
    awaited.send_replace(None);
    let _ = to.lock().await.shutdown().await;
}

/// As an API server says it.
fn refusal(status: u16) -> String {
    let (title, more, body) = match status {
        429 => (
            "Too Many Requests",
            format!("Retry-After: {RETRY_AFTER}\r\nContent-Type: text/plain\r\n"),
            "Too many requests, please try again later.\n".to_owned(),
        ),
        _ => {
            let message = "too old resource version: 1 (2)";
            let said = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
                "reason": "Expired", "code": status,
            });
            ("Gone", "Content-Type: application/json\r\n".to_owned(), said.to_string())
        }
    };
    format!("HTTP/1.1 {status} {title}\r\n{more}Content-Length: {}\r\n\r\n{body}", body.len())
}

/// Seconds.
pub const RETRY_AFTER: u64 = 2;
