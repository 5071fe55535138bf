//! Service addresses and node ports: each is a key of its own beside the Service, taken and released
//! in the transaction that writes the Service.
//!
//! So nothing is kept in memory, nothing leaks when the process dies, two servers on one store cannot
//! give away the same address, and there is no repair loop. A free value is found by drawing one and
//! trying to take it; only when several draws were taken is the list of taken ones read.

use std::{collections::HashSet, net::Ipv4Addr, ops::RangeInclusive, sync::Arc};

use bytes::Bytes;
use machinery::{
    field::FieldError,
    meta,
    status::{ApiError, Result},
};
use resources::Facts;
use serde_json::{Value, json};
use store::{KeyRange, Range, Store};

use crate::cache::storage_error;

const ADDRESSES: &str = "/registry/ranges/serviceips/";
const PORTS: &str = "/registry/ranges/servicenodeports/";
/// Draws without knowing what is taken.
const BLIND_DRAWS: usize = 3;
/// Draws altogether; other writers may be faster each time.
pub const DRAWS: usize = 16;

/// An IPv4 network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    base: u32,
    bits: u8,
}

impl std::str::FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Cidr, String> {
        let wrong = || format!("{text:?} is no IPv4 network such as 10.43.0.0/16 of at most 2^20 addresses");
        let (address, bits) = text.split_once('/').ok_or_else(wrong)?;
        let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        let bits: u8 = bits.parse().ok().filter(|bits| (12..=30).contains(bits)).ok_or_else(wrong)?;
        Ok(Cidr { base: u32::from(address) & (u32::MAX << (32 - bits)), bits })
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.base), self.bits)
    }
}

impl Cidr {
    fn size(&self) -> u32 {
        1 << (32 - self.bits)
    }

    /// The nth address; 0 is the network's own.
    pub fn nth(&self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.base + n)
    }

    /// Neither the network's own address nor the last one may be given away.
    fn usable(&self, address: Ipv4Addr) -> bool {
        (self.base + 1..self.base + self.size() - 1).contains(&u32::from(address))
    }
}

/// What a write takes and gives back.
#[derive(Debug, Default)]
pub struct Claims {
    pub take: Vec<Claim>,
    /// Keys.
    pub release: Vec<Bytes>,
}

#[derive(Debug)]
pub struct Claim {
    pub key: Bytes,
    /// What to tell the client when it is taken; `None` when it was drawn and another will do.
    pub error: Option<FieldError>,
}

pub struct Allocators {
    store: Arc<dyn Store>,
    addresses: Cidr,
    ports: RangeInclusive<u16>,
}

impl Allocators {
    pub fn new(store: Arc<dyn Store>, addresses: Cidr, ports: RangeInclusive<u16>) -> Allocators {
        Allocators { store, addresses, ports }
    }

    /// Completes `new` with addresses and ports and says what must be taken and released for it.
    /// `draw` counts the times that what was drawn had been taken.
    pub async fn plan(&self, facts: &Facts, new: &mut Value, old: Option<&Value>, draw: usize) -> Result<Claims> {
        if !allocates(facts) {
            return Ok(Claims::default());
        }
        let known = draw >= BLIND_DRAWS;
        let mut plan = Plan {
            addresses: self.addresses,
            ports: self.ports.clone(),
            taken: if known { self.taken().await? } else { HashSet::new() },
            spread: !known,
            old: old.map(held).unwrap_or_default(),
            take: Vec::new(),
            errors: Vec::new(),
        };
        plan.complete(new, old);
        if !plan.errors.is_empty() {
            return Err(ApiError::invalid(facts.group, facts.kind, meta::name(new), plan.errors));
        }
        let keeps = held(new);
        let release = plan.old.difference(&keeps).map(|key| key.clone().into()).collect();
        Ok(Claims { take: plan.take, release })
    }

    /// What is given back when the object goes.
    pub fn release(facts: &Facts, object: &Value) -> Claims {
        let release = match allocates(facts) {
            true => held(object).into_iter().map(Bytes::from).collect(),
            false => Vec::new(),
        };
        Claims { take: Vec::new(), release }
    }

    async fn taken(&self) -> Result<HashSet<String>> {
        let mut taken = HashSet::new();
        for prefix in [ADDRESSES, PORTS] {
            let range = Range { range: KeyRange::prefix(prefix), revision: None, limit: 0, count_only: false };
            let listed = self.store.range(range).await.map_err(storage_error)?;
            taken.extend(listed.kvs.into_iter().filter_map(|kv| String::from_utf8(kv.key.to_vec()).ok()));
        }
        Ok(taken)
    }
}

fn allocates(facts: &Facts) -> bool {
    facts.group.is_empty() && facts.plural == "services"
}

