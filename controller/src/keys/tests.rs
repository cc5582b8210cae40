use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

const VECTOR: [u8; 8] = [0x36, 0x49, 0x6d, 0x2c, 0x30, 0x7a, 0x4d, 0xd6];

fn secret(current: u8) -> Secret {
    let data = ENTRIES.map(|(name, length)| (name.to_string(), ByteString(vec![current; length])));
    Secret { data: Some(data.into()), ..Secret::default() }
}

#[test]
fn random_bytes_differ() {
    let (a, b) = (random(32).unwrap(), random(32).unwrap());
    assert_eq!(a.len(), 32);
    assert_ne!(a, b);
}

/// The vector is computed with Python's hmac: part of what every replica must agree on.
#[test]
fn the_identity_follows_from_the_cluster() {
    let uid = "0e5a6a3e-6f2f-4f0c-9b0a-1d2c3b4a5968";
    assert_eq!(derive(uid, keys::CLUSTER_ID, 8), VECTOR);
    assert_ne!(derive(uid, keys::FLOW_HASH, 8), VECTOR);
    assert_ne!(derive("0e5a6a3e-6f2f-4f0c-9b0a-1d2c3b4a5969", keys::CLUSTER_ID, 8), VECTOR);
}

/// The contents that were seen last come back; a Secret that lacks an entry does not replace them.
#[test]
fn what_was_there_is_remembered() {
    use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
    let mut known = Known::default();
    known.observe(Init);
    assert_eq!(known.presence, Presence::Listing, "not absent before the list is complete");
    known.observe(InitApply(secret(1)));
    known.observe(InitDone);
    assert_eq!(known.presence, Presence::Present);
    known.observe(Apply(secret(2)));
    known.observe(Apply(Secret::default()));
    known.observe(Delete(Secret::default()));
    assert_eq!(known.presence, Presence::Absent);
    assert_eq!(known.contents, secret(2).data);
    // Deleted while the watch was down.
    known.observe(Apply(secret(2)));
    known.observe(Init);
    known.observe(InitDone);
    assert_eq!((known.presence, known.contents), (Presence::Absent, secret(2).data));
}

/// Neither the log of the Kubernetes client nor our own error shows what a Secret contains.
#[tokio::test]
async fn a_secret_that_cannot_be_read_is_not_logged() {
    let text = r#"{"apiVersion":"v1","kind":"Secret","metadata":{"name":"sheave-keys"},"data":"c2VjcmV0"}"#;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 4096]).await.unwrap();
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", text.len());
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
    });
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(crate::log_filter("trace").unwrap())
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let client = Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();
    let error = Api::<Secret>::namespaced(client, "x").get(keys::SECRET).await.expect_err("no Secret");
    server.await.unwrap();
    warn!(error = %Chain(&KeysError::from(error)), "no keys");
    let printed = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(printed.contains("the API server's answer is no Secret"), "{printed}");
    assert!(!printed.contains("c2VjcmV0"), "{printed}");
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
