//! Rewrites the links of an HTML page that is proxied, so that they lead back through the proxy.
//!
//! A page streams: each piece goes out as soon as its tags are whole. Only attribute values that are links are touched;
//! everything else is passed on byte by byte, since a page that was parsed and printed anew is another page.

use std::io::Write as _;

use axum::body::Body;
use bytes::Bytes;
use flate2::write::{GzDecoder, ZlibDecoder};
use futures::{StreamExt, stream};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, Response};

/// A tag longer than this is passed on as it is.
const MAX_TAG: usize = 64 << 10;
/// Elements in which `<` is text.
const RAW: &[&str] =
    &["iframe", "noembed", "noframes", "noscript", "plaintext", "script", "style", "textarea", "title", "xmp"];
/// Attributes that are links, by element.
const LINKS: &[(&str, &[&str])] = &[
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];

/// The response, with every link of a page as `link` says; `None` leaves a link as it is.
pub fn rewritten<F>(mut response: Response<Body>, link: F) -> Response<Body>
where
    F: Fn(&str) -> Option<String> + Send + 'static,
{
    let headers = response.headers_mut();
    let Some(decoder) = Decoder::of(headers) else { return response };
    headers.remove(CONTENT_ENCODING);
    headers.remove(CONTENT_LENGTH);
    response.map(|body| {
        let state = Some((body.into_data_stream(), decoder, Page::new(link)));
        Body::from_stream(stream::unfold(state, |state| async {
            let (mut body, mut decoder, mut page) = state?;
            let Some(piece) = body.next().await else { return Some((Ok(page.finish().into()), None)) };
            let piece = piece.map_err(std::io::Error::other).and_then(|piece| decoder.decode(piece));
            let out = piece.map(|piece| Bytes::from(page.push(&piece)));
            Some((out, Some((body, decoder, page))))
        }))
    })
}

/// How the body of a page is read.
enum Decoder {
    Plain,
    Gzip(GzDecoder<Vec<u8>>),
    Deflate(ZlibDecoder<Vec<u8>>),
}

impl Decoder {
    /// `None` for what is no page, or is in an encoding that we cannot read.
    fn of(headers: &HeaderMap) -> Option<Decoder> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().trim();
        let kind = text(CONTENT_TYPE).split(';').next().unwrap_or_default().trim();
        match text(CONTENT_ENCODING) {
            _ if kind != "text/html" => None,
            "" => Some(Decoder::Plain),
            "gzip" => Some(Decoder::Gzip(GzDecoder::new(Vec::new()))),
            "deflate" => Some(Decoder::Deflate(ZlibDecoder::new(Vec::new()))),
            _ => None,
        }
    }

    fn decode(&mut self, piece: Bytes) -> std::io::Result<Bytes> {
        let out = match self {
            Decoder::Plain => return Ok(piece),
            Decoder::Gzip(decoder) => {
                decoder.write_all(&piece)?;
                decoder.flush()?;
                decoder.get_mut()
            }
            Decoder::Deflate(decoder) => {
                decoder.write_all(&piece)?;
                decoder.flush()?;
                decoder.get_mut()
            }
        };
        Ok(std::mem::take(out).into())
    }
}

/// A page on its way.
struct Page<F> {
    /// What a link becomes; `None` leaves it.
    link: F,
    /// Of a tag or comment whose end has not come.
    held: Vec<u8>,
    /// The element whose text this is, where `<` means nothing but its end.
    raw: Option<&'static str>,
}

/// A token at the beginning of what is held.
enum Token {
    /// So many bytes that go out as they are.
    Plain(usize),
    Tag(Tag),
    Unfinished,
}

struct Tag {
    length: usize,
    name: String,
    closes: bool,
    /// Where values of links stand.
    links: Vec<std::ops::Range<usize>>,
}

impl<F: Fn(&str) -> Option<String>> Page<F> {
    fn new(link: F) -> Self {
        Page { link, held: Vec::new(), raw: None }
    }

    /// Takes a piece and gives what is ready.
    fn push(&mut self, piece: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(piece);
        let (mut out, mut at) = (Vec::new(), 0);
        while at < self.held.len() {
            let rest = &self.held[at..];
            match self.token(rest) {
                Token::Plain(length) => {
                    out.extend_from_slice(&rest[..length]);
                    at += length;
                }
                Token::Tag(tag) => {
                    self.write(&mut out, &rest[..tag.length], &tag);
                    at += tag.length;
                    self.raw = RAW.iter().find(|name| !tag.closes && **name == tag.name).copied();
                }
                Token::Unfinished if rest.len() > MAX_TAG => {
                    out.extend_from_slice(rest);
                    at = self.held.len();
                }
                Token::Unfinished => break,
            }
        }
        self.held.drain(..at);
        out
    }

    /// What was held for an end that never came.
    fn finish(self) -> Vec<u8> {
        self.held
    }

