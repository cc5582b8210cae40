//! `sheave init`: a first pool. Looks over the subnet of the nodes, names the DHCP servers that answer, and proposes a range that is free.
//! It is applied only when that range is typed, or given with `--yes-this-range`.
//!
//! Read: here (what the command does) → [`subnet`] (which subnet is meant) → [`scan`] (what its hosts use, by a speaker) → [`range`] (what
//! is proposed) → [`unable`] (why there is nothing).

mod range;
mod scan;
mod subnet;
mod unable;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args as ClapArgs;
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;
use sheave_api::{AddressPool, SpeakerState, VirtualIP};

use range::{MAX_SCANNED, Span, Taken, Why, is_object_name};
use scan::Found;
use subnet::Segment;
use unable::Unable;

#[derive(ClapArgs)]
pub struct Args {
    /// The subnet that the addresses are to lie in; needed where the nodes stand in several.
    #[arg(long)]
    subnet: Option<Ipv4Net>,
    /// How many addresses are proposed.
    #[arg(long, default_value_t = 16, conflicts_with = "yes_this_range")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_SCANNED)))]
    size: u32,
    /// Name of the AddressPool.
    #[arg(long, default_value = "default", value_parser = object_name)]
    pool: String,
    /// Apply this range (192.0.2.240-192.0.2.254, 192.0.2.240/28) if it is free, and ask nothing.
    #[arg(long, value_name = "RANGE")]
    yes_this_range: Option<Span>,
    /// Look, and print what would be applied. The API server checks it and changes nothing.
    #[arg(long)]
    dry_run: bool,
}

/// Exit code 1 if nothing was applied because the range was not typed.
pub async fn run(client: Client, args: Args) -> Result<ExitCode> {
    let Args { subnet, size, pool, yes_this_range, dry_run } = args;
    let states: BTreeMap<String, SpeakerState> = all(&client, "SpeakerStates").await?;
    let listed: Vec<SpeakerState> = states.values().cloned().collect();
    let segment = subnet::choose(&listed, subnet, yes_this_range)?;
    let mut taken = known(&client, &states, &segment, &pool).await?;
    if let Some(range) = yes_this_range {
        taken.check(range)?;
    }
    let within = yes_this_range.unwrap_or_else(|| Span::of_subnet(segment.subnet));
    println!("{}: subnet of {}", segment.subnet, segment.speakers.join(", "));
    let found = scan::look(&client, &states, &segment.speakers, within).await?;
    taken.add_answers(&found.results, &found.proxies);
    found.servers.values().for_each(|server| taken.add_server(server));
    print!("{}", report(&found, &taken, within));
    let range = match yes_this_range {
        Some(range) => taken.check(range).map(|()| range)?,
        None => taken.propose(within, size)?,
    };
    println!("\n{}", yaml(&pool, range));
    if yes_this_range.is_none() && !dry_run && !typed(range)? {
        println!("nothing was applied (--yes-this-range {range} applies it)");
        return Ok(ExitCode::FAILURE);
    }
    apply(&client, &pool, range, dry_run).await?;
    let done = if dry_run { "would be created; nothing was changed" } else { "created" };
    println!("AddressPool {pool} {done}: {} addresses, {range}", range.count());
    Ok(ExitCode::SUCCESS)
}

fn object_name(text: &str) -> Result<String, String> {
    let wrong =
        || "it must be the name of an object: lower case letters, digits, '-' and '.', such as 'office'".to_owned();
    is_object_name(text).then(|| text.to_owned()).ok_or_else(wrong)
}

/// What is in use by the API's objects.
async fn known(
    client: &Client,
    states: &BTreeMap<String, SpeakerState>,
    segment: &Segment,
    pool: &str,
) -> Result<Taken> {
    let pools: BTreeMap<String, AddressPool> = all(client, "AddressPools").await?;
    if pools.contains_key(pool) {
        return Err(Unable::PoolExists(pool.to_owned()).into());
    }
    let mut taken = Taken::default();
    for (name, node) in all::<Node>(client, "Nodes").await? {
        let addresses = node.status.and_then(|status| status.addresses).unwrap_or_default();
        let parsed = addresses.iter().filter_map(|address| address.address.parse().ok());
        parsed.for_each(|address| taken.add(address, Why::Node(name.clone())));
    }
    for (name, state) in states {
        for uplink in state.status.iter().flat_map(|status| &status.uplinks) {
            let parsed = uplink.addresses.iter().filter_map(|address| address.parse().ok());
            parsed.for_each(|address| taken.add(address, Why::Node(name.clone())));
        }
    }
    segment.gateways.iter().for_each(|gateway| taken.add(*gateway, Why::Gateway));
    let vips: BTreeMap<String, VirtualIP> = all(client, "VirtualIPs").await?;
    vips.values().filter_map(|vip| vip.spec.address.parse().ok()).for_each(|vip| taken.add(vip, Why::Granted));
    pools.iter().for_each(|(name, pool)| taken.add_pool(&pool.spec.addresses, name));
    Ok(taken)
}

