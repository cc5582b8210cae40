//! sessionAffinity of a Service, and how long a client's record lasts.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// sessionAffinity of a Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Affinity {
    #[default]
    None,
    /// All connections of a client address, to whichever port, go to one pod.
    ClientIp,
}

/// `timeoutSeconds`: for how long after its last new connection a client keeps its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct AffinityTimeout(u32);

/// The user's fault; the API server refuses it as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("sessionAffinityConfig.clientIP.timeoutSeconds {0}: 1 to {max} are allowed", max = AffinityTimeout::MAX)]
pub struct BadTimeout(i64);

impl AffinityTimeout {
    /// A day, Kubernetes' own limit (`MaxClientIPServiceAffinitySeconds`).
    pub const MAX: u32 = 86_400;
    /// Kubernetes' default: three hours.
    pub const DEFAULT: Self = Self(10_800);

    pub fn new(seconds: i64) -> Result<Self, BadTimeout> {
        let allowed = u32::try_from(seconds).ok().filter(|seconds| (1..=Self::MAX).contains(seconds));
        allowed.map(Self).ok_or(BadTimeout(seconds))
    }

    pub const fn seconds(self) -> u32 {
        self.0
    }

    pub fn is_default(&self) -> bool {
        *self == Self::DEFAULT
    }
}

impl Default for AffinityTimeout {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl TryFrom<u32> for AffinityTimeout {
    type Error = BadTimeout;

    fn try_from(seconds: u32) -> Result<Self, BadTimeout> {
        Self::new(seconds.into())
    }
}

impl From<AffinityTimeout> for u32 {
    fn from(timeout: AffinityTimeout) -> Self {
        timeout.0
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::super::ServiceAttributes;
    use super::*;

    #[test]
    fn a_timeout_is_a_second_to_a_day() {
        for seconds in [1, 10_800, 86_400] {
            assert_eq!(AffinityTimeout::new(seconds).map(|timeout| i64::from(timeout.seconds())), Ok(seconds));
        }
        for seconds in [0, -1, 86_401, i64::MAX] {
            let error = AffinityTimeout::new(seconds).unwrap_err();
            assert!(error.to_string().contains(&seconds.to_string()), "{error}");
        }
    }

    /// Speakers of versions without timeouts agree with those that have them, as long as no Service asks for another one.
    #[test]
    fn only_a_timeout_of_its_own_is_part_of_the_digest() {
        let of = |timeout| ServiceAttributes { affinity_timeout: timeout, ..Affinity::ClientIp.into() };
        let digest = |seconds| of(AffinityTimeout::new(seconds).unwrap()).digest();
        assert_eq!(digest(10_800).more, None);
        assert!(digest(60).more.is_some() && digest(60) != digest(61));
        let ranges = || Some(alloc::vec::Vec::new().into());
        let both = ServiceAttributes { source_ranges: ranges(), ..of(AffinityTimeout::new(60).unwrap()) };
        let earlier = ServiceAttributes { source_ranges: ranges(), ..of(AffinityTimeout::DEFAULT) };
        assert_eq!(earlier.digest().more, earlier.source_ranges.as_ref().map(super::super::SourceRanges::digest));
        assert!(both.digest() != earlier.digest() && both.digest() != digest(60));
    }
}
