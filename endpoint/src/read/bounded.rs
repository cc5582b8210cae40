//! A YAML value of bounded size. An alias stands for all that its anchor names: a list that is named ten thousand times in a short file
//! would take gigabytes. So values and bytes are counted while they are made, aliases included.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, Visitor};
use serde_yaml::{Mapping, Value};

use crate::limits;

pub fn value(text: &str) -> Result<Value, serde_yaml::Error> {
    let left = Left { values: Cell::new(limits::VALUES), bytes: Cell::new(limits::FILE) };
    Bounded(&left).deserialize(serde_yaml::Deserializer::from_str(text))
}

/// What may still be made.
struct Left {
    values: Cell<usize>,
    bytes: Cell<usize>,
}

#[derive(Clone, Copy)]
struct Bounded<'a>(&'a Left);

impl Bounded<'_> {
    fn take<E: Error>(self, of: &Cell<usize>, count: usize) -> Result<(), E> {
        let Some(left) = of.get().checked_sub(count) else {
            return Err(E::custom(format_args!(
                "more than {} values or {} bytes, aliases included",
                limits::VALUES,
                limits::FILE
            )));
        };
        of.set(left);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.take(&self.0.values, 1)?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of YAML")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, flag: bool) -> Result<Value, E> {
        Ok(Value::Bool(flag))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        self.take(&self.0.bytes, text.len())?;
        Ok(Value::String(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(self)? {
            values.push(value);
        }
        Ok(Value::Sequence(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut mapping = Mapping::new();
        while let Some(name) = map.next_key_seed(self)? {
            if mapping.contains_key(&name) {
                return Err(A::Error::custom(format_args!("duplicate entry with key {}", super::shown(&name))));
            }
            mapping.insert(name, map.next_value_seed(self)?);
        }
        Ok(Value::Mapping(mapping))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<Value, A::Error> {
        Err(A::Error::custom("a tag, and no field has one"))
    }
}