/// What was found, in lines.
fn report(found: &Found, taken: &Taken, within: Span) -> String {
    let mut lines = vec![format!("{within}: {} addresses probed by the speaker of {}", within.count(), found.node)];
    let hosts: Vec<String> = taken.hosts().map(|(address, macs)| format!("{address} ({})", macs.join(", "))).collect();
    lines.push(match hosts.len() {
        0 => "no other host answers".to_owned(),
        1 => format!("another host answers: {}", hosts[0]),
        count => {
            let more = if count > MOST_HOSTS { format!(", and {} more", count - MOST_HOSTS) } else { String::new() };
            format!("{count} other hosts answer: {}{more}", hosts[..count.min(MOST_HOSTS)].join(", "))
        }
    });
    for proxy in &found.proxies {
        lines.push(format!("{proxy} answers for every address (proxy ARP): its answers do not count"));
    }
    for server in found.servers.values() {
        lines.push(format!("the DHCP server {} ({}) offers {}", server.server, server.mac, server.offered));
    }
    lines.push(match found.servers.len() {
        0 => "no DHCP server has answered within 4 s".to_owned(),
        _ => "which addresses it gives out its configuration alone says: see to it that this range is not among them"
            .to_owned(),
    });
    lines.push("a host that is switched off does not answer".to_owned());
    lines.join("\n") + "\n"
}

fn yaml(pool: &str, range: Span) -> String {
    format!(
        "apiVersion: sheave.dev/v1alpha1\nkind: AddressPool\nmetadata:\n  name: {pool}\nspec:\n  addresses: [{range}]\n"
    )
}

/// Whether a person types the range. Nothing else counts, no yes and no empty line.
fn typed(range: Span) -> Result<bool> {
    print!("Type the range to apply it: ");
    std::io::stdout().flush().context("write to the terminal")?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).context("read the range")?;
    println!();
    Ok(line.trim().parse::<Span>().is_ok_and(|typed| typed == range))
}

/// `create`: a pool that came up meanwhile is not changed.
async fn apply(client: &Client, name: &str, range: Span, dry_run: bool) -> Result<()> {
    let object = json!({ "metadata": { "name": name }, "spec": { "addresses": [range.to_string()] } });
    let pool: AddressPool = serde_json::from_value(object).context("make an AddressPool")?;
    let params = PostParams { dry_run, ..PostParams::default() };
    let made = Api::<AddressPool>::all(client.clone()).create(&params, &pool).await;
    made.map(drop).with_context(|| format!("create AddressPool {name}"))
}

async fn all<K>(client: &Client, kind: &str) -> Result<BTreeMap<String, K>>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let listed = Api::<K>::all(client.clone()).list(&ListParams::default()).await;
    let listed = listed.with_context(|| format!("list {kind}"))?;
    Ok(listed.into_iter().map(|object| (object.name_any(), object)).collect())
}

/// Hosts that are listed.
const MOST_HOSTS: usize = 16;

#[cfg(test)]
mod tests {
    use clap::Parser;
    use sheave_api::{DhcpServer, ProbeResult};

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn bad_arguments_are_named_with_what_is_allowed() {
        let told = |words: &[&str]| match Cli::try_parse_from([&["init"], words].concat()) {
            Ok(_) => panic!("{words:?} was accepted"),
            Err(error) => error.to_string(),
        };
        for (words, sentence) in [
            (
                &["--yes-this-range", "office"][..],
                "'office' is neither an address (192.0.2.10, 2001:db8::10), nor a CIDR",
            ),
            (&["--yes-this-range", "192.0.2.9-192.0.2.1"], "ends before it starts"),
            (&["--yes-this-range", "127.0.0.1"], "contains addresses that no host can have"),
            (&["--yes-this-range", "2001:db8::1"], "RangeNotIPv4"),
            (&["--size", "0"], "0 is not in 1..=1024"),
            (&["--size", "2000"], "2000 is not in 1..=1024"),
            (&["--subnet", "192.0.2.0"], "--subnet"),
            (&["--pool", "My Pool"], "it must be the name of an object"),
            (&["--size", "8", "--yes-this-range", "192.0.2.7"], "cannot be used with"),
        ] {
            let told = told(words);
            assert!(told.contains(sentence), "{words:?}: {told}");
        }
        let args = Cli::try_parse_from(["init", "--yes-this-range", "192.0.2.8 - 192.0.2.9"]).unwrap().args;
        assert_eq!(args.yes_this_range.unwrap().to_string(), "192.0.2.8-192.0.2.9");
    }

    #[test]
    fn what_is_printed_is_a_pool_and_all_that_was_found() {
        let range: Span = "192.0.2.8-192.0.2.9".parse().unwrap();
        assert_eq!(
            yaml("default", range),
            "apiVersion: sheave.dev/v1alpha1\nkind: AddressPool\nmetadata:\n  name: default\nspec:\n  addresses: [192.0.2.8-192.0.2.9]\n"
        );
        let server =
            DhcpServer { server: "192.0.2.254".into(), mac: "02:00:00:00:00:09".into(), offered: "192.0.2.77".into() };
        let found = Found {
            node: "n1".into(),
            results: (1..=20)
                .map(|last| ProbeResult {
                    address: format!("192.0.2.{last}"),
                    macs: vec![format!("02:00:00:00:00:{last:02}")],
                })
                .collect(),
            proxies: ["02:00:00:00:00:0f".into()].into(),
            servers: [(server.server.clone(), server)].into(),
        };
        let mut taken = Taken::default();
        taken.add_answers(&found.results, &found.proxies);
        let text = report(&found, &taken, Span::of_subnet("192.0.2.0/24".parse().unwrap()));
        for sentence in [
            "254 addresses probed by the speaker of n1",
            "20 other hosts answer: 192.0.2.1 (02:00:00:00:00:01), ",
            "192.0.2.16 (02:00:00:00:00:16), and 4 more\n",
            "02:00:00:00:00:0f answers for every address",
            "the DHCP server 192.0.2.254 (02:00:00:00:00:09) offers 192.0.2.77",
        ] {
            assert!(text.contains(sentence), "{sentence} is not in\n{text}");
        }
        let nothing = report(&Found::default(), &Taken::default(), range);
        assert!(nothing.contains("no other host answers\nno DHCP server has answered within 4 s"), "{nothing}");
    }
}
