//! Nodes that take no new flows: by their state, or by the exclude label.

use super::*;

fn excluded(mut known: View, nodes: &[&str]) -> View {
    for name in nodes {
        let node = crate::view::Node { excluded: true, ..known.nodes()[*name].clone() };
        known.handle(Event::Apply(crate::view::Object::Node((*name).into(), node)));
    }
    known
}

#[test]
fn nodes_that_take_no_new_flows_are_not_asked_for_clients() {
    let known = view([ready("a", 1), ready("b", 1), ready("c", 1)]);
    let closed = |known: &View, traffic_states: &TrafficStates| {
        planner(KEY).table(known, traffic_states, &Reports::new(), NOW).existing_only
    };
    assert!(closed(&known, &TrafficStates::default()).is_empty());
    let silent = TrafficStates { existing_only: ["b".into()].into(), ..TrafficStates::default() };
    assert_eq!(closed(&known, &silent), ["b".into()].into());
    assert_eq!(closed(&excluded(known, &["c"]), &silent), ["b".into()].into(), "the label is another matter");
}

/// Nodes with the exclude label: (they have it, the service lets them take new flows).
fn label(known: &View) -> (Vec<String>, bool) {
    let table = planner(KEY).table(known, &TrafficStates::default(), &Reports::new(), NOW);
    (table.excluded.iter().cloned().collect(), table.services[&web_port()].excluded_take)
}

#[test]
fn excluded_nodes_are_asked_for_clients_where_the_label_is_ignored() {
    let known = view([ready("a", 1), ready("b", 1), ready("c", 1)]);
    assert_eq!(label(&known), (vec![], false));
    let one = excluded(known.clone(), &["c"]);
    assert_eq!(label(&one), (vec!["c".into()], false));
    let mut ignoring = one.clone();
    let advertisement = L2Advertisement { ignores_exclude_label: true, ..L2Advertisement::default() };
    ignoring.handle(Event::Apply(Object::L2Advertisement("x".into(), advertisement)));
    let vip = VirtualIp { advertisements: vec!["x".into()], ..ignoring.vips()[&VIP].clone() };
    ignoring.handle(Event::Apply(Object::VirtualIp(VIP, vip)));
    assert_eq!(label(&ignoring), (vec!["c".into()], true), "an L2Advertisement of the VIP says so");
    assert!(label(&excluded(known, &["a", "b", "c"])).1, "all have it");
    let elsewhere = excluded(view([ready("c", 1), pod("a", 1, UNREADY)]), &["c"]);
    assert!(label(&elsewhere).1, "no other node has a ready pod");
}

/// The label moves the rows of its node, and no others.
#[test]
fn excluded_nodes_have_no_rows_while_others_are_ready() {
    let rows = |known: &View| table(known, &none()).services[&web_port()].ring.clone();
    let known = view([ready("a", 1), ready("b", 1), ready("c", 1)]);
    let (before, after) = (rows(&known), rows(&excluded(known, &["c"])));
    assert!(before.rows.iter().zip(after.rows.iter()).all(|(old, new)| old == new || old == 2));
    assert!(after.rows.iter().all(|node| node != 2));
    // No other node is ready: the label is ignored.
    for others in [vec![ready("c", 1)], vec![ready("c", 1), pod("a", 1, UNREADY), pod("b", 1, TERMINATING)]] {
        assert!(rows(&excluded(view(others), &["c"])).primary(0) == Some("c"));
    }
    let all = view([ready("a", 1), ready("b", 1)]);
    assert_eq!(rows(&all), rows(&excluded(all.clone(), &["a", "b"])));
    // What is not ready on an excluded node is no member.
    let known = excluded(view([ready("a", 1), pod("c", 1, UNREADY)]), &["c"]);
    assert_eq!(rows(&known).members.iter().count(), 1);
}

/// An L2Advertisement of the VIP says so; of another VIP beside it none does.
#[test]
fn excluded_nodes_have_rows_of_a_vip_that_ignores_the_label() {
    let mut known = excluded(view([ready("a", 1), ready("b", 1), ready("c", 1)]), &["c"]);
    let other = Ipv4Addr::new(192, 0, 2, 2);
    known.handle(Event::Apply(vip(other, [web()])));
    let ignoring = L2Advertisement { ignores_exclude_label: true, ..L2Advertisement::default() };
    known.handle(Event::Apply(Object::L2Advertisement("x".into(), ignoring)));
    let named = VirtualIp { advertisements: vec!["x".into()], ..known.vips()[&VIP].clone() };
    known.handle(Event::Apply(Object::VirtualIp(VIP, named)));
    let table = table(&known, &none());
    let on_c = |vip: Ipv4Addr| {
        let ring = &table.services[&service_key(vip, 80, Protocol::Tcp)].ring;
        (0..ring.rows.len()).filter(|row| ring.primary(*row as u32) == Some("c")).count()
    };
    assert!(on_c(VIP) > 0 && on_c(other) == 0);
}

#[test]
fn excluded_nodes_serve_when_the_others_are_lost() {
    let known = excluded(view([ready("a", 1), ready("b", 1)]), &["b"]);
    assert_eq!(table(&known, &none()).services[&web_port()].ring.primary(0), Some("a"));
    assert_eq!(table(&known, &names(["a"])).services[&web_port()].ring.primary(0), Some("b"));
}
