//! `flowcontrol.apiserver.k8s.io/v1`: which requests share what part of the server.

use jiff::Timestamp;
use k8s_openapi::api::flowcontrol::v1 as api;
use machinery::field::Path;
use machinery::names;
use machinery::table::Column;
use serde_json::{Value, json};

use crate::facts::{Facts, Subresource};
use crate::print::{self, NONE};
use crate::resource::Kind;
use crate::validate::{Errors, indexed, named, text};
use crate::value::Defaulting;

pub struct FlowSchema;
pub struct PriorityLevelConfiguration;

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
/// The schema and the level of requests that are never queued.
const EXEMPT: &str = "exempt";
const MAX_PRECEDENCE: i32 = 10_000;
const MAX_QUEUES: i32 = 10_000_000;
const VERBS: &[&str] =
    &["*", "create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];
/// Further verbs of requests that are not for resources.
const METHODS: &[&str] = &["*", "delete", "get", "head", "options", "patch", "post", "put"];

impl Kind for FlowSchema {
    type Object = api::FlowSchema;

    const FACTS: Facts = Facts {
        subresources: &[Subresource::own("status", GROUP, "v1", "FlowSchema")],
        generation: true,
        ..Facts::cluster(GROUP, "v1", "FlowSchema", "flowschemas", "flowschema", "io.k8s.api.flowcontrol.v1.FlowSchema")
    };
    const COLUMNS: &'static [Column] = &[
        print::NAME,
        print::text("PriorityLevel"),
        print::text("MatchingPrecedence"),
        print::text("DistinguisherMethod"),
        print::AGE,
        print::text("MissingPL"),
    ];

    fn defaults(object: &mut Value) {
        object.make("spec").or_zero("matchingPrecedence", 1000);
    }

    fn validate(object: &api::FlowSchema, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = object.spec.clone().unwrap_or_default();
        let (precedence, at) = (spec.matching_precedence.unwrap_or(0), path.child("matchingPrecedence"));
        if precedence <= 0 {
            errors.invalid(&at, precedence, "must be a positive value");
        }
        if precedence > MAX_PRECEDENCE {
            errors.invalid(&at, precedence, format!("must not be greater than {MAX_PRECEDENCE}"));
        }
        if precedence == 1 && text(&object.metadata.name) != EXEMPT {
            let detail = "only the schema named 'exempt' may have matchingPrecedence 1";
            errors.invalid(&at, precedence, detail);
        }
        if let Some(method) = &spec.distinguisher_method {
            let at = path.child("distinguisherMethod").child("type");
            errors.one_of(&at, Some(&method.type_), &["ByNamespace", "ByUser"]);
        }
        let (level, at) = (&spec.priority_level_configuration.name, path.child("priorityLevelConfiguration"));
        if level.is_empty() {
            errors.required(&at.child("name"), "must reference a priority level");
        }
        named::optional_subdomain(level, &at.child("name"), errors);
        for (at, rule) in indexed(spec.rules.as_ref(), &path.child("rules")) {
            self::rule(rule, &at, errors);
        }
    }

    fn cells(object: &Value, typed: &api::FlowSchema, now: Timestamp) -> Vec<Value> {
        let spec = typed.spec.clone().unwrap_or_default();
        let conditions = typed.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let dangling = conditions.iter().find(|condition| text(&condition.type_) == "Dangling");
        vec![
            print::name(object),
            json!(spec.priority_level_configuration.name),
            json!(spec.matching_precedence.unwrap_or(0)),
            json!(spec.distinguisher_method.as_ref().map_or(NONE, |method| method.type_.as_str())),
            print::age(object, now),
            json!(dangling.map_or("?", |condition| text(&condition.status))),
        ]
    }
}

impl Kind for PriorityLevelConfiguration {
    type Object = api::PriorityLevelConfiguration;

