//! The cluster's zone: pure lookups in a table of Services.
//!
//! Names are taken apart instead of being stored whole, so the table holds one entry a Service and
//! an update touches nothing else.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Context;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

/// Seconds that clients may keep an answer; CoreDNS's default for Kubernetes.
const TTL: u32 = 5;
/// The version of the specification that `dns-version` tells.
const SPECIFICATION: &str = "1.1.0";

/// A Service as DNS sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    pub kind: Kind,
    pub ports: Vec<Port>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Its addresses.
    Cluster(Vec<IpAddr>),
    /// Its ready endpoints.
    Headless(Vec<Endpoint>),
    /// The name it stands for.
    External(String),
}

impl Default for Kind {
    fn default() -> Self {
        Kind::Headless(Vec::new())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub name: String,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    pub number: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub address: IpAddr,
    pub hostname: Option<String>,
    /// The target ports, which may differ from endpoint to endpoint.
    pub ports: Vec<Port>,
}

impl Endpoint {
    /// The label below the Service's name: the hostname, or the address with dashes.
    fn label(&self) -> String {
        self.hostname.clone().unwrap_or_else(|| self.address.to_string().replace(['.', ':'], "-"))
    }
}

/// What a query gets.
#[derive(Debug, Default, PartialEq)]
pub struct Answer {
    pub code: ResponseCode,
    pub answers: Vec<Record>,
    pub additionals: Vec<Record>,
    /// The start of authority, in negative answers.
    pub authorities: Vec<Record>,
}

pub enum Lookup {
    Answered(Answer),
    /// Not ours.
    Forward,
}

type Key = (String, String);

pub struct Zone {
    domain: Name,
    services: HashMap<Key, Service>,
    /// How many Services each namespace has, to tell an empty name from an absent one.
    namespaces: BTreeMap<String, usize>,
    reverse: HashMap<IpAddr, BTreeSet<Name>>,
    /// Grows with every change; the serial of the zone.
    changes: u32,
    /// Rotates answers, so that clients which take the first spread over all.
    turn: std::sync::atomic::AtomicUsize,
}

impl Zone {
    pub fn new(domain: &str) -> anyhow::Result<Zone> {
        let mut domain =
            Name::from_utf8(domain).with_context(|| format!("cluster domain {domain:?} is no DNS name"))?;
        domain.set_fqdn(true);
        Ok(Zone {
            domain: domain.to_lowercase(),
            services: HashMap::new(),
            namespaces: BTreeMap::new(),
            reverse: HashMap::new(),
            changes: 1,
            turn: Default::default(),
        })
    }

    /// Puts, replaces or, with `None`, removes a Service.
    pub fn set(&mut self, namespace: &str, name: &str, service: Option<Service>) {
        let key = (namespace.to_owned(), name.to_owned());
        if self.services.get(&key) == service.as_ref() {
            return;
        }
        self.changes = self.changes.wrapping_add(1);
        if let Some(old) = self.services.remove(&key) {
            for (address, target) in self.pointers(&key, &old) {
                if let Some(names) = self.reverse.get_mut(&address) {
                    names.remove(&target);
                    if names.is_empty() {
                        self.reverse.remove(&address);
                    }
                }
            }
            if let Some(count) = self.namespaces.get_mut(namespace) {
                *count -= 1;
                if *count == 0 {
                    self.namespaces.remove(namespace);
                }
            }
        }
        if let Some(new) = service {
            for (address, target) in self.pointers(&key, &new) {
                self.reverse.entry(address).or_default().insert(target);
            }
            *self.namespaces.entry(namespace.to_owned()).or_default() += 1;
            self.services.insert(key, new);
        }
    }

    pub fn lookup(&self, name: &Name, kind: RecordType) -> Lookup {
        let query = name.to_lowercase();
        if let Some(address) = reverse_address(&query) {
            return match self.reverse.get(&address) {
                Some(targets) if matches!(kind, RecordType::PTR | RecordType::ANY) => {
                    let records = targets.iter().map(|target| record(name, RData::PTR(PTR(target.clone()))));
                    Lookup::Answered(Answer { answers: records.collect(), ..Answer::default() })
                }
                Some(_) => Lookup::Answered(self.nothing(ResponseCode::NoError)),
                None => Lookup::Forward,
            };
        }
        if !self.domain.zone_of(&query) {
            return Lookup::Forward;
        }
        let own = usize::from(query.num_labels()) - usize::from(self.domain.num_labels());
        let labels: Vec<String> =
            query.iter().take(own).map(|label| String::from_utf8_lossy(label).into_owned()).collect();
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        Lookup::Answered(self.own(name, &labels, kind))
    }

