//! What is in backticks: paths, commands, flags, names of the code.

use std::collections::BTreeSet;

use crate::tree::Tree;

/// Names that the code does not mention: of the kernel, of Kubernetes, of tools.
const EXTERNAL: [&str; 12] = [
    "bpf_xdp_ct_lookup",
    "conntrack.tcpBeLiberal",
    "externalTrafficPolicy",
    "nf_conntrack_tcp_be_liberal",
    "nf_conntrack_events",
    "net.core.netdev_max_backlog",
    "no_std",
    "nftables",
    "rustables",
    "rmem_max",
    "KUBERNETES_SERVICE_HOST",
    "dup",
];
const EXTENSIONS: [&str; 8] = ["rs", "md", "toml", "yaml", "sh", "json", "txt", "tar"];
/// Written by commands, not kept.
const BUILT: [&str; 2] = ["target/", "bench/results/"];

/// What a span may name.
pub struct Names<'a> {
    tree: &'a Tree,
    code: Vec<&'a str>,
    tokens: BTreeSet<&'a str>,
    targets: BTreeSet<&'a str>,
}

impl<'a> Names<'a> {
    pub fn new(tree: &'a Tree) -> Self {
        let code: Vec<&str> = tree.code().map(|(_, text)| text).collect();
        let tokens = code.iter().flat_map(|text| text.split(|letter: char| !is_in_identifier(letter))).collect();
        let makefile = tree.text("Makefile").unwrap_or_default();
        let target = |line: &'a str| {
            line.split_once(':').map(|(name, _)| name).filter(|name| !name.is_empty() && name.chars().all(is_in_target))
        };
        Self { tree, code, tokens, targets: makefile.lines().filter_map(target).collect() }
    }

    /// What is wrong with a span, if anything.
    pub fn missing(&self, span: &str) -> Vec<String> {
        let span = span.trim();
        if EXTERNAL.contains(&span.trim_end_matches("()")) {
            return Vec::new();
        }
        match span.split_once(' ') {
            Some(("make", _)) => self.command(span),
            Some((program, _)) if program.starts_with("--") || ["sheave", "sheave-lab"].contains(&program) => {
                self.flags(span)
            }
            Some(_) => self.words(span),
            None if span.starts_with("--") => self.flags(span),
            None => self.name(span).into_iter().collect(),
        }
    }

    /// A line of a shell block, or a span that begins with `make`.
    pub fn command(&self, line: &str) -> Vec<String> {
        let Some(rest) = line.trim().strip_prefix("make ") else { return Vec::new() };
        let rest = rest.split_once(" #").map_or(rest, |(command, _)| command);
        let target = rest.split_whitespace().next().unwrap_or_default();
        let mut problems = Vec::new();
        if !target.is_empty() && target != "X" && !self.targets.contains(target) {
            problems.push(format!("no make target {target}"));
        }
        problems.extend(self.flags(rest));
        problems
    }

    fn flags(&self, text: &str) -> Vec<String> {
        let ends = |letter: char| letter.is_whitespace() || ['"', '\'', '=', ',', '/'].contains(&letter);
        let flags = text.split(ends).filter(|word| word.starts_with("--") && word.len() > 2);
        let is_flag = |flag: &&str| {
            let name = flag.trim_start_matches("--");
            self.tokens.contains(name.replace('-', "_").as_str()) || self.is_in_code(name)
        };
        flags.filter(|flag| !is_flag(flag)).map(|flag| format!("no flag {flag}")).collect()
    }

    /// Constants and metrics in a span of several words; the rest is text of other programs.
    fn words(&self, span: &str) -> Vec<String> {
        let words = span.split(|letter: char| !is_in_identifier(letter));
        let is_ours = |word: &&str| word.starts_with("sheave_") || word.contains('_') && word.to_uppercase() == **word;
        let missing = words.filter(is_ours).filter(|word| !self.tokens.contains(*word) && !EXTERNAL.contains(word));
        missing.map(|word| format!("no {word} in the code")).collect()
    }

    fn name(&self, span: &str) -> Option<String> {
        if let Some(prefix) = span.strip_suffix('…') {
            let known = self.tokens.iter().any(|token| token.starts_with(prefix));
            return (!known).then(|| format!("nothing in the code begins with {prefix}"));
        }
        if self.is_path(span) {
            let written = BUILT.iter().any(|folder| span.starts_with(folder));
            let known = written || self.tree.has_ending(span) || self.is_in_code(span);
            return (!known).then(|| format!("no path {span}"));
        }
        let plain = span.split(['{', '=']).next().unwrap_or_default().trim_end_matches("()");
        let pieces: Vec<&str> = plain.split("::").flat_map(|part| part.split('.')).collect();
        let is_identifier =
            |piece: &&str| piece.starts_with(|letter: char| letter.is_ascii_alphabetic() || letter == '_');
        if pieces.iter().all(|piece| is_identifier(piece) && piece.chars().all(is_in_identifier)) {
            let missing = pieces.into_iter().find(|piece| !self.tokens.contains(*piece));
            return missing.map(|piece| format!("no {piece} in the code"));
        }
        let is_word = |letter: char| is_in_identifier(letter) || letter == '-';
        let is_name = plain.contains('-') && is_identifier(&plain) && plain.chars().all(is_word);
        (is_name && !self.is_in_code(plain)).then(|| format!("no {plain} in the code"))
    }

    /// A file name of ours, or a path that begins in a folder of the repository.
    fn is_path(&self, span: &str) -> bool {
        let in_path = |letter: char| letter.is_ascii_alphanumeric() || "/._-".contains(letter);
        if span.starts_with(['/', '.']) || !span.chars().all(in_path) {
            return false;
        }
        let has_extension = span.rsplit_once('.').is_some_and(|(_, extension)| EXTENSIONS.contains(&extension));
        let top = span.split_once('/').map(|(top, _)| top);
        has_extension || top.is_some_and(|top| self.tree.is_top_folder(top) || top == "target")
    }

    /// Not within a longer name.
    fn is_in_code(&self, name: &str) -> bool {
        let is_edge = |letter: Option<char>| letter.is_none_or(|letter| !is_in_identifier(letter) && letter != '-');
        self.code.iter().any(|text| {
            let mut found = text.match_indices(name);
            found.any(|(at, _)| {
                is_edge(text[..at].chars().next_back()) && is_edge(text[at + name.len()..].chars().next())
            })
        })
    }
}

fn is_in_identifier(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || letter == '_'
}

fn is_in_target(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || letter == '-'
}
