//! What a JUnit file of one spec says about it: as much XML as Ginkgo writes.

use std::fmt;

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    Passed {
        seconds: f64,
    },
    Failed {
        seconds: f64,
        message: String,
    },
    Skipped {
        message: String,
    },
    /// The file has no such spec: the suite did not select it, or did not come to it.
    NotRun {
        message: String,
    },
}

/// The state of a spec in a report.
pub fn state_of(report: &str, spec: &str) -> State {
    let cases = || report.split("<testcase ").skip(1);
    let Some(case) = cases().find(|case| attribute(case, "name").is_some_and(|name| name == spec)) else {
        // What prepares the whole suite is a case, too, and says why nothing else ran.
        let failed = cases().find(|case| attribute(case, "status").is_some_and(|status| status != "passed"));
        return NotRun { message: failed.map_or("the suite did not run it".to_owned(), message) };
    };
    let seconds = attribute(case, "time").and_then(|time| time.parse().ok()).unwrap_or(f64::NAN);
    match attribute(case, "status").unwrap_or_default().as_str() {
        "passed" => Passed { seconds },
        "skipped" | "pending" => Skipped { message: message(case) },
        // Ended by a signal: that is no answer.
        "interrupted" => NotRun { message: "interrupted".to_owned() },
        _ => Failed { seconds, message: message(case) },
    }
}

use State::{Failed, NotRun, Passed, Skipped};

/// Of the failure, the error or the skip that the case holds.
fn message(case: &str) -> String {
    let case = case.split("</testcase>").next().unwrap_or_default();
    let element = ["<failure ", "<error ", "<skipped "].iter().find_map(|tag| case.split_once(tag));
    let text = element.and_then(|(_, element)| attribute(element, "message")).unwrap_or_default();
    text.trim().to_owned()
}

/// Of the element whose attributes the text begins with.
fn attribute(text: &str, name: &str) -> Option<String> {
    let tag = text.split('>').next()?;
    let (_, value) = tag.split_once(&format!("{name}=\""))?;
    Some(unescape(value.split('"').next()?))
}

/// What Go's encoding/xml escapes.
fn unescape(text: &str) -> String {
    const ENTITIES: [(&str, &str); 8] = [
        ("&#34;", "\""),
        ("&#39;", "'"),
        ("&#xA;", "\n"),
        ("&#x9;", "\t"),
        ("&#xD;", "\r"),
        ("&lt;", "<"),
        ("&gt;", ">"),
        // Last, for what it makes is no entity.
        ("&amp;", "&"),
    ];
    ENTITIES.iter().fold(text.to_owned(), |text, (entity, letter)| text.replace(entity, letter))
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Passed { seconds } => write!(f, "passed {seconds:.0} s"),
            Failed { seconds, .. } => write!(f, "FAILED {seconds:.0} s"),
            Skipped { .. } => write!(f, "SKIPPED"),
            NotRun { .. } => write!(f, "NOT RUN"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
  <testsuites tests="3"><testsuite name="Kubernetes e2e suite">
      <testcase name="[SynchronizedBeforeSuite]" classname="c" status="passed" time="0.1"></testcase>
      <testcase name="[sig-network] a &#34;b&#34; &gt; c" classname="c" status="passed" time="61.5"></testcase>
      <testcase name="d" classname="c" status="failed" time="7"><failure message="no &amp;lt; answer&#xA;within 5 s" type="failed">x</failure><system-err>e</system-err></testcase>
      <testcase name="e" classname="c" status="skipped" time="0"><skipped message="skipped - only on gce"></skipped></testcase>
      <testcase name="f" classname="c" status="interrupted" time="1"><error message="x" type="interrupted"></error></testcase>
      <testcase name="g" classname="c" status="timedout" time="9"><failure message="too long" type="timedout"></failure></testcase>
  </testsuite></testsuites>"#;

    #[test]
    fn states_of_a_report() {
        assert_eq!(state_of(REPORT, "[sig-network] a \"b\" > c"), Passed { seconds: 61.5 });
        assert_eq!(state_of(REPORT, "d"), Failed { seconds: 7.0, message: "no &lt; answer\nwithin 5 s".into() });
        assert_eq!(state_of(REPORT, "e"), Skipped { message: "skipped - only on gce".into() });
        assert_eq!(state_of(REPORT, "g"), Failed { seconds: 9.0, message: "too long".into() });
        assert!(matches!(state_of(REPORT, "f"), NotRun { .. }));
    }

    #[test]
    fn a_suite_that_could_not_be_prepared_has_run_nothing() {
        let report = r#"<testcase name="[SynchronizedBeforeSuite]" status="failed" time="1"><failure message="no nodes"></failure></testcase>"#;
        assert_eq!(state_of(report, "a"), NotRun { message: "no nodes".into() });
    }
}
