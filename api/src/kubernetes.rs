//! What an API server is able to: the oldest Kubernetes that Sheave is made for, compared with what it says of itself at `/version`, and
//! whether it serves a kind of objects at all. And the watches that all programs use ([`follow_all`], [`follow`]).

mod lists;

use std::time::Duration;

use kube::runtime::watcher;

pub use lists::{PAGE, Watched, does_not_stream, follow, follow_all};

/// Major and minor of the oldest Kubernetes that is served: ValidatingAdmissionPolicy, and tokens that name the node of a pod.
pub const FLOOR: (u32, u32) = (1, 31);

/// "Instructs cloud providers not to add this node to a load balancer" (Kubernetes, well-known labels); its value does not matter.
pub const EXCLUDE_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// What is wrong with the version of an API server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    #[error("KubernetesTooOld: the API server is Kubernetes {major}.{minor}; {}.{} or newer is needed", FLOOR.0, FLOOR.1)]
    TooOld { major: u32, minor: u32 },
    #[error("KubernetesUnknown: the API server says major '{major}', minor '{minor}'; numbers are allowed, {}.{} or newer", FLOOR.0, FLOOR.1)]
    Unknown { major: String, minor: String },
}

/// `major` and `minor` as `/version` has them; some providers write a minor of `31+`.
pub fn check(major: &str, minor: &str) -> Result<(), VersionError> {
    let number = |text: &str| text.trim_end_matches('+').parse::<u32>().ok();
    let unknown = || VersionError::Unknown { major: major.to_string(), minor: minor.to_string() };
    let (found_major, found_minor) = number(major).zip(number(minor)).ok_or_else(unknown)?;
    if (found_major, found_minor) < FLOOR {
        return Err(VersionError::TooOld { major: found_major, minor: found_minor });
    }
    Ok(())
}

/// The pause that an overloaded API server asks for: with status 429 or 503, in the header `Retry-After`.
pub fn retry_after(status: u16, header: Option<&str>) -> Option<Duration> {
    let seconds: u64 = header.filter(|_| [429, 503].contains(&status))?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_PAUSE))
}

/// The most that a header can ask for; API servers ask for 32 s at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The API server knows no resource of this kind.
pub fn is_not_served(error: &watcher::Error) -> bool {
    let (watcher::Error::InitialListFailed(cause) | watcher::Error::WatchStartFailed(cause)) = error else {
        return false;
    };
    matches!(cause, kube::Error::Api(status) if status.code == 404)
}

/// The caller lacks the right to list or watch this kind.
pub fn is_forbidden(error: &watcher::Error) -> bool {
    use watcher::Error::{InitialListFailed, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(cause) | WatchStartFailed(cause) | WatchFailed(cause) => {
            matches!(cause, kube::Error::Api(status) if status.code == 403)
        }
        watcher::Error::WatchError(status) => status.code == 403,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_what_the_header_says_within_bounds() {
        let asked = |status, header| retry_after(status, Some(header)).map(|pause| pause.as_secs());
        assert_eq!((asked(429, "3"), asked(503, "1"), asked(429, "99999999999")), (Some(3), Some(1), Some(60)));
        assert_eq!((asked(429, "Sat, 28 Nov 2026 16:00:00 GMT"), asked(429, "-1"), asked(429, "")), (None, None, None));
        assert_eq!(asked(500, "1"), None, "no sign of too much to do");
        assert_eq!(retry_after(429, None), None);
    }

    #[test]
    fn older_versions_and_texts_that_are_no_version_are_named() {
        assert_eq!(
            (check("1", "31"), check("1", "36"), check("1", "31+"), check("2", "0")),
            (Ok(()), Ok(()), Ok(()), Ok(()))
        );
        let old = check("1", "30").unwrap_err().to_string();
        assert_eq!(old, "KubernetesTooOld: the API server is Kubernetes 1.30; 1.31 or newer is needed");
        assert_eq!(check("0", "99"), Err(VersionError::TooOld { major: 0, minor: 99 }));
        for (major, minor) in [("", ""), ("1", "x"), ("1", "-31")] {
            assert!(check(major, minor).unwrap_err().to_string().starts_with("KubernetesUnknown"), "{major} {minor}");
        }
    }
}
