//! How the API server is reached: by the address that every pod is given, which is a Service's and needs kube-proxy, or directly.
//!
//! Read first: docs/decisions/0013. A speaker must be able to begin on a node whose kube-proxy is not there: else it would serve the view of
//! its predecessor, and send new connections to pods that are gone. The addresses behind the Service `default/kubernetes` are part
//! of the view, which is on disk.

use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{ClientBuilder, ConfigExt};
use kube::{Client, Config};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tower::ServiceBuilder;

/// The configured address comes first by so much.
const HEAD_START: Duration = Duration::from_millis(300);
/// A connection that is silent for so long hangs. Every watch brings something sooner (`watch::SECONDS`).
pub const SILENCE: Duration = Duration::from_secs(60);
/// A kernel that acknowledges nothing for so long is gone, or the way to it is cut: the connection ends, and the next one is not
/// delayed by the retransmission timeout of this one, which grows with the cut.
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);
const KEEPALIVE_IDLE: Duration = Duration::from_secs(4);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// As many servers are tried at most.
const MAX_SERVERS: usize = 8;

#[derive(Clone)]
pub struct ApiServer {
    config: Config,
    /// Other addresses, from the view.
    known: watch::Receiver<Vec<SocketAddrV4>>,
}

impl ApiServer {
    pub fn new(config: Config, known: watch::Receiver<Vec<SocketAddrV4>>) -> Self {
        Self::with_silence(config, known, SILENCE)
    }

    fn with_silence(mut config: Config, known: watch::Receiver<Vec<SocketAddrV4>>, silence: Duration) -> Self {
        config.read_timeout = Some(silence);
        Self { config, known }
    }

    /// A client whose connection works, and to where: by preference the configured address. Each server has `patience` for its answer.
    pub async fn reach(&self, patience: Duration) -> Result<(Client, String)> {
        let servers = self.known.borrow().clone();
        let configured = (Duration::ZERO, Ok(self.config.clone()));
        let known = servers.into_iter().take(MAX_SERVERS).map(|server| (HEAD_START, direct(&self.config, server)));
        let all = std::iter::once(configured).chain(known);
        let mut attempts: FuturesUnordered<_> = all.map(|(wait, config)| try_server(wait, patience, config)).collect();
        let mut errors = Vec::new();
        while let Some(attempt) = attempts.next().await {
            match attempt {
                Ok(reached) => return Ok(reached),
                Err(error) => errors.push(format!("{error:#}")),
            }
        }
        Err(anyhow!("{}", errors.join("; ")))
    }
}

async fn try_server(wait: Duration, patience: Duration, config: Result<Config>) -> Result<(Client, String)> {
    let config = config?;
    let url = config.cluster_url.to_string();
    sleep(wait).await;
    let client = client(config).context("Kubernetes client")?;
    match timeout(patience, client.apiserver_version()).await.with_context(|| url.clone())? {
        // A refusal is an answer.
        Ok(_) | Err(kube::Error::Api(_)) => Ok((client, url)),
        Err(error) => Err(error).context(url),
    }
}

/// What `Client::try_from` makes, with keepalive: a watch that waits sends nothing by itself.
fn client(config: Config) -> kube::Result<Client> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_keepalive(Some(KEEPALIVE_IDLE));
    tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    // Longer than the user timeout, which ends a connection both while it waits and while it sends (tcp(7)).
    tcp.set_keepalive_retries(Some(UNACKNOWLEDGED.as_secs() as u32));
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(tcp)?);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    connector.set_write_timeout(config.write_timeout);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(tower::BoxError::from)
        .service(legacy::Client::builder(TokioExecutor::new()).build(connector));
    Ok(ClientBuilder::new(service, config.default_namespace).build())
}

