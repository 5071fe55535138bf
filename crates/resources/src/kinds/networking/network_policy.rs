//! NetworkPolicy: who may talk to whom.

use jiff::Timestamp;
use k8s_openapi::api::networking::v1 as api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use machinery::field::Path;
use machinery::table::Column;
use serde_json::{Value, json};

use super::GROUP;
use crate::cidr::Cidr;
use crate::facts::Facts;
use crate::print;
use crate::resource::Kind;
use crate::validate::{Errors, indexed, selector, warn};
use crate::value::Defaulting;

pub struct NetworkPolicy;

impl Kind for NetworkPolicy {
    type Object = api::NetworkPolicy;

    const FACTS: Facts = Facts {
        short_names: &["netpol"],
        generation: true,
        ..Facts::namespaced(
            GROUP,
            "v1",
            "NetworkPolicy",
            "networkpolicies",
            "networkpolicy",
            "io.k8s.api.networking.v1.NetworkPolicy",
        )
    };
    const COLUMNS: &'static [Column] = &[print::NAME, print::text("Pod-Selector"), print::AGE];

    fn defaults(object: &mut Value) {
        let spec = object.make("spec");
        let filled = |spec: &Value, key: &str| spec[key].as_array().is_some_and(|list| !list.is_empty());
        if !filled(spec, "policyTypes") {
            let types = if filled(spec, "egress") { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
            spec["policyTypes"] = types;
        }
        for direction in ["ingress", "egress"] {
            spec.each(direction, |rule| {
                rule.each("ports", |port| {
                    port.or("protocol", "TCP");
                });
            });
        }
    }

    fn validate(object: &api::NetworkPolicy, errors: &mut Errors) {
        let path = Path::new("spec");
        let Some(spec) = &object.spec else { return };
        if let Some(labels) = &spec.pod_selector {
            selector::validate(labels, &path.child("podSelector"), errors);
        }
        for (at, rule) in indexed(spec.ingress.as_ref(), &path.child("ingress")) {
            ports(rule.ports.as_ref(), &at.child("ports"), errors);
            peers(rule.from.as_ref(), &at.child("from"), errors);
        }
        for (at, rule) in indexed(spec.egress.as_ref(), &path.child("egress")) {
            ports(rule.ports.as_ref(), &at.child("ports"), errors);
            peers(rule.to.as_ref(), &at.child("to"), errors);
        }
        let at = path.child("policyTypes");
        if spec.policy_types.as_ref().is_some_and(|types| types.len() > 2) {
            return errors.invalid(&at, &spec.policy_types, "may not specify more than two policyTypes");
        }
        for (at, direction) in indexed(spec.policy_types.as_ref(), &at) {
            errors.one_of(&at, Some(direction), &["Egress", "Ingress"]);
        }
    }

    fn warnings(new: &api::NetworkPolicy, _old: Option<&api::NetworkPolicy>) -> Vec<String> {
        let spec = new.spec.clone().unwrap_or_default();
        let ingress = indexed(spec.ingress.as_ref(), &Path::new("spec").child("ingress"))
            .flat_map(|(at, rule)| indexed(rule.from.as_ref(), &at.child("from")).collect::<Vec<_>>());
        let egress = indexed(spec.egress.as_ref(), &Path::new("spec").child("egress"))
            .flat_map(|(at, rule)| indexed(rule.to.as_ref(), &at.child("to")).collect::<Vec<_>>());
        let blocks =
            ingress.chain(egress).filter_map(|(at, peer)| Some((at.child("ipBlock"), peer.ip_block.as_ref()?)));
        let spelt = |(at, block): (Path, &api::IPBlock)| {
            let except = indexed(block.except.as_ref(), &at.child("except"));
            let except: Vec<_> = except.flat_map(|(at, text)| warn::cidr(text, &at)).collect();
            warn::cidr(&block.cidr, &at.child("cidr")).into_iter().chain(except)
        };
        blocks.flat_map(spelt).collect()
    }

    fn cells(object: &Value, typed: &api::NetworkPolicy, now: Timestamp) -> Vec<Value> {
        let default = LabelSelector::default();
        let labels = typed.spec.as_ref().and_then(|spec| spec.pod_selector.as_ref()).unwrap_or(&default);
        vec![print::name(object), json!(print::selector(labels)), print::age(object, now)]
    }
}

fn ports(ports: Option<&Vec<api::NetworkPolicyPort>>, path: &Path, errors: &mut Errors) {
    for (at, port) in indexed(ports, path) {
        errors.optional_one_of(&at.child("protocol"), port.protocol.as_deref(), &["SCTP", "TCP", "UDP"]);
        if let Some(start) = &port.port {
            errors.port_or_name(&at.child("port"), start);
        }
        let Some(end) = port.end_port else { continue };
        let at = at.child("endPort");
        match &port.port {
            None => errors.invalid(&at, end, "may not be specified when `port` is not specified"),
            Some(IntOrString::String(_)) => {
                errors.invalid(&at, end, "may not be specified when `port` is non-numeric");
            }
            Some(IntOrString::Int(start)) if end < *start => {
                errors.invalid(&at, end, "must be greater than or equal to `port`");
            }
            Some(_) => errors.port(&at, end),
        }
    }
}

fn peers(peers: Option<&Vec<api::NetworkPolicyPeer>>, path: &Path, errors: &mut Errors) {
    for (at, peer) in indexed(peers, path) {
        let selectors = [("podSelector", &peer.pod_selector), ("namespaceSelector", &peer.namespace_selector)];
        for (key, labels) in selectors {
            if let Some(labels) = labels {
                selector::validate(labels, &at.child(key), errors);
            }
        }
        let selecting = peer.pod_selector.is_some() || peer.namespace_selector.is_some();
        match &peer.ip_block {
            Some(_) if selecting => errors.forbidden(&at, "may not specify both ipBlock and another peer"),
            Some(block) => ip_block(block, &at.child("ipBlock"), errors),
            None if !selecting => errors.required(&at, "must specify a peer"),
            None => {}
        }
    }
}

fn ip_block(block: &api::IPBlock, path: &Path, errors: &mut Errors) {
    if block.cidr.is_empty() {
        return errors.required(&path.child("cidr"), "");
    }
    let Some(outer) = Cidr::check(&block.cidr, &path.child("cidr"), errors) else { return };
    for (at, text) in indexed(block.except.as_ref(), &path.child("except")) {
        if Cidr::check(text, &at, errors).is_some_and(|inner| !outer.strictly_contains(&inner)) {
            errors.invalid(&at, text, "must be a strict subset of `cidr`");
        }
    }
}
