//! Services, names, the API's proxies and host ports between real pods, and pods that make way for others on a real node.
//!
//! All behaviours share a cluster: each is a scene in a namespace of its own, and all run at the same time.

mod common;

use std::collections::BTreeSet;

use common::{cluster, pod, shell, with};
use serde_json::{Value, json};
use testkit::{Cluster, condition, eventually, name};

/// One behaviour's stage.
struct Scene<'a> {
    cluster: &'a Cluster,
    namespace: &'a str,
    /// The node and its address.
    node: (String, String),
}

type Act = fn(&Scene);

#[test]
fn pods_reach_each_other_as_promised() {
    let (cluster, _) = cluster();
    let node = cluster.get(&["nodes"])["items"][0].clone();
    let address = node["status"]["addresses"][0]["address"].as_str().unwrap().to_owned();
    let node = (name(&node).to_owned(), address);
    let scenes: [(&str, Act); 6] = [
        ("types", a_service_changes_its_type),
        ("clients", clients_keep_their_endpoint),
        ("names", pods_and_aliases_have_names),
        ("pages", pages_are_proxied),
        ("ports", host_ports_differ_by_address),
        ("room", pods_make_way_for_more_important_ones),
    ];
    testkit::beside(&cluster, &scenes, |namespace, act| {
        act(&Scene { cluster: &cluster, namespace, node: node.clone() });
    });
}

/// On a cluster of its own, since other Services might get addresses from the ranges.
#[test]
fn services_get_addresses_from_further_ranges() {
    let (cluster, _) = cluster();
    let node = name(&cluster.get(&["nodes"])["items"][0]).to_owned();
    let scene = Scene { cluster: &cluster, namespace: "default", node: (node, String::new()) };
    cluster.wait(&["serviceaccount/default"], |_| true);
    a_service_in_a_second_range(&scene);
    a_range_outlives_its_services(&scene);
}

impl Scene<'_> {
    fn arguments<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        ["-n", self.namespace].into_iter().chain(arguments.iter().copied()).collect()
    }

    fn run(&self, arguments: &[&str]) -> String {
        self.cluster.run(&self.arguments(arguments))
    }

    fn create(&self, objects: &[Value]) {
        let objects: Vec<_> = objects.iter().map(|object| with(object.clone(), json!({"apiVersion": "v1"}))).collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let file = self.cluster.directory.path().join(format!("{}-{}.json", self.namespace, name(&objects[0])));
        std::fs::write(&file, list.to_string()).unwrap();
        self.run(&["create", "-f", &file.to_string_lossy()]);
    }

    fn get(&self, object: &str) -> Value {
        self.cluster.get(&["-n", self.namespace, object])
    }

    fn patch(&self, object: &str, patch: &Value) -> Value {
        self.run(&["patch", object, "--type=merge", "-p", &patch.to_string()]);
        self.get(object)
    }

    fn wait(&self, object: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.cluster.wait(&["-n", self.namespace, object], wanted)
    }

    fn ready(&self, pods: &[&str]) {
        pods.iter()
            .for_each(|pod| drop(self.wait(&format!("pod/{pod}"), |pod| condition(pod, "Ready")["status"] == "True")));
    }

    /// The pods that answered so many requests from a pod; none if a request failed.
    fn answerers(&self, from: &str, url: &str, requests: usize) -> BTreeSet<String> {
        let requests = requests.to_string();
        let fetch = ["exec", from, "--", "/isopod", "fetch", "--repeat", &requests, url];
        let output = self.cluster.kubectl(&self.arguments(&fetch)).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines = text.lines().filter(|_| output.status.success());
        lines.filter_map(|line| Some(line.strip_prefix("pod:")?.trim().to_owned())).collect()
    }

    /// Waits until a command says just this.
    fn said(&self, command: &[&str], want: &str) {
        eventually(&format!("{command:?} says {want}"), || {
            let said = self.run(command);
            if said.trim() == want { Ok(()) } else { Err(said) }
        });
    }

    fn answered(&self, from: &str, url: &str, by: &str) {
        eventually(&format!("{url} is answered by {by} in {}", self.namespace), || {
            let answerers = self.answerers(from, url, 1);
            if answerers.iter().eq([by]) { Ok(()) } else { Err(format!("{answerers:?}")) }
        });
    }
}

