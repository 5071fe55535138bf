//! SPDY/3.1 as Kubernetes clients speak it: the client opens streams, both sides write to them.
//!
//! Knows frames and streams, not what they are for. The reader feeds each stream through a pipe of
//! fixed size and waits when it is full, which holds back the whole connection as it does upstream;
//! see [`frame`] for why there are no windows.

mod frame;
mod headers;

use std::collections::HashMap;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Weak};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::outlet::{CHUNK, ChannelState, Drain, Outlet, Queue, queue};
use super::session::LINGER;
#[cfg(test)]
pub(super) use frame::Encoder as FrameEncoder;
pub(super) use frame::Frame;
use frame::{CANCEL, Decoder, Encoder, PROTOCOL_ERROR, REFUSED_STREAM};
pub(super) use headers::Headers;

#[cfg(test)]
pub(super) type FrameDecoder<R> = Decoder<R>;

/// Streams open at once on one connection.
const STREAMS: usize = 1024;
/// Bytes received for one stream that nobody has read yet.
const RECEIVED: usize = 64 << 10;

/// A stream that the client has opened.
pub(super) struct Stream {
    pub(super) id: u32,
    pub(super) headers: Headers,
    pub(super) reader: DuplexStream,
    pub(super) writer: Outlet<Frame>,
}

/// Says why a stream with such headers is refused.
pub(super) type Check = fn(&Headers) -> Result<(), String>;

pub(super) struct Connection {
    incoming: mpsc::Receiver<Stream>,
    queue: Queue<Frame>,
}

impl Connection {
    /// The next stream; `None` when the client has gone.
    pub(super) async fn accept(&mut self) -> Option<Stream> {
        self.incoming.recv().await
    }

    /// Streams that come from now on are refused.
    pub(super) fn refuse_more(&mut self) {
        self.incoming.close();
    }

    /// Says goodbye after all that is queued; the driver ends then.
    pub(super) fn close(self) {
        self.queue.finish(Frame::GoAway { last: 0, status: 0 });
    }
}

/// The connection, and the driver that moves its bytes until either side closes.
pub(super) fn connect<S>(socket: S, check: Check) -> (Connection, impl Future<Output = ()>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (queue, drain) = queue();
    let (sender, incoming) = mpsc::channel(1);
    let inbound = Inbound { streams: HashMap::new(), last: 0, check, incoming: sender, queue: queue.clone() };
    (Connection { incoming, queue: queue.clone() }, drive(socket, inbound, drain, queue))
}

async fn drive<S: AsyncRead + AsyncWrite + Unpin>(
    socket: S,
    inbound: Inbound,
    drain: Drain<Frame>,
    queue: Queue<Frame>,
) {
    let (read, write) = tokio::io::split(socket);
    let mut reading = pin!(inbound.read(read));
    let mut writing = pin!(send(write, drain));
    tokio::select! {
        end = &mut reading => {
            if let Err(error) = end && error.kind() == io::ErrorKind::InvalidData {
                tracing::debug!("SPDY connection closed: {error}");
                queue.finish(Frame::GoAway { last: 0, status: PROTOCOL_ERROR });
                let _ = timeout(LINGER, writing).await;
            }
        }
        _ = &mut writing => {
            let _ = timeout(LINGER, reading).await;
        }
    }
}

/// Sends what is queued up to the farewell, several frames at a time.
async fn send(mut socket: impl AsyncWrite + Unpin, mut drain: Drain<Frame>) -> io::Result<()> {
    let mut encoder = Encoder::new();
    let mut buffer = BytesMut::with_capacity(2 * CHUNK);
    while let Some(frame) = drain.next().await {
        let mut next = Some(frame);
        let mut farewell = false;
        while let Some(frame) = next {
            encoder.encode(&frame, &mut buffer);
            farewell = matches!(frame, Frame::GoAway { .. });
            next = if farewell || buffer.len() >= CHUNK { None } else { drain.ready() };
        }
        socket.write_all(&buffer).await?;
        socket.flush().await?;
        buffer.clear();
        if farewell {
            break;
        }
    }
    socket.shutdown().await
}

