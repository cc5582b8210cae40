//! What a person gets for a file that is not right: field, value, what is allowed.

use std::fmt;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub field: String,
    /// As it stands in the file, never a secret; `None`: it is missing.
    pub value: Option<String>,
    pub allowed: String,
}

impl Refusal {
    pub fn new(field: impl Into<String>, value: impl Into<String>, allowed: impl Into<String>) -> Self {
        Self { field: field.into(), value: Some(shorten(value.into())), allowed: allowed.into() }
    }

    pub fn missing(field: impl Into<String>, allowed: impl Into<String>) -> Self {
        Self { field: field.into(), value: None, allowed: allowed.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{}: {value} is refused: {}", self.field, self.allowed),
            None => write!(f, "{} is missing: {}", self.field, self.allowed),
        }
    }
}

/// All that is wrong with a file, in the order of its fields. Never empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusals(pub Vec<Refusal>);

impl Refusals {
    pub(crate) fn add(&mut self, refusal: Refusal) {
        if self.0.len() < MOST {
            self.0.push(refusal);
        }
    }

    pub(crate) fn or<T>(self, value: T) -> Result<T, Self> {
        if self.0.is_empty() { Ok(value) } else { Err(self) }
    }
}

impl From<Refusal> for Refusals {
    fn from(refusal: Refusal) -> Self {
        Self(vec![refusal])
    }
}

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(Refusal::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for Refusals {}
impl std::error::Error for Refusal {}

/// A line of a terminal.
pub(crate) fn shorten(value: String) -> String {
    match value.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &value[..end]),
        None => value,
    }
}

/// Characters of a value that are shown.
const SHOWN: usize = 80;
/// Refusals of one file.
const MOST: usize = 32;
