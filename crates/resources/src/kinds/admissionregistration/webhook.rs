//! Webhook configurations: which requests the server asks others about, and where they are.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::admissionregistration::v1 as api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use machinery::field::Path;
use machinery::names;
use machinery::table::Column;
use serde_json::{Value, json};

use super::{cluster, rules};
use crate::facts::Facts;
use crate::print;
use crate::resource::Kind;
use crate::validate::{Errors, PORT_RANGE, indexed, named, selector};
use crate::value::Defaulting;

pub struct MutatingWebhookConfiguration;
pub struct ValidatingWebhookConfiguration;

const COLUMNS: &[Column] = &[print::NAME, print::integer("Webhooks"), print::AGE];
/// Versions of AdmissionReview that the server speaks.
const REVIEW_VERSIONS: &[&str] = &["v1", "v1beta1"];
/// What sending a request twice, or for nothing, may do.
const SIDE_EFFECTS: &[&str] = &["None", "NoneOnDryRun"];

impl Kind for MutatingWebhookConfiguration {
    type Object = api::MutatingWebhookConfiguration;

    const FACTS: Facts = cluster(
        "MutatingWebhookConfiguration",
        "mutatingwebhookconfigurations",
        "mutatingwebhookconfiguration",
        "io.k8s.api.admissionregistration.v1.MutatingWebhookConfiguration",
    );
    const COLUMNS: &'static [Column] = COLUMNS;

    fn defaults(object: &mut Value) {
        defaults(object);
        object.each("webhooks", |webhook| {
            webhook.or("reinvocationPolicy", "Never");
        });
    }

    fn validate(object: &api::MutatingWebhookConfiguration, errors: &mut Errors) {
        for (at, webhook) in indexed(object.webhooks.as_ref(), &Path::new("webhooks")) {
            let policy = webhook.reinvocation_policy.as_deref();
            errors.optional_one_of(&at.child("reinvocationPolicy"), policy, &["IfNeeded", "Never"]);
        }
        validate(object.webhooks.iter().flatten().map(Webhook::from), errors);
    }

    fn cells(object: &Value, typed: &api::MutatingWebhookConfiguration, now: Timestamp) -> Vec<Value> {
        vec![print::name(object), json!(typed.webhooks.as_ref().map_or(0, Vec::len)), print::age(object, now)]
    }

    fn generation_changes(new: &Value, old: &Value) -> bool {
        !machinery::schema::semantic_equal(&new["webhooks"], &old["webhooks"])
    }
}

impl Kind for ValidatingWebhookConfiguration {
    type Object = api::ValidatingWebhookConfiguration;

    const FACTS: Facts = cluster(
        "ValidatingWebhookConfiguration",
        "validatingwebhookconfigurations",
        "validatingwebhookconfiguration",
        "io.k8s.api.admissionregistration.v1.ValidatingWebhookConfiguration",
    );
    const COLUMNS: &'static [Column] = COLUMNS;

    fn defaults(object: &mut Value) {
        defaults(object);
    }

    fn validate(object: &api::ValidatingWebhookConfiguration, errors: &mut Errors) {
        validate(object.webhooks.iter().flatten().map(Webhook::from), errors);
    }

    fn cells(object: &Value, typed: &api::ValidatingWebhookConfiguration, now: Timestamp) -> Vec<Value> {
        vec![print::name(object), json!(typed.webhooks.as_ref().map_or(0, Vec::len)), print::age(object, now)]
    }

    fn generation_changes(new: &Value, old: &Value) -> bool {
        !machinery::schema::semantic_equal(&new["webhooks"], &old["webhooks"])
    }
}

fn defaults(object: &mut Value) {
    object.each("webhooks", |webhook| {
        webhook.or("failurePolicy", "Fail").or("matchPolicy", "Equivalent").or("timeoutSeconds", 10);
        webhook.or("namespaceSelector", json!({})).or("objectSelector", json!({}));
        webhook.each("rules", |rule| {
            rule.or("scope", "*");
        });
        if let Some(service) = webhook.at("clientConfig").and_then(|config| config.at("service")) {
            service.or("port", 443);
        }
    });
}

/// What the two kinds of webhooks have in common.
struct Webhook<'a> {
    name: &'a str,
    client: &'a api::WebhookClientConfig,
    rules: Option<&'a Vec<api::RuleWithOperations>>,
    failure_policy: Option<&'a str>,
    match_policy: Option<&'a str>,
    conditions: Option<&'a Vec<api::MatchCondition>>,
    selectors: [(&'static str, Option<&'a LabelSelector>); 2],
    side_effects: &'a str,
    timeout_seconds: Option<i32>,
    versions: &'a Vec<String>,
}

macro_rules! common {
    ($kind:ident) => {
        impl<'a> From<&'a api::$kind> for Webhook<'a> {
            fn from(webhook: &'a api::$kind) -> Self {
                Webhook {
                    name: &webhook.name,
                    client: &webhook.client_config,
                    rules: webhook.rules.as_ref(),
                    failure_policy: webhook.failure_policy.as_deref(),
                    match_policy: webhook.match_policy.as_deref(),
                    conditions: webhook.match_conditions.as_ref(),
                    selectors: [
                        ("namespaceSelector", webhook.namespace_selector.as_ref()),
                        ("objectSelector", webhook.object_selector.as_ref()),
                    ],
                    side_effects: &webhook.side_effects,
                    timeout_seconds: webhook.timeout_seconds,
                    versions: &webhook.admission_review_versions,
                }
            }
        }
    };
}

