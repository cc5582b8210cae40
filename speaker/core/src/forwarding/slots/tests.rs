use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use core::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::forwarding::diff::{Layout, MapOp, diff};
use crate::forwarding::{Service, Table};
use crate::view::ServiceAttributes;

const KEYS: usize = 8;
const RINGS: usize = 5;

/// One row each, of another node.
fn rings() -> Vec<Arc<Ring>> {
    let ring = |number: usize| Ring {
        nodes: vec![format!("n{number}")],
        rows: vec![0].into(),
        digest: number as u64,
        ..Ring::default()
    };
    (0..RINGS).map(|number| Arc::new(ring(number))).collect()
}

fn key(number: usize) -> ServiceKey {
    ServiceKey { addr: [192, 0, 2, 1], port: (number as u16).to_be_bytes(), proto: 6, pad: 0 }
}

/// The ring of each service port; `None`: there is no such service port.
type Choice = [Option<usize>; KEYS];

fn table(rings: &[Arc<Ring>], choice: &Choice) -> Table {
    let service = |(number, ring): (usize, &Option<usize>)| {
        let ring = rings[(*ring)?].clone();
        Some((
            key(number),
            Service {
                attributes: ServiceAttributes::default(),
                no_new_flows: false,
                excluded_take: false,
                ring,
                alternates: None,
            },
        ))
    };
    let node = |number: usize| (format!("n{number}"), Ipv4Addr::new(192, 0, 2, 100 + number as u8));
    let services = choice.iter().enumerate().filter_map(service).collect();
    Table { nodes: (0..RINGS).map(node).collect(), services, ..Table::default() }
}

/// What packets meet.
#[derive(Clone, Default)]
struct Kernel {
    rings: BTreeMap<u32, Vec<Row>>,
    services: BTreeMap<ServiceKey, u32>,
}

impl Kernel {
    fn rows(&self, key: &ServiceKey) -> Option<&Vec<Row>> {
        self.services.get(key).and_then(|slot| self.rings.get(slot))
    }

    fn apply(&mut self, op: &MapOp) {
        match op {
            MapOp::SetRing { slot, contents } => drop(self.rings.insert(*slot, contents.rows().collect())),
            MapOp::DelRing { slot } => drop(self.rings.remove(slot)),
            MapOp::SetService { key, value } => drop(self.services.insert(*key, value.ring)),
            MapOp::DelService { key } => drop(self.services.remove(key)),
            _ => {}
        }
    }
}

#[derive(Clone, Debug)]
struct Step {
    choice: Choice,
    /// The speaker starts anew before it.
    restart: bool,
    /// The kernel refuses this write.
    fails: Option<usize>,
}

fn step() -> impl Strategy<Value = Step> {
    let ring = prop::option::weighted(0.9, 0..RINGS);
    let choice = prop::collection::vec(ring, KEYS).prop_map(|choice| choice.try_into().unwrap());
    (choice, any::<bool>(), prop::option::weighted(0.2, 0..12usize)).prop_map(|(choice, restart, fails)| Step {
        choice,
        restart,
        fails,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever changes, is refused or starts anew: a service port has its old rows until it has its new ones, and in the end equal rings
    /// are one.
    #[test]
    fn a_service_port_never_has_rows_of_another(steps in prop::collection::vec(step(), 1..12)) {
        let rings = rings();
        let (mut layout, mut have, mut kernel) = (Layout::default(), MapState::default(), Kernel::default());
        for step in steps {
            if step.restart {
                have.rings = have.services.values().map(|value| (value.ring, Contents::UNKNOWN)).collect();
                layout = Layout::restore(&have);
                // What no service port names is a remnant of the speaker before this one.
                let known = |slot: &u32| have.rings.contains_key(slot);
                kernel.rings.retain(|slot, _| known(slot));
            }
            let table = table(&rings, &step.choice);
            let (want, exhausted) = layout.want(&table, &have, &BTreeMap::new(), "n0", &BTreeSet::new());
            prop_assert!(exhausted.is_empty());
            let before = kernel.clone();
            for op in diff(&have, &want).iter().take(step.fails.unwrap_or(usize::MAX)) {
                have.apply(op);
                kernel.apply(op);
                for (key, value) in &want.services {
                    let new: Vec<Row> = want.rings[&value.ring].rows().collect();
                    let now = kernel.rows(key);
                    prop_assert!(now == before.rows(key) || now == Some(&new), "{:?} after {:?}", key, op);
                }
            }
            if step.fails.is_none() {
                prop_assert_eq!(&have, &want);
                let different: BTreeSet<&Vec<Row>> = kernel.rings.values().collect();
                prop_assert_eq!(different.len(), kernel.rings.len());
                prop_assert!(kernel.services.values().all(|slot| kernel.rings.contains_key(slot)));
                prop_assert_eq!(kernel.services.len(), step.choice.iter().flatten().count());
            }
        }
    }
}

/// The slots and writes that lead from one choice to the next.
fn writes(from: &Choice, to: &Choice, restart: bool) -> (MapState, Vec<String>) {
    let rings = rings();
    let mut layout = Layout::default();
    let mut want =
        |have: &MapState, choice| layout.want(&table(&rings, choice), have, &BTreeMap::new(), "n0", &BTreeSet::new()).0;
    let mut have = want(&MapState::default(), from);
    if restart {
        have.rings.values_mut().for_each(|contents| *contents = Contents::UNKNOWN);
    }
    let state = want(&have, to);
    let ops = diff(&have, &state).iter().map(|op| format!("{op:?}")).collect();
    (state, ops)
}

#[test]
fn a_change_for_all_users_is_one_write_in_place() {
    let (from, to) = (
        [Some(0), Some(0), Some(1), None, None, None, None, None],
        [Some(2), Some(2), Some(1), None, None, None, None, None],
    );
    assert_eq!(writes(&from, &to, false).1, ["SetRing(0, 1 rows)"]);
    assert_eq!(writes(&from, &from, true).1, ["SetRing(0, 1 rows)", "SetRing(1, 1 rows)"], "a restart moves nothing");
}

#[test]
fn users_that_part_get_slots_of_their_own() {
    let from = [Some(0), Some(0), Some(1), None, None, None, None, None];
    // The second follows the third.
    let (state, ops) = writes(&from, &[Some(0), Some(1), Some(1), None, None, None, None, None], false);
    assert_eq!((state.rings.len(), ops), (2, vec!["SetService(192.0.2.1:1/6, ring 1)".into()]));
    // Neither stays.
    let (_, ops) = writes(&from, &[Some(2), Some(3), Some(1), None, None, None, None, None], false);
    let expected = [
        "SetRing(2, 1 rows)",
        "SetRing(3, 1 rows)",
        "SetService(192.0.2.1:0/6, ring 2)",
        "SetService(192.0.2.1:1/6, ring 3)",
        "DelRing(0)",
    ];
    assert_eq!(ops, expected);
}
