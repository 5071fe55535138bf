//! Exec and attach, over whichever protocol: the client's channels in, a status out.
//!
//! Does not run anything: [`Streams`] does.

use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, join};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::spdy::{self, Headers};
use super::websocket::Channels;
use super::{AttachRequest, BoxRead, BoxWrite, ExecRequest, StreamError, StreamIo, Streams};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// Terminal sizes that wait to be applied.
const SIZES: usize = 16;
/// Longest text of one terminal size.
const SIZE_TEXT: usize = 1 << 10;

/// What both kinds of request come to; attach has no command.
pub(super) struct Command {
    container_id: String,
    cmd: Option<Vec<String>>,
    tty: bool,
    stdin: bool,
    stdout: bool,
    stderr: bool,
}

impl From<ExecRequest> for Command {
    fn from(request: ExecRequest) -> Command {
        let ExecRequest { container_id, cmd, tty, stdin, stdout, stderr } = request;
        Command { container_id, cmd: Some(cmd), tty, stdin, stdout, stderr: stderr && !tty }
    }
}

impl From<AttachRequest> for Command {
    fn from(request: AttachRequest) -> Command {
        let AttachRequest { container_id, tty, stdin, stdout, stderr } = request;
        Command { container_id, cmd: None, tty, stdin, stdout, stderr: stderr && !tty }
    }
}

/// The client's channels.
#[derive(Default)]
struct Ends {
    stdin: Option<BoxRead>,
    stdout: Option<BoxWrite>,
    stderr: Option<BoxWrite>,
    error: Option<BoxWrite>,
    resize: Option<BoxRead>,
}

/// The channels that a WebSocket client may send on.
pub(super) fn inputs(command: &Command) -> impl Iterator<Item = u8> + use<> {
    [command.stdin.then_some(STDIN), command.tty.then_some(RESIZE)].into_iter().flatten()
}

pub(super) async fn over_websocket(streams: &dyn Streams, command: Command, mut channels: Channels, json_status: bool) {
    let writer = |wanted: bool, channel| wanted.then(|| channels.writer(channel));
    let (stdout, stderr, error) = (writer(command.stdout, STDOUT), writer(command.stderr, STDERR), writer(true, ERROR));
    if let Some(first) = [&stdout, &stderr, &error].into_iter().flatten().next() {
        first.announce();
    }
    let ends = Ends {
        stdin: channels.reader(STDIN).map(|reader| Box::new(reader) as BoxRead),
        stdout: stdout.map(|writer| Box::new(writer) as BoxWrite),
        stderr: stderr.map(|writer| Box::new(writer) as BoxWrite),
        error: error.map(|writer| Box::new(writer) as BoxWrite),
        resize: channels.reader(RESIZE).map(|reader| Box::new(reader) as BoxRead),
    };
    perform(streams, command, ends, json_status).await;
    channels.close();
}

/// Streams of a SPDY client must be of a known type.
pub(super) fn check(headers: &Headers) -> Result<(), String> {
    match headers.get("streamtype").map(String::as_str) {
        Some("error" | "stdin" | "stdout" | "stderr" | "resize") => Ok(()),
        other => Err(format!("unexpected stream type: {:?}", other.unwrap_or_default())),
    }
}

pub(super) async fn over_spdy(
    streams: &dyn Streams,
    command: Command,
    mut connection: spdy::Connection,
    (json_status, resizes): (bool, bool),
    creation: Duration,
) {
    match timeout(creation, gather(&mut connection, &command, resizes)).await {
        Ok(Some(ends)) => {
            connection.refuse_more();
            perform(streams, command, ends, json_status).await;
        }
        Ok(None) => return,
        Err(_) => tracing::debug!("timed out waiting for client to create streams"),
    }
    connection.close();
}

