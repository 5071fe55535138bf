//! Messages with descriptors over `SOCK_SEQPACKET`: one JSON value per packet, so there is nothing to
//! frame and a peer that dies is seen as end of file.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::unix::AsyncFd;

/// Largest packet, below the kernel's default send buffer (212,992 bytes).
pub(crate) const MAX_BYTES: usize = 128 * 1024;
/// A request carries at most stdin, stdout and stderr.
const MAX_FDS: usize = 3;

pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::sys::socket::socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Sends one message; fails rather than truncates.
pub(crate) fn send<T: Serialize>(socket: BorrowedFd, message: &T, fds: &[BorrowedFd]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    nix::sys::socket::sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(&bytes)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(())
}

/// Receives one message; `None` at end of file. `WouldBlock` on a non-blocking socket.
pub(crate) fn receive<T: DeserializeOwned>(socket: BorrowedFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let length = peek_length(socket)?;
    let mut buffer = vec![0; length.min(MAX_BYTES)];
    let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let message = nix::sys::socket::recvmsg::<()>(
        socket.as_raw_fd(),
        &mut slices,
        Some(&mut control),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for item in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = item {
            // SAFETY: the kernel installed these descriptors for us in this call.
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let received = message.bytes;
    if received == 0 {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&buffer[..received])?, fds)))
}

/// The size of the waiting packet, so that the shim's heap holds no full-size buffer.
fn peek_length(socket: BorrowedFd) -> io::Result<usize> {
    let mut byte = [0u8; 1];
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC;
    Ok(nix::sys::socket::recv(socket.as_raw_fd(), &mut byte, flags)?)
}

/// Listens at `directory/name`. The path goes through the directory's descriptor, because a socket
/// address holds 107 bytes only.
pub(crate) fn listen(directory: &Path, name: &str) -> io::Result<OwnedFd> {
    let socket = new_socket()?;
    let (_directory, address) = address(directory, name)?;
    nix::sys::socket::bind(socket.as_raw_fd(), &address)?;
    nix::sys::socket::listen(&socket, Backlog::new(64)?)?;
    Ok(socket)
}

pub(crate) fn connect(directory: &Path, name: &str) -> io::Result<OwnedFd> {
    let socket = new_socket()?;
    let (_directory, address) = address(directory, name)?;
    nix::sys::socket::connect(socket.as_raw_fd(), &address)?;
    Ok(socket)
}

pub(crate) fn accept(socket: BorrowedFd) -> io::Result<OwnedFd> {
    let raw = nix::sys::socket::accept4(socket.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: a new descriptor from accept4.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Hands a socket to tokio.
pub(crate) fn asynchronous(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    nix::fcntl::fcntl(&socket, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
    // SAFETY: an `OwnedFd` is the same open descriptor for as long as it lives.
    Ok(unsafe { AsyncFd::register(socket) }?)
}

fn new_socket() -> io::Result<OwnedFd> {
    Ok(nix::sys::socket::socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?)
}

fn address(directory: &Path, name: &str) -> io::Result<(std::fs::File, UnixAddr)> {
    let directory = std::fs::File::open(directory)?;
    let path = format!("/proc/self/fd/{}/{name}", directory.as_fd().as_raw_fd());
    let address = UnixAddr::new(Path::new(&path))?;
    Ok((directory, address))
}
