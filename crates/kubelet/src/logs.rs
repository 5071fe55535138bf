//! Container logs in CRI's format: reading, following, rotating, and termination messages.
//!
//! Knows files, no pods. A line is `TIME STREAM TAG CONTENT`; tag `P` marks a piece of a longer line.

use crate::cri_client::Cri;
use crate::state::Instance;
use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::sync::mpsc;

/// Bytes read at a time; chunks of this size wait for a slow reader, `CHUNKS` at most.
const CHUNK: usize = 64 << 10;
pub const CHUNKS: usize = 8;
/// How often a follower looks for more at the end of the file.
const POLL: Duration = Duration::from_millis(100);
/// A termination message longer than this is cut.
const MESSAGE_BYTES: u64 = 4096;
/// What FallbackToLogsOnError takes of a log.
const FALLBACK_LINES: usize = 80;
const FALLBACK_BYTES: usize = 2048;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    pub follow: bool,
    pub since: Option<Timestamp>,
    pub timestamps: bool,
    pub tail: Option<usize>,
    pub limit_bytes: Option<usize>,
    /// Only this stream: `stdout` or `stderr`.
    pub stream: Option<&'static str>,
}

/// Turns raw lines into what the reader asked for.
struct Formatter {
    options: Options,
    left: usize,
    /// The next piece begins a line.
    fresh: bool,
}

impl Formatter {
    fn new(options: &Options) -> Formatter {
        Formatter { left: options.limit_bytes.unwrap_or(usize::MAX), options: options.clone(), fresh: true }
    }

    /// Appends one raw line (without its newline); false once the limit is reached.
    fn push(&mut self, line: &[u8], output: &mut BytesMut) -> bool {
        let Some([time, stream, tag, content]) = split(line) else { return true };
        if self.options.stream.is_some_and(|wanted| wanted.as_bytes() != stream) {
            return true;
        }
        if let Some(since) = self.options.since {
            let at = std::str::from_utf8(time).ok().and_then(|text| text.parse::<Timestamp>().ok());
            if at.is_none_or(|at| at < since) {
                return true;
            }
        }
        if self.options.timestamps && self.fresh {
            self.emit(time, output);
            self.emit(b" ", output);
        }
        self.emit(content, output);
        self.fresh = !tag.starts_with(b"P");
        if self.fresh {
            self.emit(b"\n", output);
        }
        self.left > 0
    }

    fn emit(&mut self, bytes: &[u8], output: &mut BytesMut) {
        let take = bytes.len().min(self.left);
        self.left -= take;
        output.extend_from_slice(&bytes[..take]);
    }
}

fn split(line: &[u8]) -> Option<[&[u8]; 4]> {
    let mut parts = line.splitn(4, |&byte| byte == b' ');
    Some([parts.next()?, parts.next()?, parts.next()?, parts.next()?])
}

/// Sends a log to `output`; a follower ends with the file once `running` says no more will come.
pub async fn read(
    path: PathBuf,
    options: Options,
    running: impl Fn() -> bool + Send,
    output: mpsc::Sender<io::Result<Bytes>>,
) {
    if let Err(error) = try_read(&path, &options, running, &output).await {
        let _ = output.send(Err(error)).await;
    }
}

async fn try_read(
    path: &Path,
    options: &Options,
    running: impl Fn() -> bool,
    output: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    let mut file = tokio::fs::File::open(path).await?;
    if let Some(lines) = options.tail {
        let mut blocking = file.try_clone().await?.into_std().await;
        let start = tokio::task::spawn_blocking(move || tail_start(&mut blocking, lines)).await??;
        file.seek(SeekFrom::Start(start)).await?;
    }
    let mut formatter = Formatter::new(options);
    let (mut pending, mut chunk) = (BytesMut::new(), vec![0; CHUNK]);
    // What is written while the last lines are read is not among them.
    let mut left = options.tail.filter(|_| !options.follow).unwrap_or(usize::MAX);
    if options.limit_bytes == Some(0) || left == 0 {
        return Ok(());
    }
    let mut last_look = !options.follow;
    loop {
        let count = file.read(&mut chunk).await?;
        pending.extend_from_slice(&chunk[..count]);
        let mut formatted = BytesMut::new();
        let mut more = true;
        while let Some(end) = pending.iter().position(|&byte| byte == b'\n').filter(|_| more) {
            let line = pending.split_to(end + 1);
            left -= 1;
            more = formatter.push(&line[..end], &mut formatted) && left > 0;
        }
        if !formatted.is_empty() && output.send(Ok(formatted.freeze())).await.is_err() {
            return Ok(());
        }
        if !more {
            return Ok(());
        }
        if count > 0 {
            continue;
        }
        if let Some(next) = rotated(&file, path).await.filter(|_| options.follow) {
            file = next;
            continue;
        }
        if last_look {
            return Ok(());
        }
        // What was written between the last read and the end is read in one more round.
        last_look = !running();
        if !last_look {
            tokio::select! {
                () = tokio::time::sleep(POLL) => {}
                () = output.closed() => return Ok(()),
            }
        }
    }
}

