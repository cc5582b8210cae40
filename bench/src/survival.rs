//! Survival in figures: what was measured, kept in a file that grows, and a table of two paths side by side.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sheave_tests::lab::ProxyMode;
use sheave_tests::scenario::Figures;
use sheave_tests::scenario::survive::{SCENARIOS, Side, Survival};

/// One repetition of one scenario.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    pub scenario: String,
    pub proxy_mode: ProxyMode,
    pub repetition: usize,
    /// `None`: it could not be measured, and why.
    pub survival: Option<Survival>,
    pub error: Option<String>,
}

/// Everything that was measured, perhaps by several calls.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Runs {
    pub runs: Vec<Run>,
}

impl Run {
    /// See [`Runs::whole`].
    pub fn is_whole(&self) -> bool {
        let may_fail = SCENARIOS.iter().any(|scenario| scenario.name == self.scenario && !scenario.repeated);
        let survival = self.survival.as_ref().filter(|survival| survival.trouble.is_none());
        survival.is_some_and(|survival| {
            let side = &survival.sheave;
            side.whole() && if may_fail { few_outside(side) } else { side.new_failed_later == 0 }
        })
    }

    /// Progress for the operator: what happened, and what is not as it should be.
    pub fn summary(&self) -> String {
        let Some(survival) = &self.survival else { return format!("  {}", self.error.as_deref().unwrap_or_default()) };
        let mut lines: Vec<_> = survival.story.iter().map(|line| format!("  {line}")).collect();
        for (name, side) in [("Sheave", Some(&survival.sheave)), ("today ", survival.today.as_ref())] {
            let Some(side) = side else { continue };
            lines.push(format!(
                "  {name}: {} of {} alive (lost: {:?}), gone {} ({:?}, last after {:.0} ms), pause {:.0} ms \
                 (unacknowledged {:.0}, client late {:.0}), new {} failed of {}, later {}",
                side.alive,
                side.eligible,
                side.lost,
                side.gone,
                side.ended,
                side.longest_wait_ms,
                side.longest_pause_ms,
                side.longest_unacknowledged_ms,
                side.client_late_ms,
                side.new_failed,
                side.new,
                side.new_failed_later
            ));
            let udp = &side.udp;
            lines.push(format!(
                "  {name}: UDP {} of {} stayed, {} silent, longest gap {:.0} ms, to the next pod {:.0} ms",
                udp.stayed, udp.eligible, udp.silent, udp.longest_gap_ms, udp.longest_gap_to_next_ms
            ));
        }
        lines.extend(survival.sheave.udp.examples.iter().map(|line| format!("    {line}")));
        lines.extend(survival.sheave.examples.iter().map(|line| format!("    {line}")));
        let by_second = [
            ("lost", &survival.sheave.lost_at),
            ("new ones failed, other than by a late program", &survival.sheave.new_failed_at),
        ];
        if !survival.sheave.lost_by.is_empty() {
            lines.push(format!("  Sheave: reset: {:?}", survival.sheave.lost_by));
        }
        for (what, counts) in by_second.into_iter().filter(|(_, counts)| !counts.is_empty()) {
            lines.push(format!("  Sheave: {what}, by second: {counts:?}"));
        }
        if let Some(causes) = &survival.sheave.new_failed_causes {
            lines.push(format!(
                "  Sheave: of these {} while the speaker of their pod's node ran; by cause: {:?}",
                causes.outside, causes.by
            ));
            lines.extend(causes.examples.iter().take(EXAMPLES).map(|line| format!("    {line}")));
        }
        lines.extend(survival.figures.iter().map(|(name, value)| format!("  {name}: {value:.1}")));
        lines.extend(survival.trouble.iter().map(|trouble| format!("  TROUBLE: {trouble}")));
        lines.join("\n")
    }
}

impl Runs {
    /// Nothing, if there is no such file.
    pub fn read(file: &Path) -> Result<Self> {
        if !file.exists() {
            return Ok(Self::default());
        }
        let text = fs::read(file).with_context(|| file.display().to_string())?;
        serde_json::from_slice(&text).with_context(|| format!("malformed {}", file.display()))
    }

