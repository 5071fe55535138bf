//! WebSockets as Kubernetes clients use them: channels in messages, or a tunnel for SPDY.
//!
//! Knows no meaning of channels. Text and binary messages are taken alike, as upstream; pings are
//! answered by the library whenever we read.

use std::collections::BTreeMap;
use std::pin::pin;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};

use super::outlet::{CHUNK, Drain, Item, Outlet, Queue, queue};
use super::session::LINGER;

/// Most bytes of a message: some clients send a whole file in one.
const MESSAGE: usize = 32 << 20;
/// Bytes received for one channel that nobody has read yet.
const RECEIVED: usize = 64 << 10;
/// The channel of signals about channels; its one signal is that the named channel has ended.
const SIGNALS: u8 = 255;

pub(super) enum Outgoing {
    Data { channel: u8, data: Bytes },
    Close,
}

impl Item for Outgoing {
    fn data(channel: u32, data: Bytes) -> Outgoing {
        Outgoing::Data { channel: channel as u8, data }
    }

    /// Only clients can end a channel.
    fn end(_: u32) -> Option<Outgoing> {
        None
    }
}

/// How channel and data make a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Codec {
    pub(super) base64: bool,
    /// The client may end its channels one by one.
    pub(super) closes: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Received {
    Data(u8, Bytes),
    End(u8),
}

impl Codec {
    fn encode(self, channel: u8, data: &[u8]) -> Message {
        if self.base64 {
            return Message::text(format!("{}{}", char::from(b'0' + channel), STANDARD.encode(data)));
        }
        let mut message = BytesMut::with_capacity(1 + data.len());
        message.put_u8(channel);
        message.put_slice(data);
        Message::Binary(message.freeze())
    }

    /// `None` for what means nothing.
    fn decode(self, mut message: Bytes) -> Option<Received> {
        let channel = *message.first()?;
        let data = message.split_off(1);
        if self.base64 {
            return Some(Received::Data(channel.checked_sub(b'0')?, STANDARD.decode(data).ok()?.into()));
        }
        match channel {
            SIGNALS if self.closes => data.first().copied().map(Received::End),
            channel => Some(Received::Data(channel, data)),
        }
    }
}

type Socket<S> = WebSocketStream<S>;

/// The server's end of a connection whose handshake is done.
pub(super) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(socket: S) -> Socket<S> {
    let config = WebSocketConfig::default().max_message_size(Some(MESSAGE)).max_frame_size(Some(MESSAGE));
    WebSocketStream::from_raw_socket(socket, Role::Server, Some(config)).await
}

/// The channels of a connection.
pub(super) struct Channels {
    readers: BTreeMap<u8, DuplexStream>,
    queue: Queue<Outgoing>,
}

impl Channels {
    /// What the client sends on a channel; once, and only for those named to [`connect`].
    pub(super) fn reader(&mut self, channel: u8) -> Option<DuplexStream> {
        self.readers.remove(&channel)
    }

    pub(super) fn writer(&self, channel: u8) -> Outlet<Outgoing> {
        self.queue.outlet(channel.into())
    }

    /// Says goodbye after all that is queued; the driver ends then.
    pub(super) fn close(self) {
        self.queue.finish(Outgoing::Close);
    }
}

/// The channels, and the driver that moves their bytes until either side closes. What the client sends
/// on channels that are not in `inputs` is dropped.
pub(super) fn connect<S>(
    socket: Socket<S>,
    codec: Codec,
    inputs: impl IntoIterator<Item = u8>,
) -> (Channels, impl Future<Output = ()>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (queue, drain) = queue();
    let pipe = |channel| {
        let (ours, theirs) = tokio::io::duplex(RECEIVED);
        ((channel, ours), (channel, theirs))
    };
    let (pipes, readers): (BTreeMap<_, _>, _) = inputs.into_iter().map(pipe).unzip();
    (Channels { readers, queue }, drive(socket, codec, pipes, drain))
}

async fn drive<S>(socket: Socket<S>, codec: Codec, pipes: BTreeMap<u8, DuplexStream>, drain: Drain<Outgoing>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (sink, stream) = socket.split();
    let mut reading = pin!(receive(stream, codec, pipes));
    tokio::select! {
        () = &mut reading => {}
        _ = send(sink, codec, drain) => {
            let _ = timeout(LINGER, reading).await;
        }
    }
}

