//! Citations in prose and comments: sections of documents, rules and invariants of the election, decisions.

use std::collections::BTreeMap;

use crate::markdown::{At, Document};
use crate::tree::Tree;

/// Documents by path, parsed once.
pub type Documents<'a> = BTreeMap<&'a str, Document>;

/// Where rules (R1) and invariants (I1) are defined.
const ELECTION: &str = "docs/election.md";
/// Words of an unquoted name after a comma; longer is a sentence that goes on.
const NAME_WORDS: usize = 3;

/// What a text cites that is not there.
pub fn missing(text: &str, tree: &Tree, documents: &Documents<'_>) -> Vec<String> {
    let mut problems = Vec::new();
    for (path, rest) in cited_documents(text) {
        let Some(document) = documents.get(path.as_str()) else {
            if !tree.has(&path) && !is_decision(&path, tree) {
                problems.push(format!("no document {path}"));
            }
            continue;
        };
        let names = names_after(rest, document);
        problems.extend(names.into_iter().map(|name| format!("{path} has no section or rule {name:?}")));
    }
    for number in decisions(text) {
        if !is_decision(&format!("docs/decisions/{number:04}"), tree) {
            problems.push(format!("no decision {number}"));
        }
    }
    problems
}

/// Rules and invariants that a text names and that are not defined.
pub fn missing_rules(text: &str, documents: &Documents<'_>) -> Vec<String> {
    let Some(election) = documents.get(ELECTION) else { return Vec::new() };
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric());
    let rules = words.filter(|word| is_rule(word) && !defines(election, word));
    rules.map(|rule| format!("{ELECTION} has no rule or invariant {rule}")).collect()
}

/// The comments of a file of code, those that follow each other joined.
pub fn comments(path: &str, text: &str) -> Vec<At> {
    let marker = if path.ends_with(".rs") { "//" } else { "#" };
    let mut comments: Vec<At> = Vec::new();
    let mut follows = false;
    for (line, content) in (1..).zip(text.lines()) {
        let Some((before, comment)) = content.split_once(marker) else {
            follows = false;
            continue;
        };
        let comment = comment.trim_start_matches(['/', '!', '#']).trim();
        let alone = before.trim().is_empty();
        match comments.last_mut().filter(|_| alone && follows) {
            Some(last) => last.text = format!("{} {comment}", last.text),
            None => comments.push(At { line, text: comment.into() }),
        }
        follows = alone;
    }
    comments
}

/// Every path of a document in a text, with the text after it.
fn cited_documents(text: &str) -> Vec<(String, &str)> {
    let mut found = Vec::new();
    let starts = ["docs/", "bench/README.md"].into_iter().flat_map(|start| text.match_indices(start));
    for (at, _) in starts {
        if text[..at].ends_with(|letter: char| letter.is_alphanumeric() || ['/', '-', '_'].contains(&letter)) {
            continue;
        }
        let in_path = |letter: char| letter.is_ascii_alphanumeric() || "/._-*".contains(letter);
        let length = text[at..].find(|letter: char| !in_path(letter)).unwrap_or(text.len() - at);
        let path = text[at..at + length].trim_end_matches(['.', '/', '*']);
        if path != "docs" && !path.contains('*') {
            found.push((path.to_string(), &text[at + path.len()..]));
        }
    }
    found
}

