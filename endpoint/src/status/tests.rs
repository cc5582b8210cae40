use super::events::{Change, Event, Events, Ring};
use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_796_000_000 + second).unwrap()
}

fn server(member: &str, state: State, reason: &str) -> Server {
    Server {
        member: member.into(),
        state,
        reason: reason.into(),
        http_status: None,
        since: at(-300),
        check_millis: Some(4),
        connections: Some(17),
        total: Some(Total { connections: 170, bytes: 90_000, resets: 1 }),
        counted_here: Some(Total { connections: 70, bytes: 40_000, resets: 0 }),
        weight: Some(333),
        via: vec![],
    }
}

fn status() -> Status {
    let change = |second, owner: Option<&str>, reason: Option<&str>| OwnerChange {
        at: at(second),
        owner: owner.map(Into::into),
        reason: reason.map(Into::into),
    };
    let member = |name: &str, last: u8, drained| Member {
        name: name.into(),
        address: [192, 0, 2, last].into(),
        speaker: true,
        drained,
    };
    let failing = Server {
        http_status: Some(500),
        connections: None,
        total: None,
        counted_here: None,
        weight: Some(0),
        check_millis: None,
        via: vec!["a".into(), "b".into()],
        ..server("c", State::Failing, "NotReady")
    };
    Status {
        node: "a".into(),
        version: "0.1.0".into(),
        at: at(0),
        not_ready: vec![],
        notes: vec!["peers_unverified".into()],
        file: Some(File { taken: at(-600), refused: None }),
        addresses: vec![Address {
            address: [192, 0, 2, 100].into(),
            owner: Some("b".into()),
            term: Some(7),
            since: Some(at(-90)),
            reason: None,
            history: vec![
                change(-90, Some("b"), None),
                change(-91, None, Some("HandingOver")),
                change(-3600, Some("a"), None),
            ],
        }],
        members: vec![
            member("a", 11, None),
            member("b", 12, Some(Drained { since: at(-60), by_force: true })),
            member("c", 13, None),
        ],
        ports: vec![Port {
            listen: 8443,
            target: 6443,
            check: "https".into(),
            traffic: Some(Traffic { connections: 5, packets: 60, bytes: 7000, resets: 2 }),
            members: vec![server("a", State::Serving, "Ready"), server("b", State::Drained, "Unauthorized"), failing],
        }],
        counted_by: vec!["a".into(), "b".into()],
        not_counted_by: vec!["c".into()],
        peers: vec![
            Peer { node: "b".into(), alive: true, lost: 3, of: 64 },
            Peer { node: "c".into(), alive: false, lost: 0, of: 5 },
        ],
    }
}

/// Every element ends in order, and attributes are in quotes. Returns the elements' names.
fn elements(html: &str) -> Vec<String> {
    let (mut open, mut all) = (Vec::new(), Vec::new());
    let mut rest = html.strip_prefix("<!DOCTYPE html>").expect("a document type");
    while let Some(start) = rest.find('<') {
        assert!(!rest[..start].contains('>'), "a stray > before {}", &rest[start..]);
        let (tag, after) = rest[start + 1..].split_once('>').expect("a tag ends");
        rest = after;
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name), "{tag}");
            continue;
        }
        let (tag, is_void) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
        assert!(!tag.contains('<') && tag.matches('"').count() % 2 == 0, "{tag}");
        let name = tag.split(' ').next().unwrap().to_owned();
        all.push(name.clone());
        if !is_void {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "not ended: {open:?}");
    all
}

