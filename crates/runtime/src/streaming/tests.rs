//! The server over loopback, against clients that speak bytes as kubectl's libraries do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{WebSocketStream, client_async};

use super::spdy::{Frame, FrameDecoder, FrameEncoder, Headers};
use super::*;

/// Longer than any test takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// More than all buffers on the way hold.
const MUCH: usize = 1 << 20;

/// Containers that exist only here; what they saw the end of goes to `ended`.
struct Fake {
    ended: mpsc::UnboundedSender<&'static str>,
}

#[async_trait]
impl Streams for Fake {
    async fn exec(
        &self,
        container_id: &str,
        cmd: Vec<String>,
        tty: bool,
        mut io: StreamIo,
    ) -> Result<i32, StreamError> {
        if container_id != "c" {
            return Err(StreamError::NotFound(format!("container {container_id} not found")));
        }
        assert!(!tty || io.stderr.is_none(), "a terminal has no stderr");
        match cmd[0].as_str() {
            "cat" => {
                let (mut from, mut to) = (io.stdin.take().unwrap(), io.stdout.take().unwrap());
                let _ = tokio::io::copy(&mut from, &mut to).await;
                let _ = self.ended.send("cat");
                Ok(0)
            }
            "fail" => {
                io.stderr.take().unwrap().write_all(b"bad\n").await.unwrap();
                Ok(3)
            }
            "size" => {
                let (columns, rows) = io.resize.recv().await.unwrap();
                io.stdout.take().unwrap().write_all(format!("{columns}x{rows}").as_bytes()).await.unwrap();
                Ok(0)
            }
            "flood" => {
                io.stdout.take().unwrap().write_all(&vec![b'x'; MUCH]).await.unwrap();
                Ok(0)
            }
            "wait" => {
                let _ended = Ended(self.ended.clone(), "wait");
                std::future::pending().await
            }
            other => panic!("unknown command {other}"),
        }
    }

    async fn attach(&self, container_id: &str, io: StreamIo) -> Result<(), StreamError> {
        self.exec(container_id, vec!["cat".into()], false, io).await.map(drop)
    }

    /// Answers with what it got, once it has got all: only a half-close ends that.
    async fn port_forward(&self, _: &str, port: u16, mut stream: Box<dyn Duplex>) -> Result<(), StreamError> {
        if port == 9 {
            return Err(StreamError::Failed("connection refused".into()));
        }
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        all.extend(format!(" on {port}").bytes());
        stream.write_all(&all).await.map_err(|error| StreamError::Failed(error.to_string()))
    }
}

struct Ended(mpsc::UnboundedSender<&'static str>, &'static str);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.send(self.1);
    }
}

async fn serve_with(limits: Limits) -> (Server, mpsc::UnboundedReceiver<&'static str>) {
    let (ended, events) = mpsc::unbounded_channel();
    (Server::bind_with(([127, 0, 0, 1], 0).into(), Arc::new(Fake { ended }), limits).await.unwrap(), events)
}

async fn serve() -> Server {
    serve_with(Limits::default()).await.0
}

fn exec(cmd: &str) -> ExecRequest {
    let (stdin, stderr) = (true, true);
    ExecRequest { container_id: "c".into(), cmd: vec![cmd.into()], tty: false, stdin, stdout: true, stderr }
}

fn forward(ports: &[u16]) -> PortForwardRequest {
    PortForwardRequest { sandbox_id: "p".into(), ports: ports.to_vec() }
}

async fn within<T>(wait: impl Future<Output = T>) -> T {
    timeout(PATIENCE, wait).await.expect("something is missing")
}

async fn dial(url: &str) -> (TcpStream, &str) {
    let (host, path) = url.strip_prefix("http://").unwrap().split_at(url.len() - "http://".len() - path_length(url));
    (TcpStream::connect(host).await.unwrap(), path)
}

