//! How long programs waited for a processor after a fault: a late figure is judged by it.
//!
//! Everything of a lab shares this machine. What is promised holds for nodes that run; a speaker that waits for a processor because
//! compilers run beside it is late through no fault of its own. Two things are measured: how long the client itself did not run
//! ([`super::measure`] takes it from its report), and how long the threads of each speaker were ready to run and did not: the second
//! number of /proc/PID/task/TID/schedstat, read every `EVERY` by a thread of this program.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;
use std::{fmt, fs};

use anyhow::{Result, anyhow};
use serde::{Deserialize, Serialize};

use super::deploy::Scene;
use crate::traffic::clock::{milliseconds, now_ns};

/// How a figure judges a promise about time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InTime {
    Kept,
    Broken,
    /// Late, and the programs that make the figure waited for a processor for so long that it does not judge them.
    TooBusy,
}

/// Judges a figure by its limit. `waited_ms`: by [`Waits::until`]. A fault is answered by several programs, one after the other,
/// and `waited_ms` is the wait of one of them: half of the excess is enough to judge no more than that the machine was busy.
pub fn judge(figure_ms: f64, limit_ms: f64, waited_ms: f64) -> InTime {
    if figure_ms <= limit_ms {
        InTime::Kept
    } else if waited_ms * 2.0 >= figure_ms - limit_ms {
        InTime::TooBusy
    } else {
        InTime::Broken
    }
}

/// How long the calling thread has been ready to run, and did not. 0 where the kernel does not say.
pub fn own_wait_ms() -> f64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let waited_ns = text.split_whitespace().nth(1).and_then(|number| number.parse().ok());
    milliseconds(0, waited_ns.unwrap_or_default())
}

/// Which programs waited for a processor after the fault.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Waits {
    /// The longest that the client itself did not run.
    pub client_ms: f64,
    /// By node: from the fault to a moment, and what its speaker's threads had waited until then.
    pub speakers: BTreeMap<String, Vec<(f64, f64)>>,
}

impl Waits {
    /// The longest wait of one of them in the time from the fault to `ms` after it.
    pub fn until(&self, ms: f64) -> f64 {
        // The sample after that moment counts: it was under way then.
        let of = |samples: &Vec<(f64, f64)>| {
            samples.iter().find(|(at, _)| *at >= ms).or(samples.last()).map_or(0.0, |(_, waited)| *waited)
        };
        self.speakers.values().map(of).fold(self.client_ms, f64::max)
    }
}

/// Without the samples, which are hundreds.
impl fmt::Debug for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Waits {{ client {:.0} ms", self.client_ms)?;
        for (node, samples) in &self.speakers {
            let (at, waited) = samples.last().copied().unwrap_or_default();
            write!(f, ", speaker of {node} {waited:.0} of {at:.0} ms")?;
        }
        f.write_str(" }")
    }
}

/// Reads how long the speakers wait, until the result is taken.
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Sample>>,
}

/// By node.
struct Sample {
    at_ns: u64,
    waited_ns: BTreeMap<String, u64>,
}

