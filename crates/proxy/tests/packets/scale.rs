//! Many Services: that they fit one batch, and that a change stays a change. Run with `--nocapture`
//! for the times.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use proxy::applier::MODES;
use proxy::rules::{Changes, Endpoint, Family, PortName, PortRules, Protocol, Route, RuleSet, ServiceRules};

use crate::conformance::config;
use crate::lab::on_a_node;

const SERVICES: u32 = 10_000;
const CHANGES: u32 = 50;
/// Of the processor, so that a busy machine does not matter. Measured in a debug build: 0.6 s and
/// 5 ms; one set for each Service, or one for all, costs several times as much.
const FULL_AT_MOST: Duration = Duration::from_secs(3);
const CHANGE_AT_MOST: Duration = Duration::from_millis(50);

/// What this thread and the kernel on its behalf have used.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

fn service(number: u32, endpoints: u32) -> (Arc<str>, ServiceRules) {
    let key: Arc<str> = format!("ns/service-{number}").into();
    let name = PortName { family: Family::Ipv4, service: key.clone(), port: "http".into(), protocol: Protocol::Tcp };
    let ip = |base: u32| IpAddr::V4(Ipv4Addr::from_bits(base + number));
    let endpoint =
        |index: u32| Endpoint { address: SocketAddr::new(ip(0x0a2a_0002 + index * 0x1_0000), 8080), near: false };
    let rules = PortRules {
        cluster_ip: ip(0x0a80_0100),
        port: 80,
        external_ips: vec![],
        load_balancer_ips: vec![],
        allowed_sources: None,
        node_port: None,
        affinity: None,
        internal: Route::Cluster,
        external: Route::Cluster,
        external_local: false,
        cluster: (0..endpoints).map(endpoint).collect(),
        local: vec![],
        serving: vec![],
    };
    (key, ServiceRules { ports: [(name, Arc::new(rules))].into(), health_check: None })
}

#[test]
fn ten_thousand_services() {
    for mode in MODES {
        on_a_node(|| {
            let mut rules = RuleSet { services: (0..SERVICES).map(|n| service(n, 2)).collect(), ..RuleSet::default() };
            let mut applier = (mode.build)(&config()).unwrap();
            let timed = |what: &str, at_most: Duration, work: &mut dyn FnMut()| {
                let (started, before) = (Instant::now(), processor_time());
                work();
                let took = processor_time() - before;
                println!("{}: {what}: {took:?} of the processor, {:?} in all", mode.name, started.elapsed());
                assert!(took < at_most, "{what} took {took:?}");
            };
            timed("10,000 Services at once", FULL_AT_MOST, &mut || applier.replace(&rules).unwrap());
            timed("the same once more", FULL_AT_MOST, &mut || applier.replace(&rules).unwrap());
            for (what, endpoints) in [("an endpoint more", 3), ("an endpoint less", 2), ("none", 0), ("two again", 2)] {
                timed(&format!("{CHANGES} times {what}"), CHANGE_AT_MOST * CHANGES, &mut || {
                    for number in 0..CHANGES {
                        let (key, wanted) = service(number, endpoints);
                        let ports = rules.put(&key, Some(wanted));
                        applier.update(&Changes { ports, service_cidrs: None }).unwrap();
                    }
                });
            }
        });
    }
}