struct Open {
    /// Gone when the client has ended its direction, or when nobody reads.
    pipe: Option<DuplexStream>,
    ended: bool,
    /// Lives as long as our direction.
    ours: Weak<ChannelState>,
}

impl Open {
    fn is_done(&self) -> bool {
        self.ended && self.ours.strong_count() == 0
    }
}

/// What the reader keeps.
struct Inbound {
    streams: HashMap<u32, Open>,
    last: u32,
    check: Check,
    incoming: mpsc::Sender<Stream>,
    queue: Queue<Frame>,
}

impl Inbound {
    async fn read(mut self, socket: impl AsyncRead + Unpin) -> io::Result<()> {
        let mut decoder = Decoder::new(socket);
        while let Some(frame) = decoder.next().await? {
            match frame {
                Frame::SynStream { id, fin, headers } => self.open(id, fin, headers).await,
                Frame::Data { id, fin, data } => self.data(id, fin, &data).await,
                Frame::Headers { id, fin: true, .. } => self.end(id),
                Frame::Reset { id, .. } => self.reset(id),
                // Odd ones are the client's; even ones would answer ours, and we send none.
                Frame::Ping(id) if !id.is_multiple_of(2) => self.queue.send(Frame::Ping(id)).await,
                // The client closes its socket when it is done with its streams.
                Frame::GoAway { .. } | Frame::Ping(_) | Frame::Headers { .. } => {}
                Frame::SynReply { .. } | Frame::WindowUpdate { .. } => {}
            }
        }
        Ok(())
    }

    async fn open(&mut self, id: u32, fin: bool, headers: Headers) {
        let refused = match self.refuse(id, &headers) {
            Some(status) => Some(status),
            None => {
                self.last = id;
                self.queue.send(Frame::SynReply { id, fin: false, headers: Headers::new() }).await;
                self.hand_out(id, fin, headers).await
            }
        };
        if let Some(status) = refused {
            self.queue.send(Frame::Reset { id, status }).await;
        }
    }

    fn refuse(&mut self, id: u32, headers: &Headers) -> Option<u32> {
        if id.is_multiple_of(2) || id <= self.last {
            return Some(PROTOCOL_ERROR);
        }
        if self.streams.len() >= STREAMS {
            self.streams.retain(|_, open| !open.is_done());
        }
        if self.streams.len() >= STREAMS || self.incoming.is_closed() {
            return Some(REFUSED_STREAM);
        }
        let error = (self.check)(headers).err()?;
        tracing::debug!("SPDY stream {id} refused: {error}");
        Some(CANCEL)
    }

    async fn hand_out(&mut self, id: u32, fin: bool, headers: Headers) -> Option<u32> {
        let (pipe, reader) = tokio::io::duplex(RECEIVED);
        let writer = self.queue.outlet(id);
        let ours = Arc::downgrade(writer.state());
        self.streams.insert(id, Open { pipe: (!fin).then_some(pipe), ended: fin, ours });
        let stream = Stream { id, headers, reader, writer };
        // Refused by dropping it: our direction ends.
        self.incoming.send(stream).await.is_err().then_some(REFUSED_STREAM)
    }

    async fn data(&mut self, id: u32, fin: bool, data: &[u8]) {
        if let Some(open) = self.streams.get_mut(&id)
            && let Some(pipe) = &mut open.pipe
            && pipe.write_all(data).await.is_err()
        {
            open.pipe = None;
        }
        if fin {
            self.end(id);
        }
    }

    fn end(&mut self, id: u32) {
        if let Some(open) = self.streams.get_mut(&id) {
            (open.pipe, open.ended) = (None, true);
            if open.is_done() {
                self.streams.remove(&id);
            }
        }
    }

    fn reset(&mut self, id: u32) {
        if let Some(state) = self.streams.remove(&id).and_then(|open| open.ours.upgrade()) {
            state.reset();
        }
    }
}