/// A pod that tells its name on port 8080, and from which others can be asked.
fn hello(pod_name: &str, container: Value, spec: Value) -> Value {
    let hello = json!({"name": "c", "image": "isopod.local/hello", "imagePullPolicy": "IfNotPresent",
        "env": [{"name": "POD_NAME", "value": pod_name}]});
    let mut pod = pod(pod_name, with(json!({"containers": [with(hello, container)]}), spec));
    pod["metadata"]["labels"] = json!({"app": pod_name.split('-').next()});
    pod
}

fn service(name: &str, spec: Value) -> Value {
    json!({"kind": "Service", "metadata": {"name": name}, "spec": spec})
}

fn a_service_changes_its_type(scene: &Scene) {
    let alias = json!({"type": "ExternalName", "externalName": "example.org", "selector": {"app": "web"}});
    scene.create(&[hello("web", json!({}), json!({})), hello("client", json!({}), json!({})), service("s", alias)]);
    scene.ready(&["web", "client"]);
    let ports = json!([{"port": 80, "targetPort": 8080}]);
    let plain = scene.patch("service/s", &json!({"spec": {"type": "ClusterIP", "externalName": null, "ports": ports}}));
    assert!(plain["spec"]["clusterIP"].as_str().unwrap().starts_with("10.43."), "{plain}");
    scene.answered("client", "http://s", "web");
    let open = scene.patch("service/s", &json!({"spec": {"type": "NodePort"}}));
    assert_eq!(open["spec"]["clusterIP"], plain["spec"]["clusterIP"]);
    let port = open["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
    let outside = format!("http://{}:{port}", scene.node.1);
    scene.answered("client", &outside, "web");
    scene.answered("web", &outside, "web");
    let away = scene.patch("service/s", &json!({"spec": {"type": "ExternalName", "externalName": "example.org"}}));
    assert_eq!((&away["spec"]["clusterIP"], &away["spec"]["ports"][0]["nodePort"]), (&Value::Null, &Value::Null));
    scene.create(&[service("next", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]}))]);
}

/// The command that tells whether a range may be drawn from, and why not.
const READY: [&str; 4] = [
    "get",
    "servicecidr/more",
    "-o",
    r#"jsonpath={.status.conditions[?(@.type=="Ready")]['status','reason','message']}"#,
];

fn a_service_in_a_second_range(scene: &Scene) {
    let range = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "more"},
        "spec": {"cidrs": ["10.96.100.0/28"]}});
    scene.cluster.apply(&range.to_string());
    scene.said(&READY, "True  Kubernetes Service CIDR is ready");
    let range = scene.get("servicecidr/more");
    assert_eq!(range["metadata"]["finalizers"], json!(["networking.k8s.io/service-cidr-finalizer"]));

    let spec =
        json!({"clusterIP": "10.96.100.5", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]});
    let host = hello("host", json!({"args": ["--port", "18080"]}), json!({"hostNetwork": true}));
    let tool = pod("tool", json!({"containers": [shell("c", "sleep 100000", json!({}))]}));
    let client = hello("client", json!({}), json!({}));
    scene.create(&[hello("web", json!({}), json!({})), client, host, tool, service("far", spec)]);
    scene.ready(&["web", "client", "host", "tool"]);
    for url in ["http://10.96.100.5", "http://far"] {
        scene.answered("client", url, "web");
    }
    // A pod reaches itself through it, and so does the node.
    scene.answered("web", "http://10.96.100.5", "web");
    scene.answered("host", "http://10.96.100.5", "web");
    let far = "far.default.svc.cluster.local";
    for (question, want) in [(far, "Address: 10.96.100.5".to_owned()), ("10.96.100.5", format!("name = {far}"))] {
        let look = format!("nslookup {question} 2>&1; true");
        eventually(&format!("the answer for {question}"), || {
            let answer = scene.run(&["exec", "tool", "--", "sh", "-c", &look]);
            if answer.contains(&want) { Ok(()) } else { Err(answer) }
        });
    }
    let shown = scene.run(&["get", "servicecidrs,ipaddresses", "--no-headers"]);
    let shown: Vec<_> =
        shown.lines().map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")).collect();
    for line in [
        "servicecidr.networking.k8s.io/kubernetes 10.43.0.0/16",
        "servicecidr.networking.k8s.io/more 10.96.100.0/28",
        "ipaddress.networking.k8s.io/10.43.0.1 services/default/kubernetes",
        "ipaddress.networking.k8s.io/10.43.0.10 services/kube-system/kube-dns",
        "ipaddress.networking.k8s.io/10.96.100.5 services/default/far",
    ] {
        assert!(shown.iter().any(|shown| shown == line), "{line} is not in {shown:#?}");
    }
    let described = scene.run(&["describe", "servicecidr/more", "ipaddress/10.96.100.5"]);
    for text in ["10.96.100.0/28", "Kubernetes Service CIDR is ready", "services", "far"] {
        assert!(described.contains(text), "{text} is not in {described}");
    }

    // Without its IPAddress the Service is served all the same, until it has it back.
    let uid = testkit::uid(&scene.get("ipaddress/10.96.100.5")).to_owned();
    scene.run(&["delete", "ipaddress", "10.96.100.5"]);
    scene.wait("ipaddress/10.96.100.5", |address| testkit::uid(address) != uid);
    let told = ["events", "--for", "service/far", "-o", "jsonpath={.items[*].message}"];
    scene.said(&told, "Cluster IP [IPv4]: 10.96.100.5 is not allocated; repairing");
    scene.answered("client", "http://far", "web");
}