/// Waits until the client has opened all that the command needs; `None` when it has gone.
async fn gather(connection: &mut spdy::Connection, command: &Command, resizes: bool) -> Option<Ends> {
    let mut ends = Ends::default();
    loop {
        let missing = ends.error.is_none()
            || (command.stdin && ends.stdin.is_none())
            || (command.stdout && ends.stdout.is_none())
            || (command.stderr && ends.stderr.is_none())
            || (command.tty && resizes && ends.resize.is_none());
        if !missing {
            return Some(ends);
        }
        let stream = connection.accept().await?;
        // A stream that was not asked for is ended by dropping it. client-go ends its input as soon as we
        // end our direction of it, so that must live as long as the reader.
        let spdy::Stream { headers, reader, writer, .. } = stream;
        match headers["streamtype"].as_str() {
            "error" => ends.error = Some(Box::new(writer)),
            "stdin" if command.stdin => ends.stdin = Some(Box::new(join(reader, writer))),
            "stdout" if command.stdout => ends.stdout = Some(Box::new(writer)),
            "stderr" if command.stderr => ends.stderr = Some(Box::new(writer)),
            "resize" if command.tty => ends.resize = Some(Box::new(join(reader, writer))),
            _ => {}
        }
    }
}

async fn perform(streams: &dyn Streams, command: Command, ends: Ends, json_status: bool) {
    let (sizes, resize) = mpsc::channel(SIZES);
    let io = StreamIo { stdin: ends.stdin, stdout: ends.stdout, stderr: ends.stderr, resize };
    let operation = if command.cmd.is_some() { "executing command in container" } else { "attaching to container" };
    let work = async {
        match command.cmd {
            Some(cmd) => streams.exec(&command.container_id, cmd, command.tty, io).await,
            None => streams.attach(&command.container_id, io).await.map(|()| 0),
        }
    };
    let result = tokio::select! {
        result = work => result,
        never = forward_sizes(ends.resize, sizes) => match never {},
    };
    let status = status(result, operation);
    let text = match (json_status, status["message"].as_str()) {
        (true, _) => status.to_string(),
        (false, message) => message.unwrap_or_default().to_owned(),
    };
    if let Some(mut error) = ends.error {
        let _ = error.write_all(text.as_bytes()).await;
    }
}

/// The `Status` that tells a client how its command ended.
fn status(result: Result<i32, StreamError>, operation: &str) -> Value {
    match result {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Err(error) => {
            let cause = format!("error {operation}: {error}");
            json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("Internal error occurred: {cause}"),
                "reason": "InternalError",
                "details": {"causes": [{"message": cause}]},
                "code": 500,
            })
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

/// Hands on terminal sizes, a sequence of JSON objects, until the client sends no more or nonsense.
async fn forward_sizes(from: Option<BoxRead>, sizes: mpsc::Sender<(u16, u16)>) -> Infallible {
    if let Some(mut from) = from {
        let mut text = Vec::new();
        while text.len() < SIZE_TEXT && matches!(from.read_buf(&mut text).await, Ok(1..)) {
            let mut values = serde_json::Deserializer::from_slice(&text).into_iter::<Size>();
            let mut read = 0;
            let mut nonsense = false;
            while let Some(value) = values.next() {
                match value {
                    Ok(Size { width, height }) => {
                        read = values.byte_offset();
                        let _ = sizes.send((width, height)).await;
                    }
                    Err(error) => {
                        nonsense = !error.is_eof();
                        break;
                    }
                }
            }
            if nonsense {
                break;
            }
            text.drain(..read);
        }
    }
    drop(sizes);
    pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_what_clients_decode() {
        for (result, expected) in [
            (Ok(0), json!({"metadata": {}, "status": "Success"})),
            (
                Ok(3),
                json!({
                    "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
                    "message": "command terminated with non-zero exit code: exit status 3",
                    "details": {"causes": [{"reason": "ExitCode", "message": "3"}]},
                }),
            ),
            (
                Err(StreamError::Failed("no such file".into())),
                json!({
                    "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
                    "message": "Internal error occurred: error executing command in container: no such file",
                    "details": {"causes": [{"message": "error executing command in container: no such file"}]},
                }),
            ),
        ] {
            assert_eq!(status(result, "executing command in container"), expected);
        }
    }

    #[tokio::test]
    async fn sizes_are_read_across_message_borders_until_nonsense() {
        let (mut client, server) = tokio::io::duplex(8);
        let (sender, mut sizes) = mpsc::channel(1);
        let forwarding = tokio::spawn(forward_sizes(Some(Box::new(server)), sender));
        let writing = client.write_all(br#"{"Width":80,"Height":24}{"Width":132,"Height":50} {"Width":-1}"#);
        let reading = async { [sizes.recv().await, sizes.recv().await, sizes.recv().await] };
        let (_, read) = tokio::join!(writing, reading);
        assert_eq!(read, [Some((80, 24)), Some((132, 50)), None]);
        forwarding.abort();
    }
}