fn path_length(url: &str) -> usize {
    url.splitn(4, '/').last().unwrap().len() + 1
}

type Ws = WebSocketStream<TcpStream>;

async fn websocket(url: &str, protocol: &str) -> Ws {
    let mut request = url.replace("http:", "ws:").into_client_request().unwrap();
    if !protocol.is_empty() {
        request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
    }
    let (socket, answer) = within(client_async(request, dial(url).await.0)).await.unwrap();
    assert_eq!(answer.headers().get("sec-websocket-protocol").map_or("", |name| name.to_str().unwrap()), protocol);
    socket
}

/// Everything up to the server's farewell, by channel.
async fn channels(socket: &mut Ws) -> BTreeMap<u8, Vec<u8>> {
    let mut received: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
    loop {
        match within(socket.next()).await {
            Some(Ok(Message::Binary(data))) => received.entry(data[0]).or_default().extend(&data[1..]),
            Some(Ok(Message::Close(frame))) => {
                assert_eq!(u16::from(frame.unwrap().code), 1000, "client-go takes any other for a failure");
                return received;
            }
            Some(Ok(Message::Pong(data))) => assert_eq!(&data[..], b"alive"),
            other => panic!("{other:?}"),
        }
    }
}

async fn send(socket: &mut Ws, message: &[u8]) {
    socket.send(Message::Binary(Bytes::copy_from_slice(message))).await.unwrap();
}

fn status(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

fn success() -> Value {
    json!({"metadata": {}, "status": "Success"})
}

#[tokio::test]
async fn input_ends_by_a_close_signal() {
    let server = serve().await;
    let attach = AttachRequest { container_id: "c".into(), tty: false, stdin: true, stdout: true, stderr: true };
    for url in [server.exec_url(exec("cat")), server.attach_url(attach)] {
        let mut socket = websocket(&url, "v5.channel.k8s.io").await;
        assert_eq!(within(socket.next()).await.unwrap().unwrap(), Message::binary(&[1u8][..]), "the announcement");
        socket.send(Message::Ping(Bytes::from_static(b"alive"))).await.unwrap();
        send(&mut socket, b"\x00hello").await;
        send(&mut socket, b"\x07nobody's").await;
        send(&mut socket, b"\xff\x00").await;
        let received = channels(&mut socket).await;
        assert_eq!((&received[&1][..], status(&received[&3])), (&b"hello"[..], success()));
    }
}

#[tokio::test]
async fn every_websocket_dialect_tells_the_exit_code_its_way() {
    let server = serve().await;
    let text = "command terminated with non-zero exit code: exit status 3";
    for (protocol, json) in
        [("v5.channel.k8s.io", true), ("v4.channel.k8s.io", true), ("channel.k8s.io", false), ("", false)]
    {
        let mut socket = websocket(&server.exec_url(exec("fail")), protocol).await;
        let received = channels(&mut socket).await;
        assert_eq!(received[&2], b"bad\n");
        if json {
            let status = status(&received[&3]);
            assert_eq!(status["reason"], "NonZeroExitCode");
            assert_eq!(status["details"]["causes"], json!([{"reason": "ExitCode", "message": "3"}]));
        } else {
            assert_eq!(received[&3], text.as_bytes());
        }
    }
    let mut socket = websocket(&server.exec_url(exec("fail")), "base64.channel.k8s.io").await;
    let mut texts = Vec::new();
    while let Ok(Message::Text(text)) = within(socket.next()).await.unwrap() {
        texts.push(text.to_string());
    }
    assert_eq!(texts[..2], ["1", "2YmFkCg=="]);
    let missing = ExecRequest { container_id: "nobody".into(), ..exec("cat") };
    let received = channels(&mut websocket(&server.exec_url(missing), "v4.channel.k8s.io").await).await;
    let message = "Internal error occurred: error executing command in container: container nobody not found";
    assert_eq!(status(&received[&3])["message"], message);
}

#[tokio::test]
async fn a_terminal_has_a_size_and_no_stderr() {
    let server = serve().await;
    let request = || ExecRequest { tty: true, ..exec("size") };
    let mut socket = websocket(&server.exec_url(request()), "v5.channel.k8s.io").await;
    send(&mut socket, b"\x04{\"Width\":80,\"Height\":24}").await;
    assert_eq!(channels(&mut socket).await[&1], b"80x24");

    let mut client = spdy(&server.exec_url(request()), "v4.channel.k8s.io").await;
    for (id, kind) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "resize")] {
        client.open(id, &[("streamtype", kind)]).await;
    }
    client.data(7, b"{\"Width\":132,\"Height\":50}\n", false).await;
    let streams = client.rest().await;
    assert_eq!((&streams[&5].0[..], status(&streams[&1].0)), (&b"132x50"[..], success()));
}