/// The keys an existing Service holds.
fn held(service: &Value) -> HashSet<String> {
    let spec = &service["spec"];
    let ports = spec["ports"].as_array().into_iter().flatten().map(|port| &port["nodePort"]);
    let ports = ports.chain([&spec["healthCheckNodePort"]]).filter_map(Value::as_u64).filter(|port| *port > 0);
    let addresses = spec["clusterIPs"].as_array().into_iter().flatten().chain([&spec["clusterIP"]]);
    let addresses = addresses.filter_map(Value::as_str).filter(|address| address.parse::<Ipv4Addr>().is_ok());
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

struct Plan {
    addresses: Cidr,
    ports: RangeInclusive<u16>,
    taken: HashSet<String>,
    /// Nothing is known of what is taken: draw from the upper band first, where nobody asks by hand.
    spread: bool,
    old: HashSet<String>,
    take: Vec<Claim>,
    errors: Vec<FieldError>,
}

impl Plan {
    fn complete(&mut self, new: &mut Value, old: Option<&Value>) {
        let kind = text(&new["spec"], "type").to_owned();
        let Some(_) = new["spec"].as_object() else { return };
        let old = old.map(|old| &old["spec"]).filter(|old| text(old, "type") != "ExternalName");
        match kind.as_str() {
            "ExternalName" => strip_addresses(&mut new["spec"], old),
            _ => self.address(&mut new["spec"], old),
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

    fn address(&mut self, spec: &mut Value, old: Option<&Value>) {
        carry_addresses(spec, old);
        if absent(spec, "clusterIPs") && !absent(spec, "clusterIP") {
            spec["clusterIPs"] = json!([spec["clusterIP"]]);
        }
        self.families(spec);
        if text(spec, "clusterIP") == "None" {
            return;
        }
        if absent(spec, "clusterIP") && absent(spec, "clusterIPs") {
            let Some(address) = self.draw_address() else {
                let why = "failed to allocate a serviceIP: range is full";
                return self.errors.push(FieldError::internal("spec.clusterIPs", why));
            };
            spec["clusterIP"] = address.to_string().into();
            spec["clusterIPs"] = json!([address.to_string()]);
            return self.claim(format!("{ADDRESSES}{address}"), None);
        }
        let Ok(address) = text(spec, "clusterIP").parse::<Ipv4Addr>() else { return };
        let invalid = |why: String| {
            let why = format!("failed to allocate IP {address}: {why}");
            FieldError::invalid("spec.clusterIPs", json!([address.to_string()]), why)
        };
        if !self.addresses.usable(address) && !self.old.contains(&format!("{ADDRESSES}{address}")) {
            let range = self.addresses;
            let why =
                format!("the provided IP ({address}) is not in the valid range. The range of valid IPs is {range}");
            return self.errors.push(invalid(why));
        }
        self.claim(format!("{ADDRESSES}{address}"), Some(invalid("provided IP is already allocated".into())));
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
                return self.errors.push(FieldError::internal(path, "failed to allocate a nodePort: range is full"));
            };
            *value = port.into();
            return self.claim(format!("{PORTS}{port}"), None);
        };
        let key = format!("{PORTS}{port}");
        if !self.old.contains(&key) && u16::try_from(port).map_or(true, |port| !self.ports.contains(&port)) {
            let (start, end) = (self.ports.start(), self.ports.end());
            let why = format!("provided port is not in the valid range. The range of valid ports is {start}-{end}");
            return self.errors.push(FieldError::invalid(path, port, why));
        }
        self.claim(key, Some(FieldError::invalid(path, port, "provided port is already allocated")));
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

    fn claim(&mut self, key: String, error: Option<FieldError>) {
        // Ports of different protocols in one Service may share a number.
        if !self.old.contains(&key) && self.taken_here(&key).is_none() {
            self.take.push(Claim { key: key.into(), error });
        }
    }

    fn taken_here(&self, key: &str) -> Option<&Claim> {
        self.take.iter().find(|claim| claim.key == key.as_bytes())
    }

    fn free(&self, key: &str) -> bool {
        !self.taken.contains(key) && !self.old.contains(key) && self.taken_here(key).is_none()
    }

    fn draw_address(&self) -> Option<Ipv4Addr> {
        let size = self.addresses.size();
        let band = if self.spread { (size / 16).clamp(16, 256).min(size / 2) } else { 1 };
        self.draw(band..size - 1, |n| format!("{ADDRESSES}{}", self.addresses.nth(n))).map(|n| self.addresses.nth(n))
    }

    fn draw_port(&self) -> Option<u32> {
        let (start, end) = (u32::from(*self.ports.start()), u32::from(*self.ports.end()) + 1);
        let band = if self.spread { ((end - start) / 32).clamp(16, 128).min((end - start) / 2) } else { 0 };
        self.draw(start + band..end, |port| format!("{PORTS}{port}"))
    }

    /// The first free value from a random place on.
    fn draw(&self, range: std::ops::Range<u32>, key: impl Fn(u32) -> String) -> Option<u32> {
        let first = rand::random_range(range.clone());
        (first..range.end).chain(range.start..first).find(|n| self.free(&key(*n)))
    }
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
