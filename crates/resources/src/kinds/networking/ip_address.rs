//! IPAddress: that an address is taken, and by what.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::networking::v1 as api;
use machinery::field::Path;
use machinery::names;
use machinery::table::Column;
use serde_json::{Value, json};

use super::GROUP;
use crate::facts::Facts;
use crate::print;
use crate::resource::Kind;
use crate::validate::meta::NameRule;
use crate::validate::{Errors, named, text};

pub struct IPAddress;

impl Kind for IPAddress {
    type Object = api::IPAddress;

    const FACTS: Facts = Facts {
        short_names: &["ip"],
        ..Facts::cluster(GROUP, "v1", "IPAddress", "ipaddresses", "ipaddress", "io.k8s.api.networking.v1.IPAddress")
    };
    const NAME: NameRule = canonical;
    const IMMUTABLE: &'static [&'static str] = &["spec.parentRef"];
    const COLUMNS: &'static [Column] = &[print::NAME, print::text("ParentRef")];

    fn validate(object: &api::IPAddress, errors: &mut Errors) {
        let path = Path::new("spec").child("parentRef");
        let parent = &object.spec.parent_ref;
        if *parent == api::ParentReference::default() {
            return errors.required(&path, "");
        }
        named::optional_subdomain(text(&parent.group), &path.child("group"), errors);
        named::segment(&parent.resource, &path.child("resource"), errors);
        named::segment(&parent.name, &path.child("name"), errors);
        let namespace = text(&parent.namespace);
        if !namespace.is_empty() {
            errors.all_invalid(&path.child("namespace"), namespace, names::is_valid_path_segment(namespace));
        }
    }

    fn cells(object: &Value, typed: &api::IPAddress, _now: Timestamp) -> Vec<Value> {
        let parent = &typed.spec.parent_ref;
        let resource = match text(&parent.group) {
            "" => parent.resource.clone(),
            group => format!("{}.{group}", parent.resource),
        };
        let parts = [resource.as_str(), text(&parent.namespace), parent.name.as_str()];
        let shown: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        vec![print::name(object), json!(shown.join("/"))]
    }
}

fn canonical(name: &str, _prefix: bool) -> Vec<String> {
    match name.parse::<IpAddr>() {
        Err(_) => names::is_valid_ip(name),
        Ok(ip) if ip.to_string() != name => vec![format!("must be in canonical form ({:?})", ip.to_string())],
        Ok(_) => Vec::new(),
    }
}
