//! What every mode must do with packets, whatever its rules look like. Services and EndpointSlices go
//! through the planner, so that what is tested is what users wrote.

use std::collections::BTreeMap;
use std::io::ErrorKind::{ConnectionRefused, TimedOut, WouldBlock};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proxy::Config;
use proxy::applier::{Applier, MODES, Mode};
use proxy::plan::{Node, plan};
use proxy::rules::{Changes, RuleSet};
use serde_json::{Value, json};

use crate::lab::{
    BRIDGE_IP, Machine, NODE_IP, OUTSIDE_IP, POD_PORT, ask, count, exchange, ip, knock, nft, on_a_node, udp_client,
};

const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 43, 0, 5);
const EXTERNAL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// A mode at work in the calling thread's namespace.
pub struct Proxy {
    applier: Box<dyn Applier>,
    rules: RuleSet,
}

pub fn config() -> Config {
    let range = |text: &str| proxy::Cidr::parse_list(text).unwrap();
    Config::new("here", range("10.42.0.0/16,fd42::/64"), range("10.43.0.0/16,fd43::/64"))
}

impl Proxy {
    fn new(mode: &Mode, config: &Config) -> Proxy {
        let rules = RuleSet { service_cidrs: config.service_cidrs.clone(), ..RuleSet::default() };
        let mut applier = (mode.build)(config).unwrap();
        applier.replace(&rules).unwrap();
        Proxy { applier, rules }
    }

    /// The Service `ns/NAME` with that spec and these endpoints, or none.
    fn put(&mut self, name: &str, service: Option<Value>, endpoints: &[Value]) {
        let node = Node { name: "here".into(), zone: None, ips: vec![NODE_IP.into()] };
        let planned = service.and_then(|mut service| {
            service["metadata"] = json!({ "name": name, "namespace": "ns" });
            let slices = ["IPv4", "IPv6"].map(|family| {
                let own = endpoints.iter().filter(|endpoint| is_family(endpoint, family));
                Arc::new(
                    serde_json::from_value(json!({ "metadata": {}, "addressType": family,
                        "ports": [{ "name": "tcp", "port": POD_PORT, "protocol": "TCP" }, { "name": "udp", "port": POD_PORT, "protocol": "UDP" }],
                        "endpoints": own.collect::<Vec<_>>() }))
                    .unwrap(),
                )
            });
            plan(&serde_json::from_value(service).unwrap(), &slices, &node)
        });
        let ports = self.rules.put(&format!("ns/{name}").into(), planned);
        self.applier.update(&Changes { ports, service_cidrs: None }).unwrap();
    }
}

fn is_family(endpoint: &Value, family: &str) -> bool {
    endpoint["addresses"][0].as_str().unwrap().contains(':') == (family == "IPv6")
}

/// Service `ns/web` as TCP and UDP port 80 at its address, and whatever more the spec says.
fn web(more: Value) -> Option<Value> {
    let mut spec = json!({ "type": "ClusterIP", "clusterIPs": [SERVICE, "fd43::5"], "ports": ports(None) });
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    Some(json!({ "spec": spec }))
}

fn ports(node_port: Option<u16>) -> Value {
    json!([
        { "name": "tcp", "port": 80, "nodePort": node_port },
        { "name": "udp", "port": 80, "nodePort": node_port, "protocol": "UDP" },
    ])
}

/// Endpoints at pods on this node.
fn pods<const N: usize>(numbers: [u8; N]) -> Vec<Value> {
    on("here", numbers)
}

/// Endpoints that claim to be on a node.
fn on<const N: usize>(node: &str, numbers: [u8; N]) -> Vec<Value> {
    let addresses = |number: u8| [format!("10.42.0.{number}"), format!("fd42::{number}")];
    let all = numbers.into_iter().flat_map(addresses);
    all.map(|address| json!({ "addresses": [address], "nodeName": node, "conditions": { "ready": true } })).collect()
}

