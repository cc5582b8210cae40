//! Who wrote the addresses in a Service's status last, as the API server has recorded it in `managedFields`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use sheave_api::CONTROLLER_NAME;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Writer {
    /// There are none, or there is no record.
    Nobody,
    Us,
    /// With kubectl.
    Person,
    /// Another controller: its field manager.
    Controller(String),
}

impl Writer {
    pub fn of(entries: &[ManagedFieldsEntry]) -> Self {
        let managers: Vec<&str> = entries
            .iter()
            .filter(|entry| has_set_ingress(entry))
            .filter_map(|entry| entry.manager.as_deref())
            .collect();
        // Of two that have set the same value both are recorded.
        match &managers[..] {
            [] => Writer::Nobody,
            many if many.contains(&CONTROLLER_NAME) => Writer::Us,
            many => match many.iter().find(|manager| !manager.starts_with("kubectl")) {
                Some(manager) => Writer::Controller((*manager).to_string()),
                None => Writer::Person,
            },
        }
    }
}

fn has_set_ingress(entry: &ManagedFieldsEntry) -> bool {
    let fields = entry.fields_v1.as_ref().map(|fields| &fields.0["f:status"]["f:loadBalancer"]["f:ingress"]);
    fields.is_some_and(|field| !field.is_null())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn writer(managers: &[&str]) -> Writer {
        let fields = json!({ "f:status": { "f:loadBalancer": { "f:ingress": {} } } });
        let mut entries = vec![json!({ "manager": "speaker", "fieldsV1": { "f:status": { "f:conditions": {} } } })];
        entries.extend(managers.iter().map(|manager| json!({ "manager": manager, "fieldsV1": fields })));
        Writer::of(&serde_json::from_value::<Vec<ManagedFieldsEntry>>(json!(entries)).unwrap())
    }

    #[test]
    fn the_field_manager_of_the_ingress_is_its_writer() {
        assert_eq!(writer(&[]), Writer::Nobody);
        assert_eq!(writer(&["kubectl-patch"]), Writer::Person);
        assert_eq!(writer(&["kubectl", "controller"]), Writer::Controller("controller".into()));
        assert_eq!(writer(&["controller", CONTROLLER_NAME]), Writer::Us);
    }
}
