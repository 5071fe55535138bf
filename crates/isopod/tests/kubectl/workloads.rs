//! Verbs about workloads and their pods.

use std::path::Path;

use testkit::Cluster;

use crate::script::{Shell, Step, fails, ok, soon};

pub fn run(cluster: &Cluster, name: &str, kubectl: &Path) {
    let shell = Shell::new(cluster, name, kubectl);
    shell.write("kinds.yaml", &KINDS.replace("IMAGE", crate::common::BUSYBOX));
    shell.write("crash.yaml", &CRASH.replace("IMAGE", crate::common::BUSYBOX));
    shell.run(ROLLOUTS);
    shell.run(PODS);
    shell.run(DESCRIPTIONS);
}

const KINDS: &str = r#"
apiVersion: apps/v1
kind: ReplicaSet
metadata: {name: rs}
spec:
  replicas: 1
  selector: {matchLabels: {app: rs}}
  template: &template
    metadata: {labels: {app: rs}}
    spec: &spec
      terminationGracePeriodSeconds: 0
      containers: [{name: main, image: IMAGE, imagePullPolicy: IfNotPresent, command: [sleep, "100000"]}]
---
apiVersion: v1
kind: ReplicationController
metadata: {name: rc}
spec:
  replicas: 1
  template:
    metadata: {labels: {app: rc}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: main, image: IMAGE, imagePullPolicy: IfNotPresent, command: [sleep, "100000"]}]
---
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
kind: StatefulSet
metadata: {name: ss}
spec:
  serviceName: ss
  selector: {matchLabels: {app: ss}}
  template:
    metadata: {labels: {app: ss}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: main, image: IMAGE, imagePullPolicy: IfNotPresent, command: [sleep, "100000"]}]
---
apiVersion: batch/v1
kind: Job
metadata: {name: job}
spec:
  template:
    spec:
      restartPolicy: Never
      containers: [{name: main, image: IMAGE, imagePullPolicy: IfNotPresent, command: [echo, done]}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: budget}
spec: {minAvailable: 1, selector: {matchLabels: {app: rs}}}
"#;

/// Its first run fails, the second goes on; two containers talk.
const CRASH: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: crash, labels: {app: crash}}
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{name: memory, emptyDir: {}}]
  containers:
  - name: one
    image: IMAGE
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'if [ -e /m/x ]; then echo second; exec sleep 100000; else touch /m/x; echo first; exit 1; fi']
    volumeMounts: [{name: memory, mountPath: /m}]
  - {name: two, image: IMAGE, imagePullPolicy: IfNotPresent, command: [sh, -c, 'echo another; exec sleep 100000']}
"#;

