//! Commands in running containers, attachment to their stdio, and connections into pods.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::unix::pipe;
use tokio_util::sync::CancellationToken;

use super::container::NotFound;
use super::records::ContainerRecord;
use super::shims::{Session, call};
use super::{Runtime, new_id};
use crate::container::spec::{Process, Spec};
use crate::shim::protocol::{Reply, Request};
use crate::streaming::{Duplex, StreamError, StreamIo, Streams};

/// Most that ExecSync returns of each stream, so that both fit into a message of 16 MiB; the rest is
/// read and dropped.
const OUTPUT_LIMIT: usize = 8 * 1024 * 1024 - 32 * 1024;
/// Bytes of output read at once.
const CHUNK: usize = 16 * 1024;
/// How long output may be silent after the command's end: a process it left behind may hold the pipe.
const DRAIN: Duration = Duration::from_secs(2);
/// How long a forwarded port takes a client's bytes after the pod has closed its side, as containerd.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What ExecSync answers.
pub(super) struct Output {
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
    pub(super) code: i32,
}

/// The command outlived its time and was killed.
#[derive(Debug, thiserror::Error)]
#[error("failed to exec in container: timeout {0:?} exceeded: context deadline exceeded")]
pub(super) struct TimedOut(Duration);

/// A started command; its shim tells the exit code on the session.
struct Running {
    session: Session,
    /// The terminal's master end.
    terminal: Option<OwnedFd>,
}

impl Running {
    async fn exit_code(&self) -> Result<i32> {
        match self.session.answer().await? {
            (Reply::Exited { code }, _) => Ok(code),
            (other, _) => bail!("unexpected answer from the shim: {other:?}"),
        }
    }
}

impl Runtime {
    /// The record of a container that runs; otherwise an error that says what it does instead.
    pub(super) fn running(&self, id: &str) -> Result<ContainerRecord> {
        let container = self.known_container(id)?;
        if !container.is_running() {
            bail!("container {id} is not running: it is in {} state", container.record().state().as_str_name());
        }
        Ok(container.record())
    }

    /// `None` among the descriptors is /dev/null; with a tty there are none.
    async fn start_exec(
        &self,
        id: &str,
        command: Vec<String>,
        tty: bool,
        stdio: [Option<OwnedFd>; 3],
    ) -> Result<Running> {
        let record = self.running(id)?;
        let state = self.pod_state(&record.pod);
        let spec = std::fs::read(state.join(format!("{}.json", record.id))).context("read the container's spec")?;
        let spec: Spec = serde_json::from_slice(&spec).context("parse the container's spec")?;
        let process = Process { args: command, tty, ..spec.process };
        let file = SpecFile::write(state.join(format!("exec-{}", new_id())), &process)?;
        let session = Session::connect(&state).context("reach the pod's shim")?;
        let request = Request::Exec {
            container: record.id.clone(),
            process: file.0.clone(),
            placement: self.cgroups.placement(&record.cgroup),
            tty,
            stdio: stdio.each_ref().map(Option::is_some),
        };
        let fds: Vec<_> = stdio.iter().flatten().map(AsFd::as_fd).collect();
        session.send(&request, &fds).await.context("ask the pod's shim")?;
        let (reply, mut fds) =
            session.answer().await.context("failed to exec in container: unable to start container process")?;
        match reply {
            Reply::Started { .. } => Ok(Running { session, terminal: fds.pop() }),
            other => bail!("unexpected answer from the shim: {other:?}"),
        }
    }

    /// Runs a command and collects its output. No limit in time if `timeout` is zero.
    pub(super) async fn exec_sync(&self, id: &str, command: Vec<String>, timeout: Duration) -> Result<Output> {
        let ((stdout, their_out), (stderr, their_err)) = (output_pipe()?, output_pipe()?);
        let running = self.start_exec(id, command, false, [None, Some(their_out), Some(their_err)]).await?;
        let (out, err) = (Kept::default(), Kept::default());
        let (into_out, into_err) = (out.clone(), err.clone());
        let ended = CancellationToken::new();
        let over = ended.clone();
        let collected = tokio::spawn(async move {
            tokio::join!(collect(stdout, into_out, &over), collect(stderr, into_err, &over));
        });
        let code = match timeout {
            Duration::ZERO => running.exit_code().await?,
            limit => match tokio::time::timeout(limit, running.exit_code()).await {
                Ok(code) => code?,
                Err(_) => {
                    running.session.send(&Request::KillExec, &[]).await.context("kill the command")?;
                    collected.abort();
                    return Err(TimedOut(limit).into());
                }
            },
        };
        ended.cancel();
        let _ = collected.await;
        let (stdout, stderr) = (std::mem::take(&mut *out.lock()), std::mem::take(&mut *err.lock()));
        Ok(Output { stdout, stderr, code })
    }
}

/// A spec on its way to a child; gone when the child has read it.
struct SpecFile(PathBuf);

impl SpecFile {
    fn write(path: PathBuf, process: &Process) -> Result<SpecFile> {
        std::fs::write(&path, serde_json::to_vec(process)?).with_context(|| format!("write {}", path.display()))?;
        Ok(SpecFile(path))
    }
}