impl Watch {
    /// Of the speakers that run now: one that starts later has no part in detecting the fault.
    pub fn start(scene: &Scene) -> Result<Self> {
        let running = scene.lab.state()?.nodes;
        let mut speakers = BTreeMap::new();
        for node in scene.nodes.iter().filter(|node| running.contains_key(*node)) {
            if let Some(speaker) = scene.lab.speaker(node)? {
                speakers.insert(node.clone(), Threads { pid: speaker.pid, waited: BTreeMap::new() });
            }
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = spawn(move || {
            let mut samples = Vec::new();
            while !stopped.load(Ordering::Acquire) && samples.len() < SAMPLES {
                let waited_ns = speakers.iter_mut().map(|(node, threads)| (node.clone(), threads.waited_ns()));
                samples.push(Sample { waited_ns: waited_ns.collect(), at_ns: now_ns() });
                // A measurement at a fixed rate.
                sleep(EVERY);
            }
            samples
        });
        Ok(Self { stop, thread })
    }

    pub fn finish(self, mark_ns: u64, client_ms: f64) -> Result<Waits> {
        self.stop.store(true, Ordering::Release);
        let samples = self.thread.join().map_err(|_| anyhow!("the watch of the speakers panicked"))?;
        Ok(since(mark_ns, &samples, client_ms))
    }
}

fn since(mark_ns: u64, samples: &[Sample], client_ms: f64) -> Waits {
    let mut waits = Waits { client_ms, ..Waits::default() };
    let before = samples.iter().rfind(|sample| sample.at_ns <= mark_ns);
    for sample in samples.iter().filter(|sample| sample.at_ns > mark_ns) {
        for (node, waited) in &sample.waited_ns {
            let start = before.and_then(|before| before.waited_ns.get(node)).copied().unwrap_or_default();
            let all = waits.speakers.entry(node.clone()).or_default();
            all.push((milliseconds(mark_ns, sample.at_ns), milliseconds(start, *waited)));
        }
    }
    waits
}

/// How long the threads of this program have waited for a processor so far.
pub fn own_waited_ms() -> f64 {
    Threads { pid: std::process::id() as i32, waited: BTreeMap::new() }.waited_ns() as f64 / 1e6
}

/// Of one process. A thread that has ended keeps what it waited.
struct Threads {
    pid: i32,
    waited: BTreeMap<String, u64>,
}

impl Threads {
    fn waited_ns(&mut self) -> u64 {
        // A process or a thread that has ended meanwhile has nothing to read.
        for thread in fs::read_dir(format!("/proc/{}/task", self.pid)).into_iter().flatten().flatten() {
            let Ok(text) = fs::read_to_string(thread.path().join("schedstat")) else { continue };
            if let Some(waited) = text.split_whitespace().nth(1).and_then(|number| number.parse().ok()) {
                self.waited.insert(thread.file_name().to_string_lossy().into_owned(), waited);
            }
        }
        self.waited.values().sum()
    }
}

const EVERY: Duration = Duration::from_millis(20);
/// Two minutes and more: no figure is about what happens later.
const SAMPLES: usize = 6000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_is_broken_if_everything_ran_all_the_time() {
        assert_eq!(judge(300.0, 300.0, 0.0), InTime::Kept);
        assert_eq!(judge(619.0, 300.0, 0.0), InTime::Broken);
        assert_eq!(
            judge(619.0, 300.0, 12.0),
            InTime::Broken,
            "a client that measures every 10 ms is never less than that late"
        );
        assert_eq!(judge(619.0, 300.0, 159.0), InTime::Broken);
        assert_eq!(judge(619.0, 300.0, 160.0), InTime::TooBusy);
        assert_eq!(judge(9000.0, 300.0, 500.0), InTime::Broken, "a wait does not excuse what is far longer");
    }

    #[test]
    fn only_waits_between_the_fault_and_the_figure_count() {
        const MS: u64 = 1_000_000;
        let sample = |at: u64, waited: [u64; 2]| Sample {
            at_ns: at * MS,
            waited_ns: ["node1", "node2"].map(str::to_owned).into_iter().zip(waited.map(|ms| ms * MS)).collect(),
        };
        let samples = [sample(80, [700, 0]), sample(100, [900, 5]), sample(120, [910, 5]), sample(400, [910, 205])];
        let waits = since(105 * MS, &samples, 11.0);
        assert_eq!(waits.until(10.0), 11.0, "the client's is the longest");
        assert_eq!(waits.until(200.0), 200.0, "under way at that moment");
        assert_eq!(waits.until(5000.0), 200.0);
        assert_eq!(Waits::default().until(100.0), 0.0);
    }

    #[test]
    fn a_thread_that_waits_for_a_processor_is_seen() {
        let mut own = Threads { pid: std::process::id() as i32, waited: BTreeMap::new() };
        let before = own.waited_ns();
        // More threads than processors: some of them wait.
        let until = now_ns() + 100_000_000;
        let threads = 4 * std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            (0..threads).for_each(|_| drop(scope.spawn(move || while now_ns() < until {})));
            // While they run: what has ended cannot be read.
            while now_ns() + 10_000_000 < until {
                sleep(Duration::from_millis(5));
                own.waited_ns();
            }
        });
        assert!(own.waited_ns() > before + 50_000_000, "{before} {:?}", own.waited);
    }

    #[test]
    fn a_thread_sees_its_own_wait() {
        let until = now_ns() + 100_000_000;
        let threads = 4 * std::thread::available_parallelism().map_or(1, usize::from);
        let waited = move || {
            while now_ns() < until {}
            own_wait_ms()
        };
        let waited: f64 = std::thread::scope(|scope| {
            let all: Vec<_> = (0..threads).map(|_| scope.spawn(waited)).collect();
            all.into_iter().map(|one| one.join().unwrap()).sum()
        });
        assert!(waited > 50.0, "{waited}");
    }
}
