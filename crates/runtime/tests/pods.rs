//! Pods end to end: real processes, namespaces and cgroups, through the CRI socket.

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use cri::v1::*;
use support::{Stack, container, messages, namespaces, security};
use tokio_stream::StreamExt;

#[tokio::test]
async fn a_container_runs_with_what_it_was_given() {
    let mut stack = Stack::start().await;
    let pod = stack.pod("basics").await;
    let script = "pwd; hostname; cat /etc/hello; cat /etc/resolv.conf; echo $FROM_IMAGE $OWN $HOME; id -u; exit 3";
    let (code, output) = stack
        .script(&pod, "main", script, |config| config.envs.push(KeyValue { key: "OWN".into(), value: "mine".into() }))
        .await;
    assert_eq!(
        (code, output.as_str()),
        (3, "/data\nbasics\nhello from the image\nnameserver 10.43.0.10\nyes mine /root\n0")
    );

    let listed = stack.pods.list_containers(ListContainersRequest::default()).await.unwrap().into_inner().containers;
    let status = stack.status(&listed[0].id).await;
    assert_eq!((status.reason.as_str(), status.exit_code), ("Error", 3));
    assert!(status.created_at <= status.started_at && status.started_at <= status.finished_at, "{status:?}");
    assert!(status.image_ref.starts_with("sha256:") && status.image.unwrap().image.ends_with("test/busybox:1"));
}

#[tokio::test]
async fn logs_have_cris_format_and_reopen() {
    let mut stack = Stack::start().await;
    let pod = stack.pod("logs").await;
    let script = "echo out; echo err >&2; head -c 20000 /dev/zero | tr '\\0' x; echo; while ! [ -e /tmp/go ]; do sleep 0.05; done; echo after";
    let mut config = container("talker", &["busybox", "sh", "-c", &script.replace("tr ", "busybox tr ")]);
    config.log_path = "talker.log".into();
    let id = stack.run(&pod, config).await;
    let log = stack.status(&id).await.log_path;
    until("the long line", || std::fs::read_to_string(&log).is_ok_and(|text| text.contains(" stdout F xxx"))).await;
    let text = std::fs::read_to_string(&log).unwrap();
    for line in text.lines() {
        let fields: Vec<&str> = line.splitn(4, ' ').collect();
        assert!(fields[0].parse::<jiff::Timestamp>().is_ok(), "{line:.80}");
        assert!(["stdout", "stderr"].contains(&fields[1]) && ["F", "P"].contains(&fields[2]), "{line:.80}");
    }
    assert!(text.contains(" stdout F out\n") && text.contains(" stderr F err\n"));
    assert!(text.contains(&format!(" stdout P {}\n", "x".repeat(16384))));

    std::fs::rename(&log, format!("{log}.1")).unwrap();
    stack.pods.reopen_container_log(ReopenContainerLogRequest { container_id: id.clone() }).await.unwrap();
    assert_eq!(stack.exec(&id, &["touch", "/tmp/go"]).await.unwrap().0, 0);
    stack.wait(&id).await;
    assert_eq!(messages(Path::new(&log)), "after");
}

#[tokio::test]
async fn containers_of_a_pod_share_network_ipc_and_volumes_but_not_processes() {
    let mut stack = Stack::start().await;
    let pod = stack.pod("shared").await;
    let volume = stack.path("volume");
    std::fs::create_dir(&volume).unwrap();
    let mount = |readonly| Mount {
        container_path: "/vol".into(),
        host_path: volume.to_string_lossy().into_owned(),
        readonly,
        ..Mount::default()
    };
    let mut server =
        container("server", &["sh", "-c", "echo shm > /dev/shm/x; echo vol > /vol/y; nc -l -p 8080 -e echo hi"]);
    server.mounts.push(mount(false));
    let server = stack.run(&pod, server).await;
    let script = "for i in $(busybox seq 100); do nc 127.0.0.1 8080 </dev/null && break; sleep 0.05; done; \
        cat /dev/shm/x /vol/y; touch /vol/z 2>/dev/null || echo readonly; ps | grep -c -- '-p 808[0]'; true";
    let (code, output) = stack.script(&pod, "client", script, |config| config.mounts.push(mount(true))).await;
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!((code, &lines[..4]), (0, &["hi", "shm", "vol", "readonly"][..]), "{output}");
    assert_eq!(lines[4], "0", "the server's process is visible");
    stack.wait(&server).await;
}

