//! Streaming of exec, attach and port-forward to clients: the seam between the CRI service, which
//! can run them, and the server, which speaks WebSocket and SPDY.
//!
//! Knows nothing of containers beyond their ids: whoever implements [`Streams`] does the work. CRI
//! answers `Exec` with a URL instead of a stream, which is why a server stands beside the service.

mod command;
mod handshake;
mod outlet;
mod portforward;
mod server;
mod session;
mod spdy;
mod tokens;
mod websocket;

#[cfg(test)]
mod tests;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

pub use server::{Limits, Server};

pub type BoxRead = Box<dyn AsyncRead + Send + Unpin>;
pub type BoxWrite = Box<dyn AsyncWrite + Send + Unpin>;

/// Both directions of one forwarded connection.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// The client's ends. With a tty there is no `stderr`: the terminal merges both.
pub struct StreamIo {
    pub stdin: Option<BoxRead>,
    pub stdout: Option<BoxWrite>,
    pub stderr: Option<BoxWrite>,
    /// Terminal sizes as (columns, rows).
    pub resize: mpsc::Receiver<(u16, u16)>,
}

/// Why a stream failed, in words for the client.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    NotRunning(String),
    #[error("{0}")]
    Failed(String),
}

/// What the streaming server needs done.
///
/// When the client leaves, `stdin` ends and writes fail with `BrokenPipe`; a future that has not
/// ended some seconds later is dropped. Neither is a reason to kill what runs in the container.
#[async_trait]
pub trait Streams: Send + Sync + 'static {
    /// Runs a command in a running container until it exits; the answer is its exit code.
    async fn exec(&self, container_id: &str, cmd: Vec<String>, tty: bool, io: StreamIo) -> Result<i32, StreamError>;
    /// Joins the container's own stdio until the container exits or the client leaves.
    async fn attach(&self, container_id: &str, io: StreamIo) -> Result<(), StreamError>;
    /// Connects to `port` on the pod's loopback and copies both ways until both ends are done.
    async fn port_forward(&self, sandbox_id: &str, port: u16, stream: Box<dyn Duplex>) -> Result<(), StreamError>;
}

/// What the token in an exec URL stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecRequest {
    pub container_id: String,
    pub cmd: Vec<String>,
    pub tty: bool,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

/// What the token in an attach URL stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachRequest {
    pub container_id: String,
    pub tty: bool,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

/// What the token in a port-forward URL stands for; `ports` may be empty (the client names them).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortForwardRequest {
    pub sandbox_id: String,
    pub ports: Vec<u16>,
}
