//! One node's dataplane without its sockets: what `speaker/src/dataplane/sync.rs` does with a view, step by step and timed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::{Duration as StdDuration, Instant as Clock};

use anyhow::{Context as _, Result};
use sheave_admin::memory;
use speaker_core::backend::{Plan, RemovalGrace, Uplink, ruleset};
use speaker_core::forwarding::diff::{Layout, MapOp, MapState, diff};
use speaker_core::forwarding::previous::{PreviousRings, SavedRings};
use speaker_core::forwarding::{Planner, Table, TrafficStates};
use speaker_core::reports::{Report, Reported, Reports};
use speaker_core::time::{Duration, Instant};
use speaker_core::view::View;
use speaker_core::view::endpoints::frontends;

use crate::dataplane::loader::Pins;
use crate::dataplane::maps::ForwardingMaps;
use crate::nft::Nft;
use crate::{cpu_time, world};

/// As in sync.rs.
const LARGE: usize = 256;
/// This node.
pub const OWN: usize = 0;
const HASH_KEY: [u64; 2] = [0x0123_4567_89ab_cdef, 0x1122_3344_5566_7788];
const WINDOW: Duration = Duration::from_secs(3600);
const BOOT: &str = "bench";

pub struct Node {
    maps: ForwardingMaps,
    planner: Planner,
    layout: Layout,
    pub have: MapState,
    removal_grace: RemovalGrace,
    plan: Option<Plan>,
    reports: Reports,
    now: Instant,
    pub traffic_states: TrafficStates,
    pub table: Table,
}

/// What one change cost, by step.
#[derive(Clone, Debug, Default)]
pub struct Pass {
    pub steps: Vec<(&'static str, StdDuration)>,
    pub ops: usize,
    pub rings: usize,
    /// nft's own run; no part of the steps.
    pub nft: StdDuration,
    /// Processor time of the steps.
    pub cpu: StdDuration,
}

impl Pass {
    pub fn step(name: &'static str, took: StdDuration, cpu: StdDuration) -> Self {
        Self { steps: vec![(name, took)], cpu, ..Self::default() }
    }

    /// This, and then another.
    pub fn and(mut self, next: Self) -> Self {
        self.steps.extend(next.steps);
        Self { steps: self.steps, cpu: self.cpu + next.cpu, ..next }
    }

    pub fn total(&self) -> StdDuration {
        self.steps.iter().map(|(_, took)| *took).sum()
    }

    pub fn describe(&self) -> String {
        let mut text = String::new();
        for (name, took) in &self.steps {
            let _ = write!(text, "{name} {:.1}, ", took.as_secs_f64() * 1000.0);
        }
        let _ = write!(text, "writes {}, rings {}", self.ops, self.rings);
        text
    }
}

impl Node {
    /// As a speaker that starts: from pinned maps, and the history that the one before it saved.
    pub fn start(pins: &Pins, saved: Option<&SavedRings>, now: Instant) -> Result<(Self, Pass)> {
        let (begun, cpu) = (Clock::now(), cpu_time());
        let maps = ForwardingMaps::open(pins)?;
        let have = maps.restore()?;
        let previous_rings = match saved {
            Some(saved) => PreviousRings::restore(saved, WINDOW, BOOT, now).context("the history")?,
            None => PreviousRings::new(WINDOW),
        };
        let mut planner = Planner::new(HASH_KEY, previous_rings);
        planner.was_away(&world::name(OWN));
        let node = Self {
            maps,
            planner,
            layout: Layout::restore(&have),
            have,
            removal_grace: RemovalGrace::default(),
            plan: None,
            reports: Reports::new(),
            now,
            traffic_states: TrafficStates::default(),
            table: Table::default(),
        };
        Ok((node, Pass::step("restore", begun.elapsed(), cpu_time() - cpu)))
    }

    pub fn wait(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    pub fn now(&self) -> Instant {
        self.now
    }

    /// Every node reports that it goes by the table that this one made last, and has no flow in rows that are not its own.
    pub fn all_agree(&mut self) {
        let report = Report { digest: self.table.digest, partial: false, services: BTreeMap::new() };
        let reported = Reported { report: report.into(), confirmed: self.now, ..Reported::default() };
        self.reports = (0..world::NODES).map(|node| (world::name(node), reported.clone())).collect();
    }

    pub fn save(&self) -> SavedRings {
        self.planner.previous_rings().save(BOOT, self.now)
    }

    /// What `State::converge` does. nft takes part if there is one.
    pub async fn pass(&mut self, view: &View, nft: Option<&Nft>) -> Result<Pass> {
        let mut pass = Pass::default();
        let cpu = cpu_time();
        let mut at = Clock::now();
        let mut step = |pass: &mut Pass, name: &'static str| {
            pass.steps.push((name, at.elapsed()));
            at = Clock::now();
        };
        let own = world::name(OWN);
        let frontends = frontends(view);
        step(&mut pass, "frontends");
        let table = self.planner.table_of(view, &frontends, &self.traffic_states, &self.reports, self.now);
        step(&mut pass, "table");
        let uplink = Uplink::new("eth0")?;
        let plan = self.removal_grace.complete(Plan::of(view, &frontends.0, &own, uplink), self.now);
        drop(frontends);
        let served: BTreeSet<_> = plan.services.keys().copied().collect();
        step(&mut pass, "plan");
        let macs = (0..world::NODES).map(|node| (world::name(node), world::mac(node))).collect();
        let (want, exhausted) = self.layout.want(&table, &self.have, &macs, &own, &served);
        for error in exhausted {
            println!("left out: {error}");
        }
        step(&mut pass, "layout");
        let others = table.nodes.values().filter(|address| **address != world::address(OWN));
        let peers = others.filter_map(|at| Some((self.layout.node_slot(*at)? as u16, *at))).collect();
        let plan = plan.with_peers(peers);
        let text = match &self.plan {
            Some(before) => ruleset::update(before, &plan),
            None => Some(ruleset::replace(&plan)),
        };
        step(&mut pass, "rules");
        if let (Some(nft), Some(text)) = (nft, &text) {
            nft.apply(text).await?;
        }
        let mut timed = Pass::default();
        step(&mut timed, "nft");
        pass.nft = timed.total();
        let ops = diff(&self.have, &want);
        step(&mut pass, "diff");
        self.maps.execute(&ops, |op| self.have.apply(op))?;
        step(&mut pass, "maps");
        pass.ops = ops.len();
        pass.rings = ops.iter().filter(|op| matches!(op, MapOp::SetRing { .. })).count();
        drop(ops);
        self.have = want;
        self.table = table;
        self.plan = Some(plan);
        if pass.ops >= LARGE {
            memory::give_back();
        }
        step(&mut pass, "memory");
        pass.cpu = cpu_time() - cpu;
        Ok(pass)
    }
}
