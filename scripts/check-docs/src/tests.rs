//! Each class of wrong reference is found, and what is right is not.

use crate::check::{MAX_WORDS, all};
use crate::tree::Tree;

const ELECTION: &str = "# Election\n\n## Keys\n\n## Freshness\n\n**R1 Lease.** Held.\n\n- **I1** It ends.\n";
const DECISION: (&str, &str) = ("docs/decisions/0001-one-lease.md", "# 1. One lease\n");
const MAKEFILE: (&str, &str) = ("Makefile", "demo: setup\n\t@run\nsetup:\n");
const CODE: &str = "pub const MAX_VIPS: u32 = 1; // sheave_ready\nfn walk(report_port: u16) {}\n";

/// What is found in a tree with this README and this comment in the code, without the place.
fn found(readme: &str, comment: &str) -> Vec<String> {
    let code = format!("//! {comment}\n{CODE}");
    let tree = Tree::from([
        ("README.md", readme),
        ("docs/election.md", ELECTION),
        DECISION,
        MAKEFILE,
        ("speaker/src/main.rs", code.as_str()),
    ]);
    all(&tree).into_iter().map(|problem| problem.what).collect()
}

fn in_readme(text: &str) -> Vec<String> {
    found(text, "")
}

fn in_code(comment: &str) -> Vec<String> {
    found("", comment)
}

#[test]
fn what_is_right_is_not_reported() {
    let readme = "# Top\n\n[keys](docs/election.md#keys), [top](#top), [code](speaker/src/), `speaker/src/main.rs`, `main.rs`, \
                  `MAX_VIPS`, `walk()`, `sheave_ready`, `--report-port`, `make demo ARGS=\"--report-port 1\"`, decision 1, R1, I1, \
                  (decision 1) 0 of 200, decisions 1 and 1, \
                  docs/election.md, *Keys*, `--report-port=7`\n\n```sh\nmake setup   # once\n```\n";
    let comment = "Read first: docs/election.md sections Keys and Freshness. Or docs/election.md (keys, rules R1.., lease); \
                   docs/election.md R1, docs/election.md section \"Keys\", docs/decisions/0001, rule R1 and decisions 1 and 1.";
    assert_eq!(found(readme, comment), [""; 0]);
}

#[test]
fn broken_links() {
    assert_eq!(in_readme("[a](docs/no.md)"), ["link to docs/no.md: no such file"]);
    assert_eq!(in_readme("[a](../up.md)"), ["link to ../up.md: no such file"]);
    assert_eq!(in_readme("[a](docs/election.md#no)"), ["link to docs/election.md#no: no such section"]);
    assert_eq!(in_readme("[a](#no)"), ["link to #no: no such section"]);
    let outside = "link to https://example.com: nothing outside of the repository is cited";
    assert_eq!(in_readme("[a](https://example.com)"), [outside]);
}

#[test]
fn sections_that_are_not_there() {
    let no = |name: &str| [format!("docs/election.md has no section or rule {name:?}")];
    assert_eq!(in_readme("see docs/election.md, *Nothing*"), no("Nothing"));
    assert_eq!(in_code("docs/election.md section Peers."), no("Peers"));
    assert_eq!(in_code("docs/election.md sections Keys and Peers."), no("Peers"));
    assert_eq!(in_code("docs/election.md, \"No such\"."), no("No such"));
    assert_eq!(in_code("docs/election.md, Nothing; more"), no("Nothing"));
    assert_eq!(in_code("docs/election.md (keys, nothing)"), no("nothing"));
    assert_eq!(in_code("docs/no.md section Keys"), ["no document docs/no.md"]);
}

#[test]
fn a_citation_that_goes_on_in_the_next_line() {
    let code = "/// Read first: docs/election.md section\n/// Nothing.\nfn one() {}\n";
    let tree = Tree::from([("docs/election.md", ELECTION), ("speaker/src/main.rs", code)]);
    let what = "docs/election.md has no section or rule \"Nothing\"";
    assert_eq!(
        all(&tree).iter().map(ToString::to_string).collect::<Vec<_>>(),
        [format!("speaker/src/main.rs:1: {what}")]
    );
}

