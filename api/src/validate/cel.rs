//! CEL rules and schemas. A rule's message names the value and what is allowed; the API server puts the field before it.

use kube::core::{Message, Rule};
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use super::{MAX_ENTRIES, MIN_PREFIX_V4, MIN_PREFIX_V6};

/// More than the 81 characters a range can have, so that most mistakes get to the rule whose message names them.
const MAX_ENTRY_LENGTH: usize = 96;
/// Selectors of an object, of either kind, and requirements of one of them.
const MAX_SELECTORS: usize = 16;
/// Namespaces that a pool may name, and values that a requirement may have.
const MAX_NAMES: usize = 64;

/// Schema of `AddressPool.spec.addresses`.
pub(crate) fn addresses_schema(_: &mut SchemaGenerator) -> Schema {
    let mut schema = exclusions();
    schema.insert("minItems".into(), json!(1));
    schema
}

/// Schema of `AddressPool.spec.exclusions`.
pub(crate) fn exclusions_schema(_: &mut SchemaGenerator) -> Schema {
    exclusions()
}

fn exclusions() -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": MAX_ENTRIES,
        "x-kubernetes-list-type": "set",
        "items": {
            "type": "string",
            "maxLength": MAX_ENTRY_LENGTH,
            "x-kubernetes-validations": entry_rules(),
        },
    })
}

/// Schema of `AddressPool.spec.namespaces`.
pub(crate) fn namespaces_schema(_: &mut SchemaGenerator) -> Schema {
    names(&json!({ "type": "string", "maxLength": 63, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$" }))
}

/// Schema of `L2Advertisement.spec.pools`.
pub(crate) fn pools_schema(_: &mut SchemaGenerator) -> Schema {
    names(&object_name())
}

/// Schema of `VirtualIP.spec.l2Advertisements`.
pub(crate) fn advertisements_schema(_: &mut SchemaGenerator) -> Schema {
    names(&object_name())
}

fn names(item: &Value) -> Schema {
    json_schema!({ "type": "array", "maxItems": MAX_NAMES, "x-kubernetes-list-type": "set", "items": item })
}

fn object_name() -> Value {
    json!({ "type": "string", "maxLength": 253, "pattern": "^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$" })
}

/// Schema of `L2Advertisement.spec.interfaces`, and of those that are excluded. The longest name of a device has 15 characters.
pub(crate) fn interfaces_schema(_: &mut SchemaGenerator) -> Schema {
    let rule = Rule::new(r"self.matches('^[^/!\\s]{1,15}$')").message(says(
        "'{}' is neither the name of an interface nor a pattern: 1 to 15 characters without blanks, '/' and '!'; * stands for any \
         characters, ? for one",
    ));
    names(&json!({ "type": "string", "maxLength": 64, "x-kubernetes-validations": [rule] }))
}

/// Schema of `L2Advertisement.spec.failback`. Ten digits are within an integer of CEL.
pub(crate) fn failback_schema(_: &mut SchemaGenerator) -> Schema {
    let number = "int(self.substring(0, self.size() - 1))";
    let within = |suffix: char, most: u32| format!("(self.endsWith('{suffix}') && {number} <= {most})");
    let time = [within('s', 86400), within('m', 1440), within('h', 24)].join(" || ");
    let rule = Rule::new(format!("self == 'Never' || (self.matches('^[1-9][0-9]{{0,9}}[smh]$') && ({time}))"));
    let rule = rule.message(says("'{}' is neither Never nor a time; allowed are 1s to 24h, as 90s, 10m or 1h"));
    json_schema!({ "type": "string", "maxLength": 16, "x-kubernetes-validations": [rule] })
}

/// Schema of a list of label selectors, as Kubernetes has them; with the bounds that keep the cost of the rule small.
pub(crate) fn selectors_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": MAX_SELECTORS,
        "x-kubernetes-list-type": "atomic",
        "items": selector(),
    })
}

/// Schema of one.
pub(crate) fn selector_schema(_: &mut SchemaGenerator) -> Schema {
    let selector = selector();
    json_schema!({ "type": "object", "properties": selector["properties"] })
}