impl Drop for SpecFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn output_pipe() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (ours, theirs) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    Ok((pipe::Receiver::from_owned_fd(ours)?, theirs))
}

fn input_pipe() -> io::Result<(OwnedFd, pipe::Sender)> {
    let (theirs, ours) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    Ok((theirs, pipe::Sender::from_owned_fd(ours)?))
}

/// What has been read so far.
type Kept = Arc<parking_lot::Mutex<Vec<u8>>>;

/// Reads what there is: nothing at the end, or when a command that has `ended` left no more behind. However late this
/// comes to run, what lies in the pipe is read first.
async fn next(source: &mut (impl AsyncRead + Unpin), chunk: &mut [u8], ended: &CancellationToken) -> usize {
    let silence = async {
        ended.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        biased;
        read = source.read(chunk) => read.unwrap_or(0),
        () = silence => 0,
    }
}

/// Reads to the end, keeps the beginning.
async fn collect(mut source: impl AsyncRead + Unpin, kept: Kept, ended: &CancellationToken) {
    let mut chunk = vec![0; CHUNK];
    while let length @ 1.. = next(&mut source, &mut chunk, ended).await {
        let mut kept = kept.lock();
        let room = OUTPUT_LIMIT - kept.len();
        kept.extend_from_slice(&chunk[..length.min(room)]);
    }
}

/// A terminal's master end. Reading fails with EIO when the last process has closed the other end.
struct Terminal(pipe::Receiver);

impl AsyncRead for Terminal {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.0).poll_read(context, buffer) {
            Poll::Ready(Err(error)) if error.raw_os_error() == Some(libc::EIO) => Poll::Ready(Ok(())),
            other => other,
        }
    }
}

/// Copies until the source ends; the sink is shut down then, which hands on the end of file.
async fn copy_if(from: Option<impl AsyncRead + Unpin>, to: Option<impl AsyncWrite + Unpin>) {
    if let (Some(from), Some(to)) = (from, to) {
        one_way(from, to).await;
    }
}

