//! Real sockets: what unfinished requests cost, and whether a probe is answered beside them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::*;

struct Server {
    address: SocketAddr,
    limit_reached: Arc<AtomicUsize>,
}

async fn start() -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let limit_reached = Arc::new(AtomicUsize::new(0));
    let counter = limit_reached.clone();
    let router = Router::new().route("/livez", get(|| async { "ok\n" }));
    tokio::spawn(serve(listener, router, move || _ = counter.fetch_add(1, Ordering::Relaxed)));
    Server { address, limit_reached }
}

async fn answer(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn is_live(address: SocketAddr) -> bool {
    let request = "GET /livez HTTP/1.1\r\nHost: n1\r\nConnection: close\r\n\r\n";
    let answer = timeout(Duration::from_secs(2), answer(address, request)).await.unwrap_or_default();
    answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok\n")
}

/// Bytes that this process has in anonymous memory.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// 700 clients with 390 kB of a header that never ends. What a client has sent and the server has not read waits in the kernel.
#[tokio::test]
async fn unfinished_headers_cost_little_and_a_probe_is_answered_beside_them() {
    let server = start().await;
    let before = resident();
    let head = format!("GET /livez HTTP/1.1\r\nX: {}", "a".repeat(390_000));
    let mut clients = Vec::new();
    for number in 0..700 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        // Refused in the middle: the server reads no more than the limit.
        let _ = timeout(Duration::from_millis(20), stream.write_all(head.as_bytes())).await;
        clients.push(stream);
        if number % 100 == 0 {
            assert!(is_live(server.address).await, "beside {number} connections");
        }
    }
    assert!(is_live(server.address).await);
    let cost = resident().saturating_sub(before);
    assert!(cost < 16 << 20, "{cost} bytes");
}

/// Headers below the limit that never end: the connections stay open, 64 of them, and the newest is served.
#[tokio::test]
async fn the_connection_too_many_ends_the_oldest() {
    let server = start().await;
    let mut clients = Vec::new();
    for _ in 0..MAX_CONNECTIONS + 10 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(b"GET /livez HTTP/1.1\r\nX: ").await.unwrap();
        clients.push(stream);
        assert!(is_live(server.address).await);
    }
    assert!(server.limit_reached.load(Ordering::Relaxed) >= 10);
    // The oldest was ended, and the newest was not.
    let mut byte = [0];
    assert!(matches!(timeout(Duration::from_secs(1), clients[0].read(&mut byte)).await, Ok(Ok(0) | Err(_))));
    let newest = clients.last_mut().unwrap();
    newest.write_all(b"b\r\nHost: n1\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    newest.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn headers_have_a_time_and_a_size() {
    let server = start().await;
    let began = Instant::now();
    let mut slow = TcpStream::connect(server.address).await.unwrap();
    slow.write_all(b"GET /livez HTTP/1.1\r\n").await.unwrap();
    let mut answer_of_slow = Vec::new();
    // A reset is an end as well.
    let _ = timeout(2 * HEADER, slow.read_to_end(&mut answer_of_slow)).await.expect("ended by the server");
    assert!(began.elapsed() >= HEADER && began.elapsed() < CONNECTION, "{:?}", began.elapsed());

    let large = format!("GET /livez HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(2 * MAX_HEADER));
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let _ = stream.write_all(large.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&answer));
}
