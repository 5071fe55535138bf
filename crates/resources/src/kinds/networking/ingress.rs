//! Ingress: HTTP routes from outside to Services.

use std::collections::BTreeSet;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::networking::v1 as api;
use machinery::field::Path;
use machinery::names;
use machinery::table::Column;
use serde_json::{Value, json};

use super::GROUP;
use crate::facts::{Facts, Subresource};
use crate::print::{self, NONE};
use crate::resource::Kind;
use crate::validate::{Errors, indexed, named, text};

pub struct Ingress;

/// How the class was named before there was a field for it.
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
const SHOWN_HOSTS: usize = 3;
/// What a path must not smuggle past a prefix, and what it must not end with.
const FORBIDDEN_IN_PATHS: [&str; 5] = ["//", "/./", "/../", "%2f", "%2F"];
const FORBIDDEN_AT_END: [&str; 2] = ["/..", "/."];

impl Kind for Ingress {
    type Object = api::Ingress;

    const FACTS: Facts = Facts {
        short_names: &["ing"],
        subresources: &[Subresource::own("status", GROUP, "v1", "Ingress")],
        storage_prefix: "ingress",
        generation: true,
        ..Facts::namespaced(GROUP, "v1", "Ingress", "ingresses", "ingress", "io.k8s.api.networking.v1.Ingress")
    };
    const COLUMNS: &'static [Column] = &[
        print::NAME,
        print::text("Class"),
        print::text("Hosts"),
        print::text("Address"),
        print::text("Ports"),
        print::AGE,
    ];

    fn prepare_create(object: &mut Value) {
        object["status"] = json!({"loadBalancer": {}});
    }

    fn validate(object: &api::Ingress, errors: &mut Errors) {
        let annotated = object.metadata.annotations.as_ref().is_some_and(|map| map.contains_key(CLASS_ANNOTATION));
        if annotated && object.spec.as_ref().is_some_and(|spec| spec.ingress_class_name.is_some()) {
            let at = Path::new("metadata").child("annotations").child(CLASS_ANNOTATION);
            let found = object.metadata.annotations.as_ref().and_then(|map| map.get(CLASS_ANNOTATION));
            errors.invalid(&at, found, "can not be set when the class field is also set");
        }
        validate_spec(object, errors);
    }

    fn validate_update(new: &api::Ingress, _old: &api::Ingress, errors: &mut Errors) {
        validate_spec(new, errors);
    }

    fn validate_status_update(new: &api::Ingress, _old: &api::Ingress, errors: &mut Errors) {
        let path = Path::new("status").child("loadBalancer").child("ingress");
        let points = new.status.as_ref().and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
        for (at, point) in indexed(points, &path) {
            if let Some(ip) = point.ip.as_deref().filter(|ip| !ip.is_empty()) {
                errors.ip(&at.child("ip"), ip);
            }
            let hostname = text(&point.hostname);
            named::optional_subdomain(hostname, &at.child("hostname"), errors);
            if !hostname.is_empty() && hostname.parse::<IpAddr>().is_ok() {
                let detail = "must be a DNS name, not an IP address";
                errors.invalid(&at.child("hostname"), hostname, detail);
            }
        }
    }

    fn cells(object: &Value, typed: &api::Ingress, now: Timestamp) -> Vec<Value> {
        let default = api::IngressSpec::default();
        let spec = typed.spec.as_ref().unwrap_or(&default);
        let ports = if spec.tls.as_ref().is_some_and(|tls| !tls.is_empty()) { "80, 443" } else { "80" };
        vec![
            print::name(object),
            json!(spec.ingress_class_name.as_deref().unwrap_or(NONE)),
            json!(hosts(spec)),
            json!(address(typed)),
            json!(ports),
            print::age(object, now),
        ]
    }

    fn warnings(new: &api::Ingress, old: Option<&api::Ingress>) -> Vec<String> {
        let annotated = new.metadata.annotations.as_ref().is_some_and(|map| map.contains_key(CLASS_ANNOTATION));
        let warning =
            format!("annotation {CLASS_ANNOTATION:?} is deprecated, please use 'spec.ingressClassName' instead");
        (annotated && old.is_none()).then_some(warning).into_iter().collect()
    }
}

fn hosts(spec: &api::IngressSpec) -> String {
    let rules = spec.rules.as_deref().unwrap_or_default();
    let hosts: Vec<&str> = rules.iter().map(|rule| text(&rule.host)).filter(|host| !host.is_empty()).collect();
    match hosts.len() {
        0 => "*".to_owned(),
        count if count > SHOWN_HOSTS => {
            format!("{} + {} more...", hosts[..SHOWN_HOSTS].join(","), rules.len() - SHOWN_HOSTS)
        }
        _ => hosts.join(","),
    }
}

