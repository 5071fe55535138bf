//! An upgraded connection from end to end: bytes both ways, WebSocket frames one by one.
//!
//! What the bytes mean is the ends' business, but where a frame ends is kept: each goes to the client in a write, and so
//! in a TLS record, of its own. Clients that wait for the socket before they look into their TLS layer (Python's) would
//! find a frame that shares a record with the one before only when more comes, and after the last nothing does.

use std::io;

use bytes::BytesMut;
use http::header::UPGRADE;
use http::{HeaderMap, HeaderValue};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};

/// Bytes read at once.
const CHUNK: usize = 16 << 10;

pub fn is_websocket(headers: &HeaderMap) -> bool {
    let is_websocket = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"websocket");
    headers.get(UPGRADE).is_some_and(is_websocket)
}

/// Ends when both sides have closed, or one breaks; each closes its half first.
pub async fn run(client: OnUpgrade, server: OnUpgrade, websocket: bool) {
    let (client, server) = match tokio::try_join!(client, server) {
        Ok(both) => both,
        Err(error) => return tracing::debug!(%error, "an upgrade was not completed"),
    };
    let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
    let ended = match websocket {
        false => tokio::io::copy_bidirectional(&mut client, &mut server).await.map(drop),
        true => {
            let ((from_client, to_client), (from_server, to_server)) = (split(client), split(server));
            tokio::try_join!(bytes(from_client, to_server), frames(from_server, to_client)).map(drop)
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an upgraded connection broke");
    }
}

async fn bytes(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    tokio::io::copy(&mut from, &mut to).await?;
    to.shutdown().await
}

async fn frames(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    let mut buffer = BytesMut::with_capacity(CHUNK);
    // Of the frame whose beginning has been written.
    let mut left = 0;
    while from.read_buf(&mut buffer).await? > 0 {
        while let Some(length) = Some(left).filter(|left| *left > 0).or_else(|| frame_length(&buffer)) {
            let piece =
                buffer.split_to(usize::try_from(length).map_or(buffer.len(), |length| length.min(buffer.len())));
            if piece.is_empty() {
                break;
            }
            to.write_all(&piece).await?;
            left = length - piece.len() as u64;
        }
        to.flush().await?;
        buffer.reserve(CHUNK);
    }
    to.write_all(&buffer).await?;
    to.shutdown().await
}

/// Of header and payload (RFC 6455, 5.2), once enough of the header is there.
fn frame_length(bytes: &[u8]) -> Option<u64> {
    let lengths = *bytes.get(1)?;
    let mask: u64 = if lengths & 0x80 == 0 { 0 } else { 4 };
    let (header, payload) = match lengths & 0x7f {
        126 => (4, u64::from(u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?))),
        127 => (10, u64::from_be_bytes(*bytes.get(2..)?.first_chunk()?)),
        short => (2, u64::from(short)),
    };
    Some((header + mask).saturating_add(payload))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    /// Remembers each write.
    #[derive(Default)]
    struct Writes(Vec<Vec<u8>>);

    impl AsyncWrite for &mut Writes {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
            self.0.push(data.to_vec());
            Poll::Ready(Ok(data.len()))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn frame(payload: usize) -> Vec<u8> {
        let mut frame = match payload {
            0..126 => vec![0x82, payload as u8],
            126..65_536 => [&[0x82, 126][..], &(payload as u16).to_be_bytes()].concat(),
            _ => [&[0x82, 127][..], &(payload as u64).to_be_bytes()].concat(),
        };
        frame.resize(frame.len() + payload, b'x');
        frame
    }

    #[tokio::test]
    async fn each_frame_is_a_write() {
        let sent: Vec<Vec<u8>> = [3, 0, 125, 126, 900].into_iter().map(frame).collect();
        let mut writes = Writes::default();
        frames(&sent.concat()[..], &mut writes).await.unwrap();
        assert_eq!(writes.0[..sent.len()], sent);
    }

    #[tokio::test]
    async fn frames_arrive_whole_however_they_come() {
        let sent = [frame(70_000), frame(1), frame(300), vec![0x82, 127, 0]].concat();
        for step in [1, 7, 4_096] {
            let (mut far, near) = tokio::io::duplex(step);
            let feed = async {
                far.write_all(&sent).await.unwrap();
                drop(far);
            };
            let mut writes = Writes::default();
            let (copied, ()) = tokio::join!(frames(near, &mut writes), feed);
            copied.unwrap();
            assert!(writes.0.concat() == sent, "in steps of {step}");
        }
    }

    #[test]
    fn masked_frames_have_a_key() {
        assert_eq!(frame_length(&[0x81, 0x85]), Some(11));
        assert_eq!(frame_length(&[0x81]), None);
        assert_eq!(frame_length(&[0x81, 126, 1]), None);
    }
}
