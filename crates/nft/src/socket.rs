//! The netlink socket: sends a batch, reads the kernel's answers, lists what is there.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::attribute::{self, Attributes};
use crate::batch::{Batch, Message};
use crate::{Family, Table};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const HEADER: usize = 16;
const ERROR: u16 = 2;
const DONE: u16 = 3;

const GET_TABLE: u16 = 1;
const GET_CHAIN: u16 = 4;

/// Ten thousand Services make a batch of some megabytes; it must fit the send buffer whole.
const SEND_BUFFER_BYTES: libc::c_int = 64 * 1024 * 1024;

/// The kernel refused a batch, or could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("nf_tables: {action} {name} of table {table}: {source}")]
    Refused { action: &'static str, table: String, name: String, source: io::Error },
    #[error("nf_tables: commit: {0}")]
    Commit(io::Error),
    #[error("nf_tables: {operation}: {source}")]
    Socket { operation: &'static str, source: io::Error },
}

/// A connection to nf_tables of the network namespace it was opened in.
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    pub fn open() -> Result<Self, Error> {
        let fd = sys::open(SEND_BUFFER_BYTES)
            .map_err(|source| Error::Socket { operation: "open netlink socket", source })?;
        Ok(Socket { fd, sequence: 0 })
    }

    /// Applies all of the batch or nothing. An empty batch is nothing to do.
    pub fn commit(&mut self, batch: &Batch) -> Result<(), Error> {
        if batch.is_empty() {
            return Ok(());
        }
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::with_capacity(batch.messages.iter().map(|m| m.body.0.len() + 32).sum());
        frame(&mut bytes, BATCH_BEGIN, REQUEST, first, 0, SUBSYSTEM, &[]);
        for (index, message) in batch.messages.iter().enumerate() {
            // The acknowledgement of the last message comes after the commit.
            let ack = if index + 1 == batch.messages.len() { ACK } else { 0 };
            let sequence = first.wrapping_add(1 + index as u32);
            let kind = SUBSYSTEM << 8 | message.kind;
            frame(&mut bytes, kind, REQUEST | ack | message.flags, sequence, message.family as u8, 0, &message.body.0);
        }
        let last = first.wrapping_add(batch.messages.len() as u32);
        self.sequence = last.wrapping_add(1);
        frame(&mut bytes, BATCH_END, REQUEST, self.sequence, 0, SUBSYSTEM, &[]);
        sys::send(self.fd.as_raw_fd(), &bytes).map_err(|source| Error::Socket { operation: "send batch", source })?;
        self.await_commit(first, last, &batch.messages)
    }

    fn await_commit(&mut self, first: u32, last: u32, messages: &[Message]) -> Result<(), Error> {
        let mut failure = None;
        loop {
            for (kind, sequence, payload) in split(&self.receive()?) {
                let code = payload.first_chunk::<4>().map_or(0, |code| i32::from_ne_bytes(*code));
                if kind != ERROR || sequence.wrapping_sub(first) > last.wrapping_sub(first) {
                    continue;
                }
                if code != 0 && failure.is_none() {
                    let source = io::Error::from_raw_os_error(-code);
                    let index = sequence.wrapping_sub(first).wrapping_sub(1) as usize;
                    failure = Some(match messages.get(index) {
                        Some(Message { what, .. }) => Error::Refused {
                            action: what.action,
                            table: what.table.clone(),
                            name: what.name.clone(),
                            source,
                        },
                        None => Error::Commit(source),
                    });
                }
                if sequence == last || sequence == first && code != 0 {
                    return failure.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// Names of the tables of a family.
    pub fn tables(&mut self, family: Family) -> Result<Vec<String>, Error> {
        self.dump(SUBSYSTEM << 8 | GET_TABLE, family, Attributes::default(), |attributes| {
            attributes.into_iter().find(|(kind, _)| *kind == 1).map(|(_, value)| attribute::text(value))
        })
    }

    /// Names of a table's chains.
    pub fn chains(&mut self, table: &Table) -> Result<Vec<String>, Error> {
        self.dump(
            SUBSYSTEM << 8 | GET_CHAIN,
            table.family,
            Attributes::default().string(1, &table.name),
            |attributes| {
                let field = |wanted| {
                    attributes.iter().find(|(kind, _)| *kind == wanted).map(|(_, value)| attribute::text(value))
                };
                (field(1)? == table.name).then(|| field(3)).flatten()
            },
        )
    }

    /// One request that changes something, of any subsystem.
    pub(crate) fn request(&mut self, kind: u16, family: Family, body: &Attributes) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = Vec::new();
        frame(&mut request, kind, REQUEST | ACK, self.sequence, family as u8, 0, &body.0);
        sys::send(self.fd.as_raw_fd(), &request)?;
        loop {
            for (kind, sequence, payload) in split(&sys::receive(self.fd.as_raw_fd())?) {
                if kind == ERROR && sequence == self.sequence {
                    return match payload.first_chunk::<4>().map_or(0, |code| i32::from_ne_bytes(*code)) {
                        0 => Ok(()),
                        code => Err(io::Error::from_raw_os_error(-code)),
                    };
                }
            }
        }
    }

    /// Asks for everything of a kind: subsystem and message.
    pub(crate) fn dump<T>(
        &mut self,
        kind: u16,
        family: Family,
        body: Attributes,
        read: impl Fn(Vec<(u16, &[u8])>) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = Vec::new();
        frame(&mut request, kind, REQUEST | DUMP, self.sequence, family as u8, 0, &body.0);
        sys::send(self.fd.as_raw_fd(), &request).map_err(|source| Error::Socket { operation: "list", source })?;
        let mut found = Vec::new();
        loop {
            for (kind, sequence, payload) in split(&self.receive()?) {
                if sequence != self.sequence {
                    continue;
                }
                match kind {
                    DONE => return Ok(found),
                    ERROR => {
                        let code = payload.first_chunk::<4>().map_or(0, |code| i32::from_ne_bytes(*code));
                        return Err(Error::Socket { operation: "list", source: io::Error::from_raw_os_error(-code) });
                    }
                    _ => found.extend(read(attribute::parse(payload.get(4..).unwrap_or_default()).collect())),
                }
            }
        }
    }

    fn receive(&mut self) -> Result<Vec<u8>, Error> {
        sys::receive(self.fd.as_raw_fd()).map_err(|source| Error::Socket { operation: "receive", source })
    }
}

/// Appends one netlink message: nlmsghdr, nfgenmsg, attributes.
fn frame(out: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, family: u8, resource: u16, body: &[u8]) {
    let length = (HEADER + 4 + body.len()) as u32;
    out.extend(length.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(flags.to_ne_bytes());
    out.extend(sequence.to_ne_bytes());
    out.extend(0u32.to_ne_bytes());
    out.extend([family, 0]);
    out.extend(resource.to_be_bytes());
    out.extend(body);
}

/// Received messages as (type, sequence, payload).
fn split(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<HEADER>()?;
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let sequence = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
        let payload = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, sequence, payload))
    })
}

