//! UDP flows to endpoints that have gone: the kernel would send them there for as long as the client
//! goes on talking. TCP needs no such help, since a dead peer is noticed.
//!
//! A flow ends if the address it began with is a Service's, and who answers is no endpoint that still
//! serves, whatever the policies say of new flows. A Service without any endpoint keeps its flows.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use nft::conntrack::Connection;

use crate::rules::{Family, PortName, PortRules, Protocol};

/// Who may answer at the addresses and node ports of some Services.
#[derive(Debug, Default)]
struct Answerers<'a> {
    places: HashMap<SocketAddr, BTreeSet<&'a IpAddr>>,
    node_ports: HashMap<(Family, u16), BTreeSet<&'a IpAddr>>,
}

impl<'a> Answerers<'a> {
    fn add(&mut self, name: &PortName, rules: &'a PortRules) {
        let serving: BTreeSet<&IpAddr> = rules.serving.iter().collect();
        if serving.is_empty() {
            return;
        }
        let addresses = [&rules.cluster_ip].into_iter().chain(&rules.external_ips).chain(&rules.load_balancer_ips);
        for address in addresses {
            self.places.insert(SocketAddr::new(*address, rules.port), serving.clone());
        }
        if let Some(port) = rules.node_port {
            self.node_ports.insert((name.family, port), serving);
        }
    }

    fn is_stale(&self, connection: &Connection) -> bool {
        let Connection { destination, replier, .. } = connection;
        let node_port = (Family::of(destination.ip()), destination.port());
        let at = [self.places.get(destination), self.node_ports.get(&node_port)];
        connection.protocol == Protocol::Udp.number()
            && at.into_iter().flatten().any(|serving| !serving.contains(&replier.ip()))
    }
}

/// Ends the stale flows of UDP ports, and says how many there were.
pub(crate) fn end_stale<'a>(
    socket: &mut nft::Socket,
    ports: impl Iterator<Item = (&'a PortName, &'a Arc<PortRules>)>,
) -> Result<usize, nft::Error> {
    let (mut answerers, mut families) = (Answerers::default(), BTreeSet::new());
    for (name, rules) in ports {
        answerers.add(name, rules);
        families.insert(name.family);
    }
    let mut ended = 0;
    for family in families {
        for connection in socket.connections(family.into(), |connection| answerers.is_stale(connection))? {
            socket.forget_connection(&connection)?;
            ended += 1;
        }
    }
    Ok(ended)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::Route;

    #[test]
    fn flows_to_former_endpoints_are_stale() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let rules = |serving: &[&str]| PortRules {
            cluster_ip: ip("10.43.0.10"),
            port: 53,
            external_ips: vec![ip("192.0.2.7")],
            load_balancer_ips: vec![],
            allowed_sources: None,
            node_port: Some(30053),
            affinity: None,
            internal: Route::Cluster,
            external: Route::Cluster,
            external_local: false,
            cluster: vec![],
            local: vec![],
            serving: serving.iter().map(|text| ip(text)).collect(),
        };
        let name =
            PortName { family: Family::Ipv4, service: "ns/dns".into(), port: "dns".into(), protocol: Protocol::Udp };
        let (some, none) = (rules(&["10.42.0.2"]), rules(&[]));
        for (rules, protocol, destination, replier, stale) in [
            (&some, 17, "10.43.0.10:53", "10.42.0.3:5353", true),
            (&some, 17, "10.43.0.10:53", "10.42.0.2:5353", false),
            (&some, 6, "10.43.0.10:53", "10.42.0.3:5353", false),
            (&some, 17, "10.43.0.10:54", "10.42.0.3:5353", false),
            (&some, 17, "192.0.2.7:53", "10.42.0.3:5353", true),
            (&some, 17, "192.0.2.1:30053", "192.0.2.1:30053", true),
            (&some, 17, "192.0.2.1:30054", "192.0.2.1:30054", false),
            (&none, 17, "10.43.0.10:53", "10.42.0.3:5353", false),
        ] {
            let mut answerers = Answerers::default();
            answerers.add(&name, rules);
            let connection = Connection::new(protocol, destination.parse().unwrap(), replier.parse().unwrap());
            assert_eq!(answerers.is_stale(&connection), stale, "{protocol} {destination} {replier}");
        }
    }
}
