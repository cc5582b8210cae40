//! Ports of a Service, and what its status says about each.

use std::fmt;

/// A port of a Service, as clients use it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    pub number: i32,
    pub protocol: Protocol,
}

impl Port {
    /// A missing protocol is TCP, as the API server's own default.
    pub fn new(number: i32, protocol: Option<&str>) -> Self {
        Port { number, protocol: Protocol::from(protocol.unwrap_or("TCP")) }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.protocol.as_str())
    }
}

/// A transport protocol: those that are served, and any other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    Other(Box<str>),
}

impl Protocol {
    /// As Kubernetes writes it.
    pub fn as_str(&self) -> &str {
        match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Other(name) => name,
        }
    }
}

impl From<&str> for Protocol {
    fn from(name: &str) -> Self {
        match name {
            "TCP" => Protocol::Tcp,
            "UDP" => Protocol::Udp,
            other => Protocol::Other(other.into()),
        }
    }
}

/// One entry of `status.loadBalancer.ingress[].ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortStatus {
    pub port: Port,
    /// Why it is not served.
    pub error: Option<String>,
}
