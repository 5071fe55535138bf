//! The shim itself: one poll loop over its children, their stdio and the service's requests.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sched::CloneFlags;
use nix::sys::signal::{SigHandler, SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::log::{Log, now};
use super::protocol::{ContainerState, Event, Exit, PidNamespace, Reply, Request, Sandbox, Start, State};
use super::streams::{Interest, Stdio, nonblocking};
use super::{SOCKET, pause};
use crate::cgroup::Placement;
use crate::container::init::{self, Exec, Init};
use crate::container::process::{Report, Stdio as ChildStdio};
use crate::container::spec::Identity;
use crate::container::users::UserNamespace;
use crate::sys::{process, seqpacket};

/// Becomes a pod's shim; `first` is the service's connection.
pub(crate) fn run(sandbox: Sandbox, first: OwnedFd) -> Infallible {
    process::set_title("isopod-shim");
    match Shim::start(sandbox) {
        Ok(mut shim) => {
            let pause = shim.pause.as_ref().map_or(0, |(pid, _)| pid.as_raw());
            shim.connect(first, true, Some(&Reply::Ready { pause }));
            loop {
                shim.turn();
            }
        }
        Err(message) => {
            let _ = seqpacket::send(first.as_fd(), &Reply::Failed(message), &[]);
            process::exit_now(1)
        }
    }
}

struct Shim {
    directory: PathBuf,
    listener: OwnedFd,
    signals: SignalFd,
    /// To come back after choosing a child's pid namespace.
    own_pid_namespace: OwnedFd,
    pause: Option<(Pid, OwnedFd)>,
    users: Option<UserNamespace>,
    containers: BTreeMap<String, Container>,
    connections: BTreeMap<u64, Connection>,
    starting: Vec<Starting>,
    execs: HashMap<Pid, Running>,
    next_connection: u64,
}

struct Container {
    pid: Pid,
    pidfd: OwnedFd,
    identity: Identity,
    started_at: i64,
    exit: Option<Exit>,
    stdio: Stdio,
}

struct Connection {
    socket: OwnedFd,
    watching: bool,
}

/// An executed process; its exit is told to the connection that asked for it.
struct Running {
    connection: u64,
    pidfd: OwnedFd,
}

/// A child on its way to its command.
struct Starting {
    report: OwnedFd,
    pid: Pid,
    connection: u64,
    /// `None` for an exec.
    container: Option<String>,
    identity: Identity,
    terminal: Option<OwnedFd>,
    failed: Option<String>,
}

/// What a descriptor in the poll set stands for.
enum Token {
    Signals,
    Listener,
    Connection(u64),
    Report(Pid),
    Stdio(String, Interest),
}

impl Shim {
    fn start(sandbox: Sandbox) -> Result<Shim, String> {
        let step = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
        sandbox.shim_placement.join().map_err(step("enter the shim's cgroup"))?;
        let signals = child_signals().map_err(|error| step("signalfd")(error.into()))?;
        let own = std::fs::File::open("/proc/self/ns/pid").map_err(step("open the pid namespace"))?;
        let pause = start_pause(&sandbox)?;
        let users = sandbox.users.map(|users| UserNamespace::of(pause.0.as_raw(), users)).transpose();
        let users = users.map_err(step("open the user namespace"))?;
        let listener = seqpacket::listen(&sandbox.directory, SOCKET).map_err(step("listen on the control socket"))?;
        let _ = std::fs::write("/proc/self/oom_score_adj", "-999");
        Ok(Shim {
            directory: sandbox.directory,
            listener,
            signals,
            own_pid_namespace: own.into(),
            pause: Some(pause),
            users,
            containers: BTreeMap::new(),
            connections: BTreeMap::new(),
            starting: Vec::new(),
            execs: HashMap::new(),
            next_connection: 0,
        })
    }

    /// Waits for something to do and does it.
    fn turn(&mut self) {
        let mut tokens = Vec::new();
        let ready = {
            let mut set: Vec<PollFd> = Vec::new();
            let mut add = |token: Token, fd: BorrowedFd, events: PollFlags| {
                // SAFETY: every descriptor in the set is owned by `self`, which is not touched until the
                // set is dropped at the end of this block.
                set.push(PollFd::new(unsafe { BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(&fd)) }, events));
                tokens.push(token);
            };
            add(Token::Signals, self.signals.as_fd(), PollFlags::POLLIN);
            add(Token::Listener, self.listener.as_fd(), PollFlags::POLLIN);
            for (id, connection) in &self.connections {
                add(Token::Connection(*id), connection.socket.as_fd(), PollFlags::POLLIN);
            }
            for starting in &self.starting {
                add(Token::Report(starting.pid), starting.report.as_fd(), PollFlags::POLLIN);
            }
            for (id, container) in &self.containers {
                container.stdio.interests(|interest, fd, events| add(Token::Stdio(id.clone(), interest), fd, events));
            }
            let _ = nix::poll::poll(&mut set, PollTimeout::NONE);
            set.iter().map(|fd| fd.revents().is_some_and(|events| !events.is_empty())).collect::<Vec<_>>()
        };
        for (token, ready) in tokens.into_iter().zip(ready) {
            if ready {
                self.handle(token);
            }
        }
        self.release_attached();
    }

    fn handle(&mut self, token: Token) {
        match token {
            Token::Signals => {
                while let Ok(Some(_)) = self.signals.read_signal() {}
                self.reap();
            }
            Token::Listener => {
                if let Ok(socket) = seqpacket::accept(self.listener.as_fd()) {
                    self.connect(socket, false, None);
                }
            }
            Token::Connection(id) => self.request(id),
            Token::Report(pid) => self.report(pid),
            Token::Stdio(id, interest) => {
                if let Some(container) = self.containers.get_mut(&id) {
                    container.stdio.ready(&interest);
                }
            }
        }
    }

    fn connect(&mut self, socket: OwnedFd, watching: bool, greeting: Option<&Reply>) {
        let id = self.next_connection;
        self.next_connection += 1;
        self.connections.insert(id, Connection { socket: nonblocking(socket), watching });
        if let Some(greeting) = greeting {
            self.reply(id, greeting, &[]);
        }
    }

    /// A service that does not read loses its connection, never the shim's time.
    fn reply(&mut self, connection: u64, reply: &Reply, fds: &[BorrowedFd]) {
        let Some(target) = self.connections.get(&connection) else { return };
        if seqpacket::send(target.socket.as_fd(), reply, fds).is_err() {
            self.disconnect(connection);
        }
    }

    fn disconnect(&mut self, connection: u64) {
        self.connections.remove(&connection);
        self.containers.values_mut().for_each(|container| container.stdio.detach(connection));
    }

    fn publish(&mut self, event: &Event) {
        let watchers: Vec<u64> = self.connections.iter().filter(|(_, c)| c.watching).map(|(id, _)| *id).collect();
        watchers.into_iter().for_each(|id| self.reply(id, &Reply::Event(event.clone()), &[]));
    }

    fn request(&mut self, id: u64) {
        let Some(connection) = self.connections.get(&id) else { return };
        match seqpacket::receive::<Request>(connection.socket.as_fd()) {
            Ok(Some((request, fds))) => match self.serve(id, request, fds) {
                Ok(Some(reply)) => self.reply(id, &reply, &[]),
                Ok(None) => {}
                Err(message) => self.reply(id, &Reply::Failed(message), &[]),
            },
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.reply(id, &Reply::Failed(format!("unknown request: {error}")), &[]);
            }
            Ok(None) | Err(_) => self.disconnect(id),
        }
    }

    /// `None` when the answer comes later.
    fn serve(&mut self, id: u64, request: Request, fds: Vec<OwnedFd>) -> Result<Option<Reply>, String> {
        match request {
            Request::Watch => {
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.watching = true;
                }
                return Ok(Some(Reply::State(self.state())));
            }
            Request::Start(start) => return self.start_container(id, start).map(|()| None),
            Request::Exec { container, process, placement, tty, stdio } => {
                let stdio = if tty { ChildStdio::Terminal } else { ChildStdio::Descriptors(distribute(stdio, fds)) };
                return self.start_exec(id, &container, process, placement, stdio).map(|()| None);
            }
            Request::KillExec => {
                for running in self.execs.values().filter(|running| running.connection == id) {
                    let _ = process::signal(running.pidfd.as_fd(), libc::SIGKILL);
                }
            }
            Request::Signal { container, signal } => {
                let container = self.running(&container)?;
                process::signal(container.pidfd.as_fd(), signal)
                    .map_err(|error| format!("send signal {signal}: {error}"))?;
            }
            Request::Attach { container, stdio } => {
                let container = self.running(&container)?;
                let [source, out, err] = distribute(stdio, fds);
                container.stdio.attach(id, source, [out, err]);
                return Ok(None);
            }
            Request::Resize { container, columns, rows } => {
                let stdio = &self.running(&container)?.stdio;
                stdio.resize(columns, rows).map_err(|error| format!("resize the terminal: {error}"))?;
            }
            Request::ReopenLog { container } => {
                let container = self.running(&container)?;
                container.stdio.reopen_log().map_err(|error| format!("reopen the log: {error}"))?;
            }
            Request::Remove { container } => {
                if self.containers.get(&container).is_some_and(|container| container.exit.is_none()) {
                    return Err(format!("container {container} is running"));
                }
                self.containers.remove(&container);
            }
            Request::Stop => self.stop(id),
        }
        Ok(Some(Reply::Done))
    }

    fn running(&mut self, id: &str) -> Result<&mut Container, String> {
        let container = self.containers.get_mut(id).filter(|container| container.exit.is_none());
        container.ok_or_else(|| format!("container {id} is not running"))
    }

    fn state(&self) -> State {
        let containers = self.containers.iter().map(|(id, container)| ContainerState {
            container: id.clone(),
            pid: container.pid.as_raw(),
            identity: container.identity.clone(),
            started_at: container.started_at,
            exit: container.exit,
        });
        State {
            shim: Pid::this().as_raw(),
            pause: self.pause.as_ref().map(|(pid, _)| pid.as_raw()),
            containers: containers.collect(),
        }
    }

    fn start_container(&mut self, connection: u64, start: Start) -> Result<(), String> {
        if self.containers.contains_key(&start.container) {
            return Err(format!("container {} has been started already", start.container));
        }
        let (_, pause) = self.pause.as_ref().ok_or("the pod's infra process has died")?;
        let fail = |error: io::Error| format!("start container {}: {error}", start.container);
        let pause = pause.try_clone().map_err(fail)?;
        let log = start.log.as_deref().map(Log::open).transpose();
        let log =
            log.map_err(|error| format!("open log {:?}: {error}", start.log.as_deref().unwrap_or("".as_ref())))?;
        let (ours, theirs) = if start.tty { ([None, None, None], None) } else { pipes(start.stdin).map_err(fail)? };
        let (report, their_report) = seqpacket::pair().map_err(fail)?;
        let mut join = CloneFlags::empty();
        join.set(CloneFlags::CLONE_NEWNET, !start.host_network);
        join.set(CloneFlags::CLONE_NEWUTS, !start.host_network);
        join.set(CloneFlags::CLONE_NEWIPC, !start.host_ipc);
        let child = Init {
            spec: start.spec,
            placement: start.placement.clone(),
            pause,
            join,
            users: self.users().map_err(fail)?,
            stdio: theirs.map_or(ChildStdio::Terminal, ChildStdio::Descriptors),
            report: their_report,
        };
        let own = if start.pid_namespace == PidNamespace::Own { CloneFlags::CLONE_NEWPID } else { CloneFlags::empty() };
        let target = self.pid_namespace(&start.pid_namespace)?;
        let flags = CloneFlags::CLONE_NEWNS | own;
        let spawned = self.spawn(flags, &start.placement, target, || init::become_container(child));
        let (pid, pidfd) = spawned.map_err(fail)?;
        let [input, out, err] = ours;
        let stdio = Stdio::new(input, [out, err], log, start.stdin_once);
        let identity = Identity::default();
        let container = Container { pid, pidfd, identity, started_at: now(), exit: None, stdio };
        self.containers.insert(start.container.clone(), container);
        self.await_report(report, pid, connection, Some(start.container));
        Ok(())
    }

    fn start_exec(
        &mut self,
        connection: u64,
        container: &str,
        command: PathBuf,
        placement: Placement,
        stdio: ChildStdio,
    ) -> Result<(), String> {
        let fail = |error: io::Error| format!("exec in container {container}: {error}");
        let target = self.running(container)?.pidfd.try_clone().map_err(fail)?;
        let (report, their_report) = seqpacket::pair().map_err(fail)?;
        let member = target.try_clone().map_err(fail)?;
        let child = Exec {
            process: command,
            placement: placement.clone(),
            container: member,
            users: self.users().map_err(fail)?,
            stdio,
            report: their_report,
        };
        let spawned = self.spawn(CloneFlags::empty(), &placement, Some(target), || init::become_exec(child));
        let (pid, pidfd) = spawned.map_err(fail)?;
        self.execs.insert(pid, Running { connection, pidfd });
        self.await_report(report, pid, connection, None);
        Ok(())
    }

    fn users(&self) -> io::Result<Option<UserNamespace>> {
        self.users.as_ref().map(UserNamespace::try_clone).transpose()
    }

    /// The process whose pid namespace a child is to be born in.
    fn pid_namespace(&mut self, namespace: &PidNamespace) -> Result<Option<OwnedFd>, String> {
        let fd = match namespace {
            PidNamespace::Own | PidNamespace::Host => return Ok(None),
            PidNamespace::Pod => self.pause.as_ref().map(|(_, pidfd)| pidfd.try_clone()),
            PidNamespace::Target(id) => Some(self.running(id)?.pidfd.try_clone()),
        };
        fd.transpose().map_err(|error| format!("join pid namespace: {error}"))
    }

    fn spawn(
        &self,
        flags: CloneFlags,
        placement: &Placement,
        pid_namespace: Option<OwnedFd>,
        child: impl FnOnce() -> Infallible,
    ) -> io::Result<(Pid, OwnedFd)> {
        let cgroup = placement.birthplace()?;
        if let Some(target) = &pid_namespace {
            nix::sched::setns(target, CloneFlags::CLONE_NEWPID)?;
        }
        let spawned = process::spawn(flags.bits(), cgroup.as_ref().map(AsFd::as_fd), child);
        if pid_namespace.is_some() {
            nix::sched::setns(&self.own_pid_namespace, CloneFlags::CLONE_NEWPID)?;
        }
        spawned
    }

    fn await_report(&mut self, report: OwnedFd, pid: Pid, connection: u64, container: Option<String>) {
        let report = nonblocking(report);
        let identity = Identity::default();
        self.starting.push(Starting { report, pid, connection, container, identity, terminal: None, failed: None });
    }

    /// Hears from a starting child; the end of its reports means that its command runs.
    fn report(&mut self, pid: Pid) {
        let Some(position) = self.starting.iter().position(|starting| starting.pid == pid) else { return };
        loop {
            let starting = &mut self.starting[position];
            match seqpacket::receive::<Report>(starting.report.as_fd()) {
                Ok(Some((Report::Identity(identity), _))) => starting.identity = identity,
                Ok(Some((Report::Terminal, mut fds))) => starting.terminal = fds.pop(),
                Ok(Some((Report::Failed(message), _))) => starting.failed = Some(message),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(None) | Err(_) => break,
            }
        }
        let started = self.starting.swap_remove(position);
        self.started(started);
    }

    fn started(&mut self, starting: Starting) {
        let Starting { pid, connection, container, identity, terminal, failed, .. } = starting;
        if let Some(message) = failed {
            match &container {
                Some(id) => drop(self.containers.remove(id)),
                None => drop(self.execs.remove(&pid)),
            }
            return self.reply(connection, &Reply::Failed(message), &[]);
        }
        let reply = Reply::Started { pid: pid.as_raw(), identity: identity.clone() };
        let Some(container) = container.and_then(|id| self.containers.get_mut(&id)) else {
            let fds: Vec<BorrowedFd> = terminal.iter().map(AsFd::as_fd).collect();
            return self.reply(connection, &reply, &fds);
        };
        container.identity = identity;
        container.started_at = now();
        if let Some(master) = terminal {
            container.stdio.set_terminal(master);
        }
        self.reply(connection, &reply, &[]);
    }

    fn reap(&mut self) {
        loop {
            let (pid, code) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            self.report(pid); // a dead child has no more to say: this concludes its start
            self.exited(pid, code);
        }
    }

    fn exited(&mut self, pid: Pid, code: i32) {
        if self.pause.as_ref().is_some_and(|(pause, _)| *pause == pid) {
            self.pause = None;
            return self.publish(&Event::PauseDied);
        }
        if let Some(running) = self.execs.remove(&pid) {
            return self.reply(running.connection, &Reply::Exited { code }, &[]);
        }
        let Some((id, container)) = self.containers.iter_mut().find(|(_, container)| container.pid == pid) else {
            return;
        };
        container.stdio.read_remains();
        let exit = Exit { code, at: now() };
        container.exit = Some(exit);
        let event = Event::Exited { container: id.clone(), exit };
        self.publish(&event);
    }

    /// Clients of exited containers go when they have everything.
    fn release_attached(&mut self) {
        let exited = self.containers.values_mut().filter(|container| container.exit.is_some());
        let finished: Vec<u64> = exited.flat_map(|container| container.stdio.finished()).collect();
        for connection in finished {
            self.reply(connection, &Reply::Done, &[]);
            self.disconnect(connection);
        }
    }

    fn stop(&mut self, connection: u64) {
        for container in self.containers.values().filter(|container| container.exit.is_none()) {
            let _ = process::signal(container.pidfd.as_fd(), libc::SIGKILL);
        }
        if let Some((_, pause)) = &self.pause {
            let _ = process::signal(pause.as_fd(), libc::SIGKILL);
        }
        let _ = std::fs::remove_file(self.directory.join(SOCKET));
        self.reply(connection, &Reply::Done, &[]);
        process::exit_now(0)
    }
}

