//! What clients saw in a time: each connection is counted by its start.

use std::collections::BTreeMap;

use serde::Serialize;

use super::session::Failure;
use crate::traffic::clock::milliseconds;

/// One connection that a client began, and the request on it.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub start_ns: u64,
    /// After its time, because the client did not run.
    pub late_ms: f64,
    /// When the handshake was complete, or the connection had failed.
    pub end_ns: u64,
    pub outcome: Result<Served, Failure>,
}

#[derive(Clone, Debug)]
pub struct Served {
    pub by: String,
    /// The status, or why there is none; `None` while it is awaited.
    pub answer: Option<Result<u16, String>>,
}

/// The connections that began in a time.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Window {
    pub made: usize,
    /// Handshakes, by the API server that made them.
    pub served: BTreeMap<String, usize>,
    pub failed: BTreeMap<String, usize>,
    /// From the beginning of the time to the start of the last that failed.
    pub last_failed_ms: Option<f64>,
    /// The longest way to a handshake.
    pub longest_ms: f64,
    /// The longest that no handshake of any connection was completed.
    pub silence_ms: f64,
    /// Requests on connections with a handshake that got no answer or an error, by status or reason.
    pub unanswered: BTreeMap<String, usize>,
    /// The longest that the client did not run.
    pub late_ms: f64,
}

impl Window {
    pub fn failures(&self) -> usize {
        self.failed.values().sum()
    }
}

/// Of the connections that began from `from_ns` until `until_ns`.
pub fn window(attempts: &[Attempt], from_ns: u64, until_ns: u64) -> Window {
    let mut window = Window::default();
    for attempt in attempts.iter().filter(|attempt| (from_ns..until_ns).contains(&attempt.start_ns)) {
        window.made += 1;
        window.late_ms = window.late_ms.max(attempt.late_ms);
        match &attempt.outcome {
            Ok(served) => {
                *window.served.entry(served.by.clone()).or_default() += 1;
                window.longest_ms = window.longest_ms.max(milliseconds(attempt.start_ns, attempt.end_ns));
                let wrong = match &served.answer {
                    Some(Ok(200..=299)) => continue,
                    Some(Ok(status)) => format!("status {status}"),
                    Some(Err(why)) => why.clone(),
                    None => "no answer yet".to_owned(),
                };
                *window.unanswered.entry(wrong).or_default() += 1;
            }
            Err(failure) => {
                *window.failed.entry(failure.label().to_owned()).or_default() += 1;
                let at = milliseconds(from_ns, attempt.start_ns);
                window.last_failed_ms = Some(window.last_failed_ms.map_or(at, |last| last.max(at)));
            }
        }
    }
    window.silence_ms = silence(attempts, from_ns, until_ns);
    window
}

/// The longest time between two handshakes that reaches into the window.
fn silence(attempts: &[Attempt], from_ns: u64, until_ns: u64) -> f64 {
    let mut ends: Vec<u64> =
        attempts.iter().filter(|attempt| attempt.outcome.is_ok()).map(|attempt| attempt.end_ns).collect();
    ends.sort_unstable();
    let before = ends.iter().rev().find(|end| **end <= from_ns).copied().unwrap_or(from_ns);
    let within = ends.iter().copied().filter(|end| (from_ns + 1..until_ns).contains(end));
    let mut last = before;
    let mut longest = 0.0_f64;
    for end in within.chain([until_ns]) {
        longest = longest.max(milliseconds(last, end));
        last = end;
    }
    longest
}

/// An open watch.
#[derive(Clone, Debug)]
pub struct Watched {
    pub server: String,
    pub events: u64,
    pub last_ns: u64,
    /// When it ended, and how.
    pub ended: Option<(u64, String)>,
}

/// Of the watches that were open when a time began.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Watches {
    /// By API server: how many were open.
    pub open: BTreeMap<String, usize>,
    /// By API server: how many still are.
    pub alive: BTreeMap<String, usize>,
    /// By API server: how many of those have seen an event in the last two seconds.
    pub awake: BTreeMap<String, usize>,
}

impl Watched {
    pub fn is_awake(&self, now_ns: u64) -> bool {
        milliseconds(self.last_ns, now_ns) < AWAKE_MS
    }
}