#[tokio::test]
async fn a_shared_pid_namespace_has_pause_as_pid_1() {
    let mut stack = Stack::start().await;
    let mut config = stack.pod_config("shared-pid");
    let shared = NamespaceOption { pid: NamespaceMode::Pod.into(), ..NamespaceOption::default() };
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().namespace_options = Some(shared.clone());
    let pod = stack.pod_from(config).await;
    let share = |config: &mut ContainerConfig| security(config).namespace_options = Some(shared.clone());
    let mut sleeper = container("sleeper", &["sh", "-c", "sleep 1000 & sleep 1001"]);
    share(&mut sleeper);
    let sleeper = stack.run(&pod, sleeper).await;
    let (_, output) = stack.script(&pod, "viewer", "cat /proc/1/cmdline; echo; ps", share).await;
    assert!(output.starts_with("/pause") && output.contains("sleep 1001"), "{output}");
    // The end of the init is the end of its children, though they have another pid 1.
    stack.pods.stop_container(StopContainerRequest { container_id: sleeper, timeout: 0 }).await.unwrap();
    let gone = |output: &str| !output.contains("sleep 100");
    let deadline = Instant::now() + Duration::from_secs(10);
    for attempt in 0.. {
        let (_, output) = stack.script(&pod, &format!("again{attempt}"), "ps", share).await;
        if gone(&output) {
            break;
        }
        assert!(Instant::now() < deadline, "{output}");
    }
}

#[tokio::test]
async fn host_namespaces_are_the_hosts() {
    let mut stack = Stack::start().await;
    let mut config = stack.pod_config("host");
    let mode = NamespaceMode::Node.into();
    let host = NamespaceOption { network: mode, pid: mode, ipc: mode, ..NamespaceOption::default() };
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().namespace_options = Some(host.clone());
    let pod = stack.pod_from(config).await;
    let mut sleeper = container("sleeper", &["sleep", "1000"]);
    security(&mut sleeper).namespace_options = Some(host);
    let id = stack.run(&pod, sleeper).await;
    let pid = stack.pid(&id).await;
    for (namespace, same) in [("net", true), ("pid", true), ("ipc", true), ("uts", true), ("mnt", false)] {
        let theirs = std::fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        let ours = std::fs::read_link(format!("/proc/self/ns/{namespace}")).unwrap();
        assert_eq!(theirs == ours, same, "{namespace}");
    }
}

#[tokio::test]
async fn exec_has_output_codes_errors_and_a_timeout() {
    let mut stack = Stack::start().await;
    let pod = stack.pod("exec").await;
    let id = stack.run(&pod, container("main", &["sleep", "1000"])).await;
    assert_eq!(
        stack.exec(&id, &["sh", "-c", "echo $FROM_IMAGE; pwd; exit 7"]).await.unwrap(),
        (7, "yes\n/data".into())
    );
    let missing = stack.exec(&id, &["nonesuch"]).await.unwrap_err();
    assert!(missing.message().contains("exec: \"nonesuch\": executable file not found in $PATH"), "{missing}");
    let request = ExecSyncRequest { container_id: id.clone(), cmd: vec!["sleep".into(), "777".into()], timeout: 1 };
    let late = stack.pods.exec_sync(request).await.unwrap_err();
    assert_eq!(late.code(), tonic::Code::DeadlineExceeded);
    let deadline = Instant::now() + Duration::from_secs(10);
    while stack.exec(&id, &["ps"]).await.unwrap().1.contains("sleep 777") {
        assert!(Instant::now() < deadline, "a command that timed out goes on");
    }
    let big = stack.exec(&id, &["head", "-c", "3000000", "/dev/zero"]).await.unwrap();
    assert_eq!(big.1.len(), 3_000_000);
    // A failed exec leaves nothing that keeps the container from ending.
    stack.pods.stop_container(StopContainerRequest { container_id: id.clone(), timeout: 0 }).await.unwrap();
    assert_eq!(stack.status(&id).await.exit_code, 137);
}