const ROLLOUTS: &[Step] = &[
    ok(
        "kubectl create deployment web --image=$IMAGE --replicas=2 -- sh -c 'echo started; exec sleep 100000'",
        "deployment.apps/web created\n",
    ),
    ok(
        "kubectl patch deployment web -p '{\"spec\":{\"template\":{\"spec\":{\"terminationGracePeriodSeconds\":0}}}}'",
        "deployment.apps/web patched\n",
    ),
    ok("kubectl rollout status deployment/web", "*deployment \"web\" successfully rolled out\n"),
    ok("kubectl set env deployment/web A=b", "deployment.apps/web env updated\n"),
    ok("kubectl set env deployment/web --list", "# Deployment web, container busybox\nA=b\n"),
    ok("kubectl annotate deployment/web kubernetes.io/change-cause='set A'", "deployment.apps/web annotated\n"),
    ok("kubectl rollout status deployment/web --timeout=120s", "*deployment \"web\" successfully rolled out\n"),
    soon(
        "kubectl rollout history deployment/web",
        "deployment.apps/web \nREVISION  CHANGE-CAUSE\n1         <none>\n2         <none>\n3         set A\n\n",
    ),
    ok(
        "kubectl rollout history deployment/web --revision=3",
        "deployment.apps/web with revision #3\nPod Template:\n  Labels:\tapp=web\n\tpod-template-hash=*\n  \
         Annotations:\tkubernetes.io/change-cause: set A\n  Containers:\n   busybox:\n    Image:\t*\n    Port:\t<none>\n    \
         Host Port:\t<none>\n    Command:\n      sh\n      -c\n      echo started; exec sleep 100000\n    Environment:\n      \
         A:\tb\n    Mounts:\t<none>\n  Volumes:\t<none>\n  Node-Selectors:\t<none>\n  Tolerations:\t<none>\n\n",
    ),
    fails("kubectl rollout history deployment/web --revision=9", "error: unable to find the specified revision\n"),
    fails(
        "kubectl rollout undo deployment/web --to-revision=9",
        "error: unable to find specified revision 9 in history\n",
    ),
    ok("kubectl rollout undo deployment/web --dry-run=client", "deployment.apps/web Pod Template:*"),
    ok("kubectl rollout undo deployment/web --to-revision=2", "deployment.apps/web rolled back\n"),
    ok("kubectl rollout status deployment/web", "*deployment \"web\" successfully rolled out\n"),
    soon("kubectl rollout history deployment/web | tail -n +3 | cut -d' ' -f1", "1\n3\n4\n\n"),
    ok(
        "kubectl rollout undo deployment/web --to-revision=4",
        "deployment.apps/web skipped rollback (current template already matches revision 4)\n",
    ),
    ok("kubectl get deployment web -o jsonpath='{.spec.template.spec.containers[0].env}'", ""),
    ok("kubectl rollout pause deployment/web", "deployment.apps/web paused\n"),
    fails("kubectl rollout pause deployment/web", "error: deployments.apps \"web\" is already paused\n"),
    ok("kubectl set env deployment/web C=d", "deployment.apps/web env updated\n"),
    soon(
        "kubectl get deployment web -o jsonpath='{.status.conditions[?(@.type==\"Progressing\")].reason}'",
        "DeploymentPaused",
    ),
    fails(
        "kubectl rollout undo deployment/web",
        "error: you cannot rollback a paused deployment; resume it first with 'kubectl rollout resume' and try again\n",
    ),
    fails(
        "kubectl rollout restart deployment/web",
        "error: deployments.apps \"web\" can't restart paused deployment (run rollout resume first)\n",
    ),
    ok("kubectl rollout resume deployment/web", "deployment.apps/web resumed\n"),
    fails("kubectl rollout resume deployment/web", "error: deployments.apps \"web\" is not paused\n"),
    ok("kubectl rollout status deployment/web", "*deployment \"web\" successfully rolled out\n"),
    ok("kubectl rollout restart deployment/web", "deployment.apps/web restarted\n"),
    ok("kubectl rollout status deployment/web", "*deployment \"web\" successfully rolled out\n"),
    ok(
        "kubectl get deployment web -o jsonpath='{.spec.template.metadata.annotations}'",
        "{\"kubectl.kubernetes.io/restartedAt\":\"*\"}",
    ),
    ok("kubectl set image deployment/web busybox=$IMAGE.none", "deployment.apps/web image updated\n"),
    fails(
        "kubectl rollout status deployment/web --timeout=1s",
        "Waiting for deployment \"web\" rollout to finish: *\nerror: timed out waiting for the condition\n",
    ),
    ok("kubectl rollout undo deployment/web", "deployment.apps/web rolled back\n"),
    ok("kubectl rollout status deployment/web", "*deployment \"web\" successfully rolled out\n"),
    fails("kubectl set image deployment/web absent=$IMAGE", "error: unable to find container named \"absent\"\n"),
    fails(
        "kubectl scale deployment/web --current-replicas=5 --replicas=1",
        "error: Expected replicas to be 5, was 2\n",
    ),
    ok("kubectl scale deployment/web --current-replicas=2 --replicas=1", "deployment.apps/web scaled\n"),
    ok(
        "kubectl wait deployment/web --for=jsonpath='{.status.replicas}'=1 --timeout=120s",
        "deployment.apps/web condition met\n",
    ),
    ok("kubectl wait deployment/web --for=condition=Available --timeout=120s", "deployment.apps/web condition met\n"),
    fails(
        "kubectl wait deployment/web --for=condition=Nonsense --timeout=1s",
        "error: timed out waiting for the condition on deployments/web\n",
    ),
    fails(
        "kubectl wait deployment/absent --for=condition=Available",
        "Error from server (NotFound): deployments.apps \"absent\" not found\n",
    ),
    ok("kubectl get all -l app=web -o name", "pod/web-*\ndeployment.apps/web\n*replicaset.apps/web-*"),
    ok(
        "kubectl autoscale deployment web --min=1 --max=3 --cpu-percent=50",
        "*horizontalpodautoscaler.autoscaling/web autoscaled\n",
    ),
    ok(
        "kubectl get hpa web",
        "NAME   REFERENCE        TARGETS              MINPODS   MAXPODS   REPLICAS   AGE\nweb    Deployment/web   cpu: <unknown>/50%   1         3         0          *s\n",
    ),
    ok("kubectl expose deployment web --port=80 --target-port=8080 --type=NodePort", "service/web exposed\n"),
    ok("kubectl get service web", "NAME   TYPE       CLUSTER-IP * <none>        80:3*/TCP   *s\n"),
    ok("kubectl events --for deployment/web", "LAST SEEN *ScalingReplicaSet * Deployment/web *"),
    ok("kubectl events --types=Warning --for deployment/web", "No events found in * namespace.\n"),
    ok("kubectl get deployment web -w --request-timeout=5s --output-watch-events --no-headers", "ADDED *web *1/1 *"),
    ok("kubectl delete deployment web --cascade=foreground", "deployment.apps \"web\" deleted*\n"),
    ok("kubectl get pods -l app=web", "No resources found in * namespace.\n"),
];

