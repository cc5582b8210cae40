//! Where a Service's address comes from: a pool, or the nodes, whose own addresses serve its ports. An annotation of the Service.

use crate::excerpt;

/// `node` for the addresses of nodes; else a pool grants one.
pub const ANNOTATION: &str = "sheave.dev/address-mode";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AddressMode {
    #[default]
    Pool,
    /// As klipper-lb (ServiceLB of k3s).
    Node,
}

/// A value that is none of those that are allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{ANNOTATION}: '{}' is unknown; allowed are 'pool' (the default) and 'node'", excerpt(value))]
pub struct UnknownValue {
    pub value: String,
}

/// `annotation`: the value of [`ANNOTATION`].
pub fn of(annotation: Option<&str>) -> Result<AddressMode, UnknownValue> {
    match annotation {
        None | Some("pool") => Ok(AddressMode::Pool),
        Some("node") => Ok(AddressMode::Node),
        Some(value) => Err(UnknownValue { value: value.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pool_and_node_and_nothing_else() {
        let modes = [None, Some("pool"), Some("node")].map(of);
        assert_eq!(modes, [AddressMode::Pool, AddressMode::Pool, AddressMode::Node].map(Ok));
        for value in ["", "Node", " node", "nodes"] {
            let error = of(Some(value)).unwrap_err().to_string();
            assert!(error.contains(&format!("'{value}'")) && error.contains("'node'"), "{error}");
        }
    }
}
