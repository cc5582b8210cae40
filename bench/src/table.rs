//! Figures of many repetitions: collected by scenario and quantity, printed as a table, written as JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Value, json};
use sheave_tests::scenario::Figures;

/// In the order of first use.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Row>,
    failures: Vec<(String, String)>,
    reports: BTreeMap<String, Vec<Value>>,
}

#[derive(Debug)]
struct Row {
    scenario: String,
    quantity: String,
    unit: &'static str,
    values: Vec<f64>,
    /// For counts that must be complete: of how many.
    of: Option<Vec<f64>>,
}

impl Table {
    pub fn value(&mut self, scenario: &str, quantity: &str, unit: &'static str, value: f64) {
        self.row(scenario, quantity, unit).values.push(value);
    }

    /// A count that must be complete.
    pub fn count(&mut self, scenario: &str, quantity: &str, count: usize, of: usize) {
        let row = self.row(scenario, quantity, "");
        row.values.push(count as f64);
        row.of.get_or_insert_default().push(of as f64);
    }

    /// The whole report of one repetition, for the file.
    pub fn report(&mut self, scenario: &str, report: &impl Serialize) -> Result<()> {
        self.reports.entry(scenario.to_owned()).or_default().push(serde_json::to_value(report)?);
        Ok(())
    }

    /// A repetition that could not be measured.
    pub fn failed(&mut self, scenario: &str, error: &anyhow::Error) {
        self.failures.push((scenario.to_owned(), format!("{error:#}")));
    }

    /// Whether nothing failed and every count was complete.
    pub fn complete(&self) -> bool {
        self.failures.is_empty() && self.rows.iter().all(|row| row.of.as_ref().is_none_or(|of| *of == row.values))
    }

    pub fn median(&self, scenario: &str, quantity: &str) -> Option<f64> {
        let row = self.rows.iter().find(|row| row.scenario == scenario && row.quantity == quantity)?;
        Some(Figures::of(row.values.iter().copied())?.median)
    }

    pub fn write(&self, file: &Path) -> Result<()> {
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let text = serde_json::to_string_pretty(&self.json())?;
        std::fs::write(file, text + "\n").with_context(|| file.display().to_string())
    }

    fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let of = row.of.as_ref().map(|of| of.iter().sum::<f64>());
            let sum = row.of.as_ref().map(|_| row.values.iter().sum::<f64>());
            json!({
                "scenario": row.scenario, "quantity": row.quantity, "unit": row.unit,
                "figures": Figures::of(row.values.iter().copied()), "sum": sum, "of": of, "values": row.values,
            })
        });
        json!({ "figures": rows.collect::<Vec<_>>(), "failures": self.failures, "reports": self.reports })
    }

    fn row(&mut self, scenario: &str, quantity: &str, unit: &'static str) -> &mut Row {
        let found = self.rows.iter().position(|row| row.scenario == scenario && row.quantity == quantity);
        let index = found.unwrap_or_else(|| {
            let (scenario, quantity) = (scenario.to_owned(), quantity.to_owned());
            self.rows.push(Row { scenario, quantity, unit, values: Vec::new(), of: None });
            self.rows.len() - 1
        });
        &mut self.rows[index]
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut scenario = "";
        writeln!(f, "\n{:<44} {:>4} {:>9} {:>9} {:>9}", "", "n", "min", "median", "max")?;
        for row in &self.rows {
            if row.scenario != scenario {
                scenario = &row.scenario;
                writeln!(f, "{scenario}")?;
            }
            let Some(Figures { n, min, median, max }) = Figures::of(row.values.iter().copied()) else { continue };
            let name = format!("  {}", row.quantity);
            let unit = row.unit;
            match &row.of {
                Some(of) => {
                    let (sum, of) = (row.values.iter().sum::<f64>(), of.iter().sum::<f64>());
                    let remark = if sum == of { "" } else { "  INCOMPLETE" };
                    writeln!(f, "{name:<44} {n:>4} {:>29}{remark}", format!("{sum} of {of}"))?;
                }
                None => writeln!(f, "{name:<44} {n:>4} {min:>9.1} {median:>9.1} {max:>9.1} {unit}")?,
            }
        }
        for (scenario, error) in &self.failures {
            writeln!(f, "NOT MEASURED  {scenario}: {error}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_connection_makes_the_table_incomplete() {
        let mut table = Table::default();
        table.count("loss", "alive", 133, 133);
        table.value("loss", "pause", "ms", 210.0);
        assert!(table.complete());
        assert_eq!(table.median("loss", "pause"), Some(210.0));
        table.count("loss", "alive", 132, 133);
        assert!(!table.complete());
        assert!(table.to_string().contains("265 of 266  INCOMPLETE"), "{table}");
    }
}
