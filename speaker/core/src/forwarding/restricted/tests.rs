//! Random lists of a few Services in maps with little room: no client is admitted that the Service does not admit, and slots stay.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::super::diff::{MapOp, diff};
use super::*;
use crate::view::Prefix;

const SERVICES: usize = 4;

fn name(number: usize) -> ObjectName {
    ObjectName::new("ns", format!("service-{number}"))
}

fn key(number: usize) -> ServiceKey {
    ServiceKey { addr: [192, 0, 2, 1], port: (number as u16).to_be_bytes(), proto: 6, pad: 0 }
}

/// Single clients of the ranges 10.0.0.<n>/32: what a Service admits is the numbers.
fn ranges(numbers: &[u8]) -> SourceRanges {
    let range = |n: &u8| Prefix { network: Ipv4Addr::new(10, 0, 0, *n), length: 32 };
    numbers.iter().map(range).collect::<Vec<_>>().into()
}

/// The ranges of each Service; `None`: it has none, and every client is admitted.
type Lists = [Option<Vec<u8>>; SERVICES];

fn table(lists: &Lists) -> BTreeMap<ObjectName, Restricted> {
    let of = |(number, list): (usize, &Option<Vec<u8>>)| {
        let restricted = Restricted { ranges: ranges(list.as_ref()?), ports: [key(number)].into() };
        Some((name(number), restricted))
    };
    lists.iter().enumerate().filter_map(of).collect()
}

fn want(slots: &mut RangeSlots, lists: &Lists, have: &MapState) -> (MapState, Vec<&'static str>) {
    let mut exhausted = vec![];
    let wanted = slots.want(&table(lists), have, &mut exhausted);
    let flags = |number| wanted.flags.get(&key(number)).copied().unwrap_or(0);
    let services = (0..SERVICES).map(|number| (key(number), ServiceValue { ring: 0, flags: flags(number) })).collect();
    let state = MapState { services, ranges: wanted.ranges, ..MapState::default() };
    (state, exhausted.iter().map(|error| error.what).collect())
}

fn admits(have: &MapState, number: usize, client: u8) -> bool {
    let Some(value) = have.services.get(&key(number)) else { return true };
    let slot = value.ranges_slot();
    value.flags & ServiceValue::SOURCE_RANGES == 0
        || have.ranges.contains(&Range { slot, network: [10, 0, 0, client], length: 32 })
}

fn lists() -> impl Strategy<Value = Lists> {
    let list = proptest::option::weighted(0.8, proptest::collection::vec(0..8u8, 0..5));
    [list.clone(), list.clone(), list.clone(), list]
}

proptest! {
    /// At every single write. A speaker that restarts in between goes on with the maps.
    #[test]
    fn no_client_is_admitted_that_neither_list_admits(
        steps in proptest::collection::vec((lists(), any::<bool>()), 1..12),
        services in 3..6u32,
        room in 4..16usize,
    ) {
        let mut slots = RangeSlots::limited(services, room);
        let (mut have, mut before) = (MapState::default(), Lists::default());
        for (lists, restart) in steps {
            if restart {
                slots = RangeSlots::limited(services, room);
            }
            let held = slots.slots.clone();
            let (wanted, exhausted) = want(&mut slots, &lists, &have);
            for (name, slot) in held.iter().filter(|(name, _)| slots.slots.contains_key(name)) {
                prop_assert_eq!(slots.slots[name], *slot, "a Service keeps its slot");
            }
            for op in diff(&have, &wanted) {
                have.apply(&op);
                prop_assert!(have.ranges.len() <= room, "{:?}", op);
                for (number, (list, earlier)) in lists.iter().zip(&before).enumerate() {
                    for client in 0..8 {
                        let may = |list: &Option<Vec<u8>>| list.as_ref().is_none_or(|list| list.contains(&client));
                        let may = may(list) || may(earlier);
                        prop_assert!(may || !admits(&have, number, client), "{} admits {} after {:?}", number, client, op);
                    }
                }
            }
            prop_assert_eq!(&have, &wanted);
            // While something is left out, writes go on until one changes nothing.
            let mut exhausted = exhausted;
            for more in 0.. {
                let (wanted, still) = want(&mut slots, &lists, &have);
                let ops = diff(&have, &wanted);
                if exhausted.is_empty() || ops.is_empty() {
                    break;
                }
                prop_assert!(more < 2, "no end of writes: {:?}", ops);
                (have, exhausted) = (wanted, still);
            }
            for (number, list) in lists.iter().enumerate() {
                for client in 0..8 {
                    let should = list.as_ref().is_none_or(|list| list.contains(&client));
                    let does = admits(&have, number, client);
                    prop_assert!(should || !does, "{} admits {}", number, client);
                    prop_assert!(does || !should || !exhausted.is_empty(), "{} denies {} and names no limit", number, client);
                }
            }
            before = lists;
        }
    }
}