fn address(ingress: &api::Ingress) -> String {
    let points = ingress.status.iter().flat_map(|status| status.load_balancer.iter());
    let points = points.flat_map(|balancer| balancer.ingress.iter().flatten());
    let addresses: BTreeSet<&str> = points
        .map(|point| if text(&point.ip).is_empty() { text(&point.hostname) } else { text(&point.ip) })
        .filter(|address| !address.is_empty())
        .collect();
    addresses.into_iter().collect::<Vec<_>>().join(",")
}

fn validate_spec(object: &api::Ingress, errors: &mut Errors) {
    let (default, path) = (api::IngressSpec::default(), Path::new("spec"));
    let spec = object.spec.as_ref().unwrap_or(&default);
    if spec.rules.as_ref().is_none_or(Vec::is_empty) && spec.default_backend.is_none() {
        errors.invalid(&path, &spec.rules, "either `defaultBackend` or `rules` must be specified");
    }
    if let Some(backend) = &spec.default_backend {
        self::backend(backend, &path.child("defaultBackend"), errors);
    }
    for (at, rule) in indexed(spec.rules.as_ref(), &path.child("rules")) {
        self::rule(rule, &at, errors);
    }
    for (at, tls) in indexed(spec.tls.as_ref(), &path.child("tls")) {
        for (at, host) in indexed(tls.hosts.as_ref(), &at.child("hosts")) {
            self::host(host, &at, errors);
        }
        named::optional_subdomain(text(&tls.secret_name), &at.child("secretName"), errors);
    }
    if let Some(class) = &spec.ingress_class_name {
        errors.all_invalid(&path.child("ingressClassName"), class, names::is_dns1123_subdomain(class));
    }
}

fn host(host: &str, path: &Path, errors: &mut Errors) {
    let wrong = match host.contains('*') {
        true => names::is_wildcard_dns1123_subdomain(host),
        false => names::is_dns1123_subdomain(host),
    };
    errors.all_invalid(path, host, wrong);
}

fn rule(rule: &api::IngressRule, path: &Path, errors: &mut Errors) {
    let name = text(&rule.host);
    if !name.is_empty() {
        if name.parse::<IpAddr>().is_ok() {
            errors.invalid(&path.child("host"), name, "must be a DNS name, not an IP address");
        }
        host(name, &path.child("host"), errors);
    }
    let Some(http) = &rule.http else { return };
    let at = path.child("http").child("paths");
    if http.paths.is_empty() {
        errors.required(&at, "");
    }
    for (at, path) in indexed(Some(&http.paths), &at) {
        self::path(path, &at, errors);
        backend(&path.backend, &at.child("backend"), errors);
    }
}

fn path(route: &api::HTTPIngressPath, at: &Path, errors: &mut Errors) {
    let path = text(&route.path);
    let at_path = at.child("path");
    match route.path_type.as_str() {
        "Exact" | "Prefix" if path.starts_with('/') => {
            for part in FORBIDDEN_IN_PATHS.into_iter().filter(|part| path.contains(part)) {
                errors.invalid(&at_path, path, format!("must not contain '{part}'"));
            }
            for end in FORBIDDEN_AT_END.into_iter().filter(|end| path.ends_with(end)) {
                errors.invalid(&at_path, path, format!("cannot end with '{end}'"));
            }
        }
        "ImplementationSpecific" if path.is_empty() || path.starts_with('/') => {}
        "Exact" | "Prefix" | "ImplementationSpecific" => {
            errors.invalid(&at_path, path, "must be an absolute path");
        }
        "" => errors.required(&at.child("pathType"), "pathType must be specified"),
        other => {
            errors.not_supported(&at.child("pathType"), other, &["Exact", "ImplementationSpecific", "Prefix"]);
        }
    }
}

fn backend(backend: &api::IngressBackend, path: &Path, errors: &mut Errors) {
    match (&backend.resource, &backend.service) {
        (Some(_), Some(_)) => errors.invalid(path, "", "cannot set both resource and service backends"),
        (Some(resource), None) => {
            let at = path.child("resource");
            named::optional_subdomain(text(&resource.api_group), &at.child("apiGroup"), errors);
            errors.needed(&at.child("kind"), &resource.kind);
            errors.needed(&at.child("name"), &resource.name);
        }
        (None, Some(service)) => self::service(service, &path.child("service"), path, errors),
        (None, None) => errors.invalid(path, "", "resource or service backend is required"),
    }
}

fn service(service: &api::IngressServiceBackend, path: &Path, backend: &Path, errors: &mut Errors) {
    let at = path.child("name");
    match service.name.as_str() {
        "" => errors.required(&at, ""),
        name => errors.all_invalid(&at, name, names::is_dns1035_label(name)),
    }
    let port = service.port.clone().unwrap_or_default();
    let (name, number) = (text(&port.name), port.number.unwrap_or(0));
    let at = path.child("port");
    match (name, number) {
        ("", 0) => errors.required(backend, "port name or number is required"),
        ("", number) => errors.port(&at.child("number"), number),
        (name, 0) => errors.all_invalid(&at.child("name"), name, names::is_valid_port_name(name)),
        _ => errors.invalid(backend, "", "cannot set both port name & port number"),
    }
}
