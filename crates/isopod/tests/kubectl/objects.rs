//! Verbs about any object, and about the API itself.

use std::path::Path;

use testkit::Cluster;

use crate::script::{Shell, Step, fails, ok};

pub fn run(cluster: &Cluster, name: &str, kubectl: &Path) {
    let shell = Shell::new(cluster, name, kubectl);
    shell.write("a.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, labels: {set: x}}\ndata: {key: one}\n");
    shell
        .write("a2.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, labels: {set: x}}\ndata: {key: two}\n");
    shell.write("b.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b, labels: {set: x}}\ndata: {key: one}\n");
    shell.write("pod.yaml", &POD.replace("IMAGE", crate::common::BUSYBOX));
    shell.run(OBJECTS);
    shell.run(API);
}

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: forced}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: IMAGE, imagePullPolicy: IfNotPresent, command: [sleep, "100000"]}]
"#;

const OBJECTS: &[Step] = &[
    fails("kubectl diff -f a.yaml", "*+  name: a\n*"),
    ok("kubectl apply -f a.yaml -f b.yaml", "configmap/a created\nconfigmap/b created\n"),
    ok("kubectl apply -f a.yaml", "configmap/a unchanged\n"),
    ok("kubectl diff -f a.yaml", ""),
    fails("kubectl diff -f a2.yaml", "diff -u -N *\n-  key: one\n+  key: two\n*"),
    ok("kubectl get configmap a -o jsonpath='{.data.key}'", "one"),
    ok("kubectl apply -f a2.yaml", "configmap/a configured\n"),
    ok("kubectl apply view-last-applied configmap/a", "apiVersion: v1\ndata:\n  key: two\nkind: ConfigMap\n*"),
    ok(
        "kubectl apply -f a.yaml --prune -l set=x --prune-allowlist=core/v1/ConfigMap",
        "configmap/a configured\nconfigmap/b pruned\n",
    ),
    fails(
        "kubectl apply -f a2.yaml --server-side --field-manager=other",
        "error: Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using v1: .data.key\nPlease review the fields above*",
    ),
    ok(
        "kubectl apply -f a2.yaml --server-side --field-manager=other --force-conflicts",
        "configmap/a serverside-applied\n",
    ),
    ok("kubectl get configmap a -o jsonpath='{.data.key}'", "two"),
    ok("kubectl apply -f b.yaml --server-side", "configmap/b serverside-applied\n"),
    fails(
        "sed s/one/three/ b.yaml | kubectl apply -f - --server-side --field-manager=other",
        "error: Apply failed with 1 conflict: conflict with \"kubectl\": .data.key\nPlease review the fields above*",
    ),
    ok("KUBE_EDITOR='sed -i s/two/edited/' kubectl edit configmap a", "configmap/a edited\n"),
    ok("kubectl get configmap a -o jsonpath='{.data.key}'", "edited"),
    ok("EDITOR=true kubectl edit configmap a", "Edit cancelled, no changes made.\n"),
    fails("KUBE_EDITOR='sed -i s/edited/[/' kubectl edit configmap a", "*"),
    ok(
        "kubectl create configmap c --from-literal=k=v --dry-run=client -o yaml | kubectl create -f -",
        "configmap/c created\n",
    ),
    ok("kubectl create configmap d --from-literal=k=v --dry-run=server", "configmap/d created (server dry run)\n"),
    ok("kubectl get configmap d --ignore-not-found", ""),
    ok(
        "kubectl create configmap c --from-literal=k=w --dry-run=client -o yaml | kubectl replace -f -",
        "configmap/c replaced\n",
    ),
    ok("kubectl patch configmap c --type=merge -p '{\"data\":{\"k\":\"merged\"}}'", "configmap/c patched\n"),
    ok(
        "kubectl patch configmap c --type=json -p '[{\"op\":\"replace\",\"path\":\"/data/k\",\"value\":\"json\"}]'",
        "configmap/c patched\n",
    ),
    ok("kubectl patch configmap c -p '{\"data\":{\"k\":\"json\"}}'", "configmap/c patched (no change)\n"),
    ok("kubectl get configmap c -o go-template='{{.data.k}}'", "json"),
    ok(
        "kubectl get configmaps --sort-by=.metadata.name -o name",
        "configmap/a\nconfigmap/b\nconfigmap/c\nconfigmap/kube-root-ca.crt\n",
    ),
    ok("kubectl get configmaps a -L set", "NAME   DATA   AGE   *SET\na      1      *x\n"),
    ok("kubectl get configmaps --field-selector=metadata.name=b -o name", "configmap/b\n"),
    ok("kubectl get configmaps --chunk-size=1 -o name | wc -l", "4\n"),
    ok("kubectl get configmap a -w --request-timeout=5s --output-watch-events --no-headers", "ADDED *a *1 *"),
    ok("kubectl create -f pod.yaml", "pod/forced created\n"),
    ok("kubectl replace --force -f pod.yaml", "pod \"forced\" deleted*\npod/forced replaced\n"),
    fails(
        "kubectl create -f pod.yaml",
        "Error from server (AlreadyExists): error when creating \"pod.yaml\": pods \"forced\" already exists\n",
    ),
    ok(
        "kubectl delete -f pod.yaml --grace-period=0 --force",
        "Warning: Immediate deletion does not wait for confirmation that the running resource has been terminated. The resource may continue to run on the cluster indefinitely.\npod \"forced\" force deleted*\n",
    ),
    ok("kubectl wait --for=delete pod/forced --timeout=60s", "*"),
    ok("kubectl create secret generic s --from-literal=password=x", "secret/s created\n"),
    ok("kubectl describe secret s", "Name:         s\n*Data\n====\npassword:  1 bytes\n"),
    ok("kubectl create quota q --hard=pods=2", "resourcequota/q created\n"),
    ok("kubectl create role reader --verb=get,list --resource=pods", "role.rbac.authorization.k8s.io/reader created\n"),
    ok(
        "kubectl create rolebinding reads --role=reader --user=jane",
        "rolebinding.rbac.authorization.k8s.io/reads created\n",
    ),
    ok("kubectl auth can-i list pods --as=jane", "yes\n"),
    fails("kubectl auth can-i delete pods --as=jane", "no\n"),
    ok("kubectl create token default > token && cut -d. -f1 token | wc -l", "1\n"),
    ok(
        "kubectl auth whoami --as=jane --as-group=readers",
        "ATTRIBUTE   VALUE\nUsername    jane\nGroups      [readers system:authenticated]\n",
    ),
    ok(
        "kubectl delete configmap a b c",
        "configmap \"a\" deleted*\nconfigmap \"b\" deleted*\nconfigmap \"c\" deleted*\n",
    ),
    fails("kubectl delete configmap a", "Error from server (NotFound): configmaps \"a\" not found\n"),
    fails("kubectl get configmap a", "Error from server (NotFound): configmaps \"a\" not found\n"),
    fails("kubectl get nonsense", "error: the server doesn't have a resource type \"nonsense\"\n"),
];

