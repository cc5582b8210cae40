//! The table of verdicts agrees with the code: number, label and fate of each.

use std::collections::BTreeMap;

use crate::tree::Tree;

const CODE: &str = "ebpf/common/src/verdict.rs";
const TABLE: &str = "docs/dataplane.md";

/// Label and fate by number.
type Verdicts = BTreeMap<u32, (String, String)>;

pub fn differences(tree: &Tree) -> Vec<String> {
    let (Some(code), Some(table)) = (tree.text(CODE), tree.text(TABLE)) else { return Vec::new() };
    let (code, table) = (in_code(code), in_table(table));
    let numbers = code.keys().chain(table.keys().filter(|number| !code.contains_key(*number)));
    let differs = |number: &&u32| code.get(*number) != table.get(*number);
    let shown = |verdict: Option<&(String, String)>| {
        verdict.map_or("nothing".into(), |(label, fate)| format!("{label} {fate}"))
    };
    numbers
        .filter(differs)
        .map(|number| {
            format!("verdict {number}: {CODE} has {}, the table {}", shown(code.get(number)), shown(table.get(number)))
        })
        .collect()
}

/// `NotOurs = 0, "not_ours", Pass;`
fn in_code(text: &str) -> Verdicts {
    let verdict = |line: &str| {
        let (_, rest) = line.trim().strip_suffix(';')?.split_once(" = ")?;
        let [number, label, fate] = rest.split(", ").collect::<Vec<_>>()[..] else { return None };
        Some((number.parse().ok()?, (label.trim_matches('"').into(), fate.to_lowercase())))
    };
    text.lines().filter_map(verdict).collect()
}

/// ``|0|`not_ours`|pass|``
fn in_table(text: &str) -> Verdicts {
    let verdict = |line: &str| {
        let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
        let number = cells.next()?.parse().ok()?;
        let label = cells.next()?.strip_prefix('`')?.strip_suffix('`')?;
        Some((number, (label.into(), cells.next()?.into())))
    };
    let section = text.split("## Verdicts").nth(1).unwrap_or_default();
    section.lines().filter_map(verdict).collect()
}