fn a_range_outlives_its_services(scene: &Scene) {
    scene.run(&["delete", "servicecidr", "more", "--wait=false"]);
    let text =
        "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";
    scene.said(&READY, &format!("False Terminating {text}"));
    let late = ["create", "service", "clusterip", "late", "--clusterip=10.96.100.6", "--tcp=80"];
    let refused = scene.cluster.refuse(&scene.arguments(&late));
    assert!(refused.contains("failed to allocate IP 10.96.100.6: the provided network does not match"), "{refused}");
    scene.answered("client", "http://far", "web");
    scene.run(&["delete", "service", "far"]);
    scene.run(&["wait", "--for=delete", "servicecidr/more", "--timeout=120s"]);
    let left = scene.run(&["get", "ipaddresses", "-o", "name"]);
    assert!(!left.contains("10.96.100."), "{left}");
}

fn clients_keep_their_endpoint(scene: &Scene) {
    let names = ["web-0", "web-1", "web-2"];
    let sticky = json!({"type": "NodePort", "selector": {"app": "web"}, "sessionAffinity": "ClientIP",
        "ports": [{"port": 80, "targetPort": 8080}]});
    let pods = names.map(|name| hello(name, json!({}), json!({})));
    scene.create(&[&pods[..], &[hello("client", json!({}), json!({})), service("s", sticky)]].concat());
    scene.ready(&["web-0", "web-1", "web-2", "client"]);
    scene.wait("endpoints/s", |endpoints| {
        endpoints["subsets"][0]["addresses"].as_array().is_some_and(|addresses| addresses.len() == names.len())
    });
    let port = scene.get("service/s")["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
    for url in ["http://s".to_owned(), format!("http://{}:{port}", scene.node.1)] {
        for (affinity, spreads) in [("ClientIP", false), ("None", true), ("ClientIP", false)] {
            scene.patch("service/s", &json!({"spec": {"sessionAffinity": affinity}}));
            eventually(&format!("{url} with affinity {affinity}"), || {
                let answerers = scene.answerers("client", &url, 20);
                let told = if spreads { answerers.len() > 1 } else { answerers.len() == 1 };
                if told { Ok(()) } else { Err(format!("{answerers:?}")) }
            });
        }
    }
}

fn pods_and_aliases_have_names(scene: &Scene) {
    let named = json!({"hostname": "querier", "subdomain": "group"});
    let alias = format!("querier.group.{}.svc.cluster.local", scene.namespace);
    scene.create(&[
        hello("web", json!({}), named),
        hello("client", json!({}), json!({})),
        service("group", json!({"clusterIP": "None", "selector": {"app": "web"}})),
        service("alias", json!({"type": "ExternalName", "externalName": alias})),
    ]);
    scene.ready(&["web", "client"]);
    for host in ["querier.group", "group", "alias", &alias] {
        scene.answered("client", &format!("http://{host}:8080"), "web");
    }
    // The pod knows itself by its name, without DNS.
    scene.answered("web", "http://querier:8080", "web");
}

fn pages_are_proxied(scene: &Scene) {
    let serve = r#"echo '<a href="/x">' > /www/index.html; exec httpd -f -p 8080 -h /www"#;
    let mut web = pod("web", json!({"containers": [shell("c", serve, json!({}))]}));
    web["metadata"]["labels"] = json!({"app": "web"});
    scene
        .create(&[web, service("s", json!({"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}))]);
    scene.ready(&["web"]);
    for object in ["pods/web:8080", "pods/http:web:8080", "services/s:80", "services/s"] {
        let root = format!("/api/v1/namespaces/{}/{object}/proxy", scene.namespace);
        eventually(&root, || {
            let output = scene.cluster.kubectl(&["get", "--raw", &format!("{root}/")]).output().unwrap();
            let page = String::from_utf8_lossy(&output.stdout).into_owned();
            if page == format!("<a href=\"{root}/x\">\n") { Ok(()) } else { Err(page) }
        });
    }
}

fn host_ports_differ_by_address(scene: &Scene) {
    let on = |address: &str| json!({"ports": [{"containerPort": 8080, "hostPort": 54323, "hostIP": address}]});
    let (node, address) = &scene.node;
    let placed = json!({"nodeName": node});
    let host = hello("host", json!({"args": ["--port", "18080"]}), json!({"hostNetwork": true}));
    scene.create(&[hello("local", on("127.0.0.1"), placed.clone()), hello("outer", on(address), placed), host]);
    scene.ready(&["local", "outer", "host"]);
    scene.answered("host", "http://127.0.0.1:54323", "local");
    scene.answered("host", &format!("http://{address}:54323"), "outer");
    scene.answered("local", &format!("http://{address}:54323"), "outer");
    // On all addresses there is no room for a third.
    scene.create(&[hello("third", on("0.0.0.0"), json!({}))]);
    scene.wait("pod/third", |pod| {
        let message = condition(pod, "PodScheduled")["message"].as_str().unwrap_or_default();
        message.contains("1 node(s) didn't have free ports for the requested pod ports")
    });
}

/// What the node is given by a patch of its status is scheduled by, and the kubelet neither refuses nor forgets it.
fn pods_make_way_for_more_important_ones(scene: &Scene) {
    let node = format!("node/{}", scene.node.0);
    let give = |amount: Value| {
        let patch = json!({"status": {"capacity": {"example.com/slots": amount}}}).to_string();
        scene.run(&["patch", &node, "--subresource=status", "-p", &patch]);
    };
    give(json!("5"));
    scene.wait(&node, |node| node["status"]["allocatable"]["example.com/slots"] == "5");
    for (class, value) in [("low", "1"), ("medium", "100"), ("high", "1000")] {
        scene.run(&["create", "priorityclass", class, &format!("--value={value}")]);
    }
    let slots = |class: &str, finalizers: Value| {
        let two = json!({"example.com/slots": "2"});
        let mut pod =
            hello(class, json!({"resources": {"requests": two, "limits": two}}), json!({"priorityClassName": class}));
        pod["metadata"]["finalizers"] = finalizers;
        pod
    };
    scene.create(&[slots("low", json!(["example.com/look"])), slots("medium", json!([]))]);
    scene.ready(&["low", "medium"]);
    scene.create(&[slots("high", json!([]))]);
    scene.ready(&["high"]);
    let low = scene.get("pod/low");
    assert!(low["metadata"]["deletionTimestamp"].is_string(), "{low}");
    assert_eq!(condition(&low, "DisruptionTarget")["reason"], "PreemptionByScheduler");
    assert_eq!(scene.get("pod/medium")["metadata"]["deletionTimestamp"], Value::Null);
    scene.run(&["patch", "pod/low", "--type=merge", "-p", r#"{"metadata": {"finalizers": null}}"#]);
    give(Value::Null);
    scene.wait(&node, |node| node["status"]["allocatable"]["example.com/slots"].is_null());
}
