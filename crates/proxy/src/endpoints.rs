//! Which endpoints of a Service's port are used from this node: by condition, by traffic policy, by
//! topology hints.
//!
//! Ready endpoints are used; where there are none, those that still serve while they terminate
//! (KEP-1669), decided for the cluster and for the node separately. Hints count only if every ready
//! endpoint has them and one is meant for this node or zone (KEP-2433, KEP-3015).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{Endpoint as SliceEndpoint, EndpointSlice};

use crate::plan::Node;
use crate::rules::{Endpoint, Family, Protocol};

/// An endpoint as the slices describe it, seen from this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Known {
    ready: bool,
    serving: bool,
    terminating: bool,
    local: bool,
    /// Named no node: it may be on any, this one too.
    placeless: bool,
    hinted_anywhere: Hints,
    hinted_here: Hints,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Hints {
    node: bool,
    zone: bool,
}

impl Known {
    fn leaving(&self) -> bool {
        !self.ready && self.serving && self.terminating
    }
}

/// The endpoints of one port in one family.
#[derive(Debug, Default)]
pub(crate) struct Endpoints(BTreeMap<SocketAddr, Known>);

/// What new connections may use.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Usable {
    pub(crate) cluster: Vec<Endpoint>,
    pub(crate) local: Vec<Endpoint>,
    /// There is one somewhere, though perhaps not for a policy that asks for local ones.
    pub(crate) any: bool,
}

impl Endpoints {
    /// Of the slices of a Service, the endpoints of the port of that name and protocol.
    pub(crate) fn collect(
        slices: &[Arc<EndpointSlice>],
        family: Family,
        port: &str,
        protocol: Protocol,
        node: &Node,
    ) -> Endpoints {
        let mut found: BTreeMap<SocketAddr, Known> = BTreeMap::new();
        let address_type = if family == Family::Ipv4 { "IPv4" } else { "IPv6" };
        for slice in slices.iter().filter(|slice| slice.address_type == address_type) {
            let matching = slice.ports.iter().flatten().find(|candidate| {
                candidate.name.as_deref().unwrap_or_default() == port
                    && Protocol::parse(candidate.protocol.as_deref()) == protocol
            });
            let Some(target) = matching.and_then(|port| u16::try_from(port.port?).ok()) else { continue };
            for endpoint in slice.endpoints.iter().flatten() {
                let address = endpoint.addresses.first().and_then(|address| address.parse::<IpAddr>().ok());
                let Some(address) = address.filter(|address| Family::of(*address) == family) else { continue };
                // In two slices at once while it moves: the better word counts.
                let known = found.entry(SocketAddr::new(address, target)).or_default();
                *known = (*known).max(describe(endpoint, node));
            }
        }
        Endpoints(found)
    }

    /// `uses_cluster` and `uses_local` say which lists any policy of the port asks for.
    pub(crate) fn usable(&self, uses_cluster: bool, uses_local: bool) -> Usable {
        let cluster = if uses_cluster {
            let preferred = self.preference();
            self.first_of(|known| known.ready && preferred(known), Known::leaving)
        } else {
            Vec::new()
        };
        let local = if uses_local {
            self.first_of(|known| known.local && known.ready, |known| known.local && known.leaving())
        } else {
            Vec::new()
        };
        Usable { cluster, local, any: self.0.values().any(|known| known.ready || known.leaving()) }
    }

    /// Addresses that still answer.
    pub(crate) fn serving(&self) -> Vec<IpAddr> {
        let mut serving: Vec<IpAddr> =
            self.0.iter().filter(|(_, known)| known.serving).map(|(address, _)| address.ip()).collect();
        serving.dedup();
        serving
    }

    /// Ready addresses on this node.
    pub(crate) fn local_ready(&self) -> impl Iterator<Item = IpAddr> {
        self.0.iter().filter(|(_, known)| known.local && known.ready).map(|(address, _)| address.ip())
    }

    /// Which ready endpoints the hints choose.
    fn preference(&self) -> fn(&Known) -> bool {
        let ready = || self.0.values().filter(|known| known.ready);
        let chosen =
            |anywhere: fn(&Known) -> bool, here: fn(&Known) -> bool| ready().all(anywhere) && ready().any(here);
        if chosen(|known| known.hinted_anywhere.node, |known| known.hinted_here.node) {
            |known| known.hinted_here.node
        } else if chosen(|known| known.hinted_anywhere.zone, |known| known.hinted_here.zone) {
            |known| known.hinted_here.zone
        } else {
            |_| true
        }
    }

    fn first_of(&self, best: impl Fn(&Known) -> bool, fallback: impl Fn(&Known) -> bool) -> Vec<Endpoint> {
        let pick = |wanted: &dyn Fn(&Known) -> bool| -> Vec<Endpoint> {
            let chosen = self.0.iter().filter(|(_, known)| wanted(known));
            chosen
                .map(|(address, known)| Endpoint { address: *address, near: known.local || known.placeless })
                .collect()
        };
        let chosen = pick(&best);
        if chosen.is_empty() { pick(&fallback) } else { chosen }
    }
}

