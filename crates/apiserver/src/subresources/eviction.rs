//! Eviction: a delete that disruption budgets may refuse.

use bytes::Bytes;
use http::StatusCode;
use machinery::{
    meta,
    status::{ApiError, Result},
};
use resources::{Resource, registry};

use super::binding::success;
use crate::{
    api::Context,
    respond::{self, Answered},
    strategy::DeleteOptions,
};

pub async fn create(context: &Context, pods: &'static dyn Resource, body: Bytes) -> Result<Answered> {
    let kind = registry().by_gvk("policy", "v1", "Eviction").ok_or_else(ApiError::no_such_resource)?;
    let mut eviction = context.decode(kind, &body)?;
    crate::strategy::match_request(pods.facts(), &mut eviction, &context.info.namespace, Some(&context.info.name))?;
    if meta::name(&eviction) != context.info.name {
        return Err(ApiError::bad_request("name in URL does not match name in Eviction object"));
    }
    let options = match eviction.get_mut("deleteOptions").map(serde_json::Value::take) {
        Some(options) => serde_json::from_value(options).map_err(|error| ApiError::bad_request(error.to_string()))?,
        None => DeleteOptions::default(),
    };
    let mut write = context.write(pods, "eviction", "CreateOptions")?;
    write.dry_run |= !options.dry_run.is_empty();
    context.api.writer.delete(&write, &options).await?;
    Ok(respond::value(&context.answer, StatusCode::CREATED, &success()))
}