/// Runs a test of every mode, each on a node of its own.
fn each_mode(test: impl Fn(&Mode) + Sync) {
    MODES.iter().for_each(|mode| on_a_node(|| test(mode)));
}

fn sees(address: impl Into<IpAddr>) -> String {
    format!("2 sees {}", address.into())
}

#[test]
fn cluster_ips_balance_follow_and_refuse() {
    each_mode(|mode| {
        let (a, _b, _c, client) = (Machine::pod(2), Machine::pod(3), Machine::pod(4), Machine::pod(9));
        let outside = Machine::outside();
        let mut proxy = Proxy::new(mode, &config());
        let from_client = || client.inside(|| ask(SERVICE, 80));

        proxy.put("web", web(json!({})), &pods([2, 3]));
        let seen = count(200, from_client);
        assert!(seen.len() == 2 && seen.values().all(|count| (60..=140).contains(count)), "not evenly: {seen:?}");
        assert_eq!(count(40, || ask(SERVICE, 80)).len(), 2, "from the node");
        assert_eq!(count(40, || outside.inside(|| ask(SERVICE, 80))).len(), 2, "from outside");

        proxy.put("web", web(json!({})), &pods([2]));
        assert_eq!(from_client().unwrap(), sees([10, 42, 0, 9]), "pods see one another");
        assert_eq!(a.inside(|| ask(SERVICE, 80)).unwrap(), sees(BRIDGE_IP), "a pod reaches itself by way of the node");
        assert_eq!(outside.inside(|| ask(SERVICE, 80)).unwrap(), sees(BRIDGE_IP), "replies come back this way");

        proxy.put("web", web(json!({})), &pods([3, 4]));
        let seen = count(60, from_client);
        assert_eq!(seen.keys().collect::<Vec<_>>(), [&3, &4], "endpoints that have gone get nothing");

        // Refused at once, from wherever, also a port that the Service has not.
        proxy.put("web", web(json!({})), &[]);
        for port in [80, 81] {
            let refusals = [
                from_client(),
                client.inside(|| ask(SERVICE, port)),
                ask(SERVICE, port),
                outside.inside(|| ask(SERVICE, port)),
            ];
            assert_eq!(refusals, [const { Err(ConnectionRefused) }; 4], "port {port}");
        }
        // Another Service's address may become known in a moment: no answer is better than a wrong one.
        assert_eq!(client.inside(|| knock([10, 43, 9, 9], 80)), Err(TimedOut));

        proxy.put("web", None, &[]);
        assert_eq!(client.inside(|| knock(SERVICE, 80)), Err(TimedOut));
        proxy.put("web", web(json!({})), &pods([2, 3]));
        assert_eq!(count(40, from_client).len(), 2);

        // A new process takes over.
        let rules = proxy.rules.clone();
        drop(proxy);
        let mut proxy = Proxy::new(mode, &config());
        proxy.applier.replace(&rules).unwrap();
        assert_eq!(count(40, from_client).len(), 2);

        proxy::cleanup().unwrap();
        proxy::cleanup().unwrap();
        assert_eq!(nft(&["list", "tables"]), "");
    });
}

