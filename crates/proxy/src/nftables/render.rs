//! What one port of a Service puts into the table: entries of the shared maps, chains of its own,
//! lists of endpoints. A pure function of its rules, comparable, so that the difference between two
//! states is the difference between two renderings.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::cidr::Cidr;
use crate::rules::{Endpoint, PortRules, Protocol, Route};

/// An entry of a shared set or map, which several ports may want.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Slot {
    Service(IpAddr, Protocol, u16),
    NodePort(Protocol, u16),
    NoEndpoints(IpAddr, Protocol, u16),
    NoEndpointsNodePort(Protocol, u16),
    Firewall(IpAddr, Protocol, u16),
    ClusterIp(IpAddr),
    Hairpin(IpAddr),
}

/// What an entry leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Of sets: it is there.
    Present,
    Goto(Role),
    Drop,
    Reject,
}

/// The chains of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Role {
    Cluster,
    Local,
    External,
    Firewall,
    /// With affinity, there is one for each endpoint of either list.
    Endpoint(SocketAddr),
}

impl Role {
    pub(super) fn chain(self, base: &str) -> String {
        match self {
            Role::Cluster => format!("cluster/{base}"),
            Role::Local => format!("local/{base}"),
            Role::External => format!("external/{base}"),
            Role::Firewall => format!("firewall/{base}"),
            // nft reads no colons in names.
            Role::Endpoint(SocketAddr::V4(v4)) => format!("endpoint/{base}/{}/{}", v4.ip(), v4.port()),
            Role::Endpoint(SocketAddr::V6(v6)) => {
                format!("endpoint/{base}/{}/{}", v6.ip().to_string().replace(':', "."), v6.port())
            }
        }
    }
}

/// The content of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body<'a> {
    /// To one of so many endpoints of the role's list.
    Balance(usize),
    /// To the endpoint that the client had last, or to any of the role's list.
    BalanceSticky(&'a [Endpoint]),
    /// To one endpoint, which the client keeps for so long.
    Remember(Duration),
    /// To the cluster's endpoints, by way of this node.
    ThroughNode,
    /// Clients in the cluster to the cluster's endpoints, others to those of this node if there are any.
    KeepSource {
        served: bool,
    },
    Firewall(&'a [Cidr]),
}

#[derive(Debug, Default)]
pub(super) struct Rendered<'a> {
    pub(super) slots: BTreeMap<Slot, Action>,
    pub(super) chains: BTreeMap<Role, Body<'a>>,
    pub(super) affinity: bool,
    cluster: &'a [Endpoint],
    local: &'a [Endpoint],
}

impl<'a> Rendered<'a> {
    /// The endpoints that a balancing chain chooses from, if there is that chain.
    pub(super) fn list(&self, role: Role) -> &'a [Endpoint] {
        match role {
            Role::Cluster => self.cluster,
            Role::Local => self.local,
            Role::External | Role::Firewall | Role::Endpoint(_) => &[],
        }
    }
}

pub(super) fn render(protocol: Protocol, rules: &PortRules) -> Rendered<'_> {
    let mut rendered = Rendered { affinity: rules.affinity.is_some(), ..Rendered::default() };
    rendered.internal(protocol, rules);
    if rules.externally_accessible() {
        rendered.external(protocol, rules);
    }
    rendered.balance(rules);
    rendered
}

impl<'a> Rendered<'a> {
    fn internal(&mut self, protocol: Protocol, rules: &PortRules) {
        let address = |make: fn(IpAddr, Protocol, u16) -> Slot| make(rules.cluster_ip, protocol, rules.port);
        let (slot, action) = match rules.internal {
            Route::Cluster => (address(Slot::Service), Action::Goto(Role::Cluster)),
            Route::Local => (address(Slot::Service), Action::Goto(Role::Local)),
            Route::Drop => (address(Slot::NoEndpoints), Action::Drop),
            Route::Reject => (address(Slot::NoEndpoints), Action::Reject),
        };
        self.slots.insert(slot, action);
        self.slots.insert(Slot::ClusterIp(rules.cluster_ip), Action::Present);
    }

    fn external(&mut self, protocol: Protocol, rules: &'a PortRules) {
        let addresses = || rules.external_ips.iter().chain(&rules.load_balancer_ips);
        let mut everywhere = |at: fn(IpAddr, Protocol, u16) -> Slot, on: fn(Protocol, u16) -> Slot, action| {
            self.slots.extend(addresses().map(|ip| (at(*ip, protocol, rules.port), action)));
            self.slots.extend(rules.node_port.map(|port| (on(protocol, port), action)));
        };
        if rules.has_endpoints() {
            everywhere(Slot::Service, Slot::NodePort, Action::Goto(Role::External));
        }
        // A packet that the external chain sent somewhere never comes to these.
        match rules.external {
            Route::Drop => everywhere(Slot::NoEndpoints, Slot::NoEndpointsNodePort, Action::Drop),
            Route::Reject => everywhere(Slot::NoEndpoints, Slot::NoEndpointsNodePort, Action::Reject),
            Route::Cluster | Route::Local => {}
        }
        if rules.has_endpoints() {
            let body = match rules.external_local {
                true => Body::KeepSource { served: rules.external == Route::Local },
                false => Body::ThroughNode,
            };
            self.chains.insert(Role::External, body);
        }
        if let Some(sources) = &rules.allowed_sources {
            self.chains.insert(Role::Firewall, Body::Firewall(sources));
            let guarded = rules.load_balancer_ips.iter().map(|ip| Slot::Firewall(*ip, protocol, rules.port));
            self.slots.extend(guarded.map(|slot| (slot, Action::Goto(Role::Firewall))));
        }
    }

    fn balance(&mut self, rules: &'a PortRules) {
        let reached = rules.externally_accessible() && rules.has_endpoints();
        if rules.internal == Route::Cluster || reached {
            self.cluster = &rules.cluster;
        }
        if rules.internal == Route::Local || reached && rules.external == Route::Local {
            self.local = &rules.local;
        }
        for role in [Role::Cluster, Role::Local] {
            let list = self.list(role);
            if !list.is_empty() {
                let body = if self.affinity { Body::BalanceSticky(list) } else { Body::Balance(list.len()) };
                self.chains.insert(role, body);
                let sticky = list
                    .iter()
                    .filter_map(|endpoint| Some((Role::Endpoint(endpoint.address), Body::Remember(rules.affinity?))));
                self.chains.extend(sticky);
                let near = list.iter().filter(|endpoint| endpoint.near);
                self.slots.extend(near.map(|endpoint| (Slot::Hairpin(endpoint.address.ip()), Action::Present)));
            }
        }
    }
}
