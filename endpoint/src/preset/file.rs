//! endpoint.yaml, as a person would write it.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::Plan;
use crate::{Check, Keys, Member, Port, Profile};

impl Plan {
    /// Texts are quoted: a member may be called `on`.
    pub fn file(&self, keys: &Keys) -> String {
        let distribution = self.preset.distribution();
        let mut text = format!(
            "# Written by `sheave endpoint init --preset {}`. It is the same on every member, with mode 0600:
# copy it to the next one, and run the same command there.
",
            self.preset.flag()
        );
        let addresses: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
        let mut line = |line: String| text.extend([line.as_str(), "\n"]);
        line(format!("addresses: [{}]", addresses.join(", ")));
        if let Some(interface) = &self.interface {
            line(format!("interface: {interface:?}"));
        }
        line("ports:".into());
        self.ports().iter().for_each(|one| line(port(one)));
        line("members:".into());
        self.members.iter().for_each(|one| line(member(one)));
        line("# What signs the speakers' datagrams.".into());
        line(format!("key: {}", STANDARD.encode(keys.current)));
        if let Some(previous) = keys.previous {
            line(format!("previousKey: {}", STANDARD.encode(previous)));
        }
        let profile = match self.profile {
            Profile::Fast => "fast",
            Profile::Steady => "steady",
        };
        line(format!("timing:\n  profile: {profile}"));
        let (certificate, key) = distribution.client;
        line(format!("# Where {} has them. They may be absent before the first API server.", distribution.name));
        line(format!("health:\n  caFile: {}\n  clientCert: {certificate}\n  clientKey: {key}", distribution.ca));
        text
    }
}

fn port(port: &Port) -> String {
    let mut text = format!("- listen: {}", port.listen);
    if port.target != port.listen {
        let _ = write!(text, "\n  target: {}", port.target);
    }
    if port.check == Check::Tls {
        text.push_str("\n  check: tls");
    }
    text
}

fn member(member: &Member) -> String {
    let speaker = if member.speaker { "" } else { "\n  speaker: false" };
    format!("- name: {:?}\n  address: {}{speaker}", member.name, member.address)
}
