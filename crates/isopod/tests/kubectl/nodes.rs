//! Verbs about nodes and certificates, of which a cluster has one set: each kubectl in turn.

use std::path::Path;

use testkit::Cluster;

use crate::script::{Shell, Step, fails, ok, soon};

pub fn run(cluster: &Cluster, name: &str, kubectl: &Path) {
    let shell = Shell::new(cluster, name, kubectl);
    shell.write("drain.yaml", &DRAIN.replace("IMAGE", crate::common::BUSYBOX));
    let key = rcgen::KeyPair::generate().expect("make a key");
    let mut parameters = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
    parameters.distinguished_name.push(rcgen::DnType::CommonName, "jane");
    let request = parameters.serialize_request(&key).and_then(|request| request.pem()).expect("make a request");
    shell.write("request.pem", &request);
    shell.write("key.pem", &key.serialize_pem());
    shell.run(NODE);
    shell.run(CERTIFICATES);
}

const DRAIN: &str = r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: ds}
spec:
  selector: {matchLabels: {app: ds}}
  template:
    metadata: {labels: {app: ds}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: main, image: IMAGE, imagePullPolicy: IfNotPresent, command: [sleep, "100000"]}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      volumes: [{name: scratch, emptyDir: {}}]
      containers: [{name: main, image: IMAGE, imagePullPolicy: IfNotPresent, command: [sleep, "100000"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: lone}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: IMAGE, imagePullPolicy: IfNotPresent, command: [sleep, "100000"]}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {minAvailable: 1, selector: {matchLabels: {app: web}}}
"#;

const NODE: &[Step] = &[
    ok("kubectl get nodes -o jsonpath='{.items[*].metadata.name}' > node", ""),
    ok(
        "kubectl apply -f drain.yaml",
        "daemonset.apps/ds created\ndeployment.apps/web created\npod/lone created\npoddisruptionbudget.policy/web created\n",
    ),
    ok("kubectl rollout status deployment/web", "*rolled out\n"),
    ok("kubectl rollout status daemonset/ds", "*rolled out\n"),
    ok("kubectl wait --for=condition=Ready pod/lone --timeout=120s", "*met\n"),
    ok("kubectl cordon $(cat node)", "node/* cordoned\n"),
    ok("kubectl cordon $(cat node)", "node/* already cordoned\n"),
    ok("kubectl get nodes --no-headers", "* Ready,SchedulingDisabled *"),
    ok(
        "kubectl describe node $(cat node)",
        "*Unschedulable:      true\n*Ready *True *KubeletReady*Allocated resources:\n*",
    ),
    ok("kubectl run waits --image=$IMAGE --restart=Never -- true", "pod/waits created\n"),
    soon(
        "kubectl get pod waits -o jsonpath='{.status.conditions[0].reason}: {.status.conditions[0].message}'",
        "Unschedulable: 0/1 nodes are available: 1 node(s) were unschedulable.*",
    ),
    fails(
        "kubectl drain $(cat node)",
        "node/* already cordoned\nerror: unable to drain node \"*\" due to error: [cannot delete *], continuing command...\n\
         There are pending nodes to be drained:\n *\ncannot delete *",
    ),
    // The reasons come in any order, and older kubectls stutter.
    ok(
        "kubectl drain $(cat node) 2>&1 | grep '^cannot' | sed 's/cannot delete cannot/cannot/' | LC_ALL=C sort",
        "cannot delete DaemonSet-managed Pods (use --ignore-daemonsets to ignore): */ds-*\n\
         cannot delete Pods that declare no controller (use --force to override): */lone\n\
         cannot delete Pods with local storage (use --delete-emptydir-data to override): */web-*\n",
    ),
    fails(
        "kubectl drain $(cat node) --ignore-daemonsets --force",
        "*error: unable to drain node \"*\" due to error: cannot delete Pods with local storage (use \
         --delete-emptydir-data to override): */web-*, continuing command...\n*",
    ),
    fails(
        "kubectl drain $(cat node) --ignore-daemonsets --delete-emptydir-data",
        "*error: unable to drain node \"*\" due to error: cannot delete *Pods that declare no controller (use --force to \
         override): */lone, continuing command...\n*",
    ),
    fails(
        "kubectl drain $(cat node) --ignore-daemonsets --delete-emptydir-data --force --timeout=6s --pod-selector=app=web",
        "*evicting pod */web-*\nerror when evicting pods/\"web-*\" -n \"*\" (will retry after 5s): Cannot evict pod as it would violate the pod's disruption budget.\n*",
    ),
    ok("kubectl delete pdb web", "poddisruptionbudget.policy \"web\" deleted*\n"),
    ok(
        "kubectl drain $(cat node) --ignore-daemonsets --delete-emptydir-data --force --timeout=120s",
        "*Warning: *ignoring DaemonSet-managed Pods: */ds-*evicting pod */lone\n*node/* drained\n",
    ),
    soon("kubectl get pods --field-selector=status.phase=Running -o name", "pod/ds-*\n"),
    ok("kubectl uncordon $(cat node)", "node/* uncordoned\n"),
    ok("kubectl uncordon $(cat node)", "node/* already uncordoned\n"),
    ok("kubectl rollout status deployment/web --timeout=120s", "*rolled out\n"),
    ok("kubectl wait --for=jsonpath='{.status.phase}'=Succeeded pod/waits --timeout=120s", "*met\n"),
    ok("kubectl taint node $(cat node) busy=yes:NoSchedule", "node/* tainted\n"),
    ok("kubectl taint node $(cat node) busy-", "node/* untainted\n"),
    ok("kubectl label node $(cat node) disk=fast", "node/* labeled\n"),
    ok("kubectl label node $(cat node) disk-", "node/* unlabeled\n"),
    ok(
        "kubectl debug node/$(cat node) --image=$IMAGE -- ls /host/proc/1/status",
        "*Creating debugging pod node-debugger-*",
    ),
    ok("kubectl delete -f drain.yaml --ignore-not-found", "*"),
];

const REQUEST: &str = "NAME=$(kubectl config view --minify -o jsonpath='{..namespace}')-$KIND; printf 'apiVersion: certificates.k8s.io/v1\\nkind: \
    CertificateSigningRequest\\nmetadata: {name: %s}\\nspec: {signerName: kubernetes.io/kube-apiserver-client, usages: [client auth], request: %s}\\n' \
    $NAME $(base64 -w0 request.pem) | kubectl create -f -; echo $NAME > $KIND";

const CERTIFICATES: &[Step] = &[
    Step::with_environment("KIND=good", REQUEST, "certificatesigningrequest.certificates.k8s.io/*-good created\n"),
    Step::with_environment("KIND=bad", REQUEST, "certificatesigningrequest.certificates.k8s.io/*-bad created\n"),
    ok("kubectl get csr $(cat good) --no-headers", "* kubernetes.io/kube-apiserver-client * Pending\n"),
    ok("kubectl certificate approve $(cat good)", "certificatesigningrequest.certificates.k8s.io/*-good approved\n"),
    ok("kubectl certificate deny $(cat bad)", "certificatesigningrequest.certificates.k8s.io/*-bad denied\n"),
    soon("kubectl get csr $(cat good) --no-headers", "* Approved,Issued\n"),
    ok("kubectl get csr $(cat bad) --no-headers", "* Denied\n"),
    ok(
        "kubectl get csr $(cat good) -o jsonpath='{.status.certificate}' | base64 -d > certificate.pem
         kubectl config set-credentials jane --client-certificate=certificate.pem --client-key=key.pem > /dev/null
         kubectl auth whoami --user=jane",
        "ATTRIBUTE *\nUsername *jane\nGroups *[system:authenticated]\n*",
    ),
    ok("kubectl delete csr $(cat good) $(cat bad)", "*deleted\n*deleted\n"),
];