impl Watches {
    pub fn of(watches: &[Watched], from_ns: u64, now_ns: u64) -> Self {
        let mut report = Self::default();
        for watch in watches {
            if watch.ended.as_ref().is_some_and(|(at, _)| *at < from_ns) {
                continue;
            }
            let count = |map: &mut BTreeMap<String, usize>| *map.entry(watch.server.clone()).or_default() += 1;
            count(&mut report.open);
            if watch.ended.is_none() {
                count(&mut report.alive);
                if watch.is_awake(now_ns) {
                    count(&mut report.awake);
                }
            }
        }
        report
    }

    /// Open, and with new events, of API servers other than these.
    pub fn except(&self, servers: &[&str]) -> (usize, usize) {
        let sum = |map: &BTreeMap<String, usize>| {
            map.iter().filter(|(server, _)| !servers.contains(&server.as_str())).map(|(_, count)| count).sum()
        };
        (sum(&self.open), sum(&self.awake))
    }

    /// Open, and not ended.
    pub fn all(&self) -> (usize, usize) {
        (self.open.values().sum(), self.alive.values().sum())
    }
}

/// The watched object changes twice a second, and etcd elects a leader within two.
const AWAKE_MS: f64 = 3000.0;

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn attempt(start: u64, end: u64, outcome: Result<&str, Failure>) -> Attempt {
        let outcome = outcome.map(|by| Served { by: by.to_owned(), answer: Some(Ok(200)) });
        Attempt { start_ns: start * MS, late_ms: 1.0, end_ns: end * MS, outcome }
    }

    #[test]
    fn a_connection_is_counted_by_its_start() {
        let attempts = [
            attempt(90, 95, Ok("a")),
            // Began before, failed after the fault.
            attempt(99, 4099, Err(Failure::NoHandshake)),
            attempt(100, 101, Err(Failure::Refused)),
            // Its SYN was sent again.
            attempt(150, 1155, Ok("b")),
            attempt(200, 4200, Err(Failure::NoHandshake)),
            attempt(1200, 1210, Ok("b")),
        ];
        let seen = window(&attempts, 100 * MS, 1300 * MS);
        assert_eq!((seen.made, seen.failures()), (4, 2));
        assert_eq!(seen.served, [("b".to_owned(), 2)].into());
        assert_eq!(seen.failed["no TLS handshake after 4 s"], 1);
        assert_eq!(seen.last_failed_ms, Some(100.0), "200 began 100 ms after the fault");
        assert_eq!(seen.longest_ms, 1005.0);
        assert_eq!(seen.silence_ms, 1060.0, "from 95 to 1155");
    }

    #[test]
    fn silence_lasts_until_something_answers() {
        assert_eq!(window(&[], 100 * MS, 700 * MS).silence_ms, 600.0);
        let early = [attempt(0, 10, Ok("a")), attempt(650, 660, Ok("a"))];
        assert_eq!(window(&early, 100 * MS, 700 * MS).silence_ms, 650.0);
    }

    #[test]
    fn a_handshake_without_an_answer_is_named() {
        let served = |answer| Ok(Served { by: "a".to_owned(), answer });
        let one = |answer| Attempt { start_ns: 1, late_ms: 0.0, end_ns: 2, outcome: served(answer) };
        let seen = window(&[one(Some(Ok(500))), one(Some(Err("reset".into()))), one(None), one(Some(Ok(200)))], 0, 10);
        assert_eq!(seen.failures(), 0);
        let names: Vec<_> = seen.unanswered.keys().map(String::as_str).collect();
        assert_eq!(names, ["no answer yet", "reset", "status 500"]);
    }

    #[test]
    fn watches_that_had_ended_before_do_not_count() {
        let watch = |server: &str, last: u64, ended: Option<u64>| Watched {
            server: server.to_owned(),
            events: 1,
            last_ns: last * MS,
            ended: ended.map(|at| (at * MS, "reset".to_owned())),
        };
        let all = [watch("a", 9000, None), watch("a", 10, Some(50)), watch("b", 10, Some(5000)), watch("b", 10, None)];
        let seen = Watches::of(&all, 100 * MS, 10_000 * MS);
        assert_eq!(seen.all(), (3, 2));
        assert_eq!(seen.except(&[]), (3, 1));
        assert_eq!(seen.except(&["b"]), (1, 1));
        assert_eq!(seen.awake, [("a".to_owned(), 1)].into());
    }
}