/// The certificate must be the same as at the configured address: write access to EndpointSlices does not make an API server.
fn direct(config: &Config, server: SocketAddrV4) -> Result<Config> {
    let mut direct = config.clone();
    let host = config.cluster_url.host().map(|host| host.trim_matches(['[', ']']).to_owned());
    direct.tls_server_name = direct.tls_server_name.or(host);
    direct.cluster_url = format!("https://{server}").parse().with_context(|| server.to_string())?;
    Ok(direct)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    #[test]
    fn a_direct_address_must_have_the_certificate_of_the_configured_one() {
        let server = SocketAddrV4::new([192, 0, 2, 1].into(), 6443);
        for (url, name) in
            [("https://10.96.0.1", "10.96.0.1"), ("https://api:6443", "api"), ("https://[fd00::1]:443", "fd00::1")]
        {
            let config = direct(&Config::new(url.parse().unwrap()), server).unwrap();
            assert_eq!(config.cluster_url.to_string(), "https://192.0.2.1:6443/");
            assert_eq!(config.tls_server_name.as_deref(), Some(name));
        }
        let mut named = Config::new("https://10.96.0.1".parse().unwrap());
        named.tls_server_name = Some("kubernetes".into());
        assert_eq!(direct(&named, server).unwrap().tls_server_name.as_deref(), Some("kubernetes"));
    }

    /// A server that answers one request, begins to answer a watch, and then says nothing.
    async fn silent_server() -> SocketAddrV4 {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let SocketAddr::V4(address) = listener.local_addr().unwrap() else { panic!("IPv4") };
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            for head in ["Content-Length: 19\r\n\r\n{\"gitVersion\":\"v1\"}", "Transfer-Encoding: chunked\r\n\r\n"] {
                assert!(stream.read(&mut request).await.unwrap() > 0);
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{head}");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            std::future::pending::<()>().await;
        });
        address
    }

    /// Watches with this patience for silence; `then` happens when the watch has begun. The watch must end.
    async fn watch_ends(silence: Duration, then: impl FnOnce(SocketAddrV4), within: Duration) {
        use kube::api::WatchParams;

        let address = silent_server().await;
        let (_sender, known) = watch::channel(Vec::new());
        let url = format!("http://{address}");
        let server = ApiServer::with_silence(Config::new(url.parse().unwrap()), known, silence);
        let (client, _) = server.reach(Duration::from_secs(5)).await.unwrap();
        let nodes: kube::Api<k8s_openapi::api::core::v1::Node> = kube::Api::all(client);
        let params = WatchParams::default();
        let mut watched = std::pin::pin!(nodes.watch(&params, "0").await.unwrap());
        then(address);
        let item = timeout(within, watched.next()).await.expect("it ends");
        assert!(item.is_none_or(|item| item.is_err()), "nothing came");
    }

    /// As when an API server hangs: its kernel acknowledges what arrives.
    #[tokio::test]
    async fn a_silent_connection_is_closed() {
        watch_ends(Duration::from_millis(500), |_| (), Duration::from_secs(5)).await;
    }

    /// As when the machine of an API server loses power, or the way to it is cut: nothing is acknowledged.
    #[test]
    fn a_connection_that_is_cut_is_closed_long_before_it_counts_as_silent() {
        let test = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace needs CAP_SYS_ADMIN");
            run("ip link set lo up");
            let cut = |server: SocketAddrV4| {
                run("nft add table ip cut");
                run("nft add chain ip cut input { type filter hook input priority 0; }");
                run(&format!("nft add rule ip cut input tcp sport {} drop", server.port()));
                run(&format!("nft add rule ip cut input tcp dport {} drop", server.port()));
            };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(watch_ends(SILENCE, cut, SILENCE / 2));
        };
        std::thread::spawn(test).join().unwrap();
    }

    fn run(command: &str) {
        let mut words = command.split(' ');
        let status = std::process::Command::new(words.next().unwrap()).args(words).status().unwrap();
        assert!(status.success(), "{command}");
    }

    #[tokio::test]
    async fn a_server_that_does_not_answer_is_named() {
        let (_sender, known) = watch::channel(vec![SocketAddrV4::new([127, 0, 0, 1].into(), 1)]);
        let server = ApiServer::new(Config::new("https://127.0.0.1:2".parse().unwrap()), known);
        let error = server.reach(Duration::from_secs(1)).await.err().expect("no server listens").to_string();
        assert!(error.contains("https://127.0.0.1:2") && error.contains("https://127.0.0.1:1"), "{error}");
    }
}
