//! Checks that what the documents and the comments of the code name exists. `make docs` runs it.
//!
//! Reading order: tree.rs (files) -> markdown.rs (what is in a document) -> citations.rs (sections, rules, decisions) -> symbols.rs (what
//! is in backticks) -> verdicts.rs (the verdict table) -> check.rs (all of it together). The tests feed each check a wrong input.

mod check;
mod citations;
mod markdown;
mod symbols;
#[cfg(test)]
mod tests;
mod tree;
mod verdicts;

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let root = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("."), PathBuf::from);
    let tree = match tree::Tree::read(&root) {
        Ok(tree) => tree,
        Err(error) => {
            eprintln!("check-docs: read {}: {error}", root.display());
            return ExitCode::from(2);
        }
    };
    let problems = check::all(&tree);
    for problem in &problems {
        eprintln!("{problem}");
    }
    if !problems.is_empty() {
        eprintln!("check-docs: {} problems", problems.len());
        return ExitCode::FAILURE;
    }
    println!("check-docs: {} words of {}, every reference resolves", check::words(&tree), check::MAX_WORDS);
    ExitCode::SUCCESS
}