    /// `labels` are those before the cluster's domain.
    fn own(&self, name: &Name, labels: &[&str], kind: RecordType) -> Answer {
        let exists = || self.nothing(ResponseCode::NoError);
        let absent = || self.nothing(ResponseCode::NXDomain);
        match labels {
            [] if kind == RecordType::SOA => Answer { answers: vec![self.authority()], ..Answer::default() },
            [] | ["svc" | "pod"] => exists(),
            ["dns-version"] if matches!(kind, RecordType::TXT | RecordType::ANY) => {
                let text = RData::TXT(TXT::new(vec![SPECIFICATION.to_owned()]));
                Answer { answers: vec![record(name, text)], ..Answer::default() }
            }
            ["dns-version"] => exists(),
            [namespace, "svc" | "pod"] if self.namespaces.contains_key(*namespace) => exists(),
            [address, namespace, "pod"] => match pod_address(address) {
                Some(address) if self.namespaces.contains_key(*namespace) => {
                    self.answer(addresses(name, kind, [address].into_iter()))
                }
                _ => absent(),
            },
            [rest @ .., service, namespace, "svc"] => {
                match self.services.get(&((*namespace).to_owned(), (*service).to_owned())) {
                    Some(found) => self.service(name, rest, &((*namespace).into(), (*service).into()), found, kind),
                    None => absent(),
                }
            }
            _ => absent(),
        }
    }

    fn service(&self, name: &Name, below: &[&str], key: &Key, service: &Service, kind: RecordType) -> Answer {
        match (below, &service.kind) {
            ([], Kind::External(target)) => match Name::from_utf8(target) {
                Ok(mut target) => {
                    target.set_fqdn(true);
                    Answer { answers: vec![record(name, RData::CNAME(CNAME(target)))], ..Answer::default() }
                }
                Err(_) => self.nothing(ResponseCode::ServFail),
            },
            ([], Kind::Cluster(ips)) if kind != RecordType::SRV => {
                self.answer(addresses(name, kind, ips.iter().copied()))
            }
            ([], Kind::Headless(endpoints)) if kind != RecordType::SRV => {
                if endpoints.is_empty() {
                    return self.nothing(ResponseCode::NXDomain);
                }
                let mut ips: Vec<IpAddr> = endpoints.iter().map(|endpoint| endpoint.address).collect();
                ips.sort();
                ips.dedup();
                let turn = self.turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let count = ips.len();
                ips.rotate_left(turn % count);
                self.answer(addresses(name, kind, ips.into_iter()))
            }
            ([], _) => self.ports(name, key, service, |_| true),
            ([port, protocol], _) if port.starts_with('_') && protocol.starts_with('_') => {
                let wanted = |p: &Port| p.name == port[1..] && p.protocol == protocol[1..];
                match kind {
                    RecordType::SRV | RecordType::ANY => self.ports(name, key, service, wanted),
                    _ if service.ports.iter().any(wanted) => self.nothing(ResponseCode::NoError),
                    _ => self.nothing(ResponseCode::NXDomain),
                }
            }
            ([protocol], _)
                if protocol.starts_with('_') && service.ports.iter().any(|p| p.protocol == protocol[1..]) =>
            {
                self.nothing(ResponseCode::NoError)
            }
            ([host], Kind::Headless(endpoints)) => {
                let mut matching = endpoints.iter().filter(|endpoint| endpoint.label() == *host).peekable();
                if matching.peek().is_none() {
                    return self.nothing(ResponseCode::NXDomain);
                }
                self.answer(addresses(name, kind, matching.map(|endpoint| endpoint.address)))
            }
            _ => self.nothing(ResponseCode::NXDomain),
        }
    }

    /// SRV records of the ports, with the addresses of their targets.
    fn ports(&self, name: &Name, key: &Key, service: &Service, wanted: impl Fn(&Port) -> bool) -> Answer {
        let mut answer = Answer::default();
        let mut told = BTreeSet::new();
        let mut add = |port: u16, target: Option<Name>, ips: &[IpAddr]| {
            let Some(target) = target else { return };
            answer.answers.push(record(name, RData::SRV(SRV::new(0, 100, port, target.clone()))));
            if told.insert(target.clone()) {
                answer.additionals.extend(ips.iter().map(|ip| record(&target, address_data(*ip))));
            }
        };
        match &service.kind {
            Kind::Cluster(ips) => {
                for port in service.ports.iter().filter(|port| wanted(port)) {
                    add(port.number, self.service_name(key, None), ips);
                }
            }
            Kind::Headless(endpoints) => {
                for endpoint in endpoints {
                    for port in endpoint.ports.iter().filter(|port| wanted(port)) {
                        add(port.number, self.service_name(key, Some(&endpoint.label())), &[endpoint.address]);
                    }
                }
            }
            Kind::External(_) => {}
        }
        if answer.answers.is_empty() { self.nothing(ResponseCode::NXDomain) } else { answer }
    }

