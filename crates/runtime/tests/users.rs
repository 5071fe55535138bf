//! Pods with user namespaces of their own: real processes, whose ids the host sees as others.

mod support;

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use cri::v1::*;
use support::{Stack, container, messages, namespaces, security};

/// Where the tests' ranges begin; nothing on the machine belongs to them.
const FIRST: u32 = 10_000 * 65_536;

fn users(number: u32) -> UserNamespace {
    let ids = vec![IdMapping { host_id: FIRST + number * 65_536, container_id: 0, length: 65_536 }];
    UserNamespace { mode: NamespaceMode::Pod.into(), uids: ids.clone(), gids: ids }
}

/// In a pod of such users, and its own processes unless `pid` says otherwise.
fn options(number: u32) -> NamespaceOption {
    NamespaceOption { userns_options: Some(users(number)), ..namespaces() }
}

async fn pod(stack: &mut Stack, name: &str, options: &NamespaceOption) -> String {
    let mut config = stack.pod_config(name);
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().namespace_options = Some(options.clone());
    stack.pod_from(config).await
}

fn volume(host_path: &Path, container_path: &str, users: &UserNamespace) -> Mount {
    Mount {
        host_path: host_path.to_string_lossy().into_owned(),
        container_path: container_path.into(),
        uid_mappings: users.uids.clone(),
        gid_mappings: users.gids.clone(),
        ..Mount::default()
    }
}

fn owner(path: &Path) -> (u32, u32) {
    let metadata = std::fs::symlink_metadata(path).unwrap();
    (metadata.uid(), metadata.gid())
}

/// Whom a process belongs to, as the host sees it.
fn host_ids(pid: i64) -> (u32, u32) {
    owner(Path::new(&format!("/proc/{pid}/stat")))
}

