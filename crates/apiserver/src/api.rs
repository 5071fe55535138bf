//! One request from first byte to answer: limits, identity, permission, dispatch, and the rule that
//! every failure is a Status.
//!
//! It knows paths and verbs; what a verb does is in [`read`], [`edit`] and [`subresources`].

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use http::{HeaderMap, HeaderValue, Request, StatusCode, header, request::Parts};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use machinery::status::{ApiError, Result};
use resources::{Resource, Verb, registry};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{
    authn::{Authenticator, PeerCertificates, identify},
    authz::{Attributes, Authorizer, check},
    components, edit,
    identity::{MASTERS, UserInfo},
    metrics::Metrics,
    negotiate::{self, Answer, View},
    nonresource, read,
    request::{Query, RequestInfo},
    respond::{self, Answered},
    subresources,
    upgrade::websocket,
    write::{Warnings, Writer},
};

/// Bytes of a request's body, as upstream.
pub const MAX_BODY: usize = 3 << 20;
/// A request that is no stream has this long.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Requests that are no streams and run at once, as upstream: reads, and writes.
const MAX_READS: usize = 400;
const MAX_WRITES: usize = 200;

/// A request that finds no room waits this long; how many wait is bounded by connections and streams.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(15);

/// Everything a request may need. Built once; shared by all connections and in-process callers.
pub struct Api {
    pub writer: Writer,
    pub authenticator: Arc<dyn Authenticator>,
    pub authorizer: Arc<dyn Authorizer>,
    pub metrics: Metrics,
    pub nonresource: nonresource::Documents,
    pub health: crate::health::Health,
    pub components: components::Components,
    pub reviews: crate::reviews::Reviews,
    pub upgrade: crate::upgrade::Proxy,
    pub shutdown: CancellationToken,
    reads: Semaphore,
    writes: Semaphore,
}

/// One request, identified and permitted.
pub struct Context {
    pub api: Arc<Api>,
    pub info: RequestInfo,
    pub query: Query,
    pub headers: HeaderMap,
    pub user: UserInfo,
    pub answer: Answer,
    pub warnings: Warnings,
}

/// What [`Api::new`] is built from.
pub struct Components {
    pub writer: Writer,
    pub authenticator: Arc<dyn Authenticator>,
    pub authorizer: Arc<dyn Authorizer>,
    pub nonresource: nonresource::Documents,
    pub reviews: crate::reviews::Reviews,
    pub upgrade: crate::upgrade::Proxy,
    pub shutdown: CancellationToken,
}

impl Api {
    pub fn new(components: Components) -> Api {
        Api {
            writer: components.writer,
            authenticator: components.authenticator,
            authorizer: components.authorizer,
            metrics: Metrics::default(),
            nonresource: components.nonresource,
            health: crate::health::Health::default(),
            components: components::Components::default(),
            reviews: components.reviews,
            upgrade: components.upgrade,
            shutdown: components.shutdown,
            reads: Semaphore::new(MAX_READS),
            writes: Semaphore::new(MAX_WRITES),
        }
    }