    const FACTS: Facts = Facts {
        subresources: &[Subresource::own("status", GROUP, "v1", "PriorityLevelConfiguration")],
        generation: true,
        ..Facts::cluster(
            GROUP,
            "v1",
            "PriorityLevelConfiguration",
            "prioritylevelconfigurations",
            "prioritylevelconfiguration",
            "io.k8s.api.flowcontrol.v1.PriorityLevelConfiguration",
        )
    };
    const COLUMNS: &'static [Column] = &[
        print::NAME,
        print::text("Type"),
        print::text("NominalConcurrencyShares"),
        print::text("Queues"),
        print::text("HandSize"),
        print::text("QueueLengthLimit"),
        print::AGE,
    ];

    fn defaults(object: &mut Value) {
        let spec = object.make("spec");
        if let Some(exempt) = spec.at("exempt") {
            exempt.or("nominalConcurrencyShares", 0).or("lendablePercent", 0);
        }
        if let Some(limited) = spec.at("limited") {
            limited.or("nominalConcurrencyShares", 30).or("lendablePercent", 0);
            if let Some(queuing) = limited.at("limitResponse").and_then(|response| response.at("queuing")) {
                queuing.or_zero("queues", 64).or_zero("handSize", 8).or_zero("queueLengthLimit", 50);
            }
        }
    }

    fn validate(object: &api::PriorityLevelConfiguration, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = object.spec.clone().unwrap_or_default();
        let name = text(&object.metadata.name);
        errors.one_of(&path.child("type"), Some(&spec.type_), &["Exempt", "Limited"]);
        if (name == EXEMPT) != (spec.type_ == "Exempt") && !spec.type_.is_empty() {
            let detail = format!("type must be 'Exempt' if and only if name is {EXEMPT:?}");
            errors.invalid(&path.child("type"), &spec.type_, detail);
        }
        match (spec.type_.as_str(), &spec.exempt, &spec.limited) {
            ("Exempt", _, Some(_)) => {
                errors.forbidden(&path.child("limited"), "must be nil if the type is not Limited");
            }
            ("Limited", Some(_), _) => {
                errors.forbidden(&path.child("exempt"), "must be nil if the type is Limited");
            }
            ("Limited", None, None) => {
                errors.required(&path.child("limited"), "must not be empty when type is Limited");
            }
            _ => {}
        }
        if let Some(exempt) = &spec.exempt {
            let at = path.child("exempt");
            errors.non_negative(&at.child("nominalConcurrencyShares"), exempt.nominal_concurrency_shares);
            percent(exempt.lendable_percent, &at.child("lendablePercent"), errors);
        }
        if let Some(limited) = &spec.limited {
            self::limited(limited, &path.child("limited"), errors);
        }
    }

    fn cells(object: &Value, typed: &api::PriorityLevelConfiguration, now: Timestamp) -> Vec<Value> {
        let spec = typed.spec.clone().unwrap_or_default();
        let shares = spec.limited.as_ref().and_then(|limited| limited.nominal_concurrency_shares);
        let queuing = spec.limited.and_then(|limited| limited.limit_response?.queuing).unwrap_or_default();
        let shown = |value: Option<i32>| value.map_or_else(|| json!(NONE), |value| json!(value));
        vec![
            print::name(object),
            json!(spec.type_),
            shown(shares),
            shown(queuing.queues),
            shown(queuing.hand_size),
            shown(queuing.queue_length_limit),
            print::age(object, now),
        ]
    }
}

fn rule(rule: &api::PolicyRulesWithSubjects, path: &Path, errors: &mut Errors) {
    if rule.subjects.is_empty() {
        errors.required(&path.child("subjects"), "subjects must contain at least one value");
    }
    for (at, subject) in indexed(Some(&rule.subjects), &path.child("subjects")) {
        self::subject(subject, &at, errors);
    }
    let empty = rule.resource_rules.as_ref().is_none_or(Vec::is_empty)
        && rule.non_resource_rules.as_ref().is_none_or(Vec::is_empty);
    if empty {
        errors.required(path, "at least one of resourceRules and nonResourceRules has to be non-empty");
    }
    for (at, rule) in indexed(rule.resource_rules.as_ref(), &path.child("resourceRules")) {
        list(&rule.verbs, Some(VERBS), &at.child("verbs"), errors);
        list(&rule.api_groups, None, &at.child("apiGroups"), errors);
        list(&rule.resources, None, &at.child("resources"), errors);
        let (namespaces, at) = (rule.namespaces.clone().unwrap_or_default(), at.child("namespaces"));
        if namespaces.is_empty() && rule.cluster_scope != Some(true) {
            let detail = "resource rules that are not cluster scoped must supply at least one namespace";
            errors.required(&at, detail);
        }
        named::wildcard_alone(&namespaces, "namespaces", &at, errors);
        for (at, namespace) in indexed(Some(&namespaces), &at).filter(|(_, namespace)| *namespace != "*") {
            errors.all_invalid(&at, namespace, names::is_dns1123_label(namespace));
        }
    }
    for (at, rule) in indexed(rule.non_resource_rules.as_ref(), &path.child("nonResourceRules")) {
        list(&rule.verbs, Some(METHODS), &at.child("verbs"), errors);
        list(&rule.non_resource_urls, None, &at.child("nonResourceURLs"), errors);
        for (at, url) in indexed(Some(&rule.non_resource_urls), &at.child("nonResourceURLs")) {
            let inner = url.strip_suffix('*').unwrap_or(url);
            match url.as_str() {
                "*" => {}
                "" => errors.invalid(&at, url, "nonResourceURL must not be empty"),
                _ if !url.starts_with('/') => {
                    errors.invalid(&at, url, "path must start with '/'");
                }
                _ if inner.contains('*') || (inner.len() < url.len() && !inner.ends_with('/')) => {
                    errors.invalid(&at, url, "wildcards can only do suffix matching");
                }
                _ => {}
            }
        }
    }
}

