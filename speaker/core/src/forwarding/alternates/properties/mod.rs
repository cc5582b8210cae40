//! What the second chance promises, shown by random courses of a cluster.
//!
//! Read first: docs/decisions/0008. A node is made of the real parts, planner, reporter and exchange, fed with a view; packets walk by
//! `sheave_ebpf::second_chance`, the code that runs in the kernel. Clients open flows all the time, in eight rows only, so that several
//! nodes get flows of the same row; every quarter of a second each living flow sends a packet through every node that may own
//! its VIP. Files: `faults` (what happens) -> `node` (kernel and speaker) -> `world` (cluster, clients, packets) -> `sums`.

mod affinity;
mod faults;
mod many_flows;
mod node;
mod random;
mod sums;
mod world;

use alloc::vec::Vec;
use std::println;

use proptest::prelude::*;

use self::faults::{Kind, Op};
use self::random::Random;
use self::sums::Sums;
use self::world::World;
use crate::time::Duration;

/// How many courses a test plays: a few, or as many as `HISTORIES` says (`make bench-histories`).
fn courses(few: u64) -> u64 {
    std::env::var("HISTORIES").map_or(few, |count| count.parse().expect("HISTORIES: a number of histories"))
}

/// A cluster to which things happen, often before the last one is over, and a minute of peace.
fn course(seed: u64, kinds: &[Kind], steps: usize, count_losses: bool) -> Sums {
    let mut world = World::new(seed, 2 + seed as usize % 5, 1 + seed as usize % 3);
    world.count_losses = count_losses;
    for step in 0..steps {
        let kind = kinds[world.random.below(kinds.len())];
        world.cause(kind);
        // Some things happen together.
        if step % 3 != 0 {
            world.pass(Duration::from_millis(100 + 700 * (step as u64 % 17)));
        }
    }
    world.pass(Duration::from_secs(60));
    world.sums
}

/// One thing after the other (or these at the same time), each time long enough apart that the last one is over.
fn one_by_one(seed: u64, kinds: &[Kind], steps: usize) -> Sums {
    let mut world = World::new(seed, 3 + seed as usize % 4, 1 + seed as usize % 3);
    world.count_losses = true;
    for _ in 0..steps {
        kinds.iter().for_each(|kind| world.cause(*kind));
        world.pass(Duration::from_secs(90));
    }
    world.sums
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(courses(16) as u32) })]

    /// Whatever happened before: three seconds after the last event, with the same table on all nodes and speakers that run, every
    /// packet of a living flow reaches its node, if no more nodes than a row can name have flows of that row. (The world itself
    /// asserts it, and that a flow that has ended gets its reset.)
    #[test]
    fn when_all_is_calm_every_packet_arrives(seed in 0u64..1 << 40) {
        let sums = course(seed, &Kind::ALL, 12, false);
        prop_assert_eq!(sums.calm_unopened, 0);
        prop_assert!(sums.calm[4] == 0 && sums.refused[4] == 0, "at most three extra hops: {:?}", sums);
    }
}

/// One thing at a time loses nothing, not even while it happens: the ring before it is in every history. (A rolling update is many
/// things: more nodes than a row can name may get flows of it.)
#[test]
fn one_change_at_a_time_loses_nothing() {
    for kind in Kind::ALL {
        let mut all = Sums::default();
        (0..4).for_each(|seed| all.add(&one_by_one(seed, &[kind], 2)));
        assert_eq!(all.lost() - all.overflow, 0, "{kind:?}: {all:?}");
        assert!(all.overflow == 0 || kind == Kind::Rolled, "{kind:?}: {all:?}");
        println!("{kind:?}: {all:?}");
    }
}