/// The new file, if another one has taken the path.
async fn rotated(file: &tokio::fs::File, path: &Path) -> Option<tokio::fs::File> {
    let (mine, theirs) = (file.metadata().await.ok()?, tokio::fs::metadata(path).await.ok()?);
    if mine.ino() == theirs.ino() {
        return None;
    }
    tokio::fs::File::open(path).await.ok()
}

/// The offset at which the last `lines` complete lines begin.
fn tail_start(file: &mut std::fs::File, lines: usize) -> io::Result<u64> {
    let mut position = file.seek(SeekFrom::End(0))?;
    let end = position;
    let mut newlines = 0;
    let mut block = vec![0; CHUNK];
    while position > 0 {
        let size = (position as usize).min(CHUNK);
        position -= size as u64;
        file.seek(SeekFrom::Start(position))?;
        file.read_exact(&mut block[..size])?;
        for index in (0..size).rev().filter(|&index| block[index] == b'\n') {
            // The newline that ends the last line begins none.
            if newlines == lines {
                return Ok(position + index as u64 + 1);
            }
            newlines += 1;
        }
    }
    Ok(if lines == 0 { end } else { 0 })
}

/// The last lines of a log as one text, for FallbackToLogsOnError.
fn tail_text(path: &str) -> io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let start = tail_start(&mut file, FALLBACK_LINES)?;
    file.seek(SeekFrom::Start(start))?;
    let mut raw = Vec::new();
    file.take(1 << 20).read_to_end(&mut raw)?;
    let (mut formatter, mut text) = (Formatter::new(&Options::default()), BytesMut::new());
    for line in raw.split(|&byte| byte == b'\n') {
        formatter.push(line, &mut text);
    }
    let from = text.len().saturating_sub(FALLBACK_BYTES);
    Ok(String::from_utf8_lossy(&text[from..]).into_owned())
}

/// Adds a dead container's termination message to its state.
pub fn read_termination_message(instance: &mut Instance) {
    instance.message_read = true;
    let mut message = String::new();
    if let Some(file) = instance.message_file.as_deref().and_then(|path| std::fs::File::open(path).ok()) {
        let mut bytes = Vec::new();
        if file.take(MESSAGE_BYTES).read_to_end(&mut bytes).is_ok() {
            message = String::from_utf8_lossy(&bytes).into_owned();
        }
    }
    if message.is_empty() && instance.exit_code != 0 && instance.message_policy == "FallbackToLogsOnError" {
        message = tail_text(&instance.log_path).unwrap_or_default();
    }
    if !message.is_empty() && !instance.message.is_empty() {
        instance.message.push_str(": ");
    }
    instance.message.push_str(&message);
}

/// Removes a log with its rotated files.
pub fn remove(path: &str) {
    for file in rotated_files(Path::new(path)).into_iter().chain([PathBuf::from(path)]) {
        let _ = std::fs::remove_file(file);
    }
}

/// `0.log.STAMP` files beside `0.log`, the oldest first.
fn rotated_files(path: &Path) -> Vec<PathBuf> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return vec![] };
    let prefix = format!("{}.", name.to_string_lossy());
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> =
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)).map(|e| e.path()).collect();
    files.sort();
    files
}

