//! What is wanted of the network for each port of a Service, in terms that any applier can express;
//! and the difference between two such states. Pure data: it knows no kernel interface.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::cidr::Cidr;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// As the API writes it; TCP if it says nothing.
    pub fn parse(text: Option<&str>) -> Protocol {
        match text {
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            _ => Protocol::Tcp,
        }
    }

    /// IPPROTO_*.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

/// Identifies a port of a Service in one address family.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortName {
    pub family: Family,
    /// `namespace/name`.
    pub service: Arc<str>,
    /// Empty if the only port has no name.
    pub port: String,
    pub protocol: Protocol,
}

/// Where a connection may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    pub address: SocketAddr,
    /// Whether it may itself be the client, of this node's proxy: then its source is rewritten, or
    /// the reply would not come back this way.
    pub near: bool,
}

/// What becomes of traffic of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// To one of [`PortRules::cluster`].
    Cluster,
    /// To one of [`PortRules::local`].
    Local,
    /// Dropped: there are endpoints, but none on this node, which the policy demands.
    Drop,
    /// Refused: there are no endpoints.
    Reject,
}

/// What one port of a Service wants in one address family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRules {
    pub cluster_ip: IpAddr,
    /// At the cluster IP, the external IPs and the load balancer's addresses.
    pub port: u16,
    pub external_ips: Vec<IpAddr>,
    pub load_balancer_ips: Vec<IpAddr>,
    /// Only these clients may use the load balancer's addresses; `None` allows all.
    pub allowed_sources: Option<Vec<Cidr>>,
    /// At the node's own addresses.
    pub node_port: Option<u16>,
    /// A client keeps its endpoint for this long after its last connection.
    pub affinity: Option<Duration>,
    /// Traffic to the cluster IP.
    pub internal: Route,
    /// Traffic to every other address.
    pub external: Route,
    /// External traffic stays on this node and keeps its source, but for that of pods and of the
    /// node itself, which goes to [`PortRules::cluster`].
    pub external_local: bool,
    /// In order, without duplicates.
    pub cluster: Vec<Endpoint>,
    pub local: Vec<Endpoint>,
    /// UDP only: endpoints that may keep the flows they have, whatever the policies say of new ones.
    pub serving: Vec<IpAddr>,
}

impl PortRules {
    /// Whether anything but the cluster IP leads here.
    pub fn externally_accessible(&self) -> bool {
        self.node_port.is_some() || !self.external_ips.is_empty() || !self.load_balancer_ips.is_empty()
    }

    /// Whether there is an endpoint anywhere.
    pub fn has_endpoints(&self) -> bool {
        self.internal != Route::Reject
    }
}

/// What the load balancer asks of this node, at a port of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    pub port: u16,
    pub local_endpoints: usize,
}

/// Everything one Service wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceRules {
    pub ports: BTreeMap<PortName, Arc<PortRules>>,
    pub health_check: Option<HealthCheck>,
}

/// Everything that is wanted, by the Services' keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleSet {
    pub services: BTreeMap<Arc<str>, ServiceRules>,
    /// Addresses of Services; those of none are dropped.
    pub service_cidrs: Vec<Cidr>,
}

/// One port before and after; never both `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub name: PortName,
    pub old: Option<Arc<PortRules>>,
    pub new: Option<Arc<PortRules>>,
}

/// What leads from one rule set to another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub ports: Vec<Change>,
    /// `None` if they stay.
    pub service_cidrs: Option<Vec<Cidr>>,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty() && self.service_cidrs.is_none()
    }

    /// From nothing to all.
    pub fn all(rules: &RuleSet) -> Changes {
        let ports = rules.services.values().flat_map(|service| difference(&ServiceRules::default(), service));
        Changes { ports: ports.collect(), service_cidrs: Some(rules.service_cidrs.clone()) }
    }
}

impl RuleSet {
    /// Puts a Service's rules in place of what it had, and says what changed for its ports.
    pub fn put(&mut self, service: &Arc<str>, new: Option<ServiceRules>) -> Vec<Change> {
        let old = match &new {
            Some(new) => self.services.insert(service.clone(), new.clone()),
            None => self.services.remove(service),
        };
        difference(&old.unwrap_or_default(), &new.unwrap_or_default())
    }
}

fn difference(old: &ServiceRules, new: &ServiceRules) -> Vec<Change> {
    let gone = old.ports.iter().filter(|(name, _)| !new.ports.contains_key(*name));
    let gone = gone.map(|(name, rules)| Change { name: name.clone(), old: Some(rules.clone()), new: None });
    let stay = new.ports.iter().filter(|(name, rules)| old.ports.get(*name) != Some(*rules)).map(|(name, rules)| {
        Change { name: name.clone(), old: old.ports.get(name).cloned(), new: Some(rules.clone()) }
    });
    gone.chain(stay).collect()
}