#[test]
fn the_page_is_well_formed_and_says_everything() {
    let html = page(&status());
    let elements = elements(&html);
    for name in ["html", "head", "title", "body", "table"] {
        assert!(elements.iter().any(|element| element == name), "{name}");
    }
    for words in [
        "<b>192.0.2.100</b> is owned by <b>b</b> for 90 s",
        "Port 8443 to 6443",
        ">Serving<",
        ">Drained<",
        ">Failing<",
        "NotReady 500",
        "via a, b, client address lost",
        ">4 ms<",
        ">17<",
        "data-column=\"Total\">170<",
        "data-column=\"Bytes in\">90000<",
        "data-column=\"Resets\">1<",
        "are of 2 of 3 nodes (without c)</p>",
        ">33.3 %<",
        "for 60 s, by force",
        "5 connections, 60 packets, 7000 bytes; 2 resets",
        "3 of the last 64",
        "HandingOver",
        "2026-11-30 00:53:20 UTC",
        "peers_unverified",
        "name=\"viewport\"",
    ] {
        assert!(html.contains(words), "{words} is not in {html}");
    }
    assert!(html.contains("class=\"good\">serving<"));
    let whole = Status { counted_by: vec!["a".into(), "b".into(), "c".into()], not_counted_by: vec![], ..status() };
    assert!(page(&whole).contains("of 3 of 3 nodes, each since") && !page(&whole).contains("without c"));
    let mut without_owner = status();
    (without_owner.addresses[0].owner, without_owner.addresses[0].reason) = (None, Some("NoCarrier".into()));
    assert!(page(&without_owner).contains("has no owner: NoCarrier") && page(&without_owner).contains(">degraded<"));
}

#[test]
fn the_page_has_no_script_and_refers_to_nothing_elsewhere() {
    let html = page(&status());
    let elements = elements(&html);
    for name in ["script", "link", "img", "iframe", "object", "embed", "base", "form", "input"] {
        assert!(!elements.iter().any(|element| element == name), "{name}");
    }
    for words in ["://", "src=", "url(", "@import", "javascript:", " on", "style="] {
        assert!(!html.split('<').any(|tag| { tag.split('>').next().unwrap_or_default().contains(words) }), "{words}");
    }
    assert!(!STYLED.iter().any(|words| html.contains(words)));
    // The one link is to the same value as JSON, beside the page.
    assert_eq!(html.matches("href=").count(), 1);
    assert!(html.contains("href=\"status.json\""));
}

const STYLED: [&str; 3] = ["url(", "@import", "://"];

#[test]
fn whatever_a_name_is_it_is_text() {
    let evil = "<script>alert(1)</script>\"'&";
    let mut status = status();
    status.node = evil.into();
    status.notes = vec![evil.into()];
    status.not_ready = vec![evil.into()];
    (status.members[0].name, status.ports[0].members[0].member) = (evil.into(), evil.into());
    status.ports[0].members[0].reason = evil.into();
    status.ports[0].check = evil.into();
    status.ports[0].members[0].via = vec![evil.into()];
    status.peers[0].node = evil.into();
    status.not_counted_by = vec![evil.into()];
    (status.addresses[0].owner, status.addresses[0].history[0].reason) = (Some(evil.into()), Some(evil.into()));
    let html = page(&status);
    assert!(!elements(&html).iter().any(|element| element == "script"));
    assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp;") && !html.contains("<script"));
    let line = metrics(&status).lines().find(|line| line.contains("alert")).unwrap().to_owned();
    assert!(line.contains("member=\"<script>alert(1)</script>\\\"'&\""), "{line}");
}

/// A figure that nobody has is none, and not 0.
#[test]
fn what_is_not_counted_is_not_shown() {
    let mut status = status();
    status.ports[0].traffic = None;
    for server in &mut status.ports[0].members {
        (server.connections, server.weight, server.check_millis) = (None, None, None);
        (server.total, server.counted_here) = (None, None);
    }
    status.not_counted_by.append(&mut status.counted_by);
    let html = page(&status);
    assert!(!html.contains("Came in here") && html.matches("<td data-column=\"Open\">-</td>").count() == 3);
    assert!(html.matches("<td data-column=\"Total\">-</td>").count() == 3 && html.contains("no node has counted yet"));
    assert!(!table(&status).contains("total, bytes"));
    let text = metrics(&status);
    assert!(!text.contains("sheave_endpoint_connections") && !text.contains("sheave_endpoint_weight"), "{text}");
    assert!(!text.contains("sheave_endpoint_member_connections_total"), "{text}");
}