    /// Answers one request. Never fails and never panics.
    pub async fn handle(self: Arc<Api>, request: Request<Body>) -> Answered {
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let info = RequestInfo::parse(request.method(), request.uri().path(), &query);
        let fallback = negotiate::answer(request.headers(), &query, info.resource_request)
            .map_or(Answer::JSON, |answer| Answer { view: View::Object, ..answer });
        let started = std::time::Instant::now();
        let running = AssertUnwindSafe(self.clone().bounded(info.clone(), query, request)).catch_unwind();
        let response = match running.await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => respond::error(&fallback, &error),
            Err(_) => {
                tracing::error!(path = info.path, verb = info.verb, "a handler panicked");
                let message = "This request caused apiserver to panic. Look in the logs for details.";
                respond::error(&fallback, &ApiError::new(500, "InternalError", message))
            }
        };
        self.metrics.request(&info, response.status().as_u16(), started.elapsed());
        response
    }

    /// Holds back what is too much at once or takes too long.
    async fn bounded(self: Arc<Api>, info: RequestInfo, query: Query, request: Request<Body>) -> Result<Answered> {
        if info.long_running() || !info.resource_request {
            return self.identified(info, query, request).await;
        }
        let (limit, verb) = if info.mutating() { (&self.writes, "write") } else { (&self.reads, "read") };
        let Ok(Ok(_permit)) = tokio::time::timeout(QUEUE_TIMEOUT, limit.acquire()).await else {
            tracing::warn!(verb, "too many requests at once; refusing one");
            return Err(ApiError::too_many_requests(
                "The server is currently unable to handle the request due to too many requests; please try again later.",
                1,
            ));
        };
        let (group, resource, verb) = (info.group.clone(), info.resource.clone(), info.verb.clone());
        match tokio::time::timeout(REQUEST_TIMEOUT, self.clone().identified(info, query, request)).await {
            Ok(result) => result,
            Err(_) => Err(ApiError::server_timeout(&group, &resource, &verb, 1)),
        }
    }

    async fn identified(
        self: Arc<Api>,
        mut info: RequestInfo,
        query: Query,
        request: Request<Body>,
    ) -> Result<Answered> {
        let (parts, body) = request.into_parts();
        let peer = parts.extensions.get::<PeerCertificates>();
        let user = identify(&*self.authenticator, &*self.authorizer, &parts, peer).await?;
        self.permit(&user, &info, &query)?;
        if info.resource == "namespaces" {
            // A namespace is permitted as something in itself, but stored in none.
            info.namespace.clear();
        }
        let views = info.resource_request;
        let streaming = info.long_running() && info.verb != "watch";
        let answer = match negotiate::answer(&parts.headers, &query, views) {
            // Other paths answer with what they have: text, documents in encodings of their own.
            _ if streaming => Answer::JSON,
            Err(_) if !views => Answer::JSON,
            answer => answer?,
        };
        let headers = parts.headers.clone();
        let context = Context { api: self, info, query, headers, user, answer, warnings: Warnings::default() };
        let dispatched: BoxFuture<'_, Result<Answered>> = Box::pin(context.dispatch(parts, body));
        let result = dispatched.await;
        let warnings = std::mem::take(&mut *context.warnings.lock());
        let plain = Answer { view: View::Object, ..context.answer };
        let mut response = result.unwrap_or_else(|error| respond::error(&plain, &error));
        add_warnings(response.headers_mut(), &warnings);
        Ok(response)
    }

    pub fn permit(&self, user: &UserInfo, info: &RequestInfo, query: &Query) -> Result<()> {
        if user.in_group(MASTERS) {
            return Ok(());
        }
        let attributes = match info.resource_request {
            false => Attributes::path(user, &info.verb, &info.path),
            true => Attributes {
                version: &info.version,
                subresource: &info.subresource,
                namespace: &info.namespace,
                name: &info.name,
                path: &info.path,
                field_selector: query.get("fieldSelector"),
                ..Attributes::resource(user, &info.verb, &info.group, &info.resource)
            },
        };
        check(&*self.authorizer, &attributes)
    }
}

impl Context {
    async fn dispatch(&self, parts: Parts, body: Body) -> Result<Answered> {
        let info = &self.info;
        if !info.resource_request {
            return nonresource::serve(self, parts, body).await;
        }
        let resource = registry().by_gvr(&info.group, &info.version, &info.resource);
        if resource.is_none() && !registry().all().iter().any(|resource| resource.facts().group == info.group) {
            return Ok(not_found());
        }
        let resource = resource.ok_or_else(ApiError::no_such_resource)?;
        let facts = resource.facts();
        self.warnings.lock().extend(facts.deprecated.map(str::to_owned));
        let needs_namespace = facts.namespaced_scope() && !info.name.is_empty() && named(&info.verb);
        let stray = !facts.namespaced_scope() && !info.namespace.is_empty();
        if stray || (needs_namespace && info.namespace.is_empty()) {
            return Err(ApiError::no_such_resource());
        }
        if !info.subresource.is_empty() {
            return subresources::serve(self, resource, Request::from_parts(parts, body)).await;
        }
        if !facts.stored() && facts.allows(Verb::Create) {
            return subresources::post(self, resource, read_body(body).await?).await;
        }
        self.verb(resource, Request::from_parts(parts, body)).await
    }

