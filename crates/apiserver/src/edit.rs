//! Create, update, patch and delete as HTTP requests: bodies, options and preconditions in; the
//! write path does the rest.

use bytes::Bytes;
use http::{StatusCode, header};
use machinery::{
    field::FieldError,
    meta, patch,
    schema::decode::{self, FieldValidation},
    status::{ApiError, Result},
};
use resources::{Resource, types};
use serde_json::{Value, json};

use crate::{
    api::Context,
    codec,
    negotiate::{self, PatchType},
    read::filter,
    request::RequestInfo,
    respond::{Answered, Renderer, whole},
    strategy::{DeleteOptions, check_dry_run, match_request},
    write::{Write, Written, ownership},
};

/// Bytes of a field manager's name, as upstream.
const MAX_MANAGER: usize = 128;

impl Context {
    /// A write by this request's user, with the options of its query.
    pub fn write<'a>(&'a self, resource: &'static dyn Resource, subresource: &'a str, kind: &str) -> Result<Write<'a>> {
        let mut errors = Vec::new();
        self.check_manager(&mut errors);
        check_dry_run(self.query.all("dryRun"), &mut errors);
        let validation = self.query.get("fieldValidation");
        if FieldValidation::parse(validation).is_err() {
            errors.push(FieldError::not_supported("fieldValidation", validation, &["", "Ignore", "Strict", "Warn"]));
        }
        if !errors.is_empty() {
            return Err(ApiError::invalid("meta.k8s.io", kind, "", errors));
        }
        let dry_run = self.query.find("dryRun").is_some();
        let mut options = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
        if dry_run {
            options["dryRun"] = json!(["All"]);
        }
        for key in ["fieldManager", "fieldValidation"] {
            if let Some(value) = self.query.find(key).filter(|value| !value.is_empty()) {
                options[key] = value.into();
            }
        }
        Ok(Write {
            resource,
            subresource,
            namespace: &self.info.namespace,
            name: &self.info.name,
            user: &self.user,
            dry_run,
            manager: Some(self.manager()),
            create: false,
            options,
            warnings: &self.warnings,
        })
    }

    fn check_manager(&self, errors: &mut Vec<FieldError>) {
        let manager = self.query.get("fieldManager");
        let applies = negotiate::applies(&self.headers);
        if applies && manager.is_empty() {
            errors.push(FieldError::required("fieldManager", "is required for apply patch"));
        }
        if self.info.verb == "patch" && !applies && self.query.find("force").is_some() {
            errors.push(FieldError::forbidden("force", "may not be specified for non-apply patch"));
        }
        if manager.len() > MAX_MANAGER {
            errors.push(FieldError::too_long("fieldManager", MAX_MANAGER));
        }
        if let Some((at, c)) = manager.char_indices().find(|(_, c)| c.is_control()) {
            let why = format!("invalid character U+{:04X} (at position {at})", c as u32);
            errors.push(FieldError::invalid("fieldManager", manager, why));
        }
    }

    /// Who the client says it is, as an owner of fields; else the first word of its user agent.
    fn manager(&self) -> &str {
        let agent = self.headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
        let agent = agent.split('/').next().unwrap_or_default();
        let named = self.query.find("fieldManager").filter(|manager| !manager.is_empty());
        named.unwrap_or(&agent[..agent.len().min(MAX_MANAGER)])
    }

    pub fn validation(&self) -> FieldValidation {
        FieldValidation::parse(self.query.get("fieldValidation")).unwrap_or_default()
    }

    /// The body as an object of `resource`'s kind.
    pub fn decode(&self, resource: &dyn Resource, body: &Bytes) -> Result<Value> {
        let format = negotiate::body(&self.headers)?;
        codec::decode(resource.facts(), format, body, self.validation(), &self.warnings)
    }

    pub fn written(&self, resource: &'static dyn Resource, written: &Written) -> Result<Answered> {
        let status = if written.created { StatusCode::CREATED } else { StatusCode::OK };
        Ok(Renderer::new(resource, self.answer, &self.query)?.one(status, &written.json))
    }
}

pub async fn create(context: &Context, resource: &'static dyn Resource, body: Bytes) -> Result<Answered> {
    let write = context.write(resource, "", "CreateOptions")?;
    let object = context.decode(resource, &body)?;
    let written = context.api.writer.create(&write, object).await?;
    context.written(resource, &written)
}

