//! Container logs in CRI's format: `<RFC 3339 with nanoseconds> stdout F <line>`, `P` for a piece of a
//! line: one that is too long for one entry, or one that the stream left without a newline.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Longest piece of a line in one entry, as upstream's runtimes cut it.
const MAX_LINE: usize = 16 * 1024;

/// Nanoseconds since the epoch.
pub(crate) fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    since.as_nanos() as i64
}

/// One log file, written entry by entry. The kubelet rotates: it renames the file and asks to reopen.
pub(crate) struct Log {
    path: PathBuf,
    file: Option<File>,
}

impl Log {
    pub(crate) fn open(path: &Path) -> io::Result<Log> {
        Ok(Log { file: Some(append(path)?), path: path.into() })
    }

    /// Goes on in a new file of the same name.
    pub(crate) fn reopen(&mut self) -> io::Result<()> {
        self.file = Some(append(&self.path)?);
        Ok(())
    }

    /// Loses entries that cannot be written (a full disk) rather than stopping the container.
    fn write(&mut self, entries: &[u8]) {
        if let Some(file) = &mut self.file {
            let _ = file.write_all(entries);
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

/// Cuts one stream into entries. Holds back only an unfinished line.
pub(crate) struct Lines {
    stream: &'static str,
    pending: Vec<u8>,
}

impl Lines {
    pub(crate) fn new(stream: &'static str) -> Lines {
        Lines { stream, pending: Vec::new() }
    }

    /// Takes what was read and writes every finished line.
    pub(crate) fn push(&mut self, mut data: &[u8], log: &mut Log) {
        let mut entries = Vec::with_capacity(data.len() + 64);
        while !data.is_empty() {
            let room = MAX_LINE - self.pending.len();
            match data.iter().take(room + 1).position(|byte| *byte == b'\n') {
                Some(end) => {
                    self.entry(b'F', &data[..end], &mut entries);
                    data = &data[end + 1..];
                }
                None if data.len() > room => {
                    self.entry(b'P', &data[..room], &mut entries);
                    data = &data[room..];
                }
                None => {
                    self.pending.extend_from_slice(data);
                    break;
                }
            }
        }
        log.write(&entries);
    }

    /// The stream has ended: readers must not see a newline that was never written.
    pub(crate) fn finish(&mut self, log: &mut Log) {
        if !self.pending.is_empty() {
            let mut entries = Vec::new();
            self.entry(b'P', b"", &mut entries);
            log.write(&entries);
        }
    }

    fn entry(&mut self, tag: u8, rest: &[u8], entries: &mut Vec<u8>) {
        timestamp(now(), entries);
        let _ = write!(entries, " {} {} ", self.stream, tag as char);
        entries.extend_from_slice(&self.pending);
        entries.extend_from_slice(rest);
        entries.push(b'\n');
        self.pending = Vec::new();
    }
}

/// UTC with nine digits of a second, so that entries sort as text.
fn timestamp(nanoseconds: i64, out: &mut Vec<u8>) {
    let (seconds, fraction) = (nanoseconds.div_euclid(1_000_000_000), nanoseconds.rem_euclid(1_000_000_000));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Civil date from days: years begin in March, so that leap days come last.
    let shifted = days + 719_468;
    let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = year + era * 400 + i64::from(month <= 2);
    let _ = write!(
        out,
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{fraction:09}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(chunks: &[&[u8]]) -> Vec<String> {
        let directory = std::env::temp_dir().join(format!("isopod-log-{}", uuid::Uuid::new_v4()));
        let mut log = Log::open(&directory).unwrap();
        let mut lines = Lines::new("stdout");
        chunks.iter().for_each(|chunk| lines.push(chunk, &mut log));
        lines.finish(&mut log);
        let text = std::fs::read_to_string(&directory).unwrap();
        std::fs::remove_file(&directory).unwrap();
        text.lines().map(|line| line.split_once(' ').unwrap().1.to_string()).collect()
    }

    #[test]
    fn lines_become_entries() {
        let long = vec![b'x'; MAX_LINE + 10];
        let exact = [vec![b'y'; MAX_LINE], b"\n".to_vec()].concat();
        assert_eq!(logged(&[b"a\nb", b"c\n\n"]), ["stdout F a", "stdout F bc", "stdout F "]);
        assert_eq!(logged(&[b"no newline"]), ["stdout P no newline"]);
        let full = "x".repeat(MAX_LINE);
        assert_eq!(logged(&[&long, b"\n"]), [format!("stdout P {full}"), "stdout F xxxxxxxxxx".to_string()]);
        assert_eq!(logged(&[&exact]), [format!("stdout F {}", "y".repeat(MAX_LINE))]);
    }

    #[test]
    fn times_agree_with_jiff() {
        for nanoseconds in [0, 951_782_400_000_000_001, 1_709_164_800_123_456_789, 4_102_444_799_999_999_999] {
            let mut text = Vec::new();
            timestamp(nanoseconds, &mut text);
            let parsed: jiff::Timestamp = String::from_utf8(text).unwrap().parse().unwrap();
            assert_eq!(parsed.as_nanosecond(), i128::from(nanoseconds));
        }
    }
}
