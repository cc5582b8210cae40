use proptest::prelude::*;

use super::*;

fn key(name: impl ToString) -> ServiceKey {
    ServiceKey { namespace: "default".into(), name: name.to_string() }
}

fn ports(numbers: impl IntoIterator<Item = i32>) -> Vec<Port> {
    numbers.into_iter().map(|number| Port::new(number, None)).collect()
}

fn at(last: u8, numbers: impl IntoIterator<Item = i32>) -> Need {
    let address = Ipv4Addr::new(192, 0, 2, last);
    Need { places: ports(numbers).into_iter().map(|port| (address, port)).collect(), ranges: None }
}

fn with_ranges(last: u8, ranges: usize) -> Need {
    Need { ranges: Some(ranges), ..at(last, [80]) }
}

fn small() -> Places {
    Places::new(Room { service_ports: 10, lists: 2, ranges: 20 })
}

fn left_out(places: &Places, name: &str) -> Vec<i32> {
    places.left_out(&key(name)).iter().map(|port| port.number).collect()
}

fn message(refused: Option<Refused>) -> String {
    refused.map_or_else(String::new, |refused| {
        assert_eq!(refused.reason, Refusal::LimitReached);
        refused.message
    })
}

#[test]
fn the_limits_are_those_of_the_speakers_and_17_services_of_1000_ports_are_one_too_many() {
    let mut places = Places::default();
    for last in 1..=16 {
        assert_eq!(places.refusal(&key(last), &at(last, 1..=1000)), None, "{last}");
        places.set(&key(last), at(last, 1..=1000));
    }
    let said = message(places.refusal(&key(17), &at(17, 1..=1000)));
    assert_eq!(
        said,
        "its 1000 service ports (each port of each address is one) have no room beside those of other Services: the Services of a \
         cluster may have 16384"
    );
    // 384 fit, and not one more.
    assert_eq!(places.refusal(&key(17), &at(17, 1..=384)), None);
    assert!(places.refusal(&key(17), &at(17, 1..=385)).is_some());
    places.set(&key(17), at(17, 1..=384));
    assert!(places.refusal(&key(18), &at(18, [80])).is_some());
    assert!((1..=17).all(|last| places.remark(&key(last)).is_none()));
    // Another one gives its places back.
    assert!(places.set(&key(3), Need::default()).freed);
    assert_eq!(places.refusal(&key(18), &at(18, 1..=1000)), None);
}

/// It has them already, so the speakers have them before anybody can refuse: what was there stays, whatever its number and address.
#[test]
fn a_service_that_grows_beyond_the_limit_keeps_what_it_had_and_the_rest_is_named_on_it() {
    let mut places = small();
    places.set(&key("high"), at(9, 100..104));
    places.set(&key("low"), at(1, [50, 60, 70]));
    let changed = places.set(&key("low"), at(1, [10, 20, 30, 40, 50, 60, 70]));
    assert_eq!((left_out(&places, "low"), left_out(&places, "high")), (vec![40], vec![]), "10, 20 and 30 are lower");
    assert_eq!((changed.freed, changed.services), (false, [key("low")].into()));
    assert_eq!(
        message(places.remark(&key("low"))),
        "not served: port 40/TCP (the Services of a cluster may have 10 service ports, each port of each address being one)"
    );
    // Nothing flaps: the same need again changes nothing.
    assert_eq!(places.set(&key("low"), at(1, [10, 20, 30, 40, 50, 60, 70])), Changed::default());
    assert!(places.refusal(&key("new"), &at(2, [80])).is_some(), "what waits comes first");
    // What gives its place back serves those that wait for one.
    let changed = places.set(&key("high"), at(9, 100..103));
    assert_eq!((left_out(&places, "low"), changed.services), (vec![], [key("high"), key("low")].into()));
    assert!(places.remark(&key("low")).is_none() && places.refusal(&key("new"), &at(2, [80])).is_some());
}

#[test]
fn a_port_at_two_addresses_takes_two_places() {
    let mut places = small();
    let both = |numbers: std::ops::Range<i32>| Need {
        places: &at(1, numbers.clone()).places | &at(2, numbers).places,
        ranges: None,
    };
    assert!(places.refusal(&key("web"), &both(1..6)).is_none() && places.refusal(&key("web"), &both(1..7)).is_some());
    places.set(&key("web"), both(1..6));
    // It has half of that already.
    assert!(places.refusal(&key("web"), &both(1..6)).is_none());
    places.set(&key("web"), both(1..7));
    assert_eq!(left_out(&places, "web"), [6]);
}

