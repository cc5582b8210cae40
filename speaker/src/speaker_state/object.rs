//! This node's SpeakerState at the API server: read, made, written.
//!
//! Server-side apply: the speaker owns the fields that it sets, and no other writer's. The object names its Node as owner, by the Node's
//! UID, so that Kubernetes removes it with the Node; a Node that comes back under its name has another UID.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::{Value, json};
use sheave_api::{Chain, SPEAKER_NAME, SpeakerState, SpeakerStateStatus};
use tokio::time::timeout;

use crate::apiserver::ApiServer;

/// For a connection to one server, and for all requests of one turn.
const CONNECT: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(5);

pub struct Object {
    server: ApiServer,
    node: String,
    /// While it works: a write after a failure uses another connection, perhaps to another server.
    client: Option<Client>,
}

/// Why it was not read or written, by whose fault.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("no API server answers: {0}")]
    Unreachable(String),
    #[error("no answer within {} s", PATIENCE.as_secs())]
    Timeout,
    #[error("the API server does not allow it: {0}")]
    Forbidden(String),
    #[error(
        "the API server has no SpeakerStates (is its CustomResourceDefinition installed?) or no Node of this name: {0}"
    )]
    NotFound(String),
    #[error("the API server finds it invalid: {0}")]
    Invalid(String),
    #[error("the API server failed: {0}")]
    Failed(String),
}

impl Failure {
    /// Metric label and log field.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Timeout => "timeout",
            Self::Forbidden(_) => "forbidden",
            Self::NotFound(_) => "not_found",
            Self::Invalid(_) => "invalid",
            Self::Failed(_) => "failed",
        }
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match &error {
            kube::Error::Api(status) => match status.code {
                401 | 403 => Self::Forbidden(status.message.clone()),
                404 => Self::NotFound(status.message.clone()),
                400 | 422 => Self::Invalid(status.message.clone()),
                _ => Self::Failed(status.message.clone()),
            },
            _ => Self::Unreachable(Chain(&error).to_string()),
        }
    }
}

impl Object {
    pub fn new(server: ApiServer, node: String) -> Self {
        Self { server, node, client: None }
    }

    /// Its status; made, if it is not there or has no owner, in which case it says nothing yet.
    pub async fn read(&mut self) -> Result<SpeakerStateStatus, Failure> {
        self.within(async |client, node| {
            let api: Api<SpeakerState> = Api::all(client.clone());
            let found = api.get_opt(node).await?;
            match found.filter(|object| object.owner_references().iter().any(|owner| owner.kind == Node::kind(&()))) {
                Some(object) => Ok(object.status.unwrap_or_default()),
                None => {
                    let owner = Api::<Node>::all(client).get_metadata(node).await?;
                    let uid = owner.uid().unwrap_or_default();
                    let made = api.patch(node, &apply(), &Patch::Apply(owned(node, &uid))).await?;
                    Ok(made.status.unwrap_or_default())
                }
            }
        })
        .await
    }

    pub async fn write(&mut self, status: &SpeakerStateStatus) -> Result<(), Failure> {
        let status = json!(status);
        self.within(async |client, node| {
            let api: Api<SpeakerState> = Api::all(client);
            api.patch_status(node, &apply(), &Patch::Apply(with(node, "status", &status))).await.map(drop)
        })
        .await
    }

    async fn within<T>(&mut self, requests: impl AsyncFnOnce(Client, &str) -> kube::Result<T>) -> Result<T, Failure> {
        let client = match self.client.take() {
            Some(client) => client,
            None => self.server.reach(CONNECT).await.map_err(|error| Failure::Unreachable(format!("{error:#}")))?.0,
        };
        let result = timeout(PATIENCE, requests(client.clone(), &self.node)).await.map_err(|_| Failure::Timeout)?;
        // A refusal comes over a connection that works.
        if matches!(result, Ok(_) | Err(kube::Error::Api(_))) {
            self.client = Some(client);
        }
        Ok(result?)
    }
}

fn apply() -> PatchParams {
    PatchParams::apply(SPEAKER_NAME).force()
}

fn owned(node: &str, uid: &str) -> Value {
    let owner = json!({
        "apiVersion": Node::api_version(&()),
        "kind": Node::kind(&()),
        "name": node,
        "uid": uid,
    });
    let mut object = with(node, "spec", &json!({}));
    object["metadata"]["ownerReferences"] = json!([owner]);
    object
}

fn with(node: &str, part: &str, value: &Value) -> Value {
    json!({
        "apiVersion": SpeakerState::api_version(&()),
        "kind": SpeakerState::kind(&()),
        "metadata": { "name": node },
        part: value,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_is_owned_by_its_node_and_blocks_nothing() {
        let object = owned("n1", "u-1");
        assert_eq!(
            object["metadata"]["ownerReferences"][0],
            json!({
                "apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u-1"
            })
        );
        assert_eq!((&object["metadata"]["name"], &object["spec"]), (&json!("n1"), &json!({})));
        let written = with("n1", "status", &json!(SpeakerStateStatus::default()));
        assert_eq!(written["apiVersion"], "sheave.dev/v1alpha1");
        assert!(written["metadata"]["ownerReferences"].is_null(), "the status subresource takes none");
    }
}