#[tokio::test]
async fn a_command_that_is_not_there_is_named() {
    let mut stack = Stack::start().await;
    let pod = stack.pod("missing").await;
    for (name, command, message) in [
        ("a", "nonesuch", "exec: \"nonesuch\": executable file not found in $PATH"),
        ("b", "/bin/nonesuch", "exec: \"/bin/nonesuch\": stat /bin/nonesuch: no such file or directory"),
        ("c", "/etc/hello", "exec: \"/etc/hello\": permission denied"),
    ] {
        let id = stack.create(&pod, container(name, &[command])).await.unwrap();
        let error = stack.launch(&id).await.unwrap_err();
        assert!(error.message().contains(message), "{error}");
        let status = stack.status(&id).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
        assert!(status.message.contains(message));
    }
}

#[tokio::test]
async fn rights_are_dropped_for_init_and_exec_alike() {
    let mut stack = Stack::start().await;
    let pod = stack.pod("rights").await;
    let mut config = container("main", &["sleep", "1000"]);
    let context = security(&mut config);
    context.seccomp = Some(SecurityProfile::default());
    context.no_new_privs = true;
    context.run_as_user = Some(Int64Value { value: 1000 });
    context.supplemental_groups = vec![77];
    context.masked_paths = vec!["/proc/kcore".into(), "/proc/acpi".into(), "/proc/keys".into()];
    context.readonly_paths = vec!["/proc/sys".into()];
    context.readonly_rootfs = true;
    context.capabilities = Some(Capability { drop_capabilities: vec!["ALL".into()], ..Capability::default() });
    let id = stack.run(&pod, config.clone()).await;
    let probe = "id -u; id -g; id -G; grep -E '^(CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; cat /proc/keys | wc -c; \
        touch /x 2>&1; touch /data/x && echo data; grep -o '/proc/sys proc ro' /proc/mounts; echo x > /dev/null && echo null; unshare -U true 2>&1; grep -c . /proc/self/cgroup >/dev/null; true";
    let (_, seen) = stack.exec(&id, &["sh", "-c", probe]).await.unwrap();
    config.metadata.as_mut().unwrap().name = "again".into();
    config.command = ["sh", "-c", probe].map(String::from).into();
    config.log_path = "again.log".into();
    let again = stack.run(&pod, config).await;
    let status = stack.wait(&again).await;
    let by_init = messages(Path::new(&status.log_path));
    for seen in [&seen, &by_init] {
        for expected in [
            "1000\n1001\n1001 44 77\n",
            "CapBnd:\t0000000000000000",
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
            "\n0\n",
            "touch: /x: Read-only file system",
            "/proc/sys proc ro\nnull\n",
            "unshare: unshare(0x10000000): Operation not permitted",
        ] {
            assert!(seen.contains(expected), "{expected:?} in {seen}");
        }
    }
    let user = status.user.unwrap().linux.unwrap();
    assert_eq!((user.uid, user.gid, user.supplemental_groups), (1000, 1001, vec![1001, 44, 77]));
}

#[tokio::test]
async fn image_volumes_stay_writable_below_a_read_only_root() {
    let mut stack = Stack::start().await;
    let pod = stack.pod("volumes").await;
    let script = "touch /data/x && echo data; touch /x || echo root; touch /etc/hosts && echo hosts; mknod /data/m b 7 0 && cat /data/m";
    let (_, output) = stack.script(&pod, "main", script, |config| security(config).readonly_rootfs = true).await;
    let lines: Vec<&str> = output.lines().filter(|line| ["data", "root", "hosts"].contains(line)).collect();
    assert_eq!(lines, ["data", "root", "hosts"], "{output}");
    assert!(output.contains("can't open '/data/m': Operation not permitted"), "block devices are closed: {output}");
}

