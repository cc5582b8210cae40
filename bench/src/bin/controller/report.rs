//! The table: each figure of both, their ratio, and whether what is promised is kept.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;
use sheave_bench::commit;

use super::measure::{Measured, Rates};
use super::subject::Subject;

pub struct Report {
    count: usize,
    columns: Vec<(Subject, Rates, Measured)>,
}

/// A line: a figure of each, and the most that is promised.
struct Row {
    what: &'static str,
    unit: &'static str,
    goal: Option<f64>,
    /// Whether the goal is reached in another way.
    excused: Option<String>,
    figures: Vec<f64>,
}

impl Report {
    pub fn new(count: usize, columns: Vec<(Subject, Rates, Measured)>) -> Self {
        Self { count, columns }
    }

    /// Whether every promise is kept; there is none about MetalLB.
    pub fn as_promised(&self) -> bool {
        let sheave = self.columns.iter().position(|(subject, ..)| *subject == Subject::Sheave);
        sheave.is_none_or(|column| self.rows().iter().all(|row| row.kept(column) || row.excused.is_some()))
    }

    pub fn write(&self, file: &Path) -> Result<()> {
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let columns = self.columns.iter().map(|(subject, rates, measured)| {
            json!({ "subject": format!("{subject:?}"), "api_server_alone": rates, "measured": measured })
        });
        let (commit, clean) = commit::here()?;
        let all =
            json!({ "services": self.count, "commit": commit, "clean": clean, "columns": columns.collect::<Vec<_>>() });
        std::fs::write(file, serde_json::to_string_pretty(&all)? + "\n").with_context(|| file.display().to_string())
    }

    fn rows(&self) -> Vec<Row> {
        let row = |what, unit, goal, figure: fn(&Measured) -> f64| Row {
            what,
            unit,
            goal,
            excused: None,
            figures: self.columns.iter().map(|(.., measured)| figure(measured)).collect(),
        };
        let mut rows = vec![
            row("Services created meanwhile", "1/s", None, |m| m.created_per_second),
            row("all have addresses, after the creation ended", "s", Some(10.0), |m| m.all_after_s),
            row("one more Service: created until its address, median of 20", "ms", Some(50.0), |m| {
                m.one_more_ms.median
            }),
            row("the slowest of them", "ms", None, |m| m.one_more_ms.max),
            row("deleted until withdrawn, median of 20", "ms", Some(300.0), |m| m.withdrawn_ms.median),
            row("the slowest of them", "ms", Some(300.0), |m| m.withdrawn_ms.max),
            row("restart until it serves", "s", Some(3.0), |m| m.restart_s),
            row("addresses that the restart moved", "", Some(0.0), |m| m.moved as f64),
            row("Services and ledger entries that it wrote", "", Some(0.0), |m| m.written as f64),
            row("memory with all of them", "MB", Some(120.0), |m| m.resident_mb),
            row("the most that it was", "MB", Some(120.0), |m| m.peak_mb),
            row("requests per Service", "", Some(4.0), |m| m.requests_per_service),
            row("of them Events", "", None, |m| m.events_per_service),
            row("other requests", "", None, |m| m.other_requests as f64),
            row("times that it had not come to rest after two minutes", "", Some(0.0), |m| m.restless as f64),
            row("processor at rest", "%", Some(1.0), |m| m.rest_percent),
            row("all deleted until nothing is left", "s", None, |m| m.all_deleted_s),
        ];
        rows[1].excused = self.bound();
        rows
    }

    /// Sheave was as fast as the API server is.
    fn bound(&self) -> Option<String> {
        let (_, rates, m) = self.columns.iter().find(|(subject, ..)| *subject == Subject::Sheave)?;
        let (share, possible) = share(rates, m);
        (share >= OF_ITS_RATE).then(|| format!("{:.0} % of the API server's own rate: {possible:.0} s", share * 100.0))
    }
}

/// Of the API server's own rate, and how long the same creations and writes take at that, one kind after the other.
fn share(rates: &Rates, m: &Measured) -> (f64, f64) {
    let possible = m.created_per_second * m.creation_s / rates.created + m.writes as f64 / rates.patched;
    (possible / (m.creation_s + m.all_after_s), possible)
}

impl Row {
    fn kept(&self, column: usize) -> bool {
        self.goal.is_none_or(|goal| self.figures[column] <= goal)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let titles =
            self.columns.iter().map(|(subject, ..)| subject.title().unwrap_or_else(|error| format!("{error:#}")));
        let titles: Vec<String> = titles.collect();
        let ratio = self.columns.len() == 2;
        writeln!(
            f,
            "\n| {} Services | goal | {} |{}",
            self.count,
            titles.join(" | "),
            if ratio { " ratio |" } else { "" }
        )?;
        writeln!(f, "|---|---|{}{}", "---|".repeat(titles.len()), if ratio { "---|" } else { "" })?;
        let sheave = self.columns.iter().position(|(subject, ..)| *subject == Subject::Sheave);
        for row in self.rows() {
            let goal = row.goal.map_or(String::new(), |goal| format!("{} {}", number(goal), row.unit));
            let cell = |(column, figure): (usize, &f64)| {
                let mark = match (row.goal, sheave == Some(column), row.kept(column), &row.excused) {
                    (Some(_), true, true, _) => " ✓".to_owned(),
                    (Some(_), true, false, Some(excuse)) => format!(" ({excuse})"),
                    (Some(_), true, false, None) => " ✗".to_owned(),
                    _ => String::new(),
                };
                format!("{} {}{mark}", number(*figure), row.unit)
            };
            let cells: Vec<String> = row.figures.iter().enumerate().map(cell).collect();
            write!(f, "| {} | {goal} | {} |", row.what, cells.join(" | "))?;
            match row.figures[..] {
                [ours, theirs] if theirs > 0.0 => writeln!(f, " {} |", number(ours / theirs))?,
                [_, _] => writeln!(f, " |")?,
                _ => writeln!(f)?,
            }
        }
        writeln!(f)?;
        for ((_, rates, m), title) in self.columns.iter().zip(&titles) {
            let (share, possible) = share(rates, m);
            writeln!(
                f,
                "{title}: the API server alone: {:.0} Services created per second, {:.0} statuses patched; all of them \
                 created and given addresses by {} writes in {:.1} s, {:.0} % of these rates ({possible:.1} s)",
                rates.created,
                rates.patched,
                m.writes,
                m.creation_s + m.all_after_s,
                share * 100.0,
            )?;
            let list = |entries: Vec<String>| entries.join(", ");
            let times = m.processor_s.iter().map(|(name, seconds)| format!("{name} {seconds:.1}")).collect();
            writeln!(f, "  processor seconds meanwhile: {}", list(times))?;
            let requests = m.requests.iter().map(|(name, count)| format!("{name} {count}")).collect();
            writeln!(f, "  requests: {}", list(requests))?;
        }
        Ok(())
    }
}

fn number(figure: f64) -> String {
    match figure {
        whole if whole.fract() == 0.0 => format!("{whole:.0}"),
        large if large >= 100.0 => format!("{large:.0}"),
        middle if middle >= 10.0 => format!("{middle:.1}"),
        small => format!("{small:.2}"),
    }
}

/// The controller shares two cores with the API server, its store, and the writers.
const OF_ITS_RATE: f64 = 0.75;
