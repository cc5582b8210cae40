//! Watches that begin anew with a list, from an API server whose state may be older than what is known.

use super::*;

impl Replica {
    /// Lists one kind as it was so many entries of the log ago, and watches from there.
    fn list_anew(&mut self, api: &Api, kind: Kind, back: usize) {
        let cursor = &mut self.cursors[kind as usize];
        *cursor = cursor.saturating_sub(back);
        let mut listed: BTreeMap<String, &Observed> = BTreeMap::new();
        for fact in api.log.iter().take(*cursor).filter(|fact| kind_of(fact) == kind) {
            match fact {
                Observed::Service(view) => drop(listed.insert(view.key.to_string(), fact)),
                Observed::Pool(view) => drop(listed.insert(view.name.clone(), fact)),
                Observed::Grant(view) => drop(listed.insert(view.address.to_string(), fact)),
                Observed::ServiceGone(key, _) => drop(listed.remove(&key.to_string())),
                Observed::PoolGone(name, _) => drop(listed.remove(name)),
                Observed::GrantGone(address, _) => drop(listed.remove(&address.to_string())),
                _ => {}
            }
        }
        self.index.observe(Observed::Begin(kind));
        listed.into_values().for_each(|fact| self.index.observe(fact.clone()));
        self.index.observe(Observed::Complete(kind, 0));
    }
}

impl World {
    pub fn begin_anew(&mut self, who: u8, how: u8) {
        let kind = [Kind::Services, Kind::Pools, Kind::Grants][usize::from(how % 3)];
        let replica = &mut self.replicas[usize::from(who % 2)];
        replica.list_anew(&self.api, kind, usize::from(who / 2 % 16));
    }

    /// As the driver does some moments later.
    pub fn resolve_doubts(&mut self) {
        let leader = &mut self.replicas[self.leader];
        if leader.index.take_doubt() {
            leader.read_all(&self.api);
        }
    }
}

fn key(name: &str) -> ServiceKey {
    ServiceKey { namespace: "default".into(), name: name.into() }
}

/// Two API servers behind one address: the other one does not have the newest Service yet, nor its grant.
#[test]
fn a_list_that_is_older_takes_nothing_away() {
    for kind in [Kind::Services, Kind::Grants] {
        let mut world = World::new();
        world.create(key("web"), None);
        assert!(world.settle());
        let before = world.api.grants.clone();
        let leader = &mut world.replicas[world.leader];
        leader.list_anew(&world.api, kind, usize::MAX);
        // What follows from it before the doubt is resolved, and after.
        world.plan(8);
        assert!(world.replicas[world.leader].under_way.is_empty());
        assert!(world.settle());
        world.check();
        assert_eq!(world.api.grants, before, "{kind:?}");
        world.api.delete_service(&key("web"));
        assert!(world.settle());
        assert!(world.api.grants.is_empty() && world.api.services.is_empty(), "{kind:?}");
    }
}

/// A follower that saw such a list leads next.
#[test]
fn what_came_back_is_known_to_a_new_leader() {
    let mut world = World::new();
    world.create(key("web"), None);
    assert!(world.settle());
    let before = world.api.grants.clone();
    let follower = 1 - world.leader;
    world.replicas[follower].deliver(&world.api, Kind::Services, usize::MAX);
    world.replicas[follower].list_anew(&world.api, Kind::Services, usize::MAX);
    world.take_over(follower);
    assert!(world.settle());
    world.check();
    assert_eq!(world.api.grants, before);
}

/// What was deleted while no watch ran is found by the list that is read then.
#[test]
fn a_deletion_that_no_watch_has_shown_is_seen() {
    let mut world = World::new();
    world.create(key("web"), None);
    assert!(world.settle());
    let service = world.api.services[&key("web")].clone();
    world.api.put_service(ServiceView { finalizer: false, managed: false, ..service });
    world.api.remove_service(&key("web"));
    let (leader, end) = (world.leader, world.api.log.len());
    world.replicas[leader].cursors = [end; Kind::ALL.len()];
    world.replicas[leader].list_anew(&world.api, Kind::Services, 0);
    assert!(world.settle());
    assert!(world.api.grants.is_empty());
}
