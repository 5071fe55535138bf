//! The API as it is, without what kubectl makes of it: requests and watches through one `kubectl proxy` per cluster,
//! which costs a test no process per request.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use serde_json::Value;

use crate::eventually;

pub const STRATEGIC: &str = "application/strategic-merge-patch+json";
pub const MERGE: &str = "application/merge-patch+json";

/// Ended when dropped.
pub struct Api {
    proxy: Child,
    address: String,
}

/// What the server answered: its HTTP status and the object.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Value,
}

impl Api {
    /// `kubectl` is a command that names the cluster.
    pub(crate) fn start(mut kubectl: Command) -> Api {
        let mut proxy = kubectl.args(["proxy", "--port=0"]).stdout(Stdio::piped()).spawn().expect("run kubectl proxy");
        let mut line = String::new();
        BufReader::new(proxy.stdout.take().expect("stdout is piped")).read_line(&mut line).expect("read the port");
        let address = line.trim().rsplit(' ').next().unwrap_or_default().to_owned();
        assert!(address.starts_with("127.0.0.1:"), "kubectl proxy said {line:?}");
        Api { proxy, address }
    }

    /// Any request; `kind` is the content type.
    pub fn send(&self, method: &str, path: &str, kind: &str, body: &Value) -> Answer {
        let mut stream = BufReader::new(self.ask(method, path, kind, body));
        let status = head(&mut stream);
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("read the answer");
        Answer { status, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) }
    }

    pub fn get(&self, path: &str) -> Value {
        self.send("GET", path, "application/json", &Value::Null).success()
    }

    pub fn post(&self, path: &str, body: &Value) -> Value {
        self.send("POST", path, "application/json", body).success()
    }

    pub fn put(&self, path: &str, body: &Value) -> Value {
        self.send("PUT", path, "application/json", body).success()
    }

    /// A strategic merge patch.
    pub fn patch(&self, path: &str, body: &Value) -> Value {
        self.send("PATCH", path, STRATEGIC, body).success()
    }

    pub fn merge(&self, path: &str, body: &Value) -> Value {
        self.send("PATCH", path, MERGE, body).success()
    }

    pub fn delete(&self, path: &str) -> Value {
        self.send("DELETE", path, "application/json", &Value::Null).success()
    }

    /// Waits until the object at `path` satisfies `condition`.
    pub fn wait(&self, path: &str, condition: impl Fn(&Value) -> bool) -> Value {
        eventually(path, || {
            let answer = self.send("GET", path, "application/json", &Value::Null);
            if answer.status == 200 && condition(&answer.body) { Ok(answer.body) } else { Err(format!("{answer:#?}")) }
        })
    }

    /// Waits until nothing is at `path`.
    pub fn gone(&self, path: &str) {
        eventually(&format!("the end of {path}"), || {
            let answer = self.send("GET", path, "application/json", &Value::Null);
            if answer.status == 404 { Ok(()) } else { Err(format!("{answer:#?}")) }
        });
    }

    /// Watches the collection at `path` (with a query, if any) from now on; what is there comes first as ADDED.
    pub fn watch(&self, path: &str) -> Watch {
        let sign = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{sign}watch=1&timeoutSeconds=3600");
        let stream = self.ask("GET", &path, "application/json", &Value::Null);
        let end = stream.try_clone().expect("clone the connection");
        let mut reader = BufReader::new(stream);
        assert_eq!(head(&mut reader), 200, "watch {path}");
        let events = Arc::new(Mutex::new(Vec::new()));
        let sink = events.clone();
        let thread = std::thread::spawn(move || {
            for line in reader.lines().map_while(Result::ok) {
                let event: Value = serde_json::from_str(&line).expect("a watch event is JSON");
                sink.lock().expect("no reader panics").push(event);
            }
        });
        Watch { path, events, seen: 0, end, thread: Some(thread) }
    }

    /// The messages of the WebSocket at `path`, until the server says goodbye.
    pub fn messages(&self, path: &str, protocol: &str) -> Vec<Vec<u8>> {
        let mut stream = BufReader::new(TcpStream::connect(&self.address).expect("connect to kubectl proxy"));
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n"
        );
        stream.get_mut().write_all(request.as_bytes()).expect("send the handshake");
        assert_eq!(head(&mut stream), 101, "WebSocket {path}");
        std::iter::from_fn(|| message(&mut stream)).collect()
    }

    fn ask(&self, method: &str, path: &str, kind: &str, body: &Value) -> TcpStream {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut stream = TcpStream::connect(&self.address).expect("connect to kubectl proxy");
        // HTTP/1.0: the answer ends with the connection and is not chunked.
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: {kind}\r\nAccept: application/json\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).expect("send the request");
        stream
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        let _ = self.proxy.kill();
        let _ = self.proxy.wait();
    }
}

/// Reads the answer's head and returns its status.
fn head(stream: &mut impl BufRead) -> u16 {
    let mut lines = stream.lines().map(|line| line.expect("read the answer's head"));
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
    lines.find(String::is_empty);
    status.expect("the answer has a status")
}

/// One unfragmented message of a server, or `None` for its goodbye.
fn message(stream: &mut impl Read) -> Option<Vec<u8>> {
    const CLOSE: u8 = 0x88;
    let mut take = |length: usize| {
        let mut bytes = vec![0; length];
        stream.read_exact(&mut bytes).expect("the server says goodbye before it goes");
        bytes
    };
    let header = take(2);
    let length = match header[1] {
        126 => take(2),
        127 => take(8),
        short => vec![short],
    };
    let payload = take(length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)));
    (header[0] != CLOSE).then_some(payload)
}

impl Answer {
    pub fn success(self) -> Value {
        assert!((200..300).contains(&self.status), "{self:#?}");
        self.body
    }
}

/// Events of a watch in their order; ended when dropped.
pub struct Watch {
    path: String,
    events: Arc<Mutex<Vec<Value>>>,
    /// How many of them [`Watch::until`] has passed.
    seen: usize,
    end: TcpStream,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// All events so far.
    pub fn events(&self) -> Vec<Value> {
        self.events.lock().expect("no reader panics").clone()
    }

    /// The next event that satisfies `condition`, after those that an earlier call has passed.
    pub fn until(&mut self, condition: impl Fn(&Value) -> bool) -> Value {
        let (events, seen, path) = (self.events.clone(), &mut self.seen, &self.path);
        eventually(path, || {
            let events = events.lock().expect("no reader panics");
            let found = events.iter().skip(*seen).position(&condition);
            *seen = found.map_or(events.len(), |index| *seen + index + 1);
            found.map(|_| events[*seen - 1].clone()).ok_or_else(|| format!("last event: {:#?}", events.last()))
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.end.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
