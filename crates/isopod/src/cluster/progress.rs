//! What a user sees while a cluster starts: lines to the launcher's pipe, or the log.

use std::fs::File;
use std::io::Write;

use parking_lot::Mutex;

/// Reports steps, readiness or failure.
pub struct Progress(Option<Mutex<File>>);

impl Progress {
    /// The launcher reads `step TEXT`, `ready` and `failed TEXT` lines from the pipe.
    pub fn new(pipe: File) -> Progress {
        Progress(Some(Mutex::new(pipe)))
    }

    pub fn to_log() -> Progress {
        Progress(None)
    }

    pub fn step(&self, text: &str) {
        self.say("step", text);
    }

    pub fn ready(&self) {
        self.say("ready", "");
    }

    pub fn failed(&self, message: &str) {
        self.say("failed", &message.replace('\n', " "));
    }

    fn say(&self, kind: &str, text: &str) {
        let line = format!("{kind} {text}");
        let line = line.trim_end();
        tracing::info!("{line}");
        if let Some(pipe) = &self.0 {
            // The launcher may have gone once the cluster is ready.
            let _ = pipe.lock().write_all(format!("{line}\n").as_bytes());
        }
    }
}
