//! `discovery.k8s.io/v1`: EndpointSlice.

use std::collections::BTreeSet;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::discovery::v1 as api;
use machinery::field::Path;
use machinery::names;
use machinery::table::Column;
use serde_json::{Value, json};

use crate::facts::Facts;
use crate::print;
use crate::resource::Kind;
use crate::validate::{Errors, indexed, text, warn};
use crate::value::Defaulting;

pub struct EndpointSlice;

const ADDRESS_TYPES: &[&str] = &["FQDN", "IPv4", "IPv6"];
const MAX_ADDRESSES: usize = 100;
const MAX_ENDPOINTS: usize = 1000;
const MAX_PORTS: usize = 20000;
const MAX_HINTS: usize = 8;
const SHOWN: usize = 3;
const UNSET: &str = "<unset>";

impl Kind for EndpointSlice {
    type Object = api::EndpointSlice;

    const FACTS: Facts = Facts {
        generation: true,
        ..Facts::namespaced(
            "discovery.k8s.io",
            "v1",
            "EndpointSlice",
            "endpointslices",
            "endpointslice",
            "io.k8s.api.discovery.v1.EndpointSlice",
        )
    };
    const IMMUTABLE: &'static [&'static str] = &["addressType"];
    const COLUMNS: &'static [Column] =
        &[print::NAME, print::text("AddressType"), print::text("Ports"), print::text("Endpoints"), print::AGE];

    fn defaults(object: &mut Value) {
        object.each("ports", |port| {
            if !port.has("name") {
                port["name"] = json!("");
            }
            port.or("protocol", "TCP");
        });
    }

    fn validate(object: &api::EndpointSlice, errors: &mut Errors) {
        errors.one_of(&Path::new("addressType"), Some(&object.address_type), ADDRESS_TYPES);
        let path = Path::new("endpoints");
        let count = object.endpoints.as_ref().map_or(0, Vec::len);
        if count > MAX_ENDPOINTS {
            return errors.too_many(&path, count, MAX_ENDPOINTS);
        }
        for (at, endpoint) in indexed(object.endpoints.as_ref(), &path) {
            self::endpoint(endpoint, &object.address_type, &at, errors);
        }
        ports(object.ports.as_ref(), &Path::new("ports"), errors);
    }

    fn warnings(new: &api::EndpointSlice, _old: Option<&api::EndpointSlice>) -> Vec<String> {
        let mut warnings = Vec::new();
        if new.address_type == "FQDN" {
            warnings.push("addressType: FQDN endpoints are deprecated".to_owned());
        }
        for (at, endpoint) in indexed(new.endpoints.as_ref(), &Path::new("endpoints")) {
            let addresses = indexed(Some(&endpoint.addresses), &at.child("addresses"));
            warnings.extend(addresses.filter_map(|(at, address)| warn::ip(address, &at)));
        }
        warnings
    }

    fn cells(object: &Value, typed: &api::EndpointSlice, now: Timestamp) -> Vec<Value> {
        let ports = typed.ports.iter().flatten().map(|port| match port.port {
            Some(number) => number.to_string(),
            None => "*".to_owned(),
        });
        let addresses = typed.endpoints.iter().flatten().flat_map(|endpoint| endpoint.addresses.iter().cloned());
        vec![
            print::name(object),
            json!(typed.address_type),
            json!(shown(ports.collect())),
            json!(shown(addresses.collect())),
            print::age(object, now),
        ]
    }

    fn generation_changes(new: &Value, old: &Value) -> bool {
        let labels = |object: &Value| object["metadata"]["labels"].clone();
        ["addressType", "endpoints", "ports"].iter().any(|key| new[*key] != old[*key]) || labels(new) != labels(old)
    }
}

fn shown(items: Vec<String>) -> String {
    if items.is_empty() { UNSET.to_owned() } else { print::abbreviated(&items, SHOWN) }
}

fn endpoint(endpoint: &api::Endpoint, address_type: &str, path: &Path, errors: &mut Errors) {
    let at = path.child("addresses");
    match endpoint.addresses.len() {
        0 => errors.required(&at, "must contain at least 1 address"),
        count if count > MAX_ADDRESSES => errors.too_many(&at, count, MAX_ADDRESSES),
        _ => {}
    }
    for (at, address) in indexed(Some(&endpoint.addresses), &at) {
        self::address(address, address_type, &at, errors);
    }
    if let Some(hostname) = &endpoint.hostname {
        errors.all_invalid(&path.child("hostname"), hostname, names::is_dns1123_label(hostname));
    }
    if let Some(node) = &endpoint.node_name {
        errors.all_invalid(&path.child("nodeName"), node, names::is_dns1123_subdomain(node));
    }
    let zones = endpoint.hints.as_ref().and_then(|hints| hints.for_zones.as_ref());
    let at = path.child("hints").child("forZones");
    if let Some(zones) = zones.filter(|zones| zones.len() > MAX_HINTS) {
        errors.too_many(&at, zones.len(), MAX_HINTS);
    }
    let mut seen = BTreeSet::new();
    for (at, zone) in indexed(zones, &at) {
        if !seen.insert(&zone.name) {
            errors.duplicate(&at.child("name"), &zone.name);
        }
        errors.all_invalid(&at.child("name"), &zone.name, names::is_valid_label_value(&zone.name));
    }
}

fn address(address: &str, address_type: &str, path: &Path, errors: &mut Errors) {
    let ip: Option<IpAddr> = address.parse().ok();
    match (address_type, ip) {
        ("IPv4", Some(IpAddr::V4(_))) | ("IPv6", Some(IpAddr::V6(_))) => {
            crate::kinds::core::forbidden_address(address, path, errors);
        }
        ("IPv4", _) => errors.invalid(path, address, "must be an IPv4 address"),
        ("IPv6", _) => errors.invalid(path, address, "must be an IPv6 address"),
        ("FQDN", _) => {
            let name = address.strip_suffix('.').unwrap_or(address);
            errors.needed(path, address);
            let wrong = names::is_dns1123_subdomain(name);
            if !wrong.is_empty() {
                errors.invalid(path, name, wrong.join(","));
            } else if !name.contains('.') {
                errors.invalid(path, name, "should be a domain with at least two segments separated by dots");
            }
        }
        _ => {}
    }
}

fn ports(ports: Option<&Vec<api::EndpointPort>>, path: &Path, errors: &mut Errors) {
    if let Some(ports) = ports.filter(|ports| ports.len() > MAX_PORTS) {
        return errors.too_many(path, ports.len(), MAX_PORTS);
    }
    let mut seen = BTreeSet::new();
    for (at, port) in indexed(ports, path) {
        let name = text(&port.name);
        if !name.is_empty() {
            errors.all_invalid(&at.child("name"), name, names::is_dns1123_label(name));
        }
        if !seen.insert(name) {
            errors.duplicate(&at.child("name"), name);
        }
        errors.one_of(&at.child("protocol"), port.protocol.as_deref(), &["SCTP", "TCP", "UDP"]);
        if let Some(number) = port.port {
            errors.port(&at.child("port"), number);
        }
        if let Some(protocol) = &port.app_protocol {
            errors.all_invalid(&at.child("appProtocol"), protocol, names::is_qualified_name(protocol));
        }
    }
}