const API: &[Step] = &[
    ok(
        "kubectl api-versions | grep -x -e v1 -e apps/v1 -e policy/v1 -e batch/v1",
        "apps/v1\nbatch/v1\npolicy/v1\nv1\n",
    ),
    ok(
        "kubectl api-resources --api-group=apps --no-headers",
        "controllerrevisions            apps/v1   true   ControllerRevision\ndaemonsets            ds       apps/v1   true   DaemonSet\n*",
    ),
    ok("kubectl api-resources --verbs=delete --namespaced=false -o name | grep -x nodes", "nodes\n"),
    ok(
        "kubectl api-resources -o wide | grep '^pods '",
        "pods *po *v1 *true *Pod *create,delete,deletecollection,get,list,patch,update,watch *all\n",
    ),
    ok("kubectl auth can-i --list", "Resources * Non-Resource URLs * Resource Names *Verbs\n*[*]\n"),
    ok("kubectl auth can-i --list --as=jane", "*pods *[] *[] *[get list]\n*"),
    ok("kubectl auth whoami", "ATTRIBUTE *VALUE\nUsername *\nGroups *[system:masters system:authenticated]\n*"),
    ok(
        "kubectl explain deployment.spec.strategy.rollingUpdate",
        "GROUP:      apps\nKIND:       Deployment\nVERSION:    v1\n\nFIELD: rollingUpdate <RollingUpdateDeployment>\n\n\nDESCRIPTION:\n*\nFIELDS:\n  \
         maxSurge\t<IntOrString>\n*maxUnavailable\t<IntOrString>\n*",
    ),
    ok(
        "kubectl explain replicaset.spec --recursive",
        "GROUP:      apps\nKIND:       ReplicaSet\nVERSION:    v1\n\nFIELD: spec <ReplicaSetSpec>\n*  minReadySeconds\t<integer>\n  replicas\t<integer>\n  selector\t<LabelSelector> -required-\n    matchExpressions\t<[]LabelSelectorRequirement>\n      key\t<string> -required-\n*",
    ),
    ok("kubectl explain pod.spec.containers.resources.limits", "*\nFIELD: limits <map[string]Quantity>\n*"),
    ok("kubectl explain pod.metadata.creationTimestamp", "*\nFIELD: creationTimestamp <string>\n*"),
    ok("kubectl explain cronjobs --recursive | wc -l | awk '{print ($1 > 500)}'", "1\n"),
    fails("kubectl explain pod.nonsense", "*error: field \"nonsense\" does not exist\n"),
    ok("kubectl get --raw /readyz", "ok"),
    ok("kubectl cluster-info", "*Kubernetes control plane* is running at *https://127.0.0.1:*"),
    ok("kubectl version", "Client Version: v1.*\nKustomize Version: v5.*\nServer Version: v1.36.*\n*"),
];
