//! The cluster itself: speakers that start, pods that come, and what the API server says of it.

use super::*;

impl World {
    pub fn start_speaker(&mut self, node: usize) {
        let (now, nodes) = (self.now, self.machines.len());
        let machine = &mut self.machines[node];
        if let (Some(kernel), None) = (&machine.kernel, &machine.speaker) {
            machine.epoch += 1;
            let (saved, last) = (machine.disk.as_ref(), kernel.table.as_ref());
            machine.speaker = Some(Speaker::new(node, machine.epoch, saved, last, nodes, now));
        }
    }

    pub fn add_pod(&mut self, service: usize) {
        let alive: Vec<usize> = (0..self.machines.len())
            .filter(|node| self.machines[*node].kernel.is_some() && !self.machines[*node].excluded)
            .collect();
        if alive.is_empty() || self.services[service].len() > 30 {
            return;
        }
        let node = alive[self.random.below(alive.len())];
        self.add_pod_on(service, node);
    }

    pub fn add_pod_on(&mut self, service: usize, node: usize) {
        let address = Ipv4Addr::from(0x0a00_0000 + self.next_pod);
        self.next_pod += 1;
        let conditions = if self.machines[node].kernel.is_some() { Conditions::READY } else { UNREADY };
        let listens = match &mut self.slow_starts {
            None => Some(Instant::ZERO),
            Some(random) => {
                let after = Duration::from_millis(random.below(8_000) as u64);
                (random.below(8) != 0).then_some(self.now + after)
            }
        };
        self.services[service].push(Pod { address, node, conditions, ready_since: self.now, listens });
    }

    /// The API server's truth as a view.
    pub fn publish(&mut self) {
        let nodes = self.machines.iter().enumerate().map(|(node, machine)| {
            let address = Ipv4Addr::new(10, 255, 0, node as u8 + 1);
            Object::Node(name(node), Node { excluded: machine.excluded, ..Node::at(address) })
        });
        let object_name = |service: usize| ObjectName::new("default", alloc::format!("s{service}"));
        let mut objects: Vec<Object> = nodes.collect();
        for (service, pods) in self.services.iter().enumerate() {
            let port = Port { name: "p".into(), port: port(service), protocol: Protocol::Tcp };
            let endpoint =
                |pod: &Pod| Endpoint { address: pod.address, node: Some(name(pod.node)), conditions: pod.conditions };
            let endpoints = pods.iter().map(endpoint).collect();
            let slice = EndpointSlice { service: object_name(service).name, ports: vec![port.clone()], endpoints };
            objects.push(Object::Service(object_name(service), Service { ports: vec![port], ..Service::default() }));
            objects.push(Object::EndpointSlice(object_name(service), slice));
        }
        let services = (0..self.services.len()).map(object_name).collect();
        objects.push(Object::VirtualIp(VIP, VirtualIp { pool: "pool".into(), services, ..VirtualIp::default() }));
        let view = View::from(objects);
        if view != *self.view {
            self.view = Arc::new(view);
        }
    }

    /// Whether something is going on that keeps nodes from knowing what the others know.
    pub(super) fn is_disturbed(&self) -> bool {
        let starting =
            |machine: &Machine| machine.speaker.as_ref().is_some_and(|speaker| !speaker.ready || speaker.cut_off);
        // Booted, but its speaker has not come so far.
        let bare = |machine: &Machine| machine.kernel.as_ref().is_some_and(|kernel| kernel.table.is_none());
        let disturbed = |machine: &Machine| {
            machine.cut || machine.late || machine.reports_lost || starting(machine) || bare(machine)
        };
        self.machines.iter().any(disturbed)
    }
}

impl Machine {
    pub fn new() -> Self {
        Self { kernel: Some(Kernel::default()), ..Self::default() }
    }
}
