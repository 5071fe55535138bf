//! A container's stdio: output to the log and to attached clients, input from them.
//!
//! Nothing here blocks and nothing is lost: while an attached client has bytes waiting, its stream is
//! not read, so that a slow client slows the container, as a terminal would.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;

use super::log::{Lines, Log};

/// Bytes read at a time.
const CHUNK: usize = 16 * 1024;
/// Chunks read from a stream whose process is dead: more than a pipe holds.
const LAST_CHUNKS: usize = 64;

pub(super) const STREAMS: [&str; 2] = ["stdout", "stderr"];

/// What to wait for, and whose it is.
pub(super) enum Interest {
    Output(usize),
    /// An attached client's stream (connection, stream).
    Sink(u64, usize),
    /// An attached client's stdin.
    Source(u64),
    /// The container's stdin.
    Input,
}

pub(super) struct Stdio {
    outputs: [Option<Output>; 2],
    input: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
    log: Option<Log>,
    attached: Vec<Attached>,
    /// Close the container's stdin when the first client that brought one leaves.
    stdin_once: bool,
}

struct Output {
    fd: OwnedFd,
    lines: Lines,
}

struct Attached {
    connection: u64,
    sinks: [Option<Sink>; 2],
    source: Option<OwnedFd>,
    /// Read from `source`, not yet taken by the container.
    unsent: Vec<u8>,
}

struct Sink {
    fd: OwnedFd,
    pending: Vec<u8>,
}

impl Stdio {
    pub(super) fn new(
        input: Option<OwnedFd>,
        outputs: [Option<OwnedFd>; 2],
        log: Option<Log>,
        stdin_once: bool,
    ) -> Stdio {
        let mut index = 0;
        let outputs = outputs.map(|fd| {
            let stream = STREAMS[index];
            index += 1;
            fd.map(|fd| Output { fd: nonblocking(fd), lines: Lines::new(stream) })
        });
        Stdio { outputs, input: input.map(nonblocking), terminal: None, log, attached: Vec::new(), stdin_once }
    }

    /// The container's terminal takes the place of pipes.
    pub(super) fn set_terminal(&mut self, master: OwnedFd) {
        let master = nonblocking(master);
        if let (Ok(output), Ok(input)) = (master.try_clone(), master.try_clone()) {
            self.outputs[0] = Some(Output { fd: output, lines: Lines::new(STREAMS[0]) });
            self.input = Some(input);
            self.terminal = Some(master);
        }
    }

