//! Parts of texts that others have written, for messages: an annotation may have 256 KiB, and an Event whose note exceeds its limit is
//! refused by the API server.

use std::borrow::Cow;

/// Of a value that a message quotes: its first characters, and an ellipsis if there are more.
pub fn excerpt(value: &str) -> Cow<'_, str> {
    match value.char_indices().nth(QUOTED) {
        Some((end, _)) => format!("{}{ELLIPSIS}", &value[..end]).into(),
        None => value.into(),
    }
}

/// The text in so many bytes at most, as the API server counts.
pub fn bounded(mut text: String, bytes: usize) -> String {
    if text.len() > bytes {
        text.truncate(text.floor_char_boundary(bytes.saturating_sub(ELLIPSIS.len())));
        text.push_str(ELLIPSIS);
    }
    text
}

/// Characters of a value: more than a name or an address range has.
const QUOTED: usize = 64;
const ELLIPSIS: &str = "…";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_value_ends_with_an_ellipsis_and_at_a_character() {
        for short in ["", "192.0.2.0/24", &"ä".repeat(64)] {
            assert_eq!(excerpt(short), short);
        }
        assert_eq!(excerpt(&"ä".repeat(65)), format!("{}…", "ä".repeat(64)));
        assert_eq!(excerpt(&"x".repeat(262_144)).chars().count(), 65);
    }

    #[test]
    fn a_text_is_bounded_in_bytes() {
        assert_eq!(bounded("ä".repeat(512), 1024), "ä".repeat(512));
        assert_eq!(bounded("ä".repeat(513), 1024), format!("{}…", "ä".repeat(510)));
        assert_eq!(bounded("x".repeat(5000), 1024).len(), 1024);
    }

    /// Whatever a Service's annotation says.
    #[test]
    fn what_a_service_says_is_quoted_in_part() {
        let long = "y".repeat(100_000);
        let errors = [
            crate::startup_probe::is_on(Some(&long)).unwrap_err().to_string(),
            crate::address_mode::of(Some(&long)).unwrap_err().to_string(),
            crate::source_ranges::of_service(&[], Some(&long)).unwrap_err().to_string(),
            crate::source_ranges::of_service(std::slice::from_ref(&long), None).unwrap_err().to_string(),
        ];
        for error in errors {
            assert!(error.len() < 300 && error.contains(&format!("'{}…'", "y".repeat(64))), "{error}");
        }
    }
}
