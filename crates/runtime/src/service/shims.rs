//! The service's side of the conversation with shims.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Child;

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use tokio::io::unix::AsyncFd;

use crate::shim::protocol::{Reply, Request, Sandbox};
use crate::shim::{SOCKET, spawner};
use crate::sys::seqpacket;

/// One connection to a shim.
pub(crate) struct Session {
    socket: AsyncFd<OwnedFd>,
}

impl Session {
    /// Connects to the shim whose socket lies in `directory`.
    pub(crate) fn connect(directory: &Path) -> io::Result<Session> {
        Session::new(seqpacket::connect(directory, SOCKET)?)
    }

    fn new(socket: OwnedFd) -> io::Result<Session> {
        Ok(Session { socket: seqpacket::asynchronous(socket)? })
    }

    pub(crate) async fn send(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        loop {
            let mut guard = self.socket.writable().await?;
            match guard.try_io(|socket| seqpacket::send(socket.as_fd(), request, fds)) {
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    /// `None` when the shim is gone.
    pub(crate) async fn receive(&self) -> io::Result<Option<(Reply, Vec<OwnedFd>)>> {
        loop {
            let mut guard = self.socket.readable().await?;
            match guard.try_io(|socket| seqpacket::receive(socket.as_fd())) {
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    /// The next reply, with a shim's refusal as an error.
    pub(crate) async fn answer(&self) -> Result<(Reply, Vec<OwnedFd>)> {
        match self.receive().await.context("hear from the pod's shim")? {
            Some((Reply::Failed(message), _)) => bail!(message),
            Some(answer) => Ok(answer),
            None => bail!("the pod's shim is gone"),
        }
    }
}

/// Asks once and hangs up.
pub(crate) async fn call(directory: &Path, request: &Request) -> Result<Reply> {
    let session = Session::connect(directory).context("reach the pod's shim")?;
    session.send(request, &[]).await.context("ask the pod's shim")?;
    Ok(session.answer().await?.0)
}

/// Starts shims through a template process, which is started on first use and again if it dies.
pub(crate) struct Spawner {
    exe: PathBuf,
    empty: PathBuf,
    running: Mutex<Option<Template>>,
}

struct Template {
    child: Child,
    socket: OwnedFd,
}

impl Spawner {
    /// `empty` is an empty directory.
    pub(crate) fn new(exe: PathBuf, empty: PathBuf) -> Spawner {
        Spawner { exe, empty, running: Mutex::default() }
    }

    /// Starts the template ahead of the first pod.
    pub(crate) fn warm_up(&self) -> Result<()> {
        let mut running = self.running.lock();
        if running.is_none() {
            let (child, socket) = spawner::start(&self.exe, &self.empty)
                .with_context(|| format!("start the shim spawner from {}", self.exe.display()))?;
            *running = Some(Template { child, socket });
        }
        Ok(())
    }

    /// Forks a shim; answers with a session that already watches, and the infra process.
    pub(crate) async fn spawn(&self, sandbox: &Sandbox) -> Result<(Session, i32)> {
        let (ours, theirs) = seqpacket::pair()?;
        if self.ask(sandbox, &theirs).is_err() {
            self.retire();
            self.ask(sandbox, &theirs)?;
        }
        drop(theirs);
        let session = Session::new(ours)?;
        match session.answer().await? {
            (Reply::Ready { pause }, _) => Ok((session, pause)),
            (other, _) => bail!("unexpected answer from a new shim: {other:?}"),
        }
    }

    fn ask(&self, sandbox: &Sandbox, connection: &OwnedFd) -> Result<()> {
        self.warm_up()?;
        let running = self.running.lock();
        let template = running.as_ref().context("the shim spawner has stopped")?;
        seqpacket::send(template.socket.as_fd(), sandbox, &[connection.as_fd()]).context("ask the shim spawner")
    }

    fn retire(&self) {
        if let Some(Template { mut child, socket }) = self.running.lock().take() {
            drop(socket); // its end of file makes the template leave
            let _ = child.wait();
        }
    }
}

impl Drop for Spawner {
    fn drop(&mut self) {
        self.retire();
    }
}
