//! What a Service gets and gives back, given what is free. Pure but for the dice.

use std::{
    collections::HashSet,
    net::IpAddr,
    ops::{Range, RangeInclusive},
};

use bytes::Bytes;
use machinery::{field::FieldError, meta, status::ApiError};
use resources::Cidr;
use serde_json::{Value, json};

use super::{ADDRESSES, Claim, PORTS, address};

/// The keys an existing Service holds.
pub(super) fn held(service: &Value) -> HashSet<String> {
    let spec = &service["spec"];
    let ports = spec["ports"].as_array().into_iter().flatten().map(|port| &port["nodePort"]);
    let ports = ports.chain([&spec["healthCheckNodePort"]]).filter_map(Value::as_u64).filter(|port| *port > 0);
    let addresses = spec["clusterIPs"].as_array().into_iter().flatten().chain([&spec["clusterIP"]]);
    let addresses = addresses.filter_map(|address| address.as_str()?.parse::<IpAddr>().ok());
    ports.map(|port| format!("{PORTS}{port}")).chain(addresses.map(|address| format!("{ADDRESSES}{address}"))).collect()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn absent(value: &Value, key: &str) -> bool {
    match &value[key] {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Number(number) => number.as_u64() == Some(0),
        _ => false,
    }
}

pub(super) struct Plan<'a> {
    /// From which new addresses may come, in the order to try them.
    pub ranges: Vec<Cidr>,
    pub has_address: &'a (dyn Fn(&str) -> bool + Sync),
    pub ports: RangeInclusive<u16>,
    pub taken_ports: HashSet<String>,
    /// Nothing is known of which ports are taken: draw from the upper band first, where nobody asks by hand.
    pub spread: bool,
    /// The Service's key, which marks its ports.
    pub holder: Bytes,
    /// Keys that the Service holds already.
    pub old: HashSet<String>,
    pub take: Vec<Claim>,
    pub errors: Vec<FieldError>,
    /// Nothing is wrong with the Service, but it cannot have what it needs.
    pub failure: Option<ApiError>,
}

