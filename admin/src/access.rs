//! Who may read what: as kube-rbac-proxy does it, the API server says whose a bearer token is (TokenReview), and whether that user may `get`
//! the path (SubjectAccessReview, `nonResourceURLs`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use tracing::warn;

/// What the API server has said holds for so long.
const HOLDS: Duration = Duration::from_secs(30);
/// Verdicts that are kept. One more ends the oldest.
const MAX_VERDICTS: usize = 64;
/// Tokens of ServiceAccounts have about 1,000 bytes.
const MAX_TOKEN: usize = 8 * 1024;

/// By token and path: since when, and what the API server said.
type Verdicts = BTreeMap<(String, String), (Instant, Result<(), Refused>)>;
/// Why a request is refused.
type Refused = (StatusCode, &'static str);
const NO_TOKEN: Refused = (StatusCode::UNAUTHORIZED, "a bearer token that the API server knows is required\n");
const NOT_ALLOWED: Refused = (StatusCode::FORBIDDEN, "the user may not get this nonResourceURL\n");
const NOT_ASKED: Refused = (StatusCode::SERVICE_UNAVAILABLE, "the API server does not say who this is\n");

#[derive(Clone)]
pub struct Access {
    client: Client,
    verdicts: Arc<Mutex<Verdicts>>,
}

impl Access {
    pub fn new(client: Client) -> Self {
        Self { client, verdicts: Arc::default() }
    }

    async fn check(&self, headers: &HeaderMap, path: &str) -> Result<(), Refused> {
        let Some(token) = bearer(headers) else { return Err(NO_TOKEN) };
        let key = (token.to_owned(), path.to_owned());
        if let Some(verdict) = self.known(&key, Instant::now()) {
            return verdict;
        }
        match self.ask(token, path).await {
            Ok(verdict) => {
                self.keep(key, Instant::now(), verdict);
                verdict
            }
            Err(error) => {
                warn!(%error, "admin port: the API server was asked who may read, and did not say");
                Err(NOT_ASKED)
            }
        }
    }

    async fn ask(&self, token: &str, path: &str) -> kube::Result<Result<(), Refused>> {
        let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences: None };
        let review = TokenReview { spec, ..TokenReview::default() };
        let reviewed = Api::all(self.client.clone()).create(&PostParams::default(), &review).await?;
        let user = reviewed.status.filter(|status| status.authenticated == Some(true)).and_then(|status| status.user);
        let Some(user) = user else { return Ok(Err(NO_TOKEN)) };
        let review = SubjectAccessReview { spec: may_get(user, path), ..SubjectAccessReview::default() };
        let reviewed = Api::all(self.client.clone()).create(&PostParams::default(), &review).await?;
        let allowed = reviewed.status.is_some_and(|status| status.allowed);
        Ok(if allowed { Ok(()) } else { Err(NOT_ALLOWED) })
    }

    fn known(&self, key: &(String, String), now: Instant) -> Option<Result<(), Refused>> {
        let verdicts = self.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
        verdicts.get(key).filter(|(since, _)| now.duration_since(*since) < HOLDS).map(|(_, verdict)| *verdict)
    }

    fn keep(&self, key: (String, String), now: Instant, verdict: Result<(), Refused>) {
        let mut verdicts = self.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
        if verdicts.len() >= MAX_VERDICTS
            && let Some(oldest) = verdicts.iter().min_by_key(|(_, (since, _))| *since).map(|(key, _)| key.clone())
        {
            verdicts.remove(&oldest);
        }
        verdicts.insert(key, (now, verdict));
    }
}

fn may_get(user: UserInfo, path: &str) -> SubjectAccessReviewSpec {
    let attributes = NonResourceAttributes { path: Some(path.to_owned()), verb: Some("get".to_owned()) };
    SubjectAccessReviewSpec {
        extra: user.extra,
        groups: user.groups,
        non_resource_attributes: Some(attributes),
        uid: user.uid,
        user: user.username,
        ..SubjectAccessReviewSpec::default()
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && token.len() <= MAX_TOKEN).then_some(token)
}

/// Lets through whom the API server allows it.
pub async fn require(State(access): State<Access>, request: Request, next: Next) -> Response {
    match access.check(request.headers(), request.uri().path()).await {
        Ok(()) => next.run(request).await,
        Err(refused) => refused.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bearer_token_of_bounded_length_is_one() {
        let of = |value: &str| {
            let headers: HeaderMap = [(header::AUTHORIZATION, value.parse().unwrap())].into_iter().collect();
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(of("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(of("bearer  abc ").as_deref(), Some("abc"));
        for other in ["", "Bearer", "Bearer ", "Basic abc", &format!("Bearer {}", "a".repeat(MAX_TOKEN + 1))] {
            assert_eq!(of(other), None, "{other:.40}");
        }
        assert_eq!(bearer(&HeaderMap::new()), None);
    }

    #[tokio::test]
    async fn verdicts_end_and_are_bounded() {
        let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let access = Access::new(Client::try_from(config).unwrap());
        let key = |number: usize| (number.to_string(), "/metrics".to_owned());
        let now = Instant::now();
        for number in 0..=MAX_VERDICTS {
            access.keep(key(number), now + Duration::from_millis(number as u64), Ok(()));
        }
        assert_eq!(access.known(&key(0), now), None, "the oldest makes room");
        assert_eq!(access.known(&key(1), now), Some(Ok(())));
        assert_eq!(access.known(&key(1), now + HOLDS + Duration::from_millis(1)), None);
        assert_eq!(access.verdicts.lock().unwrap().len(), MAX_VERDICTS);
    }
}
