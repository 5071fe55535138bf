//! IPAddresses as allocation sees them: how one is stored, and what of a stored one matters.

use std::{collections::BTreeMap, net::IpAddr};

use bytes::Bytes;
use jiff::Timestamp;
use resources::{
    Resource,
    service_cidrs::{self, ALLOCATOR, IP_FAMILY, MANAGED_BY},
};
use serde::Deserialize;

use crate::{
    authn::lookup::IP_ADDRESSES,
    cache::Entry,
    identity::UserInfo,
    lookup,
    objects::stored_form,
    strategy,
    write::{Warnings, Write},
};

pub(super) fn resource() -> &'static dyn Resource {
    lookup::resource(IP_ADDRESSES).expect("a built-in kind")
}

/// The stored bytes of a Service's new IPAddress, as complete as if it had been created by a request.
pub(super) fn stored(address: IpAddr, namespace: &str, service: &str) -> Bytes {
    let mut object = service_cidrs::ip_address(address, namespace, service);
    strategy::fill_new(&mut object, &machinery::time::now_rfc3339());
    let (user, warnings) = (UserInfo::default(), Warnings::default());
    Write::by_server(resource(), "", ("", ""), &user, &warnings).track(None, &mut object);
    stored_form(resource(), &object)
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Address {
    pub metadata: Metadata,
    spec: Spec,
}

/// What a reference to an object and its age are made of.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Metadata {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub resource_version: String,
    pub creation_timestamp: Option<Timestamp>,
    pub labels: BTreeMap<String, String>,
    pub finalizers: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    parent_ref: Parent,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Parent {
    pub group: String,
    pub resource: String,
    pub namespace: String,
    pub name: String,
}

impl Address {
    pub fn of(entry: &Entry) -> Option<Address> {
        serde_json::from_slice(&entry.json).ok()
    }

    pub fn parent(&self) -> &Parent {
        &self.spec.parent_ref
    }

    /// Somebody wants to do something before it goes.
    pub fn is_held(&self) -> bool {
        !self.metadata.finalizers.is_empty()
    }

    pub fn is_ours(&self) -> bool {
        self.label(MANAGED_BY) == Some(ALLOCATOR)
    }

    pub fn is_labelled(&self, address: IpAddr) -> bool {
        self.is_ours() && self.label(IP_FAMILY) == Some(service_cidrs::family(address))
    }

    fn label(&self, key: &str) -> Option<&str> {
        self.metadata.labels.get(key).map(String::as_str)
    }
}

impl Parent {
    pub fn is_service(&self) -> bool {
        self.group.is_empty() && self.resource == "services"
    }

    pub fn is(&self, namespace: &str, name: &str) -> bool {
        self.is_service() && self.namespace == namespace && self.name == name
    }
}
