//! The table of a mode: every spec with its state, and whether that is good.

use std::fmt;

use anyhow::Result;
use sheave_tests::lab::ProxyMode;

use crate::Side;
use crate::junit::State;
use crate::results::Results;
use crate::suite::{Group, Suite};

pub struct Report {
    heading: String,
    /// All of them, selected or not.
    load_balancers: Vec<Row>,
    /// The selected ones.
    services: Vec<Row>,
}

struct Row {
    spec: String,
    selected: bool,
    with: State,
    without: Option<State>,
}

impl Report {
    pub fn new(suite: &Suite, results: &Results, mode: ProxyMode, selected: &dyn Fn(&&String) -> bool) -> Result<Self> {
        let row = |spec: &String, compare: bool| -> Result<Row> {
            Ok(Row {
                spec: spec.clone(),
                selected: selected(&spec),
                with: results.state(Side::With, spec)?,
                without: compare.then(|| results.state(Side::Without, spec)).transpose()?,
            })
        };
        let load_balancers = suite.specs(Group::LoadBalancers).iter().map(|spec| row(spec, false));
        let services = suite.specs(Group::Services).iter().filter(selected).map(|spec| row(spec, true));
        Ok(Self {
            heading: format!("commit {}, kube-proxy {mode}", results.commit),
            load_balancers: load_balancers.collect::<Result<_>>()?,
            services: services.collect::<Result<_>>()?,
        })
    }

    /// Every LoadBalancers spec has passed (or every selected one), and Sheave breaks no Services spec.
    pub fn is_good(&self, only_selected: bool) -> bool {
        let judged = |row: &&Row| row.selected || !only_selected;
        self.load_balancers.iter().filter(judged).all(|row| passed(&row.with))
            && !self.services.iter().any(Row::is_broken)
    }
}

impl Row {
    /// Passes without Sheave and not with it.
    fn is_broken(&self) -> bool {
        self.without.as_ref().is_some_and(passed) && !passed(&self.with)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width =
            self.load_balancers.iter().chain(&self.services).map(|row| row.spec.len()).max().unwrap_or_default();
        writeln!(f, "\n{}", self.heading)?;
        writeln!(f, "{:<width$}  {:<14} without", "", "with Sheave")?;
        for row in self.load_balancers.iter().chain(&self.services) {
            let without = row.without.as_ref().map_or(String::new(), State::to_string);
            let remark = if row.is_broken() { "  BROKEN BY SHEAVE" } else { "" };
            let line = format!("{:<width$}  {:<14} {without}{remark}", row.spec, row.with.to_string());
            writeln!(f, "{}", line.trim_end())?;
        }
        for row in self.load_balancers.iter().chain(&self.services) {
            for (side, state) in [(Side::With, Some(&row.with)), (Side::Without, row.without.as_ref())] {
                if let Some(why) = state.and_then(why) {
                    writeln!(f, "\n{} ({side} Sheave):\n  {}", row.spec, why.replace('\n', "\n  "))?;
                }
            }
        }
        let count = |rows: &[Row], of: &dyn Fn(&Row) -> bool| rows.iter().filter(|row| of(row)).count();
        let with = |row: &Row| passed(&row.with);
        let without = |row: &Row| row.without.as_ref().is_some_and(passed);
        writeln!(f, "\nLoadBalancers: {} of {} passed", count(&self.load_balancers, &with), self.load_balancers.len())?;
        if !self.services.is_empty() {
            writeln!(
                f,
                "Services: {} of {} passed with Sheave, {} without, {} without and not with",
                count(&self.services, &with),
                self.services.len(),
                count(&self.services, &without),
                count(&self.services, &Row::is_broken)
            )?;
        }
        Ok(())
    }
}

fn passed(state: &State) -> bool {
    matches!(state, State::Passed { .. })
}

/// The beginning of the message of one that did not pass.
fn why(state: &State) -> Option<String> {
    match state {
        State::Failed { message, .. } | State::Skipped { message } | State::NotRun { message }
            if !message.is_empty() =>
        {
            Some(message.chars().take(SHOWN).collect())
        }
        _ => None,
    }
}

const SHOWN: usize = 600;