fn describe(endpoint: &SliceEndpoint, node: &Node) -> Known {
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    let hints = endpoint.hints.as_ref();
    let nodes = || hints.and_then(|hints| hints.for_nodes.as_ref()).into_iter().flatten().map(|hint| &hint.name);
    let zones = || hints.and_then(|hints| hints.for_zones.as_ref()).into_iter().flatten().map(|hint| &hint.name);
    Known {
        ready,
        serving: conditions.serving.unwrap_or(ready),
        terminating: conditions.terminating.unwrap_or(false),
        local: endpoint.node_name.as_deref() == Some(&node.name),
        placeless: endpoint.node_name.is_none(),
        hinted_anywhere: Hints { node: nodes().next().is_some(), zone: zones().next().is_some() },
        hinted_here: Hints {
            node: nodes().any(|name| *name == node.name),
            zone: node.zone.as_ref().is_some_and(|zone| zones().any(|name| name == zone)),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Endpoints written as `ADDRESS@NODE:FLAGS`, where the flags are r(eady), s(erving),
    /// t(erminating), n(ode hint =NODE), z(one hint =ZONE).
    fn endpoints(texts: &[&str]) -> Endpoints {
        let parsed: Vec<Value> = texts.iter().map(|text| endpoint(text)).collect();
        let slice = json!({ "metadata": {}, "addressType": "IPv4", "endpoints": parsed,
            "ports": [{ "name": "dns", "port": 53, "protocol": "UDP" }, { "name": "http", "port": 8080 }] });
        let node = Node { name: "here".into(), zone: Some("east".into()), ..Node::default() };
        let slice = Arc::new(serde_json::from_value(slice).unwrap());
        Endpoints::collect(&[slice], Family::Ipv4, "http", Protocol::Tcp, &node)
    }

    fn endpoint(text: &str) -> Value {
        let (place, flags) = text.split_once(':').unwrap();
        let (last, node) = place.split_once('@').unwrap();
        let hint = |key: char| flags.split(',').find_map(|flag| flag.strip_prefix(key)?.strip_prefix('='));
        let states = flags.split(',').next().unwrap();
        let mut endpoint = json!({ "addresses": [format!("10.42.0.{last}")], "nodeName": node, "conditions": {
            "ready": states.contains('r'), "serving": states.contains('s') || states.contains('r'),
            "terminating": states.contains('t') }, "hints": {} });
        if let Some(node) = hint('n') {
            endpoint["hints"]["forNodes"] = json!([{ "name": node }]);
        }
        if let Some(zone) = hint('z') {
            endpoint["hints"]["forZones"] = json!([{ "name": zone }]);
        }
        endpoint
    }

    fn numbers(endpoints: &[Endpoint]) -> Vec<u8> {
        let last = |endpoint: &Endpoint| match endpoint.address.ip() {
            IpAddr::V4(v4) => v4.octets()[3],
            IpAddr::V6(_) => unreachable!("all are IPv4"),
        };
        endpoints.iter().map(last).collect()
    }

    #[test]
    fn conditions_policies_and_hints() {
        type Case = (&'static [&'static str], &'static [u8], &'static [u8], bool);
        let cases: &[Case] = &[
            (&[], &[], &[], false),
            (&["2@here:r", "3@there:r", "4@here:"], &[2, 3], &[2], true),
            (&["3@there:r"], &[3], &[], true),
            // Terminating ones only where nothing is ready, each list for itself.
            (&["2@here:st", "3@there:r"], &[3], &[2], true),
            (&["2@here:st", "3@there:st"], &[2, 3], &[2], true),
            (&["2@here:t", "3@there:s"], &[], &[], false),
            // Hints, for the node before those for the zone; all or nothing.
            (&["2@a:r,z=east", "3@b:r,z=west"], &[2], &[], true),
            (&["2@a:r,z=east", "3@b:r"], &[2, 3], &[], true),
            (&["2@a:r,z=north", "3@b:r,z=west"], &[2, 3], &[], true),
            (&["2@a:r,z=east,n=here", "3@b:r,z=east,n=b"], &[2], &[], true),
            (&["2@a:r,z=east,n=a", "3@b:r,z=west,n=b"], &[2], &[], true),
            (&["2@here:r,z=west", "3@b:r,z=east"], &[3], &[2], true),
            (&["2@a:r,z=east", "3@b:st"], &[2], &[], true),
        ];
        for (texts, cluster, local, any) in cases {
            let usable = endpoints(texts).usable(true, true);
            assert_eq!((&*numbers(&usable.cluster), &*numbers(&usable.local)), (*cluster, *local), "{texts:?}");
            assert_eq!(usable.any, *any, "{texts:?}");
        }
    }

    #[test]
    fn duplicates_are_one_and_near_ones_are_known() {
        let found = endpoints(&["2@here:", "2@here:r", "3@there:r", "4@there:st"]);
        let usable = found.usable(true, false);
        assert_eq!(numbers(&usable.cluster), [2, 3]);
        assert_eq!(usable.cluster.iter().map(|e| e.near).collect::<Vec<_>>(), [true, false]);
        assert_eq!(usable.cluster[0].address.port(), 8080, "the port of that name and protocol");
        assert_eq!(found.serving().len(), 3);
        assert_eq!(found.local_ready().count(), 1);
        assert_eq!(usable.local, []);
    }
}
