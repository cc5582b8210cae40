//! Kubernetes' e2e.test: its specs by name, and a run of one of them.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cluster::{self, Cluster};
use crate::junit::State;
use crate::results::Attempt;

/// What the specs are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    LoadBalancers,
    Services,
}

pub struct Suite {
    program: PathBuf,
    load_balancers: Vec<String>,
    services: Vec<String>,
}

impl Suite {
    /// Of the program that tests/conformance/build.sh built.
    pub fn open() -> Result<Self> {
        let program = cluster::built().join("e2e.test");
        let output =
            Command::new(&program).arg("--list-tests").output().with_context(|| program.display().to_string())?;
        if !output.status.success() {
            bail!("{} --list-tests: {}", program.display(), String::from_utf8_lossy(&output.stderr).trim());
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let (load_balancers, services) = (names(&text, LOAD_BALANCERS), names(&text, SERVICES));
        if load_balancers.len() != COUNT || services.is_empty() {
            bail!(
                "{} lists {} LoadBalancers specs, not {COUNT}, and {} Services specs",
                program.display(),
                load_balancers.len(),
                services.len()
            );
        }
        Ok(Self { program, load_balancers, services })
    }

    pub fn specs(&self, group: Group) -> &[String] {
        match group {
            Group::LoadBalancers => &self.load_balancers,
            Group::Services => &self.services,
        }
    }

    pub fn all(&self) -> impl Iterator<Item = &String> {
        self.load_balancers.iter().chain(&self.services)
    }

    /// Runs one spec from outside of the nodes' range; the attempt keeps its JUnit file and its output.
    pub fn run(&self, cluster: &Cluster, spec: &str, attempt: &Attempt) -> Result<State> {
        let report = attempt.junit();
        if let Some(folder) = report.parent() {
            fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        // Of an attempt that was interrupted.
        if report.exists() {
            fs::remove_file(&report).with_context(|| report.display().to_string())?;
        }
        let log = File::create(attempt.log()).with_context(|| attempt.log().display().to_string())?;
        let mut command = cluster.outside(&self.program.to_string_lossy())?;
        command
            .args(["--provider=skeleton", "--ginkgo.v", "--ginkgo.no-color", "--ginkgo.timeout=45m"])
            .arg(format!("--num-nodes={}", cluster::NODES))
            .arg(format!("--ginkgo.focus={}$", escape(spec)))
            .arg(format!("--junit-of-run={}", report.display()))
            .stdout(log.try_clone()?)
            .stderr(log);
        let status = command.status().with_context(|| self.program.display().to_string())?;
        if !report.exists() {
            bail!("e2e.test wrote no report ({status}); its output: {}", attempt.log().display());
        }
        attempt.state(spec)
    }
}

/// The specs of a list that begin so. A line of it: `    file.go:132: [sig-network] LoadBalancers …`.
fn names(list: &str, beginning: &str) -> Vec<String> {
    let specs = list.lines().filter_map(|line| line.trim_start().split_once(": ")).map(|(_, spec)| spec);
    let mut specs: Vec<_> = specs.filter(|spec| spec.starts_with(beginning)).map(str::to_owned).collect();
    specs.sort();
    specs
}

/// A regular expression that matches the text alone.
fn escape(text: &str) -> String {
    let special = |letter: char| r"\.+*?()|[]{}^$".contains(letter);
    text.chars().flat_map(|letter| special(letter).then_some('\\').into_iter().chain([letter])).collect()
}

/// How many LoadBalancers specs there are: one that goes missing in another release must not go unseen.
pub const COUNT: usize = 17;
const LOAD_BALANCERS: &str = "[sig-network] LoadBalancers ";
const SERVICES: &str = "[sig-network] Services ";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_a_list() {
        let list = "The following spec names can be used:\n    a/b@v1/x.go:7: [sig-network] Services should b: c [Slow]\n    \
                    a/b@v1/x.go:1: [sig-network] Services should a\n    a/y.go:3: [sig-apps] Job should\n";
        assert_eq!(
            names(list, SERVICES),
            ["[sig-network] Services should a", "[sig-network] Services should b: c [Slow]"]
        );
    }

    #[test]
    fn focus_matches_nothing_else() {
        assert_eq!(escape("[Slow] a=b (x: y)"), r"\[Slow\] a=b \(x: y\)");
    }
}