    fn token(&self, bytes: &[u8]) -> Token {
        let open = |from: usize| bytes[from..].iter().position(|byte| *byte == b'<').map(|found| from + found);
        if bytes[0] != b'<' {
            return Token::Plain(open(0).unwrap_or(bytes.len()));
        }
        if let Some(name) = self.raw {
            let wanted = [&b"</"[..], name.as_bytes()].concat();
            let common = bytes.len().min(wanted.len());
            return match bytes[..common].eq_ignore_ascii_case(&wanted[..common]) {
                true if common == wanted.len() => tag(bytes).map_or(Token::Unfinished, Token::Tag),
                true => Token::Unfinished,
                false => Token::Plain(open(1).unwrap_or(bytes.len())),
            };
        }
        if bytes.starts_with(b"<!--") {
            let end = bytes.windows(3).skip(4).position(|window| window == b"-->");
            return end.map_or(Token::Unfinished, |end| Token::Plain(4 + end + 3));
        }
        match bytes.get(1) {
            None => Token::Unfinished,
            Some(b'!') if b"<!--".starts_with(bytes) => Token::Unfinished,
            Some(byte) if byte.is_ascii_alphabetic() || *byte == b'/' => {
                tag(bytes).map_or(Token::Unfinished, Token::Tag)
            }
            Some(_) => Token::Plain(1),
        }
    }

    fn write(&self, out: &mut Vec<u8>, bytes: &[u8], tag: &Tag) {
        let mut from = 0;
        for value in &tag.links {
            let new = std::str::from_utf8(&bytes[value.clone()]).ok().and_then(&self.link);
            out.extend_from_slice(&bytes[from..value.start]);
            out.extend_from_slice(new.as_deref().map_or(&bytes[value.clone()], str::as_bytes));
            from = value.end;
        }
        out.extend_from_slice(&bytes[from..]);
    }
}

/// The tag at the beginning, if all of it is there.
fn tag(bytes: &[u8]) -> Option<Tag> {
    let lower = |range: std::ops::Range<usize>| String::from_utf8_lossy(&bytes[range]).to_ascii_lowercase();
    let until = |from: usize, stop: &dyn Fn(u8) -> bool| {
        bytes.iter().skip(from).position(|byte| stop(*byte)).map(|found| from + found)
    };
    let space = |byte: u8| byte.is_ascii_whitespace();
    let closes = bytes.get(1) == Some(&b'/');
    let start = if closes { 2 } else { 1 };
    let mut at = until(start, &|byte| space(byte) || byte == b'/' || byte == b'>')?;
    let name = lower(start..at);
    let known = LINKS.iter().find(|(element, _)| !closes && *element == name).map_or(&[][..], |(_, keys)| keys);
    let mut links = Vec::new();
    loop {
        at = until(at, &|byte| !space(byte) && byte != b'/')?;
        if bytes[at] == b'>' {
            return Some(Tag { length: at + 1, name, closes, links });
        }
        // An attribute's name may begin with `=`.
        let end = until(at + 1, &|byte| space(byte) || b"/>=".contains(&byte))?;
        let key = lower(at..end);
        at = until(end, &|byte| !space(byte))?;
        if bytes[at] != b'=' {
            continue;
        }
        at = until(at + 1, &|byte| !space(byte))?;
        let value = match bytes[at] {
            quote @ (b'"' | b'\'') => at + 1..until(at + 1, &|byte| byte == quote)?,
            _ => at..until(at, &|byte| space(byte) || byte == b'>')?,
        };
        at = value.end + usize::from(matches!(bytes[value.end], b'"' | b'\''));
        if known.contains(&key.as_str()) {
            links.push(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(html: &str, piece: usize) -> String {
        let mut page = Page::new(|link: &str| link.starts_with('/').then(|| format!("/p{link}")));
        let mut out: Vec<u8> = html.as_bytes().chunks(piece).flat_map(|piece| page.push(piece)).collect();
        out.extend(page.finish());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn links_are_rewritten_however_the_page_is_cut() {
        for (html, expected) in [
            (r#"<a href="/rewriteme">test</a>"#, r#"<a href="/p/rewriteme">test</a>"#),
            ("<A HREF='/x'><img src=/y alt=/y>", "<A HREF='/p/x'><img src=/p/y alt=/y>"),
            ("<a\n title='>' href = \"/x\" />", "<a\n title='>' href = \"/p/x\" />"),
            (
                "<form action=\"\"><input src=/a formaction='/b'>",
                "<form action=\"\"><input src=/p/a formaction='/p/b'>",
            ),
            ("<a href=\"relative\"><p href=\"/x\">", "<a href=\"relative\"><p href=\"/x\">"),
            ("<!-- <a href='/x'> --><a href='/x'>", "<!-- <a href='/x'> --><a href='/p/x'>"),
            ("<!doctype html><!-><a href='/x'>", "<!doctype html><!-><a href='/p/x'>"),
            (
                "<script src='/s'>'<a href=\"/x\">' </scr</SCRIPT><a href='/x'>",
                "<script src='/p/s'>'<a href=\"/x\">' </scr</SCRIPT><a href='/p/x'>",
            ),
            ("1 < 2 <> <a href='/x'", "1 < 2 <> <a href='/x'"),
            ("<a =href=\"/x\" href=\"/y\">", "<a =href=\"/x\" href=\"/p/y\">"),
            ("<video poster='/ü'>ü</video>", "<video poster='/p/ü'>ü</video>"),
        ] {
            for piece in [1, 3, 7, 1000] {
                assert_eq!(rewritten(html, piece), expected, "in pieces of {piece}");
            }
        }
    }

    #[test]
    fn what_never_ends_is_not_held_for_ever() {
        let mut page = Page::new(|_: &str| None);
        let long = [b"<a href='".to_vec(), vec![b'x'; MAX_TAG]].concat();
        assert_eq!(page.push(&long).len(), long.len());
    }
}