/// PUT of the object or of a subresource that is the object.
pub async fn update(
    context: &Context,
    resource: &'static dyn Resource,
    subresource: &str,
    body: Bytes,
) -> Result<Answered> {
    let write = context.write(resource, subresource, "UpdateOptions")?;
    let object = context.decode(resource, &body)?;
    let written = context.api.writer.update(&write, &|_| Ok(object.clone())).await?;
    context.written(resource, &written)
}

pub async fn patch(
    context: &Context,
    resource: &'static dyn Resource,
    subresource: &str,
    body: Bytes,
) -> Result<Answered> {
    if negotiate::applies(&context.headers) {
        let write = context.write(resource, subresource, "PatchOptions")?;
        let config = configuration(context, resource, &body)?;
        let written = apply(context, write, config).await?;
        return context.written(resource, &written);
    }
    let patch = Patch::parse(context, &body)?;
    let write = context.write(resource, subresource, "PatchOptions")?;
    let facts = resource.facts();
    let source = |old: Option<&Value>| {
        let old = old.ok_or_else(|| ApiError::not_found(facts.group, facts.plural, &context.info.name))?;
        patch.apply(context, resource, old)
    };
    let written = context.api.writer.update(&write, &source).await?;
    context.written(resource, &written)
}

/// A configuration to apply, with the fields as they were sent.
pub fn configuration(context: &Context, resource: &dyn Resource, body: &Bytes) -> Result<Value> {
    let (mut config, duplicates) =
        decode::yaml(body).map_err(|error| ApiError::bad_request(format!("error decoding YAML: {error}")))?;
    if !config.is_object() {
        return Err(ApiError::bad_request("error decoding YAML: a configuration is an object"));
    }
    codec::check_kind(resource.facts(), &mut config)?;
    context.warnings.lock().extend(decode::judge(&config, duplicates, context.validation())?);
    Ok(config)
}

/// Server-side apply: makes the object say what `config` says, and no longer what its manager said before.
pub async fn apply(context: &Context, write: Write<'_>, mut config: Value) -> Result<Written> {
    let (facts, info) = (write.resource.facts(), &context.info);
    let schema = types().get(facts.schema).ok_or_else(ApiError::no_such_resource)?;
    let now = machinery::time::now_rfc3339();
    let ownership = ownership(facts, schema, write.subresource, context.manager(), &now);
    ownership.check(&mut config)?;
    if meta::name(&config).is_empty() {
        meta::set_name(&mut config, &info.name);
    }
    match_request(facts, &mut config, &info.namespace, Some(&info.name))?;
    let force = context.query.bool("force").unwrap_or(false);
    let source = |old: Option<&Value>| {
        if old.is_none() {
            let create = RequestInfo { verb: "create".into(), ..info.clone() };
            context.api.permit(&context.user, &create, &context.query)?;
        }
        let nothing = json!({"kind": facts.kind, "apiVersion": facts.api_version()});
        let mut new = ownership.apply(old.unwrap_or(&nothing), &config, force)?;
        codec::prune(facts, &mut new)?;
        Ok(new)
    };
    let write = Write { manager: None, create: true, ..write };
    context.api.writer.update(&write, &source).await
}

/// A patch, parsed once and applied as often as others interfere.
pub struct Patch {
    kind: PatchType,
    value: Value,
    /// Fields said twice, or not known to a JSON patch.
    findings: Vec<String>,
}

impl Patch {
    pub fn parse(context: &Context, body: &Bytes) -> Result<Patch> {
        let kind = negotiate::patch(&context.headers)?;
        let refuse = |error: String| match kind {
            PatchType::Strategic => ApiError::bad_request(error),
            _ => ApiError::bad_request(format!("error decoding patch: {error}")),
        };
        let (value, mut findings) = decode::json(body).map_err(refuse)?;
        if value.is_array() != (kind == PatchType::Json) || !(value.is_array() || value.is_object()) {
            let wanted = if kind == PatchType::Json { "[]handlers.jsonPatchOp" } else { "map[string]interface {}" };
            let found = match &value {
                Value::Array(_) => "array",
                Value::Object(_) => "object",
                Value::String(_) => "string",
                Value::Number(_) => "number",
                _ => "bool",
            };
            return Err(refuse(format!("json: cannot unmarshal {found} into Go value of type {wanted}")));
        }
        if kind == PatchType::Json {
            findings.extend(unknown_fields(&value));
            findings.iter_mut().for_each(|finding| finding.insert_str(0, "json patch "));
        }
        Ok(Patch { kind, value, findings })
    }