/// Copies a command's output, for as long as the client takes to read it.
async fn output(from: Option<impl AsyncRead + Unpin>, to: Option<impl AsyncWrite + Unpin>, ended: &CancellationToken) {
    let (Some(mut from), Some(mut to)) = (from, to) else { return };
    let mut chunk = vec![0; CHUNK];
    while let length @ 1.. = next(&mut from, &mut chunk, ended).await {
        if to.write_all(&chunk[..length]).await.is_err() || to.flush().await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}

/// Serves streams for the streaming server.
pub(super) struct Sessions(pub(super) Arc<Runtime>);

fn failure(error: anyhow::Error) -> StreamError {
    match error.downcast_ref::<NotFound>() {
        Some(missing) => StreamError::NotFound(missing.0.clone()),
        None => StreamError::Failed(format!("{error:#}")),
    }
}

#[async_trait]
impl Streams for Sessions {
    async fn exec(&self, container_id: &str, cmd: Vec<String>, tty: bool, io: StreamIo) -> Result<i32, StreamError> {
        let run = async {
            if tty {
                self.exec_terminal(container_id, cmd, io).await
            } else {
                self.exec_pipes(container_id, cmd, io).await
            }
        };
        run.await.map_err(failure)
    }

    async fn attach(&self, container_id: &str, io: StreamIo) -> Result<(), StreamError> {
        self.attach_streams(container_id, io).await.map_err(failure)
    }

    async fn port_forward(&self, sandbox_id: &str, port: u16, stream: Box<dyn Duplex>) -> Result<(), StreamError> {
        self.forward(sandbox_id, port, stream).await.map_err(failure)
    }
}

impl Sessions {
    async fn exec_pipes(&self, id: &str, command: Vec<String>, io: StreamIo) -> Result<i32> {
        let (their_in, stdin) = io.stdin.is_some().then(input_pipe).transpose()?.unzip();
        let (stdout, their_out) = io.stdout.is_some().then(output_pipe).transpose()?.unzip();
        let (stderr, their_err) = io.stderr.is_some().then(output_pipe).transpose()?.unzip();
        let running = self.0.start_exec(id, command, false, [their_in, their_out, their_err]).await?;
        let input = tokio::spawn(copy_if(io.stdin, stdin));
        let ended = CancellationToken::new();
        let over = ended.clone();
        let output = tokio::spawn(async move {
            tokio::join!(output(stdout, io.stdout, &over), output(stderr, io.stderr, &over));
        });
        let code = running.exit_code().await;
        input.abort();
        ended.cancel();
        let _ = output.await;
        code
    }

    async fn exec_terminal(&self, id: &str, command: Vec<String>, mut io: StreamIo) -> Result<i32> {
        let running = self.0.start_exec(id, command, true, [None, None, None]).await?;
        let master = running.terminal.as_ref().context("the shim sent no terminal")?;
        let read = Terminal(pipe::Receiver::from_owned_fd_unchecked(nonblocking(master)?)?);
        let write = pipe::Sender::from_owned_fd_unchecked(nonblocking(master)?)?;
        // The master stays open for resizing; the end of input is the user's to type.
        let input = tokio::spawn(async move {
            if let Some(mut from) = io.stdin {
                let mut write = write;
                let _ = tokio::io::copy(&mut from, &mut write).await;
            }
        });
        let ended = CancellationToken::new();
        let over = ended.clone();
        let output = tokio::spawn(async move { output(Some(read), io.stdout, &over).await });
        let exit = running.exit_code();
        tokio::pin!(exit);
        let code = loop {
            tokio::select! {
                code = &mut exit => break code,
                Some((columns, rows)) = io.resize.recv() => {
                    let _ = crate::sys::terminal::resize(master.as_fd(), columns, rows);
                }
            }
        };
        input.abort();
        ended.cancel();
        let _ = output.await;
        code
    }

    async fn attach_streams(&self, id: &str, mut io: StreamIo) -> Result<()> {
        let record = self.0.running(id)?;
        let state = self.0.pod_state(&record.pod);
        let wants_input = io.stdin.is_some() && record.config().stdin;
        let wants_errors = io.stderr.is_some() && !record.config().tty;
        let (their_in, stdin) = wants_input.then(input_pipe).transpose()?.unzip();
        let (stdout, their_out) = io.stdout.is_some().then(output_pipe).transpose()?.unzip();
        let (stderr, their_err) = wants_errors.then(output_pipe).transpose()?.unzip();
        let stdio = [their_in, their_out, their_err];
        let session = Session::connect(&state).context("reach the pod's shim")?;
        let wanted = stdio.each_ref().map(Option::is_some);
        let fds: Vec<_> = stdio.iter().flatten().map(AsFd::as_fd).collect();
        session.send(&Request::Attach { container: record.id.clone(), stdio: wanted }, &fds).await?;
        drop(stdio);
        let input = tokio::spawn(copy_if(io.stdin, stdin));
        let ended = CancellationToken::new();
        let over = ended.clone();
        let mut output = tokio::spawn(async move {
            tokio::join!(output(stdout, io.stdout, &over), output(stderr, io.stderr, &over));
        });
        let done = session.answer();
        tokio::pin!(done);
        let result = loop {
            tokio::select! {
                answer = &mut done => break answer.map(drop),
                // The client has gone, or wants no output any more.
                _ = &mut output, if wanted[1] || wanted[2] => {
                    input.abort();
                    return Ok(());
                }
                Some((columns, rows)) = io.resize.recv() => {
                    let _ = call(&state, &Request::Resize { container: record.id.clone(), columns, rows }).await;
                }
            }
        };
        input.abort();
        ended.cancel();
        let _ = output.await;
        result
    }

    async fn forward(&self, id: &str, port: u16, stream: Box<dyn Duplex>) -> Result<()> {
        let record = self.0.known_pod(id)?.record();
        if !record.ready {
            bail!("sandbox container {id:?} is not running");
        }
        relay(stream, connect(record.pause, port).await?).await;
        Ok(())
    }
}

/// Carries bytes both ways, until a little after the pod has said its last: a client whose channel cannot be closed one
/// way, as over WebSockets, learns of that by the end of the whole. Either side may just leave.
async fn relay(client: Box<dyn Duplex>, pod: TcpStream) {
    let (from_client, to_client) = tokio::io::split(client);
    let (from_pod, to_pod) = pod.into_split();
    let (inward, outward) = (one_way(from_client, to_pod), one_way(from_pod, to_client));
    tokio::pin!(inward, outward);
    tokio::select! {
        () = &mut inward => outward.await,
        () = &mut outward => drop(tokio::time::timeout(LAST_WORDS, inward).await),
    }
}

async fn one_way(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    let _ = tokio::io::copy(&mut from, &mut to).await;
    let _ = to.shutdown().await;
}

fn nonblocking(master: &OwnedFd) -> io::Result<OwnedFd> {
    let copy = master.try_clone()?;
    let flags = nix::fcntl::OFlag::from_bits_truncate(nix::fcntl::fcntl(&copy, nix::fcntl::FcntlArg::F_GETFL)?);
    nix::fcntl::fcntl(&copy, nix::fcntl::FcntlArg::F_SETFL(flags | nix::fcntl::OFlag::O_NONBLOCK))?;
    Ok(copy)
}

/// Connects to a port on the loopback of the pod's network namespace. The namespace belongs to a
/// thread, so a thread of its own enters it and ends.
async fn connect(pause: i32, port: u16) -> Result<TcpStream> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let enter = move || -> io::Result<std::net::TcpStream> {
        let namespace = std::fs::File::open(format!("/proc/{pause}/ns/net"))?;
        nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
        let v6 = |error| std::net::TcpStream::connect(("::1", port)).map_err(|_| error);
        std::net::TcpStream::connect(("127.0.0.1", port)).or_else(v6)
    };
    std::thread::Builder::new().name("port-forward".into()).spawn(move || sender.send(enter()))?;
    let stream = receiver
        .await?
        .with_context(|| format!("failed to connect to localhost:{port} inside namespace of the pod, IPv4 and IPv6"))?;
    stream.set_nonblocking(true)?;
    Ok(TcpStream::from_std(stream)?)
}
