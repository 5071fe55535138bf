//! Header blocks: a list of names and values, compressed over the whole life of a connection.
//!
//! One zlib stream per direction, started from a dictionary that both ends know and flushed after each
//! block. Every block must pass through it, those of ignored frames too, or all later ones are noise.

use std::collections::BTreeMap;
use std::io;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

/// Lower-case names; a value may hold several, separated by NUL.
pub(in crate::streaming) type Headers = BTreeMap<String, String>;

/// Most bytes of one decompressed block: a few bytes can expand a thousandfold.
const BLOCK: usize = 64 << 10;

/// The words of the dictionary that are preceded by their lengths, each as four bytes.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
    accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
    content-length content-location content-md5 content-range content-type date etag expect expires from host \
    if-match if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
    proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
    user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie \
    keep-alive origin";
/// What follows them.
const TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 \
    Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 \
    Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept \
    Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
    application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,\
    sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

fn dictionary() -> Vec<u8> {
    let words = WORDS.split_whitespace().map(|word| word.replace('_', " "));
    let mut dictionary: Vec<u8> = words.flat_map(|word| text(&word)).collect();
    dictionary.extend(TEXT.as_bytes());
    dictionary
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat()
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("SPDY header block: {what}"))
}

pub(super) struct Compressor(Compress);

impl Compressor {
    pub(super) fn new() -> Compressor {
        let mut zlib = Compress::new(Compression::default(), true);
        zlib.set_dictionary(&dictionary()).expect("a fresh stream takes a dictionary");
        Compressor(zlib)
    }

    pub(super) fn encode(&mut self, headers: &Headers) -> Vec<u8> {
        let mut block = (headers.len() as u32).to_be_bytes().to_vec();
        for (name, value) in headers {
            block.extend(text(name));
            block.extend(text(value));
        }
        let start = self.0.total_in();
        let mut compressed = Vec::new();
        loop {
            compressed.reserve(block.len() + 64);
            let rest = &block[(self.0.total_in() - start) as usize..];
            self.0.compress_vec(rest, &mut compressed, FlushCompress::Sync).expect("the stream is never finished");
            let all = (self.0.total_in() - start) as usize == block.len();
            if all && compressed.len() < compressed.capacity() {
                return compressed;
            }
        }
    }
}

pub(super) struct Decompressor(Decompress);

impl Decompressor {
    pub(super) fn new() -> Decompressor {
        Decompressor(Decompress::new(true))
    }

    pub(super) fn decode(&mut self, compressed: &[u8]) -> io::Result<Headers> {
        parse(&self.decompress(compressed)?)
    }

    fn decompress(&mut self, mut compressed: &[u8]) -> io::Result<Vec<u8>> {
        let mut block = Vec::with_capacity(1 << 10);
        loop {
            let before = self.0.total_in();
            let result = self.0.decompress_vec(compressed, &mut block, FlushDecompress::Sync);
            compressed = &compressed[(self.0.total_in() - before) as usize..];
            match result {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&dictionary()).map_err(|_| invalid("made with another dictionary"))?;
                    continue;
                }
                Err(_) => return Err(invalid("not zlib")),
                Ok(_) => {}
            }
            if block.len() > BLOCK {
                return Err(invalid("too long"));
            }
            if block.len() < block.capacity() {
                // Room left over: all input is used up, or the stream has ended, which it must not.
                return if compressed.is_empty() { Ok(block) } else { Err(invalid("ends early")) };
            }
            block.reserve(block.capacity());
        }
    }
}

fn parse(mut block: &[u8]) -> io::Result<Headers> {
    let count = number(&mut block)?;
    let mut headers = Headers::new();
    for _ in 0..count {
        let (name, value) = (string(&mut block)?, string(&mut block)?);
        headers.insert(name.to_ascii_lowercase(), value);
    }
    Ok(headers)
}

fn number(block: &mut &[u8]) -> io::Result<usize> {
    let (number, rest) = block.split_first_chunk().ok_or_else(|| invalid("cut short"))?;
    *block = rest;
    Ok(u32::from_be_bytes(*number) as usize)
}

fn string(block: &mut &[u8]) -> io::Result<String> {
    let length = number(block)?;
    let (text, rest) = block.split_at_checked(length).ok_or_else(|| invalid("cut short"))?;
    *block = rest;
    Ok(String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    #[test]
    fn the_dictionary_is_the_one_of_spdy_3() {
        let (mut a, mut b) = (1u32, 0u32);
        for byte in dictionary() {
            a = (a + u32::from(byte)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!((b << 16) | a, 0xe3c6_a7c2, "the dictionary's Adler-32, as SPDY/3 streams carry it");
    }

    /// Blocks as another zlib makes them (Python's, level 9, sync flush): kubectl's port-forward pair.
    #[test]
    fn blocks_of_another_zlib_are_read() {
        let mut decompressor = Decompressor::new();
        for (block, kind) in [
            (
                "78f9e3c6a7c202253a703a2b294a4dcc851625aca9a0808614cb45e01c6061606100a4398b20d198094ade8c0600000000ffff",
                "error",
            ),
            ("c2aa19540e2512d60b000000ffff", "data"),
        ] {
            let decoded = decompressor.decode(&hex::decode(block).unwrap()).unwrap();
            assert_eq!(decoded, headers(&[("streamtype", kind), ("port", "8080"), ("requestid", "0")]));
        }
    }

    #[test]
    fn blocks_survive_the_round_trip_in_order() {
        let (mut compressor, mut decompressor) = (Compressor::new(), Decompressor::new());
        let long = "long ".repeat(3000);
        for pairs in [&[][..], &[("streamtype", "stdin")], &[("a", &long), ("b", "")], &[("streamtype", "stdin")]] {
            let compressed = compressor.encode(&headers(pairs));
            assert!(compressed.ends_with(&[0, 0, 0xff, 0xff]), "flushed");
            assert_eq!(decompressor.decode(&compressed).unwrap(), headers(pairs));
        }
    }

    #[test]
    fn bad_blocks_are_refused() {
        let bomb = Compressor::new().encode(&headers(&[("a", &"x".repeat(BLOCK))]));
        for (block, expected) in [(&b"nonsense"[..], "not zlib"), (&bomb, "too long")] {
            let error = Decompressor::new().decode(block).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        for block in [&[0, 0, 0][..], &[0, 0, 0, 1, 0, 0, 0, 9, b'a'], &[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]] {
            assert!(parse(block).is_err(), "{block:?}");
        }
    }
}
