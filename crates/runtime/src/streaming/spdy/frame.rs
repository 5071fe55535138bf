//! Frames of SPDY/3.1 to and from bytes.
//!
//! Knows nothing of streams. Data comes in pieces, so that a frame of 16 MiB needs no such buffer.
//! SETTINGS and unknown frames are skipped. Windows are parsed and have no effect: the only peers left,
//! docker's spdystream in client-go, send no updates and heed none, so that limiting ourselves to a
//! window would stall every stream after 64 KiB. Back-pressure is TCP's instead.

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, BufReader};

use super::headers::{Compressor, Decompressor, Headers};
use crate::streaming::outlet::{CHUNK, Item};

const CONTROL: u16 = 0x8000;
const VERSION: u16 = 3;
const FLAG_FIN: u8 = 1;
/// Most bytes of a control frame's payload.
const CONTROL_LENGTH: usize = 64 << 10;
/// Stream ids have 31 bits.
const ID: u32 = 0x7fff_ffff;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// Status of RST_STREAM.
pub(super) const PROTOCOL_ERROR: u32 = 1;
pub(super) const REFUSED_STREAM: u32 = 3;
pub(super) const CANCEL: u32 = 5;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::streaming) enum Frame {
    SynStream {
        id: u32,
        fin: bool,
        headers: Headers,
    },
    SynReply {
        id: u32,
        fin: bool,
        headers: Headers,
    },
    Reset {
        id: u32,
        status: u32,
    },
    Ping(u32),
    /// Status 0 is an orderly end, 1 a protocol error.
    GoAway {
        last: u32,
        status: u32,
    },
    Headers {
        id: u32,
        fin: bool,
        headers: Headers,
    },
    WindowUpdate {
        id: u32,
        delta: u32,
    },
    Data {
        id: u32,
        fin: bool,
        data: Bytes,
    },
}

impl Item for Frame {
    fn data(channel: u32, data: Bytes) -> Frame {
        Frame::Data { id: channel, fin: false, data }
    }

    fn end(channel: u32) -> Option<Frame> {
        Some(Frame::Data { id: channel, fin: true, data: Bytes::new() })
    }
}

pub(in crate::streaming) struct Encoder(Compressor);

impl Encoder {
    pub(in crate::streaming) fn new() -> Encoder {
        Encoder(Compressor::new())
    }

    pub(in crate::streaming) fn encode(&mut self, frame: &Frame, out: &mut BytesMut) {
        match frame {
            Frame::SynStream { id, fin, headers } => {
                // No associated stream, priority 0, no credential slot.
                let fixed = [&id.to_be_bytes()[..], &[0; 6]].concat();
                control(out, SYN_STREAM, *fin, &[&fixed, &self.0.encode(headers)]);
            }
            Frame::SynReply { id, fin, headers } => {
                control(out, SYN_REPLY, *fin, &[&id.to_be_bytes(), &self.0.encode(headers)]);
            }
            Frame::Headers { id, fin, headers } => {
                control(out, HEADERS, *fin, &[&id.to_be_bytes(), &self.0.encode(headers)]);
            }
            Frame::Reset { id, status } => control(out, RST_STREAM, false, &[&id.to_be_bytes(), &status.to_be_bytes()]),
            Frame::Ping(id) => control(out, PING, false, &[&id.to_be_bytes()]),
            Frame::GoAway { last, status } => {
                control(out, GOAWAY, false, &[&last.to_be_bytes(), &status.to_be_bytes()])
            }
            Frame::WindowUpdate { id, delta } => {
                control(out, WINDOW_UPDATE, false, &[&id.to_be_bytes(), &delta.to_be_bytes()]);
            }
            Frame::Data { id, fin, data } => {
                out.put_u32(id & ID);
                length(out, *fin, data.len());
                out.put_slice(data);
            }
        }
    }
}

fn control(out: &mut BytesMut, kind: u16, fin: bool, payload: &[&[u8]]) {
    out.put_u16(CONTROL | VERSION);
    out.put_u16(kind);
    length(out, fin, payload.iter().map(|part| part.len()).sum());
    payload.iter().for_each(|part| out.put_slice(part));
}

fn length(out: &mut BytesMut, fin: bool, length: usize) {
    out.put_u32((u32::from(if fin { FLAG_FIN } else { 0 }) << 24) | length as u32);
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("SPDY frame: {what}"))
}

/// The rest of a data frame that is being read.
struct Unread {
    id: u32,
    fin: bool,
    length: usize,
}

pub(in crate::streaming) struct Decoder<R> {
    source: BufReader<R>,
    headers: Decompressor,
    unread: Option<Unread>,
}

impl<R: AsyncRead + Unpin> Decoder<R> {
    pub(in crate::streaming) fn new(source: R) -> Decoder<R> {
        Decoder { source: BufReader::with_capacity(CHUNK, source), headers: Decompressor::new(), unread: None }
    }