    pub(super) fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        match &self.terminal {
            Some(master) => crate::sys::terminal::resize(master.as_fd(), columns, rows),
            None => Ok(()),
        }
    }

    pub(super) fn reopen_log(&mut self) -> io::Result<()> {
        self.log.as_mut().map_or(Ok(()), Log::reopen)
    }

    pub(super) fn attach(&mut self, connection: u64, source: Option<OwnedFd>, sinks: [Option<OwnedFd>; 2]) {
        let sinks = sinks.map(|fd| fd.map(|fd| Sink { fd: nonblocking(fd), pending: Vec::new() }));
        self.attached.push(Attached { connection, sinks, source: source.map(nonblocking), unsent: Vec::new() });
    }

    /// The client has left.
    pub(super) fn detach(&mut self, connection: u64) {
        let Some(position) = self.attached.iter().position(|attached| attached.connection == connection) else {
            return;
        };
        let left = self.attached.remove(position);
        if self.stdin_once && left.source.is_some() {
            self.input = None;
        }
    }

    /// Clients that have everything an exited container wrote.
    pub(super) fn finished(&self) -> Vec<u64> {
        let done = |attached: &&Attached| attached.sinks.iter().flatten().all(|sink| sink.pending.is_empty());
        self.attached.iter().filter(done).map(|attached| attached.connection).collect()
    }

    pub(super) fn interests(&self, mut add: impl FnMut(Interest, BorrowedFd, PollFlags)) {
        for (index, output) in self.outputs.iter().enumerate() {
            let blocked = self.sinks(index).any(|sink| !sink.pending.is_empty());
            if let (Some(output), false) = (output, blocked) {
                add_borrowed(&mut add, Interest::Output(index), &output.fd, PollFlags::POLLIN);
            }
        }
        let mut unsent = false;
        for attached in &self.attached {
            unsent |= !attached.unsent.is_empty();
            for (index, sink) in attached.sinks.iter().enumerate() {
                let Some(sink) = sink else { continue };
                let events = if sink.pending.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
                add_borrowed(&mut add, Interest::Sink(attached.connection, index), &sink.fd, events);
            }
            if let (Some(source), true) = (&attached.source, attached.unsent.is_empty()) {
                add_borrowed(&mut add, Interest::Source(attached.connection), source, PollFlags::POLLIN);
            }
        }
        if let (Some(input), true) = (&self.input, unsent) {
            add_borrowed(&mut add, Interest::Input, input, PollFlags::POLLOUT);
        }
    }

    fn sinks(&self, index: usize) -> impl Iterator<Item = &Sink> {
        self.attached.iter().filter_map(move |attached| attached.sinks[index].as_ref())
    }

    pub(super) fn ready(&mut self, interest: &Interest) {
        match interest {
            Interest::Output(index) => drop(self.pump(*index)),
            Interest::Sink(connection, index) => self.drain_sink(*connection, *index),
            Interest::Source(connection) => self.take_input(*connection),
            Interest::Input => self.give_input(),
        }
    }

    /// Moves one chunk; `false` when there is nothing to read.
    fn pump(&mut self, index: usize) -> bool {
        let Some(output) = &mut self.outputs[index] else { return false };
        let mut chunk = [0u8; CHUNK];
        match nix::unistd::read(&output.fd, &mut chunk) {
            Ok(0) | Err(Errno::EIO) => {
                if let Some(log) = &mut self.log {
                    output.lines.finish(log);
                }
                self.outputs[index] = None;
                false
            }
            Ok(length) => {
                if let Some(log) = &mut self.log {
                    output.lines.push(&chunk[..length], log);
                }
                for sink in self.attached.iter_mut().filter_map(|attached| attached.sinks[index].as_mut()) {
                    sink.pending.extend_from_slice(&chunk[..length]);
                }
                let connections: Vec<u64> = self.attached.iter().map(|attached| attached.connection).collect();
                connections.iter().for_each(|connection| self.drain_sink(*connection, index));
                true
            }
            Err(_) => false,
        }
    }

    /// Reads what a dead process has left in its pipes.
    pub(super) fn read_remains(&mut self) {
        for index in 0..STREAMS.len() {
            for _ in 0..LAST_CHUNKS {
                if !self.pump(index) {
                    break;
                }
            }
        }
    }

    fn find(&mut self, connection: u64) -> Option<&mut Attached> {
        self.attached.iter_mut().find(|attached| attached.connection == connection)
    }

    fn drain_sink(&mut self, connection: u64, index: usize) {
        let Some(attached) = self.find(connection) else { return };
        let Some(sink) = &mut attached.sinks[index] else { return };
        match write(&sink.fd, &mut sink.pending) {
            Ok(()) if !sink.pending.is_empty() || peer_is_there(&sink.fd) => {}
            _ => attached.sinks[index] = None,
        }
    }

    fn take_input(&mut self, connection: u64) {
        let mut chunk = [0u8; CHUNK];
        let Some(attached) = self.find(connection) else { return };
        let Some(source) = &attached.source else { return };
        match nix::unistd::read(source, &mut chunk) {
            Ok(0) => {
                attached.source = None;
                if self.stdin_once {
                    self.input = None;
                }
            }
            Ok(length) => {
                attached.unsent.extend_from_slice(&chunk[..length]);
                self.give_input();
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => attached.source = None,
        }
    }

    fn give_input(&mut self) {
        for attached in &mut self.attached {
            match &self.input {
                Some(input) if write(input, &mut attached.unsent).is_ok() => {}
                _ => {
                    attached.unsent.clear();
                    attached.source = None;
                }
            }
        }
    }
}

fn add_borrowed(
    add: &mut impl FnMut(Interest, BorrowedFd, PollFlags),
    interest: Interest,
    fd: &OwnedFd,
    events: PollFlags,
) {
    add(interest, fd.as_fd(), events);
}

/// Writes what the descriptor takes now and keeps the rest.
fn write(fd: &OwnedFd, pending: &mut Vec<u8>) -> nix::Result<()> {
    while !pending.is_empty() {
        match nix::unistd::write(fd, pending) {
            Ok(length) => drop(pending.drain(..length)),
            Err(Errno::EAGAIN) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
    *pending = Vec::new();
    Ok(())
}

fn peer_is_there(fd: &OwnedFd) -> bool {
    let mut poll = [nix::poll::PollFd::new(fd.as_fd(), PollFlags::empty())];
    let _ = nix::poll::poll(&mut poll, nix::poll::PollTimeout::ZERO);
    !poll[0].revents().is_some_and(|events| events.intersects(PollFlags::POLLERR | PollFlags::POLLHUP))
}

pub(super) fn nonblocking(fd: OwnedFd) -> OwnedFd {
    if let Ok(flags) = fcntl(&fd, FcntlArg::F_GETFL) {
        let _ = fcntl(&fd, FcntlArg::F_SETFL(OFlag::from_bits_truncate(flags) | OFlag::O_NONBLOCK));
    }
    fd
}
