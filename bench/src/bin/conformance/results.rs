//! What is known of a commit: a JUnit file for each attempt of a spec, below `target/conformance/results`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use sheave_bench::commit;
use sheave_tests::lab::ProxyMode;

use crate::junit::{self, State};
use crate::{Side, cluster};

/// Of one commit and mode.
pub struct Results {
    folder: PathBuf,
    pub commit: String,
}

/// One run of one spec.
pub struct Attempt {
    stem: PathBuf,
}

impl Results {
    /// Files that are in no commit have no results that could be known again: those of an earlier run are removed.
    pub fn open(mode: ProxyMode) -> Result<Self> {
        let (mut commit, clean) = commit::here()?;
        if !clean {
            commit.push_str("-dirty");
        }
        let folder = cluster::built().join("results").join(&commit).join(mode.to_string());
        if !clean && folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
        }
        Ok(Self { folder, commit })
    }

    /// What decides. A spec that passed after it had failed was repeated.
    pub fn state(&self, side: Side, spec: &str) -> Result<State> {
        let attempts = self.attempts(side, spec)?;
        let Some((_, last)) = attempts.last() else { return Ok(State::NotRun { message: String::new() }) };
        Ok(match last {
            State::Passed { seconds } if attempts.len() > 1 => State::Failed {
                seconds: *seconds,
                message: format!("passed at attempt {} only: a spec that is repeated has failed", attempts.len()),
            },
            other => other.clone(),
        })
    }

    /// Whether another attempt could show nothing new.
    pub fn is_passed(&self, side: Side, spec: &str) -> Result<bool> {
        Ok(matches!(self.attempts(side, spec)?.last(), Some((_, State::Passed { .. }))))
    }

    /// The attempt to be made. One that was interrupted, or before which the suite could not be prepared, is made again.
    pub fn next(&self, side: Side, spec: &str) -> Result<Attempt> {
        let number = self.attempts(side, spec)?.len() + 1;
        Ok(self.attempt(side, spec, number))
    }

    pub fn forget(&self, side: Side, spec: &str) -> Result<()> {
        for (attempt, _) in self.attempts(side, spec)? {
            for file in [attempt.junit(), attempt.log()] {
                fs::remove_file(&file).with_context(|| file.display().to_string())?;
            }
        }
        Ok(())
    }

    /// Those that ended, in order.
    fn attempts(&self, side: Side, spec: &str) -> Result<Vec<(Attempt, State)>> {
        let mut attempts = Vec::new();
        loop {
            let attempt = self.attempt(side, spec, attempts.len() + 1);
            if !attempt.junit().exists() {
                return Ok(attempts);
            }
            match attempt.state(spec)? {
                State::NotRun { .. } => return Ok(attempts),
                state => attempts.push((attempt, state)),
            }
        }
    }

    fn attempt(&self, side: Side, spec: &str, number: usize) -> Attempt {
        Attempt { stem: self.folder.join(side.to_string()).join(format!("{}.{number}", file_name(spec))) }
    }
}

impl Attempt {
    pub fn junit(&self) -> PathBuf {
        self.with(".xml")
    }

    pub fn log(&self) -> PathBuf {
        self.with(".log")
    }

    pub fn state(&self, spec: &str) -> Result<State> {
        let file = self.junit();
        let report = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        Ok(junit::state_of(&report, spec))
    }

    fn with(&self, ending: &str) -> PathBuf {
        let mut path = self.stem.clone().into_os_string();
        path.push(ending);
        path.into()
    }
}

/// Letters and digits of the name, with a hyphen for everything between.
fn file_name(spec: &str) -> String {
    let words = spec.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-")
}
