//! All that are compared side by side: counts are sums over the repetitions, times the highest of them.

use std::fmt::Write as _;

use super::Column;
use super::faults::Figure;

pub fn of(columns: &[Column]) -> String {
    let mut text = String::new();
    let names: String = columns.iter().map(|column| format!(" | {}", column.name)).collect();
    _ = writeln!(text, "| fault | figure{names} |\n|---|---{}|", "|---".repeat(columns.len()));
    for (fault, figure) in lines(columns) {
        let cells: String = columns.iter().map(|column| format!(" | {}", cell(column, fault, figure))).collect();
        _ = writeln!(text, "| {fault} | {figure}{cells} |");
    }
    for column in columns {
        for (fault, why) in &column.failures {
            _ = writeln!(text, "not measured, {}: {fault}: {why}", column.name);
        }
    }
    text
}

/// Every figure of every fault that any has, in order.
fn lines(columns: &[Column]) -> Vec<(&'static str, &'static str)> {
    let mut lines = Vec::new();
    for measured in columns.iter().flat_map(|column| &column.measured) {
        for figure in &measured.figures {
            let line = (measured.fault, figure.name);
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
    }
    lines
}

fn cell(column: &Column, fault: &str, name: &str) -> String {
    let measured = column.measured.iter().filter(|measured| measured.fault == fault);
    let figures: Vec<&Figure> =
        measured.flat_map(|measured| &measured.figures).filter(|figure| figure.name == name).collect();
    let Some(first) = figures.first() else { return "–".into() };
    match first.of {
        Some(_) => {
            let sum = |part: fn(&Figure) -> f64| figures.iter().map(|figure| part(figure)).sum::<f64>();
            format!("{} of {}", sum(|figure| figure.value), sum(|figure| figure.of.unwrap_or_default()))
        }
        None => format!("{:.1}", figures.iter().map(|figure| figure.value).fold(0.0, f64::max)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::faults::Measured;
    use super::*;

    fn column(name: &str, figures: &[Figure]) -> Column {
        let measured = figures.iter().map(|figure| Measured {
            fault: "killed",
            figures: vec![figure.clone()],
            promises: Vec::new(),
            seen: Value::Null,
        });
        Column { name: name.into(), measured: measured.collect(), failures: vec![("frozen".into(), "why".into())] }
    }

    #[test]
    fn counts_are_summed_times_are_the_highest_and_what_is_missing_is_said() {
        let count = |value| Figure { name: "failed", value, of: Some(120.0) };
        let time = |value| Figure { name: "after, ms", value, of: None };
        let columns = [column("a", &[count(3.0), time(10.0), count(4.0), time(7.0)]), column("b", &[count(1.0)])];
        let text = of(&columns);
        assert!(text.contains("| killed | failed | 7 of 240 | 1 of 120 |"), "{text}");
        assert!(text.contains("| killed | after, ms | 10.0 | – |"), "{text}");
        assert!(text.contains("not measured, b: frozen: why"), "{text}");
    }
}