mod sys {
    //! The system calls, for which nix has no NETLINK_NETFILTER with SO_SNDBUFFORCE.

    use super::*;

    pub(super) fn open(send_buffer: libc::c_int) -> io::Result<OwnedFd> {
        // SAFETY: plain system calls; the descriptor is owned from here on.
        let fd = unsafe {
            let fd = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_NETFILTER);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        for (option, value) in [(libc::SO_SNDBUFFORCE, send_buffer), (libc::SO_RCVBUFFORCE, 4 * 1024 * 1024)] {
            // SAFETY: the option's value is a c_int of that size. Where forcing is not permitted the
            // default stays, and large batches fail with a clear error.
            unsafe {
                let size = size_of::<libc::c_int>() as libc::socklen_t;
                libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const value).cast(), size);
            }
        }
        Ok(fd)
    }

    pub(super) fn send(fd: i32, bytes: &[u8]) -> io::Result<()> {
        // SAFETY: the buffer is valid for its length.
        match unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), 0) } {
            sent if sent < 0 => Err(io::Error::last_os_error()),
            sent if sent as usize == bytes.len() => Ok(()),
            _ => Err(io::Error::from(io::ErrorKind::WriteZero)),
        }
    }

    pub(super) fn receive(fd: i32) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0u8; 64 * 1024];
        loop {
            // SAFETY: the buffer is valid for its length.
            match unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), 0) } {
                received if received >= 0 => {
                    buffer.truncate(received as usize);
                    return Ok(buffer);
                }
                _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                _ => return Err(io::Error::last_os_error()),
            }
        }
    }
}
