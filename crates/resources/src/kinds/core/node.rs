//! Node. Unlike other kinds a node brings its status when it is created: the kubelet registers with
//! capacity and addresses.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as api;
use machinery::field::{FieldError, Path};
use machinery::names;
use machinery::table::Column;
use serde_json::{Value, json};

use crate::facts::{Facts, Subresource};
use crate::print::{self, NONE, UNKNOWN, or, wide};
use crate::resource::{Kind, walk};
use crate::validate::{Errors, indexed, named, quantity, text};
use crate::value::Defaulting;

pub struct Node;

const ROLE_PREFIX: &str = "node-role.kubernetes.io/";
const ROLE_LABEL: &str = "kubernetes.io/role";
const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

impl Kind for Node {
    type Object = api::Node;

    const FACTS: Facts = Facts {
        short_names: &["no"],
        storage_prefix: "minions",
        subresources: &[Subresource::proxy("NodeProxyOptions"), Subresource::own("status", "", "v1", "Node")],
        ..Facts::cluster("", "v1", "Node", "nodes", "node", "io.k8s.api.core.v1.Node")
    };
    const STATUS_AT_CREATE: bool = true;
    const COLUMNS: &'static [Column] = &[
        print::NAME,
        print::text("Status"),
        print::text("Roles"),
        print::AGE,
        print::text("Version"),
        wide("Internal-IP"),
        wide("External-IP"),
        wide("OS-Image"),
        wide("Kernel-Version"),
        wide("Container-Runtime"),
    ];
    const FIELDS: &'static [&'static str] = &["spec.unschedulable"];

    fn defaults(object: &mut Value) {
        if let Some(status) = object.at("status")
            && status.has("capacity")
            && !status.has("allocatable")
        {
            status["allocatable"] = status["capacity"].clone();
        }
    }

    fn validate(object: &api::Node, errors: &mut Errors) {
        amounts(object, errors);
        let Some(spec) = &object.spec else { return };
        let path = Path::new("spec");
        // Upstream's path.
        taints(spec.taints.as_ref(), &Path::new("metadata").child("taints"), errors);
        let cidrs = spec.pod_cidrs.as_deref().unwrap_or_default();
        for (at, cidr) in indexed(spec.pod_cidrs.as_ref(), &path.child("podCIDRs")) {
            errors.all_invalid(&at, cidr, names::is_valid_cidr(cidr));
        }
        named::distinct(spec.pod_cidrs.as_ref(), &path.child("podCIDRs"), errors);
        let families: BTreeSet<bool> = cidrs.iter().map(|cidr| cidr.contains(':')).collect();
        if cidrs.len() > families.len() {
            let detail = "may specify no more than one CIDR for each IP family";
            errors.invalid(&path.child("podCIDRs"), cidrs, detail);
        }
    }

    fn validate_update(new: &api::Node, old: &api::Node, errors: &mut Errors) {
        Self::validate(new, errors);
        let addresses = new.status.as_ref().and_then(|status| status.addresses.as_ref());
        named::distinct(addresses, &Path::new("status").child("addresses"), errors);
        let (default, path) = (api::NodeSpec::default(), Path::new("spec"));
        let (new, old) = (new.spec.as_ref().unwrap_or(&default), old.spec.as_ref().unwrap_or(&default));
        let before = old.pod_cidrs.as_deref().unwrap_or_default();
        if !before.is_empty() && new.pod_cidrs.as_deref().unwrap_or_default() != before {
            let detail = "node updates may not change podCIDR except from \"\" to valid";
            errors.forbidden(&path.child("podCIDRs"), detail);
        }
        if !text(&old.provider_id).is_empty() && new.provider_id != old.provider_id {
            let detail = "node updates may not change providerID except from \"\" to valid";
            errors.forbidden(&path.child("providerID"), detail);
        }
    }

    fn validate_status_update(new: &api::Node, old: &api::Node, errors: &mut Errors) {
        Self::validate_update(new, old, errors);
    }

    fn cells(object: &Value, typed: &api::Node, now: Timestamp) -> Vec<Value> {
        let info = typed.status.as_ref().and_then(|status| status.node_info.as_ref());
        let text =
            |get: fn(&api::NodeSystemInfo) -> &String| json!(or(info.map_or("", |info| get(info).as_str()), UNKNOWN));
        vec![
            print::name(object),
            json!(status(typed)),
            json!(roles(typed)),
            print::age(object, now),
            json!(info.map_or("", |info| info.kubelet_version.as_str())),
            json!(address(typed, "InternalIP")),
            json!(address(typed, "ExternalIP")),
            text(|info| &info.os_image),
            text(|info| &info.kernel_version),
            text(|info| &info.container_runtime_version),
        ]
    }

    fn field(object: &Value, field: &str) -> String {
        or(&walk(object, field), "false").to_owned()
    }
}

fn amounts(node: &api::Node, errors: &mut Errors) {
    let Some(status) = &node.status else { return };
    for (key, list) in [("capacity", &status.capacity), ("allocatable", &status.allocatable)] {
        for (name, value) in list.iter().flatten() {
            quantity::amount(name, value, &Path::new("status").child(key).child(name.clone()), errors);
        }
    }
}

fn taints(taints: Option<&Vec<api::Taint>>, path: &Path, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (at, taint) in indexed(taints, path) {
        errors.all_invalid(&at.child("key"), &taint.key, names::is_qualified_name(&taint.key));
        let value = text(&taint.value);
        let wrong = names::is_valid_label_value(value);
        if !wrong.is_empty() {
            errors.invalid(&at.child("value"), value, wrong.join(";"));
        }
        errors.one_of(&at.child("effect"), Some(&taint.effect), EFFECTS);
        if !seen.insert((&taint.key, &taint.effect)) {
            let mut duplicate = FieldError::duplicate(&at, json!(taint));
            duplicate.detail = "taints must be unique by key and effect pair".into();
            errors.push(duplicate);
        }
    }
}

fn status(node: &api::Node) -> String {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = match conditions.into_iter().find(|condition| condition.type_ == "Ready") {
        Some(condition) if condition.status == "True" => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    match node.spec.as_ref().and_then(|spec| spec.unschedulable) {
        Some(true) => format!("{ready},SchedulingDisabled"),
        _ => ready.to_owned(),
    }
}

fn roles(node: &api::Node) -> String {
    let roles: BTreeSet<&str> = node
        .metadata
        .labels
        .iter()
        .flatten()
        .filter_map(|(key, value)| match key.strip_prefix(ROLE_PREFIX) {
            Some(role) => Some(role),
            None => (key == ROLE_LABEL).then_some(value.as_str()),
        })
        .filter(|role| !role.is_empty())
        .collect();
    let roles: Vec<&str> = roles.into_iter().collect();
    or(&roles.join(","), NONE).to_owned()
}

fn address(node: &api::Node, type_: &str) -> String {
    let mut addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    addresses.find(|address| address.type_ == type_).map_or(NONE, |address| &address.address).to_owned()
}