/// The names that follow the path of a document and that it does not have.
fn names_after(rest: &str, document: &Document) -> Vec<String> {
    let rest = rest.trim_start_matches('`');
    let until = |rest: &str, ends: &[char]| rest.split(ends).next().unwrap_or_default().trim().to_string();
    let unquoted = |rest: &str| until(rest, &['.', ',', ';', ':', ')', '(', '`']);
    let mut names: Vec<String> = Vec::new();
    if let Some(rest) = rest.strip_prefix(" sections ") {
        names.extend(unquoted(rest).split(" and ").map(String::from));
    } else if let Some(rest) = rest.strip_prefix(" section ").or_else(|| rest.strip_prefix(", section ")) {
        names.push(quoted(rest).unwrap_or_else(|| unquoted(rest)));
    } else if let Some(rest) = rest.strip_prefix(" rules ").or_else(|| rest.strip_prefix(" rule ")) {
        names.extend(unquoted(rest).split_whitespace().filter(|word| is_rule(word)).map(String::from));
    } else if let Some(rest) = rest.strip_prefix(" (") {
        let all = until(rest, &[')']);
        if !has(document, &all) {
            names.extend(all.split(", ").map(String::from));
        }
    } else if let Some(rest) = rest.strip_prefix(", ") {
        if let Some(name) = quoted(rest) {
            names.push(name);
        } else if !rest.starts_with("docs/") && !rest.starts_with("RFC") {
            let name = until(rest, &['.', ',', ';', ':', '`', '"']).trim_end_matches(')').to_string();
            let name = if name.contains('(') && !name.ends_with(')') { format!("{name})") } else { name };
            names.extend((name.split_whitespace().count() <= NAME_WORDS).then_some(name));
        }
    } else if let Some(word) = rest.strip_prefix(' ').map(unquoted).filter(|word| is_rule(word)) {
        names.push(word);
    }
    names.retain(|name| !name.is_empty() && !has(document, name));
    names
}

fn quoted(rest: &str) -> Option<String> {
    let quote = rest.chars().next().filter(|letter| ['"', '*'].contains(letter))?;
    rest[1..].split(quote).next().map(String::from)
}

/// A heading that contains the name, or a rule of that name.
fn has(document: &Document, name: &str) -> bool {
    let words: Vec<&str> = name.split_whitespace().map(|word| word.trim_end_matches('.')).collect();
    let rules: Vec<_> = words.iter().filter(|word| is_rule(word)).collect();
    if !rules.is_empty() {
        return rules.iter().all(|rule| defines(document, rule));
    }
    let name = name.to_lowercase();
    let named = |text: &String| text.to_lowercase().contains(&name);
    document.headings.iter().any(named) || document.terms.iter().any(named)
}

fn defines(document: &Document, rule: &str) -> bool {
    document.terms.iter().any(|term| term.split([' ', '.']).next() == Some(rule))
}

/// R1 to R99, R3a; I1 to I9.
fn is_rule(word: &str) -> bool {
    let digits = |rest: &str| (1..=2).contains(&rest.len()) && rest.bytes().all(|byte| byte.is_ascii_digit());
    match word.split_at_checked(1) {
        Some(("R", rest)) => digits(rest.strip_suffix('a').unwrap_or(rest)),
        Some(("I", rest)) => rest.len() == 1 && digits(rest),
        _ => false,
    }
}

/// Numbers after "decision" or "decisions": one, or two with "and" between them.
fn decisions(text: &str) -> Vec<u32> {
    let mut numbers = Vec::new();
    let text = text.to_lowercase();
    for (at, word) in text.match_indices("decision") {
        let rest = text[at + word.len()..].trim_start_matches('s');
        let rest = rest.split([',', ')', ';', '|', ':']).next().unwrap_or_default();
        let mut words = rest.split_whitespace().map(|word| word.trim_end_matches(['.', '?', '*']));
        numbers.extend(words.next().and_then(|first| first.parse::<u32>().ok()));
        if words.next() == Some("and") {
            numbers.extend(words.next().and_then(|second| second.parse::<u32>().ok()));
        }
    }
    numbers
}

/// `docs/decisions/0008`, with or without the rest of the name.
fn is_decision(path: &str, tree: &Tree) -> bool {
    path.strip_prefix("docs/decisions/").is_some_and(|number| {
        number.len() == 4 && tree.documents().any(|(known, _)| known.starts_with(&format!("{path}-")))
    })
}
