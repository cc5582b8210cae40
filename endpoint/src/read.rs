//! YAML into values: each refusal knows the field it is about. A field that is not known is refused, with the one that was meant.

mod bounded;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ipnet::Ipv4Net;
use serde_yaml::Value;

use crate::limits;
use crate::refusal::{Refusal, Refusals, shorten};

/// The document. Deep nesting is refused by the YAML reader, what aliases would make too large and duplicate fields by `bounded`.
pub fn document(text: &str) -> Result<Value, Refusal> {
    if text.len() > limits::FILE {
        return Err(Refusal::new(
            "the file",
            format!("{} bytes", text.len()),
            format!("at most {} bytes", limits::FILE),
        ));
    }
    bounded::value(text).map_err(|error| {
        // It names what it found, as it found it.
        let error = error.to_string().replace(char::is_control, " ");
        Refusal::new("the file", format!("its text ({error})"), "one YAML document")
    })
}

/// A value and where it stands.
#[derive(Clone)]
pub struct At<'a> {
    pub path: String,
    pub value: &'a Value,
}

/// A mapping whose fields are all known.
pub struct Fields<'a> {
    path: String,
    fields: BTreeMap<&'a str, &'a Value>,
}

impl<'a> Fields<'a> {
    pub fn get(&self, name: &str) -> Option<At<'a>> {
        let value = self.fields.get(name).filter(|value| !value.is_null())?;
        Some(At { path: self.field(name), value })
    }

    /// The same; a missing one is refused.
    pub fn require(&self, name: &str, allowed: &str, refusals: &mut Refusals) -> Option<At<'a>> {
        let found = self.get(name);
        if found.is_none() {
            refusals.add(Refusal::missing(self.field(name), allowed));
        }
        found
    }

    pub fn field(&self, name: &str) -> String {
        if self.path.is_empty() { name.into() } else { format!("{}.{name}", self.path) }
    }
}

impl<'a> At<'a> {
    fn refuse<T>(&self, allowed: impl Into<String>, refusals: &mut Refusals) -> Option<T> {
        refusals.add(Refusal::new(self.shown_path(), shown(self.value), allowed));
        None
    }

    fn shown_path(&self) -> String {
        if self.path.is_empty() { "the file".into() } else { self.path.clone() }
    }