#[tokio::test]
async fn memory_beyond_the_limit_is_an_oom_kill() {
    let mut stack = Stack::start().await;
    let pod = stack.pod("oom").await;
    let mut config = container("hog", &["sh", "-c", "x=aaaaaaaaaaaaaaaa; while true; do x=$x$x; done"]);
    config.linux.as_mut().unwrap().resources = Some(LinuxContainerResources {
        memory_limit_in_bytes: 24 << 20,
        cpu_shares: 512,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        ..Default::default()
    });
    let id = stack.run(&pod, config).await;
    let status = stack.wait(&id).await;
    assert_eq!((status.reason.as_str(), status.exit_code), ("OOMKilled", 137));
    let names = process_names(&stack.cgroups()[0].join("kubepods"));
    assert_eq!(names, ["pause"], "a limit of the pod must neither count nor kill its shim");
}

/// Commands of the processes in a cgroup and below it.
fn process_names(cgroup: &std::path::Path) -> Vec<String> {
    let pids = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let name = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned();
    let children = std::fs::read_dir(cgroup).into_iter().flatten().flatten().map(|entry| entry.path());
    let below = children.filter(|path| path.is_dir()).flat_map(|path| process_names(&path));
    pids.lines().map(name).chain(below).collect()
}

#[tokio::test]
async fn resources_and_stats_are_those_of_the_cgroup() {
    let mut stack = Stack::start().await;
    let pod = stack.pod("stats").await;
    let mut config = container(
        "main",
        &[
            "sh",
            "-c",
            "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; sleep 1000",
        ],
    );
    config.linux.as_mut().unwrap().resources =
        Some(LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..Default::default() });
    let id = stack.run(&pod, config).await;
    let limit = ["cat", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let seen = stack.exec(&id, &limit).await.unwrap().1;
    let seen = if seen.contains("No such file") {
        stack.exec(&id, &["cat", "/sys/fs/cgroup/memory.max"]).await.unwrap().1
    } else {
        seen
    };
    assert_eq!(seen, (64 << 20).to_string());
    let update = LinuxContainerResources { memory_limit_in_bytes: 128 << 20, ..Default::default() };
    let request =
        UpdateContainerResourcesRequest { container_id: id.clone(), linux: Some(update), ..Default::default() };
    stack.pods.update_container_resources(request).await.unwrap();
    let stats =
        stack.pods.pod_sandbox_stats(PodSandboxStatsRequest { pod_sandbox_id: pod }).await.unwrap().into_inner();
    let stats = stats.stats.unwrap().linux.unwrap();
    let memory = stats.containers[0].memory.as_ref().unwrap();
    let working_set = memory.working_set_bytes.unwrap().value;
    assert!((1..8 << 20).contains(&working_set), "{working_set}");
    assert_eq!(memory.available_bytes.unwrap().value, (128 << 20) - working_set);
    assert!(stats.cpu.unwrap().usage_core_nano_seconds.unwrap().value > 0);
    assert!(stats.process.unwrap().process_count.unwrap().value >= 2, "pause and sleep");
    let resources = stack.status(&id).await.resources.unwrap().linux.unwrap();
    assert_eq!(resources.memory_limit_in_bytes, 128 << 20);
}