const PODS: &[Step] = &[
    ok("kubectl apply -f crash.yaml", "pod/crash created\n"),
    soon("kubectl logs crash -c one", "second\n"),
    ok("kubectl logs crash -c one --previous", "first\n"),
    ok("kubectl logs crash", "Defaulted container \"one\" out of: one, two\nsecond\n"),
    ok(
        "kubectl logs -l app=crash --all-containers --prefix | sort",
        "[pod/crash/one] second\n[pod/crash/two] another\n",
    ),
    fails("timeout -s INT 5 kubectl logs -f crash -c two; test $? != 124", "another\n"),
    fails("kubectl logs crash -c three", "error: container three is not valid for pod crash*\n"),
    fails("kubectl logs absent", "error: error from server (NotFound): pods \"absent\" not found in namespace \"*\"\n"),
    ok("kubectl wait --for=condition=Ready pod/crash --timeout=120s", "pod/crash condition met\n"),
    ok("kubectl exec crash -c two -- sh -c 'echo out; exit 0'", "out\n"),
    Step::with_code(3, "kubectl exec crash -c two -- sh -c 'exit 3'", "command terminated with exit code 3\n"),
    ok(
        "script -qec \"kubectl exec -it crash -c two -- sh -c 'test -t 0 && test -t 1 && echo terminal'\" /dev/null",
        "*terminal\r\n*",
    ),
    ok("echo sent | kubectl exec -i crash -c two -- cat", "sent\n"),
    ok(
        "echo copied > there && kubectl cp -c two there crash:/tmp/there && kubectl cp -c two crash:tmp/there back && cat back",
        "copied\n",
    ),
    ok("echo hello | kubectl run echo --rm -i --image=$IMAGE --restart=Never -q -- cat", "hello\n"),
    ok("kubectl get pods echo --ignore-not-found", ""),
    ok(
        "kubectl run reader -i --stdin --image=$IMAGE --restart=Never --attach=false -- sh -c 'read line; echo got $line'",
        "pod/reader created\n",
    ),
    ok("kubectl wait --for=condition=Ready pod/reader --timeout=120s", "*condition met\n"),
    ok("echo words | kubectl attach -i reader", "*"),
    soon("kubectl logs reader", "got words\n"),
    ok(
        "kubectl debug crash --image=$IMAGE --container=helper --target=two -- sh -c 'echo debugging; exec sleep 100000'",
        "Targeting container \"two\". If you don't see processes from this container it may be because the container runtime doesn't support this feature.\n*",
    ),
    soon("kubectl logs crash -c helper", "debugging\n"),
    ok("kubectl exec crash -c helper -- ps -o comm", "*sleep\n*sleep\n*"),
    ok("kubectl debug crash --image=$IMAGE --copy-to=copy --container=extra -- sleep 100000", "*"),
    ok("kubectl get pod copy -o jsonpath='{.spec.containers[*].name}'", "one two extra"),
    ok(
        "kubectl get pod crash -o custom-columns=NAME:.metadata.name,PHASE:.status.phase",
        "NAME    PHASE\ncrash   Running\n",
    ),
    ok("kubectl get pod crash -o jsonpath='{.spec.containers[*].name}'", "one two"),
    ok(
        "kubectl get pod crash -o wide --no-headers",
        "crash   2/2   Running   1 (*s ago)   *s   10.*   <none>   <none>\n",
    ),
    ok("kubectl get pod crash -o yaml", "apiVersion: v1\nkind: Pod\nmetadata:\n*"),
    ok("kubectl get pods -l app=crash --show-labels --no-headers", "crash *app=crash\n"),
    ok("kubectl label pod crash tier=back", "pod/crash labeled\n"),
    fails("kubectl label pod crash tier=front", "error: 'tier' already has a value (back), and --overwrite is false\n"),
    ok("kubectl label pod crash tier=front --overwrite", "pod/crash labeled\n"),
    ok("kubectl label pod crash tier-", "pod/crash unlabeled\n"),
    ok("kubectl annotate pod crash note='a b'", "pod/crash annotated\n"),
    fails("kubectl top pods", "error: Metrics API not available\n"),
    fails("kubectl top nodes", "error: Metrics API not available\n"),
    ok(
        "kubectl delete pod crash copy reader --now",
        "pod \"crash\" deleted*\npod \"copy\" deleted*\npod \"reader\" deleted*\n",
    ),
];

