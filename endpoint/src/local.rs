//! What the endpoint's speaker serves on its own node: HTTP on a Unix socket that root alone can open.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where it is.
pub const SOCKET: &str = "/run/sheave/endpoint.sock";
/// GET: a `Status`.
pub const STATUS: &str = "/v1/endpoint/status";
/// GET with `run` and `after` of the last answer, and with `wait`, seconds: `Events`, as soon as there are any.
pub const EVENTS: &str = "/v1/endpoint/events";
/// PUT with a [`DrainRequest`]: the `Status` afterwards.
pub const DRAIN: &str = "/v1/endpoint/drain";
/// The longest wait for events, in seconds.
pub const MAX_WAIT: u64 = 5;

/// Begins a drain, or ends it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DrainRequest {
    /// The member's name.
    pub member: String,
    pub drained: bool,
    /// Also the last member, and also where no other answers.
    #[serde(default)]
    pub force: bool,
}

/// `run=1&after=2&wait=3`; what is not there is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventsQuery {
    pub run: u64,
    pub after: u64,
    pub wait: u64,
}

impl fmt::Display for EventsQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { run, after, wait } = self;
        write!(f, "run={run}&after={after}&wait={wait}")
    }
}

impl FromStr for EventsQuery {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut query = Self::default();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let field = match name {
                "run" => &mut query.run,
                "after" => &mut query.after,
                "wait" => &mut query.wait,
                _ => return Err(format!("the query: {name:?} is unknown; run, after and wait are allowed")),
            };
            *field =
                value.parse().map_err(|_| format!("{name}: {value:?}; a number from 0 to {} is allowed", u64::MAX))?;
        }
        Ok(query)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_three_numbers() {
        let query = EventsQuery { run: 1, after: u64::MAX, wait: 5 };
        assert_eq!(query.to_string().parse(), Ok(query));
        assert_eq!("".parse(), Ok(EventsQuery::default()));
        assert_eq!("after=7".parse(), Ok(EventsQuery { after: 7, ..EventsQuery::default() }));
        for (text, words) in [
            ("after=x", "after: \"x\""),
            ("wait", "wait: \"\""),
            ("until=1", "\"until\" is unknown"),
            ("run=-1", "run:"),
        ] {
            let error = text.parse::<EventsQuery>().unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
        let request: DrainRequest = serde_json::from_str(r#"{"member":"a","drained":true}"#).unwrap();
        assert_eq!(request, DrainRequest { member: "a".into(), drained: true, force: false });
        let unknown =
            serde_json::from_str::<DrainRequest>(r#"{"member":"a","drained":true,"forced":true}"#).unwrap_err();
        assert!(unknown.to_string().contains("unknown field `forced`"), "{unknown}");
    }
}