impl Plan<'_> {
    pub fn complete(&mut self, new: &mut Value, old: Option<&Value>) {
        let kind = text(&new["spec"], "type").to_owned();
        let Some(_) = new["spec"].as_object() else { return };
        let old = old.map(|old| &old["spec"]).filter(|old| text(old, "type") != "ExternalName");
        match kind.as_str() {
            "ExternalName" => strip_addresses(&mut new["spec"], old),
            _ => self.address(new, old),
        }
        let spec = &mut new["spec"];
        let balanced = kind == "LoadBalancer" && spec["allocateLoadBalancerNodePorts"] != false;
        match kind == "NodePort" || balanced {
            true => self.node_ports(spec),
            false => {
                self.explicit_ports(spec, old, &kind);
            }
        }
        self.health_check(spec, old, kind == "LoadBalancer");
    }

    fn address(&mut self, service: &mut Value, old: Option<&Value>) {
        let parent = (meta::namespace(service).to_owned(), meta::name(service).to_owned());
        let spec = &mut service["spec"];
        carry_addresses(spec, old);
        if absent(spec, "clusterIPs") && !absent(spec, "clusterIP") {
            spec["clusterIPs"] = json!([spec["clusterIP"]]);
        }
        self.families(spec);
        if text(spec, "clusterIP") == "None" || !self.errors.is_empty() {
            return;
        }
        if absent(spec, "clusterIP") && absent(spec, "clusterIPs") {
            let Some(address) = self.draw_address() else {
                return self.fail("failed to allocate a serviceIP: range is full");
            };
            spec["clusterIP"] = address.to_string().into();
            spec["clusterIPs"] = json!([address.to_string()]);
            return self.claim_address(address, &parent, None);
        }
        let Ok(address) = text(spec, "clusterIP").parse::<IpAddr>() else { return };
        let invalid = |why: &str| {
            let why = format!("failed to allocate IP {address}: {why}");
            FieldError::invalid("spec.clusterIPs", json!([address.to_string()]), why)
        };
        let held = self.old.contains(&format!("{ADDRESSES}{address}"));
        if !held && !self.ranges.iter().any(|range| range.gives(address)) {
            return self.errors.push(invalid("the provided network does not match the current range"));
        }
        self.claim_address(address, &parent, Some(invalid("provided IP is already allocated")));
    }

    fn families(&mut self, spec: &mut Value) {
        let everywhere =
            text(spec, "clusterIP") == "None" && spec["selector"].as_object().is_none_or(|map| map.is_empty());
        if absent(spec, "ipFamilyPolicy") {
            spec["ipFamilyPolicy"] = if everywhere { "RequireDualStack" } else { "SingleStack" }.into();
        }
        if everywhere {
            if absent(spec, "ipFamilies") {
                spec["ipFamilies"] = match text(spec, "ipFamilyPolicy") {
                    "SingleStack" => json!(["IPv4"]),
                    _ => json!(["IPv4", "IPv6"]),
                };
            }
            return;
        }
        if text(spec, "ipFamilyPolicy") == "RequireDualStack" {
            let why = "this cluster is not configured for dual-stack services";
            self.errors.push(FieldError::invalid("spec.ipFamilyPolicy", "RequireDualStack", why));
        }
        let other = spec["ipFamilies"].as_array().into_iter().flatten().position(|family| family == "IPv6");
        if let Some(index) = other {
            let why = "not configured on this cluster";
            self.errors.push(FieldError::invalid(format!("spec.ipFamilies[{index}]"), "IPv6", why));
        }
        if absent(spec, "ipFamilies") {
            let addresses = spec["clusterIPs"].as_array().into_iter().flatten();
            let other = |address: &Value| address.as_str().and_then(|text| text.parse().ok()).is_some_and(is_ipv6);
            if let Some(index) = addresses.clone().position(other) {
                let at = format!("spec.clusterIPs[{index}]");
                let why = "IPv6 is not configured on this cluster";
                return self.errors.push(FieldError::invalid(at, spec["clusterIPs"].clone(), why));
            }
            spec["ipFamilies"] = json!(["IPv4"]);
        }
    }

    fn node_ports(&mut self, spec: &mut Value) {
        for index in 0..spec["ports"].as_array().map_or(0, Vec::len) {
            let path = format!("spec.ports[{index}].nodePort");
            self.port(&mut spec["ports"][index]["nodePort"], path);
        }
    }

    /// Gives `value` a port, or claims the one it has.
    fn port(&mut self, value: &mut Value, path: String) {
        let Some(port) = value.as_u64().filter(|port| *port > 0) else {
            let Some(port) = self.draw_port() else {
                return self.fail("failed to allocate a nodePort: range is full");
            };
            *value = port.into();
            return self.claim_port(format!("{PORTS}{port}"), None);
        };
        let key = format!("{PORTS}{port}");
        if !self.old.contains(&key) && u16::try_from(port).map_or(true, |port| !self.ports.contains(&port)) {
            let (start, end) = (self.ports.start(), self.ports.end());
            let why = format!("provided port is not in the valid range. The range of valid ports is {start}-{end}");
            return self.errors.push(FieldError::invalid(path, port, why));
        }
        self.claim_port(key, Some(FieldError::invalid(path, port, "provided port is already allocated")));
    }

    /// Ports of a Service that allocates none: what it had by its old type goes; what is named stays.
    fn explicit_ports(&mut self, spec: &mut Value, old: Option<&Value>, kind: &str) {
        let dropped = old.is_some_and(|old| text(old, "type") != kind);
        for index in 0..spec["ports"].as_array().map_or(0, Vec::len) {
            let port = &mut spec["ports"][index];
            let held = port["nodePort"].as_u64().is_some_and(|port| self.old.contains(&format!("{PORTS}{port}")));
            if dropped && held {
                port.as_object_mut().map(|port| port.remove("nodePort"));
            } else if kind == "LoadBalancer" && !absent(port, "nodePort") {
                self.port(&mut spec["ports"][index]["nodePort"], format!("spec.ports[{index}].nodePort"));
            }
        }
    }

    fn health_check(&mut self, spec: &mut Value, old: Option<&Value>, balanced: bool) {
        const KEY: &str = "healthCheckNodePort";
        if balanced && text(spec, "externalTrafficPolicy") == "Local" {
            if absent(spec, KEY)
                && let Some(kept) = old.filter(|old| !absent(old, KEY))
            {
                spec[KEY] = kept[KEY].clone();
            }
            return self.port(&mut spec[KEY], format!("spec.{KEY}"));
        }
        // Carried over from the old type, not asked for.
        if old.is_some_and(|old| !absent(old, KEY) && old[KEY] == spec[KEY]) {
            spec.as_object_mut().map(|spec| spec.remove(KEY));
        }
    }

    fn fail(&mut self, why: &str) {
        self.failure.get_or_insert_with(|| ApiError::internal(why));
    }

    /// Addresses are marked by an object, ports by the Service's key.
    fn claim_address(&mut self, address: IpAddr, (namespace, name): &(String, String), error: Option<FieldError>) {
        let key = format!("{ADDRESSES}{address}");
        if self.is_new(&key) {
            self.take.push(Claim { key: key.into(), value: address::stored(address, namespace, name), error });
        }
    }

    fn claim_port(&mut self, key: String, error: Option<FieldError>) {
        if self.is_new(&key) {
            self.take.push(Claim { key: key.into(), value: self.holder.clone(), error });
        }
    }

    /// Ports of different protocols in one Service may share a number.
    fn is_new(&self, key: &str) -> bool {
        !self.old.contains(key) && !self.take.iter().any(|claim| claim.key == key.as_bytes())
    }

    fn draw_address(&self) -> Option<IpAddr> {
        self.ranges.iter().find_map(|range| {
            let (hosts, free) = (range.hosts(), |n: &u64| !(self.has_address)(&range.nth(*n).to_string()));
            let middle = (hosts.start + lower_band(hosts.end + 1)).min(hosts.end);
            let number = draw(middle..hosts.end, free).or_else(|| draw(hosts.start..middle, free));
            number.map(|n| range.nth(n))
        })
    }

    fn draw_port(&self) -> Option<u64> {
        let (start, end) = (u64::from(*self.ports.start()), u64::from(*self.ports.end()) + 1);
        let band = if self.spread { ((end - start) / 32).clamp(16, 128).min((end - start) / 2) } else { 0 };
        let free = |port: &u64| {
            let key = format!("{PORTS}{port}");
            !self.taken_ports.contains(&key) && self.is_new(&key)
        };
        draw(start + band..end, free)
    }
}

