//! What goes wrong, and what is done on purpose.

use core::net::Ipv4Addr;

use super::node::Kernel;
use super::world::{TERMINATING, TURN, UNREADY, World};
use crate::time::Duration;
use crate::view::Conditions;

/// A change of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Its kernel, and back after 0.5 s to 75 s.
    NodeLost,
    SpeakerRestarted,
    AllRestarted,
    /// For up to 50 s.
    SpeakerDead,
    /// From all others, for up to 12 s.
    CutOff,
    /// Changes of the API server reach one node up to 25 s late.
    LateView,
    /// The reports of one node are lost for up to 12 s.
    ReportsLost,
    Excluded,
    Grown,
    Shrunk,
    Rolled,
    /// To more pods than a ring of the smaller size has, for up to 24 s.
    Surged,
    /// The same, one pod after the other, while changes reach now this node and now that one half a second late.
    Trickled,
    /// Those of all pods of a service, for up to 24 s.
    ProbesFail,
}

impl Kind {
    /// But [`Kind::Trickled`]: so many rings after each other are a test of their own.
    pub const ALL: [Self; 13] = [
        Self::NodeLost,
        Self::SpeakerRestarted,
        Self::AllRestarted,
        Self::SpeakerDead,
        Self::CutOff,
        Self::LateView,
        Self::ReportsLost,
        Self::Excluded,
        Self::Grown,
        Self::Shrunk,
        Self::Rolled,
        Self::Surged,
        Self::ProbesFail,
    ];
}

/// One step of it.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    KernelDies(usize),
    KernelReturns(usize),
    SpeakerDies(usize),
    SpeakerReturns(usize),
    Cut(usize, bool),
    Late(usize, bool),
    LoseReports(usize, bool),
    Exclude(usize, bool),
    Add(usize, usize),
    /// To so many pods, each on the node with the number of its turn.
    Scale(usize, usize),
    /// The nth pod begins to terminate, and is gone after some seconds.
    Terminate(usize, usize),
    Gone(usize, Ipv4Addr),
    Roll(usize),
    Unready(usize),
    Probes(usize, bool),
}

impl World {
    pub fn happen(&mut self, op: Op) {
        self.disturbed = self.now;
        match op {
            Op::KernelDies(node) => {
                let machine = &mut self.machines[node];
                (machine.kernel, machine.speaker) = (None, None);
                (machine.late, machine.reports_lost, machine.cut) = (false, false, false);
            }
            Op::KernelReturns(node) if self.machines[node].kernel.is_none() => {
                self.machines[node].kernel = Some(Kernel::default());
                self.set_conditions(node, Conditions::READY);
            }
            Op::Unready(node) if self.machines[node].kernel.is_none() => self.set_conditions(node, UNREADY),
            Op::SpeakerDies(node) => self.machines[node].speaker = None,
            Op::SpeakerReturns(node) => self.start_speaker(node),
            Op::Cut(node, cut) => self.machines[node].cut = cut,
            Op::Late(node, late) => self.machines[node].late = late,
            Op::LoseReports(node, reports_lost) => self.machines[node].reports_lost = reports_lost,
            Op::Exclude(node, excluded) => self.machines[node].excluded = excluded,
            Op::Add(service, pods) => (0..pods).for_each(|_| self.add_pod(service)),
            Op::Scale(service, pods) => {
                (self.services[service].len()..pods)
                    .for_each(|nth| self.add_pod_on(service, nth % self.machines.len()));
                (pods..self.services[service].len()).for_each(|_| self.terminate(service, 0));
            }
            Op::Terminate(service, nth) => self.terminate(service, nth),
            Op::Gone(service, address) => self.services[service].retain(|pod| pod.address != address),
            Op::Roll(service) => {
                for nth in 0..self.services[service].len() {
                    self.later(Duration::from_millis(1500 * nth as u64), Op::Add(service, 1));
                    self.later(Duration::from_millis(1500 * nth as u64 + 1000), Op::Terminate(service, 0));
                }
            }
            Op::Probes(service, succeed) => {
                for pod in self.services[service].iter_mut().filter(|pod| !pod.conditions.terminating) {
                    let ready = succeed && self.machines[pod.node].kernel.is_some();
                    pod.set_conditions(if ready { Conditions::READY } else { UNREADY }, self.now);
                }
            }
            Op::KernelReturns(_) | Op::Unready(_) => {}
        }
        self.publish();
    }