fn selector() -> Value {
    json!({
        "type": "object",
        "description": "A label selector: all of its requirements must be met. One without requirements selects everything.",
        "properties": {
            "matchLabels": {
                "type": "object",
                "description": "Labels that must be there with these values.",
                "maxProperties": MAX_SELECTORS,
                "additionalProperties": { "type": "string", "maxLength": 63 },
            },
            "matchExpressions": {
                "type": "array",
                "description": "Requirements on one label each.",
                "maxItems": MAX_SELECTORS,
                "x-kubernetes-list-type": "atomic",
                "items": requirement(),
            },
        },
    })
}

fn requirement() -> Value {
    const WITH_VALUES: &str = "self.operator in ['In', 'NotIn']";
    let rule = format!(
        "{WITH_VALUES} ? has(self.values) && self.values.size() > 0 : !has(self.values) || self.values.size() == 0"
    );
    let message = format!(
        "\"operator '\" + self.operator + \"' of key '\" + self.key + \"' takes \" + ({WITH_VALUES} ? \"1 to {MAX_NAMES} values\" : \"no values\")"
    );
    json!({
        "type": "object",
        "required": ["key", "operator"],
        "properties": {
            "key": { "type": "string", "description": "The label.", "minLength": 1, "maxLength": 317 },
            "operator": {
                "type": "string",
                "description": "How the label's value and `values` relate.",
                "enum": ["In", "NotIn", "Exists", "DoesNotExist"],
            },
            "values": {
                "type": "array",
                "description": "For `In` and `NotIn`.",
                "maxItems": MAX_NAMES,
                "x-kubernetes-list-type": "atomic",
                "items": { "type": "string", "maxLength": 63 },
            },
        },
        "x-kubernetes-validations": [Rule::new(rule).message(Message::Expression(message))],
    })
}

/// Schema of a list of conditions, merged by type (as Kubernetes' own types do).
pub(crate) fn conditions_schema(generator: &mut SchemaGenerator) -> Schema {
    let item = generator.subschema_for::<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition>();
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": item,
    })
}

/// The three ways an entry can be wrong; the second and third are silent about what an earlier one has named. CEL cannot order IPv6
/// addresses: a range of them that ends before it starts is found by the controller.
fn entry_rules() -> [Rule; 3] {
    const TEXT: &str = "self.trim()";
    let end = |n: usize| format!("self.split('-')[{n}].trim()");
    let is_cidr = format!("isCIDR({TEXT})");
    let is_address = format!("isIP({TEXT})");
    let is_range = format!(
        "(self.split('-').size() == 2 && self.split('-').all(end, isIP(end.trim())) && ip({}).family() == ip({}).family())",
        end(0),
        end(1)
    );
    let is_v4_range = format!("({is_range} && ip({}).family() == 4)", end(0));

    let syntax = format!("{is_cidr} || {is_address} || {is_range}");
    let order = format!("!{is_v4_range} || {} <= {}", number(&end(0)), number(&end(1)));
    let unusable = format!(
        "{is_cidr} ? (cidr({TEXT}).ip().family() == 4 ? cidr({TEXT}).prefixLength() >= {MIN_PREFIX_V4} && {} : \
         cidr({TEXT}).prefixLength() >= {MIN_PREFIX_V6} && {}) : {is_address} ? (ip({TEXT}).family() == 4 ? {} : {}) : \
         !{is_range} || ({is_v4_range} ? {} : {})",
        // Not wider than /8, so the first octet as written is that of every address in it.
        usable_v4(TEXT, TEXT),
        usable_v6(&format!("cidr({TEXT}).ip()"), &format!("cidr({TEXT}).ip()")),
        usable_v4(TEXT, TEXT),
        usable_v6(&format!("ip({TEXT})"), &format!("ip({TEXT})")),
        usable_v4(&end(0), &end(1)),
        usable_v6(&format!("ip({})", end(0)), &format!("ip({})", end(1))),
    );
    [
        Rule::new(syntax).message(says(
            "'{}' is neither an address (192.0.2.10, 2001:db8::10), nor a CIDR (192.0.2.0/28), nor a range of one family \
             (192.0.2.10-192.0.2.20)",
        )),
        Rule::new(order).message(says("range '{}' ends before it starts")),
        Rule::new(unusable).message(says(
            "'{}' contains addresses that no host can have, or is wider than /8 (IPv6: /32); allowed are 1.0.0.0 to 223.255.255.255 \
             without 127.0.0.0/8, and IPv6 within 2000::/3 or fc00::/7",
        )),
    ]
}

