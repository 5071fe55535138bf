//! Paths below an object: one table from name to handler.
//!
//! Those that are the object itself (status, finalize, ...) take the generic write path; scale and
//! binding translate; streams and proxies leave for [`upgrade`](crate::upgrade), reviews and tokens
//! for [`reviews`](crate::reviews).

mod binding;
mod eviction;
mod scale;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, StatusCode};
use machinery::status::{ApiError, Result};
use resources::{Resource, Subresource, Verb, registry};

use crate::{
    admission::Operation,
    api::{Context, read_body},
    edit,
    negotiate::{ACCEPTED, View},
    read,
    respond::{self, Answered},
};

pub async fn serve(context: &Context, resource: &'static dyn Resource, request: Request<Body>) -> Result<Answered> {
    let (facts, name) = (resource.facts(), context.info.subresource.as_str());
    let subresource = facts.subresource(name).ok_or_else(ApiError::no_such_resource)?;
    let verb = context.info.verb.as_str();
    if ["log", "exec", "attach", "portforward", "proxy"].contains(&name) {
        return stream(context, resource, request).await;
    }
    if !context.info.rest.is_empty() {
        return Err(ApiError::no_such_resource());
    }
    if !subresource.verbs.iter().any(|allowed| allowed.as_str() == verb) {
        return Err(ApiError::method_not_allowed());
    }
    let body = read_body(request.into_body()).await?;
    match (name, verb) {
        ("scale", _) => scale::serve(context, resource, body).await,
        ("binding", "create") => binding::create(context, resource, body).await,
        ("eviction", "create") => eviction::create(context, resource, body).await,
        ("token", "create") => token(context, resource, subresource, body).await,
        (_, "get") => read::get(context, resource).await,
        (_, "update") => edit::update(context, resource, name, body).await,
        (_, "patch") => edit::patch(context, resource, name, body).await,
        _ => Err(ApiError::method_not_allowed()),
    }
}

/// A kind that is posted, answered and forgotten: bindings, reviews.
pub async fn post(context: &Context, resource: &'static dyn Resource, body: Bytes) -> Result<Answered> {
    let facts = resource.facts();
    if context.info.verb != Verb::Create.as_str() {
        return Err(ApiError::method_not_allowed());
    }
    match (facts.group, facts.plural) {
        ("", "bindings") => {
            let pods = registry().by_gvr("", "v1", "pods").ok_or_else(ApiError::no_such_resource)?;
            binding::create(context, pods, body).await
        }
        // A review is no row of a table.
        _ if context.answer.view == View::Table => Err(ApiError::not_acceptable(&ACCEPTED)),
        _ => {
            let (info, review) = (&context.info, context.decode(resource, &body)?);
            let answer = context.api.reviews.create(facts, &info.namespace, &context.user, review).await?;
            Ok(respond::value(&context.answer, StatusCode::CREATED, &answer))
        }
    }
}

async fn token(
    context: &Context,
    resource: &'static dyn Resource,
    subresource: &Subresource,
    body: Bytes,
) -> Result<Answered> {
    let Subresource { group, version, kind, .. } = *subresource;
    let kind = registry().by_gvk(group, version, kind).ok_or_else(ApiError::no_such_resource)?;
    let (info, request) = (&context.info, context.decode(kind, &body)?);
    // A kubelet asks for tokens of its own pods only: NodeRestriction looks at the body.
    let write = context.write(resource, "token", "CreateOptions")?;
    context.api.writer.judge(&write, Operation::Create, &request).await?;
    let answer = context.api.reviews.token_request(&info.namespace, &info.name, request).await?;
    Ok(respond::value(&context.answer, StatusCode::CREATED, &answer))
}

/// Requests that end at a kubelet, pod or service: the body is passed on as it comes.
async fn stream(context: &Context, resource: &'static dyn Resource, request: Request<Body>) -> Result<Answered> {
    let info = &context.info;
    if info.subresource == "proxy" {
        return context.api.upgrade.proxy(resource.facts().plural, &info.namespace, &info.name, request).await;
    }
    context.api.upgrade.pod(&info.subresource, &info.namespace, &info.name, request).await
}