    fn set_conditions(&mut self, node: usize, conditions: Conditions) {
        for pod in self.services.iter_mut().flatten().filter(|pod| pod.node == node && !pod.conditions.terminating) {
            pod.set_conditions(conditions, self.now);
        }
    }

    /// The nth pod that is not terminating.
    fn terminate(&mut self, service: usize, nth: usize) {
        let seconds = 2 + self.random.below(20) as u64;
        let Some(pod) = self.services[service].iter_mut().filter(|pod| !pod.conditions.terminating).nth(nth) else {
            return;
        };
        pod.conditions = TERMINATING;
        let gone = Op::Gone(service, pod.address);
        self.later(Duration::from_secs(seconds), gone);
    }

    /// Something, and its end a while later.
    pub fn cause(&mut self, kind: Kind) {
        let (nodes, services) = (self.machines.len(), self.services.len());
        let (node, service) = (self.random.below(nodes), self.random.below(services));
        let moment = Duration::from_millis(500 + self.random.below(12_000) as u64);
        let pods = self.services[service].len();
        match kind {
            Kind::NodeLost => {
                let long = moment * (1 + 5 * u32::from(self.random.below(4) == 0));
                self.happen(Op::KernelDies(node));
                self.later(Duration::from_secs(40), Op::Unready(node));
                self.later(long, Op::KernelReturns(node));
                self.later(long + Duration::from_secs(2), Op::SpeakerReturns(node));
            }
            Kind::SpeakerRestarted => {
                self.for_a_while(Duration::from_secs(1), Op::SpeakerDies(node), Op::SpeakerReturns(node))
            }
            Kind::AllRestarted => (0..nodes).for_each(|node| {
                self.for_a_while(Duration::from_secs(1), Op::SpeakerDies(node), Op::SpeakerReturns(node));
            }),
            Kind::SpeakerDead => self.for_a_while(moment * 4, Op::SpeakerDies(node), Op::SpeakerReturns(node)),
            Kind::CutOff => self.for_a_while(moment, Op::Cut(node, true), Op::Cut(node, false)),
            Kind::LateView => self.for_a_while(moment * 2, Op::Late(node, true), Op::Late(node, false)),
            Kind::ReportsLost => self.for_a_while(moment, Op::LoseReports(node, true), Op::LoseReports(node, false)),
            Kind::Excluded => self.for_a_while(moment * 2, Op::Exclude(node, true), Op::Exclude(node, false)),
            Kind::Grown => {
                let more = 1 + self.random.below(8);
                self.happen(Op::Add(service, more));
            }
            Kind::Shrunk => (0..self.random.below(pods)).for_each(|_| self.happen(Op::Terminate(service, 0))),
            Kind::Rolled => self.happen(Op::Roll(service)),
            Kind::Surged => self.for_a_while(moment * 2, Op::Scale(service, 44), Op::Scale(service, pods)),
            Kind::Trickled => {
                for (turn, wanted) in (pods..=44).enumerate() {
                    let at = 2 * TURN * turn as u32;
                    let late = self.random.below(nodes);
                    self.later(at, Op::Scale(service, wanted));
                    self.later(at, Op::Late(late, true));
                    self.later(at + 2 * TURN, Op::Late(late, false));
                }
                self.later(2 * TURN * 44 + moment, Op::Scale(service, pods));
            }
            Kind::ProbesFail => self.for_a_while(moment * 2, Op::Probes(service, false), Op::Probes(service, true)),
        }
    }

    fn for_a_while(&mut self, time: Duration, begin: Op, end: Op) {
        self.happen(begin);
        self.later(time, end);
    }
}