#[tokio::test]
async fn pods_outlive_the_service() {
    let mut stack = Stack::start().await;
    let pod = stack.pod("survivor").await;
    let id = stack
        .run(
            &pod,
            container("main", &["sh", "-c", "trap 'echo bye; exit 5' TERM; echo up; while true; do sleep 0.1; done"]),
        )
        .await;
    let brief = stack
        .run(&pod, container("brief", &["sh", "-c", "while ! [ -e /dev/shm/end ]; do sleep 0.05; done; exit 9"]))
        .await;
    let pid = stack.pid(&id).await;
    stack.service.kill().unwrap();
    stack.service.wait().unwrap();
    // Ends while nobody watches.
    let root = std::path::PathBuf::from(format!("/proc/{pid}/root/dev/shm/end"));
    std::fs::write(root, "").unwrap();
    stack.restart().await;
    assert_eq!(stack.wait(&brief).await.exit_code, 9);
    assert_eq!(stack.pid(&id).await, pid);
    assert_eq!(stack.exec(&id, &["echo", "again"]).await.unwrap(), (0, "again".into()));
    stack.pods.stop_container(StopContainerRequest { container_id: id.clone(), timeout: 10 }).await.unwrap();
    let status = stack.status(&id).await;
    assert_eq!((status.exit_code, messages(Path::new(&status.log_path)).as_str()), (5, "up\nbye"));
}