    /// `None` when the peer has closed between frames.
    pub(in crate::streaming) async fn next(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let Some(unread) = self.unread.take() {
                return self.data(unread).await.map(Some);
            }
            let mut head = [0; 8];
            if self.source.read(&mut head[..1]).await? == 0 {
                return Ok(None);
            }
            self.source.read_exact(&mut head[1..]).await?;
            let [id, rest] = [&head[..4], &head[4..]].map(|half| u32::from_be_bytes(half.try_into().expect("4 bytes")));
            let (fin, length) = ((rest >> 24) as u8 & FLAG_FIN != 0, (rest & 0x00ff_ffff) as usize);
            if id & !ID == 0 {
                self.unread = Some(Unread { id, fin, length });
            } else if (id >> 16) as u16 != CONTROL | VERSION {
                return Err(invalid("not version 3"));
            } else if length > CONTROL_LENGTH {
                return Err(invalid("control frame is too long"));
            } else {
                let mut payload = vec![0; length];
                self.source.read_exact(&mut payload).await?;
                if let Some(frame) = self.control(id as u16, fin, &payload)? {
                    return Ok(Some(frame));
                }
            }
        }
    }

    async fn data(&mut self, unread: Unread) -> io::Result<Frame> {
        let Unread { id, fin, length } = unread;
        let mut piece = BytesMut::with_capacity(length.min(CHUNK));
        while piece.is_empty() && length > 0 {
            if (&mut self.source).take(length.min(CHUNK) as u64).read_buf(&mut piece).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let rest = length - piece.len();
        if rest > 0 {
            self.unread = Some(Unread { id, fin, length: rest });
        }
        Ok(Frame::Data { id, fin: fin && rest == 0, data: piece.freeze() })
    }

    fn control(&mut self, kind: u16, fin: bool, payload: &[u8]) -> io::Result<Option<Frame>> {
        let word = |at: usize| {
            let word = payload.get(at..at + 4).ok_or_else(|| invalid("cut short"))?;
            Ok::<_, io::Error>(u32::from_be_bytes(word.try_into().expect("4 bytes")))
        };
        let from = |at: usize| payload.get(at..).ok_or_else(|| invalid("cut short"));
        Ok(Some(match kind {
            SYN_STREAM => Frame::SynStream { id: word(0)? & ID, fin, headers: self.headers.decode(from(10)?)? },
            SYN_REPLY => Frame::SynReply { id: word(0)? & ID, fin, headers: self.headers.decode(from(4)?)? },
            HEADERS => Frame::Headers { id: word(0)? & ID, fin, headers: self.headers.decode(from(4)?)? },
            RST_STREAM => Frame::Reset { id: word(0)? & ID, status: word(4)? },
            PING => Frame::Ping(word(0)?),
            GOAWAY => Frame::GoAway { last: word(0)? & ID, status: word(4)? },
            WINDOW_UPDATE => Frame::WindowUpdate { id: word(0)? & ID, delta: word(4)? & ID },
            _ => return Ok(None),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn decode(bytes: &[u8]) -> io::Result<Vec<Frame>> {
        let mut decoder = Decoder::new(bytes);
        let mut frames = Vec::new();
        while let Some(frame) = decoder.next().await? {
            frames.push(frame);
        }
        Ok(frames)
    }

    #[tokio::test]
    async fn frames_have_the_bytes_of_the_specification() {
        let data = |id, fin, data: &'static [u8]| Frame::Data { id, fin, data: Bytes::from_static(data) };
        for (frame, bytes) in [
            (Frame::Ping(7), "80030006 00000004 00000007"),
            (Frame::Reset { id: 5, status: CANCEL }, "80030003 00000008 00000005 00000005"),
            (Frame::GoAway { last: 9, status: 0 }, "80030007 00000008 00000009 00000000"),
            (Frame::WindowUpdate { id: 3, delta: 0x10000 }, "80030009 00000008 00000003 00010000"),
            (data(1, false, b"hi"), "00000001 00000002 6869"),
            (data(1, true, b""), "00000001 01000000"),
        ] {
            let mut encoded = BytesMut::new();
            Encoder::new().encode(&frame, &mut encoded);
            assert_eq!(hex::encode(&encoded), bytes.replace(' ', ""), "{frame:?}");
            assert_eq!(decode(&encoded).await.unwrap(), [frame]);
        }
    }

    #[tokio::test]
    async fn a_syn_stream_of_client_go_is_read() {
        // Stream 1, priority 0, the header block of another zlib (see `headers`).
        let block =
            "78f9e3c6a7c202253a703a2b294a4dcc851625aca9a0808614cb45e01c6061606100a4398b20d198094ade8c0600000000ffff";
        let head = format!("80030001 {:08x} 00000001 00000000 0000", 10 + block.len() / 2);
        let bytes = hex::decode(format!("{head}{block}").replace(' ', "")).unwrap();
        let [Frame::SynStream { id: 1, fin: false, headers }] = &decode(&bytes).await.unwrap()[..] else {
            panic!("not a SYN_STREAM")
        };
        assert_eq!(headers["streamtype"], "error");
    }

    #[tokio::test]
    async fn long_data_comes_in_pieces_and_ends_once() {
        let long = Frame::Data { id: 1, fin: true, data: vec![7; 3 * CHUNK + 1].into() };
        let mut encoded = BytesMut::new();
        Encoder::new().encode(&long, &mut encoded);
        let pieces = decode(&encoded).await.unwrap();
        let (mut total, mut ends) = (0, Vec::new());
        for piece in &pieces {
            let Frame::Data { fin, data, .. } = piece else { panic!("{piece:?}") };
            assert!(data.len() <= CHUNK);
            total += data.len();
            ends.push(*fin);
        }
        assert_eq!(total, 3 * CHUNK + 1);
        assert_eq!(ends.iter().position(|end| *end), Some(ends.len() - 1));
    }

    #[tokio::test]
    async fn settings_are_skipped_and_bad_frames_refused() {
        let settings = hex::decode("80030004000000040000000080030006000000040000000b").unwrap();
        assert_eq!(decode(&settings).await.unwrap(), [Frame::Ping(11)]);
        for bad in ["8002000600000004 00000001", "8003000600000002 0000", "8003000600ffffff", "00000001000000ff00"] {
            assert!(decode(&hex::decode(bad.replace(' ', "")).unwrap()).await.is_err(), "{bad}");
        }
    }
}
