//! The text files of the repository, by path.

use std::collections::BTreeMap;
use std::path::Path;
use std::{fs, io};

#[derive(Debug, Default)]
pub struct Tree(BTreeMap<String, String>);

/// Not of the repository: build output and git's own files.
const SKIPPED: [&str; 2] = ["target", ".git"];
/// This program names wrong references on purpose.
const OWN: &str = "scripts/check-docs/";
/// Documents that are tables of what users can say, and of what they are told; and the installation for each distribution.
const TABLES: [&str; 5] =
    ["docs/services.md", "docs/pools.md", "docs/troubleshooting.md", "docs/fields.md", "docs/api-endpoint.md"];

impl Tree {
    pub fn read(root: &Path) -> io::Result<Self> {
        let mut files = BTreeMap::new();
        visit(root, "", &mut files)?;
        Ok(Self(files))
    }

    pub fn text(&self, path: &str) -> Option<&str> {
        self.0.get(path).map(String::as_str)
    }

    /// A file or a folder.
    pub fn has(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        let inside = format!("{path}/");
        path.is_empty() || self.0.contains_key(path) || self.paths().any(|file| file.starts_with(&inside))
    }

    /// A file or a folder whose path ends with these components: `election/tests.rs`.
    pub fn has_ending(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        let (end, inside) = (format!("/{path}"), format!("/{path}/"));
        self.has(path) || self.paths().any(|file| file.ends_with(&end) || file.contains(&inside))
    }

    pub fn is_top_folder(&self, name: &str) -> bool {
        let inside = format!("{name}/");
        self.paths().any(|file| file.starts_with(&inside))
    }

    /// What is checked as a document.
    pub fn documents(&self) -> impl Iterator<Item = (&str, &str)> {
        let is_document =
            |path: &str| ["README.md", "CONTRIBUTING.md", "bench/README.md"].contains(&path) || is_specification(path);
        self.files().filter(move |(path, _)| is_document(path))
    }

    /// What counts for the limit of words: all but the tables, which grow with Kubernetes.
    pub fn specifications(&self) -> impl Iterator<Item = (&str, &str)> {
        let counts = |path: &str| path == "README.md" || is_specification(path) && !TABLES.contains(&path);
        self.files().filter(move |(path, _)| counts(path))
    }

    /// Everything in which a name may be defined, and whose comments cite documents. Not tables of measured figures.
    pub fn code(&self) -> impl Iterator<Item = (&str, &str)> {
        let is_other = |path: &str| path.ends_with(".md") || path.ends_with(".txt") || path == "Cargo.lock";
        let is_code = move |path: &str| !is_other(path) && !path.starts_with(OWN);
        self.files().filter(move |(path, _)| is_code(path))
    }

    fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(path, text)| (path.as_str(), text.as_str()))
    }

    fn paths(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

#[cfg(test)]
impl<const N: usize> From<[(&str, &str); N]> for Tree {
    fn from(files: [(&str, &str); N]) -> Self {
        Self(files.map(|(path, text)| (path.into(), text.into())).into())
    }
}

fn is_specification(path: &str) -> bool {
    path.starts_with("docs/") && path.ends_with(".md")
}

/// A file that is no text is there, and has none.
fn visit(folder: &Path, prefix: &str, files: &mut BTreeMap<String, String>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let (kind, name) = (entry.file_type()?, entry.file_name());
        let Some(name) = name.to_str().filter(|name| !SKIPPED.contains(name)) else { continue };
        let path = format!("{prefix}{name}");
        if kind.is_dir() {
            visit(&entry.path(), &format!("{path}/"), files)?;
        } else if kind.is_file() {
            files.insert(path, String::from_utf8(fs::read(entry.path())?).unwrap_or_default());
        }
    }
    Ok(())
}
