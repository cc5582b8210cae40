//! Whether speakers probe a new pod's TCP ports before it gets connections: an annotation of the Service.
//!
//! Pure. The speaker acts on it, the controller refuses a value that is none; so both read it here.

use crate::excerpt;

/// Where a connection of the speaker disturbs: `off`.
pub const ANNOTATION: &str = "sheave.dev/startup-probe";

/// A value that is none of those that are allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{ANNOTATION}: '{}' is unknown; allowed are 'on' (the default) and 'off'", excerpt(value))]
pub struct UnknownValue {
    pub value: String,
}

/// Whether new pods are probed; `annotation` is the value of [`ANNOTATION`].
pub fn is_on(annotation: Option<&str>) -> Result<bool, UnknownValue> {
    match annotation {
        None | Some("on") => Ok(true),
        Some("off") => Ok(false),
        Some(value) => Err(UnknownValue { value: value.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_and_off_and_nothing_else() {
        assert_eq!([None, Some("on"), Some("off")].map(is_on), [Ok(true), Ok(true), Ok(false)]);
        for value in ["", "false", "Off", " off", "no"] {
            let error = is_on(Some(value)).unwrap_err().to_string();
            assert_eq!(
                error,
                format!("sheave.dev/startup-probe: '{value}' is unknown; allowed are 'on' (the default) and 'off'")
            );
        }
    }
}