/// A SPDY client's end.
struct Spdy<S> {
    decoder: FrameDecoder<ReadHalf<S>>,
    encoder: FrameEncoder,
    write: WriteHalf<S>,
}

impl<S: AsyncRead + AsyncWrite> Spdy<S> {
    fn new(socket: S) -> Spdy<S> {
        let (read, write) = tokio::io::split(socket);
        Spdy { decoder: FrameDecoder::new(read), encoder: FrameEncoder::new(), write }
    }

    async fn send(&mut self, frame: Frame) {
        let mut bytes = BytesMut::new();
        self.encoder.encode(&frame, &mut bytes);
        within(self.write.write_all(&bytes)).await.unwrap();
    }

    async fn open(&mut self, id: u32, headers: &[(&str, &str)]) {
        let headers: Headers = headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        self.send(Frame::SynStream { id, fin: false, headers }).await;
    }

    async fn data(&mut self, id: u32, data: &[u8], fin: bool) {
        self.send(Frame::Data { id, fin, data: Bytes::copy_from_slice(data) }).await;
    }

    async fn next(&mut self) -> Option<Frame> {
        within(self.decoder.next()).await.unwrap()
    }

    /// Data and end of streams until `enough` of them have ended, or the server has said goodbye.
    async fn until(&mut self, enough: usize) -> BTreeMap<u32, (Vec<u8>, bool)> {
        let mut streams: BTreeMap<u32, (Vec<u8>, bool)> = BTreeMap::new();
        while streams.values().filter(|(_, ended)| *ended).count() < enough {
            match self.next().await {
                Some(Frame::Data { id, fin, data }) => {
                    let stream = streams.entry(id).or_default();
                    assert!(!stream.1, "data after the end of stream {id}");
                    stream.0.extend(data);
                    stream.1 = fin;
                }
                Some(Frame::SynReply { .. } | Frame::Ping(_)) => {}
                Some(Frame::GoAway { status: 0, .. }) => return streams,
                other => panic!("{other:?}"),
            }
        }
        streams
    }

    /// Up to the farewell, which the end of the connection follows.
    async fn rest(&mut self) -> BTreeMap<u32, (Vec<u8>, bool)> {
        let streams = self.until(usize::MAX).await;
        assert_eq!(self.next().await, None);
        streams
    }
}

/// The answer's status line and headers, and the connection.
async fn upgrade(url: &str, headers: &str) -> (String, TcpStream) {
    let (mut socket, path) = dial(url).await;
    let request = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n{headers}\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(within(socket.read_u8()).await.unwrap());
    }
    (String::from_utf8(head).unwrap().to_lowercase(), socket)
}

async fn spdy(url: &str, protocol: &str) -> Spdy<TcpStream> {
    let headers = format!("Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {protocol}\r\n");
    let (head, socket) = upgrade(url, &headers).await;
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    assert!(head.contains("\r\nupgrade: spdy/3.1\r\n"), "{head}");
    assert!(head.contains(&format!("\r\nx-stream-protocol-version: {protocol}\r\n")), "{head}");
    Spdy::new(socket)
}

