//! What was found: what is as it should be, and what speaks against the endpoint, each by one name (docs/troubleshooting.md).

use std::collections::BTreeSet;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Obstacle {
    /// A flag, or a flag together with this machine.
    NotAllowed,
    /// The file that is there is none of an endpoint.
    FileUnusable,
    /// The file that is there says something else.
    FileDiffers,
    /// A host has the address.
    VipAnswered,
    /// A VRRP router has it, whether it answers for it or not.
    VipAdvertised,
    /// Of the speaker's own ports, or of the API server's.
    PortTaken,
    /// The static pod would not start.
    ImageMissing,
    /// The unit would not start.
    ProgramMissing,
    /// Static pod and unit would both start one.
    SecondSpeaker,
    /// `--check`: a server's certificate does not name the address.
    SanMissing,
    /// `--check`: what should be there or answer does not.
    NotServed,
}

impl Obstacle {
    #[cfg(test)]
    pub const ALL: [Self; 11] = [
        Self::NotAllowed,
        Self::FileUnusable,
        Self::FileDiffers,
        Self::VipAnswered,
        Self::VipAdvertised,
        Self::PortTaken,
        Self::ImageMissing,
        Self::ProgramMissing,
        Self::SecondSpeaker,
        Self::SanMissing,
        Self::NotServed,
    ];
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    Fine(String),
    /// Worth knowing; it does not matter here.
    Note(String),
    Refused(Obstacle, String),
}

impl Finding {
    pub fn refused(obstacle: Obstacle, why: impl Into<String>) -> Self {
        Self::Refused(obstacle, why.into())
    }
}

#[derive(Default)]
pub struct Report(Vec<Finding>);

impl Report {
    pub fn add(&mut self, finding: Finding) {
        self.0.push(finding);
    }

    pub fn extend(&mut self, findings: Vec<Finding>) {
        self.0.extend(findings);
    }

    pub fn has_obstacles(&self) -> bool {
        !self.obstacles().is_empty()
    }

    fn obstacles(&self) -> BTreeSet<Obstacle> {
        let obstacle = |finding: &Finding| match finding {
            Finding::Refused(obstacle, _) => Some(*obstacle),
            Finding::Fine(_) | Finding::Note(_) => None,
        };
        self.0.iter().filter_map(obstacle).collect()
    }

    pub fn names(&self) -> String {
        self.obstacles().iter().map(|obstacle| format!("{obstacle:?}")).collect::<Vec<_>>().join(", ")
    }

    pub fn print(&self) {
        for finding in &self.0 {
            match finding {
                Finding::Fine(what) => println!("  ok    {what}"),
                Finding::Note(what) => println!("  note  {what}"),
                Finding::Refused(obstacle, why) => println!("  NO    {obstacle:?}: {why}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_explained() {
        let document = include_str!("../../../../docs/troubleshooting.md");
        for obstacle in Obstacle::ALL {
            assert!(document.contains(&format!("|`{obstacle:?}`|")), "{obstacle:?} is not in docs/troubleshooting.md");
        }
    }
}
