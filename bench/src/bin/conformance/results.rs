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

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str = "[sig-network] LoadBalancers [Slow] should a (b)";

    /// A folder of its own for each test, removed with it.
    struct Known(Results);

    impl Known {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("sheave-results-{name}-{}", std::process::id()));
            Self(Results { folder, commit: String::new() })
        }

        /// What an attempt that ended so leaves.
        fn attempt(&self, status: &str) {
            let attempt = self.0.next(Side::With, SPEC).unwrap();
            fs::create_dir_all(attempt.junit().parent().unwrap()).unwrap();
            fs::write(attempt.junit(), format!(r#"<testcase name="{SPEC}" status="{status}" time="1"></testcase>"#))
                .unwrap();
            fs::write(attempt.log(), "").unwrap();
        }

        fn state(&self) -> State {
            self.0.state(Side::With, SPEC).unwrap()
        }

        fn passed(&self) -> bool {
            self.0.is_passed(Side::With, SPEC).unwrap()
        }
    }

    impl Drop for Known {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0.folder).unwrap();
        }
    }

    #[test]
    fn what_passed_is_not_run_again() {
        let known = Known::new("passed");
        assert!(!known.passed());
        assert!(matches!(known.state(), State::NotRun { .. }));
        known.attempt("passed");
        assert!(known.passed());
        assert_eq!(known.state(), State::Passed { seconds: 1.0 });
        assert!(matches!(known.0.state(Side::Without, SPEC).unwrap(), State::NotRun { .. }));
    }

    #[test]
    fn what_passed_after_a_failure_has_failed() {
        let known = Known::new("repeated");
        known.attempt("failed");
        assert!(!known.passed());
        known.attempt("passed");
        assert!(known.passed());
        assert!(matches!(known.state(), State::Failed { message, .. } if message.contains("attempt 2")));
        known.0.forget(Side::With, SPEC).unwrap();
        assert!(matches!(known.state(), State::NotRun { .. }));
    }

    #[test]
    fn an_interruption_is_no_attempt() {
        let known = Known::new("interrupted");
        known.attempt("interrupted");
        known.attempt("passed");
        assert_eq!(known.state(), State::Passed { seconds: 1.0 });
    }
}