#[test]
fn node_ports_and_external_addresses() {
    each_mode(|mode| {
        let (_a, client) = (Machine::pod(2), Machine::pod(9));
        let outside = Machine::outside();
        let mut proxy = Proxy::new(mode, &config());
        let mut balancer = web(json!({ "type": "LoadBalancer", "externalIPs": [EXTERNAL], "ports": ports(Some(30080)),
            "loadBalancerSourceRanges": ["10.42.0.9/32"] }));
        balancer.as_mut().unwrap()["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": "192.0.2.9" }] } });
        proxy.put("web", balancer.clone(), &pods([2]));

        for (from, address, port) in [
            ("node", NODE_IP, 30080),
            ("node", LOCALHOST, 30080),
            ("pod", BRIDGE_IP, 30080),
            ("pod", NODE_IP, 30080),
            ("outside", NODE_IP, 30080),
            ("node", EXTERNAL, 80),
            ("pod", EXTERNAL, 80),
            ("outside", EXTERNAL, 80),
            ("pod", Ipv4Addr::new(192, 0, 2, 9), 80),
        ] {
            let answer = match from {
                "pod" => client.inside(|| ask(address, port)),
                "outside" => outside.inside(|| ask(address, port)),
                _ => ask(address, port),
            };
            assert_eq!(answer.as_deref(), Ok(&*sees(BRIDGE_IP)), "from the {from} to {address}:{port}");
        }
        assert_eq!(outside.inside(|| knock([192, 0, 2, 9], 80)), Err(TimedOut), "not in the source ranges");
        let udp = outside.inside(|| exchange(&udp_client(NODE_IP, 30080)));
        assert_eq!(udp.as_deref(), Ok(&*sees(BRIDGE_IP)));

        proxy.put("web", balancer, &[]);
        assert_eq!(outside.inside(|| ask(NODE_IP, 30080)), Err(ConnectionRefused));
        assert_eq!(outside.inside(|| ask(EXTERNAL, 80)), Err(ConnectionRefused));
        assert_eq!(ask(LOCALHOST, 30080), Err(ConnectionRefused));
    });
}

#[test]
fn node_ports_keep_to_the_addresses_they_are_given() {
    each_mode(|mode| {
        let _a = Machine::pod(2);
        let outside = Machine::outside();
        ip("addr add 192.168.50.7/24 dev uplink");
        let own = proxy::Cidr::parse_list("192.168.50.7/32").unwrap();
        let config = Config { node_port_addresses: own, localhost_node_ports: false, ..config() };
        let mut proxy = Proxy::new(mode, &config);
        proxy.put("web", web(json!({ "type": "NodePort", "ports": ports(Some(30080)) })), &pods([2]));
        assert_eq!(outside.inside(|| ask([192, 168, 50, 7], 30080)).as_deref(), Ok(&*sees(BRIDGE_IP)));
        assert_eq!(outside.inside(|| ask(NODE_IP, 30080)), Err(ConnectionRefused));
        assert_eq!(ask(LOCALHOST, 30080), Err(ConnectionRefused));
    });
}

#[test]
fn local_policies() {
    each_mode(|mode| {
        let (_a, _b, client) = (Machine::pod(2), Machine::pod(3), Machine::pod(9));
        let outside = Machine::outside();
        let mut proxy = Proxy::new(mode, &config());
        let external =
            web(json!({ "type": "NodePort", "externalTrafficPolicy": "Local", "ports": ports(Some(30080)) }));
        let both: Vec<Value> = pods([2]).into_iter().chain(on("there", [3])).collect();

        proxy.put("web", external.clone(), &both);
        let seen: BTreeMap<String, ()> =
            (0..20).map(|_| (outside.inside(|| ask(NODE_IP, 30080)).unwrap(), ())).collect();
        assert_eq!(seen.keys().collect::<Vec<_>>(), [&sees(OUTSIDE_IP)], "only the pod here, which sees the client");
        let within = || client.inside(|| ask(NODE_IP, 30080));
        assert_eq!(count(40, within).len(), 2, "pods are not bound by the external policy");
        assert_eq!(count(40, || ask(NODE_IP, 30080)).len(), 2, "nor is the node");

        proxy.put("web", external, &on("there", [3]));
        assert_eq!(outside.inside(|| knock(NODE_IP, 30080)), Err(TimedOut), "dropped, not refused");
        assert_eq!(within().as_deref(), Ok("3 sees 10.42.0.9"));

        let internal = web(json!({ "internalTrafficPolicy": "Local" }));
        proxy.put("web", internal.clone(), &both);
        assert_eq!(count(20, || client.inside(|| ask(SERVICE, 80))).keys().collect::<Vec<_>>(), [&2]);
        proxy.put("web", internal, &on("there", [3]));
        assert_eq!(client.inside(|| knock(SERVICE, 80)), Err(TimedOut));
    });
}

