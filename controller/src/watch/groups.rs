//! IO: which API groups the API server serves, asked every now and then: a right that every account has, unlike that to watch
//! CustomResourceDefinitions.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::{Stream, stream};
use kube::Client;
use sheave_api::Chain;
use tracing::warn;

use crate::index::Observed;
use crate::whose::Evidence;

/// The groups that say something, at the start and whenever they have changed.
pub fn all(client: Client) -> impl Stream<Item = Observed> + Send {
    stream::unfold((client, None), |(client, mut known)| async move {
        loop {
            if known.is_some() {
                tokio::time::sleep(AGAIN).await;
            }
            match read(&client).await {
                Ok(found) if known.as_ref() == Some(&found) => {}
                Ok(found) => {
                    known = Some(found.clone());
                    return Some((Observed::ApiGroups(found), (client, known)));
                }
                Err(error) => {
                    warn!(error = %Chain(&error), "API groups not read; retrying");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    })
}

async fn read(client: &Client) -> Result<BTreeSet<Evidence>, kube::Error> {
    let groups = client.list_api_groups().await?.groups;
    Ok(groups.iter().filter_map(|group| Evidence::of_group(&group.name)).collect())
}

/// Between questions: another load balancer is not installed every minute.
const AGAIN: Duration = Duration::from_secs(15);
/// After a question that was not answered.
const RETRY: Duration = Duration::from_secs(2);