#[test]
fn a_log_line_that_cites() {
    let code = "fn main() { warn!(\"owns no VIP (docs/election.md, Nothing)\"); }\n";
    let tree = Tree::from([("docs/election.md", ELECTION), ("speaker/src/main.rs", code)]);
    assert_eq!(all(&tree).len(), 1);
}

#[test]
fn rules_invariants_and_decisions_that_are_not_there() {
    assert_eq!(in_readme("R9 applies"), ["docs/election.md has no rule or invariant R9"]);
    assert_eq!(in_code("broken (I4)"), ["docs/election.md has no rule or invariant I4"]);
    let twice = ["docs/election.md has no rule or invariant R9", "docs/election.md has no section or rule \"R9\""];
    assert_eq!(in_code("docs/election.md rules R1 to R9."), twice);
    assert_eq!(in_readme("decision 15"), ["no decision 15"]);
    assert_eq!(in_readme("decisions 1 and 15"), ["no decision 15"]);
    assert_eq!(in_code("docs/decisions/0015."), ["no document docs/decisions/0015"]);
}

#[test]
fn paths_that_are_not_there() {
    assert_eq!(in_readme("`speaker/src/no.rs`"), ["no path speaker/src/no.rs"]);
    assert_eq!(in_readme("`no.rs`"), ["no path no.rs"]);
    assert_eq!(in_readme("`speaker/no/`"), ["no path speaker/no/"]);
}

#[test]
fn names_that_are_not_in_the_code() {
    assert_eq!(in_readme("`MAX_NODES`"), ["no MAX_NODES in the code"]);
    assert_eq!(in_readme("`Mark::HELD_TTL`"), ["no Mark in the code"]);
    assert_eq!(in_readme("`sheave_absent`"), ["no sheave_absent in the code"]);
    assert_eq!(in_readme("`sheave_absent{limit=\"x\"}`"), ["no sheave_absent in the code"]);
    assert_eq!(in_readme("`x sheave_absent > 1`"), ["no sheave_absent in the code"]);
    assert_eq!(in_readme("`sheave-keep`"), ["no sheave-keep in the code"]);
    assert_eq!(in_readme("`keys_…`"), ["nothing in the code begins with keys_"]);
}

#[test]
fn flags_and_commands_that_are_not_there() {
    assert_eq!(in_readme("`--holdings-port`"), ["no flag --holdings-port"]);
    assert_eq!(in_readme("`make all`"), ["no make target all"]);
    assert_eq!(in_readme("`make demo ARGS=\"--no-such\"`"), ["no flag --no-such"]);
    assert_eq!(in_readme("```sh\nmake all   # all\n```\n"), ["no make target all"]);
}

#[test]
fn a_verdict_that_differs() {
    let code = ("ebpf/common/src/verdict.rs", "    NotOurs = 0, \"not_ours\", Pass;\n    Vlan = 2, \"vlan\", Pass;\n");
    let table = |rows: &str| format!("## Verdicts\n\n|no.|label|fate|when|\n|---|---|---|---|\n{rows}");
    let found = |rows: &str| {
        let table = table(rows);
        all(&Tree::from([code, ("docs/dataplane.md", table.as_str())]))
            .into_iter()
            .map(|problem| problem.what)
            .collect::<Vec<_>>()
    };
    assert_eq!(found("|0|`not_ours`|pass|x|\n|2|`vlan`|pass|x|\n"), [""; 0]);
    let differs = "verdict 2: ebpf/common/src/verdict.rs has vlan pass, the table";
    assert_eq!(found("|0|`not_ours`|pass|x|\n|2|`vlan`|drop|x|\n"), [format!("{differs} vlan drop")]);
    assert_eq!(found("|0|`not_ours`|pass|x|\n"), [format!("{differs} nothing")]);
}

#[test]
fn too_many_words() {
    let words = "word ".repeat(MAX_WORDS);
    assert!(all(&Tree::from([("docs/long.md", words.as_str())])).is_empty());
    let found = all(&Tree::from([("docs/long.md", words.as_str()), ("README.md", "one")]));
    assert_eq!(found[0].what, "10001 words in README.md and docs/, at most 10000 are allowed");
}