#[test]
fn the_value_survives_json_and_has_the_names_of_kubernetes() {
    let json = serde_json::to_value(status()).unwrap();
    let server = &json["ports"][0]["members"][2];
    assert_eq!(
        (&server["state"], &server["httpStatus"], &server["connections"]),
        (&"Failing".into(), &500.into(), &serde_json::Value::Null)
    );
    assert_eq!(json["members"][1]["drained"]["byForce"], true);
    assert_eq!(json["addresses"][0]["history"][1]["owner"], serde_json::Value::Null);
    let total = serde_json::json!({ "connections": 170, "bytes": 90_000, "resets": 1 });
    assert_eq!((&json["ports"][0]["members"][0]["total"], &json["notCountedBy"][0]), (&total, &"c".into()));
    assert_eq!(serde_json::from_value::<Status>(json.clone()).unwrap(), status());
    // Of a speaker that has no totals.
    let mut earlier = json;
    for name in ["countedBy", "notCountedBy"] {
        earlier.as_object_mut().unwrap().remove(name);
    }
    for name in ["total", "countedHere"] {
        earlier["ports"][0]["members"][0].as_object_mut().unwrap().remove(name);
    }
    let earlier: Status = serde_json::from_value(earlier).unwrap();
    assert_eq!((earlier.ports[0].members[0].total, earlier.counted_by.len()), (None, 0));
}

#[test]
fn the_table_is_aligned() {
    let text = table(&status());
    let expected = "\
ADDRESS      OWNER  TERM  SINCE  REASON
192.0.2.100  b      7     90 s   -

port 8443 to 6443, check https
MEMBER  STATE    REASON        SINCE  CHECK  OPEN  TOTAL  BYTES  RESETS  WEIGHT  DRAINED         VIA
a       Serving  Ready         5 min  4 ms   17    170    90000  1       33.3 %  -               -
b       Drained  Unauthorized  5 min  4 ms   17    170    90000  1       33.3 %  60 s, by force  -
c       Failing  NotReady 500  5 min  -      -     -      -      -       0.0 %   -               a, b, client address lost
total, bytes, resets: of 2 of 3 nodes (without c)
came in at a: 5 connections, 7000 bytes; 2 resets

PEER  ALIVE  LOST
b     yes    3 of 64
c     no     0 of 5

note: peers_unverified
";
    assert_eq!(text, expected);
}

