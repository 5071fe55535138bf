//! Endpoints: addresses behind a service, in the shape EndpointSlice replaced.

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as api;
use machinery::field::Path;
use machinery::names;
use machinery::table::Column;
use serde_json::{Value, json};

use crate::facts::Facts;
use crate::print;
use crate::resource::Kind;
use crate::validate::{Errors, indexed, text};
use crate::value::Defaulting;

pub struct Endpoints;

/// How many addresses `kubectl get` shows.
const SHOWN: usize = 3;

impl Kind for Endpoints {
    type Object = api::Endpoints;

    const FACTS: Facts = Facts {
        short_names: &["ep"],
        storage_prefix: "services/endpoints",
        deprecated: Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
        ..Facts::namespaced("", "v1", "Endpoints", "endpoints", "endpoints", "io.k8s.api.core.v1.Endpoints")
    };
    const COLUMNS: &'static [Column] = &[print::NAME, print::text("Endpoints"), print::AGE];

    fn defaults(object: &mut Value) {
        object.each("subsets", |subset| {
            subset.each("ports", |port| {
                port.or("protocol", "TCP");
            });
        });
    }

    fn validate(object: &api::Endpoints, errors: &mut Errors) {
        for (at, subset) in indexed(object.subsets.as_ref(), &Path::new("subsets")) {
            let lists = [("addresses", &subset.addresses), ("notReadyAddresses", &subset.not_ready_addresses)];
            if lists.iter().all(|(_, list)| list.as_ref().is_none_or(Vec::is_empty)) {
                errors.required(&at, "must specify `addresses` or `notReadyAddresses`");
            }
            for (key, list) in lists {
                for (at, address) in indexed(list.as_ref(), &at.child(key)) {
                    self::address(address, &at, errors);
                }
            }
            let unnamed = subset.ports.as_ref().is_some_and(|ports| ports.len() > 1);
            for (at, port) in indexed(subset.ports.as_ref(), &at.child("ports")) {
                let name = text(&port.name);
                if !name.is_empty() {
                    errors.all_invalid(&at.child("name"), name, names::is_dns1123_label(name));
                } else if unnamed {
                    errors.required(&at.child("name"), "");
                }
                errors.port(&at.child("port"), port.port);
                errors.one_of(&at.child("protocol"), port.protocol.as_deref(), &["SCTP", "TCP", "UDP"]);
                if let Some(protocol) = &port.app_protocol {
                    errors.all_invalid(&at.child("appProtocol"), protocol, names::is_qualified_name(protocol));
                }
            }
        }
    }

    fn cells(object: &Value, typed: &api::Endpoints, now: Timestamp) -> Vec<Value> {
        let mut shown = Vec::new();
        for subset in typed.subsets.iter().flatten() {
            let addresses = subset.addresses.iter().flatten().map(|address| &address.ip);
            match subset.ports.as_deref() {
                None | Some([]) => shown.extend(addresses.cloned()),
                Some(ports) => {
                    for port in ports {
                        shown.extend(addresses.clone().map(|ip| join(ip, port.port)));
                    }
                }
            }
        }
        vec![print::name(object), json!(print::abbreviated(&shown, SHOWN)), print::age(object, now)]
    }
}

fn join(ip: &str, port: i32) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

fn address(address: &api::EndpointAddress, path: &Path, errors: &mut Errors) {
    errors.ip(&path.child("ip"), &address.ip);
    let hostname = text(&address.hostname);
    if !hostname.is_empty() {
        errors.all_invalid(&path.child("hostname"), hostname, names::is_dns1123_label(hostname));
    }
    if let Some(node) = &address.node_name {
        errors.all_invalid(&path.child("nodeName"), node, names::is_dns1123_subdomain(node));
    }
    forbidden_address(&address.ip, &path.child("ip"), errors);
}

/// Traffic must not be led to a node's own loopback or link-local services.
pub(crate) fn forbidden_address(text: &str, path: &Path, errors: &mut Errors) {
    let Ok(ip) = text.parse::<std::net::IpAddr>() else {
        return errors.invalid(path, text, "must be a valid IP address");
    };
    let link_local = match ip {
        std::net::IpAddr::V4(ip) => ip.is_link_local(),
        std::net::IpAddr::V6(ip) => ip.segments()[0] & 0xffc0 == 0xfe80,
    };
    let multicast = match ip {
        std::net::IpAddr::V4(ip) => ip.octets()[0] == 224 && ip.octets()[1] == 0 && ip.octets()[2] == 0,
        std::net::IpAddr::V6(ip) => ip.segments()[0] & 0xff0f == 0xff02,
    };
    let checks = [
        (ip.is_unspecified(), format!("may not be unspecified ({text})")),
        (ip.is_loopback(), "may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned()),
        (link_local, "may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned()),
        (multicast, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned()),
    ];
    for (_, detail) in checks.into_iter().filter(|(wrong, _)| *wrong) {
        errors.invalid(path, text, detail);
    }
}