    /// Adds a run to what the file holds by now.
    pub fn append(file: &Path, run: &Run) -> Result<()> {
        let mut all = Self::read(file)?;
        all.runs.push(run.clone());
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder)?;
        }
        let new = file.with_extension("new");
        fs::write(&new, serde_json::to_string_pretty(&all)? + "\n").with_context(|| new.display().to_string())?;
        fs::rename(&new, file).with_context(|| file.display().to_string())
    }

    /// How often a scenario was measured in a mode.
    pub fn count(&self, scenario: &str, proxy_mode: ProxyMode) -> usize {
        self.of(scenario, proxy_mode).count()
    }

    /// Whether every eligible connection of Sheave's lived, no other was left in silence, UDP stayed with its pods, no new
    /// connection failed (in random changes: few while the speaker of their pod's node ran), and nothing else went wrong.
    pub fn whole(&self) -> bool {
        self.runs.iter().all(Run::is_whole)
    }

    /// Names, in the order of the list; then those of other commands.
    fn scenarios(&self) -> Vec<&str> {
        let mut names: Vec<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        for run in &self.runs {
            if !names.contains(&run.scenario.as_str()) {
                names.push(&run.scenario);
            }
        }
        names
    }

    fn of(&self, scenario: &str, proxy_mode: ProxyMode) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(move |run| run.scenario == scenario && run.proxy_mode == proxy_mode)
    }
}

impl fmt::Display for Runs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for proxy_mode in [ProxyMode::Nftables, ProxyMode::Iptables] {
            if !self.runs.iter().any(|run| run.proxy_mode == proxy_mode) {
                continue;
            }
            let head = format!("kube-proxy {proxy_mode}");
            writeln!(f, "\n{head:<43} {:>2}  {:^36}  {:^36}", "n", "Sheave", "today's path")?;
            let columns = format!("{:>11} {:>11} {:>12}", "min", "median", "max");
            writeln!(f, "{:<43} {:>2}  {columns}  {columns}", "", "")?;
            for scenario in self.scenarios() {
                let measured: Vec<_> = self.of(scenario, proxy_mode).filter_map(|run| run.survival.as_ref()).collect();
                if !measured.is_empty() {
                    write_scenario(f, scenario, &measured)?;
                }
                for run in self.of(scenario, proxy_mode) {
                    write_trouble(f, run)?;
                }
            }
        }
        Ok(())
    }
}

fn write_scenario(f: &mut fmt::Formatter<'_>, name: &str, measured: &[&Survival]) -> fmt::Result {
    writeln!(f, "{name}")?;
    let sheave: Vec<_> = measured.iter().map(|survival| &survival.sheave).collect();
    let today: Vec<_> = measured.iter().filter_map(|survival| survival.today.as_ref()).collect();
    for (quantity, count) in COUNTS {
        let counted = [&sheave, &today].map(|sides| count_text(sides, *count));
        if counted.iter().any(Option::is_some) {
            let [sheave, today] = counted.map(Option::unwrap_or_default);
            writeln!(f, "  {quantity:<41} {:>2}  {sheave:>36}  {today:>36}", measured.len())?;
        }
    }
    for (quantity, value, always) in VALUES {
        let spread = |sides: &[&Side]| Figures::of(sides.iter().map(|side| value(side)));
        let spreads = [spread(&sheave), spread(&today)];
        if *always || spreads.iter().flatten().any(|figures| figures.max > 0.0) {
            let [sheave, today] = spreads.map(|figures| figures.map(|figures| columns(&figures)).unwrap_or_default());
            writeln!(f, "  {quantity:<41} {:>2}  {sheave:>36}  {today:>36}", measured.len())?;
        }
    }
    let mut others: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (figure, value) in measured.iter().flat_map(|survival| &survival.figures) {
        others.entry(figure).or_default().push(*value);
    }
    for (figure, values) in others {
        let figures = Figures::of(values).expect("at least one");
        writeln!(f, "  {figure:<41} {:>2}  {}", figures.n, columns(&figures))?;
    }
    Ok(())
}

fn write_trouble(f: &mut fmt::Formatter<'_>, run: &Run) -> fmt::Result {
    let number = run.repetition + 1;
    if let Some(error) = &run.error {
        writeln!(f, "  {} {number} NOT MEASURED: {error}", run.scenario)?;
    }
    if let Some(trouble) = run.survival.as_ref().and_then(|survival| survival.trouble.as_ref()) {
        writeln!(f, "  {} {number} TROUBLE: {trouble}", run.scenario)?;
    }
    Ok(())
}

/// The sum over all repetitions; `None` if there was nothing to count.
fn count_text(sides: &[&Side], count: Count) -> Option<String> {
    let (counts, of): (Vec<_>, Vec<_>) = sides.iter().map(|side| count(side)).unzip();
    let (sum, of) = (counts.iter().sum::<usize>(), of.iter().sum::<usize>());
    let percent = if of == 0 { 100.0 } else { sum as f64 / of as f64 * 100.0 };
    (of > 0).then(|| format!("{sum} of {of} ({percent:.1} %)"))
}

