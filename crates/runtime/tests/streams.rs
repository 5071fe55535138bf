//! Exec, attach and port-forward as a streaming server asks for them.

mod support;

use std::sync::Arc;
use std::time::Duration;

use cri::v1::ContainerConfig;
use runtime::streaming::{StreamIo, Streams};
use support::{Stack, container};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;

/// A second service on the same pods as the stack's: shims answer both.
async fn streams(stack: &Stack) -> Arc<dyn Streams> {
    let base = stack.base.path();
    let config = runtime::Config {
        root: base.join("root"),
        state: base.join("state"),
        socket: base.join("second.sock"),
        cgroup_root: stack.cgroup_root.clone(),
        shim_exe: support::EXE.into(),
        ..runtime::Config::new("test", Arc::new(support::NoNetwork))
    };
    runtime::Service::open(config).await.unwrap().streams()
}

struct Ends {
    stdin: DuplexStream,
    stdout: DuplexStream,
    stderr: DuplexStream,
    resize: mpsc::Sender<(u16, u16)>,
}

fn ends() -> (StreamIo, Ends) {
    let ((stdin, their_in), (stdout, their_out), (stderr, their_err)) = (duplex(4096), duplex(4096), duplex(4096));
    let (resize, sizes) = mpsc::channel(4);
    let io = StreamIo {
        stdin: Some(Box::new(their_in)),
        stdout: Some(Box::new(their_out)),
        stderr: Some(Box::new(their_err)),
        resize: sizes,
    };
    (io, Ends { stdin, stdout, stderr, resize })
}

/// Reads until the text has come.
async fn expect(stream: &mut DuplexStream, text: &str) {
    let mut seen = String::new();
    let read = async {
        while !seen.contains(text) {
            let mut chunk = [0; 1024];
            let length = stream.read(&mut chunk).await.unwrap();
            assert!(length > 0, "the stream ended");
            seen.push_str(&String::from_utf8_lossy(&chunk[..length]));
        }
    };
    let outcome = tokio::time::timeout(Duration::from_secs(10), read).await;
    assert!(outcome.is_ok(), "{text:?} does not come in {seen:?}");
}