    async fn verb(&self, resource: &'static dyn Resource, request: Request<Body>) -> Result<Answered> {
        let (facts, info) = (resource.facts(), &self.info);
        if !facts.verbs.iter().any(|verb| verb.as_str() == info.verb) {
            return Err(ApiError::method_not_allowed());
        }
        // Collections are posted to, objects are not; namespaced objects are made in a namespace.
        let homeless = facts.namespaced_scope() && info.namespace.is_empty();
        let nameless = named(&info.verb) && info.name.is_empty();
        if nameless || (info.verb == "create" && (!info.name.is_empty() || homeless)) {
            return Err(ApiError::method_not_allowed());
        }
        if !facts.stored() {
            return components::serve(self, resource).await;
        }
        if info.verb == "watch" {
            return self.watch(resource, request).await;
        }
        let body = request.into_body();
        match info.verb.as_str() {
            "get" => read::get(self, resource).await,
            "list" => read::list(self, resource).await,
            "create" => edit::create(self, resource, read_body(body).await?).await,
            "update" => edit::update(self, resource, "", read_body(body).await?).await,
            "patch" => edit::patch(self, resource, "", read_body(body).await?).await,
            "delete" => edit::delete(self, resource, read_body(body).await?).await,
            "deletecollection" => edit::delete_collection(self, resource, read_body(body).await?).await,
            _ => Err(ApiError::method_not_allowed()),
        }
    }

    async fn watch(&self, resource: &'static dyn Resource, mut request: Request<Body>) -> Result<Answered> {
        let messages = websocket::watcher(&mut request, self.answer.format)?;
        let events = read::watch(self, resource).await?;
        Ok(match messages {
            Some(reader) => reader.serve(events.into_body()),
            None => events,
        })
    }
}

/// Verbs whose path names one object.
fn named(verb: &str) -> bool {
    ["get", "update", "patch", "delete"].contains(&verb)
}

/// The whole body, if it is no longer than it may be.
pub async fn read_body(mut body: Body) -> Result<Bytes> {
    match Limited::new(&mut body, MAX_BODY).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            drain(body).await;
            Err(ApiError::request_entity_too_large(MAX_BODY))
        }
        Err(error) => Err(ApiError::bad_request(format!("unable to read the body: {error}"))),
    }
}

/// What a client may send on after its body was refused, in bytes and in time.
const MAX_REFUSED: usize = 64 << 20;
const REFUSED_TIMEOUT: Duration = Duration::from_secs(10);

/// Swallows the rest: a stream that is reset while the client sends takes the answer with it.
async fn drain(mut body: Body) {
    let swallow = async {
        let mut left = MAX_REFUSED;
        while let Some(Ok(frame)) = body.frame().await {
            let length = frame.data_ref().map_or(0, Bytes::len);
            let Some(rest) = left.checked_sub(length) else { return };
            left = rest;
        }
    };
    let _ = tokio::time::timeout(REFUSED_TIMEOUT, swallow).await;
}

/// Bytes of warnings in one answer, as upstream; what does not fit is left out.
const MAX_WARNINGS: usize = 4 << 10;

fn add_warnings(headers: &mut HeaderMap, warnings: &[String]) {
    let mut room = MAX_WARNINGS;
    for warning in warnings {
        let text: String = warning.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
        let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes()) else { continue };
        let Some(left) = room.checked_sub(value.len()) else { return };
        room = left;
        headers.append(header::WARNING, value);
    }
}

/// The answer to a path that does not exist.
pub fn not_found() -> Answered {
    respond::text(StatusCode::NOT_FOUND, "404 page not found\n")
}
