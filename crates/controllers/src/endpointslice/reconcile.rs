//! Which slices to create, update and delete so that they hold the desired endpoints. Pure.
//!
//! Slices are kept as they are where possible: endpoints stay in the slice they are in, new ones fill slices that change
//! anyway, then the fullest one with room for all of them, and only then new slices.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::desired::Group;

/// Endpoints in one slice, upstream's default.
pub const MAX_ENDPOINTS: usize = 100;

#[derive(Debug, Default)]
pub struct Changes {
    pub create: Vec<EndpointSlice>,
    /// Whole slices under their resourceVersion.
    pub update: Vec<EndpointSlice>,
    pub delete: Vec<Arc<EndpointSlice>>,
}

/// Every address type in `types` has at least one slice, if only an empty one: its presence says that there is nobody.
pub fn reconcile(
    metadata: &ObjectMeta,
    types: &[&'static str],
    mut groups: Vec<Group>,
    existing: &[Arc<EndpointSlice>],
) -> Changes {
    for address_type in types {
        if !groups.iter().any(|group| group.address_type == *address_type) {
            groups.push(Group { address_type, ports: Vec::new(), endpoints: Vec::new() });
        }
    }
    let mut changes = Changes::default();
    let mut left: Vec<Arc<EndpointSlice>> = existing.to_vec();
    for group in groups {
        let belongs = |slice: &Arc<EndpointSlice>| {
            slice.address_type == group.address_type
                && same_ports(slice.ports.as_deref().unwrap_or_default(), &group.ports)
        };
        let (ours, others) = left.into_iter().partition(belongs);
        left = others;
        reconcile_group(metadata, group, ours, &mut changes);
    }
    changes.delete.extend(left);
    changes
}

fn same_ports(left: &[EndpointPort], right: &[EndpointPort]) -> bool {
    let sorted = |ports: &[EndpointPort]| {
        let normal = |port: &EndpointPort| {
            let name = port.name.clone().unwrap_or_default();
            (name, port.port, port.protocol.clone().unwrap_or_else(|| "TCP".into()), port.app_protocol.clone())
        };
        let mut ports: Vec<_> = ports.iter().map(normal).collect();
        ports.sort();
        ports
    };
    sorted(left) == sorted(right)
}

/// A slice as it is and the endpoints it should hold.
struct Draft {
    slice: Arc<EndpointSlice>,
    endpoints: Vec<Endpoint>,
    changed: bool,
}

fn reconcile_group(metadata: &ObjectMeta, group: Group, ours: Vec<Arc<EndpointSlice>>, changes: &mut Changes) {
    let mut wanted: HashMap<String, Endpoint> = HashMap::new();
    let mut order = Vec::new();
    for endpoint in group.endpoints {
        let identity = identity(&endpoint);
        if wanted.insert(identity.clone(), endpoint).is_none() {
            order.push(identity);
        }
    }
    let mut drafts: Vec<Draft> = ours.into_iter().map(|slice| keep(metadata, slice, &mut wanted)).collect();
    let mut added: Vec<Endpoint> = order.iter().filter_map(|identity| wanted.remove(identity)).collect();
    for draft in drafts.iter_mut().filter(|draft| draft.changed) {
        fill(draft, &mut added);
    }
    // What is left goes to the slice that it fills best; a whole slice's worth goes to slices of its own.
    while added.len() >= MAX_ENDPOINTS {
        let rest = added.split_off(MAX_ENDPOINTS);
        changes.create.push(slice(metadata, &group.ports, group.address_type, std::mem::replace(&mut added, rest)));
    }
    if !added.is_empty() {
        let fits = |draft: &&mut Draft| !draft.changed && draft.endpoints.len() + added.len() <= MAX_ENDPOINTS;
        match drafts.iter_mut().filter(fits).max_by_key(|draft| draft.endpoints.len()) {
            Some(draft) => fill(draft, &mut added),
            None => changes.create.push(slice(metadata, &group.ports, group.address_type, std::mem::take(&mut added))),
        }
    }
    finish(metadata, &group.ports, group.address_type, drafts, changes);
}

/// The slice without what is no longer wanted and with what changed in place.
fn keep(metadata: &ObjectMeta, slice: Arc<EndpointSlice>, wanted: &mut HashMap<String, Endpoint>) -> Draft {
    let before = slice.endpoints.clone().unwrap_or_default();
    let endpoints: Vec<_> = before.iter().filter_map(|old| wanted.remove(&identity(old))).collect();
    let changed = endpoints != before || !carries(&slice.metadata, metadata);
    Draft { slice, endpoints, changed }
}

fn fill(draft: &mut Draft, added: &mut Vec<Endpoint>) {
    let room = MAX_ENDPOINTS.saturating_sub(draft.endpoints.len()).min(added.len());
    draft.changed |= room > 0;
    draft.endpoints.extend(added.drain(..room));
}

/// Writes down what became of the slices of a group; of its empty ones at most one stays, if there is no other.
fn finish(metadata: &ObjectMeta, ports: &[EndpointPort], kind: &str, drafts: Vec<Draft>, changes: &mut Changes) {
    let created = changes.create.iter().any(|new| new.address_type == kind && new.ports.as_deref() == Some(ports));
    let mut needs_one = !created && drafts.iter().all(|draft| draft.endpoints.is_empty());
    if needs_one && drafts.is_empty() {
        return changes.create.push(slice(metadata, ports, kind, Vec::new()));
    }
    for draft in drafts {
        if draft.endpoints.is_empty() && !std::mem::take(&mut needs_one) {
            changes.delete.push(draft.slice);
        } else if draft.changed {
            let mut updated = draft.slice.as_ref().clone();
            updated.metadata.labels.clone_from(&metadata.labels);
            updated.metadata.owner_references.clone_from(&metadata.owner_references);
            updated.endpoints = Some(draft.endpoints);
            changes.update.push(updated);
        }
    }
}

fn carries(found: &ObjectMeta, wanted: &ObjectMeta) -> bool {
    found.labels == wanted.labels && found.owner_references == wanted.owner_references
}

fn slice(metadata: &ObjectMeta, ports: &[EndpointPort], address_type: &str, endpoints: Vec<Endpoint>) -> EndpointSlice {
    EndpointSlice {
        metadata: metadata.clone(),
        address_type: address_type.into(),
        ports: Some(ports.to_vec()),
        endpoints: Some(endpoints),
    }
}

/// What makes two endpoints the same one: its addresses and its target.
fn identity(endpoint: &Endpoint) -> String {
    let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.as_deref()).unwrap_or_default();
    format!("{}|{uid}", endpoint.addresses.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::discovery::v1::EndpointConditions;

    fn endpoint(number: usize, ready: bool) -> Endpoint {
        let conditions = EndpointConditions { ready: Some(ready), ..Default::default() };
        Endpoint { addresses: vec![format!("10.0.0.{number}")], conditions: Some(conditions), ..Default::default() }
    }

    fn group(numbers: impl IntoIterator<Item = usize>) -> Group {
        let ports = vec![EndpointPort { name: Some("http".into()), port: Some(80), ..Default::default() }];
        Group {
            address_type: "IPv4",
            ports,
            endpoints: numbers.into_iter().map(|number| endpoint(number, true)).collect(),
        }
    }

    fn existing(name: &str, numbers: impl IntoIterator<Item = usize>) -> Arc<EndpointSlice> {
        let group = group(numbers);
        let metadata = ObjectMeta { name: Some(name.into()), ..Default::default() };
        Arc::new(slice(&metadata, &group.ports, group.address_type, group.endpoints))
    }

    /// "created sizes | updated name=size | deleted names"
    fn outcome(groups: Vec<Group>, existing: &[Arc<EndpointSlice>]) -> String {
        let changes = reconcile(&ObjectMeta::default(), &["IPv4"], groups, existing);
        let size = |slice: &EndpointSlice| slice.endpoints.as_ref().map_or(0, Vec::len);
        let name = |slice: &EndpointSlice| slice.metadata.name.clone().unwrap_or_default();
        let created: Vec<_> = changes.create.iter().map(|slice| size(slice).to_string()).collect();
        let updated: Vec<_> = changes.update.iter().map(|slice| format!("{}={}", name(slice), size(slice))).collect();
        let deleted: Vec<_> = changes.delete.iter().map(|slice| name(slice)).collect();
        format!("{}|{}|{}", created.join(" "), updated.join(" "), deleted.join(" "))
    }

    #[test]
    fn slices_change_as_little_as_possible() {
        let table = [
            ("nobody yet", vec![], vec![], "0||"),
            ("first", vec![group(0..3)], vec![], "3||"),
            ("full slices", vec![group(0..250)], vec![], "100 100 50||"),
            ("unchanged", vec![group(0..3)], vec![existing("a", 0..3)], "||"),
            ("one more", vec![group(0..4)], vec![existing("a", 0..3)], "|a=4|"),
            (
                "into the fullest that fits",
                vec![group(0..61)],
                vec![existing("a", 0..20), existing("b", 20..60)],
                "|b=41|",
            ),
            (
                "into the one that fits",
                vec![group(0..191)],
                vec![existing("a", 0..95), existing("b", 95..185)],
                "|b=96|",
            ),
            ("overflow", vec![group(0..110)], vec![existing("a", 0..95)], "15||"),
            ("one less", vec![group(0..2)], vec![existing("a", 0..3)], "|a=2|"),
            ("emptied slice", vec![group(0..3)], vec![existing("a", 0..3), existing("b", 3..5)], "||b"),
            ("nobody left", vec![], vec![existing("a", 0..3)], "0||a"),
            ("moved into the changing one", vec![group(1..5)], vec![existing("a", 0..2), existing("b", 2..4)], "|a=2|"),
        ];
        for (name, groups, existing, expected) in table {
            assert_eq!(outcome(groups, &existing), expected, "{name}");
        }
    }

    #[test]
    fn a_placeholder_stays_as_it_is() {
        let metadata = ObjectMeta { name: Some("p".into()), ..Default::default() };
        let placeholder = Arc::new(slice(&metadata, &[], "IPv4", vec![]));
        assert_eq!(outcome(vec![], std::slice::from_ref(&placeholder)), "||");
        assert_eq!(outcome(vec![group(0..1)], &[placeholder]), "1||p");
    }

    #[test]
    fn a_changed_endpoint_is_updated_in_place() {
        let mut wanted = group(0..2);
        wanted.endpoints[1] = endpoint(1, false);
        let changes = reconcile(&ObjectMeta::default(), &["IPv4"], vec![wanted], &[existing("a", 0..2)]);
        let endpoints = changes.update[0].endpoints.as_ref().unwrap();
        assert_eq!(endpoints[1].conditions.as_ref().unwrap().ready, Some(false));
    }
}