common!(MutatingWebhook);
common!(ValidatingWebhook);

fn validate<'a>(webhooks: impl Iterator<Item = Webhook<'a>>, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (index, webhook) in webhooks.enumerate() {
        let at = Path::new("webhooks").index(index);
        self::webhook(&webhook, &at, errors);
        if !webhook.name.is_empty() && !seen.insert(webhook.name) {
            errors.duplicate(&at.child("name"), webhook.name);
        }
    }
}

fn webhook(webhook: &Webhook<'_>, path: &Path, errors: &mut Errors) {
    fully_qualified(webhook.name, &path.child("name"), errors);
    versions(webhook.versions, &path.child("admissionReviewVersions"), errors);
    for (at, rule) in indexed(webhook.rules, &path.child("rules")) {
        rules::rule(rule, &at, errors);
    }
    errors.optional_one_of(&path.child("failurePolicy"), webhook.failure_policy, rules::FAILURE_POLICIES);
    rules::match_policy(webhook.match_policy, &path.child("matchPolicy"), errors);
    errors.one_of(&path.child("sideEffects"), Some(webhook.side_effects), SIDE_EFFECTS);
    if let Some(seconds) = webhook.timeout_seconds.filter(|seconds| !(1..=30).contains(seconds)) {
        let detail = "the timeout value must be between 1 and 30 seconds";
        errors.invalid(&path.child("timeoutSeconds"), seconds, detail);
    }
    for (key, labels) in webhook.selectors {
        if let Some(labels) = labels {
            selector::validate(labels, &path.child(key), errors);
        }
    }
    rules::conditions(webhook.conditions, &path.child("matchConditions"), errors);
    client(webhook.client, &path.child("clientConfig"), errors);
}

fn fully_qualified(name: &str, path: &Path, errors: &mut Errors) {
    errors.needed(path, name);
    named::optional_subdomain(name, path, errors);
    if !name.is_empty() && name.split('.').count() < 3 {
        errors.invalid(path, name, "should be a domain with at least three segments separated by dots");
    }
}

fn versions(versions: &Vec<String>, path: &Path, errors: &mut Errors) {
    if versions.is_empty() {
        return errors.required(path, format!("must specify one of {}", REVIEW_VERSIONS.join(", ")));
    }
    named::distinct(Some(versions), path, errors);
    for (at, version) in indexed(Some(versions), path) {
        errors.all_invalid(&at, version, names::is_dns1035_label(version));
    }
    if !versions.iter().any(|version| REVIEW_VERSIONS.contains(&version.as_str())) {
        errors.invalid(path, versions, format!("must include at least one of {}", REVIEW_VERSIONS.join(", ")));
    }
}

fn client(config: &api::WebhookClientConfig, path: &Path, errors: &mut Errors) {
    match (&config.url, &config.service) {
        (Some(url), None) => self::url(url, &path.child("url"), errors),
        (None, Some(service)) => self::service(service, &path.child("service"), errors),
        _ => errors.required(path, "exactly one of url or service is required"),
    }
}

/// `https://host[:port]/path`, and nothing more.
fn url(url: &str, path: &Path, errors: &mut Errors) {
    const FORM: &str = "; desired format: https://host[:port]/path";
    let Some((scheme, rest)) = url.split_once("://") else {
        return errors.required(path, format!("url must be a valid URL: {url:?} has no scheme{FORM}"));
    };
    if scheme != "https" {
        errors.invalid(path, scheme, format!("'https' is the only allowed URL scheme{FORM}"));
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.is_empty() {
        errors.invalid(path, authority, format!("host must be specified{FORM}"));
    }
    if let Some((user, _)) = authority.rsplit_once('@') {
        errors.invalid(path, user, "user information is not permitted in the URL");
    }
    if let Some((_, fragment)) = url.split_once('#').filter(|(_, fragment)| !fragment.is_empty()) {
        errors.invalid(path, fragment, "fragments are not permitted in the URL");
    }
    if let Some((_, query)) = url.split_once('?').filter(|(_, query)| !query.is_empty()) {
        errors.invalid(path, query, "query parameters are not permitted in the URL");
    }
}

fn service(service: &api::ServiceReference, path: &Path, errors: &mut Errors) {
    if service.name.is_empty() {
        errors.required(&path.child("name"), "service name is required");
    }
    if service.namespace.is_empty() {
        errors.required(&path.child("namespace"), "service namespace is required");
    }
    if let Some(port) = service.port.filter(|port| !(1..=65535).contains(port)) {
        errors.invalid(&path.child("port"), port, format!("port is not valid: {PORT_RANGE}"));
    }
    let Some(target) = service.path.as_deref().filter(|target| *target != "/") else { return };
    let at = path.child("path");
    if !target.starts_with('/') {
        return errors.invalid(&at, target, "must start with a '/'");
    }
    let segments: Vec<&str> = target[1..].split('/').collect();
    for (index, segment) in segments.iter().enumerate() {
        match *segment {
            // One slash may end it.
            "" if index == segments.len() - 1 && index > 0 => {}
            "" => errors.invalid(&at, target, format!("segment[{index}] may not be empty")),
            segment => {
                for wrong in names::is_dns1123_subdomain(segment) {
                    errors.invalid(&at, target, format!("segment[{index}]: {wrong}"));
                }
            }
        }
    }
}
