//! Connections at a rate, as `kubectl` makes them: a new TLS connection each, one request, the end.

use std::collections::BTreeSet;
use std::net::SocketAddrV4;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use h2::RecvStream;
use http::{Method, Response};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::CHANGED;
use super::place::Place;
use super::report::{Attempt, Served, Window, window};
use super::session::{Access, Failure, PATIENCE, Session};
use crate::traffic::clock::now_ns;

/// What became of the connections.
#[derive(Debug, Default)]
pub struct Log(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    attempts: Vec<Attempt>,
    /// Starts of those that are neither served nor failed yet.
    pending: BTreeSet<(u64, u32)>,
}

impl Log {
    pub fn window(&self, from_ns: u64, until_ns: u64) -> Window {
        window(&self.lock().attempts, from_ns, until_ns)
    }

    /// Whether every connection that began before that time is served or failed.
    pub fn is_settled(&self, until_ns: u64) -> bool {
        self.lock().pending.first().is_none_or(|(start, _)| *start >= until_ns)
    }

    /// When the first connection that began at that time or later was served: by this one, or any.
    pub fn first_served(&self, from_ns: u64, by: Option<&str>) -> Option<u64> {
        let entries = self.lock();
        let served = entries.attempts.iter().filter(|attempt| attempt.start_ns >= from_ns).filter_map(|attempt| {
            let served = attempt.outcome.as_ref().ok()?;
            by.is_none_or(|by| served.by == by).then_some(attempt.end_ns)
        });
        served.min()
    }

    fn ended(&self, number: u32, attempt: Attempt) -> usize {
        let mut entries = self.lock();
        entries.pending.remove(&(attempt.start_ns, number));
        entries.attempts.push(attempt);
        entries.attempts.len() - 1
    }

    fn answered(&self, index: usize, answer: Result<u16, String>) {
        if let Some(Attempt { outcome: Ok(served), .. }) = self.lock().attempts.get_mut(index) {
            served.answer = Some(answer);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Begins a connection every so often, whatever became of those before, until the place is dropped. Every `changes`th request changes
/// the object that the watches see.
pub fn start(place: &Place, access: &Arc<Access>, to: SocketAddrV4, every: Duration, changes: Option<u32>) -> Arc<Log> {
    let is_change = move |number: u32| changes.is_some_and(|every| number.is_multiple_of(every));
    begin(place, access, every, move |access, log, number, late_ms| {
        tokio::spawn(one(access, log, to, Begin { number, late_ms, change: is_change(number) }));
    })
}

/// The same without requests: each connection ends with its handshake.
pub fn start_handshakes(place: &Place, access: &Arc<Access>, to: SocketAddrV4, every: Duration) -> Arc<Log> {
    begin(place, access, every, move |access, log, number, late_ms| {
        tokio::spawn(async move {
            let start_ns = now_ns();
            log.lock().pending.insert((start_ns, number));
            let outcome = access.reach(to).await.map(|by| Served { by, answer: Some(Ok(200)) });
            log.ended(number, Attempt { start_ns, late_ms, end_ns: now_ns(), outcome });
        });
    })
}

fn begin(
    place: &Place,
    access: &Arc<Access>,
    every: Duration,
    one: impl Fn(Arc<Access>, Arc<Log>, u32, f64) + Send + 'static,
) -> Arc<Log> {
    let (log, access) = (Arc::new(Log::default()), access.clone());
    let kept = log.clone();
    place.spawn(async move {
        let mut ticks = interval(every);
        // None is left out: the rate is what it is.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut number = 0_u32;
        loop {
            let due = ticks.tick().await;
            one(access.clone(), log.clone(), number, due.elapsed().as_secs_f64() * 1e3);
            number = number.wrapping_add(1);
        }
    });
    kept
}

struct Begin {
    number: u32,
    late_ms: f64,
    change: bool,
}

async fn one(access: Arc<Access>, log: Arc<Log>, to: SocketAddrV4, begin: Begin) {
    let Begin { number, late_ms, change } = begin;
    let start_ns = now_ns();
    log.lock().pending.insert((start_ns, number));
    let opened = access.open(to).await;
    let attempt = |outcome| Attempt { start_ns, late_ms, end_ns: now_ns(), outcome };
    match opened {
        Ok(mut session) => {
            let by = session.server.clone();
            let index = log.ended(number, attempt(Ok(Served { by, answer: None })));
            let answer = match timeout(ANSWER_WITHIN, ask(&access, &mut session, change)).await {
                Ok(answer) => answer.map_err(|error| error.to_string()),
                Err(_) => Err(format!("no answer after {} s", ANSWER_WITHIN.as_secs())),
            };
            log.answered(index, answer);
        }
        Err(failure) => drop(log.ended(number, attempt(Err(failure)))),
    }
}

/// The status, after the whole answer.
async fn ask(access: &Access, session: &mut Session, change: bool) -> Result<u16, h2::Error> {
    let (method, path) = if change { (Method::PATCH, CHANGED) } else { (Method::GET, GET) };
    // Each change is one: the time is in it.
    let body = if change { format!(r#"{{"data":{{"at":"{}"}}}}"#, now_ns()) } else { String::new() };
    let answer = session.request(access, method, path, body.into_bytes()).await?;
    let status = answer.status().as_u16();
    read(answer).await?;
    Ok(status)
}

async fn read(answer: Response<RecvStream>) -> Result<(), h2::Error> {
    let mut body = answer.into_body();
    while let Some(piece) = body.data().await {
        let length = piece?.len();
        body.flow_control().release_capacity(length)?;
    }
    Ok(())
}

/// Whether the API server at an address itself says that it is ready.
pub async fn is_ready(access: Arc<Access>, at: SocketAddrV4) -> Result<bool, Failure> {
    let mut session = access.open(at).await?;
    let answer = timeout(PATIENCE, session.request(&access, Method::GET, READY, Vec::new())).await;
    let answer = answer.map_err(|_| Failure::Other("no answer".to_owned()))?;
    answer.map(|answer| answer.status().is_success()).map_err(|error| Failure::Other(error.to_string()))
}

/// Asked of an API server itself.
pub const READY: &str = "/readyz";
/// As `kubectl get service kubernetes`.
const GET: &str = "/api/v1/namespaces/default/services/kubernetes";
/// As a kubectl that was told so: a request that hangs is not what is measured here.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
