//! What a pod finds in /etc/resolv.conf and /etc/hosts.
//!
//! Pure: the host's files are handed in as text.

use crate::pod;
use cri::v1::DnsConfig;
use k8s_openapi::api::core::v1::Pod;
use std::fmt::Write as _;

/// At most this many name servers and search domains, as upstream (glibc reads no more).
const SERVERS: usize = 3;
const SEARCHES: usize = 32;
const SEARCH_CHARACTERS: usize = 2048;

/// The resolver configuration for the pod's dnsPolicy.
pub fn config(pod: &Pod, cluster_dns: &[String], cluster_domain: &str, host: &str) -> DnsConfig {
    let spec = pod::spec(pod);
    let policy = match spec.dns_policy.as_deref().unwrap_or("ClusterFirst") {
        "ClusterFirst" if pod::host_network(pod) => "Default",
        "ClusterFirst" | "ClusterFirstWithHostNet" if cluster_dns.is_empty() => "Default",
        policy => policy,
    };
    let host = parse(host);
    let mut config = match policy {
        "None" => DnsConfig::default(),
        "Default" => host,
        _ => {
            let namespace = pod::namespace(pod);
            let cluster = match cluster_domain {
                "" => vec![],
                domain => vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()],
            };
            DnsConfig {
                servers: cluster_dns.to_vec(),
                searches: unique(cluster.into_iter().chain(host.searches)),
                options: vec!["ndots:5".to_owned()],
            }
        }
    };
    if let Some(extra) = &spec.dns_config {
        let own = std::mem::take(&mut config);
        config.servers = unique(own.servers.into_iter().chain(extra.nameservers.iter().flatten().cloned()));
        config.searches = unique(own.searches.into_iter().chain(extra.searches.iter().flatten().cloned()));
        let options = extra.options.iter().flatten().filter_map(|option| {
            let name = option.name.clone()?;
            Some(match option.value.as_deref().filter(|value| !value.is_empty()) {
                Some(value) => format!("{name}:{value}"),
                None => name,
            })
        });
        config.options = merge_options(own.options, options);
    }
    config.servers.truncate(SERVERS);
    config.searches.truncate(SEARCHES);
    while config.searches.join(" ").len() > SEARCH_CHARACTERS {
        config.searches.pop();
    }
    config
}

fn unique(items: impl Iterator<Item = String>) -> Vec<String> {
    let mut list: Vec<String> = Vec::new();
    for item in items.filter(|item| !item.is_empty()) {
        if !list.contains(&item) {
            list.push(item);
        }
    }
    list
}

/// Later options replace earlier ones of the same name.
fn merge_options(own: Vec<String>, extra: impl Iterator<Item = String>) -> Vec<String> {
    fn name(option: &str) -> &str {
        option.split(':').next().unwrap_or(option)
    }
    let mut options = own;
    for option in extra {
        options.retain(|known| name(known) != name(&option));
        options.push(option);
    }
    options
}

/// Reads a resolv.conf: the last `search` line counts, comments do not.
pub fn parse(text: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => config.servers.extend(words.next()),
            Some("search") => config.searches = words.filter(|word| word != ".").collect(),
            Some("options") => config.options = words.collect(),
            _ => {}
        }
    }
    config
}

/// The pod's /etc/hosts. With the host's network it is the host's own file, with the aliases.
pub fn hosts(pod: &Pod, ips: &[String], cluster_domain: &str, host_file: &str) -> String {
    let spec = pod::spec(pod);
    let mut text = String::new();
    if pod::host_network(pod) {
        text.push_str("# Kubernetes-managed hosts file (host network).\n");
        text.push_str(host_file);
    } else {
        text.push_str(
            "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
        );
        text.push_str(
            "fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
        );
        let name = pod::hostname(pod);
        for ip in ips {
            let _ = match pod::domain(pod, cluster_domain) {
                Some(domain) => writeln!(text, "{ip}\t{name}.{domain}\t{name}"),
                None => writeln!(text, "{ip}\t{name}"),
            };
        }
    }
    let aliases = spec.host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let _ = writeln!(
                text,
                "{}\t{}",
                alias.ip,
                alias.hostnames.iter().flatten().cloned().collect::<Vec<_>>().join("\t")
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const HOST: &str = "# x\nnameserver 192.0.2.53\nsearch example.com cluster.local\noptions timeout:1\n";

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "ns"}, "spec": spec})).unwrap()
    }

    #[test]
    fn policies() {
        let cluster = vec!["10.43.0.10".to_owned()];
        let config = |spec| config(&pod(spec), &cluster, "cluster.local", HOST);
        let first = config(json!({"containers": []}));
        assert_eq!(first.servers, ["10.43.0.10"]);
        assert_eq!(first.searches, ["ns.svc.cluster.local", "svc.cluster.local", "cluster.local", "example.com"]);
        assert_eq!(first.options, ["ndots:5"]);
        assert_eq!(config(json!({"containers": [], "hostNetwork": true})).servers, ["192.0.2.53"]);
        let both = json!({"containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"});
        assert_eq!(config(both).servers, ["10.43.0.10"]);
        let none = config(json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {
            "nameservers": ["1.1.1.1"], "searches": ["a"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}));
        assert_eq!((none.servers, none.options), (vec!["1.1.1.1".into()], vec!["ndots:2".into(), "edns0".into()]));
        let merged = config(json!({"containers": [], "dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}}));
        assert_eq!(merged.options, ["ndots:1"]);
    }

    #[test]
    fn hosts_file_names_the_pod_and_its_aliases() {
        let spec =
            json!({"containers": [], "subdomain": "sub", "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]});
        let text = hosts(&pod(spec), &["10.42.0.5".into()], "cluster.local", "");
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        assert!(text.contains("10.42.0.5\tweb.sub.ns.svc.cluster.local\tweb\n"));
        assert!(text.ends_with("\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"));
        let host = hosts(&pod(json!({"containers": [], "hostNetwork": true})), &[], "x", "9.9.9.9 host\n");
        assert_eq!(host, "# Kubernetes-managed hosts file (host network).\n9.9.9.9 host\n");
    }
}