/// How many of a range's first addresses are drawn last, since people ask for them by hand; as upstream.
fn lower_band(size: u64) -> u64 {
    if size <= 16 { 0 } else { (size / 16).clamp(16, 256) }
}

/// The first free value from a random place on.
fn draw(range: Range<u64>, free: impl Fn(&u64) -> bool) -> Option<u64> {
    if range.is_empty() {
        return None;
    }
    let first = rand::random_range(range.clone());
    (first..range.end).chain(range.start..first).find(free)
}

fn is_ipv6(address: IpAddr) -> bool {
    address.is_ipv6()
}

/// An update that says nothing of addresses keeps them.
fn carry_addresses(spec: &mut Value, old: Option<&Value>) {
    let Some(old) = old else { return };
    let moved = spec["clusterIP"] != old["clusterIP"] && spec["clusterIPs"] == old["clusterIPs"];
    match moved {
        true if absent(spec, "clusterIP") => spec["clusterIP"] = old["clusterIP"].clone(),
        true => spec["clusterIPs"] = json!([spec["clusterIP"]]),
        false => {}
    }
    for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        if absent(spec, key) && !absent(old, key) {
            spec[key] = old[key].clone();
        }
    }
}

fn strip_addresses(spec: &mut Value, old: Option<&Value>) {
    let Some((spec, old)) = spec.as_object_mut().zip(old) else { return };
    for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        if spec.get(key) == Some(&old[key]) {
            spec.remove(key);
        }
    }
}