#[tokio::test]
async fn a_shim_is_small_and_its_binary_safe() {
    let mut stack = Stack::start().await;
    let pod = stack.pod("small").await;
    let id = stack
        .run(&pod, container("main", &["sh", "-c", "for i in $(busybox seq 2000); do echo line $i; done; sleep 1000"]))
        .await;
    let log = stack.status(&id).await.log_path;
    until("the log", || std::fs::read_to_string(&log).is_ok_and(|text| text.contains("F line 2000\n"))).await;
    stack.exec(&id, &["true"]).await.unwrap();
    let pid = stack.pid(&id).await;
    let shim = parent(pid);
    let pause = std::fs::read_to_string(format!("/proc/{shim}/task/{shim}/children")).unwrap();
    let private = |pid: &str| -> u64 {
        let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let fields = rollup.lines().filter(|line| line.starts_with("Private_"));
        fields.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
    };
    // Nobody can write to the binary through a process of the pod.
    let written = std::fs::File::options().write(true).open(format!("/proc/{shim}/exe"));
    assert_eq!(written.unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    let (shim, pause) = (private(&shim.to_string()), private(pause.split(' ').next().unwrap()));
    println!("private memory: shim {shim} kB, pause {pause} kB");
    assert!(shim < 1024 && pause < 256, "shim {shim} kB, pause {pause} kB");
}

fn parent(pid: i64) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn removal_leaves_no_process_mount_cgroup_or_file() {
    let mut stack = Stack::start().await;
    let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut pids = Vec::new();
    let mut pods = Vec::new();
    for name in ["one", "two"] {
        let pod = stack.pod(name).await;
        let id = stack.run(&pod, container("main", &["sh", "-c", "sleep 1000 & sleep 1000"])).await;
        pids.push(stack.pid(&id).await);
        pods.push(pod);
    }
    assert!(!mounts().contains(stack.base.path().to_str().unwrap()), "nothing is mounted on the host");
    for pod in &pods {
        let request = || StopPodSandboxRequest { pod_sandbox_id: pod.clone() };
        stack.pods.stop_pod_sandbox(request()).await.unwrap();
        stack.pods.stop_pod_sandbox(request()).await.unwrap();
        let status = PodSandboxStatusRequest { pod_sandbox_id: pod.clone(), verbose: false };
        let status = stack.pods.pod_sandbox_status(status).await.unwrap().into_inner().status.unwrap();
        assert_eq!(status.state(), PodSandboxState::SandboxNotready);
        let request = || RemovePodSandboxRequest { pod_sandbox_id: pod.clone() };
        stack.pods.remove_pod_sandbox(request()).await.unwrap();
        stack.pods.remove_pod_sandbox(request()).await.unwrap();
    }
    for pid in pids {
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
    let below = |directory: &Path| std::fs::read_dir(directory).unwrap().flatten().any(|e| e.path().is_dir());
    assert!(stack.cgroups().iter().all(|root| !below(root)), "{:?}", stack.cgroups());
    for directory in ["root/pods", "root/containers"] {
        assert_eq!(std::fs::read_dir(stack.path(directory)).unwrap().count(), 0, "{directory}");
    }
    assert_eq!(std::fs::read_dir(stack.path("state")).unwrap().count(), 1, "the compiled filters only");
}

#[tokio::test]
async fn a_lost_shim_takes_its_pod_down() {
    let mut stack = Stack::start().await;
    let pod = stack.pod("lost").await;
    let id = stack.run(&pod, container("main", &["sleep", "1000"])).await;
    let pid = stack.pid(&id).await;
    let shim = parent(pid);
    assert_eq!(std::fs::read_to_string(format!("/proc/{shim}/comm")).unwrap(), "isopod-shim\n");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::Signal::SIGKILL).unwrap();
    let status = stack.wait(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"));
    until("the container's process is gone", || !Path::new(&format!("/proc/{pid}")).exists()).await;
    let request = PodSandboxStatusRequest { pod_sandbox_id: pod, verbose: false };
    let deadline = Instant::now() + Duration::from_secs(10);
    while stack.pods.pod_sandbox_status(request.clone()).await.unwrap().into_inner().status.unwrap().state()
        != PodSandboxState::SandboxNotready
    {
        assert!(Instant::now() < deadline);
    }
}

#[tokio::test]
async fn events_tell_a_containers_life() {
    let mut stack = Stack::start().await;
    let mut events = stack.pods.get_container_events(GetEventsRequest {}).await.unwrap().into_inner();
    let pod = stack.pod("events").await;
    let id = stack.run(&pod, container("main", &["true"])).await;
    stack.wait(&id).await;
    stack.pods.remove_container(RemoveContainerRequest { container_id: id.clone() }).await.unwrap();
    let mut kinds = Vec::new();
    while kinds.last() != Some(&ContainerEventType::ContainerDeletedEvent) {
        let event = tokio::time::timeout(Duration::from_secs(10), events.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(event.pod_sandbox_status.as_ref().unwrap().id, pod);
        if event.container_id == id {
            kinds.push(event.container_event_type());
        }
    }
    use ContainerEventType::*;
    // A command as short as this may end before its start is told.
    assert_eq!(kinds[0], ContainerCreatedEvent);
    assert!(kinds.contains(&ContainerStartedEvent) && kinds.contains(&ContainerStoppedEvent), "{kinds:?}");
}

#[tokio::test]
async fn an_ephemeral_container_sees_its_target() {
    let mut stack = Stack::start().await;
    let pod = stack.pod("target").await;
    let target = stack.run(&pod, container("main", &["sleep", "1234"])).await;
    let join = NamespaceOption { pid: NamespaceMode::Target.into(), target_id: target, ..namespaces() };
    let (_, output) = stack.script(&pod, "debug", "ps", |config| security(config).namespace_options = Some(join)).await;
    assert!(output.contains("1 root") || output.contains("sleep 1234"), "{output}");
}

#[tokio::test]
async fn filters_select_by_state_label_and_prefix() {
    let mut stack = Stack::start().await;
    let (a, b) = (stack.pod("a").await, stack.pod("b").await);
    let label = |name: &str| [("app".to_string(), name.to_string())].into();
    let not_ready = Some(PodSandboxStateValue { state: PodSandboxState::SandboxNotready.into() });
    stack.pods.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: b.clone() }).await.unwrap();
    for (filter, expected) in [
        (PodSandboxFilter { id: a[..12].into(), ..Default::default() }, vec![&a]),
        (PodSandboxFilter { label_selector: label("b"), ..Default::default() }, vec![&b]),
        (PodSandboxFilter { state: not_ready, ..Default::default() }, vec![&b]),
        (PodSandboxFilter { id: a.clone(), label_selector: label("b"), ..Default::default() }, vec![]),
    ] {
        let request = ListPodSandboxRequest { filter: Some(filter.clone()) };
        let items = stack.pods.list_pod_sandbox(request).await.unwrap().into_inner().items;
        assert_eq!(items.iter().map(|item| &item.id).collect::<Vec<_>>(), expected, "{filter:?}");
    }
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
