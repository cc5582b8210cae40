//! What a check found, and what that is worth.

/// How a check ended. The label is the reason in status and log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// `/readyz` says 200.
    Ready,
    /// 401 or 403: it serves, and whether it is ready is not known.
    Unauthorized,
    /// The handshake is complete; nothing else was asked.
    Handshake,
    /// It served another status.
    NotReady(u16),
    /// The handshake is complete, and `/readyz` says nothing in time: its etcd is gone or slow.
    Slow,
    /// The certificate is by the CA and for the name; by this node's clock it is expired or not valid yet, and the clock may be the one
    /// that is wrong.
    CertificateTime,
    /// The connection was refused, or cut.
    Refused,
    /// No answer in time.
    Silent,
    /// The certificate is not by the CA, or not for the name.
    Certificate,
    /// It speaks something else than TLS and HTTP.
    Protocol,
    /// The handshake is complete, and there is no CA file to verify the server with.
    CaMissing,
    /// The handshake is complete, and the CA file, certificate, key or token cannot be used.
    Credential,
}

impl Outcome {
    pub const fn answers(self) -> bool {
        matches!(self, Self::Ready | Self::Unauthorized | Self::Handshake)
    }

    /// It serves, and there is a doubt about it: it gets new flows while no other does.
    pub const fn serves_in_doubt(self) -> bool {
        matches!(self, Self::NotReady(_) | Self::Slow | Self::CertificateTime | Self::CaMissing | Self::Credential)
    }

    pub const fn label(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Unauthorized => "Unauthorized",
            Self::Handshake => "Handshake",
            Self::NotReady(_) => "NotReady",
            Self::Slow => "Slow",
            Self::CertificateTime => "CertificateTime",
            Self::Refused => "Refused",
            Self::Silent => "Silent",
            Self::Certificate => "Certificate",
            Self::Protocol => "Protocol",
            Self::CaMissing => "CaMissing",
            Self::Credential => "Credential",
        }
    }
}