/// Narrowing does not wait for rings, and a Service that is no longer restricted never denies for a moment.
#[test]
fn a_narrowed_list_is_in_force_before_other_writes_and_a_removed_one_after() {
    let mut slots = RangeSlots::default();
    let lists = [Some(vec![1, 2]), Some(vec![1]), None, None];
    let (have, _) = want(&mut slots, &lists, &MapState::default());
    let (next, _) = want(&mut slots, &[Some(vec![1]), None, None, None], &have);
    let ops = diff(&have, &next);
    assert_eq!(format!("{:?}", ops[0]), "DelRange(1, 10.0.0.2/32)");
    assert!(matches!(ops[1], MapOp::SetService { .. }));
    assert_eq!(format!("{:?}", ops[2..].to_vec()), "[DelRange(2, 10.0.0.1/32)]");
}

#[test]
fn limits_are_named_and_deny() {
    let mut slots = RangeSlots::limited(3, 3);
    let lists = [Some(vec![1, 2]), Some(vec![1, 2]), Some(vec![1]), None];
    let (have, exhausted) = want(&mut slots, &lists, &MapState::default());
    assert_eq!(exhausted, ["restricted_service", "source_range"]);
    assert_eq!([0, 1, 2, 3].map(|number| admits(&have, number, 1)), [true, false, false, true]);
    assert_eq!(slots.beyond(), &[name(2)].into());
    // Their packets are counted as denied, together.
    assert_eq!(slots.names()[&NO_CLIENT], ObjectName::new("", "others"));
    // Room comes when another Service needs less.
    let (have, exhausted) = want(&mut slots, &[Some(vec![1]), Some(vec![1, 2]), None, None], &have);
    assert_eq!(exhausted, ["source_range"], "what goes is still in the map");
    let (have, exhausted) = want(&mut slots, &[Some(vec![1]), Some(vec![1, 2]), None, None], &have);
    assert!(exhausted.is_empty() && admits(&have, 1, 2));
    assert!(slots.beyond().is_empty() && !slots.names().contains_key(&NO_CLIENT));
}

/// What the caller does: it writes again while something was left out and the last write changed something.
#[test]
fn a_list_that_replaces_another_in_full_maps_follows_with_the_second_write() {
    let mut slots = RangeSlots::limited(3, 4);
    let (have, exhausted) = want(&mut slots, &[Some(vec![1, 2]), Some(vec![3, 4]), None, None], &MapState::default());
    assert_eq!(exhausted, [""; 0]);
    let replaced = [Some(vec![1, 2]), Some(vec![5, 6]), None, None];
    let (next, exhausted) = want(&mut slots, &replaced, &have);
    assert_eq!((exhausted, admits(&next, 1, 5)), (vec!["source_range"], false));
    assert!(!diff(&have, &next).is_empty());
    let (last, exhausted) = want(&mut slots, &replaced, &next);
    assert!(exhausted.is_empty() && admits(&last, 1, 5) && admits(&last, 1, 6));
}