fn columns(figures: &Figures) -> String {
    let Figures { min, median, max, .. } = figures;
    format!("{min:>11.1} {median:>11.1} {max:>12.1}")
}

/// New connections that failed while the speaker of their pod's node ran.
fn outside(side: &Side) -> Option<usize> {
    side.new_failed_causes.as_ref().map(|causes| causes.outside)
}

fn few_outside(side: &Side) -> bool {
    outside(side).is_none_or(|outside| outside as u64 * OUTSIDE_OF <= OUTSIDE_AT_MOST * side.new)
}

/// At most ten of thirty thousand attempts.
/// Printed; the JSON has all.
const EXAMPLES: usize = 20;
const OUTSIDE_AT_MOST: u64 = 10;
const OUTSIDE_OF: u64 = 30_000;

type Count = fn(&Side) -> (usize, usize);
type Value = fn(&Side) -> f64;

/// Counts of how many.
const COUNTS: &[(&str, Count)] = &[
    ("alive of those whose pod lives", |side| (side.alive, side.eligible)),
    ("pod gone: ended by FIN", |side| (side.ended.closed, side.gone)),
    ("pod gone: ended by a reset", |side| (side.ended.reset, side.gone)),
    ("UDP: stayed with a pod that lives", |side| (side.udp.stayed, side.udp.eligible)),
];

/// Quantities of one repetition; those that are 0 everywhere are left out unless they are to be shown always.
const VALUES: &[(&str, Value, bool)] = &[
    (
        "alive, %",
        |side| if side.eligible == 0 { 100.0 } else { side.alive as f64 / side.eligible as f64 * 100.0 },
        false,
    ),
    ("pod lives: reset", |side| side.lost.reset as f64, false),
    ("pod lives: closed", |side| side.lost.closed as f64, false),
    ("pod lives: silent", |side| side.lost.silent as f64, false),
    ("pod lives: lost, kube-proxy's", |side| side.lost_by_kube_proxy as f64, false),
    ("pod gone: silent", |side| side.ended.silent as f64, false),
    ("pod gone: longest wait for the end, ms", |side| side.longest_wait_ms, false),
    ("never opened", |side| side.failed as f64, false),
    ("longest pause, ms", |side| side.longest_pause_ms, true),
    ("longest without acknowledgement, ms", |side| side.longest_unacknowledged_ms, true),
    ("longest the client itself did not run, ms", |side| side.client_late_ms, false),
    ("new ones failed later than 300 ms", |side| side.new_failed_later as f64, true),
    ("… as their pod's program was late", |side| side.new_server_late as f64, false),
    ("… while their pod's node had a speaker", |side| outside(side).unwrap_or_default() as f64, false),
    ("UDP: silent at the end", |side| side.udp.silent as f64, false),
    ("UDP: longest gap, same pod, ms", |side| side.udp.longest_gap_ms, false),
    ("UDP: longest gap, to the next pod, ms", |side| side.udp.longest_gap_to_next_ms, false),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_added_to_a_file_and_both_paths_stand_side_by_side() {
        let file = std::env::temp_dir().join(format!("sheave-survival-{}.json", std::process::id()));
        let side = |alive| Side { opened: 200, eligible: 130, alive, gone: 70, ..Side::default() };
        for (repetition, alive) in [(0, 130), (1, 129)] {
            let survival = Survival {
                sheave: side(alive),
                today: Some(side(60)),
                figures: BTreeMap::from([("XDP link back after, ms".to_owned(), 40.0)]),
                story: Vec::new(),
                trouble: None,
            };
            let (scenario, survival) = ("node back after 5 s".to_owned(), Some(survival));
            let run = Run { scenario, proxy_mode: ProxyMode::Nftables, repetition, survival, error: None };
            Runs::append(&file, &run).unwrap();
            let runs = Runs::read(&file).unwrap();
            assert_eq!(runs.whole(), repetition == 0, "a connection is missing in the second repetition");
        }
        let text = Runs::read(&file).unwrap().to_string();
        fs::remove_file(&file).unwrap();
        assert!(text.contains("259 of 260 (99.6 %)") && text.contains("120 of 260 (46.2 %)"), "{text}");
        assert!(text.contains("XDP link back after") && !text.contains("iptables"), "{text}");
        let error = Some("no cluster".to_owned());
        let (scenario, proxy_mode) = ("of another command".to_owned(), ProxyMode::Iptables);
        let runs = Runs { runs: vec![Run { scenario, proxy_mode, repetition: 0, survival: None, error }] };
        assert!(!runs.whole() && runs.to_string().contains("of another command 1 NOT MEASURED: no cluster"), "{runs}");
    }
}
