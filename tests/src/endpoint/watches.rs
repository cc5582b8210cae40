//! Open watches, each by HTTP/2 on a connection of its own: what becomes of them.

use std::net::SocketAddrV4;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use http::Method;
use tokio::time::timeout;

use super::WATCH;
use super::place::Place;
use super::report::{Watched, Watches};
use super::session::{Access, Failure};
use crate::lab::wait_for;
use crate::traffic::clock::now_ns;

/// Those that were opened; they stay as they are.
#[derive(Clone, Debug, Default)]
pub struct Opened(Arc<Mutex<Vec<Watched>>>);

impl Opened {
    /// Until so many are open.
    pub fn fill(&self, place: &Place, access: &Arc<Access>, to: SocketAddrV4, count: usize) -> Result<()> {
        self.give_up();
        wait_for(&format!("{count} open watches"), OPEN_WITHIN, || {
            let missing = count.saturating_sub(self.alive());
            for _ in 0..missing {
                let (access, opened) = (access.clone(), self.clone());
                // One after the other: a hundred handshakes at once are no user's.
                let begun = place.run(async move { timeout(EACH_WITHIN, opened.open(access, to)).await })?;
                if !matches!(begun, Ok(Ok(()))) {
                    return Ok(None);
                }
            }
            Ok((missing == 0).then_some(()))
        })
        .context("an API server that is whole serves watches")
    }

    /// Of those that were open at that time.
    pub fn seen(&self, from_ns: u64) -> Watches {
        Watches::of(&self.lock(), from_ns, now_ns())
    }

    /// How those that ended since ended.
    pub fn ends(&self, from_ns: u64) -> Vec<String> {
        let ended = |watch: &Watched| {
            let (at, why) = watch.ended.as_ref()?;
            (*at >= from_ns).then(|| format!("{}: {why}", watch.server))
        };
        self.lock().iter().filter_map(ended).collect()
    }

    /// Those whose API server was lost in silence: a client that never sends does not notice, before its own pings do.
    fn give_up(&self) {
        let now = now_ns();
        let silent = |watch: &&mut Watched| watch.ended.is_none() && !watch.is_awake(now);
        self.lock().iter_mut().filter(silent).for_each(|watch| watch.ended = Some((now, "silent".to_owned())));
    }

    fn alive(&self) -> usize {
        self.lock().iter().filter(|watch| watch.ended.is_none()).count()
    }

    /// Returns when the first event came; the others are read from then on.
    async fn open(self, access: Arc<Access>, to: SocketAddrV4) -> Result<(), Failure> {
        let mut session = access.open(to).await?;
        let failed = |error: h2::Error| Failure::Other(error.to_string());
        let answer = session.request(&access, Method::GET, WATCH, Vec::new()).await.map_err(failed)?;
        if !answer.status().is_success() {
            return Err(Failure::Other(answer.status().to_string()));
        }
        let mut body = answer.into_body();
        let first = body.data().await.transpose().map_err(failed)?;
        let length = first.ok_or(Failure::Reset)?.len();
        body.flow_control().release_capacity(length).map_err(failed)?;
        let index = self.add(session.server.clone());
        tokio::spawn(async move {
            // The connection lives as long as the session.
            let _session = session;
            let why = loop {
                match body.data().await {
                    Some(Ok(piece)) => {
                        self.event(index, piece.iter().filter(|byte| **byte == b'\n').count() as u64);
                        // An error shows at the next piece.
                        body.flow_control().release_capacity(piece.len()).ok();
                    }
                    Some(Err(error)) => break error.to_string(),
                    None => break "closed".to_owned(),
                }
            };
            if let Some(watch) = self.lock().get_mut(index) {
                watch.ended.get_or_insert((now_ns(), why));
            }
        });
        Ok(())
    }

    fn add(&self, server: String) -> usize {
        let mut watches = self.lock();
        watches.push(Watched { server, events: 1, last_ns: now_ns(), ended: None });
        watches.len() - 1
    }

    fn event(&self, index: usize, count: u64) {
        if let Some(watch) = self.lock().get_mut(index) {
            watch.events += count;
            watch.last_ns = now_ns();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Watched>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Three API servers on two processors, with other programs beside them, take seconds for each.
const OPEN_WITHIN: Duration = Duration::from_secs(600);
const EACH_WITHIN: Duration = Duration::from_secs(10);