/// A switch that converges, a virtual machine that moves: no node refuses the packets of a node that is away for two seconds, and its flows
/// are there when it is back. After the window (`--return-window-ms`) they are refused.
#[test]
fn flows_of_a_node_that_is_away_for_two_seconds_live() {
    let mut all = Sums::default();
    for seed in 0..courses(8) {
        let nodes = 3 + seed as usize % 4;
        let mut world = World::new(seed, nodes, 1 + seed as usize % 2);
        world.pass(Duration::from_secs(15));
        for node in 0..nodes {
            world.happen(Op::Cut(node, true));
            world.pass(Duration::from_secs(2));
            world.happen(Op::Cut(node, false));
            world.pass(Duration::from_secs(20));
        }
        assert_eq!(world.sums.cut_refused, 0, "seed {seed}: {:?}", world.sums);
        all.add(&world.sums);
        let last = world.sums.unanswered;
        world.happen(Op::Cut(0, true));
        world.pass(Duration::from_secs(8));
        assert!(world.sums.cut_refused > 0 || world.sums.unanswered == last, "seed {seed}: {:?}", world.sums);
    }
    println!("{all:?}");
    assert!(all.unanswered > 1000 && all.lost() - all.overflow == 0, "{all:?}");
}

/// Nearly every row has flows of one node, as it is where there are more rows than flows; but a dozen rings in as many seconds, and no two nodes
/// have the same: previous primaries fill each row, and each node has others in it. A search must not visit a node twice. Not one packet in a
/// million is lost, apart from packets through a node that lags itself (its row has no alternate).
#[test]
fn pods_that_come_up_one_by_one_cost_hardly_a_packet() {
    let mut all = Sums::default();
    for seed in 0..courses(4) {
        let mut world = World::new(seed, 4 + seed as usize % 3, 1 + seed as usize % 2);
        world.count_losses = true;
        world.fill_pool(300);
        for _ in 0..2 {
            world.cause(Kind::Trickled);
            world.pass(Duration::from_secs(60));
        }
        all.add(&world.sums);
    }
    assert!(all.busy[3] > 0, "no search went so far: {all:?}");
    let packets: u64 = all.calm.iter().chain(&all.busy).sum();
    assert!(all.lost() * 1_000_000 < packets, "{} of {packets} lost: {all:?}", all.lost());
}

/// Pods that are ready up to 8 s before they listen, or never listen: none of them gets a new flow while another pod listens, whatever
/// else happened three seconds ago. (A speaker that starts takes the pods that it finds as they are.)
#[test]
fn a_pod_that_does_not_listen_gets_no_new_flow_while_another_does() {
    let mut all = Sums::default();
    let restarts = [Kind::NodeLost, Kind::SpeakerRestarted, Kind::AllRestarted, Kind::SpeakerDead];
    let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| !restarts.contains(kind)).collect();
    for seed in 0..courses(16) {
        let mut world = World::new(seed, 2 + seed as usize % 5, 1 + seed as usize % 3);
        (world.count_losses, world.slow_starts) = (true, Some(Random(seed)));
        for step in 0..12 {
            let kind = kinds[world.random.below(kinds.len())];
            world.cause(kind);
            if step % 3 != 0 {
                world.pass(Duration::from_millis(100 + 1400 * (step % 17)));
            }
        }
        world.pass(Duration::from_secs(30));
        all.add(&world.sums);
    }
    println!("{all:?}");
    assert_eq!((all.calm_lost, all.calm_unopened), (0, 0), "{all:?}");
    assert!(all.refused_starts * 10_000 < all.opened, "{all:?}");
}

/// What is not promised, measured (`--nocapture`): packets sent while several things happen at once, more nodes with flows of a row
/// than it can name, nodes without a speaker. The figures of bench/README.md, Random histories, come from here.
#[test]
fn what_is_not_promised() {
    let courses = courses(10);
    let mut all = Sums::default();
    (0..courses).for_each(|seed| all.add(&course(seed, &Kind::ALL, 12, true)));
    println!("anything: {all:?}");
    for kind in Kind::ALL {
        let mut all = Sums::default();
        (0..courses / 10).for_each(|seed| all.add(&one_by_one(seed, &[Kind::LateView, kind], 3)));
        println!("LateView and {kind:?}: {all:?}");
    }
    assert_eq!((all.calm_lost, all.calm_unopened), (0, 0), "{all:?}");
    assert!(all.busy_lost * 100 < all.busy.iter().sum::<u64>(), "{all:?}");
}
