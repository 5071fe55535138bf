//! Gives memory back to the machine: what a burst needed is not kept for the idle time after it.
//!
//! glibc gives each thread a heap of its own and keeps what is freed there. A control plane allocates in
//! bursts on all of its threads (start-up, large lists, OpenAPI documents) and idles in between, so that it would
//! hold the sum of the largest bursts. Knows nothing of who allocates; other C libraries are left as they are.

use std::{convert::Infallible, time::Duration};

/// How often is looked for memory to give back.
const PERIOD: Duration = Duration::from_secs(15);

/// Resident bytes that must have come or gone for another look through the heaps, which locks them.
const STIR: u64 = 1 << 20;

/// To be called before there are threads.
pub fn configure() {
    for (option, value) in glibc::OPTIONS {
        glibc::set(option, value);
    }
}

/// Gives back what became free, for ever.
pub async fn give_back() -> Infallible {
    let (mut left, mut stirred) = (0, false);
    loop {
        tokio::time::sleep(PERIOD).await;
        let before = resident();
        // Once more after a stir: a burst may have been under way when it was noticed.
        let stirs = before.abs_diff(left) > STIR;
        if stirs || stirred {
            glibc::trim();
            left = resident();
            tracing::debug!("gave back {} KiB of {} KiB", before.saturating_sub(left) >> 10, before >> 10);
        }
        stirred = stirs;
    }
}

/// Resident bytes that no file backs; none where this cannot be read.
fn resident() -> u64 {
    let pages = || {
        let text = std::fs::read_to_string("/proc/self/statm").ok()?;
        let mut fields = text.split(' ').skip(1).map_while(|field| field.parse::<u64>().ok());
        fields.next()?.checked_sub(fields.next()?)
    };
    pages().unwrap_or(0) * 4096
}

#[cfg(target_env = "gnu")]
mod glibc {
    use libc::{M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, c_int};

    /// At most this many heaps for all threads. Pieces of 128 KiB or more come from no heap and go when freed;
    /// said once, since glibc otherwise raises that bound to the largest piece it has seen.
    pub const OPTIONS: [(c_int, c_int); 3] =
        [(M_ARENA_MAX, 2), (M_MMAP_THRESHOLD, 128 << 10), (M_TRIM_THRESHOLD, 128 << 10)];

    pub fn set(option: c_int, value: c_int) {
        // SAFETY: takes plain numbers; an unknown option is refused, not undefined.
        unsafe { libc::mallopt(option, value) };
    }

    pub fn trim() {
        // SAFETY: locks the heaps and returns only pages in which nothing lives.
        unsafe { libc::malloc_trim(0) };
    }
}

#[cfg(not(target_env = "gnu"))]
mod glibc {
    pub const OPTIONS: [(i32, i32); 0] = [];

    pub fn set(_: i32, _: i32) {}

    pub fn trim() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_memory_is_given_back() {
        configure();
        let before = resident();
        // Small pieces, one kept behind each thousand, so that the heap cannot just shrink from its end.
        let mut pieces: Vec<_> = (0..100_000).map(|piece| vec![piece as u8; 512]).collect();
        let full = resident();
        assert!(full > before + (40 << 20), "{before} {full}");
        let mut kept = 0;
        pieces.retain(|_| {
            kept += 1;
            kept % 1000 == 0
        });
        glibc::trim();
        assert!(resident() < before + (10 << 20), "{before} {full} {}", resident());
        drop(pieces);
    }
}