const DESCRIPTIONS: &[Step] = &[
    ok(
        "kubectl apply -f kinds.yaml",
        "*replicaset.apps/rs created\nreplicationcontroller/rc created\ndaemonset.apps/ds created\nstatefulset.apps/ss created\njob.batch/job created\npoddisruptionbudget.policy/budget created\n",
    ),
    ok("kubectl create cronjob cron --image=$IMAGE --schedule='0 0 1 1 *' -- true", "cronjob.batch/cron created\n"),
    ok("kubectl create job once --from=cronjob/cron", "job.batch/once created\n"),
    ok(
        "kubectl wait --for=condition=Complete job/once job/job --timeout=120s",
        "job.batch/once condition met\njob.batch/job condition met\n",
    ),
    ok(
        "kubectl get job once -o jsonpath='{.metadata.annotations} {.metadata.ownerReferences[0].kind}'",
        "{\"cronjob.kubernetes.io/instantiate\":\"manual\"} CronJob",
    ),
    ok("kubectl rollout status daemonset/ds", "*daemon set \"ds\" successfully rolled out\n"),
    ok("kubectl rollout status statefulset/ss", "*partitioned roll out complete: 1 new pods have been updated...\n"),
    ok("kubectl wait --for=jsonpath='{.status.readyReplicas}'=1 rs/rs rc/rc --timeout=120s", "*met\n*met\n"),
    ok(
        "kubectl describe rs rs",
        "Name:         rs\nNamespace:    *\nSelector:     app=rs\nLabels:       <none>\nAnnotations:  <none>\nReplicas:     1 current / 1 desired\n\
         Pods Status:  1 Running / 0 Waiting / 0 Succeeded / 0 Failed\nPod Template:\n  Labels:  app=rs\n*SuccessfulCreate *Created pod: rs-*\n",
    ),
    ok(
        "kubectl describe rc rc",
        "Name:         rc\n*Selector:     app=rc\nLabels:       app=rc\n*Pods Status:  1 Running /*Created pod: rc-*\n",
    ),
    ok(
        "kubectl describe ds ds",
        "Name:           ds\n*Desired Number of Nodes Scheduled: 1\n*Number of Nodes Misscheduled: 0\n*Pods Status:  1 Running /*Created pod: ds-*\n",
    ),
    ok(
        "kubectl describe statefulset ss",
        "Name:               ss\n*Replicas:           1 desired | 1 total\nUpdate Strategy:    RollingUpdate\n  Partition:        0\n*create Pod ss-0 in StatefulSet ss successful\n",
    ),
    ok(
        "kubectl describe job job",
        "Name:             job\n*Parallelism:      1\nCompletions:      1\n*Pods Statuses:    0 Active (0 Ready) / 1 Succeeded / 0 Failed\n*Completed *Job completed\n",
    ),
    ok(
        "kubectl describe cronjob cron",
        "Name:                          cron\n*Schedule:                      0 0 1 1 *\nConcurrency Policy:            Allow\n*",
    ),
    ok(
        "kubectl describe pdb budget",
        "Name:           budget\n*Min available:  1\nSelector:       app=rs\nStatus:\n    Allowed disruptions:  0\n    Current:              1\n    Desired:              1\n    Total:                1\n*",
    ),
    ok(
        "kubectl describe pod -l app=ss",
        "Name:             ss-0\n*Controlled By:  StatefulSet/ss\n*Conditions:\n*Container started*\n",
    ),
    ok(
        "kubectl get job job",
        "NAME   STATUS     COMPLETIONS   DURATION   AGE\njob    Complete   1/1           *s         *s\n",
    ),
    ok(
        "kubectl get ds,rs,rc,statefulset -o name",
        "daemonset.apps/ds\nreplicaset.apps/rs\nreplicationcontroller/rc\nstatefulset.apps/ss\n",
    ),
    ok("kubectl rollout history statefulset/ss", "statefulset.apps/ss \nREVISION  CHANGE-CAUSE\n1         <none>\n\n"),
    ok("kubectl rollout history daemonset/ds", "daemonset.apps/ds \nREVISION  CHANGE-CAUSE\n1         <none>\n\n"),
    ok(
        "kubectl rollout restart daemonset/ds statefulset/ss",
        "daemonset.apps/ds restarted\nstatefulset.apps/ss restarted\n",
    ),
    ok("kubectl rollout status daemonset/ds", "*daemon set \"ds\" successfully rolled out\n"),
    ok("kubectl rollout undo daemonset/ds", "*daemonset.apps/ds rolled back\n"),
    ok("kubectl delete -f kinds.yaml --wait=false", "*poddisruptionbudget.policy \"budget\" deleted*\n"),
];