#[test]
fn metrics_are_of_the_same_value() {
    let text = metrics(&status());
    for line in [
        "# TYPE sheave_endpoint_member_state gauge",
        "sheave_endpoint_member_state{port=\"8443\",member=\"c\",state=\"Failing\"} 1",
        "sheave_endpoint_member_state{port=\"8443\",member=\"c\",state=\"Serving\"} 0",
        "sheave_endpoint_check_seconds{port=\"8443\",member=\"a\",reason=\"Ready\"} 0.004",
        "sheave_endpoint_connections{port=\"8443\",member=\"a\"} 17",
        "# TYPE sheave_endpoint_member_connections_total counter",
        "sheave_endpoint_member_connections_total{port=\"8443\",member=\"a\"} 70",
        "sheave_endpoint_member_bytes_total{port=\"8443\",member=\"a\"} 40000",
        "sheave_endpoint_member_resets_total{port=\"8443\",member=\"b\"} 0",
        "sheave_endpoint_weight{port=\"8443\",member=\"a\"} 0.333",
        "sheave_endpoint_member_drained{member=\"b\"} 1",
        "sheave_endpoint_owner{address=\"192.0.2.100\",node=\"b\"} 1",
        "sheave_endpoint_peer_lost_adverts{node=\"b\"} 3",
        "sheave_endpoint_file_refused{node=\"a\"} 0",
        "sheave_endpoint_file_taken_timestamp_seconds{node=\"a\"} 1795999400",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    assert!(!text.contains("connections{port=\"8443\",member=\"c\"}"));
}

#[test]
fn a_refused_file_is_shown_with_what_is_served() {
    let because = vec!["interface: <eth1> is refused: eth0".to_owned(), "key is missing: 32 bytes".to_owned()];
    let file = Some(File { taken: at(-600), refused: Some(RefusedFile { at: at(-10), because }) });
    let status = Status { file, ..status() };
    let html = page(&status);
    assert!(html.contains("refused since 2026-11-30 00:53:10 UTC; served is what it was at 2026-11-30 00:43:20 UTC"));
    assert!(html.contains("<p class=\"bad\">interface: &lt;eth1&gt; is refused: eth0</p>"), "{html}");
    let text = table(&status);
    assert!(
        text.contains("\nthe file is refused for 10 s; served is what it was 10 min ago:\n  interface: <eth1> is"),
        "{text}"
    );
    assert!(metrics(&status).contains("sheave_endpoint_file_refused{node=\"a\"} 1\n"));
    assert!(serde_json::to_value(&status).unwrap()["file"]["refused"]["because"][1] == "key is missing: 32 bytes");
    assert!(status.is_whole() == self::status().is_whole());
}

fn drained(member: &str) -> Change {
    Change::DrainBegan { member: member.into(), by_force: false }
}

#[test]
fn the_ring_is_bounded_and_names_what_it_lost() {
    let mut ring = Ring::new(9, 3);
    assert_eq!(ring.after(9, 0), Events { run: 9, after: 0, missed: 0, events: vec![] });
    for number in 1..=5 {
        ring.push(at(number), drained(&number.to_string()));
    }
    let names = |events: &Events| -> Vec<u64> { events.events.iter().map(|event| event.sequence).collect() };
    let all = ring.after(9, 0);
    assert_eq!((names(&all), all.missed, all.after), (vec![3, 4, 5], 2, 5));
    let newer = ring.after(9, 4);
    assert_eq!((names(&newer), newer.missed), (vec![5], 0));
    assert_eq!((names(&ring.after(9, 5)), ring.after(9, 5).missed), (vec![], 0));
    // A reader of the speaker before this one, and one from nowhere.
    assert_eq!(names(&ring.after(8, 4)), [3, 4, 5]);
    assert_eq!((names(&ring.after(9, 77)), ring.after(9, 77).after), (vec![], 5));
}

#[test]
fn an_event_is_one_flat_object_and_one_line() {
    let event = |change| Event { sequence: 4, at: at(0), change };
    let owner = event(Change::OwnerChanged {
        address: [192, 0, 2, 100].into(),
        from: Some("a".into()),
        to: Some("b".into()),
        term: Some(7),
        reason: None,
    });
    let json = serde_json::to_value(&owner).unwrap();
    let expected = serde_json::json!({
        "sequence": 4, "at": "2026-11-30T00:53:20Z", "event": "OwnerChanged", "address": "192.0.2.100", "from": "a", "to": "b", "term": 7,
        "reason": null,
    });
    assert_eq!(json, expected);
    assert_eq!(serde_json::from_value::<Event>(json).unwrap(), owner);
    assert_eq!(event_line(&owner), "192.0.2.100 is owned by b, before by a");
    let failing = Change::MemberChanged {
        member: "c".into(),
        port: 6443,
        from: State::Serving,
        to: State::Failing,
        reason: "Refused".into(),
    };
    assert_eq!(event_line(&event(failing)), "c port 6443 is Failing, before Serving (Refused)");
    assert_eq!(event_line(&event(drained("c"))), "c is drained");
    assert_eq!(serde_json::to_value(event(drained("c"))).unwrap()["byForce"], false);
}