    fn answer(&self, answers: Vec<Record>) -> Answer {
        if answers.is_empty() {
            return self.nothing(ResponseCode::NoError);
        }
        Answer { answers, ..Answer::default() }
    }

    fn nothing(&self, code: ResponseCode) -> Answer {
        Answer { code, authorities: vec![self.authority()], ..Answer::default() }
    }

    fn authority(&self) -> Record {
        let prefixed = |label: &str| self.domain.prepend_label(label).unwrap_or_else(|_| self.domain.clone());
        let soa = SOA::new(prefixed("ns.dns"), prefixed("hostmaster"), self.changes, 7200, 1800, 86400, TTL);
        record(&self.domain, RData::SOA(soa))
    }

    fn service_name(&self, (namespace, service): &Key, host: Option<&str>) -> Option<Name> {
        let labels = host.into_iter().chain([service.as_str(), namespace, "svc"]);
        let name = Name::from_labels(labels.map(str::as_bytes)).ok()?;
        name.append_domain(&self.domain).ok()
    }

    /// Addresses that have this Service's names.
    fn pointers(&self, key: &Key, service: &Service) -> Vec<(IpAddr, Name)> {
        let named = |ip: IpAddr, host: Option<String>| Some((ip, self.service_name(key, host.as_deref())?));
        match &service.kind {
            Kind::Cluster(ips) => ips.iter().filter_map(|ip| named(*ip, None)).collect(),
            Kind::Headless(endpoints) => {
                endpoints.iter().filter_map(|endpoint| named(endpoint.address, Some(endpoint.label()))).collect()
            }
            Kind::External(_) => Vec::new(),
        }
    }
}

fn record(name: &Name, data: RData) -> Record {
    Record::from_rdata(name.clone(), TTL, data)
}

fn addresses(name: &Name, kind: RecordType, ips: impl Iterator<Item = IpAddr>) -> Vec<Record> {
    ips.filter(|ip| match kind {
        RecordType::A => ip.is_ipv4(),
        RecordType::AAAA => ip.is_ipv6(),
        RecordType::ANY => true,
        _ => false,
    })
    .map(|ip| record(name, address_data(ip)))
    .collect()
}

fn address_data(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(v4) => RData::A(A(v4)),
        IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
    }
}

/// `10-42-0-7` in a pod's name.
fn pod_address(label: &str) -> Option<IpAddr> {
    label
        .replace('-', ".")
        .parse::<Ipv4Addr>()
        .map(IpAddr::V4)
        .or_else(|_| label.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::V6))
        .ok()
}