/// Hands the received descriptors to the streams that asked for one, in order.
fn distribute(wanted: [bool; 3], fds: Vec<OwnedFd>) -> [Option<OwnedFd>; 3] {
    let mut fds = fds.into_iter();
    wanted.map(|wanted| if wanted { fds.next() } else { None })
}

type Triple = [Option<OwnedFd>; 3];

/// Our ends and the child's of stdin (if wanted), stdout and stderr.
fn pipes(stdin: bool) -> io::Result<(Triple, Option<Triple>)> {
    let pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC);
    let (their_in, our_in) = if stdin { pipe().map(|(read, write)| (Some(read), Some(write)))? } else { (None, None) };
    let ((our_out, their_out), (our_err, their_err)) = (pipe()?, pipe()?);
    Ok(([our_in, Some(our_out), Some(our_err)], Some([their_in, Some(their_out), Some(their_err)])))
}

fn child_signals() -> nix::Result<SignalFd> {
    // SAFETY: the default disposition installs no handler; the spawner had it ignored.
    unsafe { nix::sys::signal::signal(Signal::SIGCHLD, SigHandler::SigDfl) }?;
    let set: SigSet = [Signal::SIGCHLD].into_iter().collect();
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

fn start_pause(sandbox: &Sandbox) -> Result<(Pid, OwnedFd), String> {
    let fail = |error: io::Error| format!("start the infra process: {error}");
    let (report, theirs) = seqpacket::pair().map_err(fail)?;
    let cgroup = sandbox.placement.birthplace().map_err(fail)?;
    let flags = pause::namespaces(sandbox).bits();
    let pause = process::spawn(flags, cgroup.as_ref().map(AsFd::as_fd), || pause::become_pause(sandbox, theirs));
    let (pid, pidfd) = pause.map_err(fail)?;
    let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), "-998");
    if let Some(users) = &sandbox.users {
        let given = users.give(pid.as_raw()).and_then(|()| seqpacket::send(report.as_fd(), &(), &[]));
        if let Err(error) = given {
            let _ = process::signal(pidfd.as_fd(), libc::SIGKILL); // it would wait for ever
            return Err(format!("give the pod's user namespace its ids: {error}"));
        }
    }
    match seqpacket::receive::<Report>(report.as_fd()).map_err(fail)? {
        Some((Report::Failed(message), _)) => Err(message),
        _ => Ok((pid, pidfd)),
    }
}