    pub fn fields(&self, known: &[&str], refusals: &mut Refusals) -> Option<Fields<'a>> {
        let Some(mapping) = self.value.as_mapping() else {
            return self.refuse(format!("a mapping with the fields {}", known.join(", ")), refusals);
        };
        let mut fields = Fields { path: self.path.clone(), fields: BTreeMap::new() };
        for (name, value) in mapping {
            match name.as_str() {
                Some(name) if known.contains(&name) => drop(fields.fields.insert(name, value)),
                Some(name) => refusals.add(unknown(&fields.field(&printable(name)), name, known)),
                None => refusals.add(Refusal::new(self.shown_path(), shown(name), "the name of a field is a text")),
            }
        }
        Some(fields)
    }

    pub fn list(&self, most: usize, of: &str, refusals: &mut Refusals) -> Option<Vec<At<'a>>> {
        let Some(list) = self.value.as_sequence() else { return self.refuse(format!("a list of {of}"), refusals) };
        if list.is_empty() || list.len() > most {
            let count = format!("a list of {}", list.len());
            refusals.add(Refusal::new(self.path.clone(), count, format!("1 to {most} {of}")));
            return None;
        }
        let at = |(index, value)| At { path: format!("{}[{index}]", self.path), value };
        Some(list.iter().enumerate().map(at).collect())
    }

    pub fn text(&self, allowed: &str, refusals: &mut Refusals) -> Option<&'a str> {
        match self.value.as_str() {
            Some(text) if !text.is_empty() => Some(text),
            _ => self.refuse(allowed, refusals),
        }
    }

    pub fn flag(&self, refusals: &mut Refusals) -> Option<bool> {
        self.value.as_bool().or_else(|| self.refuse("true or false", refusals))
    }

    pub fn port(&self, refusals: &mut Refusals) -> Option<u16> {
        let port = self.value.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
        port.or_else(|| self.refuse("a port is 1 to 65535", refusals))
    }

    pub fn address(&self, refusals: &mut Refusals) -> Option<Ipv4Addr> {
        let text = self.value.as_str().unwrap_or_default();
        match text.parse() {
            Ok(address) => Some(address),
            Err(_) if text.parse::<std::net::Ipv6Addr>().is_ok() => {
                self.refuse("IPv6 is not served yet; an IPv4 address", refusals)
            }
            Err(_) => self.refuse("an IPv4 address such as 192.0.2.10", refusals),
        }
    }

    pub fn range(&self, refusals: &mut Refusals) -> Option<Ipv4Net> {
        let Ok(range) = self.value.as_str().unwrap_or_default().parse::<Ipv4Net>() else {
            return self.refuse("an IPv4 range such as 192.0.2.0/24", refusals);
        };
        if range.trunc() != range {
            return self.refuse(format!("bits beyond the prefix are set; {} has none", range.trunc()), refusals);
        }
        Some(range)
    }

    /// As `50ms` or `1s`.
    pub fn duration(&self, refusals: &mut Refusals) -> Option<Duration> {
        let text = self.value.as_str().unwrap_or_default();
        let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
        let number = number.parse::<u32>().ok();
        match (number, unit) {
            (Some(number), "ms") => Some(Duration::from_millis(number.into())),
            (Some(number), "s") => Some(Duration::from_secs(number.into())),
            _ => self.refuse("a time such as 50ms or 1s", refusals),
        }
    }

    /// Base64 of 32 bytes. What is refused is not shown.
    pub fn key(&self, refusals: &mut Refusals) -> Option<[u8; 32]> {
        let decoded = self.value.as_str().map(|text| STANDARD.decode(text.trim()));
        let (value, key) = match decoded {
            Some(Ok(bytes)) => (format!("a key of {} bytes", bytes.len()), bytes.try_into().ok()),
            Some(Err(_)) => ("a text that is not base64".into(), None),
            None => ("a value that is no text".into(), None),
        };
        if key.is_none() {
            refusals.add(Refusal::new(self.path.clone(), value, KEY));
        }
        key
    }
}

fn unknown(path: &str, name: &str, known: &[&str]) -> Refusal {
    let nearest = known.iter().map(|field| (distance(name, field), *field)).min();
    let meant = nearest.filter(|(distance, field)| *distance <= 1 + field.len() / 3);
    let meant = meant.map(|(_, field)| format!("did you mean {field}? ")).unwrap_or_default();
    Refusal::new(path, "an unknown field", format!("{meant}The fields are {}", known.join(", ")))
}

/// A name that somebody wrote, as it may stand in a line of a log.
fn printable(name: &str) -> String {
    match name {
        "" => "\"\"".into(),
        name => shorten(name.escape_debug().to_string()),
    }
}

/// Edits between two names, without regard to case: insertions, deletions, changes.
fn distance(name: &str, field: &str) -> usize {
    let [name, field] = [name, field].map(|text| text.to_ascii_lowercase().chars().take(LONGEST).collect::<Vec<_>>());
    let mut row: Vec<usize> = (0..=field.len()).collect();
    for (i, a) in name.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in field.iter().enumerate() {
            let changed = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[field.len()]
}

/// As a person would write it.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "nothing".into(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => format!("{text:?}"),
        Value::Sequence(_) => "a list".into(),
        Value::Mapping(_) => "a mapping".into(),
        Value::Tagged(_) => "a tagged value".into(),
    }
}

pub const KEY: &str = "base64 of 32 bytes, as `head -c 32 /dev/urandom | base64` prints it";
/// No field is longer.
const LONGEST: usize = 32;
