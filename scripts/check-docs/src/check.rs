//! All checks over all files.

use std::fmt;

use crate::citations::{self, Documents};
use crate::markdown::Document;
use crate::symbols::Names;
use crate::tree::Tree;
use crate::verdicts;

/// README.md and everything in docs/: more than a newcomer reads is not read.
pub const MAX_WORDS: usize = 10_000;

/// Besides RFCs, KEPs and the kernel's documentation, which the text names without links.
const LINKED: [&str; 1] = ["https://github.com/github/glb-director"];

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub path: String,
    pub line: usize,
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}

pub fn all(tree: &Tree) -> Vec<Problem> {
    let documents: Documents<'_> = tree.documents().map(|(path, text)| (path, Document::parse(text))).collect();
    let names = Names::new(tree);
    let mut problems = Vec::new();
    let mut add = |path: &str, line: usize, found: Vec<String>| {
        problems.extend(found.into_iter().map(|what| Problem { path: path.into(), line, what }));
    };
    for (path, document) in &documents {
        for link in &document.links {
            add(path, link.line, broken_link(path, &link.text, tree, &documents).into_iter().collect());
        }
        for span in &document.spans {
            add(path, span.line, names.missing(&span.text));
        }
        for command in &document.commands {
            add(path, command.line, names.command(&command.text));
        }
        for prose in &document.prose {
            add(path, prose.line, citations::missing(&prose.text, tree, &documents));
            add(path, prose.line, citations::missing_rules(&prose.text, &documents));
        }
    }
    for (path, text) in tree.code() {
        for comment in citations::comments(path, text) {
            add(path, comment.line, citations::missing(&comment.text, tree, &documents));
            // Elsewhere R1 may be anything.
            if path.ends_with(".rs") {
                add(path, comment.line, citations::missing_rules(&comment.text, &documents));
            }
        }
        for (line, literal) in (1..).zip(text.lines()).filter(|(_, line)| line.contains('"') && !line.contains("//")) {
            add(path, line, citations::missing(literal, tree, &documents));
        }
    }
    add("docs/dataplane.md", 0, verdicts::differences(tree));
    let words = words(tree);
    if words > MAX_WORDS {
        add("docs", 0, vec![format!("{words} words in README.md and docs/, at most {MAX_WORDS} are allowed")]);
    }
    problems.sort();
    problems
}

pub fn words(tree: &Tree) -> usize {
    tree.specifications().map(|(_, text)| text.split_whitespace().count()).sum()
}

fn broken_link(path: &str, target: &str, tree: &Tree, documents: &Documents<'_>) -> Option<String> {
    if target.contains("://") {
        return (!LINKED.contains(&target))
            .then(|| format!("link to {target}: nothing outside of the repository is cited"));
    }
    let (file, anchor) = target.split_once('#').map_or((target, None), |(file, anchor)| (file, Some(anchor)));
    let resolved = if file.is_empty() { Some(path.to_string()) } else { resolve(path, file) };
    let Some(resolved) = resolved.filter(|resolved| tree.has(resolved)) else {
        return Some(format!("link to {target}: no such file"));
    };
    let is_there = |anchor: &str| {
        documents.get(resolved.as_str()).is_some_and(|document| document.anchors.iter().any(|known| known == anchor))
    };
    (!anchor.is_none_or(is_there)).then(|| format!("link to {target}: no such section"))
}

/// The path that a link in this document leads to; `None`: out of the repository.
fn resolve(document: &str, link: &str) -> Option<String> {
    let mut parts: Vec<&str> = document.split('/').collect();
    parts.pop();
    for part in link.trim_end_matches('/').split('/') {
        match part {
            "." => {}
            ".." => _ = parts.pop()?,
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}