/// At least one item; `*` alone; where the words are known, no others.
fn list(items: &Vec<String>, known: Option<&[&str]>, path: &Path, errors: &mut Errors) {
    if items.is_empty() {
        errors.required(path, "must contain at least one value");
    }
    if items.len() > 1 && items.iter().any(|item| item == "*") {
        errors.invalid(path, items, "if '*' is present, must not specify other values");
    }
    if let Some(known) = known {
        for (at, item) in indexed(Some(items), path) {
            errors.one_of(&at, Some(item), known);
        }
    }
}

fn subject(subject: &api::Subject, path: &Path, errors: &mut Errors) {
    let parts = [
        ("User", "user", subject.user.as_ref().map(|user| user.name.as_str())),
        ("Group", "group", subject.group.as_ref().map(|group| group.name.as_str())),
        ("ServiceAccount", "serviceAccount", subject.service_account.as_ref().map(|account| account.name.as_str())),
    ];
    errors.one_of(&path.child("kind"), Some(&subject.kind), &["Group", "ServiceAccount", "User"]);
    for (kind, key, name) in parts {
        let at = path.child(key);
        match (kind == subject.kind, name) {
            (true, None) => errors.required(&at, format!("{key} is required when subject kind is '{kind}'")),
            (true, Some(name)) => errors.needed(&at.child("name"), name),
            (false, Some(_)) => {
                errors.forbidden(&at, format!("{key} is forbidden when subject kind is not '{kind}'"));
            }
            (false, None) => {}
        }
    }
    if let Some(account) = &subject.service_account {
        errors.needed(&path.child("serviceAccount").child("namespace"), &account.namespace);
    }
}

fn percent(value: Option<i32>, path: &Path, errors: &mut Errors) {
    if let Some(value) = value.filter(|value| !(0..=100).contains(value)) {
        errors.invalid(path, value, "must be between 0 and 100, inclusive");
    }
}

fn limited(limited: &api::LimitedPriorityLevelConfiguration, path: &Path, errors: &mut Errors) {
    errors.non_negative(&path.child("nominalConcurrencyShares"), limited.nominal_concurrency_shares);
    percent(limited.lendable_percent, &path.child("lendablePercent"), errors);
    errors.non_negative(&path.child("borrowingLimitPercent"), limited.borrowing_limit_percent);
    let response = limited.limit_response.clone().unwrap_or_default();
    let path = path.child("limitResponse");
    errors.one_of(&path.child("type"), Some(&response.type_), &["Queue", "Reject"]);
    let at = path.child("queuing");
    match (response.type_.as_str(), &response.queuing) {
        ("Reject", Some(_)) => errors.forbidden(&at, "must be nil if limited.limitResponse.type is not Limited"),
        ("Queue", None) => errors.required(&at, "must not be empty if limited.limitResponse.type is Limited"),
        (_, Some(queuing)) => self::queuing(queuing, &at, errors),
        _ => {}
    }
}

fn queuing(queuing: &api::QueuingConfiguration, path: &Path, errors: &mut Errors) {
    let positive =
        [("queueLengthLimit", queuing.queue_length_limit), ("queues", queuing.queues), ("handSize", queuing.hand_size)];
    for (key, value) in positive {
        let value = value.unwrap_or(0);
        if value <= 0 {
            errors.invalid(&path.child(key), value, "must be positive");
        }
    }
    let (queues, hand) = (queuing.queues.unwrap_or(0), queuing.hand_size.unwrap_or(0));
    if queues > MAX_QUEUES {
        errors.invalid(&path.child("queues"), queues, format!("must not be greater than {MAX_QUEUES}"));
    }
    if hand > queues {
        let detail = format!("should not be greater than queues ({queues})");
        errors.invalid(&path.child("handSize"), hand, detail);
    }
}