#[test]
fn lists_of_source_ranges_and_ranges_have_limits_of_their_own() {
    let mut places = small();
    places.set(&key("a"), with_ranges(1, 5));
    assert_eq!(places.refusal(&key("b"), &with_ranges(2, 15)), None);
    assert_eq!(
        message(places.refusal(&key("b"), &with_ranges(2, 16))),
        "its 16 source ranges have no room beside those of other Services: the Services of a cluster may have 20"
    );
    // One that admits no client counts as well: it takes a slot.
    places.set(&key("b"), with_ranges(2, 0));
    let said = message(places.refusal(&key("c"), &with_ranges(3, 1)));
    assert_eq!(said, "it has source ranges, and 2 Services of the cluster have some, which is the most");
    assert_eq!(places.refusal(&key("c"), &at(3, [80])), None, "without ranges");

    // Those that have an address get their list later.
    places.set(&key("c"), at(3, [80]));
    places.set(&key("c"), with_ranges(3, 1));
    let said = message(places.remark(&key("c")));
    assert!(
        said.starts_with("no client outside the cluster is admitted") && said.contains("those of 2 Services"),
        "{said}"
    );
    let changed = places.set(&key("b"), at(2, [80]));
    assert_eq!((places.remark(&key("c")), changed.services), (None, [key("b"), key("c")].into()));
    places.set(&key("c"), with_ranges(3, 16));
    let said = message(places.remark(&key("c")));
    assert!(said.starts_with("source ranges that are new admit no client") && said.contains("20 together"), "{said}");
    assert_eq!(places.remark(&key("a")), None, "what was there stays");
    places.set(&key("a"), with_ranges(1, 4));
    assert_eq!(places.remark(&key("c")), None);
}

/// A speaker's map of service ports, as `forwarding::diff::Layout::wanted` of speaker-core fills it: what is in the map stays; what is new
/// gets in in order, as far as there is room beside all that is still in it.
#[derive(Default)]
struct Map(BTreeSet<Place>);

impl Map {
    fn follow(&mut self, table: &BTreeSet<Place>, limit: usize) {
        loop {
            let mut room = limit.saturating_sub(self.0.len());
            let mut want = BTreeSet::new();
            for place in table {
                if !self.0.contains(place) {
                    if room == 0 {
                        continue;
                    }
                    room -= 1;
                }
                want.insert(place.clone());
            }
            if want == self.0 {
                return;
            }
            self.0 = want;
        }
    }
}

fn need(last: u8, how: u8) -> Need {
    match how % 8 {
        0 => Need::default(),
        1 | 2 => with_ranges(last, usize::from(how / 8)),
        _ => at(last, (0..i32::from(how % 8)).map(|number| i32::from(how / 8) + number)),
    }
}

proptest! {
    /// Services of which all are granted, whatever becomes of them: what is left out is what the speakers leave out.
    #[test]
    fn what_has_no_place_is_what_a_speaker_leaves_out(steps in prop::collection::vec(any::<(u8, u8)>(), 1..80)) {
        let (mut places, mut map, mut needs) = (small(), Map::default(), BTreeMap::new());
        for (who, how) in steps {
            let who = who % 6;
            let before: Vec<Option<Refused>> = (0..6).map(|one| places.remark(&key(one))).collect();
            needs.insert(who, need(who, how));
            let changed = places.set(&key(who), need(who, how));
            map.follow(&needs.values().flat_map(|need| need.places.clone()).collect(), 10);
            for one in 0..6 {
                let wanted = needs.get(&one).map(|need| need.places.clone()).unwrap_or_default();
                let left_out: BTreeSet<Port> = wanted.iter().filter(|place| !map.0.contains(*place)).map(|(_, port)| port.clone()).collect();
                prop_assert_eq!(places.left_out(&key(one)), left_out);
                let same = places.remark(&key(one)) == before[usize::from(one)];
                prop_assert!(same || changed.services.contains(&key(one)), "a remark that nobody writes");
            }
            prop_assert!(places.taken <= 10 && places.lists.len() <= 2 && places.ranges <= 20);
            prop_assert_eq!(places.ranges, places.lists.values().sum::<usize>());
        }
    }

    /// Services get what they ask for only if it has room: nothing is left out, and what one has is not touched by another.
    #[test]
    fn nothing_is_left_out_of_services_that_do_not_grow(steps in prop::collection::vec(any::<(u8, u8)>(), 1..80)) {
        let mut places = small();
        for (who, how) in steps {
            let (who, wanted) = (key(who % 6), need(who % 6, how));
            // Gone, and made anew.
            places.set(&who, Need::default());
            if places.refusal(&who, &wanted).is_none() {
                places.set(&who, wanted.clone());
                prop_assert_eq!(places.refusal(&who, &wanted), None, "what it has it may have");
            }
            prop_assert!((0..6).all(|one| places.remark(&key(one)).is_none()));
        }
    }
}