/// An octet of an address that is the text of this CEL expression.
fn octet(text: &str, n: usize) -> String {
    format!("int({text}.split('.')[{n}])")
}

fn number(text: &str) -> String {
    let [a, b, c, d] = [0, 1, 2, 3].map(|n| octet(text, n));
    format!("({a} * 16777216 + {b} * 65536 + {c} * 256 + {d})")
}

fn usable_v4(first: &str, last: &str) -> String {
    let (first, last) = (octet(first, 0), octet(last, 0));
    format!("({first} >= 1 && {last} <= 223 && !({first} <= 127 && {last} >= 127))")
}

/// Both ends, CEL expressions of type IP, in one of the networks.
fn usable_v6(first: &str, last: &str) -> String {
    let within = |net: &str| format!("(cidr('{net}').containsIP({first}) && cidr('{net}').containsIP({last}))");
    format!("({} || {})", within("2000::/3"), within("fc00::/7"))
}

fn says(text: &str) -> Message {
    Message::Expression(format!("\"{}\"", text.replace("{}", "\" + self + \"")))
}

/// A VirtualIP is named like its address ([`virtual_ip_name`](crate::virtual_ip_name)).
pub(crate) fn name_is_address() -> Rule {
    let (name, address) = ("self.metadata.name", "self.spec.address");
    let digits = format!("{name}.matches('^([0-9a-f]{{4}}-){{7}}[0-9a-f]{{4}}$')");
    let v6 = format!("{digits} && ip.isCanonical({address}) && ip({name}.replace('-', ':')) == ip({address})");
    Rule::new(format!("{name} == {address} || isIP({address}) && ip({address}).family() == 6 && {v6}")).message(
        Message::Expression(format!(
            "\"the name '\" + {name} + \"' must be the address '\" + {address} + \"'\" + ({address}.contains(':') ? \
             \", with all digits and - for : (2001-0db8-0000-0000-0000-0000-0000-0010)\" : \"\")"
        )),
    )
}

/// A Placement is named by its mode and what it is about: there is one of each.
pub(crate) fn placement_name() -> Rule {
    let name = "self.spec.mode.lowerAscii() + '-' + (has(self.spec.address) ? self.spec.address : self.spec.node)";
    Rule::new(format!("self.metadata.name == {name}"))
        .message(Message::Expression(format!("\"the name '\" + self.metadata.name + \"' must be '\" + {name} + \"'\"")))
}

/// VIPs of IPv6 are not served yet, and no object's name has a colon.
pub(crate) fn placement_address() -> Rule {
    Rule::new("isIP(self) && ip(self).family() == 4").message(says("'{}' is not an IPv4 address (192.0.2.10)"))
}

/// A drain is of a node, the others of an address.
pub(crate) fn placement_is_of_address() -> Rule {
    Rule::new("self.mode == 'Drain' || has(self.address)")
        .message(Message::Expression("\"spec.address: required with spec.mode \" + self.mode".to_string()))
}

pub(crate) fn placement_is_of_node() -> Rule {
    Rule::new("self.mode != 'Drain' || !has(self.address)").message(Message::Expression(
        "\"spec.address: '\" + self.address + \"' is not allowed with spec.mode Drain\"".to_string(),
    ))
}

/// A move is from one owner, and no other mode is.
pub(crate) fn placement_has_owner() -> Rule {
    Rule::new("self.mode != 'Move' || (has(self.owner) && has(self.term))")
        .message("spec.owner, spec.term: required with spec.mode Move (as status of the VirtualIP has them)")
}

pub(crate) fn placement_has_no_owner() -> Rule {
    Rule::new("self.mode == 'Move' || !(has(self.owner) || has(self.term))").message(Message::Expression(
        "\"spec.owner, spec.term: allowed with spec.mode Move alone, not with \" + self.mode".to_string(),
    ))
}

pub(crate) fn placement_moves() -> Rule {
    Rule::new("!has(self.owner) || self.owner != self.node").message(Message::Expression(
        "\"spec.node: '\" + self.node + \"' is spec.owner as well; a move is to another node\"".to_string(),
    ))
}

/// A grant is for one address; another address is another object.
pub(crate) fn address_never_changes() -> Rule {
    Rule::new("self == oldSelf").message("the address of a VirtualIP never changes")
}