#[test]
fn a_client_keeps_its_endpoint() {
    each_mode(|mode| {
        let (_a, _b, client, other) = (Machine::pod(2), Machine::pod(3), Machine::pod(9), Machine::pod(10));
        let mut proxy = Proxy::new(mode, &config());
        let sticky = web(json!({ "type": "NodePort", "ports": ports(Some(30080)), "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 3600 } } }));
        proxy.put("web", sticky.clone(), &pods([2, 3]));
        let seen = count(20, || client.inside(|| ask(SERVICE, 80)));
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert_eq!(
            count(10, || client.inside(|| ask(NODE_IP.min(BRIDGE_IP), 30080))),
            scaled(&seen, 10),
            "the same by node port"
        );
        let others = count(20, || other.inside(|| ask(SERVICE, 80)));
        assert_eq!(others.len(), 1, "{others:?}");

        // It moves when its endpoint goes, and stays where it moved to when the old one comes back.
        let (gone, left) = if seen.contains_key(&2) { (2, 3) } else { (3, 2) };
        proxy.put("web", sticky.clone(), &pods([left]));
        assert_eq!(count(5, || client.inside(|| ask(SERVICE, 80))), [(left, 5)].into());
        proxy.put("web", sticky, &pods([2, 3, 4]));
        assert_eq!(count(20, || client.inside(|| ask(SERVICE, 80))), [(left, 20)].into(), "{gone} came back");
        // Without affinity it goes anywhere.
        proxy.put("web", web(json!({})), &pods([2, 3]));
        assert_eq!(count(40, || client.inside(|| ask(SERVICE, 80))).len(), 2);
    });
}

fn scaled(counts: &BTreeMap<u8, usize>, total: usize) -> BTreeMap<u8, usize> {
    counts.keys().map(|pod| (*pod, total)).collect()
}

#[test]
fn affinity_ends_with_its_time() {
    each_mode(|mode| {
        let (_a, _b, client) = (Machine::pod(2), Machine::pod(3), Machine::pod(9));
        let mut proxy = Proxy::new(mode, &config());
        proxy.put(
            "web",
            web(json!({ "sessionAffinity": "ClientIP", "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 1 } } })),
            &pods([2, 3]),
        );
        let first = client.inside(|| ask(SERVICE, 80)).unwrap();
        let timer = udp_client(LOCALHOST, 9);
        timer.set_read_timeout(Some(Duration::from_millis(1300))).unwrap();
        // Each time after the client was forgotten, so that it moves with even odds.
        let moved = (0..30).any(|_| {
            let _ = timer.recv(&mut [0]);
            client.inside(|| ask(SERVICE, 80)).unwrap() != first
        });
        assert!(moved, "thirty times the same");
    });
}

#[test]
fn udp_is_balanced_and_refused() {
    each_mode(|mode| {
        let (_a, _b, client) = (Machine::pod(2), Machine::pod(3), Machine::pod(9));
        let mut proxy = Proxy::new(mode, &config());
        proxy.put("web", web(json!({})), &pods([2, 3]));
        assert_eq!(count(40, || client.inside(|| exchange(&udp_client(SERVICE, 80)))).len(), 2);
        proxy.put("web", web(json!({})), &[]);
        assert_eq!(client.inside(|| exchange(&udp_client(SERVICE, 80))), Err(ConnectionRefused));
        assert_eq!(client.inside(|| exchange(&udp_client([10, 43, 9, 9], 80))), Err(WouldBlock));
    });
}

#[test]
fn ipv6() {
    each_mode(|mode| {
        let (a, _b, client) = (Machine::pod(2), Machine::pod(3), Machine::pod(9));
        let service: Ipv6Addr = "fd43::5".parse().unwrap();
        let node: Ipv6Addr = "fd42::1".parse().unwrap();
        let mut proxy = Proxy::new(mode, &config());
        let sticky = json!({ "type": "NodePort", "ports": ports(Some(30080)), "sessionAffinity": "ClientIP" });
        proxy.put("web", web(json!({})), &pods([2, 3]));
        assert_eq!(count(40, || client.inside(|| ask(service, 80))).len(), 2);
        proxy.put("web", web(sticky), &pods([2, 3]));
        assert_eq!(count(20, || client.inside(|| ask(service, 80))).len(), 1);
        proxy.put("web", web(json!({ "type": "NodePort", "ports": ports(Some(30080)) })), &pods([2]));
        assert_eq!(client.inside(|| ask(service, 80)).unwrap(), "2 sees fd42::9");
        assert_eq!(client.inside(|| ask(node, 30080)).unwrap(), "2 sees fd42::1");
        assert_eq!(a.inside(|| ask(service, 80)).unwrap(), "2 sees fd42::1", "a pod reaches itself");
        proxy.put("web", web(json!({})), &[]);
        assert_eq!(client.inside(|| ask(service, 80)), Err(ConnectionRefused));
    });
}

#[test]
fn two_services_with_one_address_do_not_break_each_other() {
    each_mode(|mode| {
        let (_a, _b, client) = (Machine::pod(2), Machine::pod(3), Machine::pod(9));
        let mut proxy = Proxy::new(mode, &config());
        let at = |cluster_ip: &str| web(json!({ "clusterIPs": [cluster_ip], "externalIPs": [EXTERNAL] }));
        let seen = || count(10, || client.inside(|| ask(EXTERNAL, 80)));
        proxy.put("first", at("10.43.0.6"), &pods([2]));
        proxy.put("second", at("10.43.0.7"), &pods([3]));
        assert_eq!(seen(), [(2, 10)].into());
        assert_eq!(count(10, || client.inside(|| ask([10, 43, 0, 7], 80))), [(3, 10)].into());
        proxy.put("first", None, &[]);
        assert_eq!(seen(), [(3, 10)].into(), "the other takes over");
        proxy.put("second", None, &[]);
        proxy.put("second", at("10.43.0.6"), &pods([2]));
        assert_eq!(seen(), [(2, 10)].into());
    });
}

/// What operators look at first must not lie, nor crash their program.
#[test]
fn nft_lists_the_rules() {
    on_a_node(|| {
        let (_a, client) = (Machine::pod(2), Machine::pod(9));
        let mut proxy = Proxy::new(&MODES[0], &config());
        proxy.put(
            "web",
            web(json!({ "type": "NodePort", "ports": ports(Some(30080)), "sessionAffinity": "ClientIP" })),
            &pods([2]),
        );
        proxy.put("plain", web(json!({ "clusterIPs": ["10.43.0.6"] })), &pods([2, 3]));
        client.inside(|| ask(SERVICE, 80)).unwrap();
        let listing = nft(&["list", "ruleset"]).split_whitespace().collect::<Vec<_>>().join(" ");
        for expected in [
            "10.43.0.5 . tcp . 80 : goto cluster/ns/web/tcp/tcp",
            "udp . 30080 : goto external/ns/web/udp/udp",
            ": 10.42.0.3 . 8080",
            "0x00000001 . 10.42.0.9 expires",
            "chain cluster/ns/web/tcp/tcp {",
            "dnat to 10.42.0.2:8080",
            "numgen random mod 2 map @endpoints-0",
            "fd43::5 . tcp . 80 : goto cluster/ns/web/tcp/tcp",
        ] {
            assert!(listing.contains(expected), "{expected:?} is not in\n{listing}");
        }
        // Nothing is left of Services that have gone, once their chains have rested.
        proxy.put("web", None, &[]);
        let deadline = Instant::now() + Duration::from_secs(20);
        while nft(&["list", "table", "ip", "isopod-proxy"]).contains("ns/web") {
            assert!(Instant::now() < deadline, "chains of a former Service are left");
            proxy.put("plain", None, &[]);
            proxy.put("plain", web(json!({})), &pods([2]));
        }
    });
}
