//! The requests that the API server counts itself (`apiserver_request_total`): those that write, by what they are about.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use sheave_tests::lab::Lab;

/// Numbers of requests by verb and resource: `PATCH services/status`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requests(pub BTreeMap<String, u64>);

impl Requests {
    pub fn read(lab: &Lab) -> Result<Self> {
        let inside = format!("--kubeconfig={}", lab.kubeconfig_inside().display());
        Self::parse(&lab.kubectl(&[&inside, "get", "--raw", "/metrics"])?)
    }

    fn parse(text: &str) -> Result<Self> {
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        for line in text.lines().filter_map(|line| line.strip_prefix("apiserver_request_total{")) {
            let (labels, count) = line.rsplit_once("} ").with_context(|| line.to_owned())?;
            let (verb, resource) = (label(labels, "verb"), label(labels, "resource"));
            if READS.contains(&verb) || resource.is_empty() {
                continue;
            }
            let subresource = match label(labels, "subresource") {
                "" => String::new(),
                name => format!("/{name}"),
            };
            *counts.entry(format!("{verb} {resource}{subresource}")).or_default() += count.parse::<f64>()? as u64;
        }
        Ok(Self(counts))
    }

    /// Those since then.
    pub fn since(&self, before: &Self) -> Self {
        let fresh = self.0.iter().map(|(name, count)| (name.clone(), count - before.0.get(name).copied().unwrap_or(0)));
        Self(fresh.filter(|(_, count)| *count > 0).collect())
    }

    /// Without those that this program sent, that go on for ever, and that the control plane sends by itself for every Service.
    pub fn of_controller(&self) -> Self {
        let others = |name: &String| {
            let resource = name.split_once(' ').map_or("", |(_, resource)| resource);
            ["POST services", "DELETE services"].contains(&name.as_str()) || CONTROL_PLANE.contains(&resource)
        };
        Self(self.0.iter().filter(|(name, _)| !others(name)).map(|(name, count)| (name.clone(), *count)).collect())
    }

    /// Those that each Service costs; the rest, such as the status of a pool, does not grow with their number.
    pub fn of_services(&self) -> u64 {
        OF_SERVICES.iter().map(|resource| self.of(resource)).sum()
    }

    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Those of one resource.
    pub fn of(&self, resource: &str) -> u64 {
        let about = |name: &str| name.split_once(' ').is_some_and(|(_, about)| about == resource);
        self.0.iter().filter(|(name, _)| about(name)).map(|(_, count)| count).sum()
    }
}

/// Waits until the API server has got no request of the controller for some seconds: the absence of something takes time to see. Returns
/// whether it came to rest, too: one that does not is measured all the same.
pub async fn settled(lab: &Lab) -> Result<(Requests, bool)> {
    let mut last = Requests::read(lab)?.of_controller();
    for _ in 0..MOST_LOOKS {
        tokio::time::sleep(BETWEEN_LOOKS).await;
        let now = Requests::read(lab)?.of_controller();
        if now == last {
            return Ok((Requests::read(lab)?, true));
        }
        last = now;
    }
    eprintln!("the controller still writes {} s after everything was done", MOST_LOOKS * BETWEEN_LOOKS.as_secs());
    Ok((Requests::read(lab)?, false))
}

fn label<'a>(labels: &'a str, name: &str) -> &'a str {
    let value = labels.split(',').find_map(|label| label.strip_prefix(name)?.strip_prefix("=\""));
    value.map_or("", |value| value.trim_end_matches('"'))
}

/// `ipaddresses`: the API server's ClusterIPs; `endpoints`: of Services without a selector the controller manager removes them.
const CONTROL_PLANE: [&str; 4] = ["leases", "ipaddresses", "endpoints", "endpointslices"];
const OF_SERVICES: [&str; 5] = ["services", "services/status", "virtualips", "virtualips/status", "events"];
const READS: [&str; 5] = ["GET", "LIST", "WATCH", "WATCHLIST", "CONNECT"];
const BETWEEN_LOOKS: Duration = Duration::from_secs(3);
const MOST_LOOKS: u64 = 40;

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines as the API server prints them.
    fn text(patches: u64) -> String {
        let line = |code: u32, resource: &str, subresource: &str, verb: &str, count: &str| {
            format!(
                "apiserver_request_total{{code=\"{code}\",component=\"apiserver\",dry_run=\"\",group=\"\",resource=\"{resource}\",\
                 scope=\"resource\",subresource=\"{subresource}\",verb=\"{verb}\",version=\"v1\"}} {count}\n"
            )
        };
        line(200, "services", "status", "PATCH", &patches.to_string())
            + &line(409, "services", "status", "PATCH", "2")
            + &line(201, "services", "", "POST", "1e+04")
            + &line(200, "leases", "", "PUT", "7")
            + &line(201, "ipaddresses", "", "POST", "1")
            + &line(200, "services", "", "WATCH", "3")
    }

    #[test]
    fn writes_are_counted_whatever_their_answer_and_reads_are_not() {
        let (before, now) = (Requests::parse(&text(5)).unwrap(), Requests::parse(&text(8)).unwrap());
        assert_eq!((before.total(), before.of_controller().total(), before.of("services/status")), (10_015, 7, 7));
        assert_eq!(before.of_controller().of_services(), 7);
        assert_eq!(now.since(&before).0, BTreeMap::from([("PATCH services/status".to_string(), 3)]));
    }
}