#[tokio::test]
async fn spdy_streams_close_one_by_one() {
    let server = serve().await;
    for (protocol, json) in [("v5.channel.k8s.io", true), ("v4.channel.k8s.io", true), ("v2.channel.k8s.io", false)] {
        let mut client = spdy(&server.exec_url(exec("cat")), protocol).await;
        for (id, kind) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "stderr")] {
            client.open(id, &[("streamtype", kind)]).await;
            assert_eq!(client.next().await, Some(Frame::SynReply { id, fin: false, headers: Headers::new() }));
        }
        client.data(3, b"one ", false).await;
        client.send(Frame::WindowUpdate { id: 3, delta: 1024 }).await;
        client.send(Frame::Ping(1)).await;
        // client-go ends its input when the server does: nothing may end before the input has.
        let mut before = Vec::new();
        while before.len() < 2 {
            before.push(client.next().await.unwrap());
        }
        assert!(before.contains(&Frame::Ping(1)), "{before:?}");
        assert!(before.contains(&Frame::Data { id: 5, fin: false, data: Bytes::from_static(b"one ") }), "{before:?}");
        client.data(3, b"two", true).await;
        let streams = client.rest().await;
        assert_eq!(streams[&5].0, b"two");
        assert!(streams.values().all(|(_, ended)| *ended) && streams.len() == 4, "{streams:?}");
        match json {
            true => assert_eq!(status(&streams[&1].0), success()),
            false => assert_eq!(streams[&1].0, b"", "success has no text"),
        }
    }
}

