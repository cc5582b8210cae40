//! Pure: a condition of an AddressPool or an L2Advertisement, and whether its status says so already.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

/// A condition without its times.
pub struct Finding<'a> {
    pub type_: &'static str,
    pub status: bool,
    pub reason: &'static str,
    pub message: &'a str,
}

impl Finding<'_> {
    fn text(&self) -> &'static str {
        if self.status { "True" } else { "False" }
    }

    /// Whether these conditions have it, for this generation of the object.
    pub fn is_written(&self, known: &[Condition], generation: i64) -> bool {
        known.iter().any(|c| {
            c.type_ == self.type_
                && c.status == self.text()
                && c.reason == self.reason
                && c.message == self.message
                && c.observed_generation == Some(generation)
        })
    }

    /// As it is to be written in the stead of these.
    pub fn condition(&self, known: &[Condition], generation: i64, now: Timestamp) -> Value {
        let same = known.iter().find(|c| c.type_ == self.type_ && c.status == self.text());
        let since = same.map_or(now, |c| c.last_transition_time.0);
        json!({
            "type": self.type_,
            "status": self.text(),
            "reason": self.reason,
            "message": self.message,
            "observedGeneration": generation,
            "lastTransitionTime": since.strftime("%FT%TZ").to_string(),
        })
    }
}