fn command(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

async fn sleeper(stack: &mut Stack, change: impl FnOnce(&mut ContainerConfig)) -> (String, String) {
    let pod = stack.pod("streams").await;
    let mut config = container("main", &["sleep", "1000"]);
    change(&mut config);
    let id = stack.run(&pod, config).await;
    (pod, id)
}

#[tokio::test]
async fn exec_copies_every_stream_and_the_code() {
    let mut stack = Stack::start().await;
    let (_, id) = sleeper(&mut stack, |_| {}).await;
    let streams = streams(&stack).await;
    let (io, mut ends) = ends();
    let script = command(&["sh", "-c", "read line; echo \"got $line\"; echo problem >&2; cat; exit 4"]);
    let run = tokio::spawn({
        let (streams, id) = (streams.clone(), id.clone());
        async move { streams.exec(&id, script, false, io).await }
    });
    ends.stdin.write_all(b"one\ntwo\n").await.unwrap();
    expect(&mut ends.stdout, "got one\ntwo\n").await;
    expect(&mut ends.stderr, "problem\n").await;
    drop(ends.stdin); // its end ends `cat`
    assert_eq!(run.await.unwrap().unwrap(), 4);

    let (io, _ends) = self::ends();
    let error = streams.exec(&id, command(&["nonesuch"]), false, io).await.unwrap_err();
    assert!(error.to_string().contains("executable file not found in $PATH"), "{error}");
}

#[tokio::test]
async fn exec_has_a_terminal_of_the_right_size() {
    let mut stack = Stack::start().await;
    let (_, id) = sleeper(&mut stack, |_| {}).await;
    let streams = streams(&stack).await;
    let (io, mut ends) = ends();
    let run = tokio::spawn(async move { streams.exec(&id, command(&["sh"]), true, io).await });
    ends.stdin.write_all(b"tty; echo term=$TERM\n").await.unwrap();
    expect(&mut ends.stdout, "/dev/pts/0\r\nterm=xterm\r\n").await;
    ends.resize.send((123, 45)).await.unwrap();
    ends.stdin
        .write_all(b"until [ \"$(stty size)\" = '45 123' ]; do sleep 0.05; done; echo resi''zed; exit 6\n")
        .await
        .unwrap();
    expect(&mut ends.stdout, "resized").await;
    assert_eq!(run.await.unwrap().unwrap(), 6);
}

#[tokio::test]
async fn attach_joins_the_containers_own_streams() {
    let mut stack = Stack::start().await;
    let pod = stack.pod("attached").await;
    let mut config = container("main", &["sh", "-c", "while read line; do echo \"got $line\"; done; echo end; exit 3"]);
    (config.stdin, config.stdin_once) = (true, true);
    let id = stack.run(&pod, config).await;
    let streams = streams(&stack).await;
    let (io, mut ends) = ends();
    let attached = tokio::spawn({
        let id = id.clone();
        async move { streams.attach(&id, io).await }
    });
    ends.stdin.write_all(b"hello\n").await.unwrap();
    expect(&mut ends.stdout, "got hello").await;
    drop(ends.stdin);
    expect(&mut ends.stdout, "end").await;
    attached.await.unwrap().unwrap();
    let status = stack.wait(&id).await;
    assert_eq!((status.exit_code, support::messages(status.log_path.as_ref()).as_str()), (3, "got hello\nend"));
}

#[tokio::test]
async fn a_container_with_a_terminal_takes_input_and_sizes() {
    let mut stack = Stack::start().await;
    let pod = stack.pod("terminal").await;
    let mut config = container("main", &["sh"]);
    (config.stdin, config.tty) = (true, true);
    let id = stack.run(&pod, config).await;
    let streams = streams(&stack).await;
    let (io, mut ends) = ends();
    let attached = tokio::spawn({
        let id = id.clone();
        async move { streams.attach(&id, io).await }
    });
    ends.resize.send((80, 25)).await.unwrap();
    ends.stdin.write_all(b"tty\n").await.unwrap();
    expect(&mut ends.stdout, "/dev/pts/0\r\n").await;
    ends.stdin
        .write_all(b"until [ \"$(stty size)\" = '25 80' ]; do sleep 0.05; done; echo si''zed; exit 2\n")
        .await
        .unwrap();
    expect(&mut ends.stdout, "sized").await;
    attached.await.unwrap().unwrap();
    assert_eq!(stack.wait(&id).await.exit_code, 2);
}

#[tokio::test]
async fn output_waits_for_a_slow_client_but_not_for_what_a_command_leaves_behind() {
    let mut stack = Stack::start().await;
    let (_, id) = sleeper(&mut stack, |_| {}).await;
    let streams = streams(&stack).await;
    let (io, mut ends) = ends();
    let script = "sleep 100000 & head -c 60000 /dev/zero"; // no more than a pipe holds: it does not wait for us
    let exec = tokio::spawn({
        let (streams, id) = (streams.clone(), id.clone());
        async move { streams.exec(&id, command(&["sh", "-c", script]), false, io).await }
    });
    // Longer than silence is suffered after the command's end.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let mut seen = Vec::new();
    ends.stdout.read_to_end(&mut seen).await.unwrap();
    assert_eq!(seen.len(), 60_000);
    exec.await.unwrap().unwrap();
}

#[tokio::test]
async fn ports_are_those_of_the_pods_loopback() {
    let mut stack = Stack::start().await;
    let (pod, id) = sleeper(&mut stack, |config| {
        let script = "while true; do echo bye | nc -l -p 8081; done & while true; do nc -l -p 8080 -e cat; done";
        config.command = command(&["sh", "-c", script]);
    })
    .await;
    let streams = streams(&stack).await;
    for port in [":1F90", ":1F91"] {
        let listens = format!("cat /proc/net/tcp /proc/net/tcp6 | grep {port}");
        while stack.exec(&id, &["sh", "-c", &listens]).await.unwrap().0 != 0 {}
    }
    let (mut ours, theirs) = duplex(4096);
    let forward = tokio::spawn({
        let (streams, pod) = (streams.clone(), pod.clone());
        async move { streams.port_forward(&pod, 8080, Box::new(theirs)).await }
    });
    ours.write_all(b"there and back").await.unwrap();
    expect(&mut ours, "there and back").await;
    drop(ours);
    forward.await.unwrap().unwrap();
    // A pod that says its last ends the whole, though the client could go on.
    let (mut ours, theirs) = duplex(16);
    streams.port_forward(&pod, 8081, Box::new(theirs)).await.unwrap();
    let mut last = String::new();
    ours.read_to_string(&mut last).await.unwrap();
    assert_eq!(last, "bye\n");
    let (_ours, theirs) = duplex(16);
    let error = streams.port_forward(&pod, 9, Box::new(theirs)).await.unwrap_err();
    assert!(error.to_string().contains("failed to connect to localhost:9"), "{error}");
}