    /// The object as it is after the patch, checked as a body would be.
    pub fn apply(&self, context: &Context, resource: &dyn Resource, object: &Value) -> Result<Value> {
        let facts = resource.facts();
        let schema = || types().get(facts.schema).ok_or_else(ApiError::no_such_resource);
        let mut new = object.clone();
        match self.kind {
            PatchType::Json => patch::json_patch(&mut new, &self.value)?,
            PatchType::Merge => patch::merge_patch(&mut new, &self.value)?,
            PatchType::Strategic => patch::strategic(types(), schema()?, &mut new, &self.value)?,
        }
        let patched = if self.kind == PatchType::Strategic { String::new() } else { new.to_string() };
        let refuse = |error: String| {
            let (shown, error) = match self.kind {
                PatchType::Strategic => (patch::go_text(&self.value), patch::conversion_error(&error)),
                _ => (patched, error),
            };
            ApiError::invalid("", "", "", vec![FieldError::invalid("patch", shown, error)])
        };
        if let Some(error) = codec::wrong_kind(facts, &new) {
            return Err(refuse(error));
        }
        codec::check_kind(facts, &mut new)?;
        let found = decode::check_patched(types(), schema()?, &mut new, self.findings.clone(), context.validation());
        context.warnings.lock().extend(found.map_err(refuse)?);
        Ok(new)
    }
}

/// Fields of a JSON patch's operations that say nothing.
fn unknown_fields(operations: &Value) -> Vec<String> {
    let known = |key: &&String| ["op", "path", "from", "value"].contains(&key.as_str());
    let operations = operations.as_array().into_iter().flatten().enumerate();
    let fields = operations.filter_map(|(index, operation)| Some((index, operation.as_object()?)));
    let unknown = fields.flat_map(|(index, fields)| {
        fields.keys().filter(move |key| !known(key)).map(move |key| format!("unknown field \"[{index}].{key}\""))
    });
    unknown.collect()
}

pub async fn delete(context: &Context, resource: &'static dyn Resource, body: Bytes) -> Result<Answered> {
    let options = delete_options(context, &body)?;
    let mut write = context.write(resource, "", "DeleteOptions")?;
    write.dry_run = !options.dry_run.is_empty();
    write.warn(options.warning(resource.facts()).map(str::to_owned));
    let deleted = context.api.writer.delete(&write, &options).await?;
    let accepted = !deleted.gone && options.orphan_dependents == Some(false);
    let status = if accepted { StatusCode::ACCEPTED } else { StatusCode::OK };
    if deleted.json.starts_with(b"{\"kind\":\"Status\"") {
        return Ok(whole(&context.answer, status, deleted.json));
    }
    Ok(Renderer::new(resource, context.answer, &context.query)?.one(status, &deleted.json))
}

pub async fn delete_collection(context: &Context, resource: &'static dyn Resource, body: Bytes) -> Result<Answered> {
    let options = delete_options(context, &body)?;
    let mut write = context.write(resource, "", "DeleteOptions")?;
    write.dry_run = !options.dry_run.is_empty();
    write.name = "";
    write.warn(options.warning(resource.facts()).map(str::to_owned));
    let filter = filter(context, resource)?;
    let deleted = context.api.writer.delete_collection(&write, &options, &filter).await?;
    let metadata = json!({"resourceVersion": context.api.writer.objects.hub.applied().to_string()});
    Ok(Renderer::new(resource, context.answer, &context.query)?.list(&metadata, deleted))
}

/// From the body if there is one, else from the query.
pub fn delete_options(context: &Context, body: &Bytes) -> Result<DeleteOptions> {
    if !body.is_empty() {
        let mut options = codec::delete_options(negotiate::body(&context.headers)?, body)?;
        options.dry_run.extend(context.query.all("dryRun").map(str::to_owned));
        return Ok(options);
    }
    let text = |key| context.query.find(key).filter(|value| !value.is_empty()).map(str::to_owned);
    Ok(DeleteOptions {
        grace_period_seconds: context.query.int("gracePeriodSeconds")?,
        preconditions: None,
        orphan_dependents: context.query.bool("orphanDependents"),
        propagation_policy: text("propagationPolicy"),
        dry_run: context.query.all("dryRun").map(str::to_owned).collect(),
    })
}