/// Moves a log that grew too large aside and has the runtime begin a new one.
pub async fn rotate(cri: &Cri, id: &str, path: &str, max_bytes: u64, max_files: usize) -> Result<(), String> {
    let size = tokio::fs::metadata(path).await.map_or(0, |metadata| metadata.len());
    if size < max_bytes {
        return Ok(());
    }
    let failed = |error: io::Error| format!("rotate {path}: {error}");
    let files = rotated_files(Path::new(path));
    // The current file and the one being moved aside count too.
    let surplus = files.len().saturating_sub(max_files.saturating_sub(2));
    for file in &files[..surplus] {
        std::fs::remove_file(file).map_err(failed)?;
    }
    let aside = format!("{path}.{}", Timestamp::now().strftime("%Y%m%d-%H%M%S%.6f"));
    std::fs::rename(path, &aside).map_err(failed)?;
    let request = cri::v1::ReopenContainerLogRequest { container_id: id.to_owned() };
    if let Err(error) = cri.reopen_container_log(request).await {
        // Without a new file the container would write on into the old one: put it back.
        std::fs::rename(&aside, path).map_err(failed)?;
        return Err(format!("reopen log of container {id}: {error}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    const LOG: &str = "2026-01-01T00:00:01.5Z stdout F one\n2026-01-01T00:00:02Z stderr F two\n\
        2026-01-01T00:00:03Z stdout P thr\n2026-01-01T00:00:03Z stdout F ee\n2026-01-01T00:00:04Z stdout F \n";

    async fn collect(path: &Path, options: Options) -> String {
        let (sender, mut receiver) = mpsc::channel(CHUNKS);
        tokio::spawn(read(path.to_owned(), options, || false, sender));
        let mut text = Vec::new();
        while let Some(chunk) = receiver.recv().await {
            text.extend_from_slice(&chunk.unwrap());
        }
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn options() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        std::fs::write(&path, LOG).unwrap();
        let default = Options::default;
        let cases = [
            (default(), "one\ntwo\nthree\n\n"),
            (Options { tail: Some(1), ..default() }, "\n"),
            (Options { tail: Some(4), ..default() }, "two\nthree\n\n"),
            (Options { tail: Some(0), ..default() }, ""),
            (Options { tail: Some(99), ..default() }, "one\ntwo\nthree\n\n"),
            (Options { stream: Some("stderr"), ..default() }, "two\n"),
            (Options { limit_bytes: Some(5), ..default() }, "one\nt"),
            (Options { since: Some("2026-01-01T00:00:02Z".parse().unwrap()), ..default() }, "two\nthree\n\n"),
            (
                Options { timestamps: true, tail: Some(3), ..default() },
                "2026-01-01T00:00:03Z three\n2026-01-01T00:00:04Z \n",
            ),
        ];
        for (options, expected) in cases {
            assert_eq!(collect(&path, options.clone()).await, expected, "{options:?}");
        }
    }

    #[tokio::test]
    async fn the_last_line_is_one_line_while_more_are_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let mut file = std::fs::File::create(&path).unwrap();
        let mut write = move || std::io::Write::write_all(&mut file, b"2026-01-01T00:00:01Z stdout F a\n").unwrap();
        write();
        let done = Arc::new(AtomicBool::new(false));
        let ended = done.clone();
        let writer = std::thread::spawn(move || {
            while !ended.load(Ordering::SeqCst) {
                write()
            }
        });
        for _ in 0..200 {
            assert_eq!(collect(&path, Options { tail: Some(1), ..Options::default() }).await, "a\n");
        }
        done.store(true, Ordering::SeqCst);
        writer.join().unwrap();
    }

    #[tokio::test]
    async fn following_survives_rotation_and_ends_with_the_container() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        std::fs::write(&path, "2026-01-01T00:00:01Z stdout F a\n").unwrap();
        let running = Arc::new(AtomicBool::new(true));
        let (sender, mut receiver) = mpsc::channel(CHUNKS);
        let flag = running.clone();
        let options = Options { follow: true, ..Options::default() };
        tokio::spawn(read(path.clone(), options, move || flag.load(Ordering::SeqCst), sender));
        assert_eq!(receiver.recv().await.unwrap().unwrap(), "a\n");
        std::fs::rename(&path, directory.path().join("0.log.old")).unwrap();
        std::fs::write(&path, "2026-01-01T00:00:02Z stdout F b\n").unwrap();
        assert_eq!(receiver.recv().await.unwrap().unwrap(), "b\n");
        running.store(false, Ordering::SeqCst);
        assert!(receiver.recv().await.is_none());
    }
}