#[tokio::test]
async fn wrong_streams_are_reset() {
    let server = serve().await;
    let mut client = spdy(&server.exec_url(exec("cat")), "v4.channel.k8s.io").await;
    for (id, kind, status) in [(3, "nonsense", 5), (2, "error", 1), (5, "error", 0), (5, "stdin", 1)] {
        client.open(id, &[("streamtype", kind)]).await;
        match client.next().await {
            Some(Frame::Reset { id: reset, status: code }) => assert_eq!((reset, code), (id, status)),
            Some(Frame::SynReply { id: replied, .. }) => assert_eq!((replied, 0), (id, status)),
            other => panic!("{other:?}"),
        }
    }
    client.write.write_all(b"\x80\x02 is SPDY/2").await.unwrap();
    loop {
        match client.next().await {
            Some(Frame::GoAway { status, .. }) => break assert_eq!(status, 1, "protocol error"),
            Some(Frame::Data { fin: true, .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_client_still_sending_gets_all_output_and_the_status() {
    let server = serve().await;
    let mut client = spdy(&server.exec_url(exec("flood")), "v4.channel.k8s.io").await;
    for (id, kind) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "stderr")] {
        client.open(id, &[("streamtype", kind)]).await;
    }
    // The command reads no input and ends while this is under way.
    let Spdy { mut decoder, mut encoder, mut write } = client;
    let sending = async {
        for _ in 0..64 {
            let mut bytes = BytesMut::new();
            encoder.encode(&Frame::Data { id: 3, fin: false, data: vec![0; 32 << 10].into() }, &mut bytes);
            write.write_all(&bytes).await.unwrap();
        }
        write.shutdown().await.unwrap();
    };
    let receiving = async {
        let (mut output, mut error) = (0, Vec::new());
        while let Some(frame) = decoder.next().await.unwrap() {
            match frame {
                Frame::Data { id: 5, data, .. } => output += data.len(),
                Frame::Data { id: 1, data, .. } => error.extend(data),
                _ => {}
            }
        }
        (output, error)
    };
    let (_, (output, error)) = within(async { tokio::join!(sending, receiving) }).await;
    assert_eq!((output, status(&error)), (MUCH, success()));
}

/// Opens many connections, each a pair of streams, and half-closes them.
async fn forwards<S: AsyncRead + AsyncWrite>(client: &mut Spdy<S>) {
    const PAIRS: u32 = 40;
    for pair in 0..PAIRS {
        let (error, data, request) = (4 * pair + 1, 4 * pair + 3, pair.to_string());
        client.open(error, &[("streamtype", "error"), ("port", "80"), ("requestid", &request)]).await;
        client.send(Frame::Data { id: error, fin: true, data: Bytes::new() }).await;
        client.open(data, &[("streamtype", "data"), ("port", "80"), ("requestid", &request)]).await;
        client.data(data, format!("number {pair}").as_bytes(), false).await;
    }
    for pair in (0..PAIRS).rev() {
        client.data(4 * pair + 3, b"!", true).await;
    }
    let streams = client.until(2 * PAIRS as usize).await;
    for pair in 0..PAIRS {
        assert_eq!(streams[&(4 * pair + 3)].0, format!("number {pair}! on 80").as_bytes());
        assert_eq!(streams[&(4 * pair + 1)].0, b"");
    }
    // Without request ids, and refused.
    let first = 4 * PAIRS + 1;
    client.open(first, &[("streamtype", "error"), ("port", "9")]).await;
    client.open(first + 2, &[("streamtype", "data"), ("port", "9")]).await;
    let streams = client.until(2).await;
    let expected = "error forwarding port 9 to pod p, uid : connection refused";
    assert_eq!(String::from_utf8_lossy(&streams[&first].0), expected);
}

#[tokio::test]
async fn ports_are_forwarded_over_spdy() {
    let server = serve().await;
    forwards(&mut spdy(&server.port_forward_url(forward(&[])), "portforward.k8s.io").await).await;
}

#[tokio::test]
async fn ports_are_forwarded_over_spdy_inside_a_websocket() {
    let server = serve().await;
    let socket = websocket(&server.port_forward_url(forward(&[])), "SPDY/3.1+portforward.k8s.io").await;
    let (inner, driver) = super::websocket::tunnel(socket);
    let driver = tokio::spawn(driver);
    let mut client = Spdy::new(inner);
    forwards(&mut client).await;
    drop(client);
    within(driver).await.unwrap();
}

#[tokio::test]
async fn ports_are_forwarded_over_channels() {
    let server = serve().await;
    for url in [server.port_forward_url(forward(&[9, 80])), server.port_forward_url(forward(&[])) + "?port=9,80"] {
        let mut socket = websocket(&url, "v4.channel.k8s.io").await;
        let mut received: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
        while received.len() < 4 || received[&1].len() < 3 {
            let data = within(socket.next()).await.unwrap().unwrap().into_data();
            received.entry(data[0]).or_default().extend(&data[1..]);
        }
        assert_eq!([&received[&0][..], &received[&2], &received[&3]], [&[9, 0][..], &[80, 0], &[80, 0]]);
        assert_eq!(&received[&1][..2], [9, 0]);
        assert!(received[&1].ends_with(b"connection refused"));
    }
    let (head, _) = upgrade(&server.port_forward_url(forward(&[])), WEBSOCKET).await;
    assert!(head.starts_with("http/1.1 400 "), "no ports: {head}");
}

const WEBSOCKET: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v4.channel.k8s.io\r\n";

#[tokio::test]
async fn a_url_is_good_once_and_for_its_kind() {
    let server = serve().await;
    let url = server.exec_url(exec("wait"));
    let status = |head: String| head.split(' ').nth(1).unwrap().to_owned();
    for (url, headers, expected) in [
        (url.replace("/exec/", "/exec/x"), WEBSOCKET, "404"),
        (url.clone(), WEBSOCKET, "101"),
        (url, WEBSOCKET, "404"),
        (server.exec_url(exec("wait")).replace("/exec/", "/attach/"), WEBSOCKET, "404"),
        (server.exec_url(exec("wait")), "", "400"),
        (
            server.exec_url(exec("wait")),
            "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v9\r\n",
            "403",
        ),
    ] {
        assert_eq!(status(upgrade(&url, headers).await.0), expected, "{url}");
    }
    let (server, _) = serve_with(Limits { token: Duration::ZERO, ..Limits::default() }).await;
    assert_eq!(status(upgrade(&server.exec_url(exec("wait")), WEBSOCKET).await.0), "404");
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_session() {
    let grace = Duration::from_millis(100);
    let (server, mut ended) = serve_with(Limits { grace, ..Limits::default() }).await;
    let mut socket = websocket(&server.exec_url(exec("cat")), "v4.channel.k8s.io").await;
    send(&mut socket, b"\x00x").await;
    while within(socket.next()).await.unwrap().unwrap().into_data() != b"\x01x"[..] {}
    drop(socket);
    assert_eq!(within(ended.recv()).await, Some("cat"), "its input has ended");
    // A command that does not care is left to itself after a while.
    let mut socket = websocket(&server.exec_url(exec("wait")), "v4.channel.k8s.io").await;
    socket.close(None).await.unwrap();
    assert_eq!(within(ended.recv()).await, Some("wait"));
}

#[tokio::test]
async fn clients_that_keep_us_waiting_are_let_go() {
    let brief = Duration::from_millis(100);
    let (server, _) = serve_with(Limits { creation: brief, ..Limits::default() }).await;
    let mut client = spdy(&server.exec_url(exec("cat")), "v4.channel.k8s.io").await;
    client.open(1, &[("streamtype", "stdin")]).await;
    client.rest().await;
    let mut client = spdy(&server.port_forward_url(forward(&[])), "portforward.k8s.io").await;
    client.open(1, &[("streamtype", "error"), ("port", "80"), ("requestid", "7")]).await;
    let streams = client.until(1).await;
    assert_eq!(streams[&1].0, b"(request=7) timed out waiting for streams");

    let (server, mut ended) = serve_with(Limits { idle: brief, ..Limits::default() }).await;
    let mut socket = websocket(&server.exec_url(exec("wait")), "v5.channel.k8s.io").await;
    while let Some(Ok(_)) = within(socket.next()).await {}
    assert_eq!(within(ended.recv()).await, Some("wait"));
}

#[tokio::test]
async fn dropping_the_server_ends_sessions() {
    let (server, mut ended) = serve_with(Limits::default()).await;
    let mut socket = websocket(&server.exec_url(exec("wait")), "v5.channel.k8s.io").await;
    within(socket.next()).await.unwrap().unwrap();
    drop(server);
    assert_eq!(within(ended.recv()).await, Some("wait"));
}

/// Lets all others run for as long as they can: they move a kibibyte a turn, without timers.
async fn standstill() {
    for _ in 0..20 * MUCH / 1024 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_stream_that_nobody_reads_holds_its_client_back() {
    let (ours, theirs) = tokio::io::duplex(1 << 10);
    let (mut connection, driver) = super::spdy::connect(theirs, |_| Ok(()));
    tokio::spawn(driver);
    let mut client = Spdy::new(ours);
    client.open(1, &[]).await;
    let mut stream = connection.accept().await.unwrap();
    let sending = tokio::spawn(async move {
        client.data(1, &vec![b'x'; MUCH], true).await;
        client
    });
    standstill().await;
    assert!(!sending.is_finished(), "a mebibyte fits nowhere");
    let mut received = Vec::new();
    within(stream.reader.read_to_end(&mut received)).await.unwrap();
    assert_eq!(received.len(), MUCH);
    // And the other way round: the client does not read.
    let mut client = sending.await.unwrap();
    let writing = tokio::spawn(async move { stream.writer.write_all(&vec![b'y'; MUCH]).await.map(drop) });
    standstill().await;
    assert!(!writing.is_finished());
    assert_eq!(client.until(1).await[&1].0.len(), MUCH);
    writing.await.unwrap().unwrap();
}