/// The address in a complete `in-addr.arpa` or `ip6.arpa` name.
fn reverse_address(name: &Name) -> Option<IpAddr> {
    let text = name.to_ascii();
    let text = text.trim_end_matches('.');
    if let Some(octets) = text.strip_suffix(".in-addr.arpa") {
        let forward: Vec<&str> = octets.split('.').rev().collect();
        return forward.join(".").parse::<Ipv4Addr>().ok().map(IpAddr::V4);
    }
    let nibbles: String = text.strip_suffix(".ip6.arpa")?.split('.').rev().collect();
    let bits = (nibbles.len() == 32).then(|| u128::from_str_radix(&nibbles, 16).ok())??;
    Some(IpAddr::V6(Ipv6Addr::from_bits(bits)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(name: &str, number: u16) -> Port {
        Port { name: name.into(), protocol: "tcp".into(), number }
    }

    fn zone() -> Zone {
        let mut zone = Zone::new("Cluster.local").unwrap();
        let web = Service { kind: Kind::Cluster(vec![[10, 43, 0, 9].into()]), ports: vec![port("http", 80)] };
        zone.set("default", "web", Some(web));
        let endpoint = |last: u8, hostname: Option<&str>| Endpoint {
            address: [10, 42, 0, last].into(),
            hostname: hostname.map(str::to_owned),
            ports: vec![port("db", 5432)],
        };
        let kind = Kind::Headless(vec![endpoint(2, Some("db-0")), endpoint(3, None)]);
        zone.set("data", "db", Some(Service { kind, ports: vec![port("db", 5432)] }));
        zone.set("default", "away", Some(Service { kind: Kind::External("example.org".into()), ports: vec![] }));
        zone.set("default", "empty", Some(Service::default()));
        zone
    }

    /// The answer as text: code, then data of answers, then of additionals after `+`.
    fn ask(zone: &Zone, name: &str, kind: RecordType) -> String {
        let Lookup::Answered(answer) = zone.lookup(&Name::from_ascii(name).unwrap(), kind) else {
            return "forward".into();
        };
        let data = |records: &[Record]| {
            let mut all: Vec<String> = records.iter().map(|r| r.data.to_string()).collect();
            all.sort();
            all.join(",")
        };
        assert_eq!(answer.answers.is_empty(), !answer.authorities.is_empty(), "{name}: negative answers carry the SOA");
        let plus =
            if answer.additionals.is_empty() { String::new() } else { format!(" + {}", data(&answer.additionals)) };
        format!("{:?} {}{plus}", answer.code, data(&answer.answers)).trim_end().to_owned()
    }

    #[test]
    fn names_of_the_specification() {
        use RecordType as T;
        let zone = zone();
        for (name, kind, expected) in [
            ("web.default.svc.cluster.local.", T::A, "NoError 10.43.0.9"),
            ("WEB.Default.svc.CLUSTER.local.", T::A, "NoError 10.43.0.9"),
            ("web.default.svc.cluster.local.", T::AAAA, "NoError"),
            ("web.default.svc.cluster.local.", T::MX, "NoError"),
            ("nope.default.svc.cluster.local.", T::A, "NXDomain"),
            ("x.web.default.svc.cluster.local.", T::A, "NXDomain"),
            ("db.data.svc.cluster.local.", T::A, "NoError 10.42.0.2,10.42.0.3"),
            ("db-0.db.data.svc.cluster.local.", T::A, "NoError 10.42.0.2"),
            ("10-42-0-3.db.data.svc.cluster.local.", T::A, "NoError 10.42.0.3"),
            ("10-42-0-2.db.data.svc.cluster.local.", T::A, "NXDomain"),
            ("empty.default.svc.cluster.local.", T::A, "NXDomain"),
            (
                "_http._tcp.web.default.svc.cluster.local.",
                T::SRV,
                "NoError 0 100 80 web.default.svc.cluster.local. + 10.43.0.9",
            ),
            ("_http._udp.web.default.svc.cluster.local.", T::SRV, "NXDomain"),
            ("_http._tcp.web.default.svc.cluster.local.", T::A, "NoError"),
            (
                "_db._tcp.db.data.svc.cluster.local.",
                T::SRV,
                "NoError 0 100 5432 10-42-0-3.db.data.svc.cluster.local.,0 100 5432 db-0.db.data.svc.cluster.local. + 10.42.0.2,10.42.0.3",
            ),
            ("away.default.svc.cluster.local.", T::A, "NoError example.org."),
            ("10-42-0-77.default.pod.cluster.local.", T::A, "NoError 10.42.0.77"),
            ("10-42-0-77.nowhere.pod.cluster.local.", T::A, "NXDomain"),
            ("dns-version.cluster.local.", T::TXT, "NoError 1.1.0"),
            ("default.svc.cluster.local.", T::A, "NoError"),
            ("nowhere.svc.cluster.local.", T::A, "NXDomain"),
            ("cluster.local.", T::NS, "NoError"),
            ("example.org.", T::A, "forward"),
            ("web.default.svc.", T::A, "forward"),
            ("9.0.43.10.in-addr.arpa.", T::PTR, "NoError web.default.svc.cluster.local."),
            ("2.0.42.10.in-addr.arpa.", T::PTR, "NoError db-0.db.data.svc.cluster.local."),
            ("9.9.9.9.in-addr.arpa.", T::PTR, "forward"),
        ] {
            assert_eq!(ask(&zone, name, kind), expected, "{name} {kind}");
        }
    }

    #[test]
    fn removed_services_leave_nothing() {
        let mut zone = zone();
        for (namespace, name) in [("default", "web"), ("data", "db"), ("default", "away"), ("default", "empty")] {
            zone.set(namespace, name, None);
            zone.set(namespace, name, None);
        }
        assert!(zone.services.is_empty() && zone.namespaces.is_empty() && zone.reverse.is_empty());
        assert_eq!(ask(&zone, "web.default.svc.cluster.local.", RecordType::A), "NXDomain");
    }

    #[test]
    fn headless_answers_rotate() {
        let zone = zone();
        let first = || match zone.lookup(&Name::from_ascii("db.data.svc.cluster.local.").unwrap(), RecordType::A) {
            Lookup::Answered(answer) => answer.answers[0].data.to_string(),
            Lookup::Forward => unreachable!("the name is ours"),
        };
        assert_ne!(first(), first());
    }
}