#[tokio::test]
async fn ids_inside_are_others_outside() {
    let mut stack = Stack::start().await;
    let options = options(1);
    let host = FIRST + 65_536;
    let pod = pod(&mut stack, "ids", &options).await;
    let directory = stack.path("volume");
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("owned"), "by web\n").unwrap();
    std::fs::set_permissions(directory.join("owned"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(directory.join("owned"), Some(1000), Some(1001)).unwrap();
    let mounted = |config: &mut ContainerConfig| {
        security(config).namespace_options = Some(options.clone());
        config.mounts = vec![volume(&directory, "/deep/vol", &users(1))];
    };

    let script = "echo $(cat /proc/self/uid_map) / $(cat /proc/self/gid_map); id -u
        for path in / /etc /etc/hello /bin/busybox /tmp /dev /dev/null /dev/shm /dev/mqueue /data /deep /deep/vol /etc/hosts; do
            stat -c '%u:%g %n' $path
        done
        stat -c '%u:%g %n' /deep/vol/owned; cat /deep/vol/owned
        touch /deep/vol/new /tmp/new && chown 1000:1001 /deep/vol/new /tmp/new && stat -c '%u:%g' /deep/vol/new /tmp/new
        chown 1000 /etc/hello && stat -c %u:%g /etc/hello && cat /etc/hello
        echo shared > /dev/shm/x; echo again > /dev/stdout; hostname
        touch /deep/vol/root; chown 70000 /deep/vol/root 2>&1
        touch /tmp/done; exec sleep 1000";
    let mut config = container("main", &["sh", "-c", script]);
    mounted(&mut config);
    let main = stack.run(&pod, config).await;
    let pid = stack.pid(&main).await;
    assert_eq!(host_ids(pid), (host, host), "root of the pod is nobody on the host");
    let own = |process: &str, namespace: &str| std::fs::read_link(format!("/proc/{process}/ns/{namespace}")).unwrap();
    assert_ne!(own(&pid.to_string(), "user"), own("self", "user"));

    // A process executed later.
    let probe = "while ! [ -e /tmp/done ]; do sleep 0.05; done; id -u; cat /proc/self/uid_map; touch /deep/vol/by-exec; cat /dev/shm/x";
    let (code, output) = stack.exec(&main, &["sh", "-c", probe]).await.unwrap();
    let fields: Vec<&str> = output.split_whitespace().collect();
    assert_eq!((code, fields), (0, vec!["0", "0", &host.to_string(), "65536", "shared"]), "{output}");
    let log = stack.status(&main).await.log_path;
    let expected = format!(
        "0 {host} 65536 / 0 {host} 65536\n0\n0:0 /\n0:0 /etc\n0:0 /etc/hello\n0:0 /bin/busybox\n0:0 /tmp\n0:0 /dev\n\
         0:0 /dev/null\n0:0 /dev/shm\n0:0 /dev/mqueue\n0:0 /data\n0:0 /deep\n0:0 /deep/vol\n0:0 /etc/hosts\n\
         1000:1001 /deep/vol/owned\nby web\n1000:1001\n1000:1001\n1000:0\nhello from the image\nagain\nids\n\
         chown: /deep/vol/root: Invalid argument"
    );
    assert_eq!(messages(Path::new(&log)), expected);
    assert_eq!(owner(&directory.join("new")), (1000, 1001), "the host has the container's ids");
    assert_eq!((owner(&directory.join("root")), owner(&directory.join("by-exec"))), ((0, 0), (0, 0)));

    let as_web = "id -u; id -g; id -G; cat /deep/vol/owned /dev/shm/x; touch /deep/vol/web 2>&1; touch /tmp/web && stat -c %u:%g /tmp/web; echo out > /dev/stdout";
    let web = |config: &mut ContainerConfig| {
        mounted(config);
        security(config).run_as_user = Some(Int64Value { value: 1000 });
        security(config).supplemental_groups = vec![77];
    };
    let (_, output) = stack.script(&pod, "web", as_web, web).await;
    let expected = "1000\n1001\n1001 44 77\nby web\nshared\ntouch: /deep/vol/web: Permission denied\n1000:1001\nout";
    assert_eq!(output, expected);

    // Another pod's ids are others.
    let other_pod = self::pod(&mut stack, "other", &self::options(2)).await;
    let mut other = container("other", &["sleep", "1000"]);
    security(&mut other).namespace_options = Some(self::options(2));
    let other = stack.run(&other_pod, other).await;
    assert_eq!(host_ids(stack.pid(&other).await).0, FIRST + 2 * 65_536);
    // And what has none is as ever.
    let plain = stack.pod("plain").await;
    let (_, output) = stack.script(&plain, "plain", "echo $(cat /proc/self/uid_map)", |_| ()).await;
    assert_eq!(output, "0 0 4294967295");
}

#[tokio::test]
async fn rights_end_at_the_pods_namespaces() {
    let mut stack = Stack::start().await;
    let options = options(3);
    let pod = pod(&mut stack, "rights", &options).await;
    // Writes nothing new, should it succeed.
    let script = "exec 2>&1; mount -t tmpfs tmpfs /tmp && touch /tmp/x && echo mounted
        mount -t tmpfs tmpfs /proc/acpi 2>/dev/null; busybox umount /proc/kcore 2>/dev/null && echo unmasked
        v=$(cat /proc/sys/kernel/panic); echo $v > /proc/sys/kernel/panic || echo kept
        hostname changed && hostname
        v=$(cat /proc/sys/net/ipv4/ip_forward); echo $v > /proc/sys/net/ipv4/ip_forward && echo own network
        busybox ping -c 1 127.0.0.1 > /dev/null && echo pinged
        mknod /tmp/m c 1 3 2>&1; ls /dev/fd/ > /dev/null && echo x > /dev/null && echo null
        busybox chroot / true && echo chroot
        unshare -m true && echo nested";
    let all = |config: &mut ContainerConfig| {
        let context = security(config);
        context.namespace_options = Some(options.clone());
        context.masked_paths = vec!["/proc/kcore".into()];
        context.capabilities = Some(Capability {
            add_capabilities: vec!["SYS_ADMIN".into(), "NET_ADMIN".into()],
            ..Capability::default()
        });
    };
    let (_, output) = stack.script(&pod, "admin", script, all).await;
    let kept = "sh: can't create /proc/sys/kernel/panic: Permission denied\nkept";
    let expected = format!(
        "mounted\n{kept}\nchanged\nown network\npinged\nmknod: /tmp/m: Operation not permitted\nnull\nchroot\nnested"
    );
    assert_eq!(output, expected);

    let privileged = |config: &mut ContainerConfig| {
        security(config).namespace_options = Some(options.clone());
        security(config).privileged = true;
    };
    let disks = "exec 2>&1; unshare -m true && echo nested; for disk in /dev/vd? /dev/sd?; do
            [ -e $disk ] && head -c 1 $disk > /dev/null 2>&1 && echo read $disk; done
        v=$(cat /proc/sys/kernel/panic); echo $v > /proc/sys/kernel/panic || echo kept
        cd /sys/fs/cgroup; [ -e cgroup.procs ] || exit 0
        busybox mkdir below && echo 0 > below/cgroup.procs && echo managed; echo max > memory.max || echo limited";
    let (_, output) = stack.script(&pod, "privileged", disks, privileged).await;
    // Control groups of v1 cannot be given away.
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let managed = "\nmanaged\nsh: can't create memory.max: Permission denied\nlimited";
    assert_eq!(output, format!("nested\n{kept}{}", if unified { managed } else { "" }));
}

#[tokio::test]
async fn pods_with_users_have_all_the_rest() {
    let mut stack = Stack::start().await;
    // One pid namespace for all, terminals, images as volumes, a read-only root.
    let shared = NamespaceOption { pid: NamespaceMode::Pod.into(), ..options(4) };
    let shared_pod = pod(&mut stack, "shared", &shared).await;
    let with = |options: &NamespaceOption| {
        let options = options.clone();
        move |config: &mut ContainerConfig| security(config).namespace_options = Some(options)
    };
    let mut sleeper = container("sleeper", &["sleep", "4321"]);
    with(&shared)(&mut sleeper);
    let sleeper = stack.run(&shared_pod, sleeper).await;
    let script = "head -c 6 /proc/1/cmdline; echo; ps | grep -c 'sleep 432[1]'; kill $(ps | grep 'sleep 432[1]' | sed 's/^ *//; s/ .*//')";
    let (_, output) = stack.script(&shared_pod, "viewer", script, with(&shared)).await;
    assert_eq!(output, "/pause\n1");
    assert_eq!(stack.wait(&sleeper).await.exit_code, 143, "killed by another container of the pod");

    let own = options(5);
    let pod = pod(&mut stack, "own", &own).await;
    let script = "tty; stat -c %u:%g $(tty); [ -c /dev/console ] && echo console; touch /x; echo $(stat -c %u:%g /img/etc/passwd /img)";
    let image = Mount {
        container_path: "/img".into(),
        image: Some(ImageSpec { image: support::IMAGE.into(), ..ImageSpec::default() }),
        ..volume(Path::new(""), "/img", &users(5))
    };
    let change = |config: &mut ContainerConfig| {
        with(&own)(config);
        (config.tty, config.stdin) = (true, true);
        config.mounts = vec![image];
        security(config).readonly_rootfs = true;
    };
    let (_, output) = stack.script(&pod, "tty", script, change).await;
    let lines: Vec<&str> = output.lines().map(str::trim_end).collect();
    assert_eq!(lines, ["/dev/pts/0", "0:5", "console", "touch: /x: Read-only file system", "0:0 0:0"], "{output}");

    let mut main = container("main", &["sleep", "1234"]);
    with(&own)(&mut main);
    let main = stack.run(&pod, main).await;
    let target = NamespaceOption { pid: NamespaceMode::Target.into(), target_id: main.clone(), ..own.clone() };
    let (_, output) = stack.script(&pod, "debug", "ps; cat /proc/1/root/etc/hello", with(&target)).await;
    assert!(output.contains("sleep 1234") && output.contains("hello from the image"), "{output}");

    // The service loses its memory; the shim has not.
    stack.restart().await;
    let (_, output) = stack.exec(&main, &["cat", "/proc/self/uid_map"]).await.unwrap();
    assert!(output.contains(&(FIRST + 5 * 65_536).to_string()), "{output}");
    let (_, output) = stack.script(&pod, "late", "cat /proc/self/uid_map", with(&own)).await;
    assert!(output.contains(&(FIRST + 5 * 65_536).to_string()), "{output}");
}

#[tokio::test]
async fn what_cannot_be_is_refused_in_known_words() {
    let mut stack = Stack::start().await;
    let own = options(6);
    let pod = pod(&mut stack, "own", &own).await;
    let refused = stack.create(&pod, container("host", &["true"])).await.unwrap_err();
    assert_eq!(refused.message(), "user namespace config for sandbox is different from container");

    let mut config = container("user", &["true"]);
    security(&mut config).namespace_options = Some(own.clone());
    security(&mut config).run_as_user = Some(Int64Value { value: 65_536 });
    let id = stack.create(&pod, config.clone()).await.unwrap();
    let refused = stack.launch(&id).await.unwrap_err();
    assert!(refused.message().contains("to unmapped user in user namespace"), "{refused}");

    // A filesystem whose owners the kernel does not map.
    config.metadata.as_mut().unwrap().name = "volume".into();
    security(&mut config).run_as_user = None;
    config.mounts = vec![volume(Path::new("/proc/sys/net"), "/v", &users(6))];
    let id = stack.create(&pod, config.clone()).await.unwrap();
    let refused = stack.launch(&id).await.unwrap_err();
    assert!(
        refused.message().contains("failed to set MOUNT_ATTR_IDMAP on /proc/sys/net: invalid argument"),
        "{refused}"
    );
    assert!(refused.message().contains("(maybe the filesystem used doesn't support idmap mounts on this kernel?)"));

    config.metadata.as_mut().unwrap().name = "foreign".into();
    config.mounts = vec![volume(stack.base.path(), "/v", &users(7))];
    let id = stack.create(&pod, config).await.unwrap();
    let refused = stack.launch(&id).await.unwrap_err();
    assert!(refused.message().contains("idmap mounts must use the pod's user namespace: /v does not"), "{refused}");

    let status = stack.pods.status(StatusRequest::default()).await.unwrap().into_inner();
    assert!(status.runtime_handlers[0].features.unwrap().user_namespaces);
}
