//! Service. Addresses and node ports are the API server's to allocate; here is what follows from the
//! type: which fields it has, which it loses when the type changes, and what may not change.

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as api;
use machinery::table::Column;
use serde_json::{Value, json};

use crate::facts::{Facts, Subresource};
use crate::print::{self, NONE, or};
use crate::resource::{Kind, walk};
use crate::validate::meta::{self, NameRule};
use crate::validate::{Errors, text};
use crate::value::Defaulting;

mod strategy;
mod validate;
mod warnings;

pub struct Service;

const TOPOLOGY_HINTS: &str = "service.kubernetes.io/topology-aware-hints";
const TOPOLOGY_MODE: &str = "service.kubernetes.io/topology-mode";
/// Three hours.
const AFFINITY_SECONDS: i64 = 10800;

impl Kind for Service {
    type Object = api::Service;

    const FACTS: Facts = Facts {
        short_names: &["svc"],
        categories: &["all"],
        storage_prefix: "services/specs",
        subresources: &[Subresource::proxy("ServiceProxyOptions"), Subresource::own("status", "", "v1", "Service")],
        ..Facts::namespaced("", "v1", "Service", "services", "service", "io.k8s.api.core.v1.Service")
    };
    const NAME: NameRule = meta::dns1035;
    const COLUMNS: &'static [Column] = &[
        print::NAME,
        print::text("Type"),
        print::text("Cluster-IP"),
        print::text("External-IP"),
        print::text("Port(s)"),
        print::AGE,
        print::SELECTOR,
    ];
    const FIELDS: &'static [&'static str] = &["spec.clusterIP", "spec.type"];

    fn defaults(object: &mut Value) {
        defaults(object.make("spec"));
        if let Some(balancer) = object.at("status").and_then(|status| status.at("loadBalancer")) {
            balancer.each("ingress", |ingress| {
                if ingress.has("ip") {
                    ingress.or("ipMode", "VIP");
                }
            });
        }
    }

    fn prepare_create(object: &mut Value) {
        object["status"] = json!({"loadBalancer": {}});
        strategy::sync_cluster_ips(object.make("spec"), None);
    }

    fn prepare_update(new: &mut Value, old: &Value) {
        strategy::carry_over(new.make("spec"), &old["spec"]);
        strategy::sync_cluster_ips(new.make("spec"), Some(&old["spec"]));
        strategy::drop_fields_of_type(new.make("spec"), &old["spec"]);
        if walk(new, "spec.type") != "LoadBalancer" {
            new["status"]["loadBalancer"] = json!({});
        }
    }

    fn validate(object: &api::Service, errors: &mut Errors) {
        validate::service(object, errors);
    }

    fn validate_update(new: &api::Service, old: &api::Service, errors: &mut Errors) {
        validate::service(new, errors);
        validate::update(new, old, errors);
    }

    fn validate_status_update(new: &api::Service, _old: &api::Service, errors: &mut Errors) {
        validate::status(new, errors);
    }

    fn warnings(new: &api::Service, _old: Option<&api::Service>) -> Vec<String> {
        warnings::service(new)
    }

    fn cells(object: &Value, typed: &api::Service, now: Timestamp) -> Vec<Value> {
        let default = api::ServiceSpec::default();
        let spec = typed.spec.as_ref().unwrap_or(&default);
        let cluster_ip = spec.cluster_ips.iter().flatten().next().or(spec.cluster_ip.as_ref());
        vec![
            print::name(object),
            json!(text(&spec.type_)),
            json!(or(cluster_ip.map_or("", String::as_str), NONE)),
            json!(external_ip(typed, spec)),
            json!(ports(spec)),
            print::age(object, now),
            json!(print::labels(spec.selector.as_ref())),
        ]
    }
}

fn defaults(spec: &mut Value) {
    spec.or("type", "ClusterIP").or("sessionAffinity", "None");
    if spec["sessionAffinity"] == "ClientIP" {
        spec.make("sessionAffinityConfig").make("clientIP").or("timeoutSeconds", AFFINITY_SECONDS);
    } else {
        Defaulting::remove(spec, "sessionAffinityConfig");
    }
    spec.each("ports", |port| {
        port.or("protocol", "TCP");
        let number = port["port"].clone();
        match &port["targetPort"] {
            Value::Null => port["targetPort"] = number,
            Value::Number(target) if target.as_i64() == Some(0) => port["targetPort"] = number,
            Value::String(target) if target.is_empty() => port["targetPort"] = number,
            _ => {}
        }
    });
    let type_ = spec.text("type").to_owned();
    let external_ips = spec["externalIPs"].as_array().is_some_and(|list| !list.is_empty());
    if matches!(type_.as_str(), "NodePort" | "LoadBalancer") || (type_ == "ClusterIP" && external_ips) {
        spec.or("externalTrafficPolicy", "Cluster");
    }
    if type_ != "ExternalName" {
        spec.or("internalTrafficPolicy", "Cluster");
    }
    if type_ == "LoadBalancer" {
        spec.or("allocateLoadBalancerNodePorts", true);
    }
}

fn external_ip(service: &api::Service, spec: &api::ServiceSpec) -> String {
    let external = spec.external_ips.clone().unwrap_or_default();
    match text(&spec.type_) {
        "ClusterIP" | "NodePort" => or(&external.join(","), NONE).to_owned(),
        "LoadBalancer" => {
            let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
            let ingress = status.into_iter().flat_map(|status| status.ingress.iter().flatten());
            let balancers: Vec<&str> = ingress
                .map(|ingress| or(text(&ingress.ip), text(&ingress.hostname)))
                .filter(|address| !address.is_empty())
                .collect();
            let all: Vec<&str> = balancers.into_iter().chain(external.iter().map(String::as_str)).collect();
            or(&all.join(","), "<pending>").to_owned()
        }
        "ExternalName" => text(&spec.external_name).to_owned(),
        _ => print::UNKNOWN.to_owned(),
    }
}

fn ports(spec: &api::ServiceSpec) -> String {
    let ports: Vec<String> = spec
        .ports
        .iter()
        .flatten()
        .map(|port| {
            let protocol = text(&port.protocol);
            match port.node_port.unwrap_or(0) {
                0 => format!("{}/{protocol}", port.port),
                node_port => format!("{}:{node_port}/{protocol}", port.port),
            }
        })
        .collect();
    or(&ports.join(","), NONE).to_owned()
}
