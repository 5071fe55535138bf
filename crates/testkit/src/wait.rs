//! Waiting for conditions. The bound only turns a hang into a failure; it judges nothing.

use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(180);
const INTERVAL: Duration = Duration::from_millis(50);

/// Calls `probe` until it returns `Ok`, and panics with its last complaint if it never does.
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match probe() {
            Ok(value) => return value,
            Err(complaint) if Instant::now() > deadline => panic!("waiting for {what}: {complaint}"),
            #[expect(clippy::disallowed_methods, reason = "tests poll outside of any executor")]
            Err(_) => std::thread::sleep(INTERVAL),
        }
    }
}