async fn receive<S>(mut stream: SplitStream<Socket<S>>, codec: Codec, mut pipes: BTreeMap<u8, DuplexStream>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // A close frame is answered by reading on until the end.
    while let Some(Ok(message)) = stream.next().await {
        let ended = match payload(message).and_then(|message| codec.decode(message)) {
            Some(Received::Data(channel, data)) => match pipes.get_mut(&channel) {
                Some(pipe) => pipe.write_all(&data).await.is_err().then_some(channel),
                None => None,
            },
            Some(Received::End(channel)) => Some(channel),
            None => None,
        };
        ended.and_then(|channel| pipes.remove(&channel));
    }
}

fn payload(message: Message) -> Option<Bytes> {
    match message {
        Message::Binary(data) => Some(data),
        Message::Text(text) => Some(text.into()),
        _ => None,
    }
}

async fn send<S>(
    mut sink: SplitSink<Socket<S>, Message>,
    codec: Codec,
    mut drain: Drain<Outgoing>,
) -> tungstenite::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(first) = drain.next().await {
        let mut next = Some(first);
        while let Some(item) = next {
            let Outgoing::Data { channel, data } = item else { return sink.send(farewell()).await };
            sink.feed(codec.encode(channel, &data)).await?;
            next = drain.ready();
        }
        sink.flush().await?;
    }
    Ok(())
}

/// client-go takes any other code for a failure.
fn farewell() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))
}

/// The bytes inside the messages, and the driver that moves them.
pub(super) fn tunnel<S>(socket: Socket<S>) -> (DuplexStream, impl Future<Output = ()>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (inner, outer) = tokio::io::duplex(RECEIVED);
    let driver = async move {
        let (sink, stream) = socket.split();
        let (from_inner, to_inner) = tokio::io::split(outer);
        let (mut reading, mut writing) = (pin!(unwrap(stream, to_inner)), pin!(wrap(from_inner, sink)));
        tokio::select! {
            () = &mut reading => drop(timeout(LINGER, writing).await),
            _ = &mut writing => drop(timeout(LINGER, reading).await),
        }
    };
    (inner, driver)
}

async fn unwrap<S>(mut stream: SplitStream<Socket<S>>, mut inner: impl AsyncWrite + Unpin)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(Ok(message)) = stream.next().await {
        if let Message::Binary(data) = message {
            // Nobody reads any more when this fails; the farewell is on its way.
            let _ = inner.write_all(&data).await;
        }
    }
    let _ = inner.shutdown().await;
}

async fn wrap<S>(mut inner: impl AsyncRead + Unpin, mut sink: SplitSink<Socket<S>, Message>) -> tungstenite::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut chunk = BytesMut::with_capacity(CHUNK);
    while let Ok(1..) = inner.read_buf(&mut chunk).await {
        sink.send(Message::Binary(chunk.split().freeze())).await?;
        chunk.reserve(CHUNK);
    }
    sink.send(farewell()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_their_channel() {
        let plain = Codec { base64: false, closes: false };
        let closing = Codec { closes: true, ..plain };
        let base64 = Codec { base64: true, closes: false };
        assert_eq!(plain.encode(1, b"hi"), Message::binary(&b"\x01hi"[..]));
        assert_eq!(base64.encode(1, b"foo\n"), Message::text("1Zm9vCg=="));
        assert_eq!(base64.encode(3, b""), Message::text("3"));
        let data = |channel, data: &'static [u8]| Some(Received::Data(channel, Bytes::from_static(data)));
        for (codec, message, expected) in [
            (plain, &b"\x00ls\n"[..], data(0, b"ls\n")),
            (plain, b"\xff\x00", data(255, b"\x00")),
            (plain, b"", None),
            (closing, b"\xff\x00", Some(Received::End(0))),
            (closing, b"\xff", None),
            (base64, b"0Zm9vCg==", data(0, b"foo\n")),
            (base64, b"0not base64", None),
            (base64, b"!Zm9v", None),
        ] {
            assert_eq!(codec.decode(Bytes::from_static(message)), expected, "{codec:?} {message:?}");
        }
    }
}
